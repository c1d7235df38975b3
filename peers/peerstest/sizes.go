package peerstest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// A packet is padded to 16 bytes, but never beyond the MTU: one of exactly the MTU
// must fit the underlay. message is 16 bytes of header and 16 of authentication.
func testPadding(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	to := netip.AddrPortFrom(b.addr, 9999)
	in, out := b.listenUDP(to), a.listenUDP(netip.AddrPortFrom(a.addr, 0))
	const message, headers = 32, 40 + 8
	buf := make([]byte, 2000)
	try := func(packet int) uint64 {
		before := a.stats(b).Tx
		a.send(out, make([]byte, packet-headers), to)
		in.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := in.Read(buf); err != nil || n != packet-headers {
			t.Errorf("a packet of %d bytes: %d of its data came, %v", packet, n, err)
		}
		return a.stats(b).Tx - before
	}
	for _, tt := range []struct {
		mtu, packet int
		want        uint64
	}{
		{1420, 49, 64 + message}, {1420, 64, 64 + message}, {1420, 65, 80 + message},
		{1420, 1408, 1408 + message}, {1420, 1409, 1420 + message}, {1420, 1420, 1420 + message},
		{1285, 1280, 1280 + message}, {1285, 1281, 1285 + message}, {1285, 1285, 1285 + message},
	} {
		within(t, a.Plane, wg0, func(nl *netlink.Handle, l netlink.Link) { must(t, nl.LinkSetMTU(l, tt.mtu)) })
		// wireguard-go hears of the MTU a moment later; on a slow machine a keepalive or a
		// new session may come in between.
		got := try(tt.packet)
		await(t, "as many bytes as there should be", func() bool {
			if got == tt.want {
				return true
			}
			got = try(tt.packet)
			return got == tt.want || t.Failed()
		})
	}
}

// A packet of every size that fits arrives as it was sent, and one that the sender's
// kernel cuts arrives whole.
func testEverySize(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	to := netip.AddrPortFrom(b.addr, 9999)
	in, out := b.listenUDP(to), a.listenUDP(netip.AddrPortFrom(a.addr, 0))
	data, got := make([]byte, 8000), make([]byte, 8001)
	rand.NewChaCha8([32]byte{}).Read(data)
	const mtu, headers = 1420, 40 + 8
	var sizes []int
	for size := range mtu - headers + 1 {
		sizes = append(sizes, size)
	}
	sizes = append(sizes, mtu-headers+1, 2*mtu, 8000)
	for some := range slices.Chunk(sizes, 16) { // as many as every buffer on the way holds
		for _, size := range some {
			a.send(out, data[len(data)-size:], to) // each begins elsewhere
		}
		for _, size := range some {
			in.SetReadDeadline(time.Now().Add(20 * time.Second))
			n, err := in.Read(got)
			if err != nil || !bytes.Equal(got[:n], data[len(data)-size:]) {
				t.Fatalf("a datagram of %d bytes: %d came, %v", size, n, err)
			}
		}
	}
}

// Who sends a packet larger than the link, and does not let it be cut, is told, on the
// host and behind it:
//
//	machine [m0 1500] --- [p0 1500] plane a [wg0 1300] ~ b
func testTooBig(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	const mtu, headers = 1300, 40 + 8
	within(t, a.Plane, wg0, func(nl *netlink.Handle, l netlink.Link) { must(t, nl.LinkSetMTU(l, mtu)) })
	a.mustPing(b)
	machine := &node{T: t, Site: Site{Plane: newSpace(t)}, addr: a.home().Addr().Next().Next().Next()}
	cable(t, a.Plane, "p0", machine.Plane, "m0")
	setUp(t, machine.Plane, "m0", netip.PrefixFrom(machine.addr, 128), netip.MustParsePrefix("fe80::2/64"))
	setUp(t, a.Plane, "p0", netip.MustParsePrefix("fe80::1/64"))
	must(t, a.Plane.Do(func() error { return netns.SetSysctl("net/ipv6/conf/all/forwarding", "1") }))
	within(t, a.Plane, "p0", func(nl *netlink.Handle, l netlink.Link) {
		must(t, nl.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: netns.IPNet(netip.PrefixFrom(machine.addr, 128))}))
	})
	within(t, machine.Plane, "m0", func(nl *netlink.Handle, l netlink.Link) {
		must(t, nl.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: netns.IPNet(netip.MustParsePrefix("fd12::/32")), Gw: net.ParseIP("fe80::1")}))
	})
	machine.mustPing(b)

	to := netip.AddrPortFrom(b.addr, 9999)
	in := b.listenUDP(to)
	for who, n := range map[string]*node{"on the host": a, "behind it": machine} {
		out := n.listenUDP(netip.AddrPortFrom(n.addr, 0))
		raw, err := out.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		}))
		must(t, err)
		// Behind the host the first ones are sent, and come back as an ICMPv6 error.
		await(t, "the sender "+who+" to be told", func() bool {
			_, err := out.WriteToUDPAddrPort(make([]byte, mtu-headers+1), to)
			return errors.Is(err, syscall.EMSGSIZE)
		})
		a.send(out, make([]byte, mtu-headers), to)
		in.SetReadDeadline(time.Now().Add(20 * time.Second))
		if size, err := in.Read(make([]byte, 2000)); err != nil || size != mtu-headers {
			t.Errorf("%s: first to arrive are %d bytes, %v, want the packet that fits", who, size, err)
		}
	}
}

// Streams in parallel, each way, over IPv6 and IPv4, arrive whole: large segments that
// the kernel and the device cut.
func testStreams(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	const streams, each = 2, 256 << 10
	for _, at := range []netip.AddrPort{b.at6, b.at4} {
		to := b.asPeer(at)
		to.Retarget = true
		// What b has sent by the way before may come late, and a goes back to that.
		settled := 0
		await(t, fmt.Sprintf("a to send to %s", at), func() bool {
			a.become(to)
			a.mustPing(b)
			if settled++; a.config().Peers[0].Endpoint != at {
				settled = 0
			}
			return settled == 3
		})
		var group errgroup.Group
		for i := range 2 * streams {
			from, into := a, b
			if i%2 == 1 {
				from, into = b, a
			}
			data := make([]byte, each+i)
			rand.NewChaCha8([32]byte{byte(i)}).Read(data)
			group.Go(func() error { return from.stream(into, data) })
		}
		must(t, group.Wait())
		if got := a.config().Peers[0].Endpoint; got != at {
			t.Errorf("a sends to %s, want %s", got, at)
		}
	}
}

// stream sends data by TCP.
func (n *node) stream(to *node, data []byte) error {
	var l net.Listener
	err := to.Plane.Do(func() (err error) {
		l, err = net.Listen("tcp6", netip.AddrPortFrom(to.addr, 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	deadline := time.Now().Add(40 * time.Second)
	l.(*net.TCPListener).SetDeadline(deadline)
	var group errgroup.Group
	group.Go(func() error {
		return n.Plane.Do(func() error {
			c, err := net.DialTimeout("tcp6", l.Addr().String(), 20*time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(deadline)
			_, err = c.Write(data)
			return err
		})
	})
	group.Go(func() error {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(deadline)
		sum := sha256.New()
		if _, err := io.Copy(sum, c); err != nil {
			return err
		}
		if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
			return errors.New("what came is not what was sent")
		}
		return nil
	})
	return group.Wait()
}
