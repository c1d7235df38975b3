package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/e2e/world"
)

// The longest time without news in a host's view when the controller that it follows
// is killed, stops (SIGSTOP), or cannot be reached from it any more, while others
// change something twenty times a second.
func TestBenchFailover(t *testing.T) {
	benchmark(t, "ip", "curl", "nsenter")
	const rounds, observer = 5, "nrt1"
	l := newLab(t)
	w := newWorld(t, world.Config{Lab: l, Etcd: newEtcd(t, l), Controllers: 3}, "fra1", observer)
	eye := newWatcher(t, start(t, w, observer, "acme", "shell", "shell"))
	for _, fault := range []struct {
		name string
		do   func(c *world.Controller) error
		undo func(c *world.Controller) error
	}{
		{"none", func(*world.Controller) error { return nil }, func(*world.Controller) error { return nil }},
		{
			"kill9", func(c *world.Controller) error { return c.Process.Kill() },
			func(c *world.Controller) error { return w.Run(t.Context(), c) },
		},
		{
			"sigstop", func(c *world.Controller) error { return c.Process.Pause() },
			func(c *world.Controller) error { return c.Process.Continue() },
		},
		{
			"partition", func(c *world.Controller) error { return l.Switch().Cut(c.Name(), observer) },
			func(c *world.Controller) error { return l.Switch().Restore(c.Name(), observer) },
		},
	} {
		var worst, sum time.Duration
		for range rounds {
			victim := awaitFollowing(t, w, observer, nil)
			var left []string
			for _, c := range w.Controllers {
				if c != victim {
					left = append(left, c.URL)
				}
			}
			news := watchNews(t, eye, nodeClient(t, w, "fra1", left...))
			news.more(t, 20)
			if err := fault.do(victim); err != nil {
				t.Fatal(err)
			}
			if fault.name != "none" {
				awaitFollowing(t, w, observer, victim)
			}
			news.more(t, 20)
			gap := news.end()
			worst, sum = max(worst, gap), sum+gap
			if err := fault.undo(victim); err != nil {
				t.Fatal(err)
			}
			if err := w.AwaitReady(t.Context(), victim); err != nil {
				t.Fatal(err)
			}
		}
		figure("failover_gap_"+fault.name, float64(worst.Milliseconds()), "ms", "")
		figure("failover_gap_"+fault.name+"_mean", float64((sum / rounds).Milliseconds()), "ms", "")
	}
}

// newsEvery is the time between two changes.
const newsEvery = 50 * time.Millisecond

// news makes machines of the app news, n1, n2, ..., and watches a host's view for
// them.
type news struct {
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu   sync.Mutex // guards what follows
	seen int        // highest number
	at   time.Time  // since when
	gap  time.Duration
	errs []error
}

func watchNews(t *testing.T, eye *watcher, writer node) *news {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	n := &news{cancel: cancel}
	t.Cleanup(func() { n.end() })
	n.group.Go(func() { n.write(ctx, writer) })
	n.group.Go(func() { n.watch(ctx, eye) })
	return n
}

func (n *news) write(ctx context.Context, writer node) {
	tick := time.NewTicker(newsEvery)
	defer tick.Stop()
	id := func(i int) string { return fmt.Sprintf("n%d", i) }
	const kept = 3
	first := int(time.Now().UnixMilli()) // no name comes twice
	for i := first; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_, err := writer.register(ctx, "acme", "news", id(i))
		if err == nil && i-first >= kept {
			err = writer.remove(ctx, "acme", id(i-kept))
		}
		if err != nil && ctx.Err() == nil {
			n.mu.Lock()
			n.errs = append(n.errs, err)
			n.mu.Unlock()
		}
	}
}

func (n *news) watch(ctx context.Context, eye *watcher) {
	for ctx.Err() == nil {
		newest := 0
		bounded, cancel := context.WithTimeout(ctx, time.Second)
		reply, err := dns.Lookup(bounded, eye.dial, eye.resolver, "vms.news.internal.", "TXT")
		cancel()
		if err != nil {
			continue
		}
		for _, word := range strings.FieldsFunc(reply.Short(), func(r rune) bool { return r == '"' || r == ',' || r == ' ' || r == '\n' }) {
			if i, err := strconv.Atoi(strings.TrimPrefix(word, "n")); err == nil {
				newest = max(newest, i)
			}
		}
		n.note(newest)
	}
}

func (n *news) note(newest int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if newest <= n.seen {
		return
	}
	now := time.Now()
	if n.seen > 0 {
		n.gap = max(n.gap, now.Sub(n.at))
	}
	n.seen, n.at = newest, now
}

// more waits until so many further changes are seen.
func (n *news) more(t *testing.T, count int) {
	t.Helper()
	n.mu.Lock()
	from := n.seen
	n.mu.Unlock()
	await(t, "news", 60*time.Second, func(context.Context) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if from == 0 {
			from = n.seen
		}
		if from == 0 || n.seen < from+count {
			return fmt.Errorf("%d of %d: %w", n.seen-from, count, errors.Join(n.errs...))
		}
		return nil
	})
}

func (n *news) end() time.Duration {
	n.cancel()
	n.group.Wait()
	return n.gap
}
