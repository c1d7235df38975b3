package probe

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// world is a mesh in a simulation: how far its hosts are from each other, and where
// they lie on a map that says nothing about that.
type world struct {
	rtt [][]time.Duration
	at  [][2]float64 // on the map, in km
}

// drawWorld draws hosts in a hidden space, each behind a line of its own, with ways
// that are up to a tenth longer than that; and independently where they lie on a map.
func drawWorld(rnd *rand.Rand, n int) world {
	hidden, line := make([][3]float64, n), make([]float64, n)
	w := world{rtt: make([][]time.Duration, n), at: make([][2]float64, n)}
	for i := range n {
		for d := range hidden[i] {
			hidden[i][d] = 120 * rnd.Float64() // ms
		}
		line[i] = 0.5 + 5*rnd.ExpFloat64()
		w.at[i] = [2]float64{8000 * rnd.Float64(), 8000 * rnd.Float64()}
		w.rtt[i] = make([]time.Duration, n)
	}
	for i := range n {
		for j := range i {
			d := line[i] + line[j]
			var square float64
			for k := range hidden[i] {
				square += (hidden[i][k] - hidden[j][k]) * (hidden[i][k] - hidden[j][k])
			}
			d = (d + math.Sqrt(square)) * (1 + 0.1*rnd.Float64())
			w.rtt[i][j] = time.Duration(d * float64(time.Millisecond))
			w.rtt[j][i] = w.rtt[i][j]
		}
	}
	return w
}

func (w world) onMap(i, j int) float64 {
	return math.Hypot(w.at[i][0]-w.at[j][0], w.at[i][1]-w.at[j][1])
}

// survey lets every host measure a few others, four a second, and tell its coordinate
// every 30 s, each at a second of its own, if it has moved. It returns the spaces, and
// what was told last.
func (w world) survey(t *testing.T, rnd *rand.Rand, measures, seconds int) ([]*Space, []mesh.Coordinate) {
	n := len(w.rtt)
	spaces, told, peers, phase := make([]*Space, n), make([]mesh.Coordinate, n), make([][]int, n), make([]int, n)
	for i := range n {
		space, err := NewSpace()
		if err != nil {
			t.Fatal(err)
		}
		spaces[i], told[i], phase[i] = space, space.Own(), rnd.IntN(30)
		for _, j := range rnd.Perm(n) {
			if j != i && len(peers[i]) < measures {
				peers[i] = append(peers[i], j)
			}
		}
	}
	for second := range seconds {
		for i := range n {
			for range 4 {
				j := peers[i][rnd.IntN(measures)]
				jitter := time.Duration(rnd.Float64() * float64(time.Millisecond))
				spaces[i].Observe(fmt.Sprint(j), told[j], w.rtt[i][j]+jitter)
			}
		}
		for i := range n {
			if own := spaces[i].Own(); second%30 == phase[i] && told[i].Moved(own) {
				told[i] = own
			}
		}
	}
	return spaces, told
}

// Each host measures a few of the others. Of those that it never spoke to, the one
// that its coordinates call nearest is nearly the nearest there is; the one that is
// nearest on the map is not.
func TestEstimatesFindTheNearest(t *testing.T) {
	t.Parallel()
	const hosts, measures, worlds = 24, 8, 4
	var allEstimates, allMaps, allWrong float64
	allKnown := 0
	for range worlds {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rnd := rand.New(rand.NewPCG(seed, 0))
		w := drawWorld(rnd, hosts)
		spaces, told := w.survey(t, rnd, measures, 300)
		var byEstimate, byMap, wrong float64
		known := 0 // estimates
		for i := range hosts {
			nearest, estimated, mapped := time.Duration(math.MaxInt64), -1, -1
			least := time.Duration(math.MaxInt64)
			for j := range hosts {
				if j == i {
					continue
				}
				nearest = min(nearest, w.rtt[i][j])
				if d, ok := spaces[i].Estimate(told[j]); ok {
					wrong += math.Abs(math.Log(float64(d) / float64(w.rtt[i][j])))
					known++
					if d < least {
						least, estimated = d, j
					}
				}
				if mapped < 0 || w.onMap(i, j) < w.onMap(i, mapped) {
					mapped = j
				}
			}
			if estimated < 0 {
				estimated = mapped
			}
			byEstimate += float64(w.rtt[i][estimated]) / float64(nearest) / hosts
			byMap += float64(w.rtt[i][mapped]) / float64(nearest) / hosts
		}
		wrong = math.Exp(wrong / float64(max(known, 1)))
		t.Logf("the one chosen is %.2f times as far as the nearest (by the map: %.2f); %d of %d estimates, a typical one is off by a factor of %.2f",
			byEstimate, byMap, known, hosts*(hosts-1), wrong)
		allEstimates += byEstimate / worlds
		allMaps += byMap / worlds
		allWrong += wrong / worlds
		allKnown += known
	}
	// Of one world in hundreds the coordinates are bad, as they may be.
	if allEstimates > 1.5 || allEstimates > 0.7*allMaps {
		t.Errorf("chosen %.2f times as far as the nearest, by the map %.2f: it is to be at most 1.5, and clearly better than a map that is wrong", allEstimates, allMaps)
	}
	if allWrong > 1.3 || allKnown < worlds*hosts*(hosts-1)*9/10 {
		t.Errorf("a typical estimate is off by a factor of %.2f, want at most 1.3; there are %d of %d", allWrong, allKnown, worlds*hosts*(hosts-1))
	}
}

