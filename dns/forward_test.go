package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

var mesh = netip.MustParsePrefix("fd12:3456:789a::/48")

// upstream is a resolver that does what its function says; nil is silence.
type upstream struct {
	at      netip.AddrPort
	queries atomic.Int64
	mu      sync.Mutex // guards seen
	seen    []*dns.Msg
}

func startUpstream(t *testing.T, handle func(q *dns.Msg, stream bool) *dns.Msg) *upstream {
	t.Helper()
	udp, tcp, err := bindBoth(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{at: addrPortOf(udp.LocalAddr())}
	serve := func(stream bool) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			u.queries.Add(1)
			u.mu.Lock()
			u.seen = append(u.seen, q.Copy())
			u.mu.Unlock()
			if m := handle(q, stream); m != nil {
				w.WriteMsg(m)
			}
		}
	}
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: serve(false), UDPSize: 4096}, {Listener: tcp, Handler: serve(true)}} {
		started := make(chan struct{})
		ended := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(ended); s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { s.Shutdown(); <-ended })
	}
	return u
}

// says answers with records in zone-file text.
func says(t *testing.T, text string) func(*dns.Msg, bool) *dns.Msg {
	return func(q *dns.Msg, _ bool) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		for _, line := range strings.Split(text, "\n") {
			if rr, err := dns.NewRR(strings.TrimSpace(line)); err == nil && rr != nil {
				m.Answer = append(m.Answer, rr)
			}
		}
		return m
	}
}

func code(rcode int) func(*dns.Msg, bool) *dns.Msg {
	return func(q *dns.Msg, _ bool) *dns.Msg { return new(dns.Msg).SetRcode(q, rcode) }
}

func silence(*dns.Msg, bool) *dns.Msg { return nil }

