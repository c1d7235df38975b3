package dns

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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
	was := len(h.entries)
	for range 100 {
		ask("nosuch.web.internal.", d1)
	}
	if n := len(h.entries); n != was {
		t.Errorf("%d entries: names that are not there are kept", n-was)
	}
}

// What is kept stays through changes that do not concern it, and no longer.
func TestHotKeepsWhatStays(t *testing.T) {
	zone, f := NewZone(ownFixture()), fixtureFacts()
	s := NewServer(Config{Zone: func() *Zone { return zone }, Facts: func() Facts { return f }})
	h := hotOver(s, 1)
	d := ownFixture()
	acme := func(o OrgDelta) Delta { o.Name = "acme"; return Delta{Orgs: []OrgDelta{o}} }
	machine := func(i int, change func(*Machine)) Delta {
		m := d.Orgs[0].Machines[i]
		change(&m)
		return acme(OrgDelta{Machines: []Machine{m}})
	}
	const (
		app  = "web.internal. AAAA" // on fra-1, ams-1 and nrt-1
		text = "vms.web.internal. TXT"
		db   = "db.internal. AAAA" // on fra-2 and ams-1
		own  = "nas.internal. AAAA"
		ptr  = "laptop1._peer.internal. AAAA"
	)
	all := []string{app, text, db, own, ptr}
	was := map[string]*hotEntry{}
	ask := func() (kept []string) {
		h.refresh()
		for _, question := range all {
			name, qtype, _ := strings.Cut(question, " ")
			packet, _ := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype]).Pack()
			got := h.answer(make([]byte, 0, udpSize), packet, netip.MustParseAddr(l1), Role{})
			want, _ := s.handle(packet, netip.MustParseAddr(l1), Role{}, false)
			if a, b := unpacked(t, want), unpacked(t, got); lower(a.String()) != lower(b.String()) {
				t.Errorf("%s: kept too long:\n%s\nwant\n%s", question, b, a)
			}
			is := h.entries[string(h.key)]
			if is == was[question] {
				kept = append(kept, question)
			}
			was[question] = is
		}
		return kept
	}
	ask()
	for _, tt := range []struct {
		name  string
		delta Delta
		host  string // of which another fact is known
		fact  Fact
		lost  []string
	}{
		{name: "nothing"},
		{name: "another org", delta: Delta{Orgs: []OrgDelta{{Name: "globex", RemovedMachines: []string{"g1"}}}}},
		{name: "a new app", delta: acme(OrgDelta{Apps: []App{{Name: "new"}}}), lost: []string{own, ptr}},
		{name: "a machine of the app", delta: machine(0, func(m *Machine) { m.Started = false }), lost: []string{app, text, own, ptr}},
		{name: "a machine of the other app", delta: machine(3, func(m *Machine) { m.Group = "g" }), lost: []string{db, own, ptr}},
		{name: "a setting", delta: acme(OrgDelta{Apps: []App{{Name: "db", TTL: 7}}}), lost: []string{db, own, ptr}},
		{name: "a host that is cordoned", delta: Delta{Hosts: []Host{{Name: "fra-2", Region: "fra", Addr: d.Hosts[1].Addr, Cordoned: true}}}, lost: []string{db, own, ptr}},
		{name: "a host of none of them", delta: Delta{Hosts: []Host{{Name: "syd-1", Region: "syd", Addr: d.Hosts[4].Addr, Cordoned: true}}}, lost: []string{own, ptr}},
		{name: "a region", delta: Delta{Regions: []Region{{Name: "new"}}}, lost: all},
		{name: "equal facts", host: "ams-1", fact: f["ams-1"]},
		{name: "the fact of a host of one", host: "nrt-1", fact: Fact{Suspect: true}, lost: []string{app, text, own, ptr}},
		{name: "the fact of a host of both", host: "ams-1", fact: Fact{Suspect: true}, lost: all},
		{name: "the fact of another host", host: "syd-1", fact: Fact{RTT: ms}, lost: []string{own, ptr}},
	} {
		zone = zone.With(tt.delta)
		if tt.host != "" {
			f = maps.Clone(f)
			f[tt.host] = tt.fact
		}
		want := slices.DeleteFunc(slices.Clone(all), func(q string) bool { return slices.Contains(tt.lost, q) })
		if diff := cmp.Diff(want, ask(), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: kept (-want +got):\n%s", tt.name, diff)
		}
	}
}