// What is not known well is not told: at the start, of a peer that knows nothing, of
// numbers that are none.
func TestEstimateRefuses(t *testing.T) {
	peer := func(distance, unsure float64) mesh.Coordinate {
		return mesh.Coordinate{Vec: []float64{distance, 0, 0, 0, 0, 0, 0, 0}, Error: unsure, Height: 1e-5}
	}
	s, err := NewSpace()
	if err != nil {
		t.Fatal(err)
	}
	if d, ok := s.Estimate(peer(0.1, 0.1)); ok {
		t.Errorf("a new space estimates %s", d)
	}
	if err := s.Own().Validate(); err != nil {
		t.Errorf("its coordinate cannot be told: %v", err)
	}
	for range 500 {
		s.Observe("a", peer(0.1, 0.1), 40*ms)
		s.Observe("b", peer(-0.1, 0.1), 160*ms)
	}
	if d, ok := s.Estimate(peer(0.1, 0.1)); !ok || d < 20*ms || d > 80*ms {
		t.Errorf("%s, %v; want about 40 ms", d, ok)
	}
	nan := peer(math.NaN(), 0.1)
	for _, c := range []mesh.Coordinate{peer(0.1, 0.9), nan, {}, {Vec: []float64{1}}} {
		before := s.Own()
		if d, ok := s.Estimate(c); ok {
			t.Errorf("%+v: estimated as %s", c, d)
		}
		if c.Error < 0.5 {
			s.Observe("c", c, 10*ms)
		}
		s.Observe("a", peer(0.1, 0.1), 0)
		s.Observe("a", peer(0.1, 0.1), -ms)
		s.Observe("a", peer(0.1, 0.1), time.Hour)
		if after := s.Own(); before.Moved(after) || after.Validate() != nil {
			t.Errorf("%+v moved the coordinate from %+v to %+v", c, before, after)
		}
	}
}

// After a restart the coordinate that others know is taken up, once.
func TestRestore(t *testing.T) {
	was := mesh.Coordinate{Vec: []float64{0.02, 0, 0, 0, 0, 0, 0, 0}, Error: 0.2, Height: 1e-5}
	peer := mesh.Coordinate{Vec: []float64{-0.02, 0, 0, 0, 0, 0, 0, 0}, Error: 0.2, Height: 1e-5}
	s, err := NewSpace()
	if err != nil {
		t.Fatal(err)
	}
	s.Restore(mesh.Coordinate{Vec: []float64{1}})
	s.Restore(was)
	if d, ok := s.Estimate(peer); !ok || (d-40*ms).Abs() > ms {
		t.Errorf("after a restart: %s, %v; want 40 ms", d, ok)
	}
	s.Observe("a", peer, 40*ms)
	now := s.Own()
	s.Restore(mesh.Coordinate{Vec: []float64{9, 0, 0, 0, 0, 0, 0, 0}, Error: 0.2, Height: 1e-5})
	if now.Moved(s.Own()) {
		t.Error("what was observed since was thrown away")
	}
}
