package firewall

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The matrix: every source says every thing to every target. places says where a
// packet that wears a source's address comes in.
var places = map[string]struct{ port, addr string }{
	"a": {"a", "1:100:5:1:2"}, "a2": {"a", "1:100:5:1:99"}, "b": {"b", "1:100:5:2:2"},
	"c": {"c", "2:100:5:3:2"}, "g": {"g", "5:100:5:7:2"},
	"remote1": {"tunnel", "1:200:6:1:2"}, "remote2": {"tunnel", "2:200:6:1:2"}, "far6": {"tunnel", "6:200:6:1:2"},
	"far6b":   {"tunnel", "6:200:6:2:2"},
	"client1": {"tunnel", "1:200:6:9:2"}, "prober1": {"tunnel", "1:200:6:9:1"}, "prober6": {"tunnel", "6:200:6:9:1"},
	"otherhost": {"tunnel", "0:200:6:0:1"}, "otherhost1": {"tunnel", "1:200:6:0:1"},
	"host1": {"", "1:100:5:0:1"}, "host2": {"", "2:100:5:0:1"}, "host5": {"", "5:100:5:0:1"}, "self": {"", "0:100:5:0:1"},
	"::3": {"", ":3"}, "1::3": {"", "1::3"}, "2::3": {"", "2::3"}, "5::3": {"", "5::3"},
	// What is not theirs to say: a as b, a as this host, a stranger's link as a machine.
	"a-as-b": {"a", "1:100:5:2:2"}, "a-as-host1": {"a", "1:100:5:0:1"}, "a-as-g": {"a", "5:100:5:7:2"}, "outsider": {"out", "1:100:5:9:2"},
}

// link-local sources and the unspecified one, by port.
var locals = map[string]struct{ port, addr string }{
	"a-ll": {"a", "fe80::2"}, "b-ll": {"b", "fe80::2"}, "c-ll": {"c", "fe80::2"}, "g-ll": {"g", "fe80::2"},
	"a-none": {"a", "::"}, "outsider-ll": {"out", "fe80::2"}, "tunnel-ll": {"tunnel", "fe80::2"}, "gateway": {"", "fe80::1"},
}

func place(name string) (port string, a netip.Addr) {
	if x, ok := locals[name]; ok {
		return x.port, netip.MustParseAddr(x.addr)
	}
	return places[name].port, addr(places[name].addr)
}

// The table's rows and columns.
var (
	matrixSources   = strings.Fields("a a2 b c g remote1 remote2 far6 far6b client1 prober1 prober6 otherhost otherhost1 host1 self a-as-b a-as-host1 a-as-g outsider a-ll b-ll c-ll g-ll a-none outsider-ll tunnel-ll")
	matrixTargets   = strings.Fields("a b c g remote1 remote2 far6 far6b host1 host2 host5 self ::3 1::3 2::3 5::3 gateway otherhost")
	matrixProtocols = strings.Fields("tcp80 tcp443 tcp53 udp5000 udp53 udp7447 echo reply error ns na" +
		" hop dst rt0 rt2 rt4 frags atom late over none ah esp 6in6 4in6 gre sctp 253 jumbo")
)

