package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
)

// fact is one thing that must hold. check proves it and returns the proof in a
// few words. disable names the mechanism without which it cannot hold: with it off
// check must fail, or it proves nothing.
type fact struct {
	name    string
	disable []string
	check   func(ctx context.Context, s *stage) (proof string, err error)
}

var facts = []fact{
	{"hosts enrolled with a token each, no person needed", []string{spentToken}, enrolled},
	{"every region is answered with its nearest web", []string{"near"}, nearest},
	{"getent and curl reach the nearest, from every region", []string{"near"}, libc},
	{"web sees all of itself, others see the near ones", []string{"same-app"}, sameApp},
	{"a laptop behind NAT joins and reaches web by name", []string{"laptop-dns"}, laptopByName},
	{"a stock wg-quick client reaches web by name", []string{"clients"}, stockByName},
	{"the other org cannot reach web, nor see its name", []string{"firewall"}, isolated},
	{"a machine cannot reach its host", []string{"namespace", "firewall"}, hostOutOfReach},
	{"two delays are swapped: the answers follow", []string{"probes"}, swapped},
	{"the nearest machine is killed: the name moves", []string{"leave"}, machineKilled},
	{"a whole host is cut off: the name moves", []string{"suspect"}, hostCut},
	{"controller and etcd gone, an agent restarted: all goes on", []string{"cache"}, controlPlaneGone},
	{"they return: a new machine appears everywhere", []string{"reconnect"}, controlPlaneBack},
}

// spentToken, in fact.disable, gives the last host the first one's token.
const spentToken = "demo-spent-token"

func enrolled(ctx context.Context, s *stage) (string, error) {
	if err := s.AwaitHosts(ctx); err != nil {
		return "", err
	}
	list, err := world.List[api.HostInfo](ctx, s.World, "host", "list")
	if err != nil {
		return "", err
	}
	var names []string
	for _, h := range list {
		if !h.Present {
			return "", fmt.Errorf("host %s is not present", h.Name)
		}
		names = append(names, h.Name+" "+h.Address.String())
	}
	if len(names) != len(s.Hosts) {
		return "", fmt.Errorf("%d hosts are enrolled, want %d", len(names), len(s.Hosts))
	}
	return fmt.Sprintf("%s after the first agent's start: %s", s.enrolled.Round(time.Millisecond), strings.Join(names, ", ")), nil
}

func nearest(ctx context.Context, s *stage) (string, error) {
	for _, r := range regions {
		if err := expectDig(ctx, 10*time.Second, s.machine("api", r.name).In, "web.internal", s.addresses("web-"+r.name)); err != nil {
			return "", fmt.Errorf("from %s: %w", r.name, err)
		}
	}
	// Where no web is local, the measured distance decides.
	if err := expectDig(ctx, 10*time.Second, s.machine("api", "fra").In, "db.internal", s.addresses("db-ams")); err != nil {
		return "", fmt.Errorf("from fra: %w", err)
	}
	return "dig web.internal: fra, ams, nrt each their own; db.internal from fra: ams (8 ms), not nrt (240 ms)", nil
}

func libc(ctx context.Context, s *stage) (string, error) {
	for _, r := range regions {
		run := s.machine("api", r.name).In
		got, err := getent(ctx, run, "web.internal")
		if err != nil {
			return "", fmt.Errorf("from %s: %w", r.name, err)
		}
		if want := s.addresses("web-" + r.name); !slices.Equal(got, want) {
			return "", fmt.Errorf("from %s: getent says %q, want %q", r.name, got, want)
		}
		by, err := curl(ctx, run, "web.internal")
		if err != nil {
			return "", fmt.Errorf("from %s: %w", r.name, err)
		}
		if by.Region != r.name {
			return "", fmt.Errorf("from %s: curl was answered by %s in %s", r.name, by.Name, by.Region)
		}
	}
	by, err := curl(ctx, s.machine("api", "fra").In, "db.internal")
	if err != nil || by.Region != "ams" {
		return "", fmt.Errorf("from fra: curl db.internal was answered by %s: %w", by.Name, err)
	}
	return "curl http://web.internal/ answered in fra by web-fra, in ams by web-ams, in nrt by web-nrt", nil
}

func sameApp(ctx context.Context, s *stage) (string, error) {
	want := s.addresses("web-fra", "web-ams", "web-nrt")
	if err := expectDig(ctx, 5*time.Second, s.machine("web", "fra").In, "web.internal", want); err != nil {
		return "", fmt.Errorf("from web itself: %w", err)
	}
	return "dig web.internal from web-fra: 3 addresses; from api-fra: 1", nil
}

