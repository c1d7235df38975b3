package userspace

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// loopback is where the sockets of these tests are.
var loopback = map[string]string{"udp4": "127.0.0.1", "udp6": "::1"}

// listening makes a socket as a device's, that the test closes.
func listening(t *testing.T, network string) *udpSocket {
	t.Helper()
	s, err := listenUDP(network, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skipf("this machine has no %s", network)
	}
	must(t, err)
	t.Cleanup(func() { s.conn.Close() })
	return s
}

// stranger is a socket that knows nothing of offloads: it sees each packet by itself.
func stranger(t *testing.T, network string) (c *net.UDPConn, at *endpoint) {
	t.Helper()
	p, err := net.ListenPacket(network, net.JoinHostPort(loopback[network], "0"))
	must(t, err)
	t.Cleanup(func() { p.Close() })
	c = p.(*net.UDPConn)
	must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	_ = c.SetReadBuffer(4 << 20)
	at, err = newEndpoint(c.LocalAddr().(*net.UDPAddr).AddrPort())
	must(t, err)
	return c, at
}

// packets makes one packet of each size, all different.
func packets(sizes ...int) (bufs [][]byte) {
	for i, size := range sizes {
		bufs = append(bufs, bytes.Repeat([]byte{byte(i), byte(i >> 8), 0x5a}, size/3+1)[:size])
	}
	return bufs
}

func same(size, n int) (sizes []int) {
	for range n {
		sizes = append(sizes, size)
	}
	return sizes
}

// expect reads packets, which come in their order, from one address.
func expect(t *testing.T, c *net.UDPConn, want [][]byte) (from netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for i, w := range want {
		n, addr, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatalf("packet %d of %d: %v", i, len(want), err)
		}
		if !bytes.Equal(buf[:n], w) {
			t.Fatalf("packet %d has %d bytes, not the %d that were sent", i, n, len(w))
		}
		from = addr
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// What is sent arrives as it was handed over, with and without offload, in batches
// that are one message, many, and more than fit into one call.
func TestSend(t *testing.T) {
	t.Parallel()
	for network := range loopback {
		for _, offload := range []bool{true, false} {
			t.Run(fmt.Sprint(network, " offload ", offload), func(t *testing.T) {
				t.Parallel()
				s := listening(t, network)
				if !offload {
					s.segment.Store(false)
				}
				c, at := stranger(t, network)
				for _, sizes := range [][]int{
					{32},
					same(1452, 44),
					append(same(1452, 44), 100),
					{148, 1452, 1452, 700, 1452, 60_000, 1},
					append(same(1452, 100), same(92, 150)...),
				} {
					sent := packets(sizes...)
					must(t, s.send(sent, at))
					if from := expect(t, c, sent); from.Port() != s.port() {
						t.Errorf("they come from %s, the socket's port is %d", from, s.port())
					}
				}
			})
		}
	}
}

// Packets of one size in a row are one message, up to one that is smaller.
func TestRun(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		sizes []int
		want  []int // packets of each message
	}{
		{same(100, 1), []int{1}},
		{same(100, 5), []int{5}},
		{[]int{100, 100, 60, 100}, []int{3, 1}},
		{[]int{100, 100, 101, 101}, []int{2, 2}},
		{[]int{60, 100, 60, 60}, []int{1, 2, 1}},
		{same(100, 65), []int{64, 1}}, // UDP_MAX_SEGMENTS
		{same(1452, 64), []int{45, 19}},
		{[]int{payloadMax + 1, payloadMax + 1}, []int{1, 1}},
	} {
		bufs := packets(tt.sizes...)
		var got []int
		for len(bufs) > 0 {
			n := run(bufs)
			got, bufs = append(got, n), bufs[n:]
		}
		if fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%d packets of %d bytes: messages of %v, want %v", len(tt.sizes), tt.sizes[0], got, tt.want)
		}
	}
}

