package dns

import (
	"fmt"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/miekg/dns"
)

// Limits of the cache of forwarded answers.
const (
	cacheEntries = 8192
	cacheSize    = 4096 // bytes of one answer; longer ones are not kept

	// maxNegative caps how long it is believed that a name does not exist (RFC 2308
	// section 5).
	maxNegative = time.Hour
	// staleFor is how long an answer may still be given after its time if the
	// upstreams do not answer; staleTTL is what it then says, in seconds (RFC 8767
	// sections 4 and 5).
	staleFor = 24 * time.Hour
	staleTTL = 30
)

// cache keeps answers of upstreams. All orgs of a host share it, as they share the
// upstreams. It is safe for concurrent use.
type cache struct {
	entries *lru.Cache[string, cached]
	now     func() time.Time
}

// cached is one answer, packed: so it is small, and nobody can change it.
type cached struct {
	packet  []byte
	stored  time.Time
	expires time.Time
}

func newCache(entries int, now func() time.Time) (*cache, error) {
	c, err := lru.New[string, cached](entries)
	if err != nil {
		return nil, fmt.Errorf("cache of forwarded answers: %w", err)
	}
	return &cache{c, now}, nil
}

// get returns what is kept for key, its TTLs reduced by its age. fresh: its time is
// not over; else it is stale, and may be given if nothing better can be had. nil:
// there is nothing.
func (c *cache) get(key string) (m *dns.Msg, fresh bool) {
	e, ok := c.entries.Get(key)
	if !ok {
		return nil, false
	}
	now := c.now()
	age := now.Sub(e.stored)
	if age < 0 || now.Sub(e.expires) > staleFor { // also when the clock went back
		c.entries.Remove(key)
		return nil, false
	}
	m = new(dns.Msg)
	if m.Unpack(e.packet) != nil {
		c.entries.Remove(key)
		return nil, false
	}
	fresh = now.Before(e.expires)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			if !fresh {
				h.Ttl = staleTTL
			} else {
				h.Ttl -= min(h.Ttl, uint32(age/time.Second))
			}
		}
	}
	return m, fresh
}

// put keeps an answer for as long as it says.
func (c *cache) put(key string, m *dns.Msg) {
	ttl := lifetime(m)
	if ttl <= 0 {
		return
	}
	packet, err := m.Pack()
	if err != nil || len(packet) > cacheSize {
		return
	}
	now := c.now()
	c.entries.Add(key, cached{packet: packet, stored: now, expires: now.Add(ttl)})
}

// lifetime is how long an answer may be kept: the least of its TTLs; for one that
// says that there is nothing, what its SOA allows (RFC 2308), else not at all.
func lifetime(m *dns.Msg) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	seconds := func(ttl uint32) time.Duration { return time.Duration(ttl) * time.Second }
	least := seconds(maxForwardTTL)
	for _, rr := range m.Answer {
		least = min(least, seconds(rr.Header().Ttl))
	}
	if m.Rcode == dns.RcodeSuccess && answersItself(m) {
		return least
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(least, seconds(min(soa.Hdr.Ttl, soa.Minttl)), maxNegative)
		}
	}
	return 0
}

// answersItself reports whether an answer has what was asked for, and not only
// aliases that end in nothing.
func answersItself(m *dns.Msg) bool {
	asked := m.Question[0].Qtype
	return slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		t := rr.Header().Rrtype
		return t == asked || asked == dns.TypeANY
	})
}
