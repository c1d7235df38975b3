package peerstest

import (
	"encoding/base64"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
)

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

// A link that goes down is silent, and carries on when it comes up, with its peers and
// the endpoints that they were learnt at.
func testLinkDownAndUp(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	b.at6 = netip.AddrPortFrom(b.at6.Addr(), 40000)
	b.become(a.asPeer(a.at6))
	b.mustPing(a) // from where a learns it
	before := a.config()
	for range 2 {
		within(t, a.Plane, wg0, func(nl *netlink.Handle, l netlink.Link) { must(t, nl.LinkSetDown(l)) })
		b.cutOff(a, "a link that is down answers")
		setUp(t, a.Plane, wg0, netip.PrefixFrom(a.addr, 32)) // its address went with it going down
		if diff := cmp.Diff(before.String(), a.config().String()); diff != "" {
			t.Errorf("the device holds (-want +got):\n%s", diff)
		}
		a.mustPing(b)
		b.mustPing(a)
	}
}

// A node that starts anew, with the key that it had, speaks and is heard: its peer
// takes the new session for the old one. (That a peer notices by itself takes it 15
// seconds, and a session is renewed after two minutes: neither is waited for here.)
func testRestarted(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	before := a.stats(b)
	must(t, b.dev.Close())
	b.dev = open(t, b.Site)
	setUp(t, b.Plane, wg0, netip.PrefixFrom(b.addr, 32))
	b.become(a.asPeer(a.at6))
	b.mustPing(a)
	a.mustPing(b)
	if after := a.stats(b); !after.LastHandshake.After(before.LastHandshake) || after.Rx <= before.Rx || after.Tx <= before.Tx {
		t.Errorf("a session and counters that go on: %+v, then %+v", before, after)
	}
}

// A keepalive is sent as often as it should be, is empty, and ends when it is switched
// off.
func testKeepalive(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	const interval, empty = time.Second, 32
	keeps := b.asPeer(b.at6)
	keeps.Keepalive = interval
	a.become(keeps)
	var at []time.Time
	rx := b.stats(a).Rx
	for range 4 {
		before := rx
		await(t, "a keepalive", func() bool { rx = b.stats(a).Rx; return rx > before })
		at = append(at, time.Now())
		if rx-before != empty {
			t.Errorf("a keepalive of %d bytes, want %d", rx-before, empty)
		}
	}
	// The first may be of the moment in which it was switched on; on a busy machine one
	// may be seen late.
	if took := at[3].Sub(at[1]); took < 2*interval*6/10 {
		t.Errorf("three keepalives within %s, want one each %s", took, interval)
	}
	a.become(b.asPeer(b.at6))
	rx = b.stats(a).Rx
	<-time.After(interval * 5 / 2) // that nothing happens can only be waited for
	if now := b.stats(a).Rx; now > rx+empty {
		t.Errorf("%d bytes after it was switched off", now-rx)
	}
}

// A public key that makes every secret the same (a point of low order) is spoken to by
// nobody, and keeps nobody else from speaking.
func testLowOrderKeys(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	var want []peers.Peer
	for _, text := range []string{
		"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
		"X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=", "7P///////////////////////////////////////38=",
		"7f///////////////////////////////////////38=", "7v///////////////////////////////////////38=",
	} {
		raw, err := base64.StdEncoding.DecodeString(text)
		must(t, err)
		want = append(want, peers.Peer{Key: wgtypes.Key(raw), Endpoint: b.at6, Keepalive: time.Second})
	}
	a.become(append(want, b.asPeer(b.at6))...)
	a.mustPing(b)
	good := b.asPeer(b.at6)
	good.Keepalive = time.Second
	a.become(append(want, good)...)
	rx := b.stats(a).Rx
	await(t, "keepalives of the one peer with a good key", func() bool { return b.stats(a).Rx >= rx+3*32 })
	all, err := a.dev.Stats(t.Context())
	must(t, err)
	for _, s := range all {
		if s.Key != good.Key && s.Tx > 0 {
			t.Errorf("%d bytes were sent to the key %s", s.Tx, s.Key)
		}
	}
}
