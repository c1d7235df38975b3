package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/peers/kernel"
)

// The shortest whole path on the kernel's WireGuard, and what only that can: tunnels
// that outlive the agent. make test-kernel runs it in a virtual machine, where nothing
// is quick.
func TestKernelBackend(t *testing.T) {
	if err := kernel.Available(); err != nil {
		if os.Getenv("WEFT_VM") != "" {
			t.Fatalf("in the virtual machine: %v", err)
		}
		t.Skipf("make test-kernel runs this in a virtual machine: %v", err)
	}
	need(t, "ping", "dig", "nsenter", "ip")
	const soon = 30 * time.Second
	w := newWorld(t, world.Config{AgentFlags: []string{"--backend", "kernel"}}, "fra1", "ams1")
	fra := w.Hosts["fra1"]
	link := func() string {
		out, err := fra.Run(t.Context(), "ip", "netns", "exec", "weft", "ip", "-d", "link", "show", "weft0")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out, "wireguard") {
			t.Fatalf("the link is not the kernel's WireGuard:\n%s", out)
		}
		number, _, _ := strings.Cut(out, ":")
		return number
	}
	number := link()
	if s, err := w.Status(t.Context(), fra); err != nil || s.Backend != "kernel" {
		t.Errorf("status says %q, %v, want kernel", s.Backend, err)
	}

	a, b := start(t, w, "fra1", "acme", "web", "a"), start(t, w, "ams1", "acme", "web", "b")
	both := []string{a.Address.String(), b.Address.String()}
	slices.Sort(both)
	await(t, "both machines' name", soon, nameIs(a, "global.web.internal", both...))
	ping := func(ctx context.Context) error {
		_, err := a.In(ctx, "ping", "-c1", "-W2", b.Address.String())
		return err
	}
	await(t, "a ping from a to b", soon, ping)

	// Without the agent the tunnels go on; the next one finds them as they are.
	if err := fra.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "a ping without an agent", soon, ping)
	for _, how := range []string{"killed", "ended"} {
		if err := w.StartAgent(fra); err != nil {
			t.Fatal(err)
		}
		await(t, "an agent that was "+how+" to find the link", soon, func(context.Context) error {
			if !strings.Contains(fra.Agent.Log(), "WireGuard link found") {
				return errors.New("its log does not say so")
			}
			return nil
		})
		await(t, "a ping with the new agent", soon, ping)
		if now := link(); now != number {
			t.Errorf("the link is number %s, was %s: it was made anew", now, number)
		}
		if how == "killed" {
			if err := fra.Agent.Stop(); err != nil {
				t.Fatal(err)
			}
		}
	}

	// Somebody deletes the link: it is made again.
	if _, err := fra.Run(t.Context(), "ip", "netns", "exec", "weft", "ip", "link", "del", "weft0"); err != nil {
		t.Fatal(err)
	}
	await(t, "a ping through a new link", soon, ping)
	await(t, "one peer of the new link", soon, func(ctx context.Context) error {
		s, err := w.Status(ctx, fra)
		if err == nil && len(s.Peers) != 1 {
			err = fmt.Errorf("%d peers", len(s.Peers))
		}
		return err
	})
}
