package firewall

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// packet builds an IPv6 packet. next is what stands behind the header; for the
// transport protocols the checksum is filled in.
func packet(src, dst netip.Addr, hops byte, next byte, payload []byte) []byte {
	p := make([]byte, 40, 40+len(payload))
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	p[6], p[7] = next, hops
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	return append(p, payload...)
}

// checksum fills in the checksum of a transport payload at offset at.
func checksum(src, dst netip.Addr, proto byte, payload []byte, at int) []byte {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	add(src.AsSlice())
	add(dst.AsSlice())
	sum += uint32(len(payload)) + uint32(proto)
	add(payload)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		sum = 0 // written as 0xffff: 0 means none (RFC 8200 section 8.1)
	}
	binary.BigEndian.PutUint16(payload[at:], ^uint16(sum))
	return payload
}

// tag marks a packet, so that it is known again where it arrives, or inside the
// error about it.
type tag uint32

func (g tag) bytes() []byte { return binary.BigEndian.AppendUint32(nil, uint32(g)) }

func udp(src, dst netip.Addr, dport uint16, g tag) []byte {
	b := binary.BigEndian.AppendUint16(nil, 40000)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, 8+12)
	b = append(append(b, 0, 0), "weft"...)
	b = append(append(b, g.bytes()...), g.bytes()...)
	return checksum(src, dst, unix.IPPROTO_UDP, b, 6)
}

// tcpSYN announces an MSS of 1440. The tag is its sequence number.
func tcpSYN(src, dst netip.Addr, dport uint16, g tag) []byte {
	b := binary.BigEndian.AppendUint16(nil, 40000)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = append(b, g.bytes()...)
	b = append(b, 0, 0, 0, 0, 10<<4, 0x02, 0xff, 0xff, 0, 0, 0, 0)
	b = append(b, 2, 4, 1440>>8, 1440&0xff) // the option
	b = append(b, bytes.Repeat([]byte{1}, 16)...)
	return checksum(src, dst, unix.IPPROTO_TCP, b, 16)
}

func icmp(src, dst netip.Addr, kind, code byte, body ...byte) []byte {
	b := append([]byte{kind, code, 0, 0}, body...)
	return checksum(src, dst, unix.IPPROTO_ICMPV6, b, 2)
}

func echo(src, dst netip.Addr, g tag) []byte {
	return icmp(src, dst, echoRequest, 0, append(g.bytes(), "weft echo"...)...)
}

// solicit asks who has target.
func solicit(src, dst, target netip.Addr, g tag, mac ...byte) []byte {
	body := append(make([]byte, 4), target.AsSlice()...)
	// An option of an unknown type is passed over (RFC 4861 section 4.6).
	body = append(body, 250, 1, 0, 0)
	body = append(body, g.bytes()...)
	if mac != nil {
		body = append(append(body, 1, 1), mac...)
	}
	return icmp(src, dst, neighbourSolicitation, 0, body...)
}

// behindOptions puts n bytes of padding into a destination options header in front
// of a payload.
func behindOptions(next byte, payload []byte) []byte {
	return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, payload...)
}

// headerLen is how much of a transport payload belongs into the first fragment.
func headerLen(next byte) int {
	if next == unix.IPPROTO_TCP {
		return 24
	}
	return 8
}

// fragments cuts a payload into two.
func fragments(src, dst netip.Addr, hops, next byte, payload []byte, cut int, g tag) [][]byte {
	part := func(offset int, more byte, b []byte) []byte {
		h := []byte{next, 0}
		h = binary.BigEndian.AppendUint16(h, uint16(offset)|uint16(more))
		return packet(src, dst, hops, unix.IPPROTO_FRAGMENT, append(append(h, g.bytes()...), b...))
	}
	return [][]byte{part(0, 1, payload[:cut]), part(cut, 0, payload[cut:])}
}

func sourceOf(p []byte) netip.Addr {
	if len(p) < 40 {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(p[8:24])
	return a
}

func destOf(p []byte) netip.Addr {
	if len(p) < 40 {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(p[24:40])
	return a
}

// icmpOf returns type and code of an ICMPv6 packet without extension headers.
func icmpOf(p []byte) (kind, code byte, ok bool) {
	if len(p) < 44 || p[6] != unix.IPPROTO_ICMPV6 {
		return 0, 0, false
	}
	return p[40], p[41], true
}
