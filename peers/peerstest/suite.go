package peerstest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
)

// Run is the conformance suite of peers.Device. open returns a new device without
// a key and peers; Run closes it.
func Run(t *testing.T, open func(t *testing.T) peers.Device) {
	for _, tt := range []struct {
		name string
		test func(*tester)
	}{
		{"Empty", testEmpty},
		{"KeyAndPort", testKeyAndPort},
		{"NewKeyKeepsThePeers", testNewKey},
		{"Add", testAdd},
		{"AddedAgain", testAddedAgain},
		{"AddWhatIsThere", testAddWhatIsThere},
		{"Update", testUpdate},
		{"UnknownPeer", testUnknownPeer},
		{"OwnKey", testOwnKey},
		{"Move", testMove},
		{"Drop", testDrop},
		{"Remove", testRemove},
		{"OrderInOneBatch", testOrder},
		{"ThousandPeers", testThousandPeers},
		{"ThousandsOfPrefixes", testManyPrefixes},
		{"RandomWalk", testRandomWalk},
		{"Stats", testStats},
		{"EndedContext", testEndedContext},
		{"Close", testClose},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := open(t)
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			// Long enough for a busy machine; a call that hangs ends with it.
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			tt.test(&tester{t, ctx, d})
		})
	}
}

// tester drives one device and holds it against the model, peers.Apply.
type tester struct {
	*testing.T
	ctx context.Context
	dev peers.Device
}

func (t *tester) config() peers.Config {
	t.Helper()
	c, err := t.dev.Config(t.ctx)
	if err != nil {
		t.Fatalf("config: %v", err)
	}
	return c
}

// apply applies changes and checks that the device answers what the model does.
func (t *tester) apply(changes ...peers.Change) {
	t.Helper()
	want := peers.Apply(t.config(), changes)
	if err := t.dev.Apply(t.ctx, changes); err != nil {
		t.Fatalf("apply: %v", err)
	}
	t.holds(want)
}

func (t *tester) holds(want peers.Config) {
	t.Helper()
	got := t.config()
	if diff := cmp.Diff(want.String(), got.String()); diff != "" {
		t.Fatalf("the device holds (-want +got):\n%s", diff)
	}
	if got.PrivateKey != want.PrivateKey {
		t.Fatal("the device holds another private key")
	}
}

// become leads the device to want as an owner does, and checks that nothing is
// left to do.
func (t *tester) become(want peers.Config) {
	t.Helper()
	if err := want.Validate(); err != nil {
		t.Fatal(err)
	}
	t.apply(peers.Diff(t.config(), want)...)
	if left := peers.Diff(t.config(), want); len(left) > 0 {
		t.Fatalf("a second pass would do %v", left)
	}
}

// num returns the n-th key. Every 32 bytes are a public key.
func num(n int) (k wgtypes.Key) {
	binary.BigEndian.PutUint32(k[:], uint32(n)+1)
	return k
}

func home(n int) netip.Prefix { return prefix(n, 0, 96) }

func endpoint(n, slot int) netip.Prefix { return prefix(n, slot, 112) }

// prefix is one below fd12::/32: the home of host n, or an endpoint in it.
func prefix(n, slot, bits int) netip.Prefix {
	a := [16]byte{0xfd, 0x12}
	binary.BigEndian.PutUint32(a[8:], uint32(n))
	binary.BigEndian.PutUint16(a[12:], uint16(slot))
	return netip.PrefixFrom(netip.AddrFrom16(a), bits)
}

func key(t *tester) wgtypes.Key {
	t.Helper()
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// freePort finds a UDP port that nobody has, below those that the kernel gives out.
func freePort(t *tester) uint16 {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)
		a, err4 := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		b, err6 := net.ListenUDP("udp6", &net.UDPAddr{Port: port})
		if a != nil {
			a.Close()
		}
		if b != nil {
			b.Close()
		}
		if err4 == nil && err6 == nil {
			return uint16(port)
		}
	}
	t.Fatal("no free UDP port")
	return 0
}

