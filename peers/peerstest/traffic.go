package peerstest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

// RunTraffic is the part of the conformance suite that sends packets: what
// tools/testing/selftests/wireguard/netns.sh of the Linux kernel asks of WireGuard, as
// far as a mesh leans on it. It needs root, network namespaces and, for NAT, nft(8).
func RunTraffic(t *testing.T, open Opener) {
	for _, tt := range []struct {
		name string
		test func(*testing.T, Opener)
	}{
		{"Ping", testPing},
		{"PingOverIPv4", testPingOverIPv4},
		{"ConfiguredBeforeUp", testConfiguredBeforeUp},
		{"MovedPrefixKeepsTheSession", testMovedPrefix},
		{"DropCutsOneAlone", testDropTraffic},
		{"LongestPrefixWins", testLongestPrefix},
		{"KeyChange", testKeyChange},
		{"RevokedPeerIsCut", testRevoked},
		{"RoamingPort", testRoamingPort},
		{"RoamingAddress", testRoamingAddress},
		{"ForeignSourceIsDropped", testForeignSource},
		{"NATWithKeepalive", testNAT},
		{"MTUAndPadding", testPadding},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(t, open)
		})
	}
}

func testPing(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	b.mustPing(a)
	if s := a.stats(b); s.Endpoint != b.at6 || time.Since(s.LastHandshake) > time.Minute || s.Rx == 0 || s.Tx == 0 {
		t.Errorf("stats = %+v", s)
	}
	if left := a.diff(b.asPeer(b.at6)); len(left) > 0 {
		t.Errorf("traffic is taken for drift: %v", left)
	}
}

func testPingOverIPv4(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	to := b.asPeer(b.at4)
	to.Retarget = true
	a.become(to)
	a.mustPing(b)
	// b heard a from another address than it was told, and answers there.
	if got := b.config().Peers[0].Endpoint; got != a.at4 {
		t.Errorf("b sends to %s, want %s", got, a.at4)
	}
}

// A link that is brought up only later, as its owner does after the firewall.
func testConfiguredBeforeUp(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	within(t, a.Plane, wg0, func(nl *netlink.Handle, l netlink.Link) {
		must(t, nl.LinkSetDown(l))
		must(t, nl.LinkSetUp(l)) // its address went with it going down
	})
	setUp(t, a.Plane, wg0, netip.PrefixFrom(a.addr, 32))
	a.mustPing(b)
}

func testMovedPrefix(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	before := a.stats(b).LastHandshake
	other := peers.Peer{Key: newKey(t).PublicKey(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("fd12::c:0/112")}}
	a.become(b.asPeer(b.at6), other)
	back := b.asPeer(b.at6)
	back.AllowedIPs = append(back.AllowedIPs, other.AllowedIPs...)
	other.AllowedIPs = nil
	if changes := a.become(back, other); len(changes) != 1 || changes[0].Op != peers.Move {
		t.Errorf("changes = %v, want one move", changes)
	}
	a.mustPing(b)
	if after := a.stats(b).LastHandshake; after != before {
		t.Error("the session was made anew")
	}
}

// A prefix that is dropped goes, with the session of its peer and its other prefixes
// as they were.
func testDropTraffic(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	extra := b.asPeer(b.at6)
	extra.AllowedIPs = append(extra.AllowedIPs, netip.MustParsePrefix("fd12::c:0/112"))
	a.become(extra)
	c := &node{T: t, addr: netip.MustParseAddr("fd12::c:2")}
	setUp(t, b.Plane, wg0, netip.PrefixFrom(c.addr, 128))
	a.mustPing(b)
	a.mustPing(c)
	before := a.stats(b)
	if changes := a.become(b.asPeer(b.at6)); len(changes) != 1 || changes[0].Op != peers.Drop {
		t.Errorf("changes = %v, want one drop", changes)
	}
	if n := len(a.config().Peers); n != 1 {
		t.Errorf("%d peers are left, want 1", n)
	}
	a.cutOff(c, "what was dropped still passes")
	a.mustPing(b)
	if after := a.stats(b); after.LastHandshake != before.LastHandshake || after.Rx <= before.Rx {
		t.Errorf("the session was made anew: %+v, then %+v", before, after)
	}
}

// An endpoint that is away from home is found where it is, and at home afterwards.
func testLongestPrefix(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	all, away := b.asPeer(b.at6), peers.Peer{Key: newKey(t).PublicKey(), AllowedIPs: []netip.Prefix{b.home()}}
	all.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("fd12::/32")}
	a.become(all)
	a.mustPing(b)
	a.become(all, away)
	a.cutOff(b, "the shorter prefix won")
	a.become(all)
	a.mustPing(b)
}

