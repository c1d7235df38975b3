package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/peers/kernel"
)

// kernelMesh is three hosts on the kernel's WireGuard, with a machine each. What is
// done is done on fra1.
type kernelMesh struct {
	*testing.T
	*world.World
	fra     *world.Host
	a, b, c *world.Machine // on fra1, ams1, nrt1
	got     string         // where a notes numbered packets
	link    string         // the number of fra1's link
}

// kernelSoon is soon in a virtual machine, where nothing is quick.
const kernelSoon = 30 * time.Second

// The shortest whole path on the kernel's WireGuard, and what only that can: tunnels
// that outlive the agent, and that anybody can change. make test-kernel runs it in a
// virtual machine.
func TestKernelBackend(t *testing.T) {
	if err := kernel.Available(); err != nil {
		if os.Getenv("WEFT_VM") != "" {
			t.Fatalf("in the virtual machine: %v", err)
		}
		t.Skipf("make test-kernel runs this in a virtual machine: %v", err)
	}
	need(t, "ping", "dig", "nsenter", "ip", "wg", "nft")
	w := newWorld(t, world.Config{AgentFlags: []string{"--backend", "kernel"}}, "fra1", "ams1", "nrt1")
	k := &kernelMesh{T: t, World: w, fra: w.Hosts["fra1"], got: filepath.Join(w.Lab().Dir(), "got")}
	for _, h := range w.Hosts {
		if s, err := w.Status(t.Context(), h); err != nil || s.Backend != "kernel" {
			t.Errorf("status says %q, %v, want kernel", s.Backend, err)
		}
	}
	k.link = k.linkOf(k.fra)
	var err error
	if k.a, err = w.Start(t.Context(), k.fra, "acme", "web", "a", append(w.Echo(), "-numbers", "[::]:"+numbersPort, "-record", k.got)...); err != nil {
		t.Fatal(err)
	}
	k.b, k.c = start(t, w, "ams1", "acme", "web", "b"), start(t, w, "nrt1", "acme", "web", "c")
	all := []string{k.a.Address.String(), k.b.Address.String(), k.c.Address.String()}
	slices.Sort(all)
	await(t, "the machines' name", kernelSoon, nameIs(k.a, "global.web.internal", all...))
	k.reaches(k.b, k.c)

	k.agentKilled()
	k.agentEnded()
	k.renamedMeanwhile()
	k.drift()
	k.linkDeleted()
	for _, h := range w.Hosts {
		k.linkOf(h)
	}
}

// inPlane runs a command in the data plane of fra1.
func (k *kernelMesh) inPlane(command ...string) string {
	k.Helper()
	out, err := k.fra.Run(k.Context(), "ip", append([]string{"netns", "exec", "weft"}, command...)...)
	if err != nil {
		k.Fatal(err)
	}
	return out
}

// linkOf returns the number of a host's link, which is the kernel's.
func (k *kernelMesh) linkOf(h *world.Host) string {
	k.Helper()
	out, err := h.Run(k.Context(), "ip", "netns", "exec", "weft", "ip", "-d", "link", "show", "weft0")
	if err != nil {
		k.Fatal(err)
	}
	if !slices.Contains(strings.Fields(out), "wireguard") {
		k.Fatalf("the link of %s is not the kernel's WireGuard:\n%s", h.Name(), out)
	}
	number, _, _ := strings.Cut(out, ":")
	return number
}

// reaches waits until a reaches others.
func (k *kernelMesh) reaches(others ...*world.Machine) {
	k.Helper()
	for _, m := range others {
		await(k.T, "a ping from a to "+m.ID, kernelSoon, func(ctx context.Context) error {
			_, err := k.a.In(ctx, "ping", "-c1", "-W2", m.Address.String())
			return err
		})
	}
}

// foundAgain waits until a new agent of fra1 has found the link and is done with it.
func (k *kernelMesh) foundAgain() {
	k.Helper()
	await(k.T, "the new agent to find the link", kernelSoon, func(context.Context) error {
		if !strings.Contains(k.fra.Agent.Log(), "WireGuard link found") {
			return errors.New("its log does not say so")
		}
		return nil
	})
	await(k.T, "two peers of the new agent, and the controllers", kernelSoon, func(ctx context.Context) error {
		s, err := k.Status(ctx, k.fra)
		if err == nil && (len(s.Peers) != 2 || !s.Connected) {
			err = fmt.Errorf("%d peers, connected: %t", len(s.Peers), s.Connected)
		}
		return err
	})
	if now := k.linkOf(k.fra); now != k.link {
		k.Errorf("the link is number %s, was %s: it was made anew", now, k.link)
	}
}

