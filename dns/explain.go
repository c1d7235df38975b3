package dns

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Considered is one machine that a name means, and why it is in the answer or not.
type Considered struct {
	Machine, App, Host, Region string
	Addr                       netip.Addr
	// Distance is the round trip that the order goes by, and Basis what it rests on.
	Distance      time.Duration
	Basis         Basis
	Suspect, Dead bool // its host, see Fact
	// Position in the answer, from 1; 0: not in it. Reason says why.
	Position int
	Reason   string
}

// Basis is what a distance rests on.
type Basis string

// The bases.
const (
	Here        Basis = "here"        // the host that answers: 0
	Measured    Basis = "measured"    // the round trip through the tunnel
	Coordinates Basis = "coordinates" // not measured yet: what the hosts' coordinates suggest
	Geography   Basis = "geography"   // no coordinates either: where the regions lie
	Unknown     Basis = "unknown"     // nothing: farther than everything, and Distance is 0
)

// Explain is Answer, with all the machines that the name means: those of the answer
// in its order, then the others by distance. There are none for names that are not
// answered by machines. With the same rnd as Answer it explains that very answer.
func (z *Zone) Explain(f Facts, q Query, rnd *rand.Rand) (Answer, []Considered) {
	labels, ok := splitName(q.Name)
	if !ok {
		return Answer{Rcode: FormatError}, nil
	}
	var chosen []candidate
	var s selection
	var v view
	a, b := z.answerSeen(f, q, labels, rnd, func(seen view, of selection, cs []candidate) { v, s, chosen = seen, of, slices.Clone(cs) })
	if b.app == nil || s.app == nil {
		return a, nil
	}
	own := b.own && s.top == 0
	usable := candidates(f, s.machines)
	alive := leaveOut(slices.Clone(usable), own)
	var out []Considered
	for i, c := range chosen {
		e := v.considered(c)
		e.Position, e.Reason = i+1, s.whyIn(own)
		if !own && (c.dead || c.suspect) {
			e.Reason = "its host does not answer probes, but no better one is left"
		}
		out = append(out, e)
	}
	var rest []candidate
	for _, m := range s.machines {
		if !hasMachine(chosen, m) {
			rest = append(rest, v.candidate(m))
		}
	}
	slices.SortStableFunc(rest, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
	for _, c := range rest {
		e := v.considered(c)
		e.Reason = s.whyOut(c, hasMachine(usable, c.machine), hasMachine(alive, c.machine))
		out = append(out, e)
	}
	return a, out
}

// whyIn says why the machines of an answer are in it; own: the asker is of their app.
func (s selection) whyIn(own bool) string {
	switch {
	case own:
		return "the asker is of the same app, and gets all of it"
	case s.top > 0:
		return fmt.Sprintf("the name asks for the nearest %d", s.top)
	case s.whole && s.app.mode == modeCount:
		return fmt.Sprintf("the app is set to answer the nearest %d", s.app.limit)
	case s.whole && s.app.mode == modeNear:
		return "it is within 5 ms or half again of the nearest"
	case s.whole:
		return "the app is set to answer all"
	}
	return "the name means all of them"
}

// whyOut says why one is not; usable and alive are what candidates and leaveOut made
// of it.
func (s selection) whyOut(c candidate, usable, alive bool) string {
	switch {
	case !usable:
		return c.why()
	case alive && s.top > 0:
		return "others are nearer: the name asks for fewer"
	case alive && s.app.mode == modeCount:
		return "others are nearer: the app is set to answer fewer"
	case alive:
		return "it is farther than 5 ms and half again beyond the nearest"
	case c.dead:
		return "its host is dead: it answers no probes and no controller has heard of it"
	}
	return "its host does not answer probes"
}

func hasMachine(cs []candidate, m *machine) bool {
	return slices.ContainsFunc(cs, func(c candidate) bool { return c.id == m.id })
}

// why says what keeps a machine out of every answer.
func (m *machine) why() string {
	switch {
	case m.host.cordoned:
		return "its host is cordoned"
	case m.cordoned:
		return "it is cordoned"
	case !m.started:
		return "it is not started"
	}
	return "it fails its checks"
}

func (v view) candidate(m *machine) candidate { return candidateOf(v.facts, m) }

func (v view) considered(c candidate) Considered {
	e := Considered{
		Machine: c.id, App: c.app, Host: c.host.name, Region: c.host.region, Addr: c.addr,
		Basis: Here, Suspect: c.suspect, Dead: c.dead,
	}
	if !c.host.self {
		e.Distance, e.Basis = v.facts[c.host.name].distance(c.host.estimate)
	}
	if e.Basis == Unknown {
		e.Distance = 0
	}
	return e
}

// Data is what the answer's records hold, each as in a zone file, in order.
func (a Answer) Data() []string {
	var out []string
	for _, addr := range a.Addrs {
		out = append(out, addr.String())
	}
	for _, s := range a.Ports {
		out = append(out, fmt.Sprintf("%d %d %d %s", s.Priority, s.Weight, s.Port, s.Target))
	}
	for _, text := range a.Texts {
		out = append(out, strconv.Quote(text))
	}
	if a.Text != "" {
		out = append(out, strconv.Quote(a.Text))
	}
	if a.Target != "" {
		out = append(out, a.Target)
	}
	return out
}

// TypeCode returns the number of a record type's mnemonic, such as AAAA.
func TypeCode(mnemonic string) (code uint16, ok bool) {
	code, ok = dns.StringToType[strings.ToUpper(mnemonic)]
	return code, ok
}