// Two orgs that claim one network: what was kept of the one is not told of the other.
func TestHotKeepsOrgsApart(t *testing.T) {
	d := fixture()
	again := d.Orgs[1]
	again.Name, again.Prefix, again.Resolver, again.Host = "z", d.Orgs[0].Prefix, d.Orgs[0].Resolver, d.Orgs[0].Host
	again.Machines = []Machine{{ID: "other", App: "web", Host: "fra-1", Addr: netip.MustParseAddr(w2), Started: true, Healthy: true}}
	d.Orgs = append(d.Orgs, again)
	zone := NewZone(d)
	h := hotOver(NewServer(Config{Zone: func() *Zone { return zone }}), 1)
	for _, want := range []string{w1, w2} {
		for _, name := range []string{"web.internal.", "_instances.internal."} {
			qtype := TypeAAAA
			if name[0] == '_' {
				qtype = TypeTXT
			}
			h.refresh()
			packet, _ := new(dns.Msg).SetQuestion(name, qtype).Pack()
			out := unpacked(t, h.answer(make([]byte, 0, udpSize), packet, netip.MustParseAddr(l1), Role{}))
			if len(out.Answer) != 1 || !strings.Contains(out.Answer[0].String(), want) {
				t.Errorf("%s: %v, want %s", name, out.Answer, want)
			}
		}
		zone = zone.With(Delta{Orgs: []OrgDelta{{Name: "acme", Removed: true}}})
	}
}

// Over any changes of zone and facts the short way answers as the long way does.
func TestShortWayFollows(t *testing.T) {
	short := 0
	rapid.Check(t, func(t *rapid.T) {
		zone, f := NewZone(Data{Prefix: netip.MustParsePrefix("fd12:3456:789a::/48"), Self: "h0"}), Facts{}
		s := NewServer(Config{Zone: func() *Zone { return zone }, Facts: func() Facts { return f }})
		h := hotOver(s, 1)
		names := rapid.SliceOfN(rapid.SampledFrom(askable()), 8, 8).Draw(t, "names")
		for range rapid.IntRange(2, 10).Draw(t, "steps") {
			zone = zone.With(drawDelta(t))
			if rapid.Bool().Draw(t, "facts") {
				f = maps.Clone(f)
				f[rapid.SampledFrom([]string{"h0", "h1", "h2", "h3"}).Draw(t, "host")] = Fact{
					RTT: time.Duration(rapid.IntRange(0, 3).Draw(t, "rtt")) * 20 * ms, Suspect: rapid.Bool().Draw(t, "suspect"),
				}
			}
			h.refresh()
			for _, name := range names {
				for _, qtype := range []uint16{TypeAAAA, TypeTXT, TypePTR} {
					source := netip.MustParseAddr("fd12:3456:789a:" + rapid.SampledFrom([]string{"1:100:1:1:2", "1:100:1:ff:2", "2:100:1:1:2", "3:100:1:2:1"}).Draw(t, "from"))
					packet, err := new(dns.Msg).SetQuestion(name, qtype).Pack()
					if err != nil {
						t.Fatal(err)
					}
					got := h.answer(make([]byte, 0, udpSize), packet, source, Role{})
					if got == nil {
						continue
					}
					short++
					want, _ := s.handle(packet, source, Role{}, false)
					a, b := unpacked(t, want), unpacked(t, got)
					byText := func(x, y dns.RR) int { return strings.Compare(x.String(), y.String()) }
					slices.SortFunc(a.Answer, byText) // equals come in any order
					slices.SortFunc(b.Answer, byText)
					random := strings.HasPrefix(name, "top1") || strings.HasPrefix(name, "web") || strings.HasPrefix(name, "db") || strings.Contains(name, "app.") || strings.HasPrefix(name, "front.internal")
					if random && len(a.Answer) == len(b.Answer) && a.Rcode == b.Rcode && len(a.Answer) > 0 { // which of the equals, chance decides
						continue
					}
					if a.String() != b.String() {
						t.Fatalf("%s %d from %s: long\n%s\nshort\n%s", name, qtype, source, a, b)
					}
				}
			}
		}
	})
	if short < 1000 {
		t.Errorf("only %d queries took the short way: it proves nothing", short)
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