func laptopByName(ctx context.Context, s *stage) (string, error) {
	began := time.Now()
	if err := s.startLaptop(ctx); err != nil {
		return "", err
	}
	var by served
	err := lab.Await(ctx, "the laptop to reach http://web.internal/", 12*time.Second, func(ctx context.Context) (err error) {
		if s.up.Exited() {
			return fmt.Errorf("weft up has ended: %s", s.up.LastLine())
		}
		by, err = curl(ctx, on(s.laptop), "web.internal")
		return err
	})
	if err != nil {
		return "", err
	}
	took := since(began)
	if by.Region != "fra" {
		return "", fmt.Errorf("it was answered by %s, not by the nearest", by.Name)
	}
	status, err := s.laptop.Run(ctx, filepath.Join(s.Bin(), "weft"), "status")
	if err != nil {
		return "", err
	}
	if !strings.Contains(status, "fra1") {
		return "", fmt.Errorf("its gateway is not fra1, the nearest:\n%s", status)
	}
	return fmt.Sprintf("weft up to the first page in %s, through fra1, by %s", took, by.Name), nil
}

func stockByName(ctx context.Context, s *stage) (string, error) {
	if err := s.startStock(ctx); err != nil {
		return "", err
	}
	var by served
	err := lab.Await(ctx, "the stock client to reach http://web.internal/", 10*time.Second, func(ctx context.Context) (err error) {
		by, err = curl(ctx, on(s.stock), "web.internal")
		return err
	})
	if err != nil {
		return "", err
	}
	return "wg-quick up " + filepath.Base(s.stockConf) + "; curl answered by " + by.Name, nil
}

func isolated(ctx context.Context, s *stage) (string, error) {
	shop, web := s.Machines["globex/shop-fra"].In, s.machine("web", "fra")
	if _, err := curl(ctx, s.machine("api", "fra").In, bracket(web.Address)); err != nil {
		return "", fmt.Errorf("web does not even answer its own org: %w", err)
	}
	for _, m := range []*world.Machine{web, s.machine("web", "nrt")} {
		if by, err := curl(ctx, shop, bracket(m.Address)); err == nil {
			return "", fmt.Errorf("globex reached %s of acme", by.Name)
		}
	}
	out, err := shop(ctx, "dig", "+time=2", "+tries=1", "AAAA", "web.internal")
	if err != nil {
		return "", err
	}
	if !strings.Contains(out, "status: NXDOMAIN") {
		return "", fmt.Errorf("globex sees the name:\n%s", out)
	}
	return "curl from globex: refused; dig from globex: NXDOMAIN", nil
}

func hostOutOfReach(ctx context.Context, s *stage) (string, error) {
	host := s.Hosts["fra1"]
	service, err := host.Start("sshd-stand-in", filepath.Join(s.Bin(), "workload"), []string{"--listen", "[::]:22"}, []string{"WEFT_NAME=the-host-itself"})
	if err != nil {
		return "", err
	}
	defer service.Kill()
	err = lab.Await(ctx, "the host's own service to answer on the host", 5*time.Second, func(ctx context.Context) error {
		_, err := host.Run(ctx, "curl", "-sS", "--max-time", "2", "http://127.0.0.1:22/")
		return err
	})
	if err != nil {
		return "", err
	}
	from := s.machine("api", "fra")
	prefix, err := s.hostAddresses(ctx, host, from)
	if err != nil {
		return "", err
	}
	for _, target := range prefix {
		if out, err := from.In(ctx, "curl", "-sS", "-g", "--max-time", "1", "http://"+target+":22/"); err == nil {
			return "", fmt.Errorf("the machine reached its host at %s: %s", target, out)
		}
	}
	return fmt.Sprintf("a service on [::]:22 of the host, tried over %d of its addresses: no answer", len(prefix)), nil
}

// hostAddresses lists every address by which a machine could mean its host.
func (s *stage) hostAddresses(ctx context.Context, host *world.Host, m *world.Machine) ([]string, error) {
	status, err := s.Status(ctx, host)
	if err != nil {
		return nil, err
	}
	out := []string{bracket(status.Address), "[fe80::1%25eth0]", host.Addr().String()}
	mine := m.Address.As16()
	own := mine
	own[12], own[13], own[14], own[15] = 0, 0, 0, 1 // (network, host)::1
	resolver := mine
	copy(resolver[8:], make([]byte, 8))
	resolver[15] = 3
	machines := status.Prefix.Addr().As16() // <mesh>::3
	machines[15] = 3
	for _, a := range [][16]byte{own, resolver, machines} {
		out = append(out, bracket(netip.AddrFrom16(a)))
	}
	return out, nil
}

func swapped(ctx context.Context, s *stage) (string, error) {
	from := s.machine("api", "fra").In
	if err := expectDig(ctx, 10*time.Second, from, "db.internal", s.addresses("db-ams")); err != nil {
		return "", err
	}
	swap := func(ams, nrt time.Duration) error {
		return errors.Join(s.Lab().Switch().SetRTT("fra1", "ams1", ams), s.Lab().Switch().SetRTT("fra1", "nrt1", nrt))
	}
	if err := swap(240*time.Millisecond, 8*time.Millisecond); err != nil {
		return "", err
	}
	began := time.Now()
	if err := expectDig(ctx, 10*time.Second, from, "db.internal", s.addresses("db-nrt")); err != nil {
		return "", err
	}
	took := since(began)
	if err := swap(8*time.Millisecond, 240*time.Millisecond); err != nil {
		return "", err
	}
	began = time.Now()
	if err := expectDig(ctx, 10*time.Second, from, "db.internal", s.addresses("db-ams")); err != nil {
		return "", fmt.Errorf("swapped back: %w", err)
	}
	return fmt.Sprintf("db.internal from fra: nrt after %s, swapped back: ams after %s; nothing restarted", took, since(began)), nil
}

