package store

import (
	"slices"

	"github.com/weftmesh/weft/mesh"
)

// Feed is all that happens to State, step by step: what Subscribe's wake leaves
// out. Nothing is lost and nothing comes twice. A step is one revision, or what
// was found by listing anew (mesh.Step.Merged).
type Feed struct {
	m    *mirror
	wake chan struct{}

	// Guarded by m.mu:
	steps []mesh.Step
	keys  int // in steps
	at    mesh.Revision

	start mesh.State
	taken mesh.Revision // the reader's
}

// feedLimit is how many keys the steps may hold that nobody takes. Beyond, they
// become one step.
const feedLimit = 1 << 16

// Feed returns a feed that begins with State as it is now. Close ends it.
func (s *Store) Feed() *Feed {
	m := &s.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	f := &Feed{m: m, wake: make(chan struct{}, 1), start: s.State()}
	f.at, f.taken = f.start.Revision, f.start.Revision
	m.feeds[f] = true
	return f
}

// Start is the state that the first step leads on from.
func (f *Feed) Start() mesh.State { return f.start }

// C gets a value when there is something to take.
func (f *Feed) C() <-chan struct{} { return f.wake }

// Take returns the steps since the last time, in order. What State was when Take
// began is in them. It has one caller at a time.
func (f *Feed) Take() []mesh.Step {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	steps := f.steps
	f.steps, f.keys, f.taken = nil, 0, f.at
	return steps
}

// Revision is that of the state to which the steps lead that were taken. It may be
// above the last step's: there are revisions that change nothing.
func (f *Feed) Revision() mesh.Revision { return f.taken }

// Close ends the feed.
func (f *Feed) Close() {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	delete(f.m.feeds, f)
}

// addLocked appends steps that lead to revision at.
func (f *Feed) addLocked(steps []mesh.Step, at mesh.Revision) {
	f.at = at
	if len(steps) == 0 {
		return
	}
	f.steps = append(f.steps, steps...)
	for _, s := range steps {
		f.keys += len(s.Keys)
	}
	if f.keys > feedLimit && len(f.steps) > 1 {
		f.steps = []mesh.Step{mergeSteps(f.steps)}
		f.keys = len(f.steps[0].Keys)
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// mergeSteps makes one step of several that follow each other.
func mergeSteps(steps []mesh.Step) mesh.Step {
	out := mesh.Step{Before: steps[0].Before, After: steps[len(steps)-1].After, Merged: true}
	for _, s := range steps {
		out.Keys = append(out.Keys, s.Keys...)
	}
	slices.Sort(out.Keys)
	out.Keys = slices.Compact(out.Keys)
	return out
}