func add(p peers.Peer) peers.Change { return peers.Change{Op: peers.AddPeer, Peer: p} }

func move(n int, ips ...netip.Prefix) peers.Change {
	return peers.Change{Op: peers.Move, Peer: peers.Peer{Key: num(n), AllowedIPs: ips}}
}

func drop(n int, ips ...netip.Prefix) peers.Change {
	return peers.Change{Op: peers.Drop, Peer: peers.Peer{Key: num(n), AllowedIPs: ips}}
}

func remove(n int) peers.Change {
	return peers.Change{Op: peers.RemovePeer, Peer: peers.Peer{Key: num(n)}}
}

func update(n int, keepalive time.Duration, to string) peers.Change {
	c := peers.Change{Op: peers.UpdatePeer, Peer: peers.Peer{Key: num(n), Keepalive: keepalive}}
	if to != "" {
		c.SetEndpoint, c.Peer.Endpoint = true, netip.MustParseAddrPort(to)
	}
	return c
}

func owns(n int, ips ...netip.Prefix) peers.Peer {
	return peers.Peer{Key: num(n), AllowedIPs: ips}
}

func testEmpty(t *tester) {
	c := t.config()
	if c.PrivateKey != (wgtypes.Key{}) || len(c.Peers) != 0 {
		t.Fatalf("a new device holds\n%s", c)
	}
	t.apply()
	if stats, err := t.dev.Stats(t.ctx); err != nil || len(stats) != 0 {
		t.Fatalf("stats = %v, %v", stats, err)
	}
}

func testKeyAndPort(t *tester) {
	private, port := key(t), freePort(t)
	t.become(peers.Config{PrivateKey: private, ListenPort: port})
	if got := t.config(); got.ListenPort != port || got.PrivateKey != private {
		t.Fatalf("port %d, want %d; same key: %v", got.ListenPort, port, got.PrivateKey == private)
	}
	// A device whose port nobody asks for keeps the one it has.
	t.become(peers.Config{PrivateKey: key(t)})
	if got := t.config().ListenPort; got != port {
		t.Fatalf("port %d after a new key, want %d", got, port)
	}
	t.become(peers.Config{}) // and has no key any more
}

func testNewKey(t *tester) {
	c := peers.Config{PrivateKey: key(t), Peers: []peers.Peer{owns(1, home(1)), owns(2, home(2))}}
	t.become(c)
	c.PrivateKey = key(t)
	t.become(c)
}

func testAdd(t *tester) {
	t.apply(peers.Change{Op: peers.SetDevice, Device: peers.Config{PrivateKey: key(t)}})
	t.apply(
		add(peers.Peer{
			Key: num(1), Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), Keepalive: 25 * time.Second,
			AllowedIPs: []netip.Prefix{home(1), endpoint(2, 7), netip.MustParsePrefix("10.1.0.0/16")},
		}),
		add(peers.Peer{Key: num(2), Endpoint: netip.MustParseAddrPort("[2001:db8::1]:65535"), Keepalive: 65535 * time.Second}),
		add(peers.Peer{Key: num(3), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("::/0"), netip.MustParsePrefix("0.0.0.0/0")}}),
		add(owns(4, netip.MustParsePrefix("fd12::1/128"))),
	)
	if n := len(t.config().Peers); n != 4 {
		t.Fatalf("%d peers, want 4", n)
	}
}

// A peer that was removed and is added again, the same to the last byte, is there.
func testAddedAgain(t *tester) {
	p := peers.Peer{
		Key: num(1), Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), Keepalive: time.Second,
		AllowedIPs: []netip.Prefix{home(1)},
	}
	t.apply(add(p))
	t.apply(remove(1))
	t.apply(add(p))
	t.apply(remove(1), add(p))
	t.apply(remove(1), add(peers.Peer{Key: num(1)})) // with nothing of what it had
}

