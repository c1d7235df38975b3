package firewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

// The zero policy refuses everything: it is in force before there is anything to
// tell apart.
func TestZeroPolicyRefusesEverything(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	set(t, l.Firewall, peers.Policy{})
	var s tags
	for _, cell := range [][2]string{{"a", "b"}, {"a", "host1"}, {"a", "::3"}, {"a", "remote1"}, {"remote1", "a"}, {"otherhost", "self"}, {"fe80::2", "fe80::1"}} {
		_, src := who(cell[0])
		_, dst := who(cell[1])
		from := l.ports["a"]
		if cell[0] == "remote1" || cell[0] == "otherhost" {
			from = l.ports["tunnel"]
		}
		from.send(t, packet(src, dst, 255, unix.IPPROTO_ICMPV6, echo(src, dst, s.next())))
		from.send(t, packet(src, dst, 255, unix.IPPROTO_ICMPV6, solicit(src, dst, dst, s.next())))
	}
	// What is sent after them, under another policy, proves that they had their
	// chance. The host's own reports of its multicast groups have a hop-by-hop header.
	set(t, l.Firewall, testPolicy())
	for name, p := range l.ports {
		src, dst := addr("1:200:6:1:2"), addr("1:100:5:0:1")
		if name != "tunnel" {
			_, src = who(name)
			dst = addr(fmt.Sprintf("%d:100:5:0:1", src.As16()[7]))
		}
		barrier := s.next()
		p.send(t, packet(src, dst, 64, unix.IPPROTO_ICMPV6, echo(src, dst, barrier)))
		var stray []byte
		if p.wait(patience, func(p []byte) bool {
			if bytes.Contains(p, barrier.bytes()) {
				return true
			}
			if kind, _, ok := icmpOf(p); !ok && p[6] != unix.IPPROTO_HOPOPTS || ok && kind != neighbourSolicitation {
				stray = p
			}
			return false
		}) == nil {
			t.Fatalf("%s is not answered under another policy", name)
		}
		if stray != nil {
			t.Errorf("%s saw %x", name, stray)
		}
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not in %s: %s", patience, what)
		}
	}
}

func TestNoIPv4(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	nl := must(l.plane.Netlink())
	defer nl.Close()
	// Even if somebody gives the host an IPv4 address and forwards.
	addAddr4 := func(link, a string) {
		check(t, nl.AddrAdd(must(nl.LinkByName(link)), must(netlink.ParseAddr(a))))
	}
	addAddr4("m-a", "10.0.0.1/24")
	addAddr4("weft0", "10.0.1.1/24")
	sysctl(t, l.plane, "net/ipv4/ip_forward", "1")

	drops := func() uint64 { return counters(t, l.Firewall, "prerouting")[0] }
	ping := func(src, dst string) []byte {
		p := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_ICMP, 0, 0}
		p = append(append(p, netip.MustParseAddr(src).AsSlice()...), netip.MustParseAddr(dst).AsSlice()...)
		binary.BigEndian.PutUint16(p[10:], sum16(p))
		echo := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
		return append(p, echo...)
	}
	a, tunnel := l.ports["a"], l.ports["tunnel"]
	header := a.header
	a.header = binary.BigEndian.AppendUint16(append([]byte{}, header[:12]...), unix.ETH_P_IP)
	a.send(t, ping("10.0.0.2", "10.0.0.1"))
	a.send(t, ping("10.0.0.2", "10.0.1.2"))
	a.header = header
	tunnel.send(t, ping("10.0.1.2", "10.0.1.1"))
	tunnel.send(t, ping("10.0.1.2", "10.0.0.2"))
	eventually(t, "IPv4 packets are dropped", func() bool { return drops() >= 4 })
	if got := tunnel.wait(0, func(p []byte) bool { return p[0]>>4 == 4 }); got != nil {
		t.Errorf("an IPv4 packet left by the tunnel: %x", got)
	}
}