func forwarding(t *testing.T, cfg ForwarderConfig, upstreams ...netip.AddrPort) *Server {
	t.Helper()
	if cfg.Upstreams == nil {
		cfg.Upstreams = func() []netip.AddrPort { return upstreams }
	}
	cfg.Mesh = mesh
	f, err := NewForwarder(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := testServer(fixture(), fixtureFacts())
	s.cfg.Forward = f
	return s
}

func TestForward(t *testing.T) {
	u := startUpstream(t, says(t, "example.com. 300 IN A 192.0.2.1"))
	s := forwarding(t, ForwarderConfig{}, u.at)
	m := ask(t, s, "eXample.com.", "A", w1, Role{}, false)
	if diff := cmp.Diff([]string{"example.com. 300 IN A 192.0.2.1"}, records(t, m.Answer)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	if m.Question[0].Name != "eXample.com." || m.Authoritative || !m.RecursionAvailable || m.IsEdns0() == nil {
		t.Errorf("reply %v", m)
	}
	if n := s.Stats().Forwarded; n != 1 {
		t.Errorf("forwarded %d, want 1", n)
	}
	// Names of ours never leave; the clouds' do.
	for _, tt := range []struct {
		ask  string
		sent int64
	}{
		{"web.internal. AAAA", 0}, {"nosuch.internal. AAAA", 0}, {"internal. NS", 0}, {ReverseName(netip.MustParseAddr(g1)) + " PTR", 0},
		{"x.org.internal. AAAA", 0}, {"metadata.google.internal. A", 1}, {"vm.c.project.internal. A", 1}, {"x.compute.internal. A", 1},
		{"x.ec2.internal. A", 1}, {"host.docker.internal. A", 1}, {"example.org. A", 1}, {"1.0.0.127.in-addr.arpa. PTR", 1},
		{"9.8.7.6.5.4.3.2.1.d.f.ip6.arpa. NS", 1},
	} {
		before := u.queries.Load()
		name, qtype, _ := strings.Cut(tt.ask, " ")
		ask(t, s, name, qtype, w1, Role{}, false)
		if sent := u.queries.Load() - before; sent != tt.sent {
			t.Errorf("%s: %d queries upstream, want %d", tt.ask, sent, tt.sent)
		}
	}
	before := u.queries.Load()
	if m := ask(t, s, "example.com.", "A", "192.0.2.7", Role{}, false); m.Rcode != dns.RcodeRefused || u.queries.Load() != before {
		t.Errorf("a stranger's query was forwarded: %v", m)
	}
}

func TestForwardOverTCPWhenTruncated(t *testing.T) {
	u := startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg {
		m := says(t, "big.example. 1 IN A 192.0.2.1")(q, stream)
		if !stream {
			m.Answer, m.Truncated = nil, true
		}
		return m
	})
	m := ask(t, forwarding(t, ForwarderConfig{}, u.at), "big.example.", "A", w1, Role{}, false)
	if len(m.Answer) != 1 || m.Truncated {
		t.Errorf("%v", m)
	}
}

// One dead, one lame upstream before a good one; the good one is asked first from
// then on.
func TestForwardPastBadUpstreams(t *testing.T) {
	dead := netip.MustParseAddrPort("127.0.0.1:1") // nobody listens
	lame := startUpstream(t, code(dns.RcodeServerFailure))
	good := startUpstream(t, says(t, "example. 1 IN A 192.0.2.1"))
	s := forwarding(t, ForwarderConfig{}, dead, lame.at, good.at)
	for range 3 {
		if m := ask(t, s, "example.", "A", w1, Role{}, false); len(m.Answer) != 1 {
			t.Fatalf("%v", m)
		}
	}
	if n := lame.queries.Load(); n != 1 {
		t.Errorf("the lame upstream was asked %d times, want once", n)
	}
}

func TestForwardFailsQuickly(t *testing.T) {
	lame := startUpstream(t, code(dns.RcodeRefused))
	mute := startUpstream(t, silence)
	for _, tt := range []struct {
		name      string
		upstreams []netip.AddrPort
		timeout   time.Duration
		code      int
	}{
		{"no upstreams", nil, 0, dns.RcodeServerFailure},
		{"nobody listens", []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, 0, dns.RcodeServerFailure},
		{"all refuse", []netip.AddrPort{lame.at}, 0, dns.RcodeRefused},
		{"silence", []netip.AddrPort{mute.at}, 50 * time.Millisecond, dns.RcodeServerFailure},
		{"only the mesh's own", []netip.AddrPort{netip.MustParseAddrPort("[fd12:3456:789a::3]:53")}, 0, dns.RcodeServerFailure},
	} {
		s := forwarding(t, ForwarderConfig{Timeout: tt.timeout}, tt.upstreams...)
		start := time.Now()
		if m := ask(t, s, "example.", "A", w1, Role{}, false); m.Rcode != tt.code {
			t.Errorf("%s: %v", tt.name, m)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("%s: took %s", tt.name, took)
		}
	}
}

// What does not match the question is not taken; the true answer still counts.
func TestForgedAnswersAreIgnored(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 4096)
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		q := new(dns.Msg)
		if q.Unpack(buf[:n]) != nil {
			return
		}
		forge := func(change func(*dns.Msg)) {
			m := says(t, "example. 1 IN A 192.0.2.66")(q, false)
			change(m)
			packet, _ := m.Pack()
			conn.WriteTo(packet, from)
		}
		conn.WriteTo([]byte("junk"), from)
		forge(func(m *dns.Msg) { m.Id++ })
		forge(func(m *dns.Msg) { m.Response = false })
		forge(func(m *dns.Msg) { m.Question[0].Name = "other." })
		forge(func(m *dns.Msg) { m.Question[0].Name, m.Question[0].Qtype = "example.", dns.TypeAAAA })
		forge(func(m *dns.Msg) { m.Question[0].Qtype, m.Question = dns.TypeA, nil })
		forge(func(m *dns.Msg) { m.Answer[0].(*dns.A).A = net.IPv4(192, 0, 2, 1) })
	}()
	m := ask(t, forwarding(t, ForwarderConfig{}, addrPortOf(conn.LocalAddr())), "example.", "A", w1, Role{}, false)
	if diff := cmp.Diff([]string{"example. 1 IN A 192.0.2.1"}, records(t, m.Answer)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	<-ended
}

