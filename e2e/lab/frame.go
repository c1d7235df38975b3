package lab

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A frame on the switch is what a TAP with IFF_VNET_HDR reads and writes: a
// virtio header of 10 bytes in the machine's byte order, then Ethernet.
//
//	0 flags  1 gso type  2 header length  4 gso size  6 csum start  8 csum offset
//	10 destination MAC  16 source MAC  22 ethertype  24 payload
const (
	vnetLen  = 10
	etherLen = 14
	netOff   = vnetLen + etherLen
	// A kernel hands over at most 64 kB of IP in one frame (net.core.gso_max_size).
	maxFrame = vnetLen + etherLen + 1<<16 + 64
	// Nobody sends more than this of network header and extensions before TCP or UDP.
	maxNetHeader = 256
)

type mac [6]byte

func destination(frame []byte) mac { return mac(frame[vnetLen:]) }
func (m mac) group() bool          { return m[0]&1 != 0 }
func etherType(frame []byte) uint16 {
	return binary.BigEndian.Uint16(frame[vnetLen+12:])
}

// resolves reports whether the frame asks for or tells a link-layer address: ARP,
// or a neighbour solicitation or advertisement.
func resolves(frame []byte) bool {
	switch etherType(frame) {
	case unix.ETH_P_ARP:
		return true
	case unix.ETH_P_IPV6:
		const icmp = netOff + 40
		return len(frame) > icmp && frame[netOff+6] == unix.IPPROTO_ICMPV6 && (frame[icmp] == 135 || frame[icmp] == 136)
	}
	return false
}

// segmented describes a frame that holds several packets (TSO or USO).
type segmented struct {
	headers int // bytes of virtio, Ethernet, network and transport header
	size    int // payload bytes of one packet
	udp     bool
}

// parseSegmented says how to take a frame apart. ok is false for a frame that is
// one packet, and for one whose header makes no sense, which then counts as one.
func parseSegmented(frame []byte) (s segmented, ok bool) {
	if len(frame) < netOff || frame[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
		return s, false
	}
	v6 := etherType(frame) == unix.ETH_P_IPV6
	switch frame[1] &^ unix.VIRTIO_NET_HDR_GSO_ECN {
	case unix.VIRTIO_NET_HDR_GSO_TCPV4:
		ok = !v6
	case unix.VIRTIO_NET_HDR_GSO_TCPV6:
		ok = v6
	case unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		ok, s.udp = true, true
	}
	if !ok || !v6 && etherType(frame) != unix.ETH_P_IP {
		return s, false
	}
	transport := vnetLen + int(binary.NativeEndian.Uint16(frame[6:]))
	smallest, length := netOff+20, 8
	if v6 {
		smallest = netOff + 40
	}
	if transport < smallest || transport > netOff+maxNetHeader || transport+length > len(frame) || !v6 && transport != netOff+int(frame[netOff]&0xf)*4 {
		return s, false
	}
	if !s.udp {
		if transport+20 > len(frame) {
			return s, false
		}
		length = int(frame[transport+12]>>4) * 4
	}
	s.headers, s.size = transport+length, int(binary.NativeEndian.Uint16(frame[4:]))
	return s, length >= 8 && (s.udp || length >= 20) && s.headers < len(frame) && s.size > 0
}

// packets counts the packets in a frame and their bytes on the wire.
func packets(frame []byte) (n, bytes int) {
	s, ok := parseSegmented(frame)
	if !ok {
		return 1, len(frame) - vnetLen
	}
	payload := len(frame) - s.headers
	n = (payload + s.size - 1) / s.size
	return n, payload + n*(s.headers-vnetLen)
}

// segment takes a frame apart into one frame for each packet, written one after
// the other to scratch (of at least maxFrame bytes) and given to emit.
func (s segmented) segment(frame, scratch []byte, emit func(packet []byte)) {
	payload := frame[s.headers:]
	for i, off := 0, 0; off < len(payload); i, off = i+1, off+s.size {
		chunk := payload[off:min(off+s.size, len(payload))]
		p := append(append(scratch[:0], frame[:s.headers]...), chunk...)
		p[1] = unix.VIRTIO_NET_HDR_GSO_NONE
		binary.NativeEndian.PutUint16(p[4:], 0)
		transport := s.fixNetwork(p, i)
		s.fixTransport(p[transport:], off, i == 0, off+len(chunk) == len(payload))
		// What is left in the checksum field is the pseudo header's sum: the rest is
		// up to whoever needs the checksum (VIRTIO_NET_HDR_F_NEEDS_CSUM).
		at := transport + int(binary.NativeEndian.Uint16(p[8:]))
		if at+2 <= s.headers {
			binary.BigEndian.PutUint16(p[at:], pseudoSum(p, transport, s.udp))
		}
		emit(p)
	}
}

// fixNetwork sets the lengths of the i-th packet's IP header and returns where its
// transport header starts.
func (s segmented) fixNetwork(p []byte, i int) (transport int) {
	transport = vnetLen + int(binary.NativeEndian.Uint16(p[6:]))
	ip := p[netOff:]
	if etherType(p) == unix.ETH_P_IPV6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
		return transport
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(i))
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip[:transport-netOff])))
	return transport
}

// fixTransport sets what differs between the packets of one frame in TCP or UDP.
func (s segmented) fixTransport(t []byte, off int, first, last bool) {
	if s.udp {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
		return
	}
	const fin, psh, cwr = 0x01, 0x08, 0x80
	binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(off))
	if !last {
		t[13] &^= fin | psh
	}
	if !first {
		t[13] &^= cwr
	}
}

// pseudoSum is the sum over the pseudo header (RFC 9293 3.1, RFC 8200 8.1).
func pseudoSum(p []byte, transport int, udp bool) uint16 {
	addresses := p[netOff+12 : netOff+20]
	if etherType(p) == unix.ETH_P_IPV6 {
		addresses = p[netOff+8 : netOff+40]
	}
	proto := uint32(unix.IPPROTO_TCP)
	if udp {
		proto = unix.IPPROTO_UDP
	}
	return fold(sum(addresses) + proto + uint32(len(p)-transport))
}

func sum(b []byte) (s uint32) {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
