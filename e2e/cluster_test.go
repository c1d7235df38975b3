package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/enroll"
)

// newEtcd is a cluster of three members in a lab.
func newEtcd(t testing.TB, l *lab.Lab) *world.Etcd {
	t.Helper()
	e, err := world.NewEtcd(t.Context(), world.EtcdConfig{Lab: l, Bin: bin(t)})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// The lab's cluster is one: it elects another leader when the leader is killed,
// paused or cut off, and takes a member's place with an empty one.
func TestEtcdCluster(t *testing.T) {
	need(t, "ip")
	t.Parallel()
	l := newLab(t)
	e := newEtcd(t, l)
	ctx := t.Context()
	leader, term, err := e.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	elected := func(what string, gone *world.EtcdMember) (now *world.EtcdMember) {
		t.Helper()
		await(t, "a new leader after it was "+what, 10*time.Second, func(ctx context.Context) error {
			var newer uint64
			var err error
			if now, newer, err = e.Leader(ctx); err == nil && (now == gone || newer <= term) {
				err = fmt.Errorf("%s leads in term %d", now.Name(), newer)
			}
			if err == nil {
				term = newer
			}
			return err
		})
		return now
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	second := elected("killed", leader)
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	if err := e.Await(ctx); err != nil {
		t.Fatal(err)
	}
	if err := second.Process.Pause(); err != nil {
		t.Fatal(err)
	}
	third := elected("paused", second)
	if err := second.Process.Continue(); err != nil {
		t.Fatal(err)
	}
	if err := e.Await(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Switch().CutHost(third.Name()); err != nil {
		t.Fatal(err)
	}
	elected("cut off", third)
	if err := l.Switch().RestoreHost(third.Name()); err != nil {
		t.Fatal(err)
	}
	before, err := leader.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Replace(ctx, leader); err != nil {
		t.Fatal(err)
	}
	after, err := leader.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if before.Header.Member == after.Header.Member || before.Header.Cluster != after.Header.Cluster {
		t.Errorf("replaced: member %x of cluster %x is now %x of %x", before.Header.Member, before.Header.Cluster, after.Header.Member, after.Header.Cluster)
	}
}

// allTheTime calls check again and again until the test ends or stop is called, which
// reports how often and what went wrong.
func allTheTime(t *testing.T, what string, check func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	asked, wrong := 0, []string{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			began := time.Now()
			if err := check(ctx); ctx.Err() == nil {
				if asked++; err != nil {
					wrong = append(wrong, fmt.Sprintf("%s to %s: %v", began.Format("15:04:05.000"), time.Now().Format("05.000"), err))
				}
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	end := func() { cancel(); <-done }
	t.Cleanup(end)
	return func() {
		t.Helper()
		end()
		if len(wrong) > 0 {
			t.Errorf("%s: wrong %d times of %d:\n%s", what, len(wrong), asked, strings.Join(wrong[:min(len(wrong), 5)], "\n"))
		}
		if asked == 0 {
			t.Errorf("%s: nobody asked", what)
		}
	}
}

// knows waits until a host was told of these controllers and of no others.
func knows(t *testing.T, w *world.World, host string, urls ...string) {
	t.Helper()
	await(t, "the agent of "+host+" to know the controllers", 20*time.Second, func(ctx context.Context) error {
		m, err := enroll.Identity{Dir: w.StateDir(host)}.Load()
		got := slices.Sorted(slices.Values(m.Controllers))
		if err == nil && !slices.Equal(got, slices.Sorted(slices.Values(urls))) {
			err = fmt.Errorf("it knows %q, want %q", got, urls)
		}
		return err
	})
}

// Three controllers on three members: each can go, and be it the one that a host's
// stream is open at; writes go on, and no name is missing for a moment.
func TestThreeControllers(t *testing.T) {
	need(t, "ip", "curl", "dig")
	t.Parallel()
	l := newLab(t)
	e := newEtcd(t, l)
	w := newWorld(t, world.Config{Lab: l, Etcd: e, Controllers: 3}, "fra1", "ams1")
	ctx := t.Context()
	web := start(t, w, "fra1", "acme", "web", "web-1")
	from := start(t, w, "ams1", "acme", "probe", "probe-1")
	await(t, "the name", 10*time.Second, nameIs(from, "web.internal", web.Address.String()))
	for host := range w.Hosts {
		knows(t, w, host, w.URLs()...)
	}
	named := allTheTime(t, "web.internal", nameIs(from, "web.internal", web.Address.String()))

	// A member of etcd.
	leader, _, err := e.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "a write with the leading member gone", 10*time.Second, func(ctx context.Context) error {
		_, err := w.Weft(ctx, "org", "create", "one")
		return err
	})

	// The controller that a host follows: killed, and told to end.
	for i, end := range []func(*lab.Process) error{(*lab.Process).Kill, (*lab.Process).Stop} {
		gone := follows(t, w, "fra1")
		if err := end(gone.Process); err != nil {
			t.Fatal(err)
		}
		await(t, "all hosts to follow others", 10*time.Second, func(ctx context.Context) error {
			for name, h := range w.Hosts {
				s, err := w.Status(ctx, h)
				if err != nil || !s.Connected || s.Controller == gone.URL {
					return fmt.Errorf("%s is at %q, connected %v: %v", name, s.Controller, s.Connected, err)
				}
			}
			return nil
		})
		start(t, w, "fra1", "acme", "api", fmt.Sprintf("api-%d", i))
		if end := gone.Process.ExitCode(); i == 1 {
			if end != 0 {
				t.Errorf("the graceful end has code %d", end)
			}
			others := slices.DeleteFunc(w.URLs(), func(url string) bool { return url == gone.URL })
			for host := range w.Hosts {
				knows(t, w, host, others...)
			}
		}
		if err := w.Run(ctx, gone); err != nil {
			t.Fatal(err)
		}
	}
	for host := range w.Hosts {
		knows(t, w, host, w.URLs()...)
	}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	if err := e.Await(ctx); err != nil {
		t.Fatal(err)
	}
	named()
}

// follows returns the controller that a host follows.
func follows(t *testing.T, w *world.World, host string) *world.Controller {
	t.Helper()
	s, err := w.Status(t.Context(), w.Hosts[host])
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(w.Controllers, func(c *world.Controller) bool { return c.URL == s.Controller })
	if i < 0 {
		t.Fatalf("%s follows %q", host, s.Controller)
	}
	return w.Controllers[i]
}
