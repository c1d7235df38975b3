package userspace

import "encoding/binary"

// Read is the inner device's, which completes the checksums that the kernel left to
// it, but one value wrongly: of UDP over IPv6, a checksum that comes to 0 is sent as
// 0xffff (RFC 8200 section 8.1). With 0 every receiver drops the packet: one in 65,536.
func (l *link) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := l.Device.Read(bufs, sizes, offset)
	for i := range n {
		mangleChecksum(bufs[i][offset : offset+sizes[i]])
	}
	return n, err
}

const (
	protoHopByHop = 0
	protoUDP      = 17
	protoRouting  = 43
	protoDestOpts = 60

	ip6Header    = 40
	udpHeader    = 8
	checksumAt   = 6      // in the UDP header
	checksumZero = 0xffff // how a checksum of 0 is written
)

// mangleChecksum changes the UDP checksum of an IPv6 packet from 0 to 0xffff if that
// is the right one. A packet that has none (RFC 6935: tunnels) stays without.
func mangleChecksum(packet []byte) {
	udp := udpOf(packet)
	if udp == nil || udp[checksumAt] != 0 || udp[checksumAt+1] != 0 {
		return
	}
	// The pseudo-header: both addresses, the length, the protocol.
	sum := uint64(len(udp)) + protoUDP
	sum = add(add(sum, packet[8:ip6Header]), udp)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		binary.BigEndian.PutUint16(udp[checksumAt:], checksumZero)
	}
}

// add sums 16-bit words; an odd byte at the end is padded with 0.
func add(sum uint64, b []byte) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(b[0])<<8 | uint64(b[1])
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

// udpOf returns the UDP datagram in a whole IPv6 packet; nil if there is none, or it
// is a fragment.
func udpOf(packet []byte) []byte {
	if len(packet) < ip6Header || packet[0]>>4 != 6 {
		return nil
	}
	next, rest := packet[6], packet[ip6Header:]
	for next == protoHopByHop || next == protoRouting || next == protoDestOpts {
		if len(rest) < 2 {
			return nil
		}
		size := 8 * (int(rest[1]) + 1)
		if len(rest) < size {
			return nil
		}
		next, rest = rest[0], rest[size:]
	}
	if next != protoUDP || len(rest) < udpHeader {
		return nil
	}
	if size := int(binary.BigEndian.Uint16(rest[4:])); size >= udpHeader && size <= len(rest) {
		return rest[:size]
	}
	return nil
}
