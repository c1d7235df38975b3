package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/link"
	"github.com/weftmesh/weft/peers/peerstest"
)

// fakeSystem writes down what is done to it, one line each.
type fakeSystem struct {
	device *peerstest.Fake // nil: not made yet
	found  []attach.Found
	fail   map[string]error

	lines  []string
	policy peers.Policy
	links  link.Config
	view   *mesh.View

	strange   bool
	repaired  map[string][]string
	resolvers map[netip.Addr]bool
	targets   []probe.Target
	sources   map[netip.Addr]bool
}

func (f *fakeSystem) did(what string, format string, args ...any) error {
	if err := f.fail[what]; err != nil {
		return err
	}
	f.lines = append(f.lines, what+": "+fmt.Sprintf(format, args...))
	return nil
}

func (f *fakeSystem) Attached() ([]attach.Found, error) { return f.found, f.fail["attached"] }

func (f *fakeSystem) Firewall(_ context.Context, p peers.Policy) error {
	if cmp.Equal(f.policy, p, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })) {
		return f.fail["firewall"]
	}
	var in []string
	for _, n := range p.Networks {
		in = append(in, n.Prefix.String())
	}
	for _, a := range p.Attachments {
		in = append(in, a.Link+"="+a.Endpoint.String())
	}
	if err := f.did("firewall", "%s", strings.Join(in, " ")); err != nil {
		return err
	}
	f.policy = p
	return nil
}

func (f *fakeSystem) Device() (peers.Device, error) {
	if f.device == nil {
		if err := f.did("device", "made"); err != nil {
			return nil, err
		}
		f.device = peerstest.NewFake()
	}
	return loudDevice{f, f.device}, nil
}

// loudDevice is a fake that writes down its changes where the others do.
type loudDevice struct {
	system *fakeSystem
	*peerstest.Fake
}

func (d loudDevice) Apply(ctx context.Context, changes []peers.Change) error {
	if err := d.system.fail["apply"]; err != nil {
		return err
	}
	for _, c := range changes {
		d.system.did("device", "%s", c)
	}
	return d.Fake.Apply(ctx, changes)
}

func (f *fakeSystem) Link(c link.Config) ([]string, error) {
	if fmt.Sprint(f.links) == fmt.Sprint(c) {
		return nil, f.fail["link"]
	}
	f.links = c
	return nil, f.did("link", "%d addresses, %d routes, unreachable %s", len(c.Addresses), len(c.Routes), c.Unreachable)
}

func (f *fakeSystem) Names(v *mesh.View) error {
	if f.view == v {
		return f.fail["names"]
	}
	f.view = v
	f.resolvers = map[netip.Addr]bool{v.Plan.Resolver(0): true}
	for _, o := range v.Orgs {
		f.resolvers[v.Plan.Resolver(o.Network)] = true
	}
	return f.did("names", "%d machines, %d resolvers", len(v.Machines), len(v.Orgs)+1)
}

func (f *fakeSystem) Probes(v *mesh.View) error {
	f.targets, f.sources = probeTargets(v), probeSources(v)
	return f.fail["probes"]
}

func (f *fakeSystem) Detach(link string) error { return f.did("detach", "%s", link) }

func (f *fakeSystem) take() string {
	out := strings.Join(f.lines, "\n")
	f.lines = nil
	return out
}

// privateKey is any valid one.
func privateKey() wgtypes.Key { return wgtypes.Key{0: 8, 31: 64} }

func newLoop(t *testing.T, s system) (*loop, *machines, *logs) {
	t.Helper()
	log, text := newLog(t)
	m, err := openMachines(&machines{host: "a", dir: t.TempDir(), reclaim: time.Hour, wake: func() {}, log: log})
	if err != nil {
		t.Fatal(err)
	}
	return &loop{
		system: s, machines: m, tunnels: tunnels{key: privateKey(), port: 51820, log: log}, link: "weft0", probe: 51821,
		mtu: func(*mesh.View) int { return 1420 }, contact: func() contact { return contact{connected: true} }, reach: func() contact { return contact{connected: true} },
		feed: &feed{}, alarms: &alarms{wake: func() {}}, events: &events{wake: func() {}}, timing: Timing{}.withDefaults(), log: log,
	}, m, text
}

