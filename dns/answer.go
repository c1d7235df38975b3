package dns

import (
	"math/rand/v2"
	"net/netip"
)

// Query is one question and who asks it.
type Query struct {
	Name   string // presentation form; a final dot may be missing
	Type   uint16 // as on the wire: 28 is AAAA
	Source netip.Addr
	Role   Role
}

// Role is which of a host's resolvers a query came to. The zero Role is the
// machines' resolver, <mesh>::3, which answers members of every carried network.
type Role struct {
	// Network, if valid, makes it the resolver of that network, <network>::3, which
	// answers only members of it.
	Network netip.Prefix
}

// Record types that the mesh's names know.
const (
	TypePTR  uint16 = 12
	TypeSOA  uint16 = 6
	TypeTXT  uint16 = 16
	TypeSRV  uint16 = 33
	TypeAAAA uint16 = 28
	TypeAXFR uint16 = 252
	TypeIXFR uint16 = 251
	TypeANY  uint16 = 255
)

// Rcode is the outcome of a query (RFC 1035, RFC 6891), as in a header.
type Rcode uint16

// The outcomes that this package produces.
const (
	NoError        Rcode = 0
	FormatError    Rcode = 1
	ServerFailure  Rcode = 2
	NameError      Rcode = 3 // NXDOMAIN
	NotImplemented Rcode = 4
	Refused        Rcode = 5
	badVersion     Rcode = 16
)

// Answer is what was decided about a query. At most one of Addrs, Ports, Texts,
// Text, Target, SOA and Minimal is set; with none of them and no Forward there is
// nothing to say but Rcode.
type Answer struct {
	Rcode   Rcode
	Forward bool // none of our names: ask the upstream resolvers

	TTL     uint32       // seconds, of what follows
	Addrs   []netip.Addr // AAAA, in this order
	Ports   []Service    // SRV, in this order
	Texts   []string     // TXT: several records, each as Text
	Text    string       // TXT: one record, strings of at most 255 bytes joined with nothing
	Target  string       // PTR
	SOA     bool         // the zone's own
	Minimal bool         // the name exists; the answer to ANY (RFC 8482)

	// Zone is the zone that the name is in, "internal." or one of the mesh's
	// reverse zones. An answer without a record carries its SOA.
	Zone string
}

// zoneName is where the mesh's names live.
const zoneName = "internal."

// Answer decides about q. It is pure: the same zone, facts, query and random
// numbers give the same answer, and whatever belongs to another org than q.Source
// has no influence on it.
func (z *Zone) Answer(f Facts, q Query, rnd *rand.Rand) Answer {
	labels, ok := splitName(q.Name)
	if !ok {
		return Answer{Rcode: FormatError}
	}
	a, _ := z.answer(f, q, labels, rnd)
	return a
}

// basis is what an answer rests on, besides zone, facts, name and type.
type basis struct {
	app   *app // whose machines these are; nil: of none
	under *app // that the name is under, so that nothing else of the org counts; nil: of none
	own   bool // the asker is a machine of app
	drawn bool // chance had a part in it
}

// answer is Answer for who has the labels already; q.Name is not looked at.
func (z *Zone) answer(f Facts, q Query, labels []string, rnd *rand.Rand) (Answer, basis) {
	return z.answerSeen(f, q, labels, rnd, nil)
}

// answerSeen tells seen, unless it is nil, what machines were chosen out of which.
func (z *Zone) answerSeen(f Facts, q Query, labels []string, rnd *rand.Rand, seen func(view, selection, []candidate)) (Answer, basis) {
	o := z.orgOf(q.Source)
	if o == nil || q.Role.Network.IsValid() && o.prefix != q.Role.Network {
		return Answer{Rcode: Refused}, basis{}
	}
	if q.Type == TypeAXFR || q.Type == TypeIXFR {
		return Answer{Rcode: Refused}, basis{}
	}
	v := view{org: o, zone: z, facts: f, asker: o.machineAt(q.Source), rnd: rnd}
	if z.strangers {
		v.asker = nil
	}
	zone, found := zoneName, thing{}
	switch {
	case hasSuffix(labels, "internal"):
		found = v.internal(labels[:len(labels)-1])
	case hasSuffix(labels, reverseSuffix...):
		zone, found = v.reverse(z.prefix, labels[:len(labels)-len(reverseSuffix)])
	default:
		found.kind = forwarded
	}
	b := basis{app: found.selection.app, under: found.under}
	b.own = b.app != nil && v.asker != nil && v.asker.app == b.app.name
	v.drawn, v.seen = &b.drawn, seen
	return v.answer(found, q.Type, zone), b
}

// kind says what stands at a name.
type kind uint8

const (
	nothing    kind = iota // no such name
	empty                  // a name in between, or one that has nothing now
	apex                   // a zone's own name
	addresses              // AAAA, of the selection
	services               // SRV, of the selection
	address                // AAAA, one
	text                   // TXT
	pointer                // PTR
	ownRecords             // what an org's own records say
	forwarded              // not ours
)

