package peerstest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

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

// A node that changes between IPv6 and IPv4 is followed, within its session, and what
// its peer's owner applies meanwhile leaves the learnt endpoint alone.
func testRoamingFamily(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	before := a.stats(b).LastHandshake
	told := b.asPeer(b.at6)
	for i, via := range []struct{ from, to netip.AddrPort }{{b.at4, a.at4}, {b.at6, a.at6}, {b.at4, a.at4}} {
		to := a.asPeer(via.to)
		to.Retarget = true
		b.become(to)
		b.mustPing(a)
		told.Keepalive = time.Duration(100+i) * time.Second
		other := peers.Peer{Key: newKey(t).PublicKey(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("fd12::c:0/112")}}
		if changes := a.become(told, other); len(changes) == 0 {
			t.Error("nothing was changed: this shows nothing")
		}
		if s := a.stats(b); s.Endpoint != via.from || s.LastHandshake != before {
			t.Errorf("a sends to %s, want %s; the same session: %t", s.Endpoint, via.from, s.LastHandshake == before)
		}
		a.mustPing(b)
	}
	told.Retarget = true
	a.become(told)
	if got := a.stats(b); got.Endpoint != b.at6 || got.LastHandshake != before {
		t.Errorf("a sends to %s, want %s; the same session: %t", got.Endpoint, b.at6, got.LastHandshake == before)
	}
	a.mustPing(b)
}

// Of a node with several addresses the one that was spoken to answers, and when that
// one is taken away another. (wireguard-go's own sockets lose it where the kernel hands
// over several packets at once: whoever spoke is answered from the host's first address.)
func testStickySource(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	second4, second6 := netip.MustParsePrefix("10.0.0.250/32"), netip.MustParsePrefix("fd00::a:a/128")
	setUp(t, a.Underlay, "u0", second4, second6)
	at := func(p netip.Prefix) netip.AddrPort { return netip.AddrPortFrom(p.Addr(), a.at4.Port()) }
	speakTo := func(to netip.AddrPort) {
		t.Helper()
		p := a.asPeer(to)
		p.Retarget = true
		b.become(p)
		b.mustPing(a)
		if got := b.config().Peers[0].Endpoint; got != to {
			t.Errorf("spoken to at %s, it answers from %s", to, got)
		}
	}
	for _, to := range []netip.AddrPort{a.at4, at(second4), a.at4, a.at6, at(second6), a.at6, at(second6)} {
		speakTo(to)
	}
	session := b.stats(a).LastHandshake
	for _, gone := range []struct {
		addr netip.Prefix
		rest netip.AddrPort
	}{{second6, a.at6}, {second4, a.at4}} {
		speakTo(at(gone.addr))
		within(t, a.Underlay, "u0", func(nl *netlink.Handle, l netlink.Link) {
			must(t, nl.AddrDel(l, &netlink.Addr{IPNet: netns.IPNet(gone.addr)}))
		})
		a.mustPing(b)
		if s := b.stats(a); s.Endpoint != gone.rest || s.LastHandshake != session {
			t.Errorf("without %s it is heard from %s, want %s; the same session: %t", gone.addr, s.Endpoint, gone.rest, s.LastHandshake == session)
		}
		b.mustPing(a)
	}
}

// One device speaks to peers over IPv6 and IPv4 by turns, and each packet goes where
// it should. (wireguard-go's own sockets send some to an address that is half of one
// peer's and half of another's: what they reuse for IPv4 is too short for IPv6.)
func testBothFamilies(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	c, d := newNeighbour(t, open, b, 0xc), newNeighbour(t, open, b, 0xd)
	d.at6 = netip.AddrPortFrom(d.at6.Addr(), d.at6.Port()+1)
	d.at4 = netip.AddrPortFrom(d.at4.Addr(), d.at6.Port())
	c.become(a.asPeer(a.at6))
	d.become(a.asPeer(a.at4))
	a.become(b.asPeer(b.at6), c.asPeer(c.at6), d.asPeer(d.at4))
	var streams []*echoes
	for _, to := range []*node{b, c, d} {
		a.mustPing(to)
		streams = append(streams, a.echoes(to))
	}
	for range 4 {
		for _, s := range streams {
			s.some(t)
		}
	}
	for i, s := range streams {
		s.stop()
		if err := <-s.ended; err != nil {
			t.Errorf("stream %d: %v", i, err)
		}
	}
}
