package agent

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// leave is a record that is to go, or a move to this host that is to be called off.
type leave struct {
	Org     string    `json:"org"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"` // of the record: one made anew later is another one
	// Off: only the preparation of the move.
	Off bool `json:"off,omitempty"`
	// Gone: the record is removed, but the view may still show it.
	Gone bool `json:"gone,omitempty"`

	busy bool // a request is under way
}

func (l leave) key() string { return l.Org + "/" + l.ID }

// at is where it stands among those that leave: a machine may do both.
func (l leave) at() string {
	if l.Off {
		return l.key() + offSuffix
	}
	return l.key()
}

const offSuffix = "#move"

const leavingFile = "leaving.json"

func (m *machines) kicked() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// saveLocked keeps the list of records to remove: a restart must not forget them.
func (m *machines) saveLocked() {
	list := slices.SortedFunc(maps.Values(m.leaving), func(a, b leave) int {
		return strings.Compare(a.at(), b.at())
	})
	m.maskOf = nil
	b, err := json.Marshal(list)
	if err == nil {
		err = enroll.WriteFile(filepath.Join(m.dir, leavingFile), b)
	}
	if err != nil {
		m.log.Error("machines that ended: list not kept", "err", err)
	}
	m.changed.fire()
}

// forgetLocked forgets the records that are gone and that the view does not show
// any more.
func (m *machines) forgetLocked(here map[string]mesh.Machine) {
	before := len(m.leaving)
	for at := range m.leaving {
		r, shown := here[at]
		m.forgetOneLocked(at, r, shown)
	}
	if len(m.leaving) != before {
		m.saveLocked()
	}
}

func (m *machines) forgetOneLocked(at string, r mesh.Machine, shown bool) {
	if l, leaves := m.leaving[at]; leaves && l.Gone && !(shown && l.Created.Equal(r.Created)) {
		delete(m.leaving, at)
	}
}

// leavesLocked reports whether exactly this record is to go.
func (m *machines) leavesLocked(r mesh.Machine) bool {
	l, leaves := m.leaving[machineKey(r)]
	return leaves && l.Created.Equal(r.Created)
}

// offLocked reports whether the move of exactly this record is to be called off.
func (m *machines) offLocked(r mesh.Machine) bool {
	l, off := m.leaving[machineKey(r)+offSuffix]
	return off && l.Created.Equal(r.Created)
}

// leaveLocked notes that a machine ended, or (off) will not come.
func (m *machines) leaveLocked(r mesh.Machine, off bool) {
	if m.keep {
		return
	}
	l := leave{Org: r.Org, ID: r.ID, Created: r.Created, Off: off}
	m.leaving[l.at()] = l
	m.newsLocked(l.key())
	m.saveLocked()
	m.kicked()
	m.wake()
}

// run removes records until ctx ends. What a controller cannot do now is tried
// again for as long as it takes.
func (m *machines) run(ctx context.Context, t Timing) {
	b := backoff{first: t.Backoff, most: t.MaxBackoff}
	for {
		l, any := m.begin()
		if !any {
			b.reset()
			select {
			case <-ctx.Done():
				return
			case <-m.kick:
			}
			continue
		}
		path := machinePath(l.Org, l.ID)
		if l.Off {
			path += "/host"
		}
		err := m.request(ctx, http.MethodDelete, path, nil, nil)
		// On another host, or not ours any more: then it is not ours to remove.
		done := err == nil || errors.Is(err, api.ErrNotFound) || errors.Is(err, api.ErrConflict) || errors.Is(err, api.ErrForbidden)
		m.end(l, done)
		switch {
		case ctx.Err() != nil:
			return
		case done && l.Off:
			m.log.Info("move called off", "machine", l.key())
		case done:
			m.log.Info("machine left", "machine", l.key())
		default:
			m.log.Warn("record of a machine that ended is not removed yet", "machine", l.key(), "err", err)
			if !wait(ctx, b.step(), nil) {
				return
			}
		}
	}
}

// begin takes one record to remove.
func (m *machines) begin() (l leave, any bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range slices.Sorted(maps.Keys(m.leaving)) {
		// One whose name is being used again is not to be removed under its user.
		if l := m.leaving[at]; !l.Gone && m.stays[l.key()] == nil {
			l.busy = true
			m.leaving[at] = l
			return l, true
		}
	}
	return leave{}, false
}

// end notes what became of the attempt.
func (m *machines) end(l leave, done bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.busy, l.Gone = false, done
	m.leaving[l.at()] = l
	m.newsLocked(l.key())
	m.wake()
	m.saveLocked()
}
