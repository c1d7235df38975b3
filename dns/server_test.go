package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

const deadline = 10 * time.Second

// asMember is a socket whose peers all seem to be one member of the mesh, so that
// real clients on loopback can ask.
type asMember struct {
	net.PacketConn
	member netip.Addr
	mu     sync.Mutex // guards real
	real   net.Addr
}

func (c *asMember) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.PacketConn.ReadFrom(b)
	if err != nil {
		return n, from, err
	}
	c.mu.Lock()
	c.real = from
	c.mu.Unlock()
	return n, net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.member, 1)), nil
}

func (c *asMember) WriteTo(b []byte, to net.Addr) (int, error) {
	c.mu.Lock()
	real := c.real
	c.mu.Unlock()
	return c.PacketConn.WriteTo(b, real)
}

// asMemberListener does the same for connections, and records their writes.
type asMemberListener struct {
	net.Listener
	mu     sync.Mutex // guards what follows
	member netip.Addr
	writes []int
}

type asMemberConn struct {
	net.Conn
	l *asMemberListener
}

func (l *asMemberListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &asMemberConn{c, l}, err
}

func (c *asMemberConn) RemoteAddr() net.Addr {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.l.member, 1))
}

func (c *asMemberConn) Write(b []byte) (int, error) {
	c.l.mu.Lock()
	c.l.writes = append(c.l.writes, len(b))
	c.l.mu.Unlock()
	return c.Conn.Write(b)
}

// serve runs s on loopback until the test ends and returns its address.
func serve(t *testing.T, s *Server, member string) (netip.AddrPort, *asMemberListener) {
	t.Helper()
	udp, tcp, err := bindBoth(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	at := addrPortOf(udp.LocalAddr())
	l := &asMemberListener{Listener: tcp, member: netip.MustParseAddr(member)}
	s.rnd = rand.New(runtimeSource{}) // the loops share it
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	packets := &asMember{PacketConn: udp, member: l.member}
	go func() { done <- s.ServePacket(ctx, packets, Role{}) }()
	go func() { done <- s.ServeStream(ctx, l, Role{}) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("serve: %v", err)
				}
			case <-time.After(deadline):
				t.Error("serve did not end")
			}
		}
	})
	return at, l
}

func direct(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, to.String())
}

func TestServe(t *testing.T) {
	s := testServer(fixture(), fixtureFacts())
	at, _ := serve(t, s, d1)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	r, err := Lookup(ctx, direct, at, "web.internal", "aaaa")
	if err != nil {
		t.Fatal(err)
	}
	want := []Record{{Name: "web.internal.", TTL: 5, Type: "AAAA", Data: w1}}
	if diff := cmp.Diff(want, r.Answers); diff != "" || r.Rcode != "NOERROR" {
		t.Errorf("%s, answers (-want +got):\n%s", r.Rcode, diff)
	}
	if got := r.Short(); got != w1+"\n" {
		t.Errorf("short: %q", got)
	}
	for _, want := range []string{";; ->>HEADER<<-", "status: NOERROR", "web.internal.\t5\tIN\tAAAA\t" + w1, ";; SERVER: 127.0.0.1#", ";; Query time:"} {
		if !strings.Contains(r.String(), want) {
			t.Errorf("reply lacks %q:\n%s", want, r)
		}
	}
	if r, err = Lookup(ctx, direct, at, "nosuch.internal.", "AAAA"); err != nil || r.Rcode != "NXDOMAIN" {
		t.Errorf("nosuch: %v %v", r, err)
	}
	if _, err := Lookup(ctx, direct, at, "web.internal", "NOSUCH"); err == nil {
		t.Error("an unknown type was looked up")
	}
	if _, err := Lookup(ctx, direct, at, "web..internal", "AAAA"); err == nil {
		t.Error("a bad name was looked up")
	}
	st := s.Stats()
	if st.UDP != 2 || st.Rcodes["NOERROR"] != 1 || st.Rcodes["NXDOMAIN"] != 1 {
		t.Errorf("stats %+v", st)
	}
}

