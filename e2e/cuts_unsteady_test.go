package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
)

// Three hosts and a laptop: a link that comes and goes, one that gets slower and
// slower, a router that forgets.
func TestUnsteadyLinks(t *testing.T) {
	need(t, "ip", "iperf3")
	t.Parallel()
	c := calm(t, churnSize{hosts: []string{"fra1", "ams1", "nrt1"}, machines: []string{"acme/ask-1 fra1"},
		laptops: []string{"acme/laptop"}, nat: lab.NATConfig{RandomPorts: true}}, func(c *churned) {
		// ams1 is its gateway: no link of the others is in its way.
		c.must(nil, c.w.Lab().Switch().SetRTT("laptop0", "fra1", 40*time.Millisecond))
		c.must(nil, c.w.Lab().Switch().SetRTT("laptop0", "ams1", 0))
	})
	t.Run("flapping", func(t *testing.T) { t.Parallel(); c.flaps(t) })
	t.Run("slower and slower", func(t *testing.T) { t.Parallel(); c.slows(t) })
	t.Run("a router forgets", func(t *testing.T) { t.Parallel(); c.rebinds(t) })
}

// flaps: a link that is there every other 300 ms is bad, not gone. A name may leave
// and come back, but no faster than silence is believed and answers are.
func (c *churned) flaps(t *testing.T) {
	const lasts, phase = 10 * time.Second, 300 * time.Millisecond
	sw := c.w.Lab().Switch()
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	var group sync.WaitGroup
	group.Go(func() {
		for cut := true; ctx.Err() == nil; cut = !cut {
			if err := map[bool]func(a, b string) error{true: sw.Cut, false: sw.Restore}[cut]("fra1", "ams1"); err != nil {
				t.Error(err)
			}
			pause(ctx, phase)
		}
	})
	asked, answered, changes := 0, 0, 0
	last := true
	for ctx.Err() == nil {
		got, err := c.named(ctx, "acme/ask-1", "global.web.internal")
		if ctx.Err() != nil {
			break
		}
		if asked++; err == nil {
			answered++
			if is := slices.Contains(got, c.webs(2)[0]); is != last {
				last = is
				changes++
			}
		}
		pause(ctx, 20*time.Millisecond)
	}
	group.Wait()
	before, err := sw.Counters("fra1", "ams1")
	c.must(nil, err)
	c.must(nil, sw.Restore("fra1", "ams1"))
	talks := c.talk(t, "acme/ask-1", "acme/web-2")
	c.names(t, healedWithin, "acme/ask-1", 1, 2, 3)
	t.Logf("on and off every %s for %s: %d packets cut, the name changed %d times in %d answers; talks %s after it", phase, lasts, before.Cut, changes, answered, ms(talks))
	// To leave takes 1.2 s of silence and to return two answers, 300 ms apart.
	if most := 2 * int(lasts/(1500*time.Millisecond)); changes > most {
		t.Errorf("the name changed %d times, want at most %d", changes, most)
	}
	if answered != asked || before.Cut == 0 {
		t.Errorf("%d of %d questions were answered; %d packets were cut", answered, asked, before.Cut)
	}
}

// slows: the way gets longer, from 5 to 300 ms. Nothing is lost, nobody is left out,
// and the nearest machine becomes another one.
func (c *churned) slows(t *testing.T) {
	sw := c.w.Lab().Switch()
	nearest := func(n int) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			got, err := c.named(ctx, "acme/ask-1", "top1.nearest.of.web.internal")
			if err == nil && !slices.Equal(got, c.webs(n)) {
				err = fmt.Errorf("it is %v, want web-%d, %v", got, n, c.webs(n))
			}
			return err
		}
	}
	// The machine on the own host is nearer than any other.
	await(t, "the nearest to be the own host's", healedWithin, nearest(1))
	c.must(nil, sw.SetDelay("fra1", "nrt1", 5*time.Millisecond))
	end := c.undisturbed(t, [2]string{"acme/ask-1", "acme/web-3"}, [2]string{"acme/web-3", "acme/ask-1"})
	for delay := 5 * time.Millisecond; delay <= 300*time.Millisecond; delay += 15 * time.Millisecond {
		c.must(nil, sw.SetDelay("fra1", "nrt1", delay))
		if got, err := c.named(t.Context(), "acme/ask-1", "global.web.internal"); err != nil || !slices.Contains(got, c.webs(3)[0]) {
			t.Errorf("at %s: %v, %v", delay, got, err)
		}
		pause(t.Context(), 200*time.Millisecond)
	}
	c.must(nil, sw.SetDelay("fra1", "nrt1", 300*time.Millisecond))
	began := time.Now()
	await(t, "the round trip to be known", healedWithin, func(ctx context.Context) error {
		s, err := c.w.Status(ctx, c.w.Hosts["fra1"])
		if err != nil {
			return err
		}
		for _, p := range s.Peers {
			if p.Name == "host/nrt1" && p.RTT < 500*time.Millisecond {
				return fmt.Errorf("it is %s, %s", p.RTT, p.State)
			}
		}
		return nil
	})
	known := time.Since(began)
	end()
	c.names(t, noticedWithin, "acme/ask-1", 1, 2, 3)
	t.Logf("5 to 300 ms each way: nobody was left out, nothing lost; the round trip known %s after the end", ms(known))
}