// thing is what stands at a name. Only what kind says is set.
type thing struct {
	kind      kind
	selection selection
	port      uint16
	addr      netip.Addr
	text      func() string
	target    string
	own       *own
	under     *app   // see basis
	atMost    uint32 // seconds that an alias lets the answer be kept; 0: as long as may be
}

// view is what one query sees.
type view struct {
	*org
	zone  *Zone
	facts Facts
	asker *instance // nil if the source is no machine
	rnd   *rand.Rand
	drawn *bool                              // set when chance decides
	seen  func(view, selection, []candidate) // told what was chosen; may be nil
}

func (v view) answer(t thing, qtype uint16, zone string) Answer {
	a := Answer{Zone: zone, TTL: defaultTTL}
	if t.kind == forwarded {
		return Answer{Forward: true}
	}
	if t.kind == nothing {
		a.Rcode, a.TTL = NameError, negativeTTL
		return a
	}
	if qtype == TypeANY && t.kind != empty {
		a.Minimal = true
		return a
	}
	switch {
	case t.kind == apex && qtype == TypeSOA:
		a.SOA = true
		return a
	case t.kind == addresses && qtype == TypeAAAA:
		a.Addrs, a.TTL = v.pick(t.selection), t.selection.app.ttl
	case t.kind == services && qtype == TypeSRV:
		a.Ports, a.TTL = v.services(t.selection, t.port), t.selection.app.ttl
	case t.kind == address && qtype == TypeAAAA:
		a.Addrs = []netip.Addr{t.addr}
	case t.kind == text && qtype == TypeTXT:
		a.Text = t.text()
	case t.kind == pointer && qtype == TypePTR:
		a.Target = t.target
	case t.kind == ownRecords:
		a.TTL = max(t.own.ttl, negativeTTL)
		switch qtype {
		case TypeAAAA:
			a.Addrs = t.own.addrs
		case TypeTXT:
			a.Texts = t.own.texts
		case TypeSRV:
			a.Ports = t.own.ports
		}
	}
	if t.atMost > 0 {
		a.TTL = min(a.TTL, t.atMost)
	}
	if len(a.Addrs) == 0 && len(a.Ports) == 0 && len(a.Texts) == 0 && a.Text == "" && a.Target == "" {
		a.TTL = negativeTTL
	}
	return a
}

// internal finds what stands at a name under internal.; labels are those before it.
func (v view) internal(labels []string) thing { return v.under(labels, 0) }

// under is internal, after a number of aliases.
func (v view) under(labels []string, aliases int) thing {
	if len(labels) == 0 {
		return thing{kind: apex}
	}
	first, rest := labels[len(labels)-1], labels[:len(labels)-1]
	switch first {
	case "_api", "_apps", "_peer", "_instances":
		return v.special(first, rest)
	case "host":
		return oneOf(v.hostAddr, rest)
	}
	if a, ok := v.apps.get(first); ok {
		t := v.underApp(a, rest)
		if aliases == 0 {
			t.under = a
		}
		return t
	}
	if t, ok := v.owned(labels, aliases); ok {
		return t
	}
	if foreign(labels) {
		return thing{kind: forwarded}
	}
	return thing{}
}

// special finds the names of the org as a whole.
func (v view) special(first string, rest []string) thing {
	switch {
	case first == "_peer" && len(rest) > 0:
		return oneOf(v.clientAddr, rest)
	case first == "_peer":
		return thing{kind: text, text: v.clientText}
	case first == "_instances" && len(rest) == 1 && rest[0] == "all":
		return thing{kind: text, text: func() string { return v.instanceText(true) }}
	case len(rest) > 0:
		return thing{}
	case first == "_instances":
		return thing{kind: text, text: func() string { return v.instanceText(false) }}
	case first == "_apps":
		return thing{kind: text, text: v.appText}
	case v.resolver.IsValid():
		return thing{kind: address, addr: v.resolver}
	}
	return thing{kind: empty}
}

// oneOf finds a name that is known to find, right under the name that it is for.
func oneOf(find func(name string) (netip.Addr, bool), labels []string) thing {
	switch len(labels) {
	case 0:
		return thing{kind: empty}
	case 1:
		if addr, ok := find(labels[0]); ok {
			return thing{kind: address, addr: addr}
		}
	}
	return thing{}
}

// reverse finds what stands at a name under ip6.arpa., and in which zone.
func (v view) reverse(mesh netip.Prefix, labels []string) (zone string, t thing) {
	digits := (mesh.Bits() + 3) / 4
	if len(labels) < digits {
		return "", thing{kind: forwarded}
	}
	at, ok := nibbles(labels[len(labels)-digits:])
	if !ok || !mesh.Contains(at.Addr()) {
		return "", thing{kind: forwarded}
	}
	zone = reverseZone(at.Addr(), digits)
	switch p, ok := nibbles(labels); {
	case len(labels) == digits:
		return zone, thing{kind: apex}
	case !ok || !v.anyIn(p):
		return zone, thing{}
	case p.IsSingleIP():
		name, _ := v.nameAt(p.Addr())
		return zone, thing{kind: pointer, target: name}
	}
	return zone, thing{kind: empty}
}
