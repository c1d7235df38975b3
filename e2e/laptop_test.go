package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
)

// laptop is a host in the lab that runs `weft up`.
type laptop struct {
	*lab.Host
	up    *lab.Process
	args  []string
	state string
	// Of tests of its resolver.
	resolved *resolved
	scripts  string // where resolvconf is
}

func newLaptop(t *testing.T, w *world.World, name string) *laptop {
	t.Helper()
	l := placeLaptop(t, w, name, lab.HostConfig{PrivateEtc: true})
	l.start(t, w)
	return l
}

// placeLaptop is newLaptop before its first `weft up`.
func placeLaptop(t *testing.T, w *world.World, name string, cfg lab.HostConfig) *laptop {
	t.Helper()
	router, err := w.Lab().NAT("home-of-"+name, lab.NATConfig{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := router.Host(name, cfg)
	if err != nil {
		t.Fatal(err)
	}
	token, err := w.Token(t.Context(), "--kind", "client", "--org", "acme")
	if err != nil {
		t.Fatal(err)
	}
	l := &laptop{Host: h, state: filepath.Join(w.Lab().Dir(), name)}
	l.args = []string{"up", "--controller", w.URL, "--token-file", token, "--name", name, "--state-dir", l.state}
	return l
}

func (l *laptop) start(t *testing.T, w *world.World) {
	t.Helper()
	up, err := l.Start("up", filepath.Join(w.Bin(), "weft"), l.args, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.up = up
}

func (l *laptop) reaches(name string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		_, err := l.Run(ctx, "curl", "-sS", "-6", "--max-time", "2", "http://"+name+"/")
		return err
	}
}

func (l *laptop) resolvConf(t *testing.T) string {
	t.Helper()
	b, err := l.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A laptop's resolver is put back by `weft down`, and also when `weft up` is killed.
func TestLaptopResolverIsPutBack(t *testing.T) {
	need(t, "curl", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1")
	start(t, w, "fra1", "acme", "web", "web")
	l := newLaptop(t, w, "laptop")
	const before = "nameserver 192.0.2.53\noptions edns0\n"
	if err := l.up.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.WriteFile("/etc/resolv.conf", []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	weftCommand := filepath.Join(w.Bin(), "weft")

	l.start(t, w)
	await(t, "the laptop to reach web", 10*time.Second, l.reaches("web.internal"))
	if l.resolvConf(t) == before {
		t.Fatal("the resolver was never set: this test looks in the wrong place")
	}
	if out, err := l.Run(t.Context(), weftCommand, "ping", "-c", "1", "web.internal"); err != nil {
		t.Fatalf("weft ping: %v\n%s", err, out)
	}
	if out, err := l.Run(t.Context(), weftCommand, "dig", "web.internal"); err != nil || !strings.Contains(out, "AAAA") {
		t.Fatalf("weft dig: %v\n%s", err, out)
	}
	if out, err := l.Run(t.Context(), weftCommand, "status"); err != nil || !strings.Contains(out, "client/acme/laptop") {
		t.Fatalf("weft status: %v\n%s", err, out)
	}
	if out, err := l.Run(t.Context(), weftCommand, "down"); err != nil {
		t.Fatalf("weft down: %v\n%s", err, out)
	}
	back := func(context.Context) error {
		if now := l.resolvConf(t); now != before {
			return fmt.Errorf("resolv.conf is\n%s", now)
		}
		return nil
	}
	await(t, "resolv.conf after down", 5*time.Second, back)
	await(t, "weft up to end", 5*time.Second, func(context.Context) error {
		if !l.up.Exited() {
			return fmt.Errorf("it runs")
		}
		return nil
	})
	if out, err := l.Run(t.Context(), "ip", "-br", "link"); err != nil || strings.Contains(out, "weft0") {
		t.Fatalf("links after down: %v\n%s", err, out)
	}

	l.start(t, w)
	await(t, "the laptop to reach web again", 10*time.Second, l.reaches("web.internal"))
	if err := l.up.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "resolv.conf after a crash", 5*time.Second, back)
}

// A client that is removed is cut off within seconds.
func TestRemovedClientIsCutOff(t *testing.T) {
	need(t, "curl", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	near, far := start(t, w, "fra1", "acme", "web", "near"), start(t, w, "ams1", "acme", "db", "far")
	l := newLaptop(t, w, "laptop")
	pages := []string{"[" + near.Address.String() + "]", "[" + far.Address.String() + "]"}
	for _, page := range pages {
		await(t, "the laptop to reach "+page, 10*time.Second, l.reaches(page))
	}
	weft(t, w, "client", "remove", "--org", "acme", "laptop")
	for _, page := range pages {
		await(t, "the laptop to be cut off from "+page, 5*time.Second, func(ctx context.Context) error {
			if l.reaches(page)(ctx) == nil {
				return fmt.Errorf("it still reaches it")
			}
			return nil
		})
	}
	await(t, "the client's name to go", 5*time.Second, nameIs(near, "laptop._peer.internal"))
}