// sum16 is the checksum of an IPv4 header whose own is zero.
func sum16(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Neighbour discovery works on machines' links, and only between neighbours.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	gateway := netip.MustParseAddr("fe80::1")
	all := netip.MustParseAddr("ff02::1:ff00:1") // gateway's solicited-node group
	a, b := l.ports["a"], l.ports["b"]
	advert := func(p []byte) bool {
		kind, _, ok := icmpOf(p)
		return ok && kind == neighbourAdvert
	}
	allNodes := netip.MustParseAddr("ff02::1")
	tests := []struct {
		name, src string
		dst       netip.Addr
		hops      byte
		answered  bool
	}{
		// First those that are not answered: no answer of another is taken for theirs.
		{"passed on by a router", "fe80::2", gateway, 254, false},
		{"from another's address", "b", gateway, 255, false},
		{"from the host's address", "host1", gateway, 255, false},
		{"from its address", "a", all, 255, true},
		{"unicast", "a", gateway, 255, true},
		{"from link-local", "fe80::2", all, 255, true},
		{"detecting duplicates", "::", all, 255, true},
	}
	var s tags
	for _, tt := range tests {
		_, src := who(tt.src)
		mac := a.header[6:12]
		if src.IsUnspecified() {
			mac = nil
		}
		ask := func() {
			a.send(t, packet(src, tt.dst, tt.hops, unix.IPPROTO_ICMPV6, solicit(src, tt.dst, gateway, s.next(), mac...)))
		}
		ask()
		if tt.answered {
			// The link joins its multicast groups a moment after it came up.
			eventually(t, tt.name+": an answer", func() bool {
				ask()
				to := src
				if src.IsUnspecified() {
					to = allNodes // where one without an address hears it
				}
				return a.wait(20*time.Millisecond, func(p []byte) bool { return advert(p) && destOf(p) == to }) != nil
			})
			continue
		}
		// What follows is answered; so what came before had its chance.
		barrier := s.next()
		_, own := who("a")
		_, host := who("host1")
		a.send(t, packet(own, host, 64, unix.IPPROTO_ICMPV6, echo(own, host, barrier)))
		got, passed := false, false
		a.wait(patience, func(p []byte) bool {
			got, passed = got || advert(p), passed || bytes.Contains(p, barrier.bytes())
			return passed
		})
		if !passed {
			t.Fatalf("%s: no answer to the echo after it", tt.name)
		}
		if got {
			t.Errorf("%s: it was answered", tt.name)
		}
	}
	if got := b.wait(0, advert); got != nil {
		t.Error("an advertisement went to another machine")
	}
}

// A packet that is too big for the tunnel comes back as an error from the host's
// address in the sender's network: an address that passes at every hop. An error
// from the far host passes too.
func TestPathMTUErrorsReturn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, tunnel := l.ports["a"], l.ports["tunnel"]
	_, src := who("a")
	_, dst := who("remote1")
	_, host := who("host1")
	big := udpOf(src, dst, 9999, make([]byte, 1340))
	a.send(t, packet(src, dst, 64, unix.IPPROTO_UDP, big))
	isTooBig := func(p []byte) bool {
		kind, _, ok := icmpOf(p)
		return ok && kind == 2
	}
	got := a.wait(patience, isTooBig)
	if got == nil {
		t.Fatal("no error returned for a packet of 1388 bytes into a tunnel of 1300")
	}
	if from := sourceOf(got); from != host {
		t.Errorf("the error comes from %s, want %s", from, host)
	}
	if mtu := binary.BigEndian.Uint32(got[44:]); mtu != 1300 {
		t.Errorf("the error says MTU %d, want 1300", mtu)
	}

	_, farHost := who("otherhost1")
	inner := packet(src, dst, 60, unix.IPPROTO_UDP, big)[:120]
	tunnel.send(t, packet(farHost, src, 63, unix.IPPROTO_ICMPV6, icmp(farHost, src, 2, 0, append([]byte{0, 0, 5, 0}, inner...)...)))
	if got := a.wait(patience, func(p []byte) bool { return isTooBig(p) && sourceOf(p) == farHost }); got == nil {
		t.Error("the far host's error did not arrive")
	}
}

