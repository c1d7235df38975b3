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
// until something changes that the answer rests on. It belongs to one loop, so it
// needs no lock, and a hit allocates nothing.
type hot struct {
	s       *Server
	rnd     *rand.Rand
	zone    *Zone
	at      uint64 // counts the zones that were seen
	facts   Facts
	factsAt uintptr           // where facts is: an equal map elsewhere changes nothing
	known   uint64            // counts the facts that were seen
	moved   map[string]uint64 // by host: known when its fact was another one last
	entries map[string]*hotEntry
	askers  map[[16]byte]hotAsker
	key     []byte
	counts  [16]uint64 // answers by rcode since the last flush
}

// hotEntry has the answers to one question of one org: to the machines of the app
// whose machines they are, and to everybody else.
type hotEntry struct {
	app         string // "": the answer has no machines
	own, others *hotAnswer
	rest        rest
}

// rest is what an entry rests on. It holds on to nothing that is large: a version of
// the org, of the app, of the hosts is told by the edit that made it.
type rest struct {
	at, known uint64   // of hot, when it was last found to be right
	fixed     *fixed   // a zone that was built anew shares nothing
	regions   *words   // it may go by a region
	hosts     *edition // Zone.hostsAt
	name      string   // of the org
	org       *edition // the version of it; if app is set, nothing else of the org counts
	app       string   // that the name is under
	made      *edition // the version of app
	used      []usedHost
}

type hotAnswer struct {
	packed
	uses int  // left; -1: no end
	long bool // for UDP; left to the long way
}

// hotAsker is the app whose machine an address is, "" if it is none.
type hotAsker struct {
	at  uint64
	app string
}

// hotAskers bounds how many askers one loop remembers.
const hotAskers = 1 << 12

func (s *Server) newHot() *hot {
	return &hot{
		s: s, rnd: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		entries: map[string]*hotEntry{}, moved: map[string]uint64{}, askers: map[[16]byte]hotAsker{},
	}
}

// refresh takes the zone and the facts that are in force. It is called for each batch
// of packets.
func (h *hot) refresh() {
	if h.s.cfg.Zone == nil {
		return
	}
	if zone := h.s.cfg.Zone(); zone != h.zone {
		h.zone = zone
		h.at++
	}
	facts := Facts(nil)
	if h.s.cfg.Facts != nil {
		facts = h.s.cfg.Facts()
	}
	if at := reflect.ValueOf(facts).Pointer(); at != h.factsAt {
		h.learn(facts)
		h.factsAt = at
	}
}

// learn finds the hosts of which something else is known now.
func (h *hot) learn(facts Facts) {
	before := h.facts
	h.facts = facts
	if maps.Equal(facts, before) {
		return
	}
	h.known++
	for name, f := range facts {
		if was, there := before[name]; !there || was != f {
			h.moved[name] = h.known
		}
	}
	for name := range before {
		if _, there := facts[name]; !there {
			h.moved[name] = h.known
		}
	}
	if len(h.moved) > 2*len(facts)+1024 { // hosts of former times
		clear(h.moved)
		clear(h.entries)
	}
}

// right reports whether an entry's answers are still those that the zone and the
// facts lead to; network is the first eight bytes of an address in the org's.
func (h *hot) right(r *rest, network []byte) bool {
	if r.at == h.at && r.known == h.known {
		return true
	}
	z := h.zone
	if r.at != h.at && (r.fixed != z.fixed || r.regions != z.regions || !h.same(r, network)) {
		return false
	}
	if r.known != h.known {
		if r.app == "" {
			return false
		}
		for _, u := range r.used {
			if h.moved[u.name] > r.known {
				return false
			}
		}
	}
	r.at, r.known = h.at, h.known
	return true
}

// same reports whether what an entry rests on is the same in the zone of now.
func (h *hot) same(r *rest, network []byte) bool {
	z := h.zone
	o := z.orgWith(network)
	switch {
	case o == nil || o.name != r.name:
		return false
	case r.app == "":
		return r.org == o.made && r.hosts == z.hostsAt
	}
	if a, ok := o.apps.get(r.app); !ok || a.made != r.made {
		return false
	}
	if r.hosts != z.hostsAt {
		for _, u := range r.used {
			if now, _ := z.hosts.get(u.name); now != u.host {
				return false
			}
		}
		r.hosts = z.hostsAt
	}
	return true
}

// restOf is what an answer of now rests on.
func (h *hot) restOf(network []byte, under *app) rest {
	z := h.zone
	r := rest{at: h.at, known: h.known, fixed: z.fixed, regions: z.regions, hosts: z.hostsAt}
	if o := z.orgWith(network); o != nil {
		r.name, r.org = o.name, o.made
	}
	if under != nil {
		r.app, r.made, r.used = under.name, under.made, under.roster(z).used
	}
	return r
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
	e := h.entries[string(h.key)]
	if e != nil && !h.right(&e.rest, h.key[:networkBits/8]) {
		e = nil
	}
	var a *hotAnswer
	if e != nil {
		a = e.others
		if e.app != "" && h.appOf(source) == e.app {
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
	if a.long {
		return nil
	}
	out := a.reply(buf, q, recursion)
	if out != nil {
		h.counts[a.rcode&15]++
	}
	return out
}

// appOf returns the app whose machine source is, "" if it is none.
func (h *hot) appOf(source netip.Addr) string {
	if h.zone.strangers {
		return ""
	}
	key := source.As16()
	asker, there := h.askers[key]
	if there && asker.at == h.at {
		return asker.app
	}
	asker = hotAsker{at: h.at}
	if o := h.zone.orgOf(source); o != nil {
		if m := o.machineAt(source); m != nil {
			asker.app = m.app
		}
	}
	if !there && len(h.askers) >= hotAskers {
		clear(h.askers)
	}
	h.askers[key] = asker
	return asker.app
}

// decide decides about q, and keeps the answer if others will ask the same: names
// that do not exist are without number. e is the entry that is right but lacks it, or
// nil.
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
	if len(p.records) > udpSize {
		a.long, a.records = true, nil
	}
	if decision.Rcode != NoError {
		return a
	}
	if e == nil {
		if len(h.entries) >= hotEntries {
			clear(h.entries)
		}
		e = &hotEntry{rest: h.restOf(h.key[:networkBits/8], basis.under)}
		if basis.app != nil {
			e.app = basis.app.name
		}
		h.entries[string(h.key)] = e
	}
	if basis.own {
		e.own = a
	} else {
		e.others = a
	}
	return a
}
