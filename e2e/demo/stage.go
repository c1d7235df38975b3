package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
)

// stage is the world that the demo shows:
//
//	fra ---- 8 ms ---- ams          round trips
//	  \               /
//	 240 ms       90 ms             acme:   web, api in every region; db in ams and nrt
//	    \           /               globex: shop in fra
//	     '-- nrt --'                a laptop and a stock client behind NAT, near fra
type stage struct {
	*world.World
	laptop, stock *lab.Host
	up            *lab.Process // `weft up` on the laptop
	disabled      []string
	stockConf     string
	began         time.Time
	enrolled      time.Duration // from the first agent's start to the last one's presence
	controllerOff bool
}

var regions = []struct{ name, at string }{{"fra", "50.1,8.7"}, {"ams", "52.3,4.8"}, {"nrt", "35.8,140.4"}}

// roundTrips between places, in milliseconds.
var roundTrips = []struct {
	a, b string
	ms   int
}{
	{"fra1", "ams1", 8}, {"ams1", "nrt1", 90}, {"fra1", "nrt1", 240},
	{"home", "fra1", 6}, {"home", "ams1", 14}, {"home", "nrt1", 246},
	{"ctl", "fra1", 2}, {"ctl", "ams1", 8}, {"ctl", "nrt1", 90}, {"ctl", "home", 6},
}

// newStage makes the world and starts all that is in it, with the mechanisms in
// disable switched off.
func newStage(ctx context.Context, l *lab.Lab, bin string, disable []string, say func(string, ...any)) (*stage, error) {
	s := &stage{began: time.Now(), disabled: disable}
	agents := slices.DeleteFunc(slices.Clone(disable), func(d string) bool { return strings.HasPrefix(d, "laptop-") || strings.HasPrefix(d, "demo-") })
	w, err := world.New(ctx, world.Config{Lab: l, Bin: bin, Disable: agents})
	if err != nil {
		return nil, err
	}
	s.World = w
	say("controller ready, etcd inside it                         %6s", since(s.began))
	for _, args := range [][]string{{"org", "create", "acme"}, {"org", "create", "globex"}} {
		if _, err := w.Weft(ctx, args...); err != nil {
			return nil, err
		}
	}
	start, first := time.Now(), ""
	for _, r := range regions {
		if _, err := w.Weft(ctx, "region", "create", r.name, "--at", r.at); err != nil {
			return nil, err
		}
		token, err := w.Token(ctx, "--kind", "host", "--orgs", "all", "--region", r.name)
		if err != nil {
			return nil, err
		}
		if r.name == "fra" {
			first = token
		}
		if r.name == "nrt" && slices.Contains(disable, spentToken) {
			token = first
		}
		if _, err := w.AddHostWith(ctx, r.name+"1", r.name, token); err != nil {
			return nil, err
		}
	}
	if slices.Contains(disable, spentToken) {
		return s, nil // there is no mesh to speak of
	}
	router, err := l.NAT("home", lab.NATConfig{})
	if err != nil {
		return nil, err
	}
	if s.laptop, err = router.Host("laptop", lab.HostConfig{PrivateEtc: true}); err != nil {
		return nil, err
	}
	if s.stock, err = router.Host("stock", lab.HostConfig{PrivateEtc: true}); err != nil {
		return nil, err
	}
	for _, rt := range roundTrips {
		if err := l.Switch().SetRTT(rt.a, rt.b, time.Duration(rt.ms)*time.Millisecond); err != nil {
			return nil, err
		}
	}
	if err := w.AwaitHosts(ctx); err != nil {
		return nil, err
	}
	s.enrolled = time.Since(start)
	say("three hosts enrolled and present                         %6s", s.enrolled.Round(time.Millisecond))

	start = time.Now()
	if err := s.startMachines(ctx); err != nil {
		return nil, err
	}
	say("%d machines of two orgs                                    %6s", len(w.Machines), since(start))
	return s, nil
}

func (s *stage) startMachines(ctx context.Context) error {
	for _, m := range []struct{ host, org, app string }{
		{"fra1", "acme", "web"}, {"ams1", "acme", "web"}, {"nrt1", "acme", "web"},
		{"fra1", "acme", "api"}, {"ams1", "acme", "api"}, {"nrt1", "acme", "api"},
		{"ams1", "acme", "db"}, {"nrt1", "acme", "db"},
		{"fra1", "globex", "shop"},
	} {
		h := s.Hosts[m.host]
		if _, err := s.Start(ctx, h, m.org, m.app, m.app+"-"+h.Region, s.Echo()...); err != nil {
			return err
		}
	}
	return nil
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }

