package dns

import (
	"bytes"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// CVE-2026-26017, -33489, -33190: authorised before canonicalising, strings
// compared instead of labels, one transport forgotten. However a name is written,
// and over either transport, it means the same and is judged the same.
func TestCVE202626017CanonicaliseThenAuthorise(t *testing.T) {
	s := testServer(fixture(), fixtureFacts())
	for _, tt := range []struct{ ask, from, code, want string }{
		{"WEB.INTERNAL. AAAA", g1, "NOERROR", g1},
		{`\119eb.internal. AAAA`, g1, "NOERROR", g1},
		{`web.\105nternal. AAAA`, g1, "NOERROR", g1},
		{`web.\073NTERNAL. AAAA`, g1, "NOERROR", g1},
		{`secret.internal. AAAA`, w1, "NXDOMAIN", ""},
		{`SECRET.\105nternal. AAAA`, w1, "NXDOMAIN", ""},
		{`w1\.vm.web.internal. AAAA`, w1, "NXDOMAIN", ""}, // a dot in a label is no separator
		{`w1.vm\.web.internal. AAAA`, w1, "NXDOMAIN", ""},
		{`web\.internal. AAAA`, w1, "REFUSED", ""}, // one label at the root: not ours
		{`xinternal. AAAA`, w1, "REFUSED", ""},
		{`internal.example. AAAA`, w1, "REFUSED", ""},
		{`xgoogle.internal. AAAA`, w1, "NXDOMAIN", ""}, // a suffix of the string, not of the labels
		{`\.google.internal. AAAA`, w1, "NXDOMAIN", ""},
		{strings.ToUpper(ReverseName(netip.MustParseAddr(g1))) + " PTR", w1, "NXDOMAIN", ""},
	} {
		name, qtype, _ := strings.Cut(tt.ask, " ")
		var bytesOf [2][]byte
		for i, stream := range []bool{false, true} {
			m := ask(t, s, name, qtype, tt.from, Role{}, stream)
			if got := dns.RcodeToString[m.Rcode]; got != tt.code {
				t.Errorf("%s from %s (stream %v): %s, want %s", tt.ask, tt.from, stream, got, tt.code)
			}
			if tt.want != "" && (len(m.Answer) != 1 || m.Answer[0].(*dns.AAAA).AAAA.String() != tt.want) {
				t.Errorf("%s from %s (stream %v): %v, want %s", tt.ask, tt.from, stream, m.Answer, tt.want)
			}
			m.Id = 0
			bytesOf[i], _ = m.Pack()
		}
		if !bytes.Equal(bytesOf[0], bytesOf[1]) {
			t.Errorf("%s: UDP and TCP differ:\n%x\n%x", tt.ask, bytesOf[0], bytesOf[1])
		}
	}
}

// The same for every name, on the pure answer: presentation form does not matter.
func TestCVE202626017EscapedNamesMeanTheSame(t *testing.T) {
	z := NewZone(fixture())
	for _, name := range []string{"web.internal.", "global.web.internal.", "vms.web.internal.", "nosuch.internal.", "example.com.", ReverseName(netip.MustParseAddr(w2))} {
		var escaped strings.Builder
		for i := range len(name) {
			if name[i] == '.' {
				escaped.WriteByte('.')
			} else {
				fmt.Fprintf(&escaped, `\%03d`, name[i])
			}
		}
		for _, qtype := range []uint16{TypeAAAA, TypeTXT, TypePTR} {
			answer := func(n string) string {
				a := z.Answer(fixtureFacts(), Query{Name: n, Type: qtype, Source: netip.MustParseAddr(w1)}, testServer(fixture(), nil).rnd)
				return fmt.Sprintf("%+v", a)
			}
			if plain, odd := answer(name), answer(escaped.String()); plain != odd {
				t.Errorf("%s %d: %s, escaped %s", name, qtype, plain, odd)
			}
		}
	}
}

// CVE-2025-58063: a lease id became a TTL. Ours are bounded, and so are upstreams'.
func TestCVE202558063TTLsAreClamped(t *testing.T) {
	for _, tt := range []struct {
		set  int
		want uint32
	}{{0, 5}, {-1, 5}, {math.MinInt, 5}, {1, 1}, {3600, 3600}, {3601, 3600}, {7587862094702345677, 3600}, {math.MaxInt, 3600}} {
		s := testServer(with(func(d *Data) { d.Orgs[0].Apps[0].TTL = tt.set }), fixtureFacts())
		m := ask(t, s, "web.internal.", "AAAA", d1, Role{}, false)
		if got := m.Answer[0].Header().Ttl; got != tt.want {
			t.Errorf("TTL set to %d: %d, want %d", tt.set, got, tt.want)
		}
	}
	u := startUpstream(t, says(t, "example. 2147483647 IN A 192.0.2.1\nexample. 4294967295 IN A 192.0.2.2\nexample. 7 IN A 192.0.2.3"))
	m := ask(t, forwarding(t, ForwarderConfig{}, u.at), "example.", "A", w1, Role{}, false)
	want := []string{"example. 86400 IN A 192.0.2.1", "example. 0 IN A 192.0.2.2", "example. 7 IN A 192.0.2.3"}
	if got := records(t, m.Answer); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("forwarded: %v, want %v", got, want)
	}
}

