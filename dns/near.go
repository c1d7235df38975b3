package dns

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Fact is what is known of the way to one host.
type Fact struct {
	// RTT is the round trip through the tunnel, already smoothed and settled (see
	// Settler). 0: not measured.
	RTT time.Duration
	// Estimate is the round trip that the hosts' network coordinates suggest, for a
	// host that is not measured. 0: there is none, and geography decides.
	Estimate time.Duration
	// Suspect: own probes fail. Its machines are left out of AAAA answers while
	// others are left, except of answers about an app to that app's own machines.
	Suspect bool
	// Dead: suspect, and the control plane has lost it as well. Left out everywhere
	// but behind `all.`, while others are left.
	Dead bool
}

// Facts are by host name. A host that is not there is taken for alive and
// unmeasured; the host that answers need not be there: its distance is 0.
type Facts map[string]Fact

// distance is how far a host is that geography places at estimate, and what that
// rests on.
func (f Fact) distance(estimate time.Duration) (time.Duration, Basis) {
	switch {
	case f.RTT > 0:
		return min(f.RTT, unknownDistance), Measured
	case f.Estimate > 0:
		return min(f.Estimate, unknownDistance), Coordinates
	case estimate < unknownDistance:
		return estimate, Geography
	}
	return unknownDistance, Unknown
}

// Distances, as round-trip times.
const (
	// nearSlack and nearFraction span the near set beyond its nearest member.
	nearSlack    = 5 * time.Millisecond
	nearFraction = 2 // half again

	// equalSlack is how far apart two distances may be and still count as equal.
	equalSlack = time.Millisecond

	// unknownDistance comes after every distance that is known.
	unknownDistance = time.Duration(math.MaxInt64 / 4)

	baseDistance = time.Millisecond // within one region
	kmPerMs      = 50.0
	earthRadius  = 6371.0 // km
)

// estimate is the distance of a host that was never measured, from where its
// region lies: 1 ms, and 1 ms for each 50 km of great circle. That is light in
// glass (200 km/ms) there and back, on a path twice the great circle's length.
func estimate(from, to string, a, b *Place) time.Duration {
	if from == to {
		return baseDistance
	}
	if a == nil || b == nil {
		return unknownDistance
	}
	return baseDistance + time.Duration(greatCircle(*a, *b)/kmPerMs*float64(time.Millisecond))
}

// greatCircle returns kilometres between two places, by the haversine formula.
func greatCircle(a, b Place) float64 {
	rad := math.Pi / 180
	sinLat := math.Sin((b.Lat - a.Lat) * rad / 2)
	sinLon := math.Sin((b.Lon - a.Lon) * rad / 2)
	h := sinLat*sinLat + math.Cos(a.Lat*rad)*math.Cos(b.Lat*rad)*sinLon*sinLon
	return 2 * earthRadius * math.Asin(math.Sqrt(min(max(h, 0), 1)))
}

// candidate is a machine that could be answered, with what is known of its host.
type candidate struct {
	*machine
	distance      time.Duration
	suspect, dead bool
}

// candidates returns those of ms that may be used at all: started, healthy and on
// a host that is not cordoned. Whatever fails here is meant, or was seen at the
// machine itself, and no lack of others brings it back.
func candidates(f Facts, ms []*machine) []candidate {
	cs := make([]candidate, 0, len(ms))
	for _, m := range ms {
		if !m.up || m.host.cordoned {
			continue
		}
		cs = append(cs, candidateOf(f, m))
	}
	return cs
}

func candidateOf(f Facts, m *machine) candidate {
	c := candidate{machine: m}
	if !m.host.self {
		fact := f[m.host.name]
		c.distance, _ = fact.distance(m.host.estimate)
		c.suspect, c.dead = fact.Suspect, fact.Dead
	}
	return c
}

// leaveOut removes what is dead and, unless withSuspects, what is suspect. If
// nothing would be left it removes less: an answer that may work is better than
// none, and this host may be the one that is cut off.
func leaveOut(cs []candidate, withSuspects bool) []candidate {
	for _, keep := range []func(candidate) bool{
		func(c candidate) bool { return !c.dead && (withSuspects || !c.suspect) },
		func(c candidate) bool { return !c.dead },
	} {
		if slices.ContainsFunc(cs, keep) {
			return slices.DeleteFunc(cs, func(c candidate) bool { return !keep(c) })
		}
	}
	return cs
}

// nearestFirst sorts by distance, equals in random order. The own host's machines
// come before all others; beyond them, those within equalSlack of the nearest of
// them are equals, and so on outwards. drawn is whether there were equals.
func nearestFirst(cs []candidate, rnd *rand.Rand) (drawn bool) {
	slices.SortFunc(cs, func(a, b candidate) int {
		if c := cmp.Compare(a.distance, b.distance); c != 0 {
			return c
		}
		return cmp.Compare(a.id, b.id)
	})
	for i := 0; i < len(cs); {
		end := i + 1
		for end < len(cs) && equals(cs[i].distance, cs[end].distance) {
			end++
		}
		if end-i > 1 {
			rnd.Shuffle(end-i, func(a, b int) { cs[i+a], cs[i+b] = cs[i+b], cs[i+a] })
			drawn = true
		}
		i = end
	}
	return drawn
}

func equals(first, next time.Duration) bool {
	return first == next || first > 0 && next-first < equalSlack
}

// nearSet cuts cs, sorted nearest first, to those within 5 ms or half again of the
// nearest one, whichever reaches farther.
func nearSet(cs []candidate) []candidate {
	if len(cs) == 0 {
		return cs
	}
	nearest := cs[0].distance
	for _, c := range cs {
		nearest = min(nearest, c.distance)
	}
	limit := nearest + max(nearSlack, nearest/nearFraction)
	return slices.DeleteFunc(cs, func(c candidate) bool { return c.distance > limit })
}
