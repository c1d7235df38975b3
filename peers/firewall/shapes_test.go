package firewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// What becomes of a packet.
const (
	passed   = "passed"   // it arrived, or the host itself answered it
	rejected = "rejected" // the sender was told: administratively prohibited
	dropped  = "dropped"  // silence
)

const patience = 5 * time.Second

// who is where, and by which port it speaks.
func who(name string) (port string, a netip.Addr) {
	x := map[string]struct{ port, addr string }{
		"a": {"a", "1:100:5:1:2"}, "a2": {"a", "1:100:5:1:99"}, // another address of a's own /112
		"b": {"b", "1:100:5:2:2"}, "c": {"c", "2:100:5:3:2"},
		"remote1": {"tunnel", "1:200:6:1:2"}, "remote2": {"tunnel", "2:200:6:1:2"}, "remote3": {"tunnel", "3:200:6:1:2"},
		"client1": {"tunnel", "1:200:6:9:2"}, "prober1": {"tunnel", "1:200:6:9:1"}, "prober3": {"tunnel", "3:200:6:9:1"},
		"otherhost": {"tunnel", "0:200:6:0:1"}, "otherhost1": {"tunnel", "1:200:6:0:1"}, "odd0": {"tunnel", "0:200:6:7:1"},
		"host1": {"", "1:100:5:0:1"}, "host2": {"", "2:100:5:0:1"}, "self": {"", "0:100:5:0:1"},
		"::3": {"", ":3"}, "1::3": {"", "1::3"}, "2::3": {"", "2::3"},
	}[name]
	if x.addr != "" {
		return x.port, addr(x.addr)
	}
	return "", netip.MustParseAddr(name)
}

// build makes the packet of a cell: "echo", "reply", "udp PORT" or "tcp PORT".
func build(proto string, src, dst netip.Addr, g tag) (next byte, payload []byte) {
	var dport uint16
	kind, rest, _ := strings.Cut(proto, " ")
	fmt.Sscan(rest, &dport)
	switch kind {
	case "echo":
		return unix.IPPROTO_ICMPV6, echo(src, dst, g)
	case "reply":
		return unix.IPPROTO_ICMPV6, icmp(src, dst, echoReply, 0, g.bytes()...)
	case "udp":
		return unix.IPPROTO_UDP, udp(src, dst, dport, g)
	case "tcp":
		return unix.IPPROTO_TCP, tcpSYN(src, dst, dport, g)
	}
	panic("no protocol " + proto)
}

// classify says what a packet that was seen tells about the one with tag g.
func classify(p []byte, g tag, atTarget bool) string {
	kind, code, isICMP := icmpOf(p)
	tagged := bytes.Contains(p, g.bytes())
	switch {
	case isICMP && kind == 1 && code == 1 && tagged:
		return rejected
	case isICMP && kind == 1 && code == 4 && tagged, isICMP && kind == echoReply && tagged:
		return passed // the host has no such port, or answers
	case len(p) >= 60 && p[6] == unix.IPPROTO_TCP && binary.BigEndian.Uint32(p[48:]) == uint32(g)+1:
		return passed // a reset
	case atTarget && tagged:
		return passed
	}
	return ""
}

// tags are unlike each other, by more than one, and anything that a stack sends by
// itself. No byte but the first is like the first: read from any other byte on, two
// tags in a row are none.
type tags struct{ n uint32 }

func (s *tags) next() tag {
	s.n += 2
	return tag(0x57<<24 | 0x808080 | s.n&0x7f | s.n>>7&0x7f<<8 | s.n>>14&0x7f<<16)
}

