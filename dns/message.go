package dns

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Sizes of messages, in bytes.
const (
	headerSize = 12
	// udpSize is the largest UDP message sent, and what EDNS0 announces: it fits
	// one packet on every path (DNS flag day 2020).
	udpSize = 1232
	// plainSize is the largest UDP message to clients without EDNS0 (RFC 1035).
	plainSize = 512
	tcpSize   = 65535
)

// request is a query that was understood.
type request struct {
	msg  *dns.Msg // with one question, or with none and a cookie
	size int      // of the largest answer
	edns *dns.OPT

	cookie *dns.EDNS0_COOKIE // for the answer; nil: none was sent
}

func (r *request) question() dns.Question { return r.msg.Question[0] }

// parseRequest reads a message. With drop it deserves no answer: it is no query.
// A code other than NoError is the answer; r then holds what could be read.
func parseRequest(packet []byte, stream bool) (r request, code Rcode, drop bool) {
	if len(packet) < headerSize || packet[2]&0x80 != 0 {
		return request{}, 0, true
	}
	r = request{msg: new(dns.Msg), size: plainSize}
	if stream {
		r.size = tcpSize
	}
	r.msg.Id = binary.BigEndian.Uint16(packet)
	r.msg.Opcode = int(packet[2]>>3) & 15
	r.msg.RecursionDesired = packet[2]&1 != 0
	if r.msg.Opcode != dns.OpcodeQuery {
		return r, NotImplemented, false
	}
	count := func(i int) uint16 { return binary.BigEndian.Uint16(packet[i:]) }
	// Counts first: what no resolver sends is not worth unpacking. Without a question
	// there may be a cookie to be answered (RFC 7873 section 5.4).
	if count(4) > 1 || count(4) == 0 && count(10) == 0 || count(6) != 0 || count(8) != 0 || count(10) > 2 {
		return r, FormatError, false
	}
	full := new(dns.Msg)
	if err := full.Unpack(packet); err != nil || len(full.Question) != int(count(4)) {
		return r, FormatError, false
	}
	r.msg = full
	for _, rr := range full.Extra {
		if opt, ok := rr.(*dns.OPT); ok {
			if r.edns != nil {
				return r, FormatError, false
			}
			r.edns = opt
		}
	}
	if r.edns != nil && !stream {
		r.size = max(plainSize, min(int(r.edns.UDPSize()), udpSize))
	}
	if r.edns != nil && r.edns.Version() != 0 {
		return r, badVersion, false
	}
	switch {
	case len(full.Question) == 0 && !r.hasCookie():
		return r, FormatError, false
	case len(full.Question) == 1 && r.question().Qclass != dns.ClassINET:
		return r, Refused, false
	}
	return r, NoError, false
}

func (r *request) hasCookie() bool {
	return r.edns != nil && slices.ContainsFunc(r.edns.Option, func(o dns.EDNS0) bool { return o.Option() == dns.EDNS0COOKIE })
}

// reply starts an answer: header, question exactly as it was asked, EDNS0 if it was.
func (r *request) reply(code Rcode, recursion bool) *dns.Msg {
	m := new(dns.Msg)
	m.Id, m.Response, m.Opcode = r.msg.Id, true, r.msg.Opcode
	m.RecursionDesired, m.RecursionAvailable = r.msg.RecursionDesired, recursion
	m.CheckingDisabled = r.msg.CheckingDisabled
	m.Rcode = int(code)
	m.Question = r.msg.Question
	if r.edns != nil {
		m.SetEdns0(udpSize, r.edns.Do())
		if r.cookie != nil {
			opt := m.IsEdns0()
			opt.Option = append(opt.Option, r.cookie)
		}
	}
	return m
}

// pack writes m, cut to the asker's size with TC set if it does not fit; addresses
// that were added unasked go first, without TC (RFC 2181 section 9). It never fails:
// what cannot be packed becomes a bare SERVFAIL.
func (r *request) pack(m *dns.Msg) []byte {
	m.Compress = m.Len() > r.size
	if len(m.Extra) > 1 && m.Len() > r.size {
		m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype != dns.TypeOPT })
	}
	m.Truncate(r.size)
	out, err := m.Pack()
	if err != nil || len(out) > r.size {
		m = new(dns.Msg)
		m.Id, m.Response, m.Rcode = r.msg.Id, true, dns.RcodeServerFailure
		out, _ = m.Pack()
	}
	return out
}

// answerMessage turns a decision into a message.
func (r *request) answerMessage(a Answer, recursion bool) *dns.Msg {
	m := r.reply(a.Rcode, recursion)
	m.Authoritative = a.Zone != ""
	name := ""
	if len(r.msg.Question) == 1 {
		name = r.question().Name
	}
	header := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: a.TTL}
	}
	switch {
	case a.Zone == "":
		return m
	case len(a.Addrs) > 0:
		m.Answer = make([]dns.RR, len(a.Addrs))
		for i, addr := range a.Addrs {
			m.Answer[i] = &dns.AAAA{Hdr: header(dns.TypeAAAA), AAAA: addr.AsSlice()}
		}
	case len(a.Ports) > 0:
		m.Answer = make([]dns.RR, len(a.Ports))
		extra := make([]dns.RR, 0, len(a.Ports)+1)
		for i, p := range a.Ports {
			m.Answer[i] = &dns.SRV{Hdr: header(dns.TypeSRV), Priority: p.Priority, Weight: p.Weight, Port: p.Port, Target: p.Target}
			h := header(dns.TypeAAAA)
			h.Name = p.Target
			if p.Addr.IsValid() {
				extra = append(extra, &dns.AAAA{Hdr: h, AAAA: p.Addr.AsSlice()})
			}
		}
		m.Extra = append(extra, m.Extra...)
	case len(a.Texts) > 0:
		for _, text := range a.Texts {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: header(dns.TypeTXT), Txt: textStrings(text)})
		}
	case a.Text != "":
		m.Answer = []dns.RR{&dns.TXT{Hdr: header(dns.TypeTXT), Txt: textStrings(a.Text)}}
	case a.Target != "":
		m.Answer = []dns.RR{&dns.PTR{Hdr: header(dns.TypePTR), Ptr: a.Target}}
	case a.Minimal:
		m.Answer = []dns.RR{&dns.HINFO{Hdr: header(dns.TypeHINFO), Cpu: "RFC8482"}}
	case a.SOA:
		m.Answer = []dns.RR{soa(a.Zone, defaultTTL)}
	default:
		m.Ns = []dns.RR{soa(a.Zone, negativeTTL)}
	}
	return m
}

// Numbers of the start of authority, times in seconds. The serial never changes:
// nothing is transferred.
const (
	soaSerial  = 1
	soaRefresh = 3600
	soaRetry   = 600
	soaExpire  = 86400
)

// soa is the start of authority.
func soa(zone string, ttl uint32) dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:  "_api." + zoneName, Mbox: "hostmaster." + zoneName,
		Serial: soaSerial, Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: negativeTTL,
	}
}

// withoutPort is the address of a source, in the form that addresses are kept in.
func withoutPort(source netip.AddrPort) netip.Addr { return source.Addr().Unmap() }

// sameName compares two names in presentation form as the DNS does.
func sameName(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
}
