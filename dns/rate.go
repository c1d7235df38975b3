package dns

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// endpointOf is what the addresses of one machine have in common: the first of its /112,
// or another address as it is. A machine may ask from any of its own.
func endpointOf(a netip.Addr) netip.Addr {
	if !a.Is6() || a.Is4In6() || a.IsLoopback() {
		return a
	}
	b := a.As16()
	clear(b[14:])
	return netip.AddrFrom16(b)
}

// rates bounds how many queries one endpoint may ask in a second, so that one machine
// cannot take the resolver from the others. Sources share a fixed number of counters
// by hash: nothing grows, and no lock is needed. Two sources on one counter share
// the limit; the hash is seeded, so nobody can choose whose.
type rates struct {
	limit uint32
	seed  maphash.Seed
	slots [1 << 14]atomic.Uint64 // second, and queries in it
}

func newRates(limit int) *rates {
	return &rates{limit: uint32(limit), seed: maphash.MakeSeed()}
}

// allow counts one query of source's endpoint and reports whether it may be answered.
func (r *rates) allow(source netip.Addr, now time.Time) bool {
	b := endpointOf(source).As16()
	slot := &r.slots[maphash.Bytes(r.seed, b[:])%uint64(len(r.slots))]
	second := uint64(now.Unix()) << 32
	for {
		old := slot.Load()
		next := old + 1
		if old>>32 != second>>32 {
			next = second | 1
		} else if uint32(old) >= r.limit {
			return false
		}
		if slot.CompareAndSwap(old, next) {
			return true
		}
	}
}
