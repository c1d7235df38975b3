package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/peerstest"
)

// A gateway that does not answer is asked anew, ever more rarely and a few times; one
// that has answered never; and another one from the beginning.
func TestKnocks(t *testing.T) {
	a, b := wgtypes.Key{1}, wgtypes.Key{2}
	start := time.Unix(1_700_000_000, 0)
	k := knock{first: gatewayWord}
	for _, tt := range []struct {
		after   time.Duration
		gateway wgtypes.Key
		shaken  bool
		again   bool
		wait    time.Duration
	}{
		{0, a, false, false, 300 * time.Millisecond},
		{100 * time.Millisecond, a, false, false, 200 * time.Millisecond},
		{300 * time.Millisecond, a, false, true, 600 * time.Millisecond},
		{800 * time.Millisecond, a, true, false, 0},
		{2 * time.Second, a, true, false, 0},
		{3 * time.Second, a, false, false, 0}, // it has, once
		{4 * time.Second, b, false, false, 300 * time.Millisecond},
		{4300 * time.Millisecond, b, false, true, 600 * time.Millisecond},
		{4900 * time.Millisecond, b, false, true, 1200 * time.Millisecond},
		{6100 * time.Millisecond, b, false, true, 2400 * time.Millisecond},
		{8400 * time.Millisecond, b, false, false, 100 * time.Millisecond},
		{8500 * time.Millisecond, b, false, true, 0},
		{time.Hour, b, false, false, 0},
		{2 * time.Hour, a, false, false, 300 * time.Millisecond},
	} {
		if again, wait := k.next(tt.gateway, tt.shaken, start.Add(tt.after)); again != tt.again || wait != tt.wait {
			t.Errorf("after %s: %t %s, want %t %s", tt.after, again, wait, tt.again, tt.wait)
		}
	}
}

// Of two hosts one knocks, whatever their keys; of one behind NAT, that one.
func TestLeads(t *testing.T) {
	at := addrPort("192.0.2.1:51820")
	a, b := wgtypes.Key{1}, wgtypes.Key{2}
	for _, tt := range []struct {
		name string
		own  wgtypes.Key
		peer peers.Peer
		want bool
	}{
		{"the lower key", a, peers.Peer{Key: b, Endpoint: at}, true},
		{"the higher key", b, peers.Peer{Key: a, Endpoint: at}, false},
		{"behind NAT, to the lower key", b, peers.Peer{Key: a, Endpoint: at, Keepalive: 25 * time.Second}, true},
		{"to one behind NAT", a, peers.Peer{Key: b}, false},
	} {
		if got := leads(tt.own, tt.peer); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}

// A host knocks at new hosts that do not answer, as they are, and at no others.
func TestHostKnocks(t *testing.T) {
	s := &fakeSystem{device: peerstest.NewFake()}
	l, _, _ := newLoop(t, s)
	l.tunnels.wanted = map[wgtypes.Key]netip.AddrPort{}
	at := addrPort("192.0.2.1:51820")
	peer := func(b byte, at netip.AddrPort) peers.Peer {
		return peers.Peer{Key: wgtypes.Key{0: 255, 31: b}, Endpoint: at, AllowedIPs: []netip.Prefix{netip.PrefixFrom(addr(fmt.Sprintf("fd00::%d", b)), 128)}}
	}
	silent, answers, hidden, gone := peer(1, at), peer(2, at), peer(3, netip.AddrPort{}), peer(4, at)
	var changes []peers.Change
	for _, p := range []peers.Peer{silent, answers, hidden, gone} {
		changes = append(changes, peers.Change{Op: peers.AddPeer, Peer: p})
	}
	if err := l.tunnels.change(t.Context(), changes, mesh.Revision{}, s.Opened); err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	did := func(after time.Duration, want time.Duration, lines ...string) {
		t.Helper()
		s.lines = nil
		if wait := l.knocks(t.Context(), now.Add(after)); wait != want {
			t.Errorf("after %s: again in %s, want %s", after, wait, want)
		}
		if !slices.Equal(s.lines, lines) {
			t.Errorf("after %s: %q, want %q", after, s.lines, lines)
		}
	}
	asked := []string{
		"device: " + peers.Change{Op: peers.RemovePeer, Peer: peers.Peer{Key: silent.Key}}.String(),
		"device: " + peers.Change{Op: peers.AddPeer, Peer: silent}.String(),
	}
	did(0, hostWord)
	did(hostWord-time.Millisecond, time.Millisecond)
	s.device.Heard(peers.Stats{Key: answers.Key, LastHandshake: now})
	if err := s.device.Apply(t.Context(), []peers.Change{{Op: peers.RemovePeer, Peer: gone}}); err != nil {
		t.Fatal(err)
	}
	did(hostWord, 2*hostWord, asked...)
	did(2*hostWord, hostWord)
	did(3*hostWord, 4*hostWord, asked...)
	did(7*hostWord, 0, asked...)
	did(time.Hour, 0)
}
