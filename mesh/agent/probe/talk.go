package probe

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// talk is what two ends say to each other besides round trips.
type talk struct {
	heard    time.Time // anything of the other end came through the tunnel
	began    time.Time // since then it has come without a long pause
	hears    Hearing   // what it said last of how it hears this node
	said     time.Time
	through  netip.Addr // of the host that passed it on
	decrypts bool       // see Hearing
	told     time.Time  // a third host was last asked to pass on

	way   Way
	since time.Time
}

// hear takes what came from the other end itself.
func (t *talk) hear(h Hearing, kind Kind, now time.Time, pause time.Duration) {
	if t.heard.IsZero() || now.Sub(t.heard) > pause {
		t.began = now
	}
	t.heard = now
	if kind <= Reply && h.Said {
		t.hears, t.said, t.through = h, now, netip.Addr{}
	}
}

// passedOn takes what the other end said through a third host.
func (t *talk) passedOn(h Hearing, through netip.Addr, now time.Time) {
	if h.Said {
		t.hears, t.said, t.through = h, now, through
	}
}

// hearing is what this node says of the other end.
func (t *talk) hearing(now time.Time) Hearing {
	h := Hearing{Said: true, Age: Never, Decrypts: t.decrypts}
	if !t.heard.IsZero() {
		h.Age = max(now.Sub(t.heard), 0)
	}
	return h
}

func (t *talk) flags(now time.Time) uint16 { return FlagHoldsData | t.hearing(now).Flags() }

// judge says which directions work. What comes from others is passed on every second:
// it is fresh for a while longer.
func (s *state) judge(now time.Time, patience time.Duration) {
	age := func(at time.Time) time.Duration {
		if at.IsZero() {
			return Never
		}
		return max(now.Sub(at), 0)
	}
	e := Exchange{Silent: s.tracker.Suspect() || s.tracker.RTT() == 0, Heard: age(s.talk.heard), Said: age(s.talk.said), Hears: s.talk.hears}
	way := e.Way(patience + s.tracker.RTT())
	switch {
	case s.tracker.RTT() == 0 && !s.tracker.Suspect():
		way = WayUnknown // the first answers are still waited for
	case way == WayLostOut && s.talk.way != WayLostOut && s.tracker.Unanswered(s.talk.began, now) < lostSince:
		way = WayUnknown // it has just come back, and was hardly asked since
	}
	if way != s.talk.way {
		s.talk.way, s.talk.since = way, now
	}
}

func (s *state) result() Result {
	r := Result{RTT: s.tracker.RTT(), Suspect: s.tracker.Suspect(), Way: s.talk.way}
	if r.Suspect {
		r.SuspectSince = s.tracker.SuspectSince()
	}
	if r.Way.OneWay() {
		r.WaySince = s.talk.since
	}
	if s.path != nil {
		r.MTU, r.Tiny = s.path.MTU()
	}
	return r
}

// lostSince is how many own probes must be lost, since the other end is heard, until
// what is sent is said to be lost.
const lostSince = 2

const (
	tellEvery = 500 * time.Millisecond
	tellBy    = 2 // third hosts that are asked to pass a thing on
)

// tells are what third hosts are to pass on to those that do not hear this node: they
// cannot know that they are heard.
func (p *Prober) tells(now time.Time) []outgoing {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []outgoing
	var third []*state
	for _, s := range p.states {
		if s.talk.way != WayLostOut || now.Sub(s.talk.told) < tellEvery {
			continue
		}
		if third == nil {
			third = p.thirdLocked()
		}
		s.talk.told = now
		for _, via := range third[:min(len(third), tellBy)] {
			out = append(out, p.outgoing(about(Tell, s.Addr, s.talk.hearing(now).Flags()), via.Addr))
		}
	}
	return out
}

// thirdLocked are the hosts that can pass a thing on, in random order.
func (p *Prober) thirdLocked() []*state {
	third := []*state{}
	for _, s := range p.states {
		if s.talk.way == WayBoth && s.talk.hears.Said {
			third = append(third, s)
		}
	}
	slices.SortFunc(third, func(a, b *state) int { return a.Addr.Compare(b.Addr) })
	rand.Shuffle(len(third), func(i, j int) { third[i], third[j] = third[j], third[i] })
	return third
}

// Decrypts says of which targets, by name, the tunnel decrypts packets, whether or not
// packets of their agents are among them. It is passed on to those that are not heard.
func (p *Prober) Decrypts(names map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, s := range p.states {
		s.talk.decrypts = names[name]
	}
}

// Tops says how large packets are to arrive at which targets, by name. It is looked
// how large those are that do; of targets that are not in it nobody asks.
func (p *Prober) Tops(tops map[string]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tops = tops
	for name, s := range p.states {
		s.aim(tops[name])
	}
}

// aim makes the path's top what is wanted.
func (s *state) aim(top int) {
	switch {
	case top == 0:
		s.path = nil
	case s.path == nil:
		s.path = NewPath(top)
	default:
		s.path.SetTop(top)
	}
}

// lookSoonest is the time between two looks at the MTU of a path, where there are few.
const lookSoonest = 3 * time.Second

// looks reports whether the path's MTU may be looked at now: small packets pass, and
// the other end understands large ones.
func (s *state) looks(now time.Time) bool {
	return s.path != nil && s.talk.hears.Said && s.tracker.RTT() > 0 && !s.tracker.Suspect() && !s.tracker.Late(now)
}

// largeLocked are the large packets that are due. Their budget is shared by all paths:
// a path at rest takes at most a fifth of it, together with the others.
func (p *Prober) largeLocked(now time.Time) []outgoing {
	var out []outgoing
	every := max(lookSoonest, time.Duration(len(p.states))*time.Second*5*largeShare/time.Duration(max(p.cfg.Budget, 1)))
	for _, s := range p.states {
		if !s.looks(now) {
			continue
		}
		size := s.path.Next(now, s.tracker.RTT(), s.tracker.Answered(), every)
		if size == 0 || !p.search.take(now) {
			continue
		}
		nonce := rand.Uint64()
		s.path.Sent(nonce, now)
		out = append(out, p.outgoing(Packet{
			Flags: s.talk.flags(now), Nonce: nonce, Timestamp: uint64(now.UnixNano()), Padding: size - headers - Size,
		}, s.Addr))
	}
	return out
}
