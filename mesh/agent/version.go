package agent

import (
	"sync"
	"sync/atomic"

	"github.com/weftmesh/weft/mesh"
)

// version is a view that is made when somebody asks for it: until then it is an
// earlier one and the changes since. So changes that come faster than anybody looks
// cost little each, whatever the size of the view.
type version struct {
	head  mesh.View  // without what the lists hold
	hosts *mesh.View // what it says of hosts alone, see onlyHosts; made at once
	made  atomic.Pointer[mesh.View]
	steps int         // back to one that was made
	mu    *sync.Mutex // of all that came from one snapshot; guards what follows
	from  *version    // nil once it is made
	step  mesh.Delta
}

// mostSteps bounds the changes that wait for somebody to ask.
const mostSteps = 1024

// versionOf returns the version that v is.
func versionOf(v *mesh.View) *version {
	n := &version{head: headOf(v), hosts: onlyHosts(v), mu: new(sync.Mutex)}
	n.made.Store(v)
	return n
}

func headOf(v *mesh.View) mesh.View {
	return mesh.View{Revision: v.Revision, Format: v.Format, Plan: v.Plan, Self: v.Self}
}

// onlyHosts is a view without what is not about hosts: it is asked for often.
func onlyHosts(v *mesh.View) *mesh.View {
	h := headOf(v)
	h.Host, h.Client, h.Coordinate, h.Hosts = v.Host, v.Client, v.Coordinate, v.Hosts
	return &h
}

// with returns the version after d.
func (v *version) with(d mesh.Delta) *version {
	n := &version{head: v.head, hosts: v.hosts, steps: 1, mu: v.mu, from: v, step: d}
	if changesHosts(d) {
		now := v.hosts.Apply(mesh.Delta{Revision: d.Revision, Host: d.Host, Coordinate: d.Coordinate, Hosts: d.Hosts, Removed: d.Removed})
		n.hosts = &now
	}
	if v.made.Load() == nil {
		n.steps += v.steps
	}
	if n.head.Revision = d.Revision; d.Format != 0 {
		n.head.Format = d.Format
	}
	if n.steps >= mostSteps {
		n.View()
	}
	return n
}

// Hosts returns what the view says of hosts, without making the view. It is not to be
// changed. That of no version is nil.
func (v *version) Hosts() *mesh.View {
	if v == nil {
		return nil
	}
	return v.hosts
}

// View returns the view, the same at each call. It is not to be changed. That of no
// version is nil.
func (v *version) View() *mesh.View {
	if v == nil {
		return nil
	}
	if made := v.made.Load(); made != nil {
		return made
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if made := v.made.Load(); made != nil {
		return made
	}
	steps := make([]mesh.Delta, v.steps)
	base, i := v, len(steps)
	for ; base.made.Load() == nil; base = base.from {
		i--
		steps[i] = base.step
	}
	view := base.made.Load().Apply(mesh.MergeDeltas(steps[i:]))
	v.made.Store(&view)
	v.from, v.step = nil, mesh.Delta{}
	return &view
}
