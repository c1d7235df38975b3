package dns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// clean takes out of an upstream's answer what must not be passed on. An answer that
// could be read but cannot be written so that it can be read again is an error:
// it was made to upset somebody.
func (f *Forwarder) clean(m *dns.Msg, trusted bool) error {
	clean := func(rrs []dns.RR) []dns.RR {
		return slices.DeleteFunc(rrs, func(rr dns.RR) bool {
			if rr.Header().Rrtype == dns.TypeOPT || !trusted && f.pointsIntoMesh(rr) {
				return true
			}
			if ttl := rr.Header().Ttl; ttl > 1<<31-1 {
				rr.Header().Ttl = 0 // RFC 2181 section 8
			} else {
				rr.Header().Ttl = min(ttl, maxForwardTTL)
			}
			return false
		})
	}
	m.Answer, m.Ns, m.Extra = clean(m.Answer), clean(m.Ns), clean(m.Extra)
	m.Rcode &= 15 // the rest was the OPT record's
	packet, err := m.Pack()
	if err == nil {
		err = new(dns.Msg).Unpack(packet)
	}
	if err != nil {
		return fmt.Errorf("malformed answer: %w", err)
	}
	return nil
}

func (f *Forwarder) pointsIntoMesh(rr dns.RR) bool {
	if !f.cfg.Mesh.IsValid() || f.mayRebind(rr.Header().Name) {
		return false
	}
	in := func(ip net.IP) bool {
		a, ok := netip.AddrFromSlice(ip)
		return ok && f.cfg.Mesh.Contains(a)
	}
	hints := func(values []dns.SVCBKeyValue) bool {
		return slices.ContainsFunc(values, func(v dns.SVCBKeyValue) bool {
			h, ok := v.(*dns.SVCBIPv6Hint)
			return ok && slices.ContainsFunc(h.Hint, in)
		})
	}
	switch rr := rr.(type) {
	case *dns.AAAA:
		return in(rr.AAAA)
	case *dns.HTTPS:
		return hints(rr.Value)
	case *dns.SVCB:
		return hints(rr.Value)
	}
	return false
}

func (f *Forwarder) mayRebind(name string) bool {
	labels, ok := splitName(name)
	return ok && slices.ContainsFunc(f.rebind, func(domain []string) bool { return hasSuffix(labels, domain...) })
}
