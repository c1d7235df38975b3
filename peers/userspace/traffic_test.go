package userspace

import (
	"bytes"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

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
	x.dev = open(t, Config{Plane: x.plane, Bind: nsBind{newBind(), underlay}, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
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
