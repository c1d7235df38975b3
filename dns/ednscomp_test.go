package dns

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Bits of a query's flags.
const (
	flagAA = 1 << 10
	flagTC = 1 << 9
	flagRD = 1 << 8
	flagRA = 1 << 7
	flagZ  = 1 << 6
	flagAD = 1 << 5
	flagCD = 1 << 4
)

// ednsQuery is a query as it is on the wire.
type ednsQuery struct {
	flags, opcode, qtype uint16 // qtype 0: a header alone
	size                 uint16 // of EDNS; 0: there is none
	version              uint8
	ednsFlags            uint16
	options              string
}

func (q ednsQuery) packet() []byte {
	be := binary.BigEndian
	b := be.AppendUint16(nil, 0x1234)
	b = be.AppendUint16(b, q.opcode<<11|q.flags)
	counts := [4]uint16{}
	if q.qtype != 0 {
		counts[0] = 1
	}
	if q.size > 0 {
		counts[3] = 1
	}
	for _, n := range counts {
		b = be.AppendUint16(b, n)
	}
	if q.qtype != 0 {
		b = append(b, "\x08internal\x00"...)
		b = be.AppendUint16(b, q.qtype)
		b = be.AppendUint16(b, classIN)
	}
	if q.size > 0 {
		b = append(b, 0, 0, typeOPT)
		b = be.AppendUint16(b, q.size)
		b = append(b, 0, q.version)
		b = be.AppendUint16(b, q.ednsFlags)
		b = be.AppendUint16(b, uint16(len(q.options)))
		b = append(b, q.options...)
	}
	return b
}

