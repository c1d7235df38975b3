package dns

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The cases of RFC 8906 section 8, each over UDP and TCP (8.1.5): what a server must
// make of flags, versions, options and types that it does not know. ISC's own set is
// TestEDNSCompliance; 8.2.7 is TestCutAnswersKeepEDNS.
func TestCompliance(t *testing.T) {
	option := func(o dns.EDNS0) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.SetEdns0(4096, false)
			m.IsEdns0().Option = append(m.IsEdns0().Option, o)
		}
	}
	version := func(v uint8) func(*dns.Msg) {
		return func(m *dns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(v) }
	}
	both := func(fs ...func(*dns.Msg)) func(*dns.Msg) {
		return func(m *dns.Msg) {
			for _, f := range fs {
				f(m)
			}
		}
	}
	unknown := &dns.EDNS0_LOCAL{Code: 100, Data: []byte("x")}
	rows := []struct {
		name    string // and section of RFC 8906
		change  func(*dns.Msg)
		rcode   int
		answers int
		edns    bool
		options int // in the answer
	}{
		{"8.1.1 the zone", func(m *dns.Msg) {
			m.Question[0] = dns.Question{Name: "internal.", Qtype: dns.TypeSOA, Qclass: dns.ClassINET}
		}, 0, 1, false, 0},
		{"a plain query", func(*dns.Msg) {}, 0, 1, false, 0},
		{"8.1.2 an unknown type", func(m *dns.Msg) { m.Question[0].Qtype = 1000 }, 0, 0, false, 0},
		{"8.1.3.1 CD", func(m *dns.Msg) { m.CheckingDisabled = true }, 0, 1, false, 0},
		{"8.1.3.2 AD", func(m *dns.Msg) { m.AuthenticatedData = true }, 0, 1, false, 0},
		{"8.1.3.3 the reserved bit", func(m *dns.Msg) { m.Zero = true }, 0, 1, false, 0},
		{"8.1.3.4 no recursion desired", func(m *dns.Msg) { m.RecursionDesired = false }, 0, 1, false, 0},
		{"8.1.4 an unknown opcode", func(m *dns.Msg) { m.Opcode = 15 }, dns.RcodeNotImplemented, 0, false, 0},
		{"8.2.1 EDNS", version(0), 0, 1, true, 0},
		{"8.2.2 EDNS version 1", version(1), dns.RcodeBadVers, 0, true, 0},
		{"8.2.2 EDNS version 100", version(100), dns.RcodeBadVers, 0, true, 0},
		{"8.2.3 an unknown option", option(unknown), 0, 1, true, 0},
		{"8.2.4 an unknown EDNS flag", func(m *dns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetZ(0x40) }, 0, 1, true, 0},
		{"8.2.5 version 1 with an unknown flag", both(version(1), func(m *dns.Msg) { m.IsEdns0().SetZ(0x40) }), dns.RcodeBadVers, 0, true, 0},
		{"8.2.6 version 1 with an unknown option", both(version(1), func(m *dns.Msg) { m.IsEdns0().Option = []dns.EDNS0{unknown} }), dns.RcodeBadVers, 0, true, 0},
		{"8.2.8 DNSSEC OK", func(m *dns.Msg) { m.SetEdns0(4096, true) }, 0, 1, true, 0},
		{"8.2.9 version 1 with DNSSEC OK", func(m *dns.Msg) { m.SetEdns0(4096, true); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers, 0, true, 0},
		{"8.2.10 several options", both(option(&dns.EDNS0_NSID{Code: dns.EDNS0NSID}), func(m *dns.Msg) {
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0)}, &dns.EDNS0_EXPIRE{Code: dns.EDNS0EXPIRE, Empty: true},
				&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
		}), 0, 1, true, 1},
		{"a size of 0", func(m *dns.Msg) { m.SetEdns0(0, false) }, 0, 1, true, 0},
		{"a cookie and nothing asked wrong", option(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}), 0, 1, true, 1},
		{"a cookie that is too short", option(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "01020304"}), dns.RcodeFormatError, 0, true, 0},
		{"a cookie that is too long", option(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: strings.Repeat("01", 41)}), dns.RcodeFormatError, 0, true, 0},
		{"a cookie and no question", both(option(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}), func(m *dns.Msg) { m.Question = nil }), 0, 0, true, 1},
		{"no question and no cookie", func(m *dns.Msg) { m.SetEdns0(4096, false); m.Question = nil }, dns.RcodeFormatError, 0, true, 0},
		{"no question at all", func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError, 0, false, 0},
		{"a server's cookie that is too short", option(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: strings.Repeat("01", 15)}), dns.RcodeFormatError, 0, true, 0},
	}
	s := testServer(fixture(), fixtureFacts())
	for _, r := range rows {
		for _, stream := range []bool{false, true} {
			q := new(dns.Msg).SetQuestion("db.internal.", TypeAAAA)
			r.change(q)
			m := exchangeBytes(t, s, q, w1, Role{}, stream)
			if m.Rcode != r.rcode || len(m.Answer) != r.answers || m.Id != q.Id || m.Opcode != q.Opcode || !m.Response {
				t.Errorf("%s (stream %v): %v, want %s and %d records", r.name, stream, m, dns.RcodeToString[r.rcode], r.answers)
			}
			if m.RecursionDesired != q.RecursionDesired || m.Zero || m.AuthenticatedData || m.Truncated {
				t.Errorf("%s (stream %v): flags %v", r.name, stream, m.MsgHdr)
			}
			opt := m.IsEdns0()
			if (opt != nil) != r.edns {
				t.Errorf("%s (stream %v): EDNS in the answer: %v", r.name, stream, opt)
			}
			if opt == nil {
				continue
			}
			if opt.Version() != 0 || opt.Z() != 0 || opt.UDPSize() != udpSize || len(opt.Option) != r.options || opt.Do() != q.IsEdns0().Do() {
				t.Errorf("%s (stream %v): OPT record %v", r.name, stream, opt)
			}
		}
	}
}

