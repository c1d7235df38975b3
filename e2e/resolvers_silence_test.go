package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftmesh/weft/dns"
)

// askEvery is how often silence asks each resolver.
const askEvery = 20 * time.Millisecond

// silence cuts a region's host off, and asks the resolvers of the others themselves
// until none of them names it any more: that takes a second and a half at most, and up
// to the time between two questions, and as long as this machine stood still meanwhile.
func (s *stockWorld) silence(t *testing.T, far string, left []string) {
	t.Helper()
	type question struct {
		at   *watcher
		name string
	}
	var questions []question
	for _, r := range left {
		at := newWatcher(t, s.askers[r])
		for name, m := range s.wanted(r) {
			if app := s.apps[m.App]; app[far] != nil {
				questions = append(questions, question{at, name})
			}
		}
	}
	stop := stalls()
	cut := time.Now()
	if err := s.Lab().Switch().CutHost(far + "1"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards longest
	longest := time.Duration(0)
	group, ctx := errgroup.WithContext(t.Context())
	for _, q := range questions {
		group.Go(func() error {
			took, err := s.until(ctx, q.at, q.name, cut)
			mu.Lock()
			defer mu.Unlock()
			longest = max(longest, took)
			return err
		})
	}
	err := group.Wait()
	stood := stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the silent host is out of %d answers after %s; this machine stood still for %s", len(questions), longest.Round(time.Millisecond), stood.Round(time.Millisecond))
	if most := 1500*time.Millisecond + askEvery + stood; longest > most {
		t.Errorf("a silent host was named for %s, want %s at most", longest, most)
	}
}

// until asks for a name until no dead address is given, and returns when that was.
func (s *stockWorld) until(ctx context.Context, at *watcher, name string, since time.Time) (time.Duration, error) {
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		once, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		reply, err := dns.Lookup(once, at.dial, at.resolver, name, "AAAA")
		cancel()
		if err == nil && !slices.ContainsFunc(reply.Answers, func(r dns.Record) bool {
			a, err := netip.ParseAddr(r.Data)
			return err == nil && s.dead[a]
		}) {
			return time.Since(since), nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-ticker.C:
		}
		if time.Since(since) > 10*time.Second {
			return 0, fmt.Errorf("%s in %s still names a silent host after 10 s: %v", name, at.machine.Host.Region, err)
		}
	}
}

// stalls measures for how long this process was not let run at a time; the function that
// it returns ends that and says the longest.
func stalls() (stop func() time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	longest := make(chan time.Duration)
	go func() {
		const every = 5 * time.Millisecond
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		most, last := time.Duration(0), time.Now()
		for {
			select {
			case <-ctx.Done():
				longest <- most
				return
			case <-ticker.C:
			}
			most, last = max(most, time.Since(last)-every), time.Now()
		}
	}()
	return func() time.Duration { cancel(); return <-longest }
}
