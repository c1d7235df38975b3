package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The mesh of these tests, as fra-1 sees it. Round trips from fra-1: fra-2 0.6 ms,
// ams-1 8 ms, nrt-1 240 ms, syd-1 never measured.
//
//	acme (network 1)                        globex (network 2)
//	  web    fra-1 w1, ams-1 w2, nrt-1 w3      web     ams-1 g1
//	  db     fra-2 d1, ams-1 d2                secret  nrt-1 g2
//	  idle   fra-1 i1 (stopped)
const (
	w1 = "fd12:3456:789a:1:100:1:1:2"
	w2 = "fd12:3456:789a:1:200:3:1:2"
	w3 = "fd12:3456:789a:1:300:4:1:2"
	d1 = "fd12:3456:789a:1:100:2:1:2"
	d2 = "fd12:3456:789a:1:200:3:2:2"
	i1 = "fd12:3456:789a:1:100:1:2:2"
	l1 = "fd12:3456:789a:1:100:1:3:2" // client laptop1
	g1 = "fd12:3456:789a:2:200:3:3:2"
	g2 = "fd12:3456:789a:2:300:4:2:2"

	resolver = "fd12:3456:789a::3"
)

func fixture() Data {
	addr := netip.MustParseAddr
	up := func(m Machine) Machine { m.Started, m.Healthy = true, true; return m }
	return Data{
		Prefix: netip.MustParsePrefix("fd12:3456:789a::/48"), Resolver: addr(resolver), Self: "fra-1",
		Regions: []Region{
			{"fra", &Place{50.1, 8.7}}, {"ams", &Place{52.4, 4.9}}, {"nrt", &Place{35.8, 140.4}}, {"syd", &Place{-33.9, 151.2}}, {"nowhere", nil},
		},
		Hosts: []Host{
			{"fra-1", "fra", addr("fd12:3456:789a:0:100:1:0:1"), false},
			{"fra-2", "fra", addr("fd12:3456:789a:0:100:2:0:1"), false},
			{"ams-1", "ams", addr("fd12:3456:789a:0:200:3:0:1"), false},
			{"nrt-1", "nrt", addr("fd12:3456:789a:0:300:4:0:1"), false},
			{"syd-1", "syd", addr("fd12:3456:789a:0:400:5:0:1"), false},
		},
		Orgs: []Org{{
			Name: "acme", Prefix: netip.MustParsePrefix("fd12:3456:789a:1::/64"),
			Resolver: addr("fd12:3456:789a:1::3"), Host: addr("fd12:3456:789a:1:100:1:0:1"),
			Apps: []App{{Name: "web"}, {Name: "db", Answer: "1", TTL: 60}, {Name: "idle"}, {Name: "none"}},
			Machines: []Machine{
				up(Machine{ID: "w1", App: "web", Host: "fra-1", Addr: addr(w1), Group: "front", Meta: map[string]string{"role": "primary"}}),
				up(Machine{ID: "w2", App: "web", Host: "ams-1", Addr: addr(w2), Group: "front", Meta: map[string]string{"role": "replica", "bad.key": "x", "v": "1.2"}}),
				up(Machine{ID: "w3", App: "web", Host: "nrt-1", Addr: addr(w3), Group: "worker", Meta: map[string]string{"role": "Replica"}}),
				up(Machine{ID: "d1", App: "db", Host: "fra-2", Addr: addr(d1)}),
				up(Machine{ID: "d2", App: "db", Host: "ams-1", Addr: addr(d2)}),
				{ID: "i1", App: "idle", Host: "fra-1", Addr: addr(i1), Healthy: true},
			},
			Clients: []Client{{"laptop1", addr(l1)}},
		}, {
			Name: "globex", Prefix: netip.MustParsePrefix("fd12:3456:789a:2::/64"),
			Resolver: addr("fd12:3456:789a:2::3"), Host: addr("fd12:3456:789a:2:100:1:0:1"),
			Apps: []App{{Name: "web"}, {Name: "secret"}},
			Machines: []Machine{
				up(Machine{ID: "g1", App: "web", Host: "ams-1", Addr: addr(g1)}),
				up(Machine{ID: "g2", App: "secret", Host: "nrt-1", Addr: addr(g2)}),
			},
		}},
	}
}

