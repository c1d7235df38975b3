package userspace

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

// node is one end of a tunnel: an underlay namespace where its UDP sockets are, and
// a plane where its link is.
//
//	plane a [wg0 fd12::a:2] ~ underlay a [u0] --- [u0] underlay b ~ [wg0 fd12::b:2] plane b
type node struct {
	*testing.T
	dev             *Device
	underlay, plane *netns.Handle
	key             wgtypes.Key
	addr            netip.Addr     // in the tunnel
	at4, at6        netip.AddrPort // of the UDP sockets
}

func (n *node) home() netip.Prefix { return netip.PrefixFrom(n.addr, 112).Masked() }

// nsBind opens wireguard-go's sockets in a namespace: in the product each device is
// in a process of its own, here both are in one.
type nsBind struct {
	conn.Bind
	ns *netns.Handle
}

func (b nsBind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = b.ns.Do(func() (err error) {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, err
}

// pair makes two nodes that are each other's peers, configured and up.
func pair(t *testing.T) (a, b *node) {
	t.Helper()
	needTUN(t)
	ua, ub := newPlane(t), newPlane(t)
	must(t, ua.Do(func() error {
		// Two ends of one index look like a link to itself, whose carrier the kernel
		// attends to a second later.
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "u0", Index: 10}, PeerName: "u0", PeerNamespace: netlink.NsFd(ub.Fd())})
	}))
	a, b = newNode(t, ua, 0xa), newNode(t, ub, 0xb)
	a.become(b.asPeer(b.at6))
	b.become(a.asPeer(a.at6))
	return a, b
}

func newNode(t *testing.T, underlay *netns.Handle, n byte) *node {
	t.Helper()
	x := &node{T: t, underlay: underlay, plane: newPlane(t), key: newKey(t)}
	x.addr = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x12, 13: n, 15: 2})
	x.at6 = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: n}), 51820)
	x.at4 = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 51820)
	x.setUp(underlay, "u0", netip.PrefixFrom(x.at6.Addr(), 64), netip.PrefixFrom(x.at4.Addr(), 24))
	x.dev = open(t, Config{Plane: x.plane, Bind: nsBind{conn.NewDefaultBind(), underlay}, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	x.setUp(x.plane, "wg0", netip.PrefixFrom(x.addr, 32))
	return x
}

// setUp gives a link addresses and brings it up.
func (n *node) setUp(ns *netns.Handle, link string, addrs ...netip.Prefix) {
	n.Helper()
	nl, err := ns.Netlink()
	must(n.T, err)
	defer nl.Close()
	l, err := nl.LinkByName(link)
	must(n.T, err)
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		must(n.T, nl.AddrAdd(l, addr))
	}
	must(n.T, nl.LinkSetUp(l))
}

func (n *node) asPeer(at netip.AddrPort) peers.Peer {
	return peers.Peer{Key: n.key.PublicKey(), Endpoint: at, AllowedIPs: []netip.Prefix{n.home()}}
}

// become configures the node as its owner would, and returns what was changed.
func (n *node) become(want ...peers.Peer) []peers.Change {
	n.Helper()
	changes := n.diff(want...)
	must(n.T, n.dev.Apply(n.Context(), changes))
	return changes
}

func (n *node) diff(want ...peers.Peer) []peers.Change {
	n.Helper()
	// With at6 unset the device keeps the port that it chose.
	return peers.Diff(n.config(), peers.Config{PrivateKey: n.key, ListenPort: n.at6.Port(), Peers: want})
}

func (n *node) config() peers.Config {
	n.Helper()
	c, err := n.dev.Config(n.Context())
	must(n.T, err)
	return c
}

