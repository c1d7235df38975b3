package dns

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newPackets returns conn's packets, in batches if it is a UDP socket.
func newPackets(conn net.PacketConn) packets {
	if udp, ok := conn.(*net.UDPConn); ok {
		if raw, err := udp.SyscallConn(); err == nil {
			return newMessages(raw)
		}
	}
	return &single{conn: conn, buf: make([]byte, readSize)}
}

// messages are packets of a socket by recvmmsg(2) and sendmmsg(2). An address stays
// what the kernel wrote and goes back as it is: nothing is allocated for a packet.
type messages struct {
	raw syscall.RawConn

	in, out   [batch]mmsghdr
	from      [batch]unix.RawSockaddrInet6 // room for both families
	inVec     [batch]unix.Iovec
	outVec    [batch]unix.Iovec
	bufs      [batch][readSize]byte
	ready     int // of out
	sent      int // of ready
	n         int
	errno     unix.Errno
	receiving func(fd uintptr) bool // made once
	sending   func(fd uintptr) bool
}

// mmsghdr is struct mmsghdr of sys/socket.h.
type mmsghdr struct {
	hdr  unix.Msghdr
	size uint32
}

func newMessages(raw syscall.RawConn) *messages {
	m := &messages{raw: raw}
	for i := range batch {
		m.inVec[i].Base = &m.bufs[i][0]
		m.inVec[i].SetLen(readSize)
		m.in[i].hdr.Iov, m.out[i].hdr.Iov = &m.inVec[i], &m.outVec[i]
		m.in[i].hdr.SetIovlen(1)
		m.out[i].hdr.SetIovlen(1)
		m.in[i].hdr.Name = (*byte)(unsafe.Pointer(&m.from[i]))
	}
	m.receiving = func(fd uintptr) bool { return m.call(fd, unix.SYS_RECVMMSG, m.in[:]) }
	m.sending = func(fd uintptr) bool { return m.call(fd, unix.SYS_SENDMMSG, m.out[m.sent:m.ready]) }
	return m
}

// call makes a system call on messages. It is false if the socket is to be waited for:
// sockets of package net do not block. So the call is made without telling the
// scheduler, which would take the processor away from the loop for each full batch.
func (m *messages) call(fd, number uintptr, of []mmsghdr) (done bool) {
	for {
		n, _, errno := unix.RawSyscall6(number, fd, uintptr(unsafe.Pointer(&of[0])), uintptr(len(of)), 0, 0, 0)
		switch m.n, m.errno = int(n), errno; errno {
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			return true
		}
	}
}

func (m *messages) read() (n int, err error) {
	for i := range m.in {
		m.in[i].hdr.Namelen = uint32(unsafe.Sizeof(m.from[i]))
	}
	if err := m.raw.Read(m.receiving); err != nil {
		return 0, err
	}
	if m.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", m.errno)
	}
	return m.n, nil
}

func (m *messages) packet(i int) ([]byte, netip.AddrPort) {
	return m.bufs[i][:min(m.in[i].size, readSize)], addrPortFrom(&m.from[i])
}

// addrPortFrom reads an address as the kernel wrote it.
func addrPortFrom(a *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&a.Port)) // in network order
	number := uint16(port[0])<<8 | uint16(port[1])
	switch a.Family {
	case unix.AF_INET6:
		addr := netip.AddrFrom16(a.Addr)
		if a.Scope_id != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(a.Scope_id), 10))
		}
		return netip.AddrPortFrom(addr, number)
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(a)).Addr), number)
	}
	return netip.AddrPort{}
}

func (m *messages) reply(i int, answer []byte) {
	if len(answer) == 0 {
		return
	}
	m.outVec[m.ready].Base = &answer[0]
	m.outVec[m.ready].SetLen(len(answer))
	hdr := &m.out[m.ready].hdr
	hdr.Name, hdr.Namelen = m.in[i].hdr.Name, m.in[i].hdr.Namelen
	m.ready++
}

func (m *messages) flush() (unwritten int) {
	for m.sent = 0; m.sent < m.ready; {
		err := m.raw.Write(m.sending)
		if err != nil || m.errno != 0 || m.n < 1 { // of the first that is left
			unwritten++
			m.sent++
			continue
		}
		m.sent += m.n
	}
	m.ready = 0
	return unwritten
}