// packetsOf builds a cell's packets. What stands behind an extension header is
// udp5000, which a grant lets to g.
func packetsOf(proto string, src, dst netip.Addr, g tag) [][]byte {
	plain := udp(src, dst, 5000, g)
	one := func(next byte, payload []byte) [][]byte { return [][]byte{packet(src, dst, 64, next, payload)} }
	routing := func(kind byte) [][]byte {
		return one(unix.IPPROTO_ROUTING, append([]byte{unix.IPPROTO_UDP, 0, kind, 0, 0, 0, 0, 0}, plain...))
	}
	var port uint16
	if n, ok := strings.CutPrefix(proto, "tcp"); ok {
		fmt.Sscan(n, &port)
		return one(unix.IPPROTO_TCP, tcpSYN(src, dst, port, g))
	}
	if n, ok := strings.CutPrefix(proto, "udp"); ok {
		fmt.Sscan(n, &port)
		return one(unix.IPPROTO_UDP, udp(src, dst, port, g))
	}
	switch proto {
	case "echo":
		return one(unix.IPPROTO_ICMPV6, echo(src, dst, g))
	case "reply":
		return one(unix.IPPROTO_ICMPV6, icmp(src, dst, echoReply, 0, g.bytes()...))
	case "error":
		inner := packet(dst, src, 60, unix.IPPROTO_UDP, udp(dst, src, 9, g))
		return one(unix.IPPROTO_ICMPV6, icmp(src, dst, 2, 0, append([]byte{0, 0, 5, 0}, inner...)...))
	case "ns":
		return [][]byte{packet(src, dst, 255, unix.IPPROTO_ICMPV6, solicit(src, dst, dst, g))}
	case "na":
		ask := solicit(src, dst, dst, g)
		ask[0], ask[2], ask[3] = neighbourAdvert, 0, 0
		return [][]byte{packet(src, dst, 255, unix.IPPROTO_ICMPV6, checksum(src, dst, unix.IPPROTO_ICMPV6, ask, 2))}
	case "hop":
		return one(unix.IPPROTO_HOPOPTS, behindOptions(unix.IPPROTO_UDP, plain))
	case "dst":
		return one(unix.IPPROTO_DSTOPTS, behindOptions(unix.IPPROTO_UDP, plain))
	case "rt0":
		return routing(0)
	case "rt2":
		return routing(2)
	case "rt4":
		return routing(4)
	case "frags":
		return fragments(src, dst, 64, unix.IPPROTO_UDP, plain, 8, g)
	case "atom":
		return one(unix.IPPROTO_FRAGMENT, append(append([]byte{unix.IPPROTO_UDP, 0, 0, 0}, g.bytes()...), plain...))
	case "late": // its first piece never comes
		return fragments(src, dst, 64, unix.IPPROTO_UDP, plain, 8, g)[1:]
	case "over": // the second piece covers the ports of the first (RFC 5722)
		first := fragments(src, dst, 64, unix.IPPROTO_UDP, append(slices.Clone(plain), make([]byte, 12)...), 16, g)
		again := fragments(src, dst, 64, unix.IPPROTO_UDP, plain, 8, g)
		return [][]byte{first[0], again[1]}
	case "none":
		return one(59, g.bytes())
	case "ah":
		return one(unix.IPPROTO_AH, slices.Concat([]byte{unix.IPPROTO_UDP, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 2, 3, 4}, plain))
	case "esp":
		return one(unix.IPPROTO_ESP, slices.Concat([]byte{0, 0, 1, 0, 0, 0, 0, 1}, g.bytes(), plain))
	case "6in6":
		return one(unix.IPPROTO_IPV6, packet(src, dst, 64, unix.IPPROTO_UDP, plain))
	case "4in6":
		return one(unix.IPPROTO_IPIP, slices.Concat([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, plain))
	case "gre":
		return one(unix.IPPROTO_GRE, slices.Concat([]byte{0, 0, 0x86, 0xdd}, packet(src, dst, 64, unix.IPPROTO_UDP, plain)))
	case "sctp":
		return one(unix.IPPROTO_SCTP, slices.Concat([]byte{0x9c, 0x40, 5000 >> 8, 5000 & 0xff}, g.bytes(), make([]byte, 20)))
	case "253":
		return one(253, plain)
	case "jumbo":
		p := packet(src, dst, 64, unix.IPPROTO_HOPOPTS, slices.Concat([]byte{unix.IPPROTO_UDP, 0, 0xc2, 4, 0, 1, 0, 0}, plain))
		binary.BigEndian.PutUint16(p[4:], 0)
		return [][]byte{p}
	}
	panic("no protocol " + proto)
}

// isCase says which cells there are: not what comes back out of where it came in, and
// of the host's own words only a few.
func isCase(src, dst, proto string) bool {
	from, source := place(src)
	to, target := place(dst)
	switch {
	case from == to && from != "" || source == target:
		return false
	case from == "":
		return slices.Contains([]string{"a", "remote1", "c", "self", "1::3", "otherhost"}, dst) && slices.Contains([]string{"tcp80", "udp5000", "udp7447", "echo"}, proto)
	case locals[src].addr != "" || dst == "gateway":
		// Link-local: neighbours' words, and three others' for comparison.
		return slices.Contains([]string{"ns", "na", "echo", "udp53", "udp5000"}, proto)
	}
	return true
}

func (m *matrixLab) cells() (out []*cell) {
	var s tags
	for _, src := range matrixSources {
		for _, dst := range matrixTargets {
			for _, proto := range matrixProtocols {
				if !isCase(src, dst, proto) {
					continue
				}
				c := &cell{src: src, dst: dst, proto: proto, tag: s.next()}
				c.from, c.source = place(src)
				c.to, c.target = place(dst)
				c.packets = packetsOf(proto, c.source, c.target, c.tag)
				out = append(out, c)
			}
		}
	}
	return out
}

// laterCells are what comes after the others: answers, and errors about them.
func laterCells() (out []*cell) {
	s := tags{n: 1 << 20}
	add := func(src, dst, proto string, build func(src, dst netip.Addr, g tag) (next byte, payload []byte)) {
		c := &cell{src: src, dst: dst, proto: proto, tag: s.next()}
		c.from, c.source = place(src)
		c.to, c.target = place(dst)
		next, payload := build(c.source, c.target, c.tag)
		c.packets = [][]byte{packet(c.source, c.target, 64, next, payload)}
		out = append(out, c)
	}
	// An answer comes from the port that was asked.
	answer := func(from, to, proto string, port uint16) {
		add(from, to, fmt.Sprintf("%s answer from %d", proto, port), func(src, dst netip.Addr, g tag) (byte, []byte) {
			p, at := udp(src, dst, 40000, g), 6
			next := byte(unix.IPPROTO_UDP)
			if proto == "tcp" {
				p, at, next = tcpSYN(src, dst, 40000, g), 16, unix.IPPROTO_TCP
				p[13] = 0x12 // SYN and ACK
			}
			binary.BigEndian.PutUint16(p, port)
			p[at], p[at+1] = 0, 0
			return next, checksum(src, dst, next, p, at)
		})
	}
	// An error quotes a packet of a flow, and goes to who sent it. of is what was said.
	about := func(from, to, asked, of string) {
		add(from, to, fmt.Sprintf("error about %s to %s", of, asked), func(src, dst netip.Addr, g tag) (byte, []byte) {
			_, target := place(asked)
			inner := packetsOf(of, dst, target, g)[0]
			return unix.IPPROTO_ICMPV6, icmp(src, dst, 1, 4, append(make([]byte, 4), inner...)...)
		})
	}
	another := func(from, to string, port uint16) {
		add(from, to, fmt.Sprintf("udp%d", port), func(src, dst netip.Addr, g tag) (byte, []byte) {
			return unix.IPPROTO_UDP, udp(src, dst, port, g)
		})
	}
	answer("c", "g", "tcp", 80)  // granted, and asked
	answer("c", "g", "tcp", 81)  // granted, and not asked
	answer("c", "g", "tcp", 443) // asked, and refused
	answer("g", "far6", "udp", 5000)
	answer("g", "far6", "udp", 5001)
	answer("far6", "a", "tcp", 443)
	answer("a", "host1", "udp", 5000) // the host asked
	answer("a", "host1", "udp", 5001)
	answer("otherhost", "self", "udp", 5000)
	answer("otherhost", "self", "udp", 5001)
	about("far6", "a", "far6", "tcp443")  // who was asked
	about("far6b", "a", "far6", "tcp443") // its network
	about("c", "g", "c", "tcp80")
	about("b", "g", "c", "tcp80")           // a third
	about("remote2", "a", "far6", "tcp443") // a third
	about("far6", "g", "c", "tcp80")        // a third that g has a grant with
	about("g", "far6", "g", "udp5000")
	about("a", "far6", "a", "tcp80")  // of what was never let
	about("c", "g", "c", "tcp443")    // of what was refused
	about("c", "host2", "c", "tcp80") // the host's own
	about("a", "host1", "c", "tcp80") // and not a's to speak of
	add("a", "far6", "error about an answer to a", func(src, dst netip.Addr, g tag) (byte, []byte) {
		inner := tcpSYN(dst, src, 40000, g)
		binary.BigEndian.PutUint16(inner, 443)
		return unix.IPPROTO_ICMPV6, icmp(src, dst, 1, 4, append(make([]byte, 4), packet(dst, src, 60, unix.IPPROTO_TCP, inner)...)...)
	})
	// Three flows of prober6 are there, and eight may be. What is there goes on.
	for port := uint16(5001); port < 5010; port++ {
		another("prober6", "g", port)
	}
	another("prober6", "g", 5000)
	another("prober6", "g", 5001)
	another("far6", "g", 5001) // each endpoint has its own
	return out
}

// grid writes the outcome as the table has it.
func grid(cells []*cell, outcome []byte) string {
	got := map[string]byte{}
	for i, c := range cells {
		got[c.src+" "+c.dst+" "+c.proto] = outcome[i]
	}
	var b strings.Builder
	for i := range 8 {
		fmt.Fprintf(&b, "%-24s", "")
		for _, p := range matrixProtocols {
			b.WriteByte(fmt.Sprintf("%-8s", p)[i])
		}
		b.WriteByte('\n')
	}
	for _, src := range matrixSources {
		for _, dst := range matrixTargets {
			row := make([]byte, 0, len(matrixProtocols))
			for _, proto := range matrixProtocols {
				x, ok := got[src+" "+dst+" "+proto]
				if !ok {
					x = no
				}
				row = append(row, x)
			}
			if strings.Trim(string(row), string(no)) != "" {
				fmt.Fprintf(&b, "%-11s %-11s %s\n", src, dst, row)
			}
		}
	}
	return b.String()
}

// whole runs both rounds and returns all that they show, as the golden file has it.
func (m *matrixLab) whole(t testing.TB, cells, later []*cell) string {
	t.Helper()
	tracked(t, m.plane)
	var b strings.Builder
	b.WriteString(grid(cells, m.run(t, cells)))
	b.WriteString("\n")
	outcome := m.run(t, later)
	for i, c := range later {
		fmt.Fprintf(&b, "%c %s\n", outcome[i], c.name())
	}
	b.WriteString("\ntracked:\n")
	for _, flow := range tracked(t, m.plane) {
		b.WriteString(flow + "\n")
	}
	b.WriteString("\ncounted:")
	for _, chain := range []string{"prerouting", "input", "forward"} {
		for _, n := range counters(t, m.Firewall, chain) {
			fmt.Fprintf(&b, " %s %v", chain, n > 0)
		}
	}
	b.WriteString("\n")
	return b.String()
}

// TestMatrix is who may say what to whom: see testdata/matrix.golden, which
// TestMatrixIsTheDesign holds against the design's words.
func TestMatrix(t *testing.T) {
	t.Parallel()
	m := newMatrixLab(t)
	cells, later := m.cells(), laterCells()
	began := time.Now()
	got := m.whole(t, cells, later)
	t.Logf("%d cells in %s", len(cells)+len(later), time.Since(began).Round(time.Millisecond))
	const file = "testdata/matrix.golden"
	if *update {
		check(t, os.WriteFile(file, []byte(got), 0o644))
	}
	if diff := cmp.Diff(strings.Split(string(must(os.ReadFile(file))), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("(-want +got), -update writes it:\n%s", diff)
	}
}

// TestMatrixIsTheDesign holds the table against the design's words.
func TestMatrixIsTheDesign(t *testing.T) {
	t.Parallel()
	for line := range strings.Lines(string(must(os.ReadFile("testdata/matrix.golden")))) {
		f := strings.Fields(line)
		if len(f) != 3 || len(f[2]) != len(matrixProtocols) || !slices.Contains(matrixSources, f[0]) {
			continue
		}
		for i, proto := range matrixProtocols {
			if got := f[2][i]; got != no && got != designed(f[0], f[1], proto) {
				t.Errorf("%s to %s, %s: the table says %c, the design %c", f[0], f[1], proto, got, designed(f[0], f[1], proto))
			}
		}
	}
}

// designed is the whole policy in words, without nftables.
func designed(src, dst, proto string) byte {
	from, source := place(src)
	to, target := place(dst)
	fromNet, toNet := source.As16()[7], target.As16()[7]
	same := fromNet == toNet && (fromNet == 1 || fromNet == 2 || fromNet == 5)
	machine := from != "tunnel" && from != ""
	in := func(words string) bool { return slices.Contains(strings.Fields(words), proto) }
	pass := func(ok bool, otherwise byte) byte {
		if ok {
			return arrived
		}
		return otherwise
	}
	switch {
	case strings.Contains(src, "-as-") || from == "out":
		return silence // not theirs to say
	case from == "":
		return arrived // the host may say what it likes
	case locals[src].addr != "" || dst == "gateway":
		return pass(machine && to == "" && in("ns na"), silence) // neighbours' words
	case in("late over jumbo"):
		return silence // no packet at all
	}
	if in("hop dst rt0 rt2 rt4 frags atom") {
		proto = "udp5000" // what is behind decides
	}
	switch {
	case to != "" && same:
		return arrived
	case to != "":
		granted := src == "g" && dst == "c" && in("tcp80") || src == "g" && toNet == 6 && in("echo") ||
			fromNet == 6 && dst == "g" && in("udp5000") || fromNet == 6 && toNet == 1 && in("echo") ||
			fromNet == 1 && dst == "far6" && in("tcp443") ||
			strings.HasPrefix(src, "far6") && dst == "g" && in("reply") // g has asked
		if !granted && in("reply error ns na none 6in6 4in6 253") {
			return silence // nobody to tell, or the kernel does not
		}
		return pass(granted, told)
	case machine && in("ns na"):
		return arrived
	case in("error"):
		return pass(fromNet == 1 || fromNet == 2 || fromNet == 5, silence) // it quotes a packet to the sender
	case dst == "self":
		b := source.As16()
		prober := from == "tunnel" && (fromNet < 3 || fromNet == 5) && b[14] == 0 && b[15] == 1
		return pass(prober && in("echo reply udp7447"), silence)
	case dst == "::3":
		return pass(machine && in("tcp53 udp53"), silence)
	case strings.HasSuffix(dst, "::3"):
		return pass(same && in("tcp53 udp53"), silence)
	}
	return pass(same && in("echo reply"), silence)
}

// put puts a table in force as it is, whatever it lacks.
func (m *matrixLab) put(t testing.TB, table Table) {
	t.Helper()
	k, err := m.open(context.Background())
	check(t, err)
	defer k.Close()
	check(t, k.replace(table))
}