func udpOf(src, dst netip.Addr, dport uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, 40000)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	return checksum(src, dst, unix.IPPROTO_UDP, append(append(b, 0, 0), data...), 6)
}

// A machine can tell the host that its own network's path is narrow, and not that
// another network's is.
func TestForgedErrorsAboutOtherNetworks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	nl := must(l.plane.Netlink())
	defer nl.Close()
	mtuTo := func(dst netip.Addr) int {
		routes, err := nl.RouteGet(dst.AsSlice())
		if err != nil || len(routes) == 0 {
			t.Fatalf("route to %s: %v", dst, err)
		}
		return routes[0].MTU
	}
	a := l.ports["a"]
	_, src := who("a")
	_, other := who("c")
	// The error is about an echo that the host is said to have sent: no socket has to
	// be there for the kernel to believe it.
	forge := func(host, about netip.Addr) {
		inner := packet(host, about, 60, unix.IPPROTO_ICMPV6, echo(host, about, 7))
		body := append([]byte{0, 0, 5, 0}, inner...) // MTU 1280
		a.send(t, packet(src, host, 64, unix.IPPROTO_ICMPV6, icmp(src, host, 2, 0, body...)))
	}
	var s tags
	for _, host := range []string{"host1", "host2", "1::3", "2::3", "::3", "self"} {
		_, h := who(host)
		forge(h, other)
	}
	if got := l.flush(t, a, s.next(), s.next(), false); got != "" {
		t.Fatal(got)
	}
	if mtu := mtuTo(other); mtu != 0 {
		t.Errorf("a machine of network 1 set the path MTU to one of network 2: %d", mtu)
	}
	_, host := who("host1")
	forge(host, src)
	eventually(t, "the host believes an error about the sender's own network", func() bool { return mtuTo(src) == 1280 })
}

// The MSS of both SYNs is clamped to the narrower of the two ways.
func TestMSSIsClamped(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var s tags
	for _, way := range [][2]string{{"a", "remote1"}, {"remote1", "a"}, {"a", "b"}} {
		fromPort, src := who(way[0])
		toPort, dst := who(way[1])
		g := s.next()
		l.ports[fromPort].send(t, packet(src, dst, 64, unix.IPPROTO_TCP, tcpSYN(src, dst, 80, g)))
		got := l.ports[toPort].wait(patience, func(p []byte) bool { return bytes.Contains(p, g.bytes()) })
		if got == nil {
			t.Fatalf("%s to %s: the SYN did not arrive", way[0], way[1])
		}
		want := uint16(1300 - 60)
		if toPort == "b" {
			want = 1420 - 60
		}
		if mss := binary.BigEndian.Uint16(got[62:]); mss != want {
			t.Errorf("%s to %s: MSS %d, want %d", way[0], way[1], mss, want)
		}
	}
}