// agentKilled kills the agent under numbered packets and starts another: none is lost.
// The rate is what one emulated processor keeps up with, cryptography included, also
// when it stands still for seconds, as it does on a busy machine: what is then sent at
// once must fit WireGuard's queue of 1,024 packets. A thousand a second are sent where
// no emulation is in the way.
func (k *kernelMesh) agentKilled() {
	const rate = 200
	sent := filepath.Join(k.Lab().Dir(), "sent")
	args := append(sendArgs(sent, k.a.Address.String(), 0), "-rate", strconv.Itoa(rate))
	m, err := k.Start(k.Context(), k.Hosts["ams1"], "acme", "load", "sender", append(k.Echo(), args...)...)
	if err != nil {
		k.Fatal(err)
	}
	arrived := func(more int) {
		k.Helper()
		before := len(numbersIn(k.T, k.got, "got"))
		await(k.T, fmt.Sprintf("%d more packets", more), kernelSoon, func(context.Context) error {
			if now := len(numbersIn(k.T, k.got, "got")); now < before+more {
				return fmt.Errorf("%d of them came", now-before)
			}
			return nil
		})
	}
	const some = 500
	arrived(some)
	far := func() int { return len(numbersIn(k.T, sent, "sent")) }
	killed := far()
	if err := k.fra.Agent.Kill(); err != nil {
		k.Fatal(err)
	}
	arrived(some) // without any agent
	started := far()
	if err := k.StartAgent(k.fra); err != nil {
		k.Fatal(err)
	}
	k.foundAgain()
	found := far()
	arrived(some)
	counters, err := m.In(k.Context(), "cat", "/proc/net/snmp6")
	if err != nil {
		k.Fatal(err)
	}
	terminate(k.T, m.Process)
	was, got, back := sorted(numbersIn(k.T, sent, "sent")), numbersIn(k.T, k.got, "got"), numbersIn(k.T, sent, "back")
	var there, round []int
	for _, n := range was {
		if !got[n] {
			there = append(there, n)
		} else if !back[n] {
			round = append(round, n)
		}
	}
	k.Logf("agent killed at packet %d, started again at %d, done at %d, under %d packets a second: of %d sent %d were lost on their way there and %d on their way back",
		killed, started, found, rate, len(was), len(there), len(round))
	if len(there)+len(round) > 0 {
		k.Errorf("lost on their way there %v, on their way back %v; the sender's counters:\n%s", there, round, counters)
	}
}

// agentEnded ends the agent in good order, which leaves the tunnels as well.
func (k *kernelMesh) agentEnded() {
	if err := k.fra.Agent.Stop(); err != nil {
		k.Fatal(err)
	}
	k.reaches(k.b)
	if err := k.StartAgent(k.fra); err != nil {
		k.Fatal(err)
	}
	k.foundAgain()
	k.reaches(k.b, k.c)
}

// renamedMeanwhile: somebody gives the link another name while no agent runs. The next
// one finds it, which holds the port.
func (k *kernelMesh) renamedMeanwhile() {
	if err := k.fra.Agent.Kill(); err != nil {
		k.Fatal(err)
	}
	k.inPlane("sh", "-c", "ip link set weft0 down && ip link set weft0 name other0")
	if err := k.StartAgent(k.fra); err != nil {
		k.Fatal(err)
	}
	k.foundAgain()
	k.reaches(k.b, k.c)
}

// linkDeleted: somebody deletes the link, and it is made again, with its peers.
func (k *kernelMesh) linkDeleted() {
	k.inPlane("ip", "link", "del", "weft0")
	k.reaches(k.b, k.c)
	await(k.T, "two peers of the new link", kernelSoon, func(ctx context.Context) error {
		s, err := k.Status(ctx, k.fra)
		if err == nil && len(s.Peers) != 2 {
			err = fmt.Errorf("%d peers", len(s.Peers))
		}
		return err
	})
	if now := k.linkOf(k.fra); now == k.link {
		k.Error("the link was not deleted: this shows nothing")
	}
}
