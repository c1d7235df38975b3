package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/probe"
)

func coordinateAt(x float64) *mesh.Coordinate {
	return &mesh.Coordinate{Vec: []float64{x, 0, 0, 0, 0, 0, 0, 0}, Error: 0.1, Height: 1e-5}
}

// Estimates are for hosts that were not measured, from coordinates that moved with
// what was measured to the others.
func TestSurveyor(t *testing.T) {
	s, err := newSurveyor()
	if err != nil {
		t.Fatal(err)
	}
	v := &mesh.View{Hosts: []mesh.ViewHost{
		{Name: "near", Coordinate: coordinateAt(0.02)}, {Name: "far", Coordinate: coordinateAt(-0.1)},
		{Name: "new", Coordinate: coordinateAt(0.019)}, {Name: "silent", Coordinate: coordinateAt(0.05)}, {Name: "old version"},
	}}
	measured := probe.Results{
		"near": {RTT: 20 * time.Millisecond}, "far": {RTT: 100 * time.Millisecond}, "old version": {RTT: time.Millisecond},
		"silent": {RTT: 900 * time.Millisecond, Suspect: true}, // of long ago: it does not count
	}
	start := time.Unix(1000, 0)
	estimates := func() dns.Facts {
		f := facts(v.Hosts, measured, nil, start, time.Minute)
		s.estimate(f, v.Hosts)
		return f
	}
	if f := estimates(); f["new"].Estimate != 0 {
		t.Errorf("estimated without knowing anything: %+v", f)
	}
	for i := range 300 {
		s.observe(v, measured, start.Add(time.Duration(i)*time.Second))
	}
	f := estimates()
	if d := f["new"].Estimate; d < 10*time.Millisecond || d > 30*time.Millisecond {
		t.Errorf("new, beside one at 20 ms: %s", d)
	}
	for _, name := range []string{"near", "far", "silent", "old version"} {
		if f[name].Estimate != 0 || f[name].RTT != measured[name].RTT {
			t.Errorf("%s: %+v", name, f[name])
		}
	}
	// Not more often than once a second, whoever wakes.
	own := s.space.Own()
	far := probe.Results{"near": {RTT: 400 * time.Millisecond}}
	for i := range 100 {
		s.observe(v, far, start.Add(299*time.Second+time.Duration(i)*9*time.Millisecond))
	}
	if now := s.space.Own(); fmt.Sprint(own) != fmt.Sprint(now) {
		t.Errorf("moved from %v to %v within a second", own, now)
	}
}

// A host that was restarted begins where the controllers know it to be.
func TestSurveyorAfterARestart(t *testing.T) {
	s, err := newSurveyor()
	if err != nil {
		t.Fatal(err)
	}
	v := &mesh.View{Coordinate: coordinateAt(0), Hosts: []mesh.ViewHost{{Name: "b", Coordinate: coordinateAt(0.03)}}}
	s.observe(v, nil, time.Unix(1000, 0))
	f := dns.Facts{}
	s.estimate(f, v.Hosts)
	if d := f["b"].Estimate; (d - 30*time.Millisecond).Abs() > time.Millisecond {
		t.Errorf("estimate %s, want 30 ms", d)
	}
	// Those that are gone are forgotten.
	s.observe(v, probe.Results{"b": {RTT: 30 * time.Millisecond}}, time.Unix(1002, 0))
	s.observe(&mesh.View{}, nil, time.Unix(1004, 0))
	if len(s.known) != 0 {
		t.Errorf("still known: %v", s.known)
	}
}

// A host that has found out where it is tells at once, once.
func TestPlacedIsNews(t *testing.T) {
	s, err := newSurveyor()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{surveyor: s}
	lost := s.space.Own()
	v := &mesh.View{Coordinate: &lost, Hosts: []mesh.ViewHost{{Name: "b", Coordinate: coordinateAt(0.03)}, {Name: "c", Coordinate: coordinateAt(-0.03)}}}
	if h.placed(v, said{coordinate: &lost}) {
		t.Error("it knows nothing, and has news")
	}
	measured := probe.Results{"b": {RTT: 30 * time.Millisecond}, "c": {RTT: 30 * time.Millisecond}}
	for i := range 20 {
		s.observe(v, measured, time.Unix(int64(1000+i), 0))
	}
	own := s.space.Own()
	if !h.placed(v, said{coordinate: &lost}) {
		t.Errorf("no news: %+v", own)
	}
	if h.placed(v, said{coordinate: &own}) {
		t.Error("what was said is news again")
	}
	known := *v
	known.Coordinate = &own
	if h.placed(&known, said{coordinate: &lost}) {
		t.Error("what the controllers have is news")
	}
	if h.placed(nil, said{}) {
		t.Error("news without a view")
	}
}