// A client gets its cookie back, with one of ours that depends on who asks.
func TestCookies(t *testing.T) {
	s := testServer(fixture(), fixtureFacts())
	const client = "0102030405060708"
	cookie := func(from, sent string) string {
		q := new(dns.Msg).SetQuestion("db.internal.", TypeAAAA).SetEdns0(1232, false)
		q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: sent})
		o := exchangeBytes(t, s, q, from, Role{}, false).IsEdns0().Option
		if len(o) != 1 {
			t.Fatalf("options %v", o)
		}
		return o[0].(*dns.EDNS0_COOKIE).Cookie
	}
	first := cookie(w1, client)
	if !strings.HasPrefix(first, client) || len(first) != 2*(clientCookie+16) {
		t.Errorf("cookie %q", first)
	}
	if again := cookie(w1, first); !strings.HasPrefix(again, client) || len(again) != len(first) {
		t.Errorf("asked with %q: %q", first, again)
	}
	if other := cookie(w2, client); other[len(other)-16:] == first[len(first)-16:] {
		t.Error("two sources have one cookie")
	}
}

func TestRates(t *testing.T) {
	r := newRates(3)
	a, b := netip.MustParseAddr(w1), netip.MustParseAddr(w2)
	now := time.Unix(1000, 0)
	from := a
	for i, want := range []bool{true, true, true, false, false} {
		if got := r.allow(from, now); got != want {
			t.Errorf("query %d: %v", i, got)
		}
		from = from.Next() // a machine has many addresses
	}
	if !r.allow(b, now) {
		t.Skip("the two sources share a counter, as one in 16,384 does")
	}
	if !r.allow(a, now.Add(time.Second)) {
		t.Error("the next second is not another one")
	}
}

// One source that asks without end takes nothing from the others.
func TestFloodOfOneSource(t *testing.T) {
	s := testServer(fixture(), fixtureFacts())
	s.rates = newRates(20)
	at, _ := serve(t, s, w1)
	c, err := (&dns.Client{}).Dial(at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	packet, _ := new(dns.Msg).SetQuestion("db.internal.", TypeAAAA).Pack()
	for range 200 {
		c.Write(packet)
	}
	waitFor(t, "the flood to be counted", func() bool { return s.Stats().UDP >= 200 || s.Stats().Limited > 0 })
	if n := s.Stats().Limited; n == 0 {
		t.Error("nothing was dropped")
	}
}
