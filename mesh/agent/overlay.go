package agent

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/weftmesh/weft/mesh"
)

// overlay is what this host knows better than its view about its own machines, as
// mask has it, by machine: those that have ended, and the health and the state of
// those that it looks at.
type overlay map[string]correction

// correction is what is right about one machine; of gone and the others, one is set.
type correction struct {
	gone   bool
	record mesh.Machine
	health *mesh.Health // nil: none is known
}

// delta is the overlay as a change of the view, nil if there is none. What it says of a
// machine is complete: the record and its health.
func (o overlay) delta() *mesh.Delta {
	if len(o) == 0 {
		return nil
	}
	var d mesh.Delta
	for _, key := range slices.Sorted(maps.Keys(o)) {
		c := o[key]
		if c.gone {
			d.Removed = append(d.Removed, machineKind+key)
			continue
		}
		d.Machines = append(d.Machines, c.record)
		if c.health != nil {
			d.Health = append(d.Health, *c.health)
		}
	}
	return &d
}

// correct brings the overlay up to date for some machines, and reports whether it is
// another one.
func (m *machines) correct(o overlay, keys map[string]bool, w *wants) (changed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range keys {
		was, had := o[key]
		now, has := m.correctionLocked(key, w)
		switch {
		case has && !(had && same(was, now)):
			o[key], changed = now, true
		case had && !has:
			delete(o, key)
			changed = true
		}
	}
	return changed
}

func same(a, b correction) bool {
	return a.gone == b.gone && reflect.DeepEqual(a.record, b.record) && reflect.DeepEqual(a.health, b.health)
}

func (m *machines) correctionLocked(key string, w *wants) (c correction, has bool) {
	r, here := w.here[key]
	if !here || r.Host != m.host {
		return c, false
	}
	if m.leavesLocked(r) {
		return correction{gone: true}, true
	}
	s := m.stays[key]
	if s == nil {
		return c, false
	}
	said, known := w.health[key]
	health, record := s.better(&r, said, known)
	if health == nil && record == nil {
		return c, false
	}
	c.record = r
	if record != nil {
		c.record = *record
	}
	if c.health = health; health == nil && known {
		c.health = &said
	}
	return c, true
}

// better is what is known here of a machine better than its record and its health in
// a view say; nil: nothing.
func (s *stay) better(r *mesh.Machine, said mesh.Health, known bool) (health *mesh.Health, record *mesh.Machine) {
	is, watched := s.health()
	if watched && s.earlier && is.Note == notPassed {
		// The view on disk did not say, and the controllers do: it is theirs to say until
		// it is known here.
		watched = false
	}
	if watched && (known && said.Passing != is.Passing || !known && is.Note != notPassed) {
		health = &is
	}
	state := r.State
	switch {
	case s.drains && (state == mesh.StateStarted || state == mesh.StateCreated):
		state = mesh.StateDraining
	case watched && is.Passing && state == mesh.StateCreated:
		state = mesh.StateStarted
	}
	if state != r.State {
		now := *r
		now.State = state
		record = &now
	}
	return health, record
}

// all are the machines of which something may be known better.
func (m *machines) all() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]bool, len(m.stays)+len(m.leaving))
	for key := range m.stays {
		out[key] = true
	}
	for at := range m.leaving {
		out[strings.TrimSuffix(at, offSuffix)] = true
	}
	return out
}