// CVE-2017-15133, CVE-2025-68151: a client that opens connections and says nothing
// keeps neither the accept loop nor more than its share.
func TestCVE201715133SilentConnections(t *testing.T) {
	s := testServer(fixture(), fixtureFacts())
	s.cfg.IdleTimeout = deadline
	s.conns.source, s.conns.network = 3, 5
	at, l := serve(t, s, w1)
	for range 3 {
		dialTCP(t, at)
	}
	waitFor(t, "three silent connections", func() bool { s.conns.mu.Lock(); defer s.conns.mu.Unlock(); return s.conns.all == 3 })
	closed(t, dialTCP(t, at), "the fourth connection of one source")

	// Another member is served all the same.
	l.mu.Lock()
	l.member = netip.MustParseAddr(w2)
	l.mu.Unlock()
	c := dialTCP(t, at)
	packet, _ := new(dns.Msg).SetQuestion("web.internal.", TypeAAAA).Pack()
	if err := writeStream(c, packet); err != nil {
		t.Fatal(err)
	}
	if m, err := readAnswer(c, "tcp"); err != nil || len(m.Answer) != 3 {
		t.Errorf("%v %v", m, err)
	}
	if n := s.Stats().OverLimit; n != 1 {
		t.Errorf("over limit: %d, want 1", n)
	}
}

// CVE-2025-68151: a client that does not read its answers is cut off.
func TestCVE202568151ClientsThatDoNotRead(t *testing.T) {
	s := testServer(many(1500), fixtureFacts())
	s.cfg.IOTimeout = 50 * time.Millisecond
	at, _ := serve(t, s, w1)
	c := dialTCP(t, at)
	c.(*net.TCPConn).SetReadBuffer(4096)
	packet, _ := new(dns.Msg).SetQuestion("big.internal.", TypeAAAA).Pack()
	var all bytes.Buffer
	for range maxQueries {
		writeStream(&all, packet)
	}
	c.Write(all.Bytes())
	waitFor(t, "the server to give up", func() bool {
		s.conns.mu.Lock()
		defer s.conns.mu.Unlock()
		return s.Stats().Unwritten == 1 && s.conns.all == 0
	})
}

// Names are answered from local memory only: an upstream that hangs delays no name
// of the mesh, not even on the same connection's neighbours.
func TestNamesAreAnsweredFromLocalMemoryOnly(t *testing.T) {
	u := startUpstream(t, silence)
	s := forwarding(t, ForwarderConfig{Timeout: deadline}, u.at)
	at, _ := serve(t, s, w1)
	stuck, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	packet, _ := new(dns.Msg).SetQuestion("example.com.", TypeAAAA).Pack()
	for range 50 {
		stuck.Write(packet)
	}
	waitFor(t, "a query upstream", func() bool { return u.queries.Load() > 0 })
	r, err := Lookup(t.Context(), direct, at, "web.internal", "AAAA")
	if err != nil || len(r.Answers) != 3 || r.Elapsed > time.Second {
		t.Errorf("%v %v", r, err)
	}
}

// Another org's app looks exactly like no app, byte for byte.
func TestAnotherOrgsAppLooksLikeNoApp(t *testing.T) {
	s := testServer(fixture(), fixtureFacts())
	for _, pattern := range []string{"%s.internal.", "vms.%s.internal.", "g2.vm.%s.internal.", "nrt.%s.internal.", "c.%s.internal."} {
		for _, qtype := range []string{"AAAA", "TXT", "ANY", "A"} {
			raw := func(app string) []byte {
				m := ask(t, s, fmt.Sprintf(pattern, app), qtype, w1, Role{}, false)
				m.Id, m.Question[0].Name = 0, "x."
				out, _ := m.Pack()
				return out
			}
			if there, never := raw("secret"), raw("nosuch"); !bytes.Equal(there, never) {
				t.Errorf(pattern+" %s:\n%x, a name that never was\n%x", "secret", qtype, there, never)
			}
		}
	}
}

