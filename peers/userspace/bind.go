package userspace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// batchSize is how many packets wireguard-go handles at once: a large send of TCP
	// is 47 of them. It keeps as many buffers ready for each that reads.
	batchSize = 64
	// socketBuffer is the size of the UDP sockets' buffers, as the kernel counts.
	socketBuffer = 4 << 20
)

// bind is the pair of UDP sockets of a device. It does what wireguard-go's own does,
// with one copy of each packet less on the way out, and nothing allocated for one.
// It differs in this:
//
//   - Routers may cut the IPv4 packets (PMTUDISC_OMIT), as those of the kernel's
//     WireGuard. wireguard-go would send them all with "don't fragment", and where the
//     path is narrower than the link thinks, nothing but a lost ICMP message would
//     tell. OMIT, not DONT: with DONT the kernel still heeds what other sockets learnt
//     about the path and then refuses the large sends that segmentation offload makes.
//   - A peer is answered from the address that it wrote to, but by the way that the
//     routes say; when that address is gone, from another one. wireguard-go keeps to
//     the interface too, and listens to changes of routes.
//   - A large send that the kernel refuses is sent packet by packet.
type bind struct {
	v4, v6 atomic.Pointer[udpSocket]
	load   *load // nil: not known

	mu   sync.Mutex
	open bool // guarded by mu
}

var _ conn.Bind = (*bind)(nil)

func newBind() *bind { return &bind{} }

// Open implements conn.Bind. Either family may be missing on the machine.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	v4, v6, actual, err := listenBoth(port)
	// A port that the kernel chose for one family may be taken in the other.
	for range 100 {
		if port != 0 || !errors.Is(err, unix.EADDRINUSE) {
			break
		}
		v4, v6, actual, err = listenBoth(port)
	}
	if err != nil {
		return nil, 0, err
	}
	b.open = true
	var fns []conn.ReceiveFunc
	if v4 != nil {
		b.v4.Store(v4)
		fns = append(fns, newReceiver(v4, b.load).receiveIPv4)
	}
	if v6 != nil {
		b.v6.Store(v6)
		fns = append(fns, newReceiver(v6, b.load).receiveIPv6)
	}
	return fns, actual, nil
}

func listenBoth(port uint16) (v4, v6 *udpSocket, actual uint16, err error) {
	v4, err = listenUDP("udp4", port)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil, 0, err
	}
	if v4 != nil {
		port = v4.port()
	}
	v6, err = listenUDP("udp6", port)
	if err != nil && (v4 == nil || !errors.Is(err, unix.EAFNOSUPPORT)) {
		if v4 != nil {
			v4.conn.Close()
		}
		return nil, nil, 0, err
	}
	if v4 == nil {
		port = v6.port()
	}
	return v4, v6, port, nil
}

// Close implements conn.Bind.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = false
	var errs [2]error
	for i, p := range [...]*atomic.Pointer[udpSocket]{&b.v4, &b.v6} {
		if s := p.Swap(nil); s != nil {
			errs[i] = s.conn.Close()
		}
	}
	return errors.Join(errs[:]...)
}

// SetMark implements conn.Bind.
func (b *bind) SetMark(mark uint32) error {
	for _, p := range [...]*atomic.Pointer[udpSocket]{&b.v4, &b.v6} {
		if s := p.Load(); s != nil {
			if err := s.set(unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
				return fmt.Errorf("mark the packets of UDP port %d: %w", s.port(), err)
			}
		}
	}
	return nil
}

// BatchSize implements conn.Bind.
func (b *bind) BatchSize() int { return batchSize }

// ParseEndpoint implements conn.Bind.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	to, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return newEndpoint(to)
}

// Send implements conn.Bind.
func (b *bind) Send(bufs [][]byte, to conn.Endpoint) error {
	e, ok := to.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	p := &b.v6
	if e.to.Addr().Is4() {
		p = &b.v4
	}
	s := p.Load()
	if s == nil {
		return unix.EAFNOSUPPORT
	}
	return s.send(bufs, e)
}

// udpSocket is a socket of one family.
type udpSocket struct {
	conn    *net.UDPConn
	raw     syscall.RawConn
	is4     bool
	segment atomic.Bool // one send can be many packets (UDP_SEGMENT)
}

func listenUDP(network string, port uint16) (*udpSocket, error) {
	s := &udpSocket{is4: network == "udp4"}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		s.raw = raw
		return s.prepare()
	}}
	c, err := config.ListenPacket(context.Background(), network, fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	s.conn = c.(*net.UDPConn)
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		c.Close()
		return nil, err
	}
	return s, nil
}

// prepare sets the socket's options. Offloads and large buffers are what is possible.
func (s *udpSocket) prepare() error {
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = s.set(unix.SOL_SOCKET, option, socketBuffer)
	}
	_ = s.set(unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	_ = s.set(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) // see overdue
	s.segment.Store(s.set(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0) == nil)
	if s.is4 {
		return errors.Join(
			s.set(unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
			s.set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT))
	}
	return errors.Join(
		s.set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1),
		s.set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
}

func (s *udpSocket) set(level, option, value int) (err error) {
	if e := s.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) }); e != nil {
		return e
	}
	return err
}

func (s *udpSocket) port() uint16 { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port() }
