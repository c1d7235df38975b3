package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/peers"
)

// machines knows the machines of a host: those whose process holds a connection
// (stays), and those that ended and whose record at the controllers is still to be
// removed (leaving).
//
//	         attach                connection ends          record removed
//	nothing --------> registering ... in effect ----> leaving ------------> nothing
//	                       ^                              |
//	                       '---- attached again ----------'
//
// A machine whose link is there and whose process has not come back yet (after a
// restart of the agent) is neither: its link says that it lives.
type machines struct {
	host    string
	dir     string
	request func(ctx context.Context, method, path string, in, out any) error
	reclaim time.Duration
	keep    bool // fault injection: records of machines that ended stay
	wake    func()
	log     *slog.Logger

	kick chan struct{} // wakes the worker that removes records

	mu      sync.Mutex // guards what follows
	stays   map[string]*stay
	leaving map[string]leave
	removed map[string]uint64    // by an operator: key and the namespace that had it
	missing map[string]time.Time // of this host, with neither process nor link: since when
	changed signal               // leaving or stays
	maskOf  *mesh.View           // nil: mask anew
	masked  *mesh.View
}

// stay is a machine with a process.
type stay struct {
	key     string
	record  mesh.Machine // zero until registered
	link    string
	ns      uint64        // inode of its namespace
	seen    bool          // it was in a view: when it is not any more, it was removed
	removed chan struct{} // closed when an operator removed it
}

// leave is a record that is to go.
type leave struct {
	Org     string    `json:"org"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"` // of the record: one made anew later is another one
	// Gone: the record is removed, but the view may still show it.
	Gone bool `json:"gone,omitempty"`

	busy bool // a request is under way
}

func (l leave) key() string { return l.Org + "/" + l.ID }

const leavingFile = "leaving.json"

func openMachines(m *machines) (*machines, error) {
	m.kick = make(chan struct{}, 1)
	m.stays, m.leaving, m.removed, m.missing = map[string]*stay{}, map[string]leave{}, map[string]uint64{}, map[string]time.Time{}
	b, err := os.ReadFile(filepath.Join(m.dir, leavingFile))
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	var list []leave
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil {
		// What it named is found again: in the view, without a link.
		m.log.Warn("machines that ended: list not read", "err", err)
		return m, nil
	}
	for _, l := range list {
		m.leaving[l.key()] = l
	}
	m.kicked()
	return m, nil
}