func newKey(t *testing.T) wgtypes.Key {
	t.Helper()
	k, err := wgtypes.GeneratePrivateKey()
	must(t, err)
	return k
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listenUDP opens a socket in the node's plane. Literal addresses only: see netns.
func (n *node) listenUDP(addr netip.AddrPort) *net.UDPConn {
	n.Helper()
	var c *net.UDPConn
	must(n.T, n.plane.Do(func() (err error) {
		network := "udp6"
		if addr.Addr().Is4() {
			network = "udp4"
		}
		c, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
		return err
	}))
	n.Cleanup(func() { c.Close() })
	return c
}

// ping sends ICMPv6 echo requests through the tunnel until one is answered.
func (n *node) ping(to *node, within time.Duration) error {
	n.Helper()
	var c net.PacketConn
	must(n.T, n.plane.Do(func() (err error) {
		c, err = net.ListenPacket("ip6:58", n.addr.String())
		return err
	}))
	defer c.Close()
	ctx, cancel := context.WithTimeout(n.Context(), within)
	defer cancel()
	for seq := uint16(1); ctx.Err() == nil; seq++ {
		request := []byte{128, 0, 0, 0, 0x77, byte(to.addr.As16()[13]), 0, 0} // the kernel adds the checksum
		binary.BigEndian.PutUint16(request[6:], seq)
		if _, err := c.WriteTo(request, &net.IPAddr{IP: to.addr.AsSlice()}); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		buf := make([]byte, 1500)
		for {
			size, from, err := c.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil {
				return err
			}
			if size >= 8 && buf[0] == 129 && from.String() == to.addr.String() {
				return nil
			}
		}
	}
	return fmt.Errorf("no echo from %s in %s", to.addr, within)
}

func (n *node) mustPing(to *node) {
	n.Helper()
	must(n.T, n.ping(to, 10*time.Second))
}

func TestPing(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.mustPing(b)
	b.mustPing(a)
	stats, err := a.dev.Stats(t.Context())
	must(t, err)
	if s := stats[0]; s.Key != b.key.PublicKey() || s.Endpoint != b.at6 || time.Since(s.LastHandshake) > time.Minute || s.Rx == 0 || s.Tx == 0 {
		t.Errorf("stats = %+v", s)
	}
	if left := a.diff(b.asPeer(b.at6)); len(left) > 0 {
		t.Errorf("traffic is taken for drift: %v", left)
	}
}

func TestPingOverIPv4(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	to := b.asPeer(b.at4)
	to.Retarget = true
	a.become(to)
	a.mustPing(b)
	// b heard a from another address than it was told, and answers there.
	if got := b.config().Peers[0].Endpoint; got != a.at4 {
		t.Errorf("b sends to %s, want %s", got, a.at4)
	}
}

// Much traffic through the sockets that the product uses, over IPv4: large sends
// that the kernel cuts into datagrams, and lets routers cut again.
func TestBulk(t *testing.T) {
	t.Parallel()
	needTUN(t)
	var nodes [2]*node
	for i := range nodes {
		n := &node{T: t, plane: newPlane(t), key: newKey(t), addr: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x12, 13: byte(i), 15: 2})}
		n.dev = open(t, Config{Plane: n.plane})
		n.at4 = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.config().ListenPort)
		n.setUp(n.plane, "wg0", netip.PrefixFrom(n.addr, 32))
		nodes[i] = n
	}
	a, b := nodes[0], nodes[1]
	a.become(b.asPeer(b.at4))
	b.become(a.asPeer(a.at4))

	data := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	var l net.Listener
	must(t, b.plane.Do(func() (err error) {
		l, err = net.Listen("tcp6", netip.AddrPortFrom(b.addr, 9999).String())
		return err
	}))
	defer l.Close()
	sent := make(chan error, 1)
	go func() {
		sent <- a.plane.Do(func() error {
			c, err := net.DialTimeout("tcp6", l.Addr().String(), 10*time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(data)
			return err
		})
	}()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
	c, err := l.Accept()
	must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	got, err := io.ReadAll(c)
	must(t, err)
	must(t, <-sent)
	if !bytes.Equal(data, got) {
		t.Errorf("%d bytes came, not the %d that were sent", len(got), len(data))
	}
}

// A link that is brought up only later, as its owner does after the firewall.
func TestConfiguredBeforeUp(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	nl, err := a.plane.Netlink()
	must(t, err)
	defer nl.Close()
	l := linkIn(t, a.plane, "wg0")
	must(t, nl.LinkSetDown(l))
	must(t, nl.LinkSetUp(l)) // its address went with it going down
	a.setUp(a.plane, "wg0", netip.PrefixFrom(a.addr, 32))
	a.mustPing(b)
}

func TestMovedPrefixKeepsTheSession(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.mustPing(b)
	before := a.handshake(b)
	other := peers.Peer{Key: newKey(t).PublicKey(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("fd12::c:0/112")}}
	a.become(b.asPeer(b.at6), other)
	back := b.asPeer(b.at6)
	back.AllowedIPs = append(back.AllowedIPs, other.AllowedIPs...)
	other.AllowedIPs = nil
	if changes := a.become(back, other); len(changes) != 1 || changes[0].Op != peers.Move {
		t.Errorf("changes = %v, want one move", changes)
	}
	a.mustPing(b)
	if after := a.handshake(b); after != before {
		t.Error("the session was made anew")
	}
}

func (n *node) handshake(of *node) time.Time {
	n.Helper()
	stats, err := n.dev.Stats(n.Context())
	must(n.T, err)
	for _, s := range stats {
		if s.Key == of.key.PublicKey() {
			return s.LastHandshake
		}
	}
	n.Fatal("the peer is not there")
	return time.Time{}
}

