// Package probe measures the way to other nodes through the tunnels: a small UDP
// echo of our own between the nodes' own addresses. It says how far each host is
// and which ones have stopped answering. What follows from that (which names are
// left out) is decided by mesh/agent and dns.
package probe

import (
	"encoding/binary"
	"errors"
)

// DefaultPort is the UDP port on which nodes answer probes.
const DefaultPort = 51821

// Packet is one probe or reply. Both have the same constant size, so that a reply
// never is larger than what asked for it:
//
//	0       4         5      6       8       16          24
//	| magic | version | type | flags | nonce | timestamp |
//
// Numbers are big endian. Nonce and Timestamp are the asker's own and come back
// as they were sent.
type Packet struct {
	Reply     bool
	Flags     uint16 // bits that are not known are ignored
	Nonce     uint64
	Timestamp uint64 // nanoseconds of the asker's clock, whatever its origin
}

// FlagHoldsData says that the sender routes data prefixes over the tunnel that the
// packet came through.
const FlagHoldsData uint16 = 1 << 0

// Size is the length of every packet, in bytes.
const Size = 24

const (
	magic       = 0x77667470 // "wftp"
	version     = 1
	typeRequest = 1
	typeReply   = 2
)

// ErrPacket says that some bytes are no packet of this protocol.
var ErrPacket = errors.New("not a probe packet")

// Append writes the packet to b.
func (p Packet) Append(b []byte) []byte {
	kind := byte(typeRequest)
	if p.Reply {
		kind = typeReply
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	b = append(b, version, kind)
	b = binary.BigEndian.AppendUint16(b, p.Flags)
	b = binary.BigEndian.AppendUint64(b, p.Nonce)
	return binary.BigEndian.AppendUint64(b, p.Timestamp)
}

// Parse is the inverse of Append. It wraps ErrPacket.
func Parse(b []byte) (Packet, error) {
	if len(b) != Size || binary.BigEndian.Uint32(b) != magic || b[4] != version || b[5] != typeRequest && b[5] != typeReply {
		return Packet{}, ErrPacket
	}
	return Packet{
		Reply:     b[5] == typeReply,
		Flags:     binary.BigEndian.Uint16(b[6:]),
		Nonce:     binary.BigEndian.Uint64(b[8:]),
		Timestamp: binary.BigEndian.Uint64(b[16:]),
	}, nil
}

// Answer returns the reply to a request; ok is false for anything else.
func Answer(request Packet, flags uint16) (reply Packet, ok bool) {
	if request.Reply {
		return Packet{}, false // answering replies would be a loop for ever
	}
	return Packet{Reply: true, Flags: flags, Nonce: request.Nonce, Timestamp: request.Timestamp}, true
}
