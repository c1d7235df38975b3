package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"pgregory.net/rapid"
)

// hotOver returns the short way through s.
func hotOver(s *Server, seed uint64) *hot {
	h := s.newHot()
	h.rnd = rand.New(rand.NewPCG(seed, 0))
	h.refresh()
	return h
}

// unpacked is a message as both ways through the server must write it.
func unpacked(t interface{ Fatalf(string, ...any) }, packet []byte) *dns.Msg {
	m := new(dns.Msg)
	if err := m.Unpack(packet); err != nil {
		t.Fatalf("answer %x: %v", packet, err)
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			rr.Header().Rdlength = 0
		}
	}
	return m
}

// The short way gives the very answer that the long way gives.
func TestShortWayAgrees(t *testing.T) {
	short := 0
	rapid.Check(t, func(t *rapid.T) {
		d, f := drawData(t)
		s := testServer(d, f)
		seed := rapid.Uint64().Draw(t, "seed")
		h := hotOver(s, seed)
		source := netip.MustParseAddr("fd12:3456:789a:1:100:1:ff:2")
		if ms := d.Orgs[0].Machines; len(ms) > 0 && rapid.Bool().Draw(t, "machine asks") {
			source = ms[0].Addr
		}
		for range 20 {
			name := drawName(t)
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0:
				name = "_80._tcp." + name
			case 1:
				name = rapid.SampledFrom([]string{"example.com.", ".", "internal.", "ip6.arpa.", ReverseName(source), ReverseName(d.Orgs[0].Resolver), "1.2.3.4.ip6.arpa."}).Draw(t, "other")
			}
			q := new(dns.Msg).SetQuestion(mixCase(name), rapid.SampledFrom([]uint16{TypeAAAA, TypeAAAA, TypeTXT, TypeSRV, TypePTR, TypeSOA, TypeANY, 1}).Draw(t, "type"))
			q.RecursionDesired, q.CheckingDisabled = rapid.Bool().Draw(t, "rd"), rapid.Bool().Draw(t, "cd")
			if rapid.Bool().Draw(t, "edns") {
				q.SetEdns0(rapid.SampledFrom([]uint16{0, 512, 1232, 4096}).Draw(t, "size"), rapid.Bool().Draw(t, "do"))
			}
			packet, err := q.Pack()
			if err != nil {
				t.Fatal(err)
			}
			h.rnd, s.rnd = rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 1))
			clear(h.entries)
			got := h.answer(make([]byte, 0, udpSize), packet, source, Role{})
			if got == nil {
				continue
			}
			if again := h.answer(make([]byte, 0, udpSize), packet, source, Role{}); len(h.entries) > 0 && !slices.Equal(got, again) {
				t.Fatalf("%s: first\n%x, then\n%x", q.Question[0].String(), got, again)
			}
			short++
			want, _ := s.handle(packet, source, Role{}, false)
			a, b := unpacked(t, want), unpacked(t, got)
			for _, section := range [][]dns.RR{a.Answer, b.Answer, a.Extra, b.Extra} { // equals come in any order
				slices.SortFunc(section, func(x, y dns.RR) int { return strings.Compare(x.String(), y.String()) })
			}
			// A zone that is a part of the question has the letters of the question.
			if diff := cmp.Diff(lower(a.String()), lower(b.String())); diff != "" {
				t.Fatalf("%s (-long +short):\n%s", q.Question[0].String(), diff)
			}
		}
	})
	if short < 500 {
		t.Errorf("only %d queries took the short way: it proves nothing", short)
	}
}

// What the short way reads as plain, the long way reads as the same question.
func FuzzPlain(f *testing.F) {
	for _, name := range []string{"web.internal.", ".", "_80._tcp.WEB.internal."} {
		q := new(dns.Msg).SetQuestion(name, TypeAAAA)
		packet, _ := q.Pack()
		f.Add(packet)
		packet, _ = q.SetEdns0(1232, true).Pack()
		f.Add(packet)
	}
	s := testServer(fixture(), fixtureFacts())
	source := netip.MustParseAddr(d1)
	f.Fuzz(func(t *testing.T, packet []byte) {
		h := hotOver(s, 1)
		out := h.answer(make([]byte, 0, udpSize), packet, source, Role{})
		q, ok := parsePlain(packet)
		if !ok {
			if out != nil {
				t.Fatalf("answered what is not plain: %x", packet)
			}
			return
		}
		r, code, drop := parseRequest(packet, false)
		if drop || code != NoError {
			t.Fatalf("plain, but the long way says %d, drop %v: %x", code, drop, packet)
		}
		labels, ok := splitName(r.question().Name)
		if !ok || !slices.Equal(labels, q.labels()) || r.question().Qtype != q.qtype || r.size != q.size || (r.edns != nil) != q.edns {
			t.Fatalf("read as %v, the long way as %v", q, r.question())
		}
		if out != nil {
			unpacked(t, out)
		}
	})
}