// A peer that takes a new key is lost until the others know it, and then found.
func TestKeyChange(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.mustPing(b)
	b.key = newKey(t)
	b.become(a.asPeer(a.at6))
	if err := b.ping(a, 300*time.Millisecond); err == nil {
		t.Error("a accepts a key that it does not know")
	}
	changes := a.become(b.asPeer(b.at6))
	var ops []string
	for _, c := range changes {
		ops = append(ops, c.Op.String())
	}
	if diff := cmp.Diff([]string{"add", "remove"}, ops); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	a.mustPing(b)
}

// A peer that is removed is not answered, and its packets go nowhere.
func TestRevokedPeerIsCut(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.mustPing(b)
	a.become()
	if err := b.ping(a, 300*time.Millisecond); err == nil {
		t.Error("a still answers")
	}
	a.become(b.asPeer(b.at6))
	a.mustPing(b)
}

// squat/kilo #34, #41, #43, #82: an endpoint that was learnt is left alone.
func TestRoaming(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.mustPing(b)
	roamed := netip.AddrPortFrom(b.at6.Addr(), 40000)
	told := b.at6
	b.at6 = roamed
	b.become(a.asPeer(a.at6)) // a new port, as behind NAT
	b.mustPing(a)
	if got := a.config().Peers[0].Endpoint; got != roamed {
		t.Fatalf("a sends to %s, want %s", got, roamed)
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

// CVE-2025-62820 (nebula): a source that is not the peer's is dropped at the
// receiver, plain, in fragments, or behind an extension header.
func TestCVE202562820SpoofedSource(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.mustPing(b)
	const port = 9999
	receiver := a.listenUDP(netip.AddrPortFrom(a.addr, port))

	spoofed := netip.MustParseAddr("fd12::c:2")     // another's
	nearby := netip.MustParseAddr("fd12::b:ffff:2") // shares its beginning with b
	ipv4 := netip.MustParseAddr("10.9.0.2")         // no family of the tunnel
	b.setUp(b.plane, "wg0", netip.PrefixFrom(spoofed, 128), netip.PrefixFrom(nearby, 128), netip.PrefixFrom(ipv4, 24))
	a.setUp(a.plane, "wg0", netip.MustParsePrefix("10.9.0.1/24"))
	receiver4 := a.listenUDP(netip.MustParseAddrPort("10.9.0.1:9999"))
	// For the sender's own trie: IPv4 leaves towards a.
	mine := a.asPeer(a.at6)
	mine.AllowedIPs = append(mine.AllowedIPs, netip.MustParsePrefix("10.9.0.1/32"))
	b.become(mine)

	for _, from := range []netip.Addr{spoofed, nearby} {
		c := b.listenUDP(netip.AddrPortFrom(from, 0))
		b.send(c, "plain", netip.AddrPortFrom(a.addr, port))
		b.send(c, string(make([]byte, 4000)), netip.AddrPortFrom(a.addr, port)) // three fragments
		b.withDestinationOptions(c)
		b.send(c, "behind an extension header", netip.AddrPortFrom(a.addr, port))
	}
	b.send(b.listenUDP(netip.AddrPortFrom(ipv4, 0)), "IPv4", netip.MustParseAddrPort("10.9.0.1:9999"))

	// A tunnel keeps the order: when these are here, the others are not coming.
	good := b.listenUDP(netip.AddrPortFrom(b.addr, 0))
	b.withDestinationOptions(good)
	b.send(good, "good", netip.AddrPortFrom(a.addr, port))
	buf := make([]byte, 5000)
	receiver.SetReadDeadline(time.Now().Add(10 * time.Second))
	size, from, err := receiver.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:size]) != "good" || from.Addr() != b.addr {
		t.Errorf("first to arrive: %d bytes %.40q from %s, %v", size, buf[:size], from, err)
	}
	receiver4.SetReadDeadline(time.Now().Add(time.Millisecond))
	if size, from, err := receiver4.ReadFromUDPAddrPort(buf); err == nil {
		t.Errorf("IPv4 came through: %q from %s", buf[:size], from)
	}
}

func (n *node) send(c *net.UDPConn, text string, to netip.AddrPort) {
	n.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(text), to); err != nil {
		n.Fatal(err)
	}
}

// withDestinationOptions puts an extension header before what c sends from now on.
func (n *node) withDestinationOptions(c *net.UDPConn) {
	n.Helper()
	raw, err := c.SyscallConn()
	must(n.T, err)
	must(n.T, raw.Control(func(fd uintptr) {
		padding := string([]byte{0, 0, 1, 4, 0, 0, 0, 0}) // next header (the kernel's), length, PadN
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, padding)
	}))
	must(n.T, err)
}
