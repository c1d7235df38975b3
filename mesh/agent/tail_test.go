package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// Whatever the disk has, and wherever the tail was cut: what comes of the two is a view
// that was in force, none before that of the disk, and the last one if the tail is whole.
func TestTailLeadsOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		views, deltas := history(t, rapid.Uint64().Draw(rt, "seed"), 20)
		begin := rapid.IntRange(0, len(deltas)-1).Draw(rt, "begin")
		keeps := rapid.IntRange(begin, len(deltas)).Draw(rt, "disk")
		path := filepath.Join(dir, "agent.changes")
		tl := newTail(path, dir, views[0].Self)
		defer tl.remove()
		tl.limit = rapid.IntRange(0, 8000).Draw(rt, "limit")
		left := 0 // all up to here may be left out
		for i := begin; i < len(deltas); i++ {
			kept := mesh.Revision{}
			if at := min(i, keeps); at > begin {
				kept, left = views[at].Revision, at
			}
			if err := tl.note(versionOf(views[i]), versionOf(views[i+1]), &deltas[i], kept); err != nil {
				rt.Fatal(err)
			}
		}
		whole, err := os.ReadFile(path)
		if err != nil {
			rt.Fatal(err)
		}
		cut := rapid.IntRange(0, len(whole)).Draw(rt, "cut")
		for _, n := range []int{len(whole), cut} {
			if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
				rt.Fatal(err)
			}
			for _, at := range []int{rapid.IntRange(0, len(deltas)).Draw(rt, "at"), left} {
				next := newTail(path, dir, views[0].Self)
				got, saved := next.after(views[at])
				i := slices.IndexFunc(views, func(v *mesh.View) bool { return v.Revision == got.Revision })
				if viewText(*views[i]) != viewText(*got) {
					rt.Fatalf("from %d to %d: it is not the view of that time", at, i)
				}
				switch {
				case i < at:
					rt.Fatalf("the disk at %d and %d bytes of the tail lead to %d", at, n, i)
				case n == len(whole) && at >= left && at >= begin && i != len(views)-1:
					rt.Fatalf("the disk at %d and the whole tail from %d lead to %d", at, begin, i)
				case saved.IsZero() != (i == at) || len(next.waiting) == 0 != (i == at):
					rt.Fatalf("from %d to %d: saved %s, %d records", at, i, saved, len(next.waiting))
				}
			}
			stranger := newTail(path, dir+"x", views[0].Self)
			if got, _ := stranger.after(views[begin]); got != views[begin] {
				rt.Fatal("the tail of another state directory was taken")
			}
		}
	})
}

// changesOf is a stream of a view and n changes: each adds a machine.
func changesOf(v *mesh.View, n int) (events []api.Event) {
	events = append(events, api.Event{Snapshot: v})
	for i := range n {
		m := v.Machines[0]
		m.ID = "more-" + string(rune('a'+i))
		m.Endpoint = v.Plan.Endpoint(1, mesh.Host{Number: 1}.Position(), uint16(100+i))
		events = append(events, api.Event{Delta: &mesh.Delta{Revision: mesh.Revision{Epoch: v.Revision.Epoch, Revision: v.Revision.Revision + int64(i+1)}, Machines: []mesh.Machine{m}}})
	}
	return events
}

// slowly is a script whose streams take a second for each event.
type slowly struct{ *script }

func (s slowly) open(ctx context.Context, server string, last mesh.Revision) (viewStream, error) {
	stream, err := s.script.open(ctx, server, last)
	return pacedStream{stream}, err
}

type pacedStream struct{ viewStream }

func (s pacedStream) Next() (api.Event, error) { time.Sleep(time.Second); return s.viewStream.Next() }