// What is not given stays: somebody else may have added the peer in between.
func testAddWhatIsThere(t *tester) {
	t.apply(add(peers.Peer{Key: num(1), Endpoint: netip.MustParseAddrPort("192.0.2.1:1"), AllowedIPs: []netip.Prefix{home(1)}}))
	t.apply(add(peers.Peer{Key: num(1), Keepalive: time.Second, AllowedIPs: []netip.Prefix{home(2)}}))
}

func testUpdate(t *tester) {
	t.apply(add(owns(1, home(1))), add(owns(2, home(2))))
	t.apply(update(1, 0, "192.0.2.1:1"))
	t.apply(update(1, 25*time.Second, "[2001:db8::1]:2"))
	t.apply(update(1, 25*time.Second, "192.0.2.9:3"), update(2, time.Second, ""))
	t.apply(update(1, 0, ""))
}

func testUnknownPeer(t *tester) {
	t.apply(add(owns(1, home(1))))
	t.apply(update(9, time.Second, "192.0.2.1:1"), move(9, home(1), home(9)), drop(9, home(1)), remove(9))
	if n := len(t.config().Peers); n != 1 {
		t.Fatalf("%d peers, want 1", n)
	}
}

// WireGuard leaves out a peer that has the device's own key.
func testOwnKey(t *tester) {
	first, second := key(t), key(t)
	t.apply(peers.Change{Op: peers.SetDevice, Device: peers.Config{PrivateKey: first}})
	t.apply(add(peers.Peer{Key: first.PublicKey(), AllowedIPs: []netip.Prefix{home(1)}}), add(owns(2, home(2))))
	t.apply(add(peers.Peer{Key: second.PublicKey(), AllowedIPs: []netip.Prefix{home(3)}}))
	t.apply(peers.Change{Op: peers.SetDevice, Device: peers.Config{PrivateKey: second}})
	t.apply(add(peers.Peer{Key: first.PublicKey(), AllowedIPs: []netip.Prefix{home(1)}}))
}

func testMove(t *tester) {
	t.apply(add(owns(1, home(1), endpoint(2, 1))), add(owns(2, home(2))), add(owns(3)))
	t.apply(move(3, endpoint(2, 1)))
	t.apply(move(3, endpoint(2, 1))) // where it is already
	t.apply(move(2, endpoint(2, 1)), move(1, home(2)), move(2, home(1)))
	t.apply(move(3, home(1), home(2), endpoint(2, 1), endpoint(2, 2)))
}

func testDrop(t *tester) {
	t.apply(add(owns(1, home(1), endpoint(1, 1), endpoint(1, 2), netip.MustParsePrefix("10.0.0.0/8"))), add(owns(2, home(2))))
	t.apply(drop(1, endpoint(1, 1)))
	t.apply(drop(1, home(2)))           // another's
	t.apply(drop(1, home(1)))           // what lies in it stays
	t.apply(drop(1, prefix(1, 2, 128))) // what nobody has
	t.apply(drop(1, netip.MustParsePrefix("10.0.0.0/8"), endpoint(1, 2)))
	t.apply(drop(2, home(2)))
}

func testRemove(t *tester) {
	t.apply(add(owns(1, home(1))), add(owns(2, home(2))), add(owns(3, endpoint(1, 1))))
	t.apply(remove(2))
	t.apply(remove(2))
	t.apply(remove(1), remove(3))
}

// The last to claim a prefix has it, also within one batch.
func testOrder(t *tester) {
	t.apply(add(owns(1, home(1))), add(owns(2, home(1))), move(1, home(1)), drop(1, home(1)), move(2, home(1)))
	t.apply(remove(2), add(owns(3, home(1))), update(3, time.Second, "192.0.2.1:1"), update(3, 2*time.Second, "192.0.2.2:1"))
	t.apply(move(1, home(1)), remove(3))
}

