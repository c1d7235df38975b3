package e2e

import (
	"cmp"
	"errors"
	"math"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// city is a region of the test.
type city struct {
	name     string
	lat, lon float64
}

var cities = []city{{"fra", 50.1, 8.7}, {"nrt", 35.8, 140.4}, {"ams", 52.3, 4.8}, {"syd", -33.9, 151.2}}

// trips are the round trips that a matrix is made of, one for each pair of regions:
// so far apart that of any two the smaller one alone is near (5 ms, or half again),
// also when it was measured on a busy machine, and kept though an eighth too long.
var trips = []int{6, 30, 75, 170, 380, 850}

// matrix is how far apart regions are, in milliseconds; 0 from a region to itself.
type matrix map[[2]string]int

// drawMatrix deals the round trips out until they contradict, in every region, each
// of the orders.
func drawMatrix(rnd *rand.Rand, orders ...preference) (matrix, error) {
	for range 10_000 {
		m, deal := matrix{}, rnd.Perm(len(trips))
		for i, a := range cities {
			for _, b := range cities[:i] {
				m[[2]string{a.name, b.name}] = trips[deal[0]]
				m[[2]string{b.name, a.name}] = trips[deal[0]]
				deal = deal[1:]
			}
		}
		agrees := func(from city) bool {
			return slices.ContainsFunc(orders, func(o preference) bool { return m.against(from, o) == 0 })
		}
		if !slices.ContainsFunc(cities, agrees) {
			return m, nil
		}
	}
	return nil, errors.New("no delays contradict all orders in all regions")
}

// preference says which of two regions seems the nearer one: below 0 for a, above 0
// for b, 0 if neither.
type preference func(from, a, b city) int

// byMap prefers what is nearer on the map.
func byMap(from, a, b city) int { return cmp.Compare(from.km(a), from.km(b)) }

// byAddress prefers the region whose addresses have more bits in common with those of
// from, as C libraries do (RFC 6724, rule 9).
func (s *stockWorld) byAddress(from, a, b city) int {
	here, web := s.askers[from.name].Address, s.apps["web"]
	return cmp.Compare(commonBits(here, web[b.name].Address), commonBits(here, web[a.name].Address))
}

func commonBits(a, b netip.Addr) (n int) {
	x, y := a.As16(), b.As16()
	for i := range x {
		if d := x[i] ^ y[i]; d != 0 {
			return n + bits.LeadingZeros8(d)
		}
		n += 8
	}
	return n
}

// against counts the pairs of other regions of which the one that seems nearer is not.
func (m matrix) against(from city, seems preference) (n int) {
	for _, a := range cities {
		for _, b := range cities {
			if a != from && b != from && seems(from, a, b) < 0 && m.nearest(from.name, []string{a.name, b.name}) != a.name {
				n++
			}
		}
	}
	return n
}

// nearest returns which of the regions is the nearest one.
func (m matrix) nearest(from string, of []string) string {
	return slices.MinFunc(of, func(a, b string) int { return m[[2]string{from, a}] - m[[2]string{from, b}] })
}

// km is the distance on the map, roughly (haversine).
func (p city) km(q city) float64 {
	rad := func(deg float64) float64 { return deg * math.Pi / 180 }
	sin2 := func(x float64) float64 { return math.Sin(x/2) * math.Sin(x/2) }
	h := sin2(rad(q.lat-p.lat)) + math.Cos(rad(p.lat))*math.Cos(rad(q.lat))*sin2(rad(q.lon-p.lon))
	return 12742 * math.Asin(math.Sqrt(h))
}
