package store

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
)

// collect takes steps until they lead to revision rev, and checks that each leads on
// from where the one before ended.
func collect(t *testing.T, f *Feed, from mesh.State, rev int64) (steps []mesh.Step, to mesh.State) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for to = from; f.Revision().Revision < rev; {
		select {
		case <-f.C():
		case <-time.After(20 * time.Millisecond): // revisions without a step wake nobody
		case <-deadline:
			t.Fatalf("the feed is at %s, want %d", f.Revision(), rev)
		}
		for _, step := range f.Take() {
			if diff := cmp.Diff(dump(to), dump(step.Before), compare); diff != "" {
				t.Fatalf("a step to %s does not lead on from %s (-before +step's):\n%s", step.After.Revision, to.Revision, diff)
			}
			if step.After.Revision.Revision <= to.Revision.Revision && step.After.Revision.Epoch == to.Revision.Epoch {
				t.Fatalf("after %s a step to %s", to.Revision, step.After.Revision)
			}
			checkKeys(t, step)
			steps, to = append(steps, step), step.After
		}
	}
	return steps, to
}

// checkKeys checks that a step names all that it changes.
func checkKeys(t *testing.T, step mesh.Step) {
	t.Helper()
	before, after := dump(step.Before), dump(step.After)
	for key := range after {
		if _, index := before[key]; index && step.Before.Object(key) == nil {
			continue // what the indexes answer
		}
		if !cmp.Equal(before[key], after[key], compare) && step.After.Object(key) != nil && !slices.Contains(step.Keys, key) {
			t.Fatalf("the step to %s sets %s and does not say so: %v", step.After.Revision, key, step.Keys)
		}
	}
	for key := range before {
		if _, there := after[key]; !there && step.Before.Object(key) != nil && !slices.Contains(step.Keys, key) {
			t.Fatalf("the step to %s removes %s and does not say so: %v", step.After.Revision, key, step.Keys)
		}
	}
}

// A feed has every step, each of one revision, however late they are taken.
func TestFeedHasEveryStep(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	host(t, s, "h")
	run(t, s)
	f := s.Feed()
	defer f.Close()
	other := again(t, s)
	org(t, other, "acme")
	org(t, other, "beta")
	for i := range 10 {
		machine(t, other, "acme", "web", fmt.Sprint("m", i), "h")
	}
	rev := done(other.RemoveMachine(t.Context(), "", MachineRef{Org: "acme", ID: "m3"}))(t)
	steps, to := collect(t, f, f.Start(), rev)
	if len(steps) < 13 {
		t.Errorf("%d steps of 13 changes", len(steps))
	}
	for _, step := range steps {
		if step.Merged {
			t.Errorf("the step to %s is of several revisions", step.After.Revision)
		}
	}
	// What one transaction does is one step: nobody sees a machine without its app.
	for _, step := range steps {
		if step.After.Machines.Len() > 0 && step.After.Apps.Len() == 0 {
			t.Error("a machine came before its app")
		}
	}
	want := fresh(t, s)
	if diff := cmp.Diff(dump(want), dump(to), compare); diff != "" {
		t.Errorf("(-listed +fed):\n%s", diff)
	}
	if f.Close(); len(s.mirror.feeds) != 0 {
		t.Error("a closed feed is still fed")
	}
}

// What a mirror finds when it lists anew is one step, which says that there may have
// been states between; nothing comes twice.
func TestFeedOverACompaction(t *testing.T) {
	t.Parallel()
	server := ownServer(t)
	gate := newGate(server.Client())
	s := newMesh(t, Config{Client: gate.client, ProgressEvery: 20 * time.Millisecond})
	host(t, s, "h")
	org(t, s, "acme")
	for _, id := range []string{"stays", "goes", "stops"} {
		machine(t, s, "acme", "web", id, "h")
	}
	run(t, s)
	f := s.Feed()
	defer f.Close()
	gate.shut()
	other := newStore(t, Config{Client: server.Client(), Root: s.root})
	done(other.RemoveMachine(t.Context(), "", MachineRef{Org: "acme", ID: "goes"}))(t)
	must(other.SetMachine(t.Context(), "", MachineRef{Org: "acme", ID: "stops"}, MachineChange{State: new(mesh.StateStopped)}))(t)
	m, rev, err := other.CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", ID: "comes", Host: "h"})
	must(m, rev, err)(t)
	if _, err := server.Client().Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	gate.open()
	steps, to := collect(t, f, f.Start(), rev)
	if !gate.compacted() {
		t.Error("the watch was never told of a compaction: this test proves nothing")
	}
	merged := 0
	for _, step := range steps {
		if step.Merged {
			merged++
		}
	}
	if merged != 1 || len(steps) != 1 {
		t.Errorf("%d steps, %d of them merged, want one", len(steps), merged)
	}
	if diff := cmp.Diff(dump(fresh(t, s)), dump(to), compare); diff != "" {
		t.Errorf("(-listed +fed):\n%s", diff)
	}
}

// A feed that nobody reads does not grow without end: what waits becomes one step.
func TestFeedThatNobodyReads(t *testing.T) {
	t.Parallel()
	s := &Store{mirror: newMirror()}
	s.mirror.state.Store(&mesh.State{})
	f := s.Feed()
	state := mesh.State{}
	const each = 1000
	for i := range feedLimit/each + 5 {
		before := state
		keys := make([]string, each)
		changes := make([]mesh.Change, each)
		for k := range each {
			key := fmt.Sprintf("apps/acme/%d-%d", i, k)
			keys[k], changes[k] = key, mesh.Change{Key: key, Object: mesh.App{Org: "acme", Name: key}}
		}
		state = state.With(changes...)
		state.Revision.Revision = int64(i + 1)
		s.mirror.publish(state, int64(i+1), []mesh.Step{{Before: before, After: state, Keys: keys}})
	}
	if len(f.steps) > 6 {
		t.Errorf("%d steps wait", len(f.steps))
	}
	steps := f.Take()
	last := steps[len(steps)-1]
	if !steps[0].Merged || steps[0].Before.Apps.Len() != 0 || last.After.Apps.Len() != state.Apps.Len() || f.Revision() != state.Revision {
		t.Errorf("they lead from %d to %d apps, want %d", steps[0].Before.Apps.Len(), last.After.Apps.Len(), state.Apps.Len())
	}
	keys := map[string]bool{}
	for _, step := range steps {
		for _, k := range step.Keys {
			keys[k] = true
		}
	}
	if len(keys) != state.Apps.Len() {
		t.Errorf("%d keys of %d", len(keys), state.Apps.Len())
	}
}