// rebinds: a laptop's router forgets, and gives its tunnel another port, in the middle
// of a TCP transfer in each direction.
func (c *churned) rebinds(t *testing.T) {
	laptop := c.one("acme/laptop")
	server, err := c.w.Start(t.Context(), c.w.Hosts["ams1"], "acme", "load", "iperf", "iperf3", "-s")
	c.must(nil, err)
	defer server.Process.Stop()
	await(t, "the laptop to talk", healedWithin, func(ctx context.Context) error { return c.talks(ctx, time.Second, "acme/laptop", "acme/web-2") })
	for _, direction := range []string{"up", "down"} {
		args := []string{"-6", "-c", server.Address.String(), "-t", "4", "-i", "0.1", "-b", "20M", "-J", "--connect-timeout", "3000"}
		if direction == "down" {
			args = append(args, "-R")
		}
		done := make(chan struct{})
		var out string
		var runErr error
		go func() {
			defer close(done)
			out, runErr = laptop.host.Run(t.Context(), "iperf3", args...)
		}()
		pause(t.Context(), 1500*time.Millisecond)
		before := c.outside(t, "ams1", "acme/laptop")
		c.must(nil, c.routers["acme/laptop"].Forget())
		<-done
		if after := c.outside(t, "ams1", "acme/laptop"); after == before {
			t.Errorf("its tunnel came from %s before and after: nothing was forgotten", after)
		}
		moved, stalled, err := transfer(out)
		if runErr != nil || err != nil {
			t.Errorf("transfer %s: %v, %v\n%s", direction, runErr, err, out)
			continue
		}
		t.Logf("a router forgets in a transfer %s: %.1f MB came, the longest silence %s", direction, float64(moved)/1e6, ms(stalled))
		if moved < 5_000_000 || stalled > 2*time.Second {
			t.Errorf("transfer %s: %d bytes, %s of silence", direction, moved, stalled)
		}
	}
}

// outside is where a gateway has a laptop's tunnel from.
func (c *churned) outside(t *testing.T, host, key string) (at netip.AddrPort) {
	t.Helper()
	s, err := c.w.Status(t.Context(), c.w.Hosts[host])
	c.must(nil, err)
	for _, p := range s.Peers {
		if p.Name == "client/"+key {
			return p.Endpoint
		}
	}
	t.Fatalf("host %s is not the gateway of %s", host, key)
	return at
}

// transfer reads iperf3's report: what came, and the longest time in which nothing
// did.
func transfer(report string) (moved int64, stalled time.Duration, err error) {
	var r struct {
		Error     string
		Intervals []struct {
			Sum struct {
				Bytes   int64
				Seconds float64
			}
		}
		End struct {
			Received struct{ Bytes int64 } `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(report), &r); err != nil {
		return 0, 0, err
	}
	var silence time.Duration
	for _, i := range r.Intervals {
		if silence += time.Duration(i.Sum.Seconds * float64(time.Second)); i.Sum.Bytes > 0 {
			silence = 0
		}
		stalled = max(stalled, silence)
	}
	if r.Error != "" {
		err = errors.New(r.Error)
	}
	return r.End.Received.Bytes, stalled, err
}
