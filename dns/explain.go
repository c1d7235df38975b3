package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Considered is one machine that a name means, and why it is in the answer or not.
type Considered struct {
	Machine, App, Host, Region string
	Addr                       netip.Addr
	// Distance is the round trip that the order goes by; Basis says where it is from:
	// "here", "measured", "estimated" from where the regions lie, or "unknown", which
	// is farther than everything.
	Distance time.Duration
	Basis    string
	// Position in the answer, from 1; 0: not in it, and Reason says why.
	Position int
	Reason   string
}

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
		e.Position = i + 1
		out = append(out, e)
	}
	var rest []candidate
	for _, m := range s.machines {
		if !hasMachine(chosen, m) {
			rest = append(rest, v.candidate(m))
		}
	}
	slices.SortStableFunc(rest, func(a, b candidate) int { return int(min(max(a.distance-b.distance, -1), 1)) })
	for _, c := range rest {
		e := v.considered(c)
		switch {
		case !hasMachine(usable, c.machine):
			e.Reason = c.why()
		case hasMachine(alive, c.machine) && s.top > 0:
			e.Reason = "others are nearer: the name asks for fewer"
		case hasMachine(alive, c.machine) && s.app.mode == modeCount:
			e.Reason = "others are nearer: the app is set to answer fewer"
		case hasMachine(alive, c.machine):
			e.Reason = "it is farther than 5 ms and half again beyond the nearest"
		case c.dead:
			e.Reason = "its host is dead: it answers no probes and no controller has heard of it"
		default:
			e.Reason = "its host does not answer probes"
		}
		out = append(out, e)
	}
	return a, out
}

func hasMachine(cs []candidate, m *machine) bool {
	return slices.ContainsFunc(cs, func(c candidate) bool { return c.machine == m })
}

// why says what keeps a machine out of every answer.
func (m *machine) why() string {
	switch {
	case m.host.cordoned:
		return "its host is cordoned"
	case !m.started:
		return "it is not started"
	}
	return "it fails its checks"
}

func (v view) candidate(m *machine) candidate { return candidateOf(v.facts, m) }

func (v view) considered(c candidate) Considered {
	e := Considered{
		Machine: c.id, App: c.app, Host: c.host.name, Region: c.host.region, Addr: c.addr, Distance: c.distance, Basis: "estimated",
	}
	switch {
	case c.host.self:
		e.Basis = "here"
	case v.facts[c.host.name].RTT > 0:
		e.Basis = "measured"
	case c.distance >= unknownDistance:
		e.Basis, e.Distance = "unknown", 0
	}
	return e
}
