package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/check"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/attach"
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
// What the controllers say meanwhile decides its fate (judge): it may move to
// another host, be removed, or be unknown to controllers that were restored from
// an older state; then it is registered again (adopt).
//
// A machine whose link is there and whose process has not come back yet (after a
// restart of the agent) is neither: its link says that it lives.
type machines struct {
	host    string
	dir     string
	request func(ctx context.Context, method, path string, in, out any) error
	reclaim time.Duration
	keep    bool           // fault injection: records of machines that ended stay
	contact func() contact // with the controllers; nil: as good as it can be
	wake    func()         // the loop: see news
	recheck func()         // the loop, for a whole pass; nil: wake
	log     *slog.Logger

	kick     chan struct{} // wakes the worker that removes records
	adopting chan struct{} // has an element for each adoption that is under way

	mu      sync.Mutex // guards what follows
	stays   map[string]*stay
	leaving map[string]leave     // by leave.at
	removed map[string]uint64    // by an operator: key and the namespace that had it
	missing map[string]time.Time // of this host, with neither process nor link: since when
	swept   map[string]bool      // by this agent: nothing stood for them
	unknown map[string]time.Time // links that no view knows and no process has claimed: since when
	began   *mesh.Revision       // of the view on disk that the agent started from
	news    map[string]bool      // machines of which the loop does not know all yet
	changed signal               // leaving or stays
	beats   signal               // health of a machine here
	maskOf  *mesh.View           // nil: mask anew
	masked  *mesh.View
}

// stay is a machine with a process. What is in it belongs to machines.mu; its
// goroutine is the only one that changes record.
type stay struct {
	key  string
	link string
	ns   uint64 // inode of its namespace
	pid  int32  // of the process that attached it
	standing

	attached attach.Machine // its link, as it was made; zero: it is being made
	unlinked chan struct{}  // has an element when the link has gone

	ready chan struct{} // closed when the process of one that is coming can serve
	can   bool          // ready is closed
	lost  chan struct{} // has an element when it is to be adopted
	asked bool          // since lost was told
	over  chan struct{} // closed when fate is known to be another than to stay
	fate  fate
	host  string // where it went, with fateMoved

	watch   *check.Watch // nil: nobody looks at it
	earlier bool         // its process ran before somebody looked: it may have passed
	drains  bool         // its process is about to end
}

// registered reports whether it is known which record is the machine's. Until then it is
// what it is without a process: what its link carries is not held up by the controllers.
func (s *stay) registered() bool { return s != nil && s.record.Endpoint.IsValid() }

func openMachines(m *machines) (*machines, error) {
	m.kick, m.adopting = make(chan struct{}, 1), make(chan struct{}, adoptions)
	m.stays, m.leaving, m.removed = map[string]*stay{}, map[string]leave{}, map[string]uint64{}
	m.missing, m.unknown, m.swept = map[string]time.Time{}, map[string]time.Time{}, map[string]bool{}
	m.news = map[string]bool{}
	if m.contact == nil {
		m.contact = func() contact { return contact{} }
	}
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
		m.leaving[l.at()] = l
	}
	m.kicked()
	return m, nil
}

// plan decides what the firewall lets in and which links are left over, and finds
// the machines that ended without a word. It is called by the loop with each view.
func (m *machines) plan(v *mesh.View, found []attach.Found, c contact) (in []peers.Attachment, leftover []string) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.fromCache && m.began == nil {
		m.began = &v.Revision
	}
	here := map[string]mesh.Machine{} // those of this host, and (leave.at) those that are to come
	links := map[string]string{}      // link: key
	for _, r := range v.Machines {
		switch m.host {
		case r.Host:
			here[machineKey(r)] = r
			links[attach.LinkName(r.Org, r.ID)] = machineKey(r)
		case r.Next:
			here[machineKey(r)+offSuffix] = r
		}
	}
	in = m.judgeLocked(v, c)
	there := map[string]bool{}
	for _, f := range found {
		key := links[f.Link]
		there[key] = true
		s := m.stayAtLocked(f.Link)
		if s.registered() {
			delete(m.unknown, f.Link)
			continue
		}
		r, known := here[key]
		switch {
		case known && !m.leavesLocked(r):
			delete(m.unknown, f.Link)
			in = append(in, peers.Attachment{Link: f.Link, Endpoint: r.Endpoint})
		case c.fromCache:
		case !known && m.mayBeLostLocked(f.Link, v, c, now):
			if f.Endpoint.IsValid() {
				in = append(in, peers.Attachment{Link: f.Link, Endpoint: f.Endpoint})
			}
		case s == nil:
			leftover = append(leftover, f.Link)
		}
	}
	m.sweepLocked(here, there, now)
	m.forgetLocked(here)
	return in, leftover
}

