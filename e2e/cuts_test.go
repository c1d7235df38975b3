package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/churn"
	"github.com/weftmesh/weft/e2e/prober"
)

// What a cut may take until it is noticed, and until it is over when it is over. A
// busy machine is slow; the figures are printed.
const (
	noticedWithin = 6 * time.Second // 1.5 s of silence
	healedWithin  = 15 * time.Second
)

// calm is a mesh where everything is there: acme's web-1, web-2, ... on one host
// each, who answer, and others, who ask. prepare is called before machines and laptops
// are started.
func calm(t *testing.T, size churnSize, prepare func(c *churned)) *churned {
	t.Helper()
	for i, host := range size.hosts {
		size.machines = append(size.machines, fmt.Sprintf("acme/web-%d %s", i+1, host))
	}
	size.controllers = 1
	c := newChurned(t, size, 1) // nothing is drawn
	prepare(c)
	if _, err := c.quiet(t.Context()); err != nil {
		c.fail(err)
	}
	return c
}

// one is the process of an endpoint.
func (c *churned) one(key string) *life {
	for _, l := range c.lives {
		if l.key == key && !l.process.Exited() {
			return l
		}
	}
	return &life{key: key}
}

// webs are the addresses of acme/web-<n>.
func (c *churned) webs(numbers ...int) (out []netip.Addr) {
	for _, n := range numbers {
		out = append(out, c.where[fmt.Sprint("acme/web-", n)].Address)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// named asks for a name at an endpoint.
func (c *churned) named(ctx context.Context, from, name string) ([]netip.Addr, error) {
	got, err := c.one(from).self.Ask(ctx, 2*time.Second, []prober.Question{{Kind: prober.Name, Name: name}})
	if err != nil || !got[0].OK {
		return nil, fmt.Errorf("%s at %s: %v, %w", name, from, got, err)
	}
	slices.SortFunc(got[0].Addresses, netip.Addr.Compare)
	return got[0].Addresses, nil
}

// names waits until the web machines that an endpoint is told of are these, and
// returns how long it took.
func (c *churned) names(t *testing.T, within time.Duration, from string, numbers ...int) time.Duration {
	t.Helper()
	began := time.Now()
	await(t, fmt.Sprintf("names at %s to be those of %v", from, numbers), within, func(ctx context.Context) error {
		got, err := c.named(ctx, from, "global.web.internal")
		if want := c.webs(numbers...); err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("they are %v, want %v", got, want)
		}
		return err
	})
	return time.Since(began)
}

// talks has an endpoint try others in all ways.
func (c *churned) talks(ctx context.Context, within time.Duration, from string, to ...string) error {
	var questions []prober.Question
	for _, key := range to {
		for _, kind := range []string{prober.TCP, prober.UDP, prober.Echo} {
			questions = append(questions, prober.Question{Kind: kind, To: netip.AddrPortFrom(c.where[key].Address, churn.Port)})
		}
	}
	answers, err := c.one(from).self.Ask(ctx, within, questions)
	for i, a := range answers {
		if !a.OK {
			err = errors.Join(err, fmt.Errorf("%s to %s by %s: %s", from, to[i/3], questions[i].Kind, a.Error))
		}
	}
	return err
}

// talk waits until an endpoint talks to others, and returns how long it took.
func (c *churned) talk(t *testing.T, from string, to ...string) time.Duration {
	t.Helper()
	began := time.Now()
	await(t, from+" to talk to "+strings.Join(to, " "), healedWithin, func(ctx context.Context) error {
		return c.talks(ctx, 500*time.Millisecond, from, to...)
	})
	return time.Since(began)
}

// undisturbed fails the test if one of those who have nothing to do with it notices:
// each pair talks all the time until end is called.
func (c *churned) undisturbed(t *testing.T, pairs ...[2]string) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for _, p := range pairs {
		group.Go(func() {
			for ctx.Err() == nil {
				if err := c.talks(ctx, 3*time.Second, p[0], p[1]); err != nil && ctx.Err() == nil {
					t.Errorf("who has nothing to do with it: %v", err)
				}
				pause(ctx, 100*time.Millisecond)
			}
		})
	}
	return func() { cancel(); group.Wait() }
}