// The disk has taken the first view, and nothing since: an agent that is killed then,
// and once more before its disk is any better, goes on from the last one.
func TestKilledWithASlowDisk(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog(t)
		agent := func(name string, pace time.Duration, s streams) *follower {
			dir := filepath.Join(root, name)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			f := newFollower(mesh.Node{Kind: mesh.KindHost, Name: "self"}, dir, Timing{CacheWrite: pace}.withDefaults(), s, &problems{}, log)
			f.tail = newTail(filepath.Join(dir, "agent"+tailSuffix), root, f.node)
			return f
		}
		runs := func(f *follower) (end func()) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- f.Run(ctx) }()
			return func() {
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
			}
		}
		onDisk := func(f *follower) mesh.Revision {
			k, err := readCache(f.dir, f.node)
			if err != nil || k.view == nil {
				t.Fatalf("on disk: %v, %v", k.view, err)
			}
			return k.view.Revision
		}
		v := soundView(t, 2, 1)
		v.Revision = mesh.Revision{Epoch: 1, Revision: 7}
		first := agent("first", time.Hour, slowly{&script{list: []string{"x"}, plays: map[string][]play{"x": {{events: changesOf(v, 5), hang: true}}}}})
		end := runs(first)
		letPass(20 * time.Second)
		if onDisk(first) != v.Revision || len(first.View().Machines) != 6 {
			t.Fatalf("the disk has revision %s; %d machines in force", onDisk(first), len(first.View().Machines))
		}
		// What a killed agent leaves.
		files, err := filepath.Glob(filepath.Join(first.dir, "*"))
		if err != nil || len(files) < 3 {
			t.Fatalf("it left %v, %v", files, err)
		}
		nobody := &script{list: []string{"x"}, plays: map[string][]play{"x": {{err: errors.New("refused")}}}}
		next := agent("next", time.Millisecond, nobody)
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err == nil {
				err = os.WriteFile(filepath.Join(next.dir, filepath.Base(name)), text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		end()
		if onDisk(first) != first.View().Revision {
			t.Errorf("at its end the disk has revision %s", onDisk(first))
		}
		if _, err := os.Stat(first.tail.path); err == nil {
			t.Errorf("%s is left though the disk has all", first.tail.path)
		}
		for range 2 { // the second one: killed before it did anything
			next = agent("next", time.Millisecond, nobody)
			if next.load(); viewText(*next.View()) != viewText(*first.View()) || !next.Contact().fromCache {
				t.Fatalf("it goes on from revision %s, want %s", next.View().Revision, first.View().Revision)
			}
		}
		end = runs(next)
		letPass(time.Second)
		if onDisk(next) != first.View().Revision {
			t.Errorf("without any controller the disk has revision %s", onDisk(next))
		}
		end()
		if _, err := os.Stat(next.tail.path); err == nil {
			t.Errorf("%s is left though the disk has all", next.tail.path)
		}
	})
}

// Another view as a whole is the disk's to keep; until then it is the earlier one, and
// what changes after it does not lead on from that.
func TestTailBeginsAnew(t *testing.T) {
	t.Parallel()
	views, deltas := history(t, 3, 4)
	path := filepath.Join(t.TempDir(), "agent.changes")
	tl := newTail(path, "/state", views[0].Self)
	for i, step := range []*mesh.Delta{&deltas[0], nil, &deltas[2], &deltas[3]} {
		if err := tl.note(versionOf(views[i]), versionOf(views[i+1]), step, mesh.Revision{}); err != nil {
			t.Fatal(err)
		}
	}
	tl.close()
	for at, want := range []int{0, 1, 4, 4, 4} {
		if got, _ := newTail(path, "/state", views[0].Self).after(views[at]); viewText(*got) != viewText(*views[want]) {
			t.Errorf("the disk at %d leads to revision %s, want %s", at, got.Revision, views[want].Revision)
		}
	}
	later := *views[3]
	later.Revision.Epoch++
	if got, _ := newTail(path, "/state", views[0].Self).after(&later); got != &later {
		t.Errorf("a view of restored controllers leads to revision %s", got.Revision)
	}
}

// What cannot be written does not stop anything.
func TestTailWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := soundView(t, 2, 1)
		s := &script{list: []string{"x"}, plays: map[string][]play{"x": {{events: changesOf(v, 3), hang: true}}}}
		log, text := newLog(t)
		f := newFollower(mesh.Node{Kind: mesh.KindHost, Name: "self"}, t.TempDir(), Timing{}.withDefaults(), s, &problems{}, log)
		f.tail = newTail(filepath.Join(f.dir, "missing", "agent.changes"), f.dir, f.node)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		letPass(time.Second)
		if len(f.View().Machines) != 4 || !text.contains("a little older") {
			t.Errorf("%d machines, log %s", len(f.View().Machines), text)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}