// A kernel that refuses large sends, here as one that is to send no checksums, gets
// the packets one by one.
func TestRefusedLargeSend(t *testing.T) {
	t.Parallel()
	for network := range loopback {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			s := listening(t, network)
			if !s.segment.Load() {
				t.Skip("this kernel knows no UDP_SEGMENT")
			}
			must(t, s.set(unix.SOL_SOCKET, unix.SO_NO_CHECK, 1))
			c, at := stranger(t, network)
			if network == "udp6" { // there a checksum is wanted
				raw, err := c.SyscallConn()
				must(t, err)
				const noCheck6RX = 102 // UDP_NO_CHECK6_RX of linux/udp.h
				must(t, (&udpSocket{raw: raw}).set(unix.IPPROTO_UDP, noCheck6RX, 1))
			}
			sent := packets(append(same(1452, 40), 300)...)
			o := &outgoing{}
			o.fill(sent, at, true)
			o.sending = o.call
			must(t, s.raw.Write(o.sending))
			if o.errno == 0 {
				t.Skip("this kernel does not refuse it")
			}
			must(t, s.send(sent, at))
			expect(t, c, sent)
		})
	}
}

// A packet that is too large for UDP does not keep the others from going, and is told.
func TestOneThatCannotBeSent(t *testing.T) {
	t.Parallel()
	s := listening(t, "udp4")
	c, at := stranger(t, "udp4")
	sent := packets(append(append(same(65_508, 1), same(1000, batchSize-1)...), 500)...)
	if err := s.send(sent, at); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("send = %v, want that it is too long", err)
	}
	expect(t, c, sent[1:])
}

// The address that a peer wrote to is that which it is answered from; when it is not
// ours any more, from another one, and nothing is lost.
func TestSourceGone(t *testing.T) {
	t.Parallel()
	for network, gone := range map[string]string{"udp4": "192.0.2.77", "udp6": "2001:db8::77"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			s := listening(t, network)
			c, at := stranger(t, network)
			for _, sizes := range [][]int{{148}, same(1000, 20), append([]int{1}, same(1000, 20)...)} {
				at.from.Store(&source{netip.MustParseAddr(gone)})
				sent := packets(sizes...)
				must(t, s.send(sent, at))
				if from := expect(t, c, sent); from.Addr() != netip.MustParseAddr(loopback[network]) {
					t.Errorf("%d packets come from %s", len(sizes), from)
				}
				if at.SrcIP().IsValid() {
					t.Errorf("%s is still the address to answer from", at.SrcIP())
				}
			}
		})
	}
	s := listening(t, "udp4")
	c, at := stranger(t, "udp4")
	ours := netip.MustParseAddr("127.3.2.1")
	at.from.Store(&source{ours})
	sent := packets(same(900, 20)...)
	must(t, s.send(sent, at))
	if from := expect(t, c, sent); from.Addr() != ours || at.SrcIP() != ours {
		t.Errorf("they come from %s, want from %s; next from %s", from, ours, at.SrcIP())
	}
}

// Which errors mean that a large send is to be tried in another way, and which do not.
func TestSourceGoneErrors(t *testing.T) {
	t.Parallel()
	for errno, want := range map[unix.Errno]bool{
		unix.EINVAL: true, unix.EADDRNOTAVAIL: true, unix.ENETUNREACH: true, unix.EHOSTUNREACH: true, unix.ENODEV: true,
		unix.EPERM: false, unix.EMSGSIZE: false, unix.EIO: false, unix.ENOBUFS: false,
	} {
		if got := sourceGone(errno); got != want {
			t.Errorf("%s: %t", errno, got)
		}
	}
}

func TestSendAfterClose(t *testing.T) {
	t.Parallel()
	s := listening(t, "udp4")
	_, at := stranger(t, "udp4")
	s.conn.Close()
	if err := s.send(packets(100), at); !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		t.Errorf("send = %v", err)
	}
}
