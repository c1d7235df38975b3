package dns

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
)

const (
	// hotEntries bounds what one loop keeps.
	hotEntries = 1 << 15
	// drawnUses is how often an answer in which chance had a part is given before
	// it is drawn anew.
	drawnUses = 32
)

// hot keeps packed answers: what was asked once is copied and patched from then on,
// until the zone or the facts change. It belongs to one loop, so it needs no lock,
// and a hit allocates nothing.
type hot struct {
	s       *Server
	rnd     *rand.Rand
	zone    *Zone
	facts   Facts
	factsAt uintptr // where facts is: an equal map elsewhere changes nothing
	entries map[string]*hotEntry
	key     []byte
	counts  [16]uint64 // answers by rcode since the last flush
	dropped uint64
}

// hotEntry has the answers to one question of one org: to the machines of the app
// that the name is under, and to everybody else.
type hotEntry struct {
	app         *app
	own, others *hotAnswer
}

type hotAnswer struct {
	packed
	uses int // left; -1: no end
}

func (s *Server) newHot() *hot {
	return &hot{s: s, rnd: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), entries: map[string]*hotEntry{}}
}

// refresh drops what was kept when the zone or the facts have changed. It is called
// for each batch of packets.
func (h *hot) refresh() {
	if h.s.cfg.Zone == nil {
		return
	}
	zone, facts := h.s.cfg.Zone(), Facts(nil)
	if h.s.cfg.Facts != nil {
		facts = h.s.cfg.Facts()
	}
	at := reflect.ValueOf(facts).Pointer()
	if zone == h.zone && (at == h.factsAt || maps.Equal(facts, h.facts)) {
		h.facts, h.factsAt = facts, at
		return
	}
	h.zone, h.facts, h.factsAt = zone, facts, at
	clear(h.entries)
}

// flush adds what was counted to the server's counters.
func (h *hot) flush() {
	for code, n := range h.counts {
		if n > 0 {
			h.s.rcodes[code].Add(n)
		}
	}
	h.counts = [len(h.counts)]uint64{}
}

// answer writes the answer to a plain query about the mesh's names into buf, and
// returns nil if the query takes the long way.
func (h *hot) answer(buf, packet []byte, source netip.Addr, role Role) []byte {
	if h.zone == nil {
		return nil
	}
	q, ok := parsePlain(packet)
	if !ok || !source.Is6() || source.Zone() != "" {
		return nil
	}
	recursion := h.s.cfg.Forward != nil
	if role.Network.IsValid() && !role.Network.Contains(source) {
		return nil
	}
	from := source.As16()
	h.key = append(h.key[:0], from[:8]...)
	h.key = binary.BigEndian.AppendUint16(h.key, q.qtype)
	for _, c := range q.name {
		if 'A' <= c && c <= 'Z' { // a length is at most 63: below 'A'
			c += 'a' - 'A'
		}
		h.key = append(h.key, c)
	}
	var a *hotAnswer
	e := h.entries[string(h.key)]
	if e != nil {
		a = e.others
		if e.app != nil && h.isOwn(e.app, source) {
			a = e.own
		}
	}
	if a == nil || a.uses == 0 {
		if a = h.decide(q, source, role, e); a == nil {
			return nil
		}
	}
	if a.uses > 0 {
		a.uses--
	}
	out := a.reply(buf, q, recursion)
	if out != nil {
		h.counts[a.rcode&15]++
	}
	return out
}

func (h *hot) isOwn(a *app, source netip.Addr) bool {
	if h.zone.strangers {
		return false
	}
	o := h.zone.orgOf(source)
	if o == nil {
		return false
	}
	m := o.byAddr[source]
	return m != nil && m.app == a.name
}

// decide decides about q, and keeps the answer if others will ask the same: names
// that do not exist are without number.
func (h *hot) decide(q plain, source netip.Addr, role Role, e *hotEntry) *hotAnswer {
	if q.qtype == TypeANY {
		return nil
	}
	decision, basis := h.zone.answer(h.facts, Query{Type: q.qtype, Source: source, Role: role}, q.labels(), h.rnd)
	p, ok := pack(decision, q.name)
	if !ok {
		return nil
	}
	a := &hotAnswer{packed: p, uses: -1}
	if basis.drawn {
		a.uses = drawnUses
	}
	if decision.Rcode != NoError {
		return a
	}
	if e == nil {
		if len(h.entries) >= hotEntries {
			clear(h.entries)
		}
		e = &hotEntry{app: basis.app}
		h.entries[string(h.key)] = e
	}
	if basis.own {
		e.own = a
	} else {
		e.others = a
	}
	return a
}
