// Package probe measures the way to other nodes through the tunnels: a small UDP
// echo of our own between the nodes' own addresses. It says how far each host is,
// which ones have stopped answering, which tunnels carry one direction only, and how
// large a packet may be. What follows from that (which names are left out, which
// routes get a lower MTU) is decided by mesh/agent and dns.
package probe

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// DefaultPort is the UDP port on which nodes answer probes.
const DefaultPort = 51821

// Kind is what a Packet is for.
type Kind uint8

// The kinds. An agent that does not know one drops it.
const (
	Request Kind = iota // a probe, answered with a Reply
	Reply
	// Tell asks a third host to pass on to Subject what Flags say of it: the sender
	// hears Subject and is not heard by it.
	Tell
	Told // a Tell that was passed on; Subject is who said it
)

// Packet is one packet of the protocol. All have the same size, so that a reply never
// is larger than what asked for it; but a request may be padded with zeros, to see
// whether a packet of that size arrives. Older agents drop what is padded.
//
//	0       4         5      6       8       16          24
//	| magic | version | kind | flags | nonce | timestamp | padding
//
// Numbers are big endian. Nonce and Timestamp are the asker's own and come back
// as they were sent. In a Tell and a Told an IPv6 address stands in their place.
type Packet struct {
	Kind      Kind
	Flags     uint16 // see Hearing; bits that are not known are ignored
	Nonce     uint64
	Timestamp uint64 // nanoseconds of the asker's clock, whatever its origin
	Padding   int    // bytes; of a Request only
}

// FlagHoldsData says that the sender routes data prefixes over the tunnel that the
// packet came through.
const FlagHoldsData uint16 = 1 << 0

// Size is the length of every packet without its padding, in bytes.
const Size = 24

// headers is what IPv6 and UDP put before a packet, in bytes.
const headers = 40 + 8

const (
	magic   = 0x77667470 // "wftp"
	version = 1
)

// ErrPacket says that some bytes are no packet of this protocol.
var ErrPacket = errors.New("not a probe packet")

// Append writes the packet to b.
func (p Packet) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magic)
	b = append(b, version, byte(p.Kind)+1)
	b = binary.BigEndian.AppendUint16(b, p.Flags)
	b = binary.BigEndian.AppendUint64(b, p.Nonce)
	b = binary.BigEndian.AppendUint64(b, p.Timestamp)
	return append(b, make([]byte, p.Padding)...)
}

// Parse is the inverse of Append. It wraps ErrPacket.
func Parse(b []byte) (Packet, error) {
	if len(b) < Size || binary.BigEndian.Uint32(b) != magic || b[4] != version || b[5] == 0 || b[5] > byte(Told)+1 {
		return Packet{}, ErrPacket
	}
	p := Packet{
		Kind:      Kind(b[5] - 1),
		Flags:     binary.BigEndian.Uint16(b[6:]),
		Nonce:     binary.BigEndian.Uint64(b[8:]),
		Timestamp: binary.BigEndian.Uint64(b[16:]),
		Padding:   len(b) - Size,
	}
	if p.Padding > 0 && p.Kind != Request {
		return Packet{}, ErrPacket
	}
	for _, x := range b[Size:] {
		if x != 0 {
			return Packet{}, ErrPacket
		}
	}
	return p, nil
}

// Subject is the address in a Tell or a Told.
func (p Packet) Subject() netip.Addr {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], p.Nonce)
	binary.BigEndian.PutUint64(a[8:], p.Timestamp)
	return netip.AddrFrom16(a)
}

// about is a Tell or a Told.
func about(kind Kind, subject netip.Addr, flags uint16) Packet {
	a := subject.As16()
	return Packet{Kind: kind, Flags: flags, Nonce: binary.BigEndian.Uint64(a[:]), Timestamp: binary.BigEndian.Uint64(a[8:])}
}

// Answer returns the reply to a request; ok is false for anything else.
func Answer(request Packet, flags uint16) (reply Packet, ok bool) {
	if request.Kind != Request {
		return Packet{}, false // answering replies would be a loop for ever
	}
	return Packet{Kind: Reply, Flags: flags, Nonce: request.Nonce, Timestamp: request.Timestamp}, true
}
