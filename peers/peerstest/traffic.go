package peerstest

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftmesh/weft/peers"
)

// RunTraffic is the part of the conformance suite that sends packets: what
// tools/testing/selftests/wireguard/netns.sh of the Linux kernel asks of WireGuard, as
// far as a mesh leans on it. It needs root, network namespaces and, for NAT, nft(8).
// Each device's link must be of kind, as netlink calls it.
//
// Of netns.sh these are not here: marks and policy routing, preshared keys, IPv4 inside
// and tunnels within tunnels, which a mesh has none of; packets for nobody, which
// an unreachable route catches before the link; and links larger than an underlay.
func RunTraffic(t *testing.T, kind string, open Opener) {
	checked := func(t *testing.T, at Site) peers.Device {
		dev := open(t, at)
		within(t, at.Plane, wg0, func(_ *netlink.Handle, l netlink.Link) {
			if l.Type() != kind {
				t.Fatalf("the link is of kind %s, want %s", l.Type(), kind)
			}
		})
		return dev
	}
	for _, tt := range []struct {
		name string
		test func(*testing.T, Opener)
	}{
		{"Ping", testPing},
		{"PingOverIPv4", testPingOverIPv4},
		{"Streams", testStreams},
		{"EverySize", testEverySize},
		{"MTUAndPadding", testPadding},
		{"TooBig", testTooBig},
		{"RoamingPort", testRoamingPort},
		{"RoamingAddress", testRoamingAddress},
		{"RoamingFamily", testRoamingFamily},
		{"BothFamilies", testBothFamilies},
		{"StickySource", testStickySource},
		{"NATWithKeepalive", testNAT},
		{"Keepalive", testKeepalive},
		{"ForeignSourceIsDropped", testForeignSource},
		{"MoreSpecificSource", testMoreSpecificSource},
		{"LongestPrefixWins", testLongestPrefix},
		{"MovedPrefixKeepsTheSession", testMovedPrefix},
		{"MovedBetweenPeers", testMovedBetweenPeers},
		{"DropCutsOneAlone", testDropTraffic},
		{"ThousandPeersComeAndGo", testChurn},
		{"KeyChange", testKeyChange},
		{"RevokedPeerIsCut", testRevoked},
		{"LowOrderKeys", testLowOrderKeys},
		{"Restarted", testRestarted},
		{"ConfiguredBeforeUp", testConfiguredBeforeUp},
		{"LinkDownAndUp", testLinkDownAndUp},
		{"RoutingLoop", testLoop},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(t, checked)
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