// judgeLocked decides the fate of the machines with a process, and returns what of
// them the firewall lets in.
func (m *machines) judgeLocked(v *mesh.View, c contact) (in []peers.Attachment) {
	told := v
	if c.told != nil {
		told = c.told
	}
	inEffect, inTold := m.shownLocked(v), map[string]*mesh.Machine(nil)
	if inTold = inEffect; told != v {
		inTold = m.shownLocked(told)
	}
	for key, s := range m.stays {
		if !s.registered() {
			continue
		}
		seen := sight{host: m.host, effect: inEffect[key], told: inTold[key], epoch: told.Revision.Epoch, current: !c.fromCache, org: hasOrg(v, s.record.Org)}
		if s.fate == fateStays {
			m.decideLocked(s, seen)
		}
		if s.fate.delivers() {
			in = append(in, peers.Attachment{Link: s.link, Endpoint: s.record.Endpoint})
		}
	}
	return in
}

// shownLocked returns the records of a view whose machines have a process here.
func (m *machines) shownLocked(v *mesh.View) map[string]*mesh.Machine {
	out := make(map[string]*mesh.Machine, len(m.stays))
	for i := range v.Machines {
		if key := machineKey(v.Machines[i]); m.stays[key] != nil {
			out[key] = &v.Machines[i]
		}
	}
	return out
}

func (m *machines) decideLocked(s *stay, v sight) {
	f, host := judge(s.standing, v)
	if r := v.effect; f == fateStays && r != nil {
		s.seen = s.seen || shows(r, v.host, s.record) || s.coming && r.Next == v.host
		s.next = ""
		if r.Next != v.host {
			s.next = r.Next
		}
	}
	switch f {
	case fateStays:
		if v.current && shows(v.told, v.host, s.record) {
			s.epoch, s.asked = v.epoch, false
		}
		return
	case fateLost:
		if !s.asked {
			s.asked = true
			m.log.Warn("machine is unknown to controllers that were restored", "machine", s.key, "addr", s.record.Address().String())
			s.lost <- struct{}{}
		}
		return
	case fateMoved:
		m.log.Info("machine moved to another host", "machine", s.key, "host", host)
	case fateRemoved:
		m.log.Info("machine was removed by an operator", "machine", s.key)
		m.removed[s.key] = s.ns
		delete(m.stays, s.key)
	case fateGone:
		m.log.Info("machine is not this host's any more, and its org not carried: the controllers are asked why", "machine", s.key)
	case fateOff:
		m.log.Info("move was called off", "machine", s.key)
	}
	s.fate, s.host = f, host
	close(s.over)
	m.changed.fire()
}

// needs returns the orgs that machines here need though the controllers may not
// show them to this host any more: what is under way to one that has moved is still
// delivered, and one that is to be adopted goes on.
func (m *machines) needs() (orgs []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.stays {
		if s.fate == fateMoved || s.asked || s.coming {
			orgs = append(orgs, s.record.Org)
		}
	}
	return orgs
}

// mayBeLostLocked reports whether a link that no view knows may be that of a machine
// that controllers forgot when they were restored, while the agent was down: its
// process has a while to come back and say so.
func (m *machines) mayBeLostLocked(link string, v *mesh.View, c contact, now time.Time) bool {
	told := v
	if c.told != nil {
		told = c.told
	}
	if m.began == nil || told.Revision.Epoch <= m.began.Epoch {
		return false
	}
	since, before := m.unknown[link]
	if !before {
		m.unknown[link] = now
		time.AfterFunc(m.reclaim, m.again)
		return true
	}
	return now.Sub(since) < m.reclaim
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
// was switched off, or agent and machine died together, maybe in a move.
func (m *machines) sweepLocked(here map[string]mesh.Machine, there map[string]bool, now time.Time) {
	for at := range m.missing {
		if _, known := here[at]; !known {
			delete(m.missing, at)
		}
	}
	for at, r := range here {
		m.sweepOneLocked(at, r, there[at], now)
	}
}

func (m *machines) sweepOneLocked(at string, r mesh.Machine, there bool, now time.Time) {
	off := at != machineKey(r)
	if m.stays[machineKey(r)] != nil || there || m.leavesLocked(r) || off && m.offLocked(r) {
		delete(m.missing, at)
		return
	}
	since, before := m.missing[at]
	if !before {
		m.missing[at] = now
		time.AfterFunc(m.reclaim, m.again)
		return
	}
	if now.Sub(since) >= m.reclaim {
		m.log.Info("machine has ended: nothing of it is here", "machine", machineKey(r), "moving", off)
		delete(m.missing, at)
		m.swept[at] = true
		m.leaveLocked(r, off)
	}
}

// again asks for a whole pass.
func (m *machines) again() {
	if m.recheck != nil {
		m.recheck()
		return
	}
	m.wake()
}

// mask returns v without the machines that ended here: their names go at once,
// whatever becomes of the record. And it has the health of those that are here as
// this host sees it now. The same v gives the same result until one of that changes.
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
	if health, records := m.ownHealthLocked(m.masked); len(health)+len(records) > 0 {
		w := m.masked.Apply(mesh.Delta{Revision: m.masked.Revision, Health: health, Machines: records})
		m.masked = &w
	}
	return m.masked
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