func fixtureFacts() Facts {
	ms := time.Millisecond
	return Facts{"fra-2": {RTT: 600 * time.Microsecond}, "ams-1": {RTT: 8 * ms}, "nrt-1": {RTT: 240 * ms}}
}

// with returns the fixture after change.
func with(change func(*Data)) Data {
	d := fixture()
	change(&d)
	return d
}

// server returns a server over fixed data; nothing is random but what seed says.
func testServer(d Data, f Facts) *Server { return zoneServer(NewZone(d), f) }

func zoneServer(z *Zone, f Facts) *Server {
	s := NewServer(Config{Zone: func() *Zone { return z }, Facts: func() Facts { return f }})
	s.rnd = rand.New(rand.NewPCG(1, 2))
	return s
}

// row is one fact about one name.
type row struct {
	ask  string // "<name> <type>"
	from string // source address; "": w1
	code string // "": NOERROR
	want string // answer records as in a zone file
	ns   string // "": the SOA of internal. if there is no answer, else nothing
	any  bool   // the answer's order does not matter
	role Role
}

const soaInternal = "internal. 1 IN SOA _api.internal. hostmaster.internal. 1 3600 600 86400 1"

// check asks over both transports and compares.
func (r row) check(t *testing.T, s *Server) {
	t.Helper()
	name, qtype, _ := strings.Cut(r.ask, " ")
	for _, stream := range []bool{false, true} {
		m := ask(t, s, name, qtype, r.from, r.role, stream)
		got, want := records(t, m.Answer), zoneText(t, r.want)
		if r.any {
			slices.Sort(got)
			slices.Sort(want)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (stream %v): answer (-want +got):\n%s", r.ask, stream, diff)
		}
		code := r.code
		if code == "" {
			code = "NOERROR"
		}
		if got := dns.RcodeToString[m.Rcode]; got != code {
			t.Errorf("%s: code %s, want %s", r.ask, got, code)
		}
		ns := r.ns
		if ns == "" && r.want == "" && (code == "NOERROR" || code == "NXDOMAIN") {
			ns = soaInternal
		}
		if diff := cmp.Diff(zoneText(t, ns), records(t, m.Ns)); diff != "" {
			t.Errorf("%s: authority (-want +got):\n%s", r.ask, diff)
		}
		if m.Authoritative != (code != "REFUSED") {
			t.Errorf("%s: authoritative %v", r.ask, m.Authoritative)
		}
	}
}

func ask(t testing.TB, s *Server, name, qtype, from string, role Role, stream bool) *dns.Msg {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(name, dns.StringToType[qtype])
	q.SetEdns0(4096, false)
	return exchangeBytes(t, s, q, from, role, stream)
}

func exchangeBytes(t testing.TB, s *Server, q *dns.Msg, from string, role Role, stream bool) *dns.Msg {
	t.Helper()
	if from == "" {
		from = w1
	}
	packet, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out, wait := s.handle(packet, netip.MustParseAddr(from), role, stream)
	if wait != nil {
		out = wait(t.Context())
	}
	m := new(dns.Msg)
	if err := m.Unpack(out); err != nil {
		t.Fatalf("%s: answer %x: %v", q.Question[0].Name, out, err)
	}
	return m
}

// records prints records as a zone file has them.
func records(t testing.TB, rrs []dns.RR) []string {
	t.Helper()
	var out []string
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	return out
}

// zoneText reads lines of a zone file; blanks and indentation do not matter.
func zoneText(t testing.TB, s string) []string {
	t.Helper()
	var rrs []dns.RR
	for _, line := range strings.Split(s, "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatalf("zone text %q: %v", line, err)
		}
		rrs = append(rrs, rr)
	}
	return records(t, rrs)
}