// The client that people have.
func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("dig is not installed; make deps installs it")
		}
		t.Skip("dig is not installed")
	}
	at, _ := serve(t, testServer(fixture(), fixtureFacts()), w1)
	for _, tt := range []struct{ args, want string }{
		{"web.internal AAAA +short", w1 + "\n" + w2 + "\n" + w3 + "\n"},
		{"web.internal AAAA +short +tcp", w1 + "\n" + w2 + "\n" + w3 + "\n"},
		{"vms.web.internal TXT +short", "\"w1 fra,w2 ams,w3 nrt\"\n"},
		{"-x " + w2 + " +short", "w2.vm.web.internal.\n"},
		{"web.internal AAAA +short +noedns +bufsize=512", w1 + "\n" + w2 + "\n" + w3 + "\n"},
		{"nosuch.internal +noall +comments", "status: NXDOMAIN"},
		{"vm.web.internal +noall +comments", "status: NOERROR"},
		{"example.com +noall +comments", "status: REFUSED"},
		{"web.internal AAAA +edns=1 +noednsneg +noall +comments", "status: BADVERS"},
		{"version.bind CH TXT +noall +comments", "status: REFUSED"},
		{"web.internal AAAA +opcode=notify +noall +comments", "status: NOTIMP"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		args := append([]string{"@" + at.Addr().String(), "-p", fmt.Sprint(at.Port()), "+tries=1"}, strings.Fields(tt.args)...)
		out, err := exec.CommandContext(ctx, dig, args...).CombinedOutput()
		cancel()
		if err != nil || string(out) != tt.want && !(strings.HasPrefix(tt.want, "status") && strings.Contains(string(out), tt.want)) {
			t.Errorf("dig %s: %v\n%s\nwant %s", tt.args, err, out, tt.want)
		}
		if strings.Contains(string(out), "WARNING") && !strings.Contains(string(out), "recursion") {
			t.Errorf("dig %s warns:\n%s", tt.args, out)
		}
	}
}

// many returns the fixture with n more machines of an app that answers all.
func many(n int) Data {
	return with(func(d *Data) {
		d.Orgs[0].Apps = append(d.Orgs[0].Apps, App{Name: "big", Answer: "all"})
		for i := range n {
			d.Orgs[0].Machines = append(d.Orgs[0].Machines, Machine{
				ID: fmt.Sprintf("big-%05d", i), App: "big", Host: "ams-1", Started: true, Healthy: true,
				Addr: netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:1:200:3:%x:2", 0x1000+i)),
			})
		}
	})
}

func TestLargeAnswers(t *testing.T) {
	s := testServer(many(200), fixtureFacts())
	q := new(dns.Msg)
	q.SetQuestion("big.internal.", TypeAAAA)
	packet := func(m *dns.Msg) []byte { b, _ := m.Pack(); return b }
	for _, tt := range []struct {
		name      string
		edns      uint16
		stream    bool
		max       int
		truncated bool
	}{
		{"no EDNS0", 0, false, 512, true},
		{"EDNS0 smaller than 512", 100, false, 512, true},
		{"EDNS0 of 800", 800, false, 800, true},
		{"EDNS0 larger than ours", 65535, false, 1232, true},
		{"TCP", 0, true, 65535, false},
		{"TCP with EDNS0", 512, true, 65535, false},
	} {
		q := q.Copy()
		if tt.edns > 0 {
			q.SetEdns0(tt.edns, false)
		}
		out, _ := s.handle(packet(q), netip.MustParseAddr(w1), Role{}, tt.stream)
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatal(err)
		}
		if len(out) > tt.max || m.Truncated != tt.truncated || !tt.truncated && len(m.Answer) != 200 {
			t.Errorf("%s: %d bytes (at most %d), TC %v, %d records", tt.name, len(out), tt.max, m.Truncated, len(m.Answer))
		}
		if (m.IsEdns0() != nil) != (tt.edns > 0) || tt.edns > 0 && m.IsEdns0().UDPSize() != 1232 {
			t.Errorf("%s: EDNS0 %v", tt.name, m.IsEdns0())
		}
	}
}

