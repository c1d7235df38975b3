package userspace

import (
	"encoding/binary"
	"math/bits"
)

// completeSum computes the internet checksum (RFC 1071) of packet from start on, in
// whose field, at offset, is what the pseudo-header adds to it.
//
// UDP's that comes to 0 is written as 0xffff (RFC 768, RFC 8200 section 8.1): 0 means
// that there is none, and over IPv6 every receiver drops such a packet. wireguard-go's
// own link gets that wrong, for one datagram in 65,536.
func completeSum(packet []byte, start, offset int) {
	s := ^fold(sum(packet[start:], 0))
	if s == 0 && offset == udpChecksumAt {
		s = 0xffff
	}
	binary.BigEndian.PutUint16(packet[start+offset:], s)
}

// sum adds the 16-bit words of b, in the byte order of this machine, as they may be;
// an odd byte at the end is padded with 0.
func sum(b []byte, initial uint64) uint64 {
	s, carry := initial, uint64(0)
	for len(b) >= 64 {
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[0:]), 0)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[8:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[16:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[24:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[32:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[40:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[48:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[56:]), carry)
		s, carry = bits.Add64(s, carry, 0)
		s += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b), 0)
		s += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(rest[:]), 0)
		s += carry
	}
	return s
}

// addWords adds words in network order to a sum.
func addWords(s uint64, words ...uint16) uint64 {
	var b [2]byte
	for _, w := range words {
		binary.BigEndian.PutUint16(b[:], w)
		s = sum(b[:], s)
	}
	return s
}

// fold makes 16 bits of a sum, in network order.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], uint16(s))
	return binary.BigEndian.Uint16(b[:])
}