// thousand is a mesh of a thousand hosts, with each endpoint one host further than
// it is at home.
func thousand(t *tester, shift int) peers.Config {
	c := peers.Config{PrivateKey: wgtypes.Key{8}}
	for n := range 1000 {
		c.Peers = append(c.Peers, peers.Peer{
			Key: num(n), Endpoint: netip.MustParseAddrPort(fmt.Sprintf("10.9.%d.%d:51820", n/250, n%250)),
			AllowedIPs: []netip.Prefix{home(n), endpoint((n+shift)%1000, 1), endpoint((n+shift)%1000, 2)},
		})
	}
	return c
}

func testThousandPeers(t *tester) {
	t.become(thousand(t, 1))
	t.become(thousand(t, 2)) // every endpoint moves
	c := thousand(t, 2)
	c.Peers = c.Peers[500:]
	t.become(c)
	t.become(peers.Config{})
}

func testManyPrefixes(t *tester) {
	var all []netip.Prefix
	for slot := range 5000 {
		all = append(all, endpoint(1, slot))
	}
	t.become(peers.Config{Peers: []peers.Peer{owns(1, all...), owns(2)}})
	t.become(peers.Config{Peers: []peers.Peer{owns(1, all[:10]...), owns(2, all[10:4000]...)}})
	t.become(peers.Config{Peers: []peers.Peer{owns(1, all...)}})
}

// testRandomWalk goes from one configuration to another and another. The walk is
// always the same one.
func testRandomWalk(t *tester) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		c := peers.Config{PrivateKey: wgtypes.Key{8 * byte(1+r.IntN(3))}}
		for n := range 8 {
			if r.IntN(3) > 0 {
				c.Peers = append(c.Peers, peers.Peer{
					Key: num(n), Keepalive: time.Duration(r.IntN(3)) * time.Second, Retarget: r.IntN(2) == 0,
					Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(3))}), uint16(1+r.IntN(2))),
				})
			}
		}
		if len(c.Peers) > 0 {
			for i := range 24 { // nested: all of a home, and endpoints in it
				p := &c.Peers[r.IntN(len(c.Peers))]
				p.AllowedIPs = append(p.AllowedIPs, prefix(i/6, i%6, 96+16*min(i%6, 1)))
			}
		}
		t.become(c)
	}
}

func testStats(t *tester) {
	to := netip.MustParseAddrPort("192.0.2.1:51820")
	t.apply(add(owns(3, home(3))), add(peers.Peer{Key: num(1), Endpoint: to}), add(owns(2)))
	got, err := t.dev.Stats(t.ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []peers.Stats{{Key: num(1), Endpoint: to}, {Key: num(2)}, {Key: num(3)}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Fatalf("stats (-want +got):\n%s", diff)
	}
}

func testEndedContext(t *tester) {
	ctx, cancel := context.WithCancel(t.ctx)
	cancel()
	_, err1 := t.dev.Config(ctx)
	_, err2 := t.dev.Stats(ctx)
	err3 := t.dev.Apply(ctx, []peers.Change{add(owns(1))})
	for _, err := range []error{err1, err2, err3} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v, want context.Canceled", err)
		}
	}
	if n := len(t.config().Peers); n != 0 {
		t.Errorf("%d peers were added", n)
	}
}

func testClose(t *tester) {
	t.apply(add(owns(1, home(1))))
	for range 2 {
		if err := t.dev.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	_, err1 := t.dev.Config(t.ctx)
	_, err2 := t.dev.Stats(t.ctx)
	err3 := t.dev.Apply(t.ctx, []peers.Change{add(owns(2))})
	err4 := t.dev.Apply(t.ctx, nil)
	for _, err := range []error{err1, err2, err3, err4} {
		if !errors.Is(err, peers.ErrClosed) {
			t.Errorf("after Close: %v, want peers.ErrClosed", err)
		}
	}
}
