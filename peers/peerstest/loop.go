package peerstest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weftmesh/weft/peers"
)

// A tunnel whose own packets would be routed into it comes to a rest: in a mesh its
// sockets are in another namespace than its link, with no way from the one to the
// other. Where they share one, as on a laptop, it does as long as there is no session;
// with one, the kernel's WireGuard and wireguard-go both go round (seen: 20 packets
// became 7 and 290 MB), so no endpoint may be an address of the mesh.
func testLoop(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	within, stranger := b.asPeer(netip.AddrPortFrom(b.addr, b.at6.Port())), peers.Peer{
		Key: newKey(t).PublicKey(), Endpoint: netip.MustParseAddrPort("[fd12::c:2]:51820"), Keepalive: time.Second,
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("fd12::c:0/112")},
	}
	within.Retarget = true
	a.mustPing(b)
	a.become(within, stranger)
	a.comesToRest(within.Endpoint, stranger.Endpoint)
	b.mustPing(a) // who is heard is answered where he is
	a.mustPing(b)

	both, other := newSpace(t), newSpace(t)
	cable(t, both, "u0", other, "u0")
	alone := newNodeAt(t, open, Site{Plane: both, Underlay: both}, 0xa)
	alone.become(within, stranger)
	alone.comesToRest(within.Endpoint, stranger.Endpoint)
}

// comesToRest sends some packets to each, and checks that they do not make many more.
func (n *node) comesToRest(to ...netip.AddrPort) {
	n.Helper()
	sent := func() (bytes uint64) {
		all, err := n.dev.Stats(n.Context())
		must(n.T, err)
		for _, s := range all {
			bytes += s.Tx
		}
		return bytes
	}
	before := sent()
	out := n.listenUDP(netip.AddrPortFrom(n.addr, 0))
	for range 10 {
		for _, at := range to {
			out.WriteToUDPAddrPort(make([]byte, 1000), at) // it may be refused
		}
	}
	last := sent()
	looked := time.Now()
	await(n.T, "rest", func() bool {
		if time.Since(looked) < 300*time.Millisecond {
			return false
		}
		now, was := sent(), last
		last, looked = now, time.Now()
		return now == was
	})
	if most := uint64(70000); last-before > most {
		n.Errorf("%d packets of 1000 bytes became %d bytes, want at most %d", 10*len(to), last-before, most)
	}
}
