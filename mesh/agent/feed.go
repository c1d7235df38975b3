package agent

import (
	"sync"

	"github.com/weftmesh/weft/mesh"
)

// feed is what the follower has put in force and the loop has not seen yet.
type feed struct {
	mu     sync.Mutex // guards what follows
	latest *version
	steps  []mesh.Delta // all that leads to latest from what the loop took last
	whole  bool         // it is another one as a whole
}

// mostWaiting bounds the changes that wait for the loop: a pass over the whole view
// costs less than more of them.
const mostWaiting = 4096

// add takes a view. If step is not nil, it is all that leads there from the one before.
func (f *feed) add(v *version, step *mesh.Delta) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.latest = v
	if step == nil || len(f.steps) >= mostWaiting {
		f.steps, f.whole = nil, true
	}
	if !f.whole {
		f.steps = append(f.steps, *step)
	}
}

// take returns the latest view, nil if there is none yet, and what leads there.
func (f *feed) take() (v *version, steps []mesh.Delta, whole bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, steps, whole = f.latest, f.steps, f.whole
	f.steps, f.whole = nil, false
	return v, steps, whole
}

// Hosts returns what the view in force says of hosts, nil if there is none yet. It
// costs nothing, however large the view is. It is not to be changed.
func (f *follower) Hosts() *mesh.View { return f.view.Load().Hosts() }

// Reach is Contact without what the controllers say.
func (f *follower) Reach() contact {
	c := *f.contacts.Load()
	c.saying = nil
	return c
}

// ToldOfHosts is Hosts of what the controllers say.
func (f *follower) ToldOfHosts() *mesh.View { return f.contacts.Load().saying.Hosts() }