// What a pass does, and in which order: the firewall before there is anything that
// it must stop, tunnels before routes, names when they lead somewhere.
func TestPass(t *testing.T) {
	s := &fakeSystem{found: []attach.Found{{Link: attach.LinkName("acme", "web-a")}, {Link: "m-stranger"}}}
	l, _, _ := newLoop(t, s)
	v := sampleView(t)
	if _, err := l.pass(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"firewall: fd12:3456:789a:1::/64 fd12:3456:789a:2::/64 " + attach.LinkName("acme", "web-a") + "=fd12:3456:789a:1:8100:1:1:0/112",
		"device: made",
		"device: set-device port=51820",
		"device: add " + keyOf(2).String() + " endpoint=192.0.2.2:51820 +fd12:3456:789a:0:8100:2:0:1/128 +fd12:3456:789a:1:8100:2::/96",
		"device: add " + keyOf(3).String() + " endpoint=192.0.2.3:51820 +fd12:3456:789a:0:c100:3:0:1/128 +fd12:3456:789a:1:c100:3::/96",
		"device: add " + keyOf(50).String() + " +fd12:3456:789a:1:8100:2:9:0/112",
		"link: 6 addresses, 5 routes, unreachable fd12:3456:789a::/48",
		"names: 4 machines, 3 resolvers",
		"detach: m-stranger",
	}, "\n")
	if diff := cmp.Diff(want, s.take()); diff != "" {
		t.Errorf("first pass (-want +got):\n%s", diff)
	}
	s.found = s.found[:1]
	l.log = slog.New(slog.NewTextHandler(failOnWrite{t}, nil))
	l.tunnels.log = l.log
	if _, err := l.pass(t.Context(), v); err != nil || s.take() != "" {
		t.Errorf("a second pass with nothing to do: %v, %q", err, s.lines)
	}
}

// failOnWrite is for passes that have nothing to say.
type failOnWrite struct{ t *testing.T }

func (f failOnWrite) Write(b []byte) (int, error) {
	f.t.Errorf("logged: %s", b)
	return len(b), nil
}