func ms(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

// Six hosts: a tunnel that works in one direction, a mesh that falls apart, a host
// that has another address.
func TestCuts(t *testing.T) {
	need(t, "ip")
	t.Parallel()
	c := calm(t, churnSize{hosts: []string{"fra1", "fra2", "fra3", "ams1", "ams2", "nrt1"},
		machines: []string{"acme/ask-1 fra1", "acme/ask-4 ams1", "acme/ask-6 nrt1"}}, func(*churned) {})
	t.Run("one direction", c.oneDirection)
	t.Run("partition", c.partition)
	t.Run("another address", c.roams)
}

// oneDirection: who is not heard from is left out at both ends, since what he is sent
// he does not answer, and everybody else sees nothing of it.
func (c *churned) oneDirection(t *testing.T) {
	end := c.undisturbed(t, [2]string{"acme/ask-1", "acme/web-6"}, [2]string{"acme/ask-4", "acme/web-6"}, [2]string{"acme/ask-6", "acme/web-1"})
	defer end()
	c.must(nil, c.w.Lab().Switch().CutOneWay("fra1", "ams1"))
	here := c.names(t, noticedWithin, "acme/ask-1", 1, 2, 3, 5, 6)
	there := c.names(t, noticedWithin, "acme/ask-4", 2, 3, 4, 5, 6)
	c.names(t, noticedWithin, "acme/ask-6", 1, 2, 3, 4, 5, 6)
	c.must(nil, c.w.Lab().Switch().Restore("fra1", "ams1"))
	talks := c.talk(t, "acme/ask-1", "acme/web-4")
	again := c.names(t, healedWithin, "acme/ask-1", 1, 2, 3, 4, 5, 6)
	c.names(t, healedWithin, "acme/ask-4", 1, 2, 3, 4, 5, 6)
	t.Logf("one direction cut: left out of names after %s and %s; healed: talks after %s, named %s later", ms(here), ms(there), ms(talks), ms(again))
}

// partition: each half goes on with what it reaches, the one without a controller,
// too; nothing is forgotten.
func (c *churned) partition(t *testing.T) {
	left, right := []string{"fra1", "fra2", "fra3", "ctl"}, []string{"ams1", "ams2", "nrt1"}
	each := func(do func(a, b string) error) {
		for _, a := range left {
			for _, b := range right {
				c.must(nil, do(a, b))
			}
		}
	}
	end := c.undisturbed(t, [2]string{"acme/ask-1", "acme/web-2"}, [2]string{"acme/ask-4", "acme/web-5"}, [2]string{"acme/ask-6", "acme/web-4"})
	defer end()
	start := time.Now()
	each(c.w.Lab().Switch().Cut)
	here := c.names(t, noticedWithin, "acme/ask-1", 1, 2, 3)
	there := c.names(t, noticedWithin, "acme/ask-4", 4, 5, 6)
	c.names(t, noticedWithin, "acme/ask-6", 4, 5, 6)
	await(t, "the half without a controller to know that", healedWithin, func(ctx context.Context) error {
		for _, host := range right {
			if s, err := c.w.Status(ctx, c.w.Hosts[host]); err != nil || s.Connected {
				return fmt.Errorf("%s is connected: %v, %v", host, s.Connected, err)
			}
		}
		return nil
	})
	lasted := time.Since(start)
	each(c.w.Lab().Switch().Restore)
	began := time.Now()
	c.talk(t, "acme/ask-1", "acme/web-4", "acme/web-5", "acme/web-6")
	c.talk(t, "acme/ask-6", "acme/web-1", "acme/web-2", "acme/web-3")
	talks := time.Since(began)
	for _, from := range []string{"acme/ask-1", "acme/ask-4", "acme/ask-6"} {
		c.names(t, healedWithin, from, 1, 2, 3, 4, 5, 6)
	}
	names := time.Since(began)
	await(t, "all hosts to follow the controller again", healedWithin, func(ctx context.Context) error {
		for _, host := range right {
			if s, err := c.w.Status(ctx, c.w.Hosts[host]); err != nil || !s.Connected {
				return fmt.Errorf("%s is connected: %v, %v", host, s.Connected, err)
			}
		}
		return c.recorded(ctx)
	})
	t.Logf("three hosts and three, no controller there: the others left out of names after %s here and %s there; healed after %s: all talk after %s, are named after %s, follow after %s",
		ms(here), ms(there), ms(lasted), ms(talks), ms(names), ms(time.Since(began)))
}

// roams: a host gets another underlay address. Its tunnels follow it, since it speaks.
func (c *churned) roams(t *testing.T) {
	const now = "192.0.2.250"
	h := c.w.Hosts["nrt1"]
	end := c.undisturbed(t, [2]string{"acme/ask-1", "acme/web-4"}, [2]string{"acme/ask-4", "acme/web-2"})
	defer end()
	began := time.Now()
	_, err := h.Run(t.Context(), "sh", "-c", "ip addr del "+h.Addr().String()+"/24 dev eth0 && ip addr add "+now+"/24 dev eth0")
	c.must(nil, err)
	c.talk(t, "acme/ask-6", "acme/web-1", "acme/web-2", "acme/web-3", "acme/web-4", "acme/web-5")
	c.talk(t, "acme/ask-1", "acme/web-6")
	talks := time.Since(began)
	c.names(t, healedWithin, "acme/ask-1", 1, 2, 3, 4, 5, 6)
	named := time.Since(began)
	// Whoever starts anew knows it from its record, which has its first address: it has
	// to hear of it from the host itself.
	other := c.w.Hosts["fra2"]
	c.must(nil, other.Agent.Stop())
	c.must(nil, c.w.StartAgent(other))
	again := c.talk(t, "acme/web-2", "acme/web-6")
	await(t, "the host's tunnel to have the new address", healedWithin, func(ctx context.Context) error {
		s, err := c.w.Status(ctx, other)
		if err != nil {
			return err
		}
		for _, p := range s.Peers {
			if p.Name == "host/nrt1" && p.Endpoint.Addr().String() != now {
				return fmt.Errorf("it has %s", p.Endpoint)
			}
		}
		return nil
	})
	t.Logf("another address: talks after %s, is named after %s; somebody who starts anew talks to it after %s", ms(talks), ms(named), ms(again))
}
