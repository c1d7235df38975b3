package ipam

import "fmt"

// Continent is the first two bits of a region's number. C libraries sort
// answers by common prefix (RFC 6724 rule 9), so regions of one continent should
// share one. It is a hint: nothing derives a place from an address.
type Continent uint8

// The four parts of the world a region number can tell apart.
const (
	NorthAmerica Continent = iota
	SouthAmerica
	Europe      // with Africa and the Near East
	AsiaPacific // with Central and South Asia
)

const regionsPerContinent = 1 << 6

// ContinentOf places a point given in degrees: latitude -90 to 90 (north is
// positive), longitude -180 to 180 (east is positive). The borders are coarse.
func ContinentOf(latitude, longitude float64) Continent {
	switch {
	case longitude >= -170 && longitude < -30:
		if latitude >= 13 {
			return NorthAmerica
		}
		return SouthAmerica
	case longitude >= -30 && longitude < 60:
		return Europe
	default:
		return AsiaPacific
	}
}

// NextRegion returns the lowest region number of continent c that used does not
// report, and if that continent is full, of the one after it. Number 0 is
// reserved and never returned. It wraps ErrFull when all 255 are used.
func NextRegion(c Continent, used func(number uint8) bool) (uint8, error) {
	start := int(c&3) * regionsPerContinent
	for i := range 256 {
		if n := uint8(start + i); n != 0 && !used(n) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("region number: %w (255 regions exist)", ErrFull)
}