func machineKilled(ctx context.Context, s *stage) (string, error) {
	from := s.machine("api", "fra").In
	if err := expectDig(ctx, 10*time.Second, from, "web.internal", s.addresses("web-fra")); err != nil {
		return "", err
	}
	victim := s.machine("web", "fra")
	began := time.Now()
	if err := victim.Kill(); err != nil {
		return "", err
	}
	if err := expectDig(ctx, 10*time.Second, from, "web.internal", s.addresses("web-ams")); err != nil {
		return "", err
	}
	took := since(began)
	by, err := curl(ctx, from, "web.internal")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("kill -9 of web-fra: web.internal from fra is %s after %s", by.Name, took), nil
}

func hostCut(ctx context.Context, s *stage) (string, error) {
	from := s.machine("api", "fra").In
	if err := expectDig(ctx, 10*time.Second, from, "db.internal", s.addresses("db-ams")); err != nil {
		return "", err
	}
	began := time.Now()
	if err := s.Lab().Switch().CutHost("ams1"); err != nil {
		return "", err
	}
	if err := expectDig(ctx, 10*time.Second, from, "db.internal", s.addresses("db-nrt")); err != nil {
		return "", err
	}
	took := since(began)
	by, err := curl(ctx, from, "db.internal")
	if err != nil {
		return "", err
	}
	if err := s.Lab().Switch().RestoreHost("ams1"); err != nil {
		return "", err
	}
	if err := expectDig(ctx, 20*time.Second, from, "db.internal", s.addresses("db-ams")); err != nil {
		return "", fmt.Errorf("plugged in again: %w", err)
	}
	return fmt.Sprintf("ams1 unplugged: db.internal from fra is %s after %s; plugged in again: db-ams", by.Name, took), nil
}

// stopControlPlane kills the controller, with etcd inside it.
func (s *stage) stopControlPlane() error {
	if s.controllerOff {
		return nil
	}
	s.controllerOff = true
	return s.KillController()
}

func controlPlaneGone(ctx context.Context, s *stage) (string, error) {
	if err := s.stopControlPlane(); err != nil {
		return "", err
	}
	host := s.Hosts["nrt1"]
	if err := host.Agent.Kill(); err != nil {
		return "", err
	}
	began := time.Now()
	if err := s.StartAgent(host); err != nil {
		return "", err
	}
	there, away := s.machine("api", "nrt").In, s.machine("api", "ams").In
	// Names on the restarted host, then tunnels in both directions.
	if err := expectDig(ctx, 10*time.Second, there, "web.internal", s.addresses("web-nrt")); err != nil {
		return "", fmt.Errorf("names on nrt1: %w", err)
	}
	for _, x := range []struct {
		from runner
		to   *world.Machine
	}{{there, s.machine("db", "ams")}, {away, s.machine("db", "nrt")}} {
		err := lab.Await(ctx, "a tunnel to "+x.to.ID, 10*time.Second, func(ctx context.Context) error {
			_, err := curl(ctx, x.from, bracket(x.to.Address))
			return err
		})
		if err != nil {
			return "", err
		}
	}
	took := since(began)
	if _, err := s.Weft(ctx, "host", "list"); err == nil {
		return "", errors.New("the controller answers: it was not off")
	}
	return fmt.Sprintf("names and tunnels of nrt1, from its disk, %s after its agent's start", took), nil
}

func controlPlaneBack(ctx context.Context, s *stage) (string, error) {
	if err := s.stopControlPlane(); err != nil {
		return "", err
	}
	if err := s.StartController(ctx); err != nil {
		return "", err
	}
	s.controllerOff = false
	began := time.Now()
	if err := s.AwaitHosts(ctx); err != nil {
		return "", err
	}
	back := since(began)
	began = time.Now()
	fresh, err := s.Start(ctx, s.Hosts["fra1"], "acme", "fresh", "fresh-fra", s.Echo()...)
	if err != nil {
		return "", err
	}
	for _, r := range regions {
		if err := expectDig(ctx, 10*time.Second, s.machine("api", r.name).In, "fresh.internal", []string{fresh.Address.String()}); err != nil {
			return "", fmt.Errorf("from %s: %w", r.name, err)
		}
	}
	took := since(began)
	return fmt.Sprintf("hosts back after %s; fresh.internal answered in all regions %s after it was started", back, took), nil
}