// A peer that takes a new key is lost until the others know it, and then found.
func testKeyChange(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	b.key = newKey(t)
	b.become(a.asPeer(a.at6))
	b.cutOff(a, "a accepts a key that it does not know")
	var ops []string
	for _, c := range a.become(b.asPeer(b.at6)) {
		ops = append(ops, c.Op.String())
	}
	if diff := cmp.Diff([]string{"add", "remove"}, ops); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	a.mustPing(b)
}

// A peer that is removed is not answered, and its packets go nowhere.
func testRevoked(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	a.become()
	b.cutOff(a, "a still answers")
	a.become(b.asPeer(b.at6))
	a.mustPing(b)
}

// squat/kilo #34, #41, #43, #82: an endpoint that was learnt is left alone.
func testRoamingPort(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	told := b.at6
	b.at6 = netip.AddrPortFrom(b.at6.Addr(), 40000)
	b.become(a.asPeer(a.at6)) // a new port, as behind NAT
	b.mustPing(a)
	if got := a.config().Peers[0].Endpoint; got != b.at6 {
		t.Fatalf("a sends to %s, want %s", got, b.at6)
	}
	if left := a.diff(b.asPeer(told)); len(left) > 0 {
		t.Errorf("roaming is taken for drift: %v", left)
	}
	a.mustPing(b)
	// Until somebody says that the endpoint is another.
	moved := b.asPeer(told)
	moved.Retarget = true
	a.become(moved)
	if got := a.config().Peers[0].Endpoint; got != told {
		t.Errorf("a sends to %s, want %s", got, told)
	}
}

// A node that comes to another network speaks from there, within its session.
func testRoamingAddress(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	before := a.stats(b).LastHandshake
	left := netip.PrefixFrom(b.at6.Addr(), 64)
	b.at6 = netip.AddrPortFrom(netip.MustParseAddr("fd00::b:b"), b.at6.Port())
	setUp(t, b.Underlay, "u0", netip.PrefixFrom(b.at6.Addr(), 64))
	within(t, b.Underlay, "u0", func(nl *netlink.Handle, l netlink.Link) {
		must(t, nl.AddrDel(l, &netlink.Addr{IPNet: netns.IPNet(left)}))
	})
	b.mustPing(a)
	if s := a.stats(b); s.Endpoint != b.at6 || s.LastHandshake != before {
		t.Errorf("a sends to %s, want %s; the same session: %t", s.Endpoint, b.at6, s.LastHandshake == before)
	}
	a.mustPing(b)
}

// CVE-2025-62820 (nebula): a source that is not the peer's is dropped at the
// receiver, plain, in fragments, behind an extension header, or of the other family.
func testForeignSource(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	to := netip.AddrPortFrom(a.addr, 9999)
	receiver := a.listenUDP(to)
	another := netip.MustParseAddr("fd12::c:2")
	nearby := netip.MustParseAddr("fd12::b:ffff:2") // shares its beginning with b
	ipv4 := netip.MustParseAddr("10.9.0.2")
	setUp(t, b.Plane, wg0, netip.PrefixFrom(another, 128), netip.PrefixFrom(nearby, 128), netip.PrefixFrom(ipv4, 24))
	setUp(t, a.Plane, wg0, netip.MustParsePrefix("10.9.0.1/24"))
	to4 := netip.MustParseAddrPort("10.9.0.1:9999")
	receiver4 := a.listenUDP(to4)
	// For what the sender's own device asks: IPv4 leaves towards a.
	mine := a.asPeer(a.at6)
	mine.AllowedIPs = append(mine.AllowedIPs, netip.PrefixFrom(to4.Addr(), 32))
	b.become(mine)
	for _, from := range []netip.Addr{another, nearby} {
		c := b.listenUDP(netip.AddrPortFrom(from, 0))
		b.send(c, []byte("plain"), to)
		b.send(c, make([]byte, 4000), to) // three fragments
		raw, err := c.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			padding := string([]byte{0, 0, 1, 4, 0, 0, 0, 0}) // next header (the kernel's), length, PadN
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, padding)
		}))
		must(t, err)
		b.send(c, []byte("behind an extension header"), to)
	}
	b.send(b.listenUDP(netip.AddrPortFrom(ipv4, 0)), []byte("IPv4"), to4)
	// A tunnel keeps the order: when this is here, the others are not coming.
	b.send(b.listenUDP(netip.AddrPortFrom(b.addr, 0)), []byte("good"), to)
	buf := make([]byte, 5000)
	receiver.SetReadDeadline(time.Now().Add(20 * time.Second))
	size, from, err := receiver.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:size]) != "good" || from.Addr() != b.addr {
		t.Errorf("first to arrive: %d bytes %.40q from %s, %v", size, buf[:size], from, err)
	}
	receiver4.SetReadDeadline(time.Now().Add(time.Millisecond))
	if size, from, err := receiver4.ReadFromUDPAddrPort(buf); err == nil {
		t.Errorf("IPv4 came through: %q from %s", buf[:size], from)
	}
}

