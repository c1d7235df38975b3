package peerstest

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

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

// heard sends from each address to a, the last of them one that a accepts from n, and
// returns from whom something came. A tunnel keeps the order: when the last is here,
// the others are not coming.
func (n *node) heard(a *node, from ...netip.Addr) (came []netip.Addr) {
	n.Helper()
	receiver := a.listenUDP(netip.AddrPortFrom(a.addr, 0))
	to := receiver.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, addr := range from {
		n.send(n.listenUDP(netip.AddrPortFrom(addr, 0)), []byte("x"), to)
	}
	for len(came) == 0 || came[len(came)-1] != from[len(from)-1] {
		receiver.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, sender, err := receiver.ReadFromUDPAddrPort(make([]byte, 10))
		if err != nil {
			n.Fatalf("of %v came %v: %v", from, came, err)
		}
		came = append(came, sender.Addr())
	}
	return came
}

// Longest match is for sources too: a peer with the shorter prefix may not speak for
// an address that is another's, and may again when that other has gone.
func testMoreSpecificSource(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	rest := netip.MustParseAddr("fd12::c:2")
	setUp(t, b.Plane, wg0, netip.PrefixFrom(rest, 128))
	all, specific := b.asPeer(b.at6), peers.Peer{Key: newKey(t).PublicKey(), AllowedIPs: []netip.Prefix{b.home()}}
	all.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("fd12::/32")}
	for _, tt := range []struct {
		want []peers.Peer
		came []netip.Addr
	}{
		{[]peers.Peer{all}, []netip.Addr{b.addr, rest}},
		{[]peers.Peer{all, specific}, []netip.Addr{rest}},
		{[]peers.Peer{all}, []netip.Addr{b.addr, rest}},
	} {
		a.become(tt.want...)
		if diff := cmp.Diff(tt.came, b.heard(a, b.addr, rest), cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); diff != "" {
			t.Errorf("with %d peers it heard (-want +got):\n%s", len(tt.want), diff)
		}
	}
}

// A prefix that moves between two living peers is from then on the one's alone, both
// as a destination and as a source, and neither makes a new session.
func testMovedBetweenPeers(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	c := newNeighbour(t, open, b, 0xc)
	moving := netip.MustParseAddr("fd12::d:2") // b and c both think that it is theirs
	theirs := netip.PrefixFrom(moving, 112).Masked()
	for _, n := range []*node{b, c} {
		setUp(t, n.Plane, wg0, netip.PrefixFrom(moving, 128))
		n.become(a.asPeer(a.at6))
	}
	at := func(holder *node) {
		peerB, peerC := b.asPeer(b.at6), c.asPeer(c.at6)
		if holder == b {
			peerB.AllowedIPs = append(peerB.AllowedIPs, theirs)
		} else {
			peerC.AllowedIPs = append(peerC.AllowedIPs, theirs)
		}
		a.become(peerB, peerC)
	}
	at(b)
	a.mustPing(b)
	a.mustPing(c)
	sessionB, sessionC := a.stats(b).LastHandshake, a.stats(c).LastHandshake
	target := &node{T: t, addr: moving}
	for _, holder := range []*node{b, c, b} {
		at(holder)
		for _, n := range []*node{b, c} {
			came := n.heard(a, moving, n.addr)
			if accepted := len(came) == 2; accepted != (n == holder) {
				t.Errorf("the prefix is of %s; as a source it passes from %s: %t", holder.addr, n.addr, accepted)
			}
		}
		before := a.stats(holder).Tx
		a.mustPing(target)
		if a.stats(holder).Tx == before {
			t.Errorf("a sent nothing to %s, whose the prefix is", holder.addr)
		}
	}
	if a.stats(b).LastHandshake != sessionB || a.stats(c).LastHandshake != sessionC {
		t.Error("a session was made anew")
	}
}