// Nothing comes up before the firewall is in force; once it is, an error of it does
// not hold up a revocation.
func TestFirewallComesFirst(t *testing.T) {
	s := &fakeSystem{fail: map[string]error{"firewall": errors.New("no nftables here")}}
	l, _, _ := newLoop(t, s)
	v := sampleView(t)
	if _, err := l.pass(t.Context(), v); err == nil || s.take() != "" {
		t.Fatalf("without a firewall: %v, %q", err, s.lines)
	}
	s.fail = nil
	if _, err := l.pass(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	s.take()
	s.fail = map[string]error{"firewall": errors.New("busy")}
	less := *v
	less.Hosts = v.Hosts[:1]
	a, err := l.pass(t.Context(), &less)
	if err == nil || !strings.Contains(s.take(), "drop "+keyOf(3).String()) {
		t.Fatalf("a revocation was held up by the firewall: %v", err)
	}
	if _, err := l.pass(t.Context(), &less); err == nil || !strings.Contains(s.take(), "remove "+keyOf(3).String()) {
		t.Fatalf("the peer that was revoked stays: %v", err)
	}
	if len(a.links.at) != 0 {
		t.Error("a machine was told that the firewall knows it")
	}
}

// A part that fails does not hold up the others, and the next pass does the rest.
func TestPassGoesOnAfterAnError(t *testing.T) {
	for _, part := range []string{"apply", "device", "link", "names", "probes"} {
		s := &fakeSystem{fail: map[string]error{part: errors.New("broken")}}
		l, _, _ := newLoop(t, s)
		v := sampleView(t)
		a, err := l.pass(t.Context(), v)
		if err == nil || a.problem == nil || !strings.Contains(err.Error(), "broken") {
			t.Errorf("%s: %v", part, err)
		}
		s.fail = nil
		if _, err := l.pass(t.Context(), v); err != nil {
			t.Errorf("%s, mended: %v", part, err)
		}
		c, err := s.device.Config(t.Context())
		if err != nil || len(c.Peers) != 3 {
			t.Errorf("%s, mended: %d peers, %v", part, len(c.Peers), err)
		}
	}
	s := &fakeSystem{fail: map[string]error{"attached": errors.New("broken")}}
	l, _, _ := newLoop(t, s)
	if _, err := l.pass(t.Context(), sampleView(t)); err == nil || s.take() != "" {
		t.Error("a firewall was set without knowing the machines that are there")
	}
}

// Named after the issue: a roamed endpoint was taken for drift and rewritten every
// 30 s. Here it stays, until somebody gives the peer another one.
func TestKilo34RoamedEndpointStays(t *testing.T) {
	s := &fakeSystem{}
	l, _, _ := newLoop(t, s)
	v := sampleView(t)
	if _, err := l.pass(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	roamed := addrPort("198.51.100.99:4444")
	err := s.device.Apply(t.Context(), []peers.Change{{Op: peers.UpdatePeer, Peer: peers.Peer{Key: keyOf(2), Endpoint: roamed}, SetEndpoint: true}})
	if err != nil {
		t.Fatal(err)
	}
	s.take()
	endpoint := func() netip.AddrPort {
		c, err := s.device.Config(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(c.Peers, func(p peers.Peer) bool { return p.Key == keyOf(2) })
		return c.Peers[i].Endpoint
	}
	for range 3 {
		if _, err := l.pass(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	if endpoint() != roamed || s.take() != "" {
		t.Fatalf("endpoint %s, want the roamed %s", endpoint(), roamed)
	}
	moved := *v
	moved.Hosts = slices.Clone(v.Hosts)
	moved.Hosts[0].Endpoints = []netip.AddrPort{addrPort("203.0.113.1:51820")}
	// The device refuses at first: the new endpoint is not forgotten.
	s.fail = map[string]error{"apply": errors.New("busy")}
	if _, err := l.pass(t.Context(), &moved); err == nil {
		t.Fatal("no error")
	}
	s.fail = nil
	if _, err := l.pass(t.Context(), &moved); err != nil {
		t.Fatal(err)
	}
	if endpoint() != moved.Hosts[0].Endpoints[0] {
		t.Fatalf("endpoint %s, want the new %s", endpoint(), moved.Hosts[0].Endpoints[0])
	}
}

// Named after the advisory: clear text between nodes while the store lagged. The
// mesh's prefix is refused as a whole from the first pass on, also with no peer.
func TestCiliumCVE202425631UnreachableRoute(t *testing.T) {
	s := &fakeSystem{}
	l, _, _ := newLoop(t, s)
	v := sampleView(t)
	v.Hosts, v.Clients, v.Machines, v.Orgs = nil, nil, nil, nil
	if _, err := l.pass(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if s.links.Unreachable != v.Plan.Prefix() || len(s.links.Routes) != 0 {
		t.Fatalf("link: %+v", s.links)
	}
}

// A record that a device would misunderstand costs its own tunnel and no other.
func TestSound(t *testing.T) {
	p := netip.MustParsePrefix
	c := peers.Config{PrivateKey: privateKey(), Peers: []peers.Peer{
		{Key: keyOf(1), AllowedIPs: []netip.Prefix{p("fd00::1/128")}},
		{Key: keyOf(2), AllowedIPs: []netip.Prefix{p("fd00::1/128"), p("fd00::2/128")}},
		{Key: keyOf(1), AllowedIPs: []netip.Prefix{p("fd00::3/128")}},
		{AllowedIPs: []netip.Prefix{p("fd00::4/128")}},
		{Key: keyOf(5), AllowedIPs: []netip.Prefix{p("fd00::5/64")}},
		{Key: privateKey().PublicKey()},
	}}
	good, dropped := sound(c)
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	want := []peers.Peer{
		{Key: keyOf(1), AllowedIPs: []netip.Prefix{p("fd00::1/128")}}, {Key: keyOf(2), AllowedIPs: []netip.Prefix{p("fd00::2/128")}}, {Key: keyOf(5)},
	}
	if fmt.Sprint(good.Peers) != fmt.Sprint(want) || len(dropped) != 5 {
		t.Errorf("got %v\nwant %v\ndropped %q", good.Peers, want, dropped)
	}
}

// A pass that hangs is told of while it hangs.
func TestWatchdog(t *testing.T) {
	log, text := newLog(t)
	var p problems
	var wake signal
	ctx, cancel := context.WithCancel(t.Context())
	release, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		passes{Timing{Tick: time.Hour, Watchdog: 10 * time.Millisecond}, &p, log}.run(ctx, wake.C, func() error { <-release; return nil })
	}()
	eventually(t, 5*time.Second, "a problem", func() bool { return len(p.list()) == 1 })
	close(release)
	eventually(t, 5*time.Second, "the end of it", func() bool { return len(p.list()) == 0 })
	cancel()
	<-done
	if !text.contains("takes too long") {
		t.Error("not logged")
	}
}

// NetBird #3843 took the fleet down with the control plane; Netmaker #1193
// restarted WireGuard when the broker died. Here the last view is on disk, and a
// stream that ends changes nothing.
func TestNetBird3843LastViewOnDisk(t *testing.T) {
	dir := t.TempDir()
	v := sampleView(t)
	b, err := encodeView(v, true, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, cacheFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	log, _ := newLog(t)
	f := newFollower(v.Self, dir, quick(), nil, &problems{}, log)
	f.load()
	s := &fakeSystem{}
	l, _, _ := newLoop(t, s)
	l.contact = f.Contact
	if _, err := l.pass(t.Context(), f.View()); err != nil {
		t.Fatal(err)
	}
	if c, err := s.device.Config(t.Context()); err != nil || len(c.Peers) != 3 {
		t.Fatalf("from the disk: %v, %v", c, err)
	}
	s.take()
	f.disconnected()
	if _, err := l.pass(t.Context(), f.View()); err != nil || s.take() != "" {
		t.Fatalf("a lost stream changed something: %v %q", err, s.lines)
	}
}

// The quick part of fakeSystem: what it is told becomes what it holds, as a kernel's.

func (f *fakeSystem) Opened() (peers.Device, bool) {
	if f.device == nil {
		return nil, false
	}
	return loudDevice{f, f.device}, true
}

func (f *fakeSystem) Strange(context.Context) (bool, error) { return f.strange, f.fail["strange"] }

func (f *fakeSystem) ChangeFirewall(_ context.Context, before, after peers.Policy) error {
	if err := f.fail["change-firewall"]; err != nil {
		return err
	}
	p := f.policy
	p.Networks = without(p.Networks, before.Networks, after.Networks)
	p.Attachments = without(p.Attachments, before.Attachments, after.Attachments)
	slices.SortFunc(p.Networks, func(a, b peers.Network) int { return peers.ComparePrefix(a.Prefix, b.Prefix) })
	slices.SortFunc(p.Attachments, func(a, b peers.Attachment) int { return strings.Compare(a.Link, b.Link) })
	if len(before.Grants)+len(after.Grants) > 0 {
		if fmt.Sprint(p.Grants) != fmt.Sprint(before.Grants) {
			return fmt.Errorf("grants are %v, not %v", p.Grants, before.Grants)
		}
		p.Grants = after.Grants
		f.did("firewall", "%d grants", len(p.Grants))
	}
	f.policy = p
	for _, n := range before.Networks {
		f.did("firewall", "-%s", n.Prefix)
	}
	for _, a := range before.Attachments {
		f.did("firewall", "-%s=%s", a.Link, a.Endpoint)
	}
	for _, n := range after.Networks {
		f.did("firewall", "+%s", n.Prefix)
	}
	for _, a := range after.Attachments {
		f.did("firewall", "+%s=%s", a.Link, a.Endpoint)
	}
	return nil
}

func without[T comparable](all, minus, plus []T) []T {
	out := slices.DeleteFunc(slices.Clone(all), func(x T) bool { return slices.Contains(minus, x) })
	return append(out, plus...)
}

func (f *fakeSystem) ChangeLink(changes []link.Change) (done []string, err error) {
	if err := f.fail["change-link"]; err != nil {
		return nil, err
	}
	for _, c := range changes {
		f.did("link", "%s", c)
		done = append(done, c.String())
		switch c.Op {
		case link.AddRoute:
			if slices.Contains(f.links.Routes, link.Route{Prefix: c.Prefix, MTU: c.MTU, Source: c.Source}) {
				return done, os.ErrExist
			}
			f.links.Routes = append(f.links.Routes, link.Route{Prefix: c.Prefix, MTU: c.MTU, Source: c.Source})
		case link.DropRoute:
			f.links.Routes = slices.DeleteFunc(slices.Clone(f.links.Routes), func(r link.Route) bool { return r.Prefix == c.Prefix })
		case link.SetAddress:
			f.links.Addresses = append(slices.Clone(f.links.Addresses), link.Address{Prefix: c.Prefix, Deprecated: c.Deprecated})
		case link.DropAddress:
			f.links.Addresses = slices.DeleteFunc(slices.Clone(f.links.Addresses), func(a link.Address) bool { return a.Prefix == c.Prefix })
		}
	}
	slices.SortFunc(f.links.Routes, func(a, b link.Route) int { return peers.ComparePrefix(a.Prefix, b.Prefix) })
	slices.SortFunc(f.links.Addresses, func(a, b link.Address) int { return peers.ComparePrefix(a.Prefix, b.Prefix) })
	return done, nil
}

func (f *fakeSystem) ChangeNames(plus, minus []peers.Network) error {
	for _, n := range minus {
		delete(f.resolvers, n.Resolver)
		f.did("names", "-%s", n.Resolver)
	}
	for _, n := range plus {
		f.resolvers[n.Resolver] = true
		f.did("names", "+%s", n.Resolver)
	}
	return f.fail["change-names"]
}

func (f *fakeSystem) ChangeProbes(targets []probe.Target, plus, minus []netip.Addr) error {
	if targets != nil {
		f.targets = targets
		f.did("probes", "%d", len(targets))
	}
	for _, a := range minus {
		delete(f.sources, a)
	}
	for _, a := range plus {
		f.sources[a] = true
	}
	return nil
}

func (f *fakeSystem) Rename(e link.Event) error {
	return f.did("rename", "%s", e.Link)
}

func (f *fakeSystem) Repair(m attach.Machine) ([]string, error) {
	return f.repaired[m.Link], f.fail["repair"]
}
