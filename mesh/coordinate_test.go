package mesh

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// coordinate is one with the first numbers of its Vec.
func coordinate(vec ...float64) Coordinate {
	c := Coordinate{Vec: make([]float64, CoordinateDimensions), Error: 0.2, Height: 0.0001}
	copy(c.Vec, vec)
	return c
}

func TestValidateCoordinate(t *testing.T) {
	t.Parallel()
	if err := coordinate(0.05, -0.02).Validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Coordinate){
		"too few dimensions": func(c *Coordinate) { c.Vec = c.Vec[1:] }, "too many": func(c *Coordinate) { c.Vec = append(c.Vec, 0) }, "none": func(c *Coordinate) { c.Vec = nil },
		"not a number": func(c *Coordinate) { c.Vec[7] = math.NaN() }, "infinite": func(c *Coordinate) { c.Vec[0] = math.Inf(-1) }, "an hour away": func(c *Coordinate) { c.Vec[3] = 3600 },
		"height that is none": func(c *Coordinate) { c.Height = math.NaN() }, "below the ground": func(c *Coordinate) { c.Height = -0.1 }, "infinite height": func(c *Coordinate) { c.Height = math.Inf(1) },
		"adjustment": func(c *Coordinate) { c.Adjustment = math.Inf(-1) }, "error": func(c *Coordinate) { c.Error = math.NaN() }, "error below 0": func(c *Coordinate) { c.Error = -1 }, "huge error": func(c *Coordinate) { c.Error = 1e9 },
	} {
		c := coordinate(0.05)
		if spoil(&c); c.Validate() == nil {
			t.Errorf("%s: valid: %+v", name, c)
		}
	}
}

func TestCoordinateMoved(t *testing.T) {
	t.Parallel()
	higher := coordinate(0.05)
	higher.Height += 0.02
	surer := coordinate(0.05)
	surer.Error = 0.1
	good := coordinate(0.05)
	good.Error = 0.001
	best := good
	best.Error = 0.05
	for _, tt := range []struct {
		name     string
		was, now Coordinate
		moved    bool
	}{
		{"the same", coordinate(0.05), coordinate(0.05), false},
		{"by 20 %", coordinate(0.05), coordinate(0.06), true},
		{"by 8 %", coordinate(0.05), coordinate(0.054), false},
		{"by half, of nearly nothing", coordinate(0.001), coordinate(0.0015), false},
		{"to the other side", coordinate(0.02), coordinate(-0.02), true},
		{"in another direction", coordinate(0.02), coordinate(0.02, 0.01), true},
		{"higher", coordinate(0.05), higher, true},
		{"surer by half", coordinate(0.05), surer, true},
		{"both good", good, best, false},
	} {
		if got := tt.was.Moved(tt.now); got != tt.moved {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.moved)
		}
	}
}

// What is stored follows what is: however a coordinate drifts, what others were told
// is never farther off than the step.
func TestCoordinatesThatDrift(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		now := coordinate(rapid.Float64Range(-0.2, 0.2).Draw(t, "x"))
		told := now
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			next := coordinate(now.Vec[0] + rapid.Float64Range(-0.002, 0.002).Draw(t, "step"))
			if now = next; told.Moved(now) {
				told = now
			}
			if off := math.Abs(told.Vec[0] - now.Vec[0]); off > max(0.001, 0.1*(math.Abs(told.Vec[0])+told.Height))+1e-12 {
				t.Fatalf("told %g, is %g", told.Vec[0], now.Vec[0])
			}
		}
	})
}
