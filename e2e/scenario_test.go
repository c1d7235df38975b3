package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
)

// need skips a test, with a sentence, where this machine cannot run it; under
// CI=true a missing program is a failure.
func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("scenarios run in network namespaces, which need root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed; make deps installs it", p)
			}
			t.Skipf("%s is not installed; make deps installs it", p)
		}
	}
}

// bin is the directory of the built programs; make test builds them.
func bin(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("WEFT_BIN")
	if dir == "" {
		dir = filepath.Join("..", "build", "bin")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "weft-agent")); err != nil {
		t.Fatalf("the programs are not built: %v; run make test", err)
	}
	return dir
}

func newLab(t testing.TB) *lab.Lab {
	t.Helper()
	l, err := lab.New(lab.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.Tails())
		}
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// newWorld is a controller and hosts, one region each, that are present, and the
// org acme.
func newWorld(t testing.TB, cfg world.Config, hosts ...string) *world.World {
	t.Helper()
	ctx := t.Context()
	if cfg.Lab == nil {
		cfg.Lab = newLab(t)
	}
	cfg.Bin = bin(t)
	w, err := world.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	weft(t, w, "org", "create", "acme")
	for _, name := range hosts {
		region := strings.TrimRight(name, "0123456789")
		if _, err := w.Weft(ctx, "region", "show", region); err != nil {
			weft(t, w, "region", "create", region)
		}
		if _, err := w.AddHost(ctx, name, region); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.AwaitHosts(ctx); err != nil {
		t.Fatal(err)
	}
	return w
}

func weft(t testing.TB, w *world.World, args ...string) string {
	t.Helper()
	out, err := w.Weft(t.Context(), args...)
	if err != nil {
		t.Fatalf("weft %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func start(t testing.TB, w *world.World, host, org, app, id string) *world.Machine {
	t.Helper()
	m, err := w.Start(t.Context(), w.Hosts[host], org, app, id, w.Echo()...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func await(t testing.TB, what string, within time.Duration, condition func(ctx context.Context) error) {
	t.Helper()
	if err := lab.Await(t.Context(), what, within, condition); err != nil {
		t.Fatal(err)
	}
}

// reach fetches a page of one machine from another, by address.
func reach(ctx context.Context, from, to *world.Machine) error {
	_, err := from.In(ctx, "curl", "-sS", "-g", "--max-time", "2", "http://["+to.Address.String()+"]/")
	return err
}

func digs(ctx context.Context, from *world.Machine, name string) ([]string, error) {
	out, err := from.In(ctx, "dig", "+short", "+time=1", "+tries=1", "AAAA", name)
	got := strings.Fields(out)
	slices.Sort(got)
	return got, err
}

func nameIs(from *world.Machine, name string, want ...string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		got, err := digs(ctx, from, name)
		if err != nil {
			return err
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("%s is %q, want %q", name, got, want)
		}
		return nil
	}
}

// Two hosts, two machines, a tunnel: the shortest whole path.
func TestTwoHostsPing(t *testing.T) {
	need(t, "ping", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	a, b := start(t, w, "fra1", "acme", "web", "a"), start(t, w, "ams1", "acme", "web", "b")
	await(t, "a ping from a to b", 5*time.Second, func(ctx context.Context) error {
		_, err := a.In(ctx, "ping", "-c1", "-W1", b.Address.String())
		return err
	})
}

// A packet that is too big for a tunnel on the way is reported to its sender by
// the host, from an address in the sender's own network, or path MTU discovery
// would hang (the host's own address in a carried network exists for this).
func TestPathMTUErrorsReturn(t *testing.T) {
	need(t, "ping", "nsenter", "ip")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	a, b := start(t, w, "fra1", "acme", "web", "a"), start(t, w, "ams1", "acme", "web", "b")
	await(t, "a ping from a to b", 5*time.Second, func(ctx context.Context) error {
		_, err := a.In(ctx, "ping", "-c1", "-W1", b.Address.String())
		return err
	})
	// Narrow the route of ams1's share of the network, as a narrower path would.
	fra := w.Hosts["fra1"]
	home := strings.TrimSpace(homeOf(b.Address.String()))
	if _, err := fra.Run(t.Context(), "ip", "netns", "exec", "weft", "ip", "-6", "route", "change", home, "dev", "weft0", "mtu", "1300"); err != nil {
		// The route's attributes must all be named to change it.
		t.Fatal(err)
	}
	out, err := a.In(t.Context(), "ping", "-c2", "-W1", "-M", "do", "-s", "1352", b.Address.String())
	if err == nil {
		t.Fatalf("a packet of 1400 bytes passed a path of 1300:\n%s", out)
	}
	report := fmt.Sprint(out, err)
	if !strings.Contains(report, "mtu=1300") && !strings.Contains(report, "Packet too big") {
		t.Fatalf("the sender was not told:\n%s", report)
	}
	// TCP learns it too: a large answer arrives.
	if err := reach(t.Context(), b, a); err != nil {
		t.Fatal(err)
	}
}

// homeOf returns the /96 that an endpoint's address lies in.
func homeOf(addr string) string {
	parts := strings.Split(addr, ":")
	return strings.Join(parts[:len(parts)-2], ":") + "::/96"
}

// What is removed is cut off within seconds: names and tunnels.
func TestRemovalCuts(t *testing.T) {
	need(t, "dig", "curl", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	weft(t, w, "org", "create", "globex")
	watcher := start(t, w, "fra1", "acme", "shell", "watcher")
	near := start(t, w, "fra1", "acme", "web", "near")
	far := start(t, w, "ams1", "acme", "web", "far")
	farther := start(t, w, "nrt1", "acme", "web", "farther")
	other, other2 := start(t, w, "fra1", "globex", "shop", "shop"), start(t, w, "ams1", "globex", "shop", "shop2")
	all := func(ms ...*world.Machine) (out []string) {
		for _, m := range ms {
			out = append(out, m.Address.String())
		}
		slices.Sort(out)
		return out
	}
	const soon = 5 * time.Second
	await(t, "all of web", soon, nameIs(watcher, "global.web.internal", all(near, far, farther)...))
	await(t, "globex to reach itself", soon, func(ctx context.Context) error { return reach(ctx, other, other2) })

	weft(t, w, "machine", "remove", "--org", "acme", "near")
	await(t, "the removed machine's name to go", soon, nameIs(watcher, "global.web.internal", all(far, farther)...))
	await(t, "the removed machine to be out of reach", soon, unreachable(watcher, near))

	weft(t, w, "host", "remove", "ams1")
	await(t, "the removed host's names to go", soon, nameIs(watcher, "global.web.internal", all(farther)...))
	await(t, "the removed host's machines to be out of reach", soon, unreachable(watcher, far))

	weft(t, w, "org", "remove", "globex")
	await(t, "the removed org's machines to be out of reach", soon, unreachable(other, other2))
	await(t, "the removed org's names to go", soon, func(ctx context.Context) error {
		out, err := other.In(ctx, "dig", "+time=1", "+tries=1", "AAAA", "shop.internal")
		if err == nil && strings.Contains(out, "status: NOERROR") {
			return fmt.Errorf("the name is still answered:\n%s", out)
		}
		return nil
	})
	await(t, "acme to go on", soon, func(ctx context.Context) error { return reach(ctx, watcher, farther) })
}

func unreachable(from, to *world.Machine) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		if reach(ctx, from, to) == nil {
			return fmt.Errorf("%s still reaches %s", from.ID, to.ID)
		}
		return nil
	}
}

// `weft run` killed in the middle leaves nothing: no record, no link, no
// namespace, no process.
func TestRunLeavesNothing(t *testing.T) {
	need(t, "dig", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1")
	watcher := start(t, w, "fra1", "acme", "shell", "watcher")
	links := func() string {
		out, err := w.Hosts["fra1"].Run(t.Context(), "ip", "netns", "exec", "weft", "ip", "-br", "link")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(slices.Sorted(strings.Lines(fields(out))), "")
	}
	before := links()
	m := start(t, w, "fra1", "acme", "web", "victim")
	pid, err := m.Pid()
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the name", 3*time.Second, nameIs(watcher, "web.internal", m.Address.String()))
	if links() == before {
		t.Fatal("the machine has no link: this test looks in the wrong place")
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "the name to go", 5*time.Second, nameIs(watcher, "web.internal"))
	await(t, "the link to go", 5*time.Second, func(context.Context) error {
		if now := links(); now != before {
			return fmt.Errorf("links are\n%s\nwere\n%s", now, before)
		}
		return nil
	})
	await(t, "the process to go", 5*time.Second, func(context.Context) error {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(b), ") Z ") {
			return fmt.Errorf("process %d lives", pid)
		}
		return nil
	})
	if out := weft(t, w, "machine", "list", "--org", "acme"); strings.Contains(out, "victim") {
		t.Fatalf("the record is left:\n%s", out)
	}
}

// fields keeps the first word of each line.
func fields(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 0 {
			b.WriteString(f[0] + "\n")
		}
	}
	return b.String()
}

// A certificate renews at two thirds of its life, and a host that was switched off
// for three lifetimes comes back by itself.
func TestRenewalOfAnExpiredCertificate(t *testing.T) {
	need(t, "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{ControllerFlags: []string{"--cert-lifetime", "10s"}}, "fra1")
	h := w.Hosts["fra1"]
	await(t, "a renewal while running", 15*time.Second, func(context.Context) error {
		if !strings.Contains(h.Agent.Log(), "certificate renewed") {
			return fmt.Errorf("the agent's log does not say so")
		}
		return nil
	})
	if err := h.Agent.Stop(); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	await(t, "the host's absence", 10*time.Second, func(ctx context.Context) error {
		if out := weft(t, w, "host", "list"); !strings.Contains(out, "away") {
			return fmt.Errorf("it is still present:\n%s", out)
		}
		return nil
	})
	<-time.After(time.Until(stopped.Add(30 * time.Second))) // the time itself is what is tested
	if err := w.StartAgent(h); err != nil {
		t.Fatal(err)
	}
	if err := w.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// With the controller and etcd gone, an agent that is killed and started again
// brings tunnels and names back from its disk (NetBird 3843, Netmaker 1193).
func TestNetBird3843LastViewOnDisk(t *testing.T) {
	need(t, "dig", "curl", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	a, b := start(t, w, "fra1", "acme", "web", "a"), start(t, w, "ams1", "acme", "api", "b")
	await(t, "a to reach b", 5*time.Second, func(ctx context.Context) error { return reach(ctx, a, b) })
	// A view is in effect first and on disk a moment later, without anything else
	// happening.
	keeps(t, w, "fra1", b)
	if err := w.KillController(); err != nil {
		t.Fatal(err)
	}
	h := w.Hosts["fra1"]
	if err := h.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := w.StartAgent(h); err != nil {
		t.Fatal(err)
	}
	await(t, "the name of b", 5*time.Second, nameIs(a, "api.internal", b.Address.String()))
	await(t, "a to reach b", 5*time.Second, func(ctx context.Context) error { return reach(ctx, a, b) })
	await(t, "b to reach a", 5*time.Second, func(ctx context.Context) error { return reach(ctx, b, a) })
	// It does not forget while it waits, and the controller finds it as it was.
	if err := w.StartController(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := weft(t, w, "machine", "list", "--org", "acme"); !strings.Contains(out, a.Address.String()) || !strings.Contains(out, b.Address.String()) {
		t.Fatalf("machines after the controller's return:\n%s", out)
	}
}