// ISC's EDNS compliance set, under the names that its reports have, as bytes: each is
// answered, with the right code, records, flags and options. What is asked is the
// zone itself.
func TestEDNSCompliance(t *testing.T) {
	const (
		soa, dnskey = dns.TypeSOA, dns.TypeDNSKEY
		nsid        = "\x00\x03\x00\x00"
		subnet      = "\x00\x08\x00\x04\x00\x01\x00\x00"
		expire      = "\x00\x09\x00\x00"
		cookie      = "\x00\x0a\x00\x08\x01\x02\x03\x04\x05\x06\x07\x08"
		option100   = "\x00\x64\x00\x00"
		all         = flagAA | flagTC | flagRD | flagRA | flagZ | flagAD | flagCD
		do          = 0x8000
	)
	ok, badvers := dns.RcodeSuccess, dns.RcodeBadVers
	s := testServer(fixture(), fixtureFacts())
	for _, tt := range []struct {
		name    string
		query   ednsQuery
		rcode   int
		answers int
	}{
		{"dns", ednsQuery{qtype: soa}, ok, 1},
		{"aa", ednsQuery{qtype: soa, flags: flagAA}, ok, 1},
		{"ad", ednsQuery{qtype: soa, flags: flagAD}, ok, 1},
		{"cd", ednsQuery{qtype: soa, flags: flagCD}, ok, 1},
		{"ra", ednsQuery{qtype: soa, flags: flagRA}, ok, 1},
		{"rd", ednsQuery{qtype: soa, flags: flagRD}, ok, 1},
		{"tc", ednsQuery{qtype: soa, flags: flagTC}, ok, 1},
		{"zflag", ednsQuery{qtype: soa, flags: flagZ}, ok, 1},
		{"opcode", ednsQuery{opcode: 15}, dns.RcodeNotImplemented, 0},
		{"opcodeflg", ednsQuery{opcode: 15, flags: all}, dns.RcodeNotImplemented, 0},
		{"type666", ednsQuery{qtype: 666}, ok, 0},
		{"edns", ednsQuery{qtype: soa, size: 4096}, ok, 1},
		{"edns1", ednsQuery{qtype: soa, size: 4096, version: 1}, badvers, 0},
		{"edns@512", ednsQuery{qtype: dnskey, size: 512, ednsFlags: do}, ok, 0},
		{"ednsopt", ednsQuery{qtype: soa, size: 4096, options: option100}, ok, 1},
		{"edns1opt", ednsQuery{qtype: soa, size: 4096, version: 1, options: option100}, badvers, 0},
		{"do", ednsQuery{qtype: soa, size: 4096, ednsFlags: do}, ok, 1},
		{"docd", ednsQuery{qtype: soa, size: 4096, ednsFlags: do, flags: flagCD}, ok, 1},
		{"edns1do", ednsQuery{qtype: soa, size: 4096, version: 1, ednsFlags: do}, badvers, 0},
		{"ednsflags", ednsQuery{qtype: soa, size: 4096, ednsFlags: 0x80}, ok, 1},
		{"optlist", ednsQuery{qtype: soa, size: 4096, options: nsid + subnet + expire + cookie}, ok, 1},
		{"ednsnsid", ednsQuery{qtype: soa, size: 4096, options: nsid}, ok, 1},
		{"ednscookie", ednsQuery{qtype: soa, size: 4096, options: cookie}, ok, 1},
		{"ednsexpire", ednsQuery{qtype: soa, size: 4096, options: expire}, ok, 1},
		{"ednssubnet", ednsQuery{qtype: soa, size: 4096, options: subnet}, ok, 1},
		{"edns1nsid", ednsQuery{qtype: soa, size: 4096, version: 1, options: nsid}, badvers, 0},
		{"edns1cookie", ednsQuery{qtype: soa, size: 4096, version: 1, options: cookie}, badvers, 0},
		{"edns1expire", ednsQuery{qtype: soa, size: 4096, version: 1, options: expire}, badvers, 0},
		{"edns1subnet", ednsQuery{qtype: soa, size: 4096, version: 1, options: subnet}, badvers, 0},
		{"bind11", ednsQuery{qtype: soa, size: 4096, ednsFlags: do, options: cookie}, ok, 1},
		{"dig11", ednsQuery{qtype: soa, size: 4096, flags: flagRD | flagAD, options: cookie}, ok, 1},
	} {
		for _, stream := range []bool{false, true} { // with tcp and ednstcp
			out, wait := s.handle(tt.query.packet(), netip.MustParseAddr(w1), Role{}, stream)
			m := new(dns.Msg)
			if err := m.Unpack(out); wait != nil || err != nil {
				t.Errorf("%s (stream %v): answer %x: %v", tt.name, stream, out, err)
				continue
			}
			if m.Id != 0x1234 || !m.Response || m.Opcode != int(tt.query.opcode) || m.Rcode != tt.rcode || len(m.Answer) != tt.answers {
				t.Errorf("%s (stream %v): %v, want %s and %d records", tt.name, stream, m, dns.RcodeToString[tt.rcode], tt.answers)
			}
			if m.Authoritative != (tt.rcode == ok) || m.RecursionDesired != (tt.query.flags&flagRD != 0) || m.Truncated || m.Zero || m.AuthenticatedData {
				t.Errorf("%s (stream %v): flags %+v", tt.name, stream, m.MsgHdr)
			}
			if tt.query.size == 512 && !stream && len(out) > 512 {
				t.Errorf("%s: %d bytes", tt.name, len(out))
			}
			opt := m.IsEdns0()
			if (opt != nil) != (tt.query.size > 0) {
				t.Errorf("%s (stream %v): EDNS in the answer: %v", tt.name, stream, opt)
			}
			if opt == nil {
				continue
			}
			cookies := 0
			if strings.HasSuffix(tt.query.options, cookie) && tt.rcode == ok {
				cookies = 1
			}
			if opt.Version() != 0 || opt.Z() != 0 || opt.Do() != (tt.query.ednsFlags&do != 0) || len(opt.Option) != cookies {
				t.Errorf("%s (stream %v): OPT record %v, want %d cookies and nothing else", tt.name, stream, opt, cookies)
			}
		}
	}
}

// RFC 8906 section 8.2.7: what is cut for its size still says that it is EDNS.
func TestCutAnswersKeepEDNS(t *testing.T) {
	s := testServer(many(200), fixtureFacts())
	for _, size := range []uint16{512, 1232, 4096} {
		q := new(dns.Msg).SetQuestion("big.internal.", TypeAAAA).SetEdns0(size, true)
		packet, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		out, _ := s.handle(packet, netip.MustParseAddr(w1), Role{}, false)
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatal(err)
		}
		if opt := m.IsEdns0(); !m.Truncated || opt == nil || !opt.Do() || opt.Version() != 0 || len(out) > int(min(size, udpSize)) {
			t.Errorf("size %d: %d bytes, TC %v, OPT record %v", size, len(out), m.Truncated, opt)
		}
	}
}
