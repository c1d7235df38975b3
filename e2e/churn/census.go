package churn

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Census is what is in use, by "<where> <what>": "fra1 agent goroutines".
type Census map[string]float64

// Bound is how much more than at first there may be of what ends in Of.
type Bound struct {
	Of    string
	Share float64 // of what there was at first
	Plus  float64 // and this
}

// most is what v may have become.
func (b Bound) most(v float64) float64 { return math.Floor(v*(1+b.Share) + b.Plus) }

// Grown lists what has become more than its bound lets it, one sentence each, sorted.
// What has no bound must be as it was. What was not there at first counts from zero,
// what is gone has not grown, but where a bound is exact that is a difference, too.
func Grown(first, now Census, bounds []Bound) (out []string) {
	names := map[string]bool{}
	for name := range first {
		names[name] = true
	}
	for name := range now {
		names[name] = true
	}
	for _, name := range slices.Sorted(keys(names)) {
		was, is := first[name], now[name]
		i := slices.IndexFunc(bounds, func(b Bound) bool { return strings.HasSuffix(name, b.Of) })
		switch {
		case i < 0 && is != was:
			out = append(out, fmt.Sprintf("%s: %.0f, was %.0f", name, is, was))
		case i >= 0 && is > bounds[i].most(was):
			out = append(out, fmt.Sprintf("%s: %.0f, was %.0f, and may be at most %.0f", name, is, was, bounds[i].most(was)))
		}
	}
	return out
}
