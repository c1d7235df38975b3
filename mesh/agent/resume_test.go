package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// While a removal is held back, what is in force has more than what the controllers
// say. Changes lead on from what they say; after a restart, which knows only what was
// in force, a snapshot is asked for.
func TestResumeWhileHeld(t *testing.T) {
	t.Parallel()
	s := newStage(t, map[string][]play{"x": {
		{events: []api.Event{whole(at(t, 1, 5, 20)), whole(at(t, 1, 7, 3))}},
		{events: []api.Event{plus(1, 8)}, hang: true},
	}})
	f, p, end := s.start("x")
	eventually(t, 10*time.Second, "the change, and all that was", func() bool { return f.View() != nil && len(f.View().Hosts) == 21 })
	if got := s.told(); got[1] != "x 1.7" {
		t.Errorf("asked %v", got)
	}
	if told := f.Contact().told; len(told.Hosts) != 4 || told.Revision.Revision != 8 || !strings.Contains(strings.Join(p.list(), " "), "held back: 1") {
		t.Errorf("told %d hosts at %s; problems %v", len(told.Hosts), told.Revision, p.list())
	}
	f.awaitKept(t.Context(), func(v *mesh.View) bool { return v.Revision.Revision == 8 })
	end()
	before := len(s.told())
	s.mu.Lock()
	s.plays["x"] = []play{{events: []api.Event{whole(at(t, 1, 9, 3))}, hang: true}}
	s.mu.Unlock()
	f, _, end = s.start("x")
	eventually(t, 10*time.Second, "the snapshot, still held", func() bool { return f.View().Revision.Revision == 9 })
	if n := len(f.View().Hosts); n != 21 {
		t.Errorf("%d hosts", n)
	}
	if got := s.told()[before]; got != "x" {
		t.Errorf("after the restart it asked %q: what is on disk is not what a change leads on from", got)
	}
	end()
}

// The first change of a stream stands for a snapshot, and is weighed like one.
func TestResumedChangeIsHeld(t *testing.T) {
	start := time.Unix(1000, 0)
	d := mesh.Delta{Revision: mesh.Revision{Epoch: 1, Revision: 9}, Format: mesh.ViewFormat}
	for i := range 18 {
		d.Removed = append(d.Removed, fmt.Sprintf("hosts/h%03d", i))
	}
	for _, fromDisk := range []bool{false, true} {
		c := current{holdFor: time.Minute}
		if v := at(t, 1, 5, 20); fromDisk {
			c.restore(v, true)
		} else {
			c.snapshot(v, start)
		}
		if !c.resumed(d, start) || len(c.effective.View().Hosts) != 20 || len(c.told.View().Hosts) != 2 || c.resume().Revision != 9 {
			t.Fatalf("from disk %v: %d hosts in force, %d told, to go on from %s", fromDisk, len(c.effective.View().Hosts), len(c.told.View().Hosts), c.resume())
		}
		c.heard(d.Revision, start.Add(time.Minute))
		if len(c.effective.View().Hosts) != 2 {
			t.Errorf("confirmed, and not applied: %d hosts", len(c.effective.View().Hosts))
		}
	}
	held := current{holdFor: time.Minute}
	held.restore(at(t, 1, 5, 20), false)
	if held.resume() != (mesh.Revision{}) || held.resumed(d, start) || held.snapshot(at(t, 1, 4, 20), start) {
		t.Error("a view with more than the controllers said was taken for theirs, or an older one was taken")
	}
}
