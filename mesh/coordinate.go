package mesh

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Coordinate is where a host is in the space of round-trip times: a network
// coordinate as hashicorp/serf/coordinate computes it (Vivaldi, with the height of
// Dabek et al. and the adjustment of Ledlie et al.). All numbers but Error are
// seconds.
type Coordinate struct {
	Vec        []float64 `json:"vec"`
	Error      float64   `json:"error"`      // confidence: 0 is sure, 1.5 knows nothing
	Adjustment float64   `json:"adjustment"` // may be negative
	Height     float64   `json:"height"`
}

// Bounds of a coordinate.
const (
	CoordinateDimensions = 8   // of Vec
	maxCoordinate        = 60  // seconds, of each number
	maxCoordinateError   = 100 // more says nothing more
)

// Validate reports a coordinate that cannot be one: another number of dimensions,
// numbers that are none, or that no round trip could have led to.
func (c Coordinate) Validate() error {
	if len(c.Vec) != CoordinateDimensions {
		return fmt.Errorf("coordinate of %d dimensions: want %d", len(c.Vec), CoordinateDimensions)
	}
	for _, x := range append([]float64{c.Adjustment, c.Height}, c.Vec...) {
		if !(math.Abs(x) <= maxCoordinate) { // no NaN either
			return fmt.Errorf("coordinate with %g: want at most %d s", x, maxCoordinate)
		}
	}
	if c.Height < 0 {
		return errors.New("coordinate with a height below 0")
	}
	if !(c.Error >= 0 && c.Error <= maxCoordinateError) {
		return fmt.Errorf("coordinate with error %g: want 0 to %d", c.Error, maxCoordinateError)
	}
	return nil
}

// A coordinate moves all the time by a little. What others are told of is more.
const (
	coordinateStep     = time.Millisecond
	coordinateFraction = 0.1
	leastError         = 0.1 // errors below are all good
)

// Moved reports whether is differs so much from c that others should know: by more
// than 1 ms and a tenth of its distance from the origin, which is that of a typical
// way; or its error has halved or doubled. Both are valid.
func (c Coordinate) Moved(is Coordinate) bool {
	var by, size float64
	for i := range c.Vec {
		d := is.Vec[i] - c.Vec[i]
		by += d * d
		size += c.Vec[i] * c.Vec[i]
	}
	by = math.Sqrt(by) + math.Abs(is.Height-c.Height) + math.Abs(is.Adjustment-c.Adjustment)
	size = math.Sqrt(size) + c.Height
	return by > coordinateStep.Seconds() && by > coordinateFraction*size || c.Surer(is) || is.Surer(c)
}

// Surer reports whether is is at least twice as sure as c.
func (c Coordinate) Surer(is Coordinate) bool {
	return max(c.Error, leastError) >= 2*max(is.Error, leastError)
}