// What the host itself begins is answered: echo and connections from its address
// in a network, probes from its own. That is all that is tracked.
func TestHostsOwnFlows(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tests := []struct{ host, peer string }{{"host1", "a"}, {"host1", "remote1"}, {"self", "otherhost"}}
	for _, tt := range tests {
		port, to := who(tt.peer)
		_, from := who(tt.host)
		var conn *net.UDPConn
		check(t, l.plane.Do(func() (err error) {
			conn, err = net.DialUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 7447)))
			return err
		}))
		defer conn.Close()
		if _, err := conn.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		asked := l.ports[port].wait(patience, func(p []byte) bool { return bytes.HasSuffix(p, []byte("question")) })
		if asked == nil {
			t.Fatalf("%s to %s: the question did not arrive", tt.host, tt.peer)
		}
		answer := udpOf(to, from, binary.BigEndian.Uint16(asked[40:]), []byte("answer"))
		binary.BigEndian.PutUint16(answer, 7447)
		binary.BigEndian.PutUint16(answer[6:], 0)
		l.ports[port].send(t, packet(to, from, 64, unix.IPPROTO_UDP, checksum(to, from, unix.IPPROTO_UDP, answer, 6)))
		check(t, conn.SetReadDeadline(time.Now().Add(patience)))
		buf := make([]byte, 100)
		if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "answer" {
			t.Errorf("%s asked %s: %q, %v", tt.host, tt.peer, buf[:n], err)
		}
	}
	for _, tt := range tests {
		port, to := who(tt.peer)
		_, from := who(tt.host)
		var conn *net.IPConn
		check(t, l.plane.Do(func() (err error) {
			conn, err = net.DialIP("ip6:ipv6-icmp", &net.IPAddr{IP: from.AsSlice()}, &net.IPAddr{IP: to.AsSlice()})
			return err
		}))
		defer conn.Close()
		if _, err := conn.Write(icmp(from, to, echoRequest, 0, 1, 2, 3, 4)); err != nil {
			t.Fatal(err)
		}
		l.ports[port].send(t, packet(to, from, 64, unix.IPPROTO_ICMPV6, icmp(to, from, echoReply, 0, 1, 2, 3, 4)))
		check(t, conn.SetReadDeadline(time.Now().Add(patience)))
		buf := make([]byte, 100)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				t.Errorf("%s pings %s: %v", tt.host, tt.peer, err)
			}
			if err != nil || n > 0 && buf[0] == echoReply {
				break
			}
		}
	}
	if n := conntrackEntries(t, l.plane); n != len(tests) {
		t.Errorf("%d entries of connection tracking, want %d: no echo is tracked", n, len(tests))
	}
}

// Queries and probes are answered, and neither leaves anything in connection
// tracking; the host can ask itself too.
func TestQueriesAndProbesAreAnswered(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	answer := func(at string, port uint16) {
		_, a := who(at)
		var conn *net.UDPConn
		check(t, l.plane.Do(func() (err error) {
			conn, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port)))
			return err
		}))
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 512)
			for {
				n, from, err := conn.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				conn.WriteToUDPAddrPort(append([]byte("re: "), buf[:n]...), from)
			}
		}()
		t.Cleanup(func() { conn.Close(); <-done })
	}
	var s tags
	for _, tt := range []struct {
		at   string
		port uint16
		from []string
	}{
		{"::3", 53, []string{"a", "c"}},
		{"1::3", 53, []string{"a", "client1"}},
		{"self", 7447, []string{"otherhost", "prober1"}},
	} {
		answer(tt.at, tt.port)
		_, dst := who(tt.at)
		for _, from := range tt.from {
			port, src := who(from)
			g := s.next()
			l.ports[port].send(t, packet(src, dst, 64, unix.IPPROTO_UDP, udp(src, dst, tt.port, g)))
			if l.ports[port].wait(patience, func(p []byte) bool { return bytes.Contains(p, []byte("re: ")) && bytes.Contains(p, g.bytes()) }) == nil {
				t.Errorf("%s asked %s: no answer", from, tt.at)
			}
		}
	}
	if n := conntrackEntries(t, l.plane); n != 0 {
		t.Errorf("%d entries of connection tracking, want none", n)
	}
	_, dst := who("1::3")
	var conn *net.UDPConn
	check(t, l.plane.Do(func() (err error) {
		conn, err = net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 53)))
		return err
	}))
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	buf := make([]byte, 100)
	if _, err := conn.Write([]byte("self")); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "re: self" {
		t.Errorf("the host asked itself: %q, %v", buf[:n], err)
	}
}