// DNS rebinding: a name on the internet must not point into the mesh.
func TestMeshAddressesAreDroppedFromForwardedAnswers(t *testing.T) {
	u := startUpstream(t, says(t, `
		evil.example. 5 IN AAAA `+w1+`
		evil.example. 5 IN AAAA 2001:db8::1
		evil.example. 5 IN HTTPS 1 . ipv6hint="`+w1+`"
		evil.example. 5 IN HTTPS 1 . ipv6hint="2001:db8::1"`))
	s := forwarding(t, ForwarderConfig{}, u.at)
	row := []string{"evil.example. 5 IN AAAA 2001:db8::1", `evil.example. 5 IN HTTPS 1 . ipv6hint="2001:db8::1"`}
	if diff := cmp.Diff(row, records(t, ask(t, s, "evil.example.", "AAAA", w1, Role{}, false).Answer)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	// A rule may: that is where the mesh's names come from on a laptop.
	s = forwarding(t, ForwarderConfig{Rules: map[string][]netip.AddrPort{"example.": {u.at}}})
	if m := ask(t, s, "evil.example.", "AAAA", w1, Role{}, false); len(m.Answer) != 4 {
		t.Errorf("by rule: %v", m)
	}
}

func TestRulesMatchWholeLabels(t *testing.T) {
	a, b, rest := startUpstream(t, code(0)), startUpstream(t, code(0)), startUpstream(t, code(0))
	f, err := NewForwarder(ForwarderConfig{
		Upstreams: func() []netip.AddrPort { return []netip.AddrPort{rest.at} },
		Rules:     map[string][]netip.AddrPort{"internal.": {a.at}, "Corp.Internal": {b.at}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Config{Forward: f})
	for _, tt := range []struct {
		name string
		to   *upstream
	}{
		{"web.internal.", a}, {"internal.", a}, {"x.CORP.internal.", b}, {"corp.internal.", b}, {"xcorp.internal.", a},
		{"notinternal.", rest}, {"internal.example.", rest}, {`x\.internal.`, rest}, {"metadata.google.internal.", a},
	} {
		before := tt.to.queries.Load()
		ask(t, s, tt.name, "AAAA", "127.0.0.1", Role{}, false)
		if tt.to.queries.Load() != before+1 {
			t.Errorf("%s went elsewhere", tt.name)
		}
	}
	if _, err := NewForwarder(ForwarderConfig{Rules: map[string][]netip.AddrPort{"a..b": nil}}); err == nil {
		t.Error("a rule for a bad name was taken")
	}
}

// Without a rule the mesh's names stop here, also in a stub.
func TestForwarderKeepsTheMeshsNames(t *testing.T) {
	u := startUpstream(t, code(0))
	f, err := NewForwarder(ForwarderConfig{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{u.at} }, Mesh: mesh})
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Config{Forward: f})
	for _, name := range []string{"web.internal.", "internal.", ReverseName(netip.MustParseAddr(w1)), "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."} {
		if m := ask(t, s, name, "AAAA", "127.0.0.1", Role{}, false); m.Rcode != dns.RcodeRefused || u.queries.Load() != 0 {
			t.Errorf("%s: %v, %d queries upstream", name, m, u.queries.Load())
		}
	}
}

// A resolver that sends our query back to us: told by our mark if it keeps that,
// bounded to one query upstream if it does not.
func TestLoops(t *testing.T) {
	for _, keeps := range []bool{true, false} {
		t.Run(fmt.Sprintf("keeps EDNS0 options %v", keeps), func(t *testing.T) {
			var stub *Stub
			u := startUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
				back := q.Copy()
				back.Id = dns.Id()
				if !keeps {
					back.Extra = nil
				}
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				m, err := exchange(ctx, direct, stub.Addr(), back)
				if err != nil {
					return nil
				}
				m.Id = q.Id
				return m
			})
			timeout := deadline // told by the mark, nobody waits
			if !keeps {
				timeout = 200 * time.Millisecond
			}
			var err error
			stub, err = NewStub(StubConfig{
				Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")},
				Forward: ForwarderConfig{
					Timeout: timeout,
					Upstreams: func() []netip.AddrPort {
						return []netip.AddrPort{stub.Addr(), u.at} // and never itself
					},
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			runStub(t, stub)
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			r, err := Lookup(ctx, direct, stub.Addr(), "example.com", "A")
			if err != nil || r.Rcode != "SERVFAIL" || r.Elapsed > deadline/2 {
				t.Errorf("%v %v", r, err)
			}
			if n := u.queries.Load(); n < 1 || n > 2 {
				t.Errorf("%d queries upstream", n)
			}
		})
	}
}

func TestUsableUpstreams(t *testing.T) {
	parse := func(list string) (all []netip.AddrPort) {
		for _, s := range strings.Fields(list) {
			all = append(all, netip.MustParseAddrPort(s))
		}
		return all
	}
	for _, tt := range []struct{ name, self, listed, want string }{
		{"in order", "", "10.0.0.1:53 10.0.0.2:53", "10.0.0.1:53 10.0.0.2:53"},
		{"once each", "", "10.0.0.1:53 10.0.0.1:53 [::ffff:10.0.0.1]:53", "10.0.0.1:53"},
		{"not ourselves", "127.0.0.153:53", "127.0.0.153:53 10.0.0.1:53", "10.0.0.1:53"},
		{"nobody in the mesh", "", "[" + resolver + "]:53 [fd12:3456:789a:1::3%eth0]:53 [fd12:3456:789b::3]:53", "[fd12:3456:789b::3]:53"},
	} {
		f, err := NewForwarder(ForwarderConfig{Mesh: mesh, Self: parse(tt.self), Upstreams: func() []netip.AddrPort { return parse(tt.listed) }})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprint(f.usable(f.rest)), fmt.Sprint(parse(tt.want)); got != want {
			t.Errorf("%s: %s, want %s", tt.name, got, want)
		}
	}
}

// A server that does not know EDNS0 is asked again without; that answer is told from a
// forged one in the same way, and looks like every other.
func TestForwardWithoutEDNS(t *testing.T) {
	for _, forged := range []bool{false, true} {
		u := startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg {
			name := q.Question[0].Name
			switch {
			case q.IsEdns0() != nil:
				return new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
			case forged && !stream:
				q.Question[0].Name = "A-Name-That-Is-Long.Example."
				return says(t, q.Question[0].Name+" 60 IN A 192.0.2.66")(q, stream)
			}
			return says(t, name+" 60 IN A 192.0.2.1")(q, stream)
		})
		m := ask(t, forwarding(t, ForwarderConfig{}, u.at), "a-name-that-is-long.example.", "A", w1, Role{}, false)
		if diff := cmp.Diff([]string{"a-name-that-is-long.example. 60 IN A 192.0.2.1"}, records(t, m.Answer)); diff != "" {
			t.Errorf("forged %v: answer (-want +got):\n%s", forged, diff)
		}
	}
}

// waitFor polls until ok, at most until the deadline.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

func TestForwardsAreCapped(t *testing.T) {
	s := forwarding(t, ForwarderConfig{}, netip.MustParseAddrPort("127.0.0.1:1"))
	s.forwards.network, s.forwards.source = 2, 2
	packet, _ := new(dns.Msg).SetQuestion("example.", dns.TypeA).Pack()
	var waits []func(context.Context) []byte
	for i, from := range []string{w1, w2, w3, g1} {
		out, wait := s.handle(packet, netip.MustParseAddr(from), Role{}, false)
		if over := i == 2; over != (out != nil) || over == (wait != nil) {
			t.Errorf("query %d from %s: answer %x, wait %v", i, from, out, wait != nil)
		}
		if wait != nil {
			waits = append(waits, wait)
		}
	}
	for _, wait := range waits {
		wait(t.Context())
	}
	if s.forwards.all != 0 || s.Stats().OverLimit != 1 {
		t.Errorf("held %d, over limit %d", s.forwards.all, s.Stats().OverLimit)
	}
}