// One bad record never hides the others, and doubles are decided the same way
// each time.
func TestBadRecordsAreSkipped(t *testing.T) {
	addr := netip.MustParseAddr
	d := with(func(d *Data) {
		o := &d.Orgs[0]
		up := func(id, app, at string) Machine {
			return Machine{ID: id, App: app, Host: "fra-1", Addr: addr(at), Started: true, Healthy: true}
		}
		o.Machines = append(o.Machines,
			up("w1", "web", "fd12:3456:789a:1:100:1:9:2"),    // an id twice
			up("z-dup", "web", w2),                           // an address twice
			up("alien", "web", "fd12:3456:789a:2::9"),        // another org's address
			up("Bad_Id", "web", "fd12:3456:789a:1::a1"),      // no label
			up("a,b", "web", "fd12:3456:789a:1::a2"),         // would break the texts
			up("ok", "google", "fd12:3456:789a:1::a3"),       // reserved
			up("", "web", "fd12:3456:789a:1::a4"),            // empty
			up("res", "web", "fd12:3456:789a:1::3"),          // the resolver's address
			up("x", "we\x00b", "fd12:3456:789a:1::a5"),       // no label
			Machine{ID: "noaddr", App: "web", Started: true}, // no address
		)
		o.Clients = append(o.Clients, Client{"laptop1", addr("fd12:3456:789a:1::b1")}, Client{"w1c", addr(w1)}, Client{"-", addr("fd12:3456:789a:1::b2")})
		o.Apps = append(o.Apps, App{Name: "web", Answer: "all"}, App{Name: "_apps"}, App{Name: "org"})
		d.Regions = append(d.Regions, Region{"top3", nil}, Region{"all", nil}, Region{"fra", nil}, Region{"vm", nil})
		d.Hosts = append(d.Hosts, Host{Name: "fra-1", Region: "nrt", Cordoned: true})
		d.Orgs = append(d.Orgs,
			Org{Name: "again", Prefix: o.Prefix, Apps: []App{{Name: "hijack"}}},
			Org{Name: "zero", Prefix: netip.MustParsePrefix("fd12:3456:789a::/64"), Apps: []App{{Name: "hijack"}}},
			Org{Name: "outside", Prefix: netip.MustParsePrefix("fd99::/64")},
			Org{Name: "wide", Prefix: netip.MustParsePrefix("fd12:3456:789a::/48")},
			Org{Name: "none"})
	})
	s := testServer(d, fixtureFacts())
	checkAll(t, s, []row{
		{ask: "all.vms.web.internal. TXT", want: `all.vms.web.internal. 5 IN TXT "w1 fra,w2 ams,w3 nrt"`},
		{ask: "_apps.internal. TXT", want: `_apps.internal. 5 IN TXT "db,idle,none,web"`},
		{ask: "_peer.internal. TXT", want: `_peer.internal. 5 IN TXT "laptop1"`},
		{ask: "web.internal. AAAA", from: d1, want: "web.internal. 5 IN AAAA " + w1},
		{ask: "hijack.internal. AAAA", code: "NXDOMAIN"},
		{ask: "x.internal. AAAA", from: "fd99::1", code: "REFUSED"},
		{ask: "hijack.internal. AAAA", from: "fd12:3456:789a::9", code: "REFUSED"},
		{ask: ReverseName(addr(w2)) + " PTR", want: ReverseName(addr(w2)) + " 5 IN PTR w2.vm.web.internal."},
	})
	NewZone(Data{}) // nothing at all
}

func TestReverseZones(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		want   []string
	}{
		{"fd12:3456:789a::/48", []string{"a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."}},
		{"fd12::/16", []string{"2.1.d.f.ip6.arpa."}},
		{"fd12:3456:7898::/47", []string{"8.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.", "9.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."}},
		{"fd00::/18", []string{"0.0.0.d.f.ip6.arpa.", "1.0.0.d.f.ip6.arpa.", "2.0.0.d.f.ip6.arpa.", "3.0.0.d.f.ip6.arpa."}},
		{"10.0.0.0/8", nil},
	} {
		if got := ReverseZones(netip.MustParsePrefix(tt.prefix)); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %v, want %v", tt.prefix, got, tt.want)
		}
	}
	// A mesh whose length is no multiple of four still owns exactly its names.
	d := with(func(d *Data) { d.Prefix = netip.MustParsePrefix("fd12:3456:7898::/46") })
	s := testServer(d, fixtureFacts())
	row{ask: ReverseName(netip.MustParseAddr(w2)) + " PTR", want: ReverseName(netip.MustParseAddr(w2)) + " 5 IN PTR w2.vm.web.internal."}.check(t, s)
	row{ask: ReverseName(netip.MustParseAddr("fd12:3456:789c::1")) + " PTR", code: "REFUSED"}.check(t, s)
}
