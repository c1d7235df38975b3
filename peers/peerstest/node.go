package peerstest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

// Site is where a device is to be: its link, wg0, in Plane, and its UDP sockets in
// Underlay.
type Site struct{ Plane, Underlay *netns.Handle }

// Opener makes a device without key and peers. RunTraffic closes it.
type Opener func(t *testing.T, at Site) peers.Device

const wg0 = "wg0"

// node is one end of a tunnel, with an address in it and two on the underlay.
type node struct {
	*testing.T
	dev peers.Device
	Site
	key      wgtypes.Key
	addr     netip.Addr     // in the tunnel
	at4, at6 netip.AddrPort // of the UDP sockets
}

func (n *node) home() netip.Prefix { return netip.PrefixFrom(n.addr, 112).Masked() }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await waits for ok, at most twenty seconds.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after twenty seconds still not: %s", what)
		}
	}
}

func newSpace(t *testing.T) *netns.Handle {
	t.Helper()
	h, err := netns.New()
	must(t, err)
	t.Cleanup(func() { h.Close() })
	return h
}

// newPair makes two nodes that are each other's peers, configured and up:
//
//	plane a [wg0 fd12::a:2] ~ underlay a [u0] --- [u0] underlay b ~ [wg0 fd12::b:2] plane b
func newPair(t *testing.T, open Opener) (a, b *node) {
	t.Helper()
	ua, ub := newSpace(t), newSpace(t)
	cable(t, ua, "u0", ub, "u0")
	a, b = newNode(t, open, ua, 0xa), newNode(t, open, ub, 0xb)
	a.become(b.asPeer(b.at6))
	b.become(a.asPeer(a.at6))
	return a, b
}

// cable connects two namespaces. Two ends of one number look like a link to itself,
// whose carrier the kernel attends to a second later.
func cable(t *testing.T, a *netns.Handle, nameA string, b *netns.Handle, nameB string) {
	t.Helper()
	must(t, a.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA, Index: 10}, PeerName: nameB, PeerNamespace: netlink.NsFd(b.Fd())})
	}))
}

func newNode(t *testing.T, open Opener, underlay *netns.Handle, n byte) *node {
	t.Helper()
	return newNodeAt(t, open, Site{Plane: newSpace(t), Underlay: underlay}, n)
}

// newNeighbour makes a node with its sockets where another one has its own, on the
// next port.
func newNeighbour(t *testing.T, open Opener, of *node, n byte) *node {
	t.Helper()
	x := newNode(t, open, of.Underlay, n)
	x.at6 = netip.AddrPortFrom(x.at6.Addr(), of.at6.Port()+1)
	x.at4 = netip.AddrPortFrom(x.at4.Addr(), x.at6.Port())
	return x
}

func newNodeAt(t *testing.T, open Opener, at Site, n byte) *node {
	t.Helper()
	x := &node{T: t, Site: at, key: newKey(t)}
	x.addr = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x12, 13: n, 15: 2})
	x.at6 = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: n}), 51820)
	x.at4 = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 51820)
	setUp(t, x.Underlay, "u0", netip.PrefixFrom(x.at6.Addr(), 64), netip.PrefixFrom(x.at4.Addr(), 24))
	x.dev = open(t, x.Site)
	t.Cleanup(func() {
		if err := x.dev.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	setUp(t, x.Plane, wg0, netip.PrefixFrom(x.addr, 32))
	return x
}

// setUp gives a link addresses and brings it up.
func setUp(t *testing.T, ns *netns.Handle, link string, addrs ...netip.Prefix) {
	t.Helper()
	within(t, ns, link, func(nl *netlink.Handle, l netlink.Link) {
		for _, p := range addrs {
			addr := &netlink.Addr{IPNet: netns.IPNet(p)}
			if p.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			must(t, nl.AddrAdd(l, addr))
		}
		must(t, nl.LinkSetUp(l))
	})
}

func within(t *testing.T, ns *netns.Handle, link string, do func(*netlink.Handle, netlink.Link)) {
	t.Helper()
	nl, err := ns.Netlink()
	must(t, err)
	defer nl.Close()
	l, err := nl.LinkByName(link)
	must(t, err)
	do(nl, l)
}

func newKey(t *testing.T) wgtypes.Key {
	t.Helper()
	k, err := wgtypes.GeneratePrivateKey()
	must(t, err)
	return k
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
	return peers.Diff(n.config(), peers.Config{PrivateKey: n.key, ListenPort: n.at6.Port(), Peers: want})
}

func (n *node) config() peers.Config {
	n.Helper()
	c, err := n.dev.Config(n.Context())
	must(n.T, err)
	return c
}

// stats are those of the peer that has the other node's key.
func (n *node) stats(of *node) peers.Stats {
	n.Helper()
	all, err := n.dev.Stats(n.Context())
	must(n.T, err)
	for _, s := range all {
		if s.Key == of.key.PublicKey() {
			return s
		}
	}
	n.Fatal("the peer is not there")
	return peers.Stats{}
}

// listenUDP opens a socket in the node's plane. Literal addresses only: see netns.
func (n *node) listenUDP(addr netip.AddrPort) *net.UDPConn {
	n.Helper()
	network := "udp6"
	if addr.Addr().Is4() {
		network = "udp4"
	}
	var c *net.UDPConn
	must(n.T, n.Plane.Do(func() (err error) {
		c, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
		return err
	}))
	n.Cleanup(func() { c.Close() })
	return c
}

func (n *node) send(c *net.UDPConn, payload []byte, to netip.AddrPort) {
	n.Helper()
	if _, err := c.WriteToUDPAddrPort(payload, to); err != nil {
		n.Fatal(err)
	}
}

// ping sends ICMPv6 echo requests through the tunnel until one is answered.
func (n *node) ping(to *node, patience time.Duration) error {
	n.Helper()
	var c net.PacketConn
	must(n.T, n.Plane.Do(func() (err error) {
		c, err = net.ListenPacket("ip6:58", n.addr.String())
		return err
	}))
	defer c.Close()
	ctx, cancel := context.WithTimeout(n.Context(), patience)
	defer cancel()
	for seq := uint16(1); ctx.Err() == nil; seq++ {
		request := []byte{128, 0, 0, 0, 0x77, to.addr.As16()[13], 0, 0} // the kernel adds the checksum
		binary.BigEndian.PutUint16(request[6:], seq)
		if _, err := c.WriteTo(request, &net.IPAddr{IP: to.addr.AsSlice()}); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(min(patience, 200*time.Millisecond)))
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
	return fmt.Errorf("no echo from %s in %s", to.addr, patience)
}

func (n *node) mustPing(to *node) {
	n.Helper()
	must(n.T, n.ping(to, 20*time.Second))
}

// cutOff checks that no echo comes. That nothing happens can only be waited for.
func (n *node) cutOff(from *node, why string) {
	n.Helper()
	if err := n.ping(from, 500*time.Millisecond); err == nil {
		n.Error(why)
	}
}
