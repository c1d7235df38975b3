package agent

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/enroll"
)

// person is a laptop under test.
type person struct {
	t      *testing.T
	cfg    LaptopConfig
	cancel context.CancelFunc
	done   chan error
}

func newPerson(t *testing.T, c *control, name string) *person {
	t.Helper()
	dir := t.TempDir()
	p := &person{t: t, cfg: LaptopConfig{
		Join: Join{StateDir: filepath.Join(dir, "state"), Token: enroll.NewSecret(c.clients.Text()), Controllers: []string{c.url()}, Name: name},
		Link: "weft-up", SocketDir: filepath.Join(dir, "wg"), Socket: filepath.Join(dir, "up.sock"), Timing: quick(), Log: c.log.With("node", name),
	}}
	p.cfg.Timing.Measure = 300 * time.Millisecond
	p.cfg.Timing.GatewayOut = time.Second
	t.Cleanup(p.stop)
	return p
}

func (p *person) start() *person {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan error, 1)
	go func() { p.done <- RunLaptop(ctx, p.cfg) }()
	return p
}

func (p *person) stop() {
	p.t.Helper()
	if p.cancel == nil {
		return
	}
	p.cancel()
	if err := <-p.done; err != nil {
		p.t.Errorf("laptop: %v", err)
	}
	p.cancel = nil
}

func (p *person) client() local.Client { return local.Client{Socket: p.cfg.Socket} }

func (p *person) status() local.Status {
	s, _ := p.client().Status(context.Background())
	return s
}

func (p *person) names(name string) string {
	d, err := p.client().Dig(context.Background(), "", name, "AAAA")
	if err != nil {
		return err.Error()
	}
	return strings.Join(d.Answer, "\n") + d.Rcode
}

// meshRoutes lists the routes of this namespace that lie in the mesh.
func meshRoutes(t *testing.T) (out []string) {
	t.Helper()
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Dst != nil && strings.HasPrefix(r.Dst.String(), "fd12:") {
			out = append(out, r.Dst.String())
		}
	}
	return out
}

// A laptop behind its gateways: names, traffic, a gateway that dies, no
// controller, and everything put back.
func TestLaptop(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c := newControl(t)
	a := newNode(t, c, "a").start()
	eventually(t, 10*time.Second, "a has joined", func() bool { return a.status().Connected })
	b := newNode(t, c, "b").start()
	eventually(t, 10*time.Second, "b has joined", func() bool { return b.status().Connected })
	web := newWorkload(t).attach(b, local.AttachRequest{Org: "acme", App: "web", ID: "web"})
	before, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}

	p := newPerson(t, c, "anna").start()
	eventually(t, 10*time.Second, "it reaches its gateway", func() bool {
		s := p.status()
		return len(s.Peers) == 1 && s.Peers[0].State == local.PeerOK
	})
	if got := p.names("web.internal"); !strings.Contains(got, web.stay.Address.String()) {
		t.Errorf("web.internal: %s", got)
	}
	eventually(t, 5*time.Second, "it reaches a machine on the other host", func() bool {
		r, err := p.client().Ping(context.Background(), "acme", "web.internal")
		return err == nil && r.Error == ""
	})
	eventually(t, 5*time.Second, "gateways are measured", func() bool { return len(p.status().Gateways) == 2 && p.status().Gateways[0].RTT > 0 })
	s := p.status()
	if s.DNS == "" || s.Gateway != "a" {
		t.Errorf("status: DNS %q, gateway %q, gateways %+v", s.DNS, s.Gateway, s.Gateways)
	}
	if during, _ := os.ReadFile("/etc/resolv.conf"); string(during) == string(before) {
		t.Error("the resolver was not set")
	}
	x, err := p.client().Explain(context.Background(), "", "", "web.internal", "")
	if err != nil || len(x.Answer) != 1 || x.Node != "host/a" || !strings.Contains(x.Note, "weft dig --explain --org acme web.internal AAAA") {
		t.Errorf("explained on a laptop: %+v, %v", x, err)
	}
	if x, err := p.client().Explain(context.Background(), "", "web", "web.internal", ""); err == nil {
		t.Errorf("explained on a laptop for a machine: %+v", x)
	}
	if top, err := p.client().Top(context.Background()); err == nil || !strings.Contains(err.Error(), "host a answers") {
		t.Errorf("top names of a laptop: %v, %v", top, err)
	}

	t.Run("its gateway dies", func(t *testing.T) {
		a.stop()
		eventually(t, 10*time.Second, "it goes through b", func() bool { return p.status().Gateway == "b" })
		eventually(t, 10*time.Second, "b answers", func() bool {
			s := p.status()
			return len(s.Peers) == 1 && s.Peers[0].Name == "host/b" && s.Peers[0].State == local.PeerOK
		})
		if got := p.names("web.internal"); !strings.Contains(got, web.stay.Address.String()) {
			t.Errorf("web.internal through b: %s", got)
		}
	})

	t.Run("without a controller, from its cache", func(t *testing.T) {
		p.stop()
		c.stop()
		p.start()
		eventually(t, 10*time.Second, "it names web", func() bool { return strings.Contains(p.names("web.internal"), web.stay.Address.String()) })
		if !p.status().FromCache {
			t.Error("it does not say that it works from its cache")
		}
	})

	t.Run("a prefix without a tunnel is refused", func(t *testing.T) {
		r, err := p.client().Ping(context.Background(), "", testPlan(t).HostAddr(9, mesh.Host{Number: 9}.Position()).String())
		if err != nil || !strings.Contains(r.Error, "no route to host") && !strings.Contains(r.Error, "unreachable") {
			t.Errorf("ping outside: %+v, %v", r, err)
		}
	})

	if err := p.client().Down(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-p.done; err != nil {
		t.Errorf("down: %v", err)
	}
	p.cancel = nil
	if after, _ := os.ReadFile("/etc/resolv.conf"); string(after) != string(before) {
		t.Errorf("resolv.conf was not put back:\n%s", after)
	}
	if left := meshRoutes(t); len(left) > 0 {
		t.Errorf("routes left: %v", left)
	}
	if _, err := os.Stat(p.cfg.Socket); err == nil {
		t.Error("the socket is left")
	}
}

func TestReverseZone(t *testing.T) {
	got := reverseZone(netip.MustParsePrefix("fd12:3456:789a:1::/64"))
	if want := "1.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
