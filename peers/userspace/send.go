package userspace

import (
	"errors"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of sys/socket.h.
type mmsghdr struct {
	hdr  unix.Msghdr
	size uint32
}

const (
	segmentsMax = 64         // of one send, UDP_MAX_SEGMENTS of linux/udp.h
	payloadMax  = 65535 - 48 // of one send, whatever the family
)

// outgoing is one batch of packets for one peer, as sendmmsg(2) takes it. Packets of
// one size in a row, the last of which may be smaller, are one message.
type outgoing struct {
	msgs    [batchSize]mmsghdr
	vecs    [batchSize]unix.Iovec
	control [batchSize]control
	name    unix.RawSockaddrInet6
	n       int // of msgs
	sent    int
	now     int
	errno   unix.Errno
	sending func(fd uintptr) bool // made once
}

var outgoings = sync.Pool{New: func() any {
	o := &outgoing{}
	o.sending = o.call
	return o
}}

// call sends what is left. It is false if the socket is to be waited for. The
// scheduler is not told about the call, which does not block: it would take the
// processor away for each large batch.
func (o *outgoing) call(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&o.msgs[o.sent])), uintptr(o.n-o.sent), 0, 0, 0)
		switch o.now, o.errno = int(n), errno; errno {
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			return true
		}
	}
}

// send sends packets to a peer. One that cannot be sent does not keep the others from
// it; the error is that of the last one.
func (s *udpSocket) send(bufs [][]byte, to *endpoint) (err error) {
	o := outgoings.Get().(*outgoing)
	defer outgoings.Put(o)
	for len(bufs) > 0 {
		n := min(len(bufs), batchSize)
		if e := s.sendBatch(o, bufs[:n], to); e != nil {
			err = e
		}
		bufs = bufs[n:]
	}
	return err
}

func (s *udpSocket) sendBatch(o *outgoing, bufs [][]byte, to *endpoint) (err error) {
	o.fill(bufs, to, s.segment.Load())
	defer clear(o.vecs[:len(bufs)])
	for o.sent < o.n {
		if e := s.raw.Write(o.sending); e != nil {
			return e
		}
		if o.errno == 0 {
			o.sent += o.now
			continue
		}
		if e := s.retry(o, to); e != nil {
			err = e
		}
		o.sent++
	}
	return err
}

// retry sends a message that the kernel refused in ways that it may like better: from
// no certain address, and packet by packet.
func (s *udpSocket) retry(o *outgoing, to *endpoint) error {
	refused := o.errno
	m := &o.msgs[o.sent]
	packets := unsafe.Slice(m.hdr.Iov, int(m.hdr.Iovlen))
	if refused == unix.EIO {
		s.segment.Store(false) // the network card cannot do checksums
	}
	one := outgoings.Get().(*outgoing)
	defer outgoings.Put(one)
	from := to.from.Load()
	for _, keep := range [...]bool{true, false} {
		if keep && len(packets) == 1 || !keep && (from == nil || !sourceGone(refused)) {
			continue // tried already, or it is not that
		}
		if !keep {
			to.from.CompareAndSwap(from, nil)
		}
		err := s.oneByOne(one, packets, to)
		if err == nil {
			return nil
		}
		if !errors.As(err, &refused) {
			return err
		}
	}
	return os.NewSyscallError("sendmmsg", refused)
}

// sourceGone reports whether an error may be that the address that a packet was to
// go from is not ours any more, or leads nowhere.
func sourceGone(e unix.Errno) bool {
	switch e {
	case unix.EINVAL, unix.EADDRNOTAVAIL, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENODEV:
		return true
	}
	return false
}

func (s *udpSocket) oneByOne(o *outgoing, packets []unix.Iovec, to *endpoint) error {
	for _, v := range packets {
		o.fill([][]byte{unsafe.Slice(v.Base, int(v.Len))}, to, false)
		err := s.raw.Write(o.sending)
		clear(o.vecs[:1])
		if err != nil {
			return err
		}
		if o.errno != 0 {
			return o.errno
		}
	}
	return nil
}

// fill makes messages of packets.
func (o *outgoing) fill(bufs [][]byte, to *endpoint, segment bool) {
	o.n, o.sent, o.name = 0, 0, to.name
	from := to.from.Load()
	for i := 0; i < len(bufs); {
		n := 1
		if segment {
			n = run(bufs[i:])
		}
		for j, b := range bufs[i : i+n] {
			v := &o.vecs[i+j]
			v.Base = &b[0]
			v.SetLen(len(b))
		}
		c := &o.control[o.n]
		c.reset()
		if from != nil {
			c.setSource(from.addr)
		}
		if n > 1 {
			c.setSegment(len(bufs[i]))
		}
		m := &o.msgs[o.n].hdr
		*m = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&o.name)), Namelen: to.nameLength(), Iov: &o.vecs[i]}
		m.SetIovlen(n)
		if c.length > 0 {
			m.Control = &c.data[0]
			m.SetControllen(c.length)
		}
		o.n++
		i += n
	}
}

// run returns how many of the first packets can be one message.
func run(bufs [][]byte) int {
	size, total := len(bufs[0]), 0
	for i, b := range bufs {
		if total += len(b); len(b) > size || total > payloadMax || i == segmentsMax {
			return max(i, 1)
		}
		if len(b) < size {
			return i + 1
		}
	}
	return len(bufs)
}