// machine returns acme's machine of app in a region.
func (s *stage) machine(app, region string) *world.Machine {
	return s.Machines["acme/"+app+"-"+region]
}

// addresses returns the addresses of acme's machines, sorted as text.
func (s *stage) addresses(ids ...string) []string {
	var out []string
	for _, id := range ids {
		out = append(out, s.Machines["acme/"+id].Address.String())
	}
	slices.Sort(out)
	return out
}

// runner runs a command somewhere: in a machine, on a laptop.
type runner func(ctx context.Context, command ...string) (string, error)

func on(h *lab.Host) runner {
	return func(ctx context.Context, command ...string) (string, error) {
		return h.Run(ctx, command[0], command[1:]...)
	}
}

// dig asks for AAAA with the real client and the resolver of where it runs.
func dig(ctx context.Context, run runner, name string) ([]string, error) {
	out, err := run(ctx, "dig", "+short", "+time=2", "+tries=1", "AAAA", name)
	if err != nil {
		return nil, err
	}
	got := strings.Fields(out)
	slices.Sort(got)
	return got, nil
}

// expectDig waits until name has exactly the wanted addresses.
func expectDig(ctx context.Context, within time.Duration, run runner, name string, want []string) error {
	return lab.Await(ctx, fmt.Sprintf("%s to be %s", name, strings.Join(want, " ")), within, func(ctx context.Context) error {
		got, err := dig(ctx, run, name)
		if err != nil {
			return err
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("it is %q", strings.Join(got, " "))
		}
		return nil
	})
}

// served is what a machine's program answers over HTTP.
type served struct {
	Name   string `json:"name"`
	Region string `json:"region"`
}

// curl fetches http://host/ by the C library's resolver.
func curl(ctx context.Context, run runner, host string) (served, error) {
	out, err := run(ctx, "curl", "-sS", "-6", "--max-time", "4", "http://"+host+"/")
	if err != nil {
		return served{}, err
	}
	var s served
	return s, json.Unmarshal([]byte(out), &s)
}

// getent resolves by the C library, which sorts by its own rules, and returns the
// addresses in its order.
func getent(ctx context.Context, run runner, name string) ([]string, error) {
	out, err := run(ctx, "getent", "ahostsv6", name)
	if err != nil {
		return nil, err
	}
	var got []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 0 && !slices.Contains(got, f[0]) {
			got = append(got, f[0])
		}
	}
	return got, nil
}

func bracket(a netip.Addr) string { return "[" + a.String() + "]" }

// startLaptop enrols the laptop with a client token and takes the tunnel up.
func (s *stage) startLaptop(ctx context.Context) error {
	token, err := s.Token(ctx, "--kind", "client", "--org", "acme")
	if err != nil {
		return err
	}
	args := []string{"up", "--controller", s.URL, "--token-file", token, "--name", "laptop", "--state-dir", filepath.Join(s.Lab().Dir(), "laptop")}
	var off []string
	for _, d := range s.disabled {
		if what, ok := strings.CutPrefix(d, "laptop-"); ok {
			off = append(off, what)
		}
	}
	if len(off) > 0 {
		args = append(args, "--disable", strings.Join(off, ","))
	}
	s.up, err = s.laptop.Start("up", filepath.Join(s.Bin(), "weft"), args, nil)
	return err
}

// startStock makes a client for the stock WireGuard tools and takes it up with
// Debian's wg-quick, resolvconf and all.
func (s *stage) startStock(ctx context.Context) error {
	s.stockConf = filepath.Join(s.Lab().Dir(), "wg-acme.conf")
	if _, err := s.Weft(ctx, "client", "create", "--org", "acme", "stock", "--gateway", "fra1", "--conf", s.stockConf); err != nil {
		return err
	}
	openresolv, err := filepath.Abs(filepath.Join(s.Bin(), "..", "openresolv", "bin"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(openresolv, "resolvconf")); err != nil {
		return fmt.Errorf("no resolvconf for wg-quick: %w (make deps fetches it)", err)
	}
	env := []string{
		"PATH=" + openresolv + ":" + os.Getenv("PATH"),
		"WG_QUICK_USERSPACE_IMPLEMENTATION=" + filepath.Join(s.Bin(), "wireguard-go"),
	}
	_, err = s.stock.RunEnv(ctx, env, "wg-quick", "up", s.stockConf)
	return err
}