// A client that speaks UDP first gets it all.
func TestTruncatedAnswersComeOverTCP(t *testing.T) {
	at, l := serve(t, testServer(many(200), fixtureFacts()), w1)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	r, err := Lookup(ctx, direct, at, "big.internal", "AAAA")
	if err != nil || len(r.Answers) != 200 {
		t.Fatalf("%d answers, %v", len(r.Answers), err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.writes) != 1 {
		t.Errorf("writes of %v bytes: length and message belong in one", l.writes)
	}
}

// One record, strings of at most 255 bytes, joined with nothing, cut at a whole
// entry below 64 KiB.
func TestLongText(t *testing.T) {
	const n = 5000
	s := testServer(many(n), fixtureFacts())
	for _, tt := range []struct{ name, separator, format string }{
		{"vms.big.internal.", ",", "big-%05d ams"},
		{"all._instances.internal.", ";", ""},
	} {
		m := ask(t, s, tt.name, "TXT", w1, Role{}, true)
		if len(m.Answer) != 1 || m.Truncated {
			t.Fatalf("%s: %d records, TC %v", tt.name, len(m.Answer), m.Truncated)
		}
		parts := m.Answer[0].(*dns.TXT).Txt
		for i, p := range parts {
			if len(p) > 255 || i < len(parts)-1 && len(p) != 255 {
				t.Fatalf("%s: string %d has %d bytes", tt.name, i, len(p))
			}
		}
		text := strings.Join(parts, "")
		if len(text) >= 1<<16 || len(text) < 1<<16-1000 {
			t.Errorf("%s: %d bytes, want nearly 64 KiB", tt.name, len(text))
		}
		for i, e := range strings.Split(text, tt.separator) {
			if tt.format != "" && e != fmt.Sprintf(tt.format, i) || tt.format == "" && !strings.HasPrefix(e, "instance=") {
				t.Fatalf("%s: entry %d is %q", tt.name, i, e)
			}
		}
		if m := ask(t, s, tt.name, "TXT", w1, Role{}, false); !m.Truncated || len(m.Answer) != 0 {
			t.Errorf("%s over UDP: TC %v, %d records", tt.name, m.Truncated, len(m.Answer))
		}
	}
}

func TestMessagesThatAreNoPlainQuery(t *testing.T) {
	s := testServer(fixture(), fixtureFacts())
	base := func(change func(*dns.Msg)) *dns.Msg {
		q := new(dns.Msg)
		q.SetQuestion("web.internal.", TypeAAAA)
		change(q)
		return q
	}
	for _, tt := range []struct {
		name  string
		query *dns.Msg
		code  int
	}{
		{"notify", base(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{"update", base(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"no question", base(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"two questions", base(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"an answer in the query", base(func(m *dns.Msg) { m.Answer = []dns.RR{soa("x.", 1)} }), dns.RcodeFormatError},
		{"two OPT records", base(func(m *dns.Msg) { m.SetEdns0(1232, false); m.Extra = append(m.Extra, m.Extra[0]) }), dns.RcodeFormatError},
		{"EDNS version 1", base(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		{"class CH", base(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"class ANY", base(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), dns.RcodeRefused},
	} {
		for _, stream := range []bool{false, true} {
			packet, err := tt.query.Pack()
			if err != nil {
				t.Fatal(err)
			}
			out, _ := s.handle(packet, netip.MustParseAddr(w1), Role{}, stream)
			m := new(dns.Msg)
			if err := m.Unpack(out); err != nil || m.Rcode != tt.code || m.Id != tt.query.Id || m.Opcode != tt.query.Opcode || len(m.Answer) > 0 {
				t.Errorf("%s: %v %v, want %s", tt.name, m, err, dns.RcodeToString[tt.code])
			}
		}
	}
	answer := base(func(m *dns.Msg) { m.Response = true })
	packet, _ := answer.Pack()
	if out, _ := s.handle(packet, netip.MustParseAddr(w1), Role{}, false); out != nil {
		t.Errorf("an answer was answered: %x", out)
	}
}

func TestNoZoneYet(t *testing.T) {
	s := NewServer(Config{Zone: func() *Zone { return nil }})
	if m := ask(t, s, "web.internal.", "AAAA", w1, Role{}, false); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("without a view: %v", m)
	}
}

func TestCaps(t *testing.T) {
	s := NewServer(Config{Conns: 4, ConnsPerNetwork: 3, ConnsPerSource: 2})
	addr := netip.MustParseAddr
	var got []bool
	for _, a := range []string{"fd00::1", "fd00::2", "fd00::3", "fd00::2:1", "fd00::3:1", "fd00:0:0:1::1", "fd00:0:0:2::1"} {
		got = append(got, s.conns.take(addr(a)))
	}
	if want := []bool{true, true, false, true, false, true, false}; !cmp.Equal(got, want) {
		t.Errorf("take: %v, want %v", got, want)
	}
	s.conns.give(addr("fd00::1"))
	if !s.conns.take(addr("fd00:0:0:2::1")) {
		t.Error("what was given back cannot be taken")
	}
	for _, a := range []string{"fd00::2", "fd00::2:1", "fd00:0:0:1::1", "fd00:0:0:2::1"} {
		s.conns.give(addr(a))
	}
	if s.conns.all != 0 || len(s.conns.held) != 0 || len(s.conns.byNet) != 0 {
		t.Errorf("all given back, held: %+v", &s.conns)
	}
}

// dialTCP connects to a server under test.
func dialTCP(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(deadline))
	t.Cleanup(func() { c.Close() })
	return c
}

// closed waits until the other end has closed c, and fails on anything else.
func closed(t *testing.T, c net.Conn, what string) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: still open", what)
	} else if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: %d bytes, %v", what, n, err)
	}
}

func TestStreamsEnd(t *testing.T) {
	s := testServer(fixture(), fixtureFacts())
	s.cfg.IdleTimeout, s.cfg.IOTimeout = 50*time.Millisecond, 50*time.Millisecond
	at, _ := serve(t, s, w1)

	closed(t, dialTCP(t, at), "idle")

	half := dialTCP(t, at)
	half.Write([]byte{0, 40, 1, 2})
	closed(t, half, "half a message")
}

// What cannot be a query ends a connection at once, without waiting for more of it.
func TestStreamsWithoutQueriesEndAtOnce(t *testing.T) {
	at, _ := serve(t, testServer(fixture(), fixtureFacts()), w1)
	start := time.Now()
	long := dialTCP(t, at)
	long.Write([]byte{255, 255, 1, 2})
	closed(t, long, "a query of 64 KiB")

	junk := dialTCP(t, at)
	writeStream(junk, []byte("\x12\x34\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	closed(t, junk, "an answer instead of a query")
	if took := time.Since(start); took > 2*time.Second { // the time-outs are 3 s and 10 s
		t.Errorf("took %s", took)
	}
}

func TestTextStrings(t *testing.T) {
	for _, tt := range []struct {
		length int
		want   []int
	}{{0, []int{0}}, {1, []int{1}}, {255, []int{255}}, {256, []int{255, 1}}, {510, []int{255, 255}}} {
		var got []int
		for _, s := range textStrings(strings.Repeat("x", tt.length)) {
			got = append(got, len(s))
		}
		if !cmp.Equal(got, tt.want) {
			t.Errorf("%d bytes: strings of %v, want %v", tt.length, got, tt.want)
		}
	}
}

// One connection takes several queries, at once if the client likes.
func TestPipelining(t *testing.T) {
	at, _ := serve(t, testServer(fixture(), fixtureFacts()), w1)
	c := dialTCP(t, at)
	var all []byte
	for i := range 5 {
		q := new(dns.Msg)
		q.SetQuestion("web.internal.", TypeAAAA)
		q.Id = uint16(i)
		packet, _ := q.Pack()
		all = binary.BigEndian.AppendUint16(all, uint16(len(packet)))
		all = append(all, packet...)
	}
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		m, err := readAnswer(c, "tcp")
		if err != nil || m.Id != uint16(i) || len(m.Answer) != 3 {
			t.Fatalf("answer %d: %v %v", i, m, err)
		}
	}
}

// A question that takes an upstream does not hold up the ones behind it.
func TestAnswersOutOfOrder(t *testing.T) {
	release := make(chan struct{})
	u := startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg {
		<-release
		return says(t, "slow.example. 60 IN A 192.0.2.1")(q, stream)
	})
	at, _ := serve(t, forwarding(t, ForwarderConfig{}, u.at), w1)
	c := dialTCP(t, at)
	for i, name := range []string{"slow.example.", "web.internal."} {
		q := new(dns.Msg).SetQuestion(name, TypeAAAA)
		q.Id = uint16(i)
		packet, _ := q.Pack()
		if err := writeStream(c, packet); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []uint16{1, 0} {
		m, err := readAnswer(c, "tcp")
		if err != nil || m.Id != want {
			t.Fatalf("answer %d: %v %v, want to question %d", i, m, err, want)
		}
		if i == 0 {
			close(release)
		}
	}
}

func TestServeReportsAClosedSocket(t *testing.T) {
	udp, tcp, err := bindBoth(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	udp.Close()
	tcp.Close()
	s := testServer(fixture(), nil)
	if err := s.ServePacket(t.Context(), udp, Role{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ServePacket: %v", err)
	}
	if err := s.ServeStream(t.Context(), tcp, Role{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ServeStream: %v", err)
	}
}

// A defect in answering costs one query.
func TestPanicsAreContained(t *testing.T) {
	s := NewServer(Config{Zone: func() *Zone { panic("defect") }})
	at, _ := serve(t, s, w1)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if r, err := Lookup(ctx, direct, at, "web.internal", "AAAA"); err == nil {
		t.Errorf("answered: %v", r)
	}
	if n := s.Stats().Panics; n == 0 {
		t.Error("the panic was not counted")
	}
}