// A node behind NAT can be reached as long as it keeps the way open, and not when it
// does not:
//
//	a [u0] --- [r0 router r1] --- [u0] b       a is masqueraded, and forgotten in 3 s
func testNAT(t *testing.T, open Opener) {
	if _, err := exec.LookPath("nft"); err != nil {
		if os.Getenv("CI") == "true" || os.Getenv("WEFT_VM") != "" {
			t.Fatal("nft (of nftables) is not installed; make deps installs it")
		}
		t.Skip("nft (of nftables) is not installed")
	}
	ua, ub, router := newSpace(t), newSpace(t), newSpace(t)
	cable(t, ua, "u0", router, "r0")
	must(t, ub.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "u0", Index: 20}, PeerName: "r1", PeerNamespace: netlink.NsFd(router.Fd())})
	}))
	setUp(t, router, "r0", netip.MustParsePrefix("192.0.2.1/24"))
	setUp(t, router, "r1", netip.MustParsePrefix("10.0.0.1/24"))
	must(t, router.Do(func() error {
		nft := exec.Command("nft", "table ip nat { chain post { type nat hook postrouting priority 100; oifname r1 masquerade; }; }")
		if out, err := nft.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		for name, value := range map[string]string{
			"net/ipv4/ip_forward": "1", "net/netfilter/nf_conntrack_udp_timeout": "3", "net/netfilter/nf_conntrack_udp_timeout_stream": "3",
		} {
			if err := netns.SetSysctl(name, value); err != nil {
				return err
			}
		}
		return nil
	}))
	a, b := newNode(t, open, ua, 0xa), newNode(t, open, ub, 0xb)
	setUp(t, ua, "u0", netip.MustParsePrefix("192.0.2.2/24"))
	within(t, ua, "u0", func(nl *netlink.Handle, l netlink.Link) {
		must(t, nl.AddrDel(l, &netlink.Addr{IPNet: netns.IPNet(netip.PrefixFrom(a.at4.Addr(), 24))}))
		must(t, nl.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: netip.MustParseAddr("192.0.2.1").AsSlice()}))
	})
	known := func() bool {
		nl, err := router.Netlink(unix.NETLINK_NETFILTER)
		must(t, err)
		defer nl.Close()
		flows, err := nl.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		must(t, err)
		for _, f := range flows {
			if f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.DstPort == b.at4.Port() {
				return true
			}
		}
		return false
	}

	keeps := b.asPeer(b.at4)
	a.become(keeps)
	b.become(a.asPeer(netip.AddrPort{}))
	a.mustPing(b)
	if got := b.config().Peers[0].Endpoint.Addr(); got != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("b sends to %s, want the router", got)
	}
	await(t, "the router forgets a silent node", func() bool { return !known() })
	b.cutOff(a, "it is reached all the same: this is no NAT")

	keeps.Keepalive = time.Second
	a.become(keeps)
	a.mustPing(b)
	for range 4 { // so many seconds, in which nobody sends anything else
		before := b.stats(a).Rx
		await(t, "a keepalive", func() bool { return b.stats(a).Rx > before })
	}
	if !known() {
		t.Error("the router has forgotten a node with a keepalive")
	}
	b.mustPing(a)
}

// A packet is padded to 16 bytes, but never beyond the MTU: one of exactly the MTU
// must fit the underlay. message is 16 bytes of header and 16 of authentication.
func testPadding(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	to := netip.AddrPortFrom(b.addr, 9999)
	in, out := b.listenUDP(to), a.listenUDP(netip.AddrPortFrom(a.addr, 0))
	const message, headers = 32, 40 + 8
	buf := make([]byte, 2000)
	try := func(packet int) uint64 {
		before := a.stats(b).Tx
		a.send(out, make([]byte, packet-headers), to)
		in.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := in.Read(buf); err != nil || n != packet-headers {
			t.Errorf("a packet of %d bytes: %d of its data came, %v", packet, n, err)
		}
		return a.stats(b).Tx - before
	}
	for _, tt := range []struct {
		mtu, packet int
		want        uint64
	}{
		{1420, 49, 64 + message}, {1420, 64, 64 + message}, {1420, 65, 80 + message},
		{1420, 1408, 1408 + message}, {1420, 1409, 1420 + message}, {1420, 1420, 1420 + message},
		{1285, 1280, 1280 + message}, {1285, 1281, 1285 + message}, {1285, 1285, 1285 + message},
	} {
		within(t, a.Plane, wg0, func(nl *netlink.Handle, l netlink.Link) { must(t, nl.LinkSetMTU(l, tt.mtu)) })
		// wireguard-go hears of the MTU a moment later; on a slow machine a keepalive or a
		// new session may come in between.
		got := try(tt.packet)
		await(t, "as many bytes as there should be", func() bool {
			if got == tt.want {
				return true
			}
			got = try(tt.packet)
			return got == tt.want || t.Failed()
		})
	}
}
