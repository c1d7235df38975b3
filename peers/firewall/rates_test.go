package firewall

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

// How much one may have of the host ends somewhere, and another one's share is not
// touched. Without the rule that bounds it there is no end.
func TestRates(t *testing.T) {
	t.Parallel()
	const rate, sent = 20, 400
	p := testPolicy()
	p.Rates = peers.Rates{Neighbour: rate, Echo: rate, Errors: rate, Queries: 1 << 20}
	l := newLabOf(t, p, false)
	_, host := who("host1")
	gateway := netip.MustParseAddr("fe80::1")
	var s tags
	floods := []struct {
		name   string
		packet func(src netip.Addr) (packet []byte, answer byte) // to whoever has src
	}{
		{"neighbour discovery", func(netip.Addr) ([]byte, byte) {
			local := netip.MustParseAddr("fe80::2")
			return packet(local, gateway, 255, unix.IPPROTO_ICMPV6, solicit(local, gateway, gateway, s.next())), neighbourAdvert
		}},
		{"echo", func(src netip.Addr) ([]byte, byte) {
			return packet(src, host, 64, unix.IPPROTO_ICMPV6, echo(src, host, s.next())), echoReply
		}},
		{"errors", func(src netip.Addr) ([]byte, byte) {
			_, c := who("c")
			return packet(src, c, 64, unix.IPPROTO_UDP, udp(src, c, 9, s.next())), 1
		}},
	}
	// answers counts them until a query that no rate concerns comes back.
	answers := func(from string, n int, flood func(netip.Addr) ([]byte, byte)) (got int) {
		t.Helper()
		_, src := who(from)
		var answer byte
		for range n {
			var b []byte
			b, answer = flood(src)
			l.ports[from].send(t, b)
		}
		g := s.next()
		_, resolver := who("1::3")
		l.ports[from].send(t, packet(src, resolver, 64, unix.IPPROTO_UDP, udp(src, resolver, 53, g)))
		if l.ports[from].wait(patience, func(p []byte) bool {
			if kind, _, ok := icmpOf(p); ok && kind == answer {
				got++
			}
			return len(p) > 48 && p[6] == unix.IPPROTO_UDP && bytes.Contains(p, g.bytes())
		}) == nil {
			t.Fatalf("%s: no answer to the query after it", from)
		}
		return got
	}
	_, resolver := who("1::3")
	answerer(t, l.plane, netip.AddrPortFrom(resolver, 53))
	for _, x := range floods {
		began := time.Now()
		got := answers("a", sent, x.packet)
		most := 2*rate + int(time.Since(began).Seconds()*rate) + 1
		if got < rate || got > most {
			t.Errorf("%s: %d of %d were answered, want %d to %d", x.name, got, sent, rate, most)
		}
		if got := answers("b", 5, x.packet); got != 5 {
			t.Errorf("%s: %d of 5 of another machine were answered meanwhile", x.name, got)
		}
	}
	table := must(Render(p))
	for i, c := range table.Chains {
		table.Chains[i].Rules = slices.DeleteFunc(slices.Clone(c.Rules), func(r Rule) bool { return r.Name == tooMany })
	}
	k := must(l.open(t.Context()))
	defer k.Close()
	check(t, k.replace(table))
	if got := answers("a", sent, floods[2].packet); got != sent {
		t.Errorf("without the rule %d of %d errors were told", got, sent)
	}
}

// What one endpoint asks the resolver beyond its rate does not reach the socket, from
// whichever of its addresses; what others ask does.
func TestRateOfQueries(t *testing.T) {
	t.Parallel()
	const rate, sent = 100, 400
	p := testPolicy()
	p.Rates.Queries = rate
	l := newLabOf(t, p, false)
	_, resolver := who("1::3")
	answerer(t, l.plane, netip.AddrPortFrom(resolver, 53))
	var s tags
	ask := func(from string, n int) {
		t.Helper()
		_, src := who(from)
		for i := range n {
			at := src.As16()
			if i%2 == 1 {
				at[15] = 0x99 // the other address of each machine
			}
			of := netip.AddrFrom16(at)
			l.ports[from].send(t, packet(of, resolver, 64, unix.IPPROTO_UDP, udp(of, resolver, 53, s.next())))
		}
	}
	began := time.Now()
	ask("a", sent)
	// An echo, which this rate does not concern, comes back when they are through.
	_, a := who("a")
	_, host := who("host1")
	l.ports["a"].send(t, packet(a, host, 64, unix.IPPROTO_ICMPV6, echo(a, host, s.next())))
	if l.ports["a"].wait(patience, func(p []byte) bool {
		kind, _, ok := icmpOf(p)
		return ok && kind == echoReply
	}) == nil {
		t.Fatal("no answer to the echo")
	}
	passed := sent - int(counters(t, l.Firewall, "input")[0])
	if most := rate/10 + int(time.Since(began).Seconds()*rate) + 1; passed < rate/10 || passed > most {
		t.Errorf("%d of %d queries passed, want %d to %d", passed, sent, rate/10, most)
	}
	ask("b", 5)
	answers := 0
	if l.ports["b"].wait(patience, func(p []byte) bool {
		if len(p) > 48 && p[6] == unix.IPPROTO_UDP && sourceOf(p) == resolver {
			answers++
		}
		return answers == 5
	}) == nil {
		t.Errorf("%d of 5 queries of another machine were answered meanwhile", answers)
	}
}