// fate sends packets from one port and returns what became of the one with tag g
// on its way to another (nil: the host itself). If it is expected to be dropped,
// others that are sent after it prove that it had its chance.
func (l *lab) fate(t *testing.T, from, to *port, packets [][]byte, g tag, s *tags, want string) string {
	t.Helper()
	for _, p := range packets {
		from.send(t, p)
	}
	if want == dropped {
		if got := l.flush(t, from, s.next(), g, false); got != "" {
			return got
		}
		if to != nil && to != from {
			if got := l.flush(t, to, s.next(), g, true); got != "" {
				return got
			}
		}
		return dropped
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var target chan []byte
	if to != nil && to != from {
		target = to.seen
	}
	for {
		var got string
		select {
		case p := <-from.seen:
			got = classify(p, g, to == from)
		case p := <-target:
			got = classify(p, g, true)
		case <-timer.C:
			return dropped
		}
		if got != "" {
			return got
		}
	}
}

// flush sends an echo that must be answered, and looks for g until it is.
func (l *lab) flush(t *testing.T, p *port, barrier, g tag, atTarget bool) string {
	t.Helper()
	src, dst := addr("1:200:6:1:2"), addr("1:100:5:0:1")
	if p.name != "tunnel" {
		_, src = who(p.name)
		a := src.As16()
		dst = addr(fmt.Sprintf("%d:100:5:0:1", a[7]))
	}
	p.send(t, packet(src, dst, 64, unix.IPPROTO_ICMPV6, echo(src, dst, barrier)))
	var got string
	answer := p.wait(patience, func(seen []byte) bool {
		if got == "" {
			got = classify(seen, g, atTarget)
		}
		kind, _, ok := icmpOf(seen)
		return ok && kind == echoReply && bytes.Contains(seen, barrier.bytes())
	})
	if answer == nil {
		t.Fatalf("%s is not answered by %s at all", src, dst)
	}
	return got
}

func conntrackEntries(t testing.TB, ns *netns.Handle) (n int) {
	t.Helper()
	check(t, ns.Do(func() error {
		b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		if err == nil {
			_, err = fmt.Sscan(string(b), &n)
		}
		return err
	}))
	return n
}

// A source that is not one's own never gets in, whatever it wears: plain, behind
// extension headers, in fragments, or as a neighbour's word. (CVE-2025-62820: a
// source check that was too wide.)
func TestCVE202562820SpoofedSource(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tests := []struct{ name, src, dst string }{
		{"same network, another machine's", "b", "1::3"},
		{"same network, to the other machine", "remote1", "b"},
		{"same network, to the tunnel", "b", "remote1"},
		{"other network", "c", "host2"},
		{"other network, to its machine", "remote2", "c"},
		{"other host", "otherhost", "self"},
		{"this host in its network", "host1", "b"},
		{"resolver", "1::3", "b"},
		{"mesh resolver", "::3", "b"},
		{"link-local", "fe80::2", "host1"},
		{"link-local, to another machine", "fe80::2", "b"},
		{"unspecified", "::", "host1"},
		{"loopback", "::1", "host1"},
		{"outside", "2001:db8::1", "b"},
		{"next endpoint", "fd12:3456:789a:1:100:5:2:0", "1::3"},
		{"previous endpoint", "fd12:3456:789a:1:100:5:0:ffff", "1::3"},
	}
	a := l.ports["a"]
	var s tags
	for _, tt := range tests {
		_, src := who(tt.src)
		toPort, dst := who(tt.dst)
		for _, hops := range []byte{64, 255} {
			for _, proto := range []string{"echo", "udp 53", "tcp 22", "udp 7447", "ns"} {
				g := s.next()
				var next byte = unix.IPPROTO_ICMPV6
				var payload []byte
				if proto == "ns" {
					// The exemption is for neighbours' own words: from :: or fe80::/10.
					if !strings.HasPrefix(tt.src, "fd") && (src.IsLinkLocalUnicast() || src.IsUnspecified()) {
						continue
					}
					payload = solicit(src, dst, dst, g)
				} else {
					next, payload = build(proto, src, dst, g)
				}
				shapes := map[string][][]byte{
					"plain":     {packet(src, dst, hops, next, payload)},
					"options":   {packet(src, dst, hops, unix.IPPROTO_DSTOPTS, behindOptions(next, payload))},
					"hopbyhop":  {packet(src, dst, hops, unix.IPPROTO_HOPOPTS, behindOptions(next, payload))},
					"routing":   {packet(src, dst, hops, unix.IPPROTO_ROUTING, append([]byte{next, 0, 4, 0, 0, 0, 0, 0}, payload...))},
					"fragments": fragments(src, dst, hops, next, payload, headerLen(next), g),
				}
				for shape, packets := range shapes {
					if got := l.fate(t, a, l.ports[toPort], packets, g, &s, dropped); got != dropped {
						t.Errorf("%s (%s to %s), %s, hop limit %d, %s: %s", tt.name, tt.src, tt.dst, proto, hops, shape, got)
					}
				}
			}
		}
	}
}

// Extension headers and fragments neither help nor harm: each shape of a packet
// has the fate of the plain one.
func TestShapesShareTheirFate(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tests := []struct{ src, dst, proto, want string }{
		{"a", "b", "udp 9999", passed},
		{"a", "remote1", "udp 9999", passed},
		{"remote1", "a", "tcp 22", passed},
		{"a", "::3", "udp 53", passed},
		{"a", "host1", "echo", passed},
		{"a", "::3", "udp 54", dropped},
		{"a", "self", "tcp 22", dropped},
		{"a", "self", "udp 7447", dropped},
		{"a", "host1", "tcp 53", dropped},
		{"remote1", "self", "udp 53", dropped},
		{"a", "c", "udp 53", rejected},
		{"remote2", "a", "udp 53", rejected},
	}
	var s tags
	for _, tt := range tests {
		fromPort, src := who(tt.src)
		toPort, dst := who(tt.dst)
		for _, shape := range []string{"plain", "options", "fragments", "options in fragments", "headless fragments", "atomic fragment"} {
			g, want := s.next(), tt.want
			next, payload := build(tt.proto, src, dst, g)
			whole := [][]byte{packet(src, dst, 64, next, payload)}
			switch shape {
			case "options":
				whole = [][]byte{packet(src, dst, 64, unix.IPPROTO_DSTOPTS, behindOptions(next, payload))}
			case "fragments":
				whole = fragments(src, dst, 64, next, payload, headerLen(next), g)
			case "options in fragments":
				whole = fragments(src, dst, 64, unix.IPPROTO_DSTOPTS, behindOptions(next, payload), 8+headerLen(next), g)
			case "headless fragments": // the first one ends before the ports (RFC 7112 forbids it)
				whole = fragments(src, dst, 64, unix.IPPROTO_DSTOPTS, behindOptions(next, payload), 8, g)
				if want == passed {
					continue
				}
				want = dropped
			case "atomic fragment":
				whole = [][]byte{packet(src, dst, 64, unix.IPPROTO_FRAGMENT, append(append([]byte{next, 0, 0, 0}, g.bytes()...), payload...))}
			}
			if got := l.fate(t, l.ports[fromPort], l.ports[toPort], whole, g, &s, want); got != want {
				t.Errorf("%s to %s, %s, %s: %s, want %s", tt.src, tt.dst, tt.proto, shape, got, want)
			}
		}
	}
}
