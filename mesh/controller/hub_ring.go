package controller

import (
	"sort"

	"github.com/weftmesh/weft/mesh"
)

// How much of the past is kept for streams that resume.
const (
	ringSteps = 4096
	ringKeys  = 16384 // changed objects in all steps
)

// ring is the recent past: what is needed to go back from the present state to an
// earlier one. It holds no states, so a step costs what it changed.
//
// A position is a number of steps since the ring was made; end() is the present.
type ring struct {
	maxSteps, maxKeys int

	steps []past
	first uint64        // position of the state before steps[0]
	floor mesh.Revision // of that state; earlier ones are not known
	keys  int
}

// past is one step, backwards.
type past struct {
	before, after mesh.Revision
	merged        bool // states between the two are not known
	undo          []mesh.Change
}

func (r *ring) end() uint64 { return r.first + uint64(len(r.steps)) }

// forget drops all there is; the present state has revision now.
func (r *ring) forget(now mesh.Revision) {
	// The next position is a new one: none of before leads on.
	*r = ring{maxSteps: r.maxSteps, maxKeys: r.maxKeys, first: r.end() + 1, floor: now}
}

func (r *ring) add(s mesh.Step) {
	if len(s.Keys) > r.maxKeys {
		r.forget(s.After.Revision)
		return
	}
	r.steps = append(r.steps, past{s.Before.Revision, s.After.Revision, s.Merged, s.Undo()})
	r.keys += len(s.Keys)
	for len(r.steps) > r.maxSteps || r.keys > r.maxKeys {
		r.keys -= len(r.steps[0].undo)
		r.floor = r.steps[0].after
		r.steps[0] = past{}
		r.steps = r.steps[1:]
		r.first++
	}
}

// find returns the position of the state that had a revision, which is not above
// the present one. ok is false if it is not known any more.
func (r *ring) find(rev mesh.Revision) (position uint64, ok bool) {
	if later(r.floor, rev) || rev.Epoch != r.floor.Epoch {
		return 0, false
	}
	n := sort.Search(len(r.steps), func(i int) bool { return later(r.steps[i].after, rev) })
	if n < len(r.steps) && r.steps[n].merged && later(rev, r.steps[n].before) {
		return 0, false
	}
	return r.first + uint64(n), true
}

// since returns the way from a position to the present as one step. ok is false if
// the position is not known any more.
func (r *ring) since(position uint64, now mesh.State) (step mesh.Step, ok bool) {
	if position < r.first || position > r.end() {
		return mesh.Step{}, false
	}
	step = mesh.Step{Before: now, After: now, Merged: true}
	for i := len(r.steps); i > int(position-r.first); i-- {
		p := r.steps[i-1]
		step.Before = step.Before.With(p.undo...)
		step.Before.Revision = p.before
		for _, c := range p.undo {
			step.Keys = append(step.Keys, c.Key)
		}
	}
	return step, true
}

// later reports whether a is a revision after b.
func later(a, b mesh.Revision) bool {
	return a.Epoch > b.Epoch || a.Epoch == b.Epoch && a.Revision > b.Revision
}
