package agent

import (
	"net/netip"
	"strings"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers"
)

// newsLocked notes that something changed about a machine that the loop has to act
// on.
func (m *machines) newsLocked(key string) { m.news[key] = true }

// takeNews returns the machines of which there is news since the last time.
func (m *machines) takeNews() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.news
	m.news = map[string]bool{}
	return out
}

// shift is what changes of the view and of the machines' processes mean for the
// machines here: plan for those alone that they name.
type shift struct {
	machines *machines
	want     *wants
	found    map[string]bool                            // links that the last whole pass saw and no process has claimed
	told     map[string]*mesh.Machine                   // as touched.machines
	in       func(link string) (peers.Attachment, bool) // that the firewall knows
	epoch    uint32
	current  bool // a controller has spoken since the start
	now      time.Time

	before, after []peers.Attachment      // that the firewall loses and gets
	shown         map[string]mesh.Machine // by link of after or what stays: as the view shows it
}

// decide looks at the machines of these keys. It is false if only a whole pass can
// tell.
func (s *shift) decide(keys map[string]bool) bool {
	m := s.machines
	m.mu.Lock()
	defer m.mu.Unlock()
	left := len(m.leaving)
	for key := range keys {
		if !s.decideOneLocked(key) {
			return false
		}
	}
	if len(m.leaving) != left {
		m.saveLocked()
	}
	return true
}

func (s *shift) decideOneLocked(key string) bool {
	m := s.machines
	org, id, _ := strings.Cut(key, "/")
	link := attach.LinkName(org, id)
	r, here := s.want.here[key]
	ours := here && r.Host == m.host
	now, has := peers.Attachment{Link: link}, false
	stay := m.stays[key]
	switch {
	case stay != nil && stay.link != link:
		return false
	case stay.registered():
		now.Endpoint, has = s.ofStayLocked(key, stay)
		delete(s.found, link)
	case s.found[link]:
		if !ours || m.leavesLocked(r) {
			return false // left over
		}
		now.Endpoint, has = r.Endpoint, true
	}
	was, had := s.in(link)
	if had && !(has && was == now) {
		s.before = append(s.before, was)
	}
	if has && !(had && was == now) {
		s.after = append(s.after, now)
	}
	if has {
		s.shown[link] = mesh.Machine{}
		if here && !m.leavesLocked(r) {
			s.shown[link] = r
		}
	}
	s.recordsLocked(key, r, ours, here && !ours)
	return true
}

// ofStayLocked decides the fate of a machine with a process, and what of it the
// firewall lets in.
func (s *shift) ofStayLocked(key string, stay *stay) (endpoint netip.Prefix, in bool) {
	m := s.machines
	effect, told := s.told[key]
	if !told {
		if r, here := s.want.here[key]; here {
			effect, told = &r, true
		}
	}
	if told && stay.fate == fateStays {
		m.decideLocked(stay, sight{host: m.host, effect: effect, told: effect, epoch: s.epoch, current: s.current, org: s.carries(stay.record.Org)})
	}
	return stay.record.Endpoint, stay.fate.delivers()
}

func (s *shift) carries(org string) bool { _, ok := s.want.orgs[org]; return ok }

// recordsLocked looks for records that nothing stands for, and forgets those that
// have gone.
func (s *shift) recordsLocked(key string, r mesh.Machine, ours, comes bool) {
	m := s.machines
	for _, x := range []struct {
		at    string
		shown bool
	}{{key, ours}, {key + offSuffix, comes}} {
		m.forgetOneLocked(x.at, r, x.shown)
		if !x.shown {
			delete(m.missing, x.at)
			continue
		}
		m.sweepOneLocked(x.at, r, x.at == key && s.found[attach.LinkName(r.Org, r.ID)], s.now)
	}
}
