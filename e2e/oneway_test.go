package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/agent/local"
)

// peerIs waits for what a host's agent says of its tunnel to another host.
func peerIs(w *world.World, at, of, state, lost string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		p, _, err := peerOf(ctx, w, at, of)
		if err != nil {
			return err
		}
		if p.State != state || p.Lost != lost {
			return fmt.Errorf("%s says of %s: %s, lost %q", at, of, p.State, p.Lost)
		}
		return nil
	}
}

// peerOf is what a host's agent says of another host, and what is wrong.
func peerOf(ctx context.Context, w *world.World, at, of string) (p local.Peer, problems string, err error) {
	s, err := w.Status(ctx, w.Hosts[at])
	if err != nil {
		return p, "", err
	}
	for _, p := range s.Peers {
		if p.Name == "host/"+of {
			return p, strings.Join(s.Problems, "\n"), nil
		}
	}
	return p, "", fmt.Errorf("%s has no peer %s", at, of)
}

// oneWayWithin waits until both ends of a tunnel say that what from sends to is lost.
func oneWayWithin(t *testing.T, w *world.World, within time.Duration, from, to string) {
	t.Helper()
	began := time.Now()
	await(t, "both ends to say one-way", within, func(ctx context.Context) error {
		return errors.Join(peerIs(w, from, to, local.PeerOneWay, local.LostOut)(ctx), peerIs(w, to, from, local.PeerOneWay, local.LostIn)(ctx))
	})
	t.Logf("both ends said so after %s", time.Since(began).Round(10*time.Millisecond))
}

func bothWays(t *testing.T, w *world.World, within time.Duration, from, to string) {
	t.Helper()
	await(t, "both ends to be well", within, func(ctx context.Context) error {
		return errors.Join(peerIs(w, from, to, local.PeerOK, "")(ctx), peerIs(w, to, from, local.PeerOK, "")(ctx))
	})
	for _, at := range []string{from, to} {
		s, err := w.Status(t.Context(), w.Hosts[at])
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range s.Problems {
			if strings.Contains(p, "one-way") {
				t.Errorf("%s is healed and still says: %s", at, p)
			}
		}
	}
}

// A path that loses one direction: both ends say so within three seconds, with the
// direction right, a cause and where to look, as a metric and once in the log; the end
// that hears nothing learns it from a third host. Healed, all of it is gone.
func TestOneWayTunnel(t *testing.T) {
	need(t, "nsenter", "curl")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	carryEverywhere(t, w)
	bothWays(t, w, 15*time.Second, "fra1", "ams1")
	for i, cut := range [][2]string{{"fra1", "ams1"}, {"ams1", "fra1"}} {
		from, to := cut[0], cut[1]
		if err := w.Lab().Switch().CutOneWay(from, to); err != nil {
			t.Fatal(err)
		}
		oneWayWithin(t, w, 3*time.Second, from, to)
		for at, want := range map[string][]string{
			from: {"tunnel to host " + to + " is one-way", "what is sent to it is lost", "underlay from this host to host " + to, "look on host " + to},
			to:   {"tunnel to host " + from + " is one-way", "what it sends is lost", "underlay from host " + from + " to this host", "reach port 51820 here"},
		} {
			of := from
			if at == from {
				of = to
			}
			_, problems, err := peerOf(t.Context(), w, at, of)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range want {
				if !strings.Contains(problems, part) {
					t.Errorf("%s does not say %q:\n%s", at, part, problems)
				}
			}
			lost := map[bool]string{true: local.LostOut, false: local.LostIn}[at == from]
			metrics, err := w.Hosts[at].Run(t.Context(), "curl", "-sS", "http://127.0.0.1:9551/metrics")
			if line := fmt.Sprintf("weft_agent_tunnel_one_way{host=%q,lost=%q} 1", of, lost); err != nil || !strings.Contains(metrics, line) {
				t.Errorf("metrics of %s have no %s (%v)", at, line, err)
			}
			// The third host's tunnels are well.
			if err := peerIs(w, at, "nrt1", local.PeerOK, "")(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if err := w.Lab().Switch().Restore(from, to); err != nil {
			t.Fatal(err)
		}
		bothWays(t, w, 5*time.Second, from, to)
		for _, at := range cut {
			b, err := os.ReadFile(w.Hosts[at].Agent.LogFile())
			if n := strings.Count(string(b), "one-way tunnel"); err != nil || n != i+1 {
				t.Errorf("%s told of it %d times in its log, want %d (%v)", at, n, i+1, err)
			}
		}
	}
}

// Fly.io 2026-04: tunnels went one-way although handshakes succeeded. Here something
// before a host lets handshakes pass, and not the data.
func TestOneWayTunnelWithHandshakes(t *testing.T) {
	need(t, "nsenter", "nft")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	carryEverywhere(t, w)
	bothWays(t, w, 15*time.Second, "fra1", "ams1")
	ams, fra := w.Hosts["ams1"], w.Hosts["fra1"]
	// WireGuard's type 4 is data; UDP's header has 8 bytes.
	rule := fmt.Sprintf("add table inet thief; add chain inet thief in { type filter hook input priority 0; }; "+
		"add rule inet thief in ip saddr %s udp dport 51820 @th,64,8 4 drop", fra.Addr())
	if _, err := ams.Run(t.Context(), "nft", rule); err != nil {
		t.Fatal(err)
	}
	oneWayWithin(t, w, 3*time.Second, "fra1", "ams1")
	p, _, err := peerOf(t.Context(), w, "ams1", "fra1")
	if err != nil || p.LastHandshake.IsZero() {
		t.Errorf("there was no handshake: %+v, %v", p, err)
	}
	if _, err := ams.Run(t.Context(), "nft", "delete table inet thief"); err != nil {
		t.Fatal(err)
	}
	bothWays(t, w, 5*time.Second, "fra1", "ams1")
}

// carryEverywhere runs a machine of acme on every host, so that all have tunnels to all,
// and returns them by host.
func carryEverywhere(t *testing.T, w *world.World) map[string]*world.Machine {
	t.Helper()
	out := map[string]*world.Machine{}
	for name := range w.Hosts {
		out[name] = start(t, w, name, "acme", "web", "web-"+name)
	}
	return out
}
