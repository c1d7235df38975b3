package userspace

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// frame is what one read from the link gives: struct virtio_net_hdr of
// linux/virtio_net.h and an IP packet, whose checksum may be left to us, and which may
// be many packets in one (TSO, USO).
type frame []byte

const (
	frameHeader = 10 // of virtio_net_hdr

	protoTCP      = 6
	protoUDP      = 17
	protoFragment = 44

	ip4Header, ip6Header = 20, 40
	tcpHeader, udpHeader = 20, 8
	tcpFlagsAt           = 13
	tcpChecksumAt        = 16
	udpChecksumAt        = 6
	finPush              = 1 | 8
)

func (f frame) packet() []byte   { return f[frameHeader:] }
func (f frame) needsSum() bool   { return f[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 }
func (f frame) kind() byte       { return f[1] }
func (f frame) segmentSize() int { return int(binary.NativeEndian.Uint16(f[4:])) }
func (f frame) sumStart() int    { return int(binary.NativeEndian.Uint16(f[6:])) }
func (f frame) sumOffset() int   { return int(binary.NativeEndian.Uint16(f[8:])) }

// valid reports whether the frame is one that split understands.
func (f frame) valid() bool {
	if len(f) <= frameHeader {
		return false
	}
	p := f.packet()
	version := p[0] >> 4
	if version != 4 && version != 6 || len(p) < ip4Header || version == 6 && len(p) < ip6Header {
		return false
	}
	start, offset := f.sumStart(), f.sumOffset()
	if f.kind() == unix.VIRTIO_NET_HDR_GSO_NONE {
		return !f.needsSum() || start+offset+2 <= len(p)
	}
	if f.segmentSize() == 0 || start < ip4Header || version == 6 && start < ip6Header || start+udpHeader > len(p) {
		return false
	}
	switch f.kind() {
	case unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		return offset == udpChecksumAt
	case unix.VIRTIO_NET_HDR_GSO_TCPV4, unix.VIRTIO_NET_HDR_GSO_TCPV6:
		return offset == tcpChecksumAt && (f.kind() == unix.VIRTIO_NET_HDR_GSO_TCPV6) == (version == 6) &&
			start+tcpHeader <= len(p) && f.headers() >= start+tcpHeader && f.headers() <= len(p)
	}
	return false
}

// headers is the length of all headers of a frame of many packets. What the kernel
// says about it (hdr_len) is not to be relied on where the packet was forwarded.
func (f frame) headers() int {
	if f.kind() == unix.VIRTIO_NET_HDR_GSO_UDP_L4 {
		return f.sumStart() + udpHeader
	}
	return f.sumStart() + int(f.packet()[f.sumStart()+12]>>4)*4
}

// segments is how many packets the frame is.
func (f frame) segments() int {
	if f.kind() == unix.VIRTIO_NET_HDR_GSO_NONE {
		return 1
	}
	return max(1, (len(f.packet())-f.headers()+f.segmentSize()-1)/f.segmentSize())
}

// flowKey appends what tells the frame's flow from others: addresses, protocol and
// TCP's ports. UDP's are not asked for: fragments have none, and must not overtake the
// datagrams before them.
func (f frame) flowKey(key []byte) []byte {
	p := f.packet()
	proto, transport := p[6], ip6Header
	if p[0]>>4 == 6 {
		key = append(key, p[8:ip6Header]...)
		if proto == protoFragment && len(p) >= ip6Header+8 {
			proto, transport = p[ip6Header], len(p)
		}
	} else {
		key = append(key, p[12:ip4Header]...)
		proto, transport = p[9], int(p[0]&15)*4
		if binary.BigEndian.Uint16(p[6:])&0x3fff != 0 { // a fragment
			transport = len(p)
		}
	}
	key = append(key, proto)
	if proto == protoTCP && transport+4 <= len(p) {
		key = append(key, p[transport:transport+4]...)
	}
	return key
}

// split writes the packets of a frame from the one numbered first on into bufs, each
// after offset bytes, with their checksums, and returns how many there was room for.
func (f frame) split(first int, bufs [][]byte, sizes []int, offset int) int {
	if f.kind() == unix.VIRTIO_NET_HDR_GSO_NONE {
		sizes[0] = copy(bufs[0][offset:], f.packet())
		if out := bufs[0][offset : offset+sizes[0]]; f.needsSum() {
			completeSum(out, f.sumStart(), f.sumOffset())
		}
		return 1
	}
	n := min(f.segments()-first, len(bufs))
	for i := range n {
		sizes[i] = f.segment(first+i, bufs[i][offset:])
	}
	return n
}

// segment writes packet number i of a frame of many and returns its size.
func (f frame) segment(i int, out []byte) int {
	p, start, headers := f.packet(), f.sumStart(), f.headers()
	from := headers + i*f.segmentSize()
	to := min(from+f.segmentSize(), len(p))
	size := headers + to - from
	out = out[:size]
	copy(out, p[:headers])
	copy(out[headers:], p[from:to])

	var pseudo uint64
	if out[0]>>4 == 6 {
		binary.BigEndian.PutUint16(out[4:], uint16(size-ip6Header))
		pseudo = sum(out[8:ip6Header], 0)
	} else {
		binary.BigEndian.PutUint16(out[2:], uint16(size))
		binary.BigEndian.PutUint16(out[4:], binary.BigEndian.Uint16(p[4:])+uint16(i))
		out[10], out[11] = 0, 0
		binary.BigEndian.PutUint16(out[10:], ^fold(sum(out[:start], 0)))
		pseudo = sum(out[12:ip4Header], 0)
	}
	proto := byte(protoTCP)
	if f.kind() == unix.VIRTIO_NET_HDR_GSO_UDP_L4 {
		proto = protoUDP
		binary.BigEndian.PutUint16(out[start+4:], uint16(size-start))
	} else {
		binary.BigEndian.PutUint32(out[start+4:], binary.BigEndian.Uint32(p[start+4:])+uint32(i*f.segmentSize()))
		if to != len(p) {
			out[start+tcpFlagsAt] &^= finPush // of the last one only
		}
	}
	binary.BigEndian.PutUint16(out[start+f.sumOffset():], fold(addWords(pseudo, uint16(proto), uint16(size-start))))
	completeSum(out, start, f.sumOffset())
	return size
}
