package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
)

// renumber gives a host another address, as DHCP does: the old one goes first.
func renumber(t *testing.T, h *world.Host, last byte) netip.AddrPort {
	t.Helper()
	now := netip.AddrFrom4([4]byte{192, 0, 2, last})
	for _, c := range [][]string{{"addr", "flush", "dev", "eth0", "scope", "global"}, {"addr", "add", now.String() + "/24", "dev", "eth0"}} {
		if _, err := h.Run(t.Context(), "ip", c...); err != nil {
			t.Fatal(err)
		}
	}
	return netip.AddrPortFrom(now, 51820)
}

// recorded waits until `weft host list` says that a host is reached there.
func recorded(w *world.World, host string, want netip.AddrPort) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		hosts, err := world.List[api.HostInfo](ctx, w, "host", "list")
		if err != nil {
			return err
		}
		for _, h := range hosts {
			if h.Name == host && (len(h.Endpoints) != 1 || h.Endpoints[0] != want) {
				return fmt.Errorf("%s is said to be at %v, want %s", host, h.Endpoints, want)
			}
		}
		return nil
	}
}

// restartAnew ends agents and the processes of their devices, so that nothing is left
// of what the tunnels have learnt, and starts the agents again.
func restartAnew(t *testing.T, w *world.World, hosts ...*world.Host) {
	t.Helper()
	for _, h := range hosts {
		if err := h.Agent.Stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Run(t.Context(), "ip", "netns", "exec", "weft", "ip", "link", "del", "weft0"); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range hosts {
		if err := w.StartAgent(h); err != nil {
			t.Fatal(err)
		}
	}
}

// A host that gets another address tells the controllers, which tell the others: also
// who must begin finds it, and nothing has to be remembered by the tunnels. An endpoint
// that its operator gave stays as given.
func TestRenumbered(t *testing.T) {
	t.Parallel()
	need(t, "ip", "nsenter", "curl", "wg")
	w := newWorld(t, world.Config{AgentFlags: []string{"--backend", "userspace"}}, "fra1")
	for _, flags := range [][]string{{"ams", "--nat"}, {"nrt", "--endpoint", "192.0.2.200:51820"}} { // as of a router that passes it on
		weft(t, w, "region", "create", flags[0])
		if _, err := w.AddHost(t.Context(), flags[0]+"1", flags[0], flags[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	fra, ams, nrt := w.Hosts["fra1"], w.Hosts["ams1"], w.Hosts["nrt1"]
	a, b := start(t, w, "fra1", "acme", "web", "a"), start(t, w, "ams1", "acme", "web", "b")
	both := func(ctx context.Context) error { return errors.Join(reach(ctx, a, b), reach(ctx, b, a)) }
	await(t, "both to reach each other", 10*time.Second, both)

	began := time.Now()
	now, _ := renumber(t, fra, 102), renumber(t, nrt, 104)
	await(t, "both to reach each other at the new address", 10*time.Second, both)
	t.Logf("traffic after %s", time.Since(began).Round(10*time.Millisecond))
	await(t, "the new address to be recorded", 15*time.Second, recorded(w, "fra1", now))
	t.Logf("recorded after %s", time.Since(began).Round(10*time.Millisecond))
	await(t, "the other host to know", 2*time.Second, func(ctx context.Context) error {
		p, _, err := peerOf(ctx, w, "ams1", "fra1")
		if err == nil && p.Endpoint != now {
			err = fmt.Errorf("it has fra1 at %s, want %s", p.Endpoint, now)
		}
		return err
	})
	if out := weft(t, w, "events"); !strings.Contains(out, "endpoints ["+now.String()+"], before [192.0.2.2:51820]") {
		t.Errorf("the audit log does not tell of it:\n%s", out)
	}
	await(t, "the host with an endpoint of its own to be back", 15*time.Second, func(ctx context.Context) error {
		s, err := w.Status(ctx, nrt)
		if err == nil && !s.Connected {
			err = errors.New("it has no controller")
		}
		return err
	})

	// ams1 has no endpoint: only it can begin.
	restartAnew(t, w, fra, ams)
	began = time.Now()
	await(t, "both to reach each other after restarts", 10*time.Second, both)
	t.Logf("traffic after restarts: %s", time.Since(began).Round(10*time.Millisecond))
	if err := recorded(w, "nrt1", netip.MustParseAddrPort("192.0.2.200:51820"))(t.Context()); err != nil {
		t.Error(err)
	}
}
