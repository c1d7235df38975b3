package userspace

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// control holds the control messages of a packet (cmsg(3)), that come or go.
type control struct {
	data   [controlSize]byte
	length int
}

// Room for the address that a packet came to or goes from, and for the size of its
// segments; aligned, as CMSG_SPACE is.
const controlSize = 128

func (c *control) reset() { c.length = 0 }

// add makes room for one message and returns it.
func (c *control) add(level, kind, size int) []byte {
	hdr := (*unix.Cmsghdr)(unsafe.Pointer(&c.data[c.length]))
	hdr.Level, hdr.Type = int32(level), int32(kind)
	hdr.SetLen(unix.CmsgLen(size))
	body := c.data[c.length+unix.CmsgLen(0):][:size]
	clear(body)
	c.length += unix.CmsgSpace(size)
	return body
}

// setSource says which address of ours a packet goes from; the routes say by which
// link.
func (c *control) setSource(a netip.Addr) {
	if a.Is4() {
		b := a.As4() // ipi_spec_dst of struct in_pktinfo
		copy(c.add(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)[4:], b[:])
		return
	}
	b := a.As16() // ipi6_addr of struct in6_pktinfo
	copy(c.add(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo), b[:])
}

// setSegment says into packets of which size the message is to be cut.
func (c *control) setSegment(size int) {
	binary.NativeEndian.PutUint16(c.add(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2), uint16(size))
}

// parse reads which address of ours a message came to, of packets of which size it was
// made (0: it is one packet), and when it came (zero: not known).
func (c *control) parse() (to netip.Addr, segment int, at time.Time) {
	rest := c.data[:c.length]
	for len(rest) >= unix.SizeofCmsghdr {
		hdr := (*unix.Cmsghdr)(unsafe.Pointer(&rest[0]))
		size := int(hdr.Len)
		if size < unix.CmsgLen(0) || size > len(rest) {
			break
		}
		body := rest[unix.CmsgLen(0):size]
		switch {
		case hdr.Level == unix.IPPROTO_IP && hdr.Type == unix.IP_PKTINFO && len(body) >= unix.SizeofInet4Pktinfo:
			to = netip.AddrFrom4([4]byte(body[4:]))
		case hdr.Level == unix.IPPROTO_IPV6 && hdr.Type == unix.IPV6_PKTINFO && len(body) >= unix.SizeofInet6Pktinfo:
			to = netip.AddrFrom16([16]byte(body))
		case hdr.Level == unix.IPPROTO_UDP && hdr.Type == unix.UDP_GRO && len(body) >= 4:
			segment = int(int32(binary.NativeEndian.Uint32(body)))
		case hdr.Level == unix.SOL_SOCKET && hdr.Type == unix.SCM_TIMESTAMPNS && len(body) >= int(unsafe.Sizeof(unix.Timespec{})):
			at = time.Unix((*unix.Timespec)(unsafe.Pointer(&body[0])).Unix())
		}
		rest = rest[min(len(rest), unix.CmsgSpace(size-unix.CmsgLen(0))):]
	}
	return to, segment, at
}