func (m *machines) kicked() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// saveLocked keeps the list of records to remove: a restart must not forget them.
func (m *machines) saveLocked() {
	list := slices.SortedFunc(maps.Values(m.leaving), func(a, b leave) int {
		if a.key() < b.key() {
			return -1
		}
		return 1
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

// plan decides what the firewall lets in and which links are left over, and finds
// the machines that ended without a word. It is called by the loop with each view.
func (m *machines) plan(v *mesh.View, found []attach.Found, c contact) (in []peers.Attachment, leftover []string) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	here := map[string]mesh.Machine{}
	links := map[string]string{} // link: key
	for _, r := range v.Machines {
		if r.Host == m.host {
			here[machineKey(r)] = r
			links[attach.LinkName(r.Org, r.ID)] = machineKey(r)
		}
	}
	for key, s := range m.stays {
		r, known := here[key]
		switch {
		case known && r.Endpoint == s.record.Endpoint:
			s.seen = true
		case s.seen && s.record.Endpoint.IsValid() && !c.fromCache:
			m.log.Info("machine was removed by an operator", "machine", key)
			close(s.removed)
			m.removed[key] = s.ns
			delete(m.stays, key)
			m.changed.fire()
			continue
		}
		if s.record.Endpoint.IsValid() {
			in = append(in, peers.Attachment{Link: s.link, Endpoint: s.record.Endpoint})
		}
	}
	there := map[string]bool{}
	for _, f := range found {
		key := links[f.Link]
		there[key] = true
		if s := m.stayAtLocked(f.Link); s != nil {
			continue
		}
		if r, known := here[key]; known && !m.leavesLocked(r) {
			in = append(in, peers.Attachment{Link: f.Link, Endpoint: r.Endpoint})
		} else if !c.fromCache {
			leftover = append(leftover, f.Link)
		}
	}
	m.sweepLocked(here, there, now)
	m.forgetLocked(here)
	return in, leftover
}

func (m *machines) stayAtLocked(link string) *stay {
	for _, s := range m.stays {
		if s.link == link {
			return s
		}
	}
	return nil
}

// sweepLocked finds records of this host that nothing stands for any more: the host
// was switched off, or agent and machine died together.
func (m *machines) sweepLocked(here map[string]mesh.Machine, there map[string]bool, now time.Time) {
	for key := range m.missing {
		if _, known := here[key]; !known {
			delete(m.missing, key)
		}
	}
	for key, r := range here {
		if m.stays[key] != nil || there[key] || m.leavesLocked(r) {
			delete(m.missing, key)
			continue
		}
		since, before := m.missing[key]
		if !before {
			m.missing[key] = now
			time.AfterFunc(m.reclaim, m.wake)
			continue
		}
		if now.Sub(since) >= m.reclaim {
			m.log.Info("machine has ended: nothing of it is here", "machine", key)
			delete(m.missing, key)
			m.leaveLocked(r)
		}
	}
}

// forgetLocked forgets the records that are gone and that the view does not show
// any more.
func (m *machines) forgetLocked(here map[string]mesh.Machine) {
	before := len(m.leaving)
	for key, l := range m.leaving {
		if r, shown := here[key]; l.Gone && !(shown && l.Created.Equal(r.Created)) {
			delete(m.leaving, key)
		}
	}
	if len(m.leaving) != before {
		m.saveLocked()
	}
}

// mask returns v without the machines that ended here: their names go at once,
// whatever becomes of the record. The same v gives the same result until a machine
// ends.
func (m *machines) mask(v *mesh.View) *mesh.View {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.maskOf == v {
		return m.masked
	}
	m.maskOf, m.masked = v, v
	gone := func(r mesh.Machine) bool { return r.Host == m.host && m.leavesLocked(r) }
	if slices.ContainsFunc(v.Machines, gone) {
		w := *v
		w.Machines = slices.DeleteFunc(slices.Clone(v.Machines), gone)
		m.masked = &w
	}
	return m.masked
}

// leavesLocked reports whether exactly this record is to go.
func (m *machines) leavesLocked(r mesh.Machine) bool {
	l, leaves := m.leaving[machineKey(r)]
	return leaves && l.Created.Equal(r.Created)
}

// leaveLocked notes that a machine ended.
func (m *machines) leaveLocked(r mesh.Machine) {
	if m.keep {
		return
	}
	m.leaving[machineKey(r)] = leave{Org: r.Org, ID: r.ID, Created: r.Created}
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
		err := m.request(ctx, http.MethodDelete, machinePath(l.Org, l.ID), nil, nil)
		// On another host, or not ours any more: then it is not ours to remove.
		done := err == nil || errors.Is(err, api.ErrNotFound) || errors.Is(err, api.ErrConflict) || errors.Is(err, api.ErrForbidden)
		m.end(l, done)
		switch {
		case ctx.Err() != nil:
			return
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
	for _, key := range slices.Sorted(maps.Keys(m.leaving)) {
		// One whose name is being used again is not to be removed under its user.
		if l := m.leaving[key]; !l.Gone && m.stays[key] == nil {
			l.busy = true
			m.leaving[key] = l
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
	m.leaving[l.key()] = l
	m.saveLocked()
}

func machinePath(org, id string) string {
	p := "/v1/orgs/" + url.PathEscape(org) + "/machines"
	if id != "" {
		p += "/" + url.PathEscape(id)
	}
	return p
}

// errBusy says that a machine of that name has a process already.
func errBusy(key string) error {
	return &api.Error{
		Status: http.StatusConflict, Code: api.ErrConflict.Code, Message: fmt.Sprintf("machine %s: it is attached already, by another process", key),
		Advice: "choose another --name, or end the other one",
	}
}