func TestHot(t *testing.T) {
	d, f := fixture(), fixtureFacts()
	zone := NewZone(d)
	s := NewServer(Config{Zone: func() *Zone { return zone }, Facts: func() Facts { return f }})
	h := hotOver(s, 1)
	ask := func(name, from string) []string {
		t.Helper()
		h.refresh()
		packet, _ := new(dns.Msg).SetQuestion(name, TypeAAAA).Pack()
		out := h.answer(make([]byte, 0, udpSize), packet, netip.MustParseAddr(from), Role{})
		if out == nil {
			t.Fatalf("%s: not the short way", name)
		}
		return records(t, unpacked(t, out).Answer)
	}
	check := func(step string, got []string, want string) {
		t.Helper()
		if diff := cmp.Diff(zoneText(t, want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step, diff)
		}
	}
	near := "web.internal. 5 IN AAAA " + w1
	all := near + "\nweb.internal. 5 IN AAAA " + w2 + "\nweb.internal. 5 IN AAAA " + w3
	for range 2 { // asked for the first time, and kept
		check("others", ask("web.internal.", d1), near)
		check("a machine of the app", ask("web.internal.", w3), all)
		check("another org", ask("web.internal.", g2), "web.internal. 5 IN AAAA "+g1)
		check("case", ask("WEB.internal.", d1), "WEB.internal. 5 IN AAAA "+w1)
	}
	if n := len(h.entries); n != 2 {
		t.Errorf("%d entries, want 2", n)
	}
	f = Facts{"fra-2": f["fra-2"], "ams-1": f["ams-1"], "nrt-1": f["nrt-1"]}
	ask("web.internal.", d1)
	if len(h.entries) != 2 {
		t.Error("equal facts dropped what was kept")
	}
	d.Orgs[0].Machines[0].Started = false
	zone = NewZone(d)
	check("zone changed", ask("web.internal.", d1), "web.internal. 5 IN AAAA "+w2)
	f = Facts{"ams-1": {Suspect: true}, "nrt-1": f["nrt-1"]}
	check("facts changed", ask("web.internal.", d1), "web.internal. 5 IN AAAA "+w3)
	for range 100 {
		ask("nosuch.web.internal.", d1)
	}
	if n := len(h.entries); n != 1 {
		t.Errorf("%d entries: names that are not there are kept", n)
	}
}

// Chance keeps playing its part: equals take turns.
func TestHotDrawsAnew(t *testing.T) {
	s := testServer(many(20), nil)
	h := hotOver(s, 1)
	packet, _ := new(dns.Msg).SetQuestion("top1.nearest.of.big.internal.", TypeAAAA).Pack()
	seen := map[string]int{}
	const n = 40 * drawnUses
	for range n {
		out := h.answer(make([]byte, 0, udpSize), packet, netip.MustParseAddr(d1), Role{})
		seen[records(t, unpacked(t, out).Answer)[0]]++
	}
	if len(seen) < 5 {
		t.Errorf("%d different machines in %d answers", len(seen), n)
	}
}

func TestHotAllocatesNothing(t *testing.T) {
	h := hotOver(testServer(many(1000), fixtureFacts()), 1)
	buf := make([]byte, 0, udpSize)
	for _, name := range []string{"web.internal.", "_80._tcp.web.internal.", "w2.vm.web.internal."} {
		packet, _ := new(dns.Msg).SetQuestion(name, TypeAAAA).SetEdns0(1232, false).Pack()
		source := netip.MustParseAddr(d1)
		if n := testing.AllocsPerRun(100, func() { h.answer(buf, packet, source, Role{}) }); n > 0 {
			t.Errorf("%s: %.0f allocations", name, n)
		}
	}
}

func BenchmarkHot(b *testing.B) {
	s := testServer(many(1000), fixtureFacts())
	h := hotOver(s, 1)
	buf := make([]byte, 0, udpSize)
	for _, tt := range []struct{ name, ask string }{
		{"app", "web.internal."}, {"machine", "w2.vm.web.internal."}, {"none", "nosuch.internal."}, {"top3of1000", "top3.nearest.of.big.internal."},
	} {
		packet, err := new(dns.Msg).SetQuestion(tt.ask, TypeAAAA).SetEdns0(1232, false).Pack()
		if err != nil {
			b.Fatal(err)
		}
		source := netip.MustParseAddr(d1)
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if h.answer(buf, packet, source, Role{}) == nil {
					b.Fatal("not the short way")
				}
			}
		})
	}
}
