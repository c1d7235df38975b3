package agent

import (
	"time"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/probe"
)

// The own network coordinate is moved at most so often, by so many peers at a time.
// More would not help: what peers tell of theirs is up to half a minute old, and hosts
// that all move far towards where the others were never meet.
const (
	observeEvery = time.Second
	observePeers = 4
)

// surveyor keeps the host's network coordinate. Only one goroutine calls observe;
// estimates and the coordinate itself may be asked by anybody.
type surveyor struct {
	space *probe.Space
	last  time.Time       // of observe
	known map[string]bool // peers that went into the coordinate
}

func newSurveyor() (*surveyor, error) {
	space, err := probe.NewSpace()
	if err != nil {
		return nil, err
	}
	return &surveyor{space: space, known: map[string]bool{}}, nil
}

// observe moves the coordinate by what was measured to some of a view's hosts, each
// time to others where there are many.
func (s *surveyor) observe(v *mesh.View, measured probe.Results, now time.Time) {
	if v.Coordinate != nil {
		s.space.Restore(*v.Coordinate)
	}
	if now.Sub(s.last) < observeEvery {
		return
	}
	s.last = now
	there, left := make(map[string]mesh.Coordinate, len(v.Hosts)), observePeers
	for _, h := range v.Hosts {
		if h.Coordinate != nil {
			there[h.Name] = *h.Coordinate
		}
	}
	for name := range s.known {
		if _, ok := there[name]; !ok {
			s.space.Forget(name)
			delete(s.known, name)
		}
	}
	for name, c := range there { // in random order
		if r := measured[name]; r.RTT > 0 && !r.Suspect && left > 0 {
			s.space.Observe(name, c, r.RTT)
			s.known[name] = true
			left--
		}
	}
}

// estimate adds to facts how far those hosts are that were not measured yet.
func (s *surveyor) estimate(f dns.Facts, hosts []mesh.ViewHost) {
	for _, h := range hosts {
		if h.Coordinate == nil || f[h.Name].RTT > 0 {
			continue
		}
		if d, ok := s.space.Estimate(*h.Coordinate); ok {
			fact := f[h.Name]
			fact.Estimate = d
			f[h.Name] = fact
		}
	}
}
