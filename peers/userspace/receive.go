package userspace

import (
	"net"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// messagesMax is how many messages are received at once. Each may be many packets of
// one peer (UDP_GRO).
const messagesMax = 8

// receiver receives the packets of one socket, for one goroutine.
type receiver struct {
	wait    *waiter
	known   known
	overdue overdue

	msgs    [messagesMax]mmsghdr
	vecs    [messagesMax]unix.Iovec
	names   [messagesMax]unix.RawSockaddrInet6
	control [messagesMax]control
	bufs    [messagesMax][1 << 16]byte
	n       int
	errno   unix.Errno
	now     time.Time // when they were read

	// What was received and is not handed on yet: of message next, from byte at on.
	next, at int
}

func newReceiver(s *udpSocket, l *load) *receiver {
	r := &receiver{}
	r.wait = newWaiter(s.raw, s.conn.SetReadDeadline, l, r.call)
	for i := range r.msgs {
		r.vecs[i].Base = &r.bufs[i][0]
		r.vecs[i].SetLen(len(r.bufs[i]))
		h := &r.msgs[i].hdr
		h.Name, h.Control, h.Iov = (*byte)(unsafe.Pointer(&r.names[i])), &r.control[i].data[0], &r.vecs[i]
		h.SetIovlen(1)
	}
	return r
}

// wireguard-go names its goroutines after these.
func (r *receiver) receiveIPv4(bufs [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
	return r.receive(bufs, sizes, from)
}

func (r *receiver) receiveIPv6(bufs [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
	return r.receive(bufs, sizes, from)
}

// receive is a conn.ReceiveFunc.
func (r *receiver) receive(bufs [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
	if r.next == r.n {
		if err := r.read(); err != nil {
			return 0, err
		}
	}
	n := 0
	for ; r.next < r.n && n < len(bufs); r.next, r.at = r.next+1, 0 {
		c := &r.control[r.next]
		to, segment, arrived := c.parse()
		e, err := r.known.endpoint(&r.names[r.next], to)
		if err != nil {
			continue // its link is gone
		}
		got := r.bufs[r.next][:r.msgs[r.next].size]
		if segment <= 0 {
			segment = len(got)
		}
		if r.at == 0 && !arrived.IsZero() {
			r.at = r.overdue.skip(len(got), segment, arrived, r.now)
		}
		for ; r.at < len(got) && n < len(bufs); n++ {
			sizes[n] = copy(bufs[n], got[r.at:min(r.at+segment, len(got))])
			from[n] = e
			r.at += segment
		}
		if r.at < len(got) {
			break // the rest next time
		}
	}
	return n, nil
}

func (r *receiver) read() error {
	r.n, r.next, r.at = 0, 0, 0
	for i := range r.msgs {
		h := &r.msgs[i].hdr
		h.Namelen = uint32(unsafe.Sizeof(r.names[i]))
		h.SetControllen(controlSize)
	}
	if err := r.wait.read(); err != nil {
		r.wait.close()
		return net.ErrClosed
	}
	if r.errno != 0 {
		r.n = 0
		return os.NewSyscallError("recvmmsg", r.errno)
	}
	r.now = time.Now()
	bytes := 0
	for i := range r.n {
		r.control[i].length = min(int(r.msgs[i].hdr.Controllen), controlSize)
		bytes += int(r.msgs[i].size)
	}
	r.overdue.read(r.now, bytes)
	return nil
}

// call is false if the socket is to be waited for, see outgoing.call.
func (r *receiver) call(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])), messagesMax, 0, 0, 0)
		switch r.n, r.errno = int(n), errno; errno {
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			return true
		}
	}
}
