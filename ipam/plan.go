// Package ipam is the mesh's address plan: where every number stands in a
// 128-bit address, and how to read an address back.
//
//	| mesh | network | 8 region | 24 host | 16 slot | 16 sub |
//	'--- org /64 ----'---- home /96 ------'- /112 --'
//
// It is arithmetic on netip values: it allocates nothing and remembers nothing.
// Who holds which number is the store's business.
package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// Widths of the fields that do not depend on the mesh prefix, in bits.
const (
	NetworkBits  = 64  // length of an org's prefix
	HomeBits     = 96  // length of a host's share of an org's prefix
	EndpointBits = 112 // length of what a machine or a client owns

	MaxHost = 1<<24 - 1 // highest host number
	MaxSlot = 1<<16 - 1 // highest slot number
)

// Sub numbers: which address of an endpoint's /112.
const (
	SubProbe = 1 // a client's probe address; with slot 0, a host's own address
	SubMain  = 2 // the address a machine or a client uses
	// SubResolver, with region, host and slot 0, is the resolver of a network.
	SubResolver = 3
)

// ErrPrefix says that a prefix cannot carry a mesh.
var ErrPrefix = errors.New("not a usable mesh prefix")

// ErrFull says that a number space has no free number left.
var ErrFull = errors.New("no free number left")

// Plan knows one mesh's layout. The zero Plan is not valid; see NewPlan.
// Plans are comparable and cheap to copy.
type Plan struct{ prefix netip.Prefix }

// Host names the position of a host: its region's number and its own.
// Region 0 is reserved for resolvers and service addresses.
type Host struct {
	Region uint8
	Number uint32 // 1 to MaxHost
}

// Parts is an address taken apart.
type Parts struct {
	Network uint64
	Host    Host
	Slot    uint16
	Sub     uint16
}

// NewPlan returns the plan of the mesh with the given prefix: an RFC 4193
// unique local prefix (inside fd00::/8) of /16 to /48 without host bits set.
// It wraps ErrPrefix.
func NewPlan(prefix netip.Prefix) (Plan, error) {
	switch {
	case !prefix.IsValid() || !prefix.Addr().Is6() || prefix.Addr().Is4In6():
		return Plan{}, fmt.Errorf("mesh prefix %s: %w: it must be an IPv6 prefix", prefix, ErrPrefix)
	case prefix.Addr().As16()[0] != 0xfd:
		return Plan{}, fmt.Errorf("mesh prefix %s: %w: it must lie in fd00::/8 (RFC 4193)", prefix, ErrPrefix)
	case prefix.Bits() < 16 || prefix.Bits() > 48:
		return Plan{}, fmt.Errorf("mesh prefix %s: %w: its length must be /16 to /48", prefix, ErrPrefix)
	case prefix.Masked() != prefix:
		return Plan{}, fmt.Errorf("mesh prefix %s: %w: it has bits set after its length; did you mean %s?", prefix, ErrPrefix, prefix.Masked())
	}
	return Plan{prefix}, nil
}

// RandomPrefix draws a /48 of fd00::/8 as RFC 4193 section 3.2 asks: 40 random
// bits from r, which must be a cryptographic source.
func RandomPrefix(r io.Reader) (netip.Prefix, error) {
	var a [16]byte
	a[0] = 0xfd
	if _, err := io.ReadFull(r, a[1:6]); err != nil {
		return netip.Prefix{}, fmt.Errorf("draw a mesh prefix: %w", err)
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), 48), nil
}

// IsValid reports whether p came from NewPlan.
func (p Plan) IsValid() bool { return p.prefix.IsValid() }

// Prefix returns the mesh's prefix.
func (p Plan) Prefix() netip.Prefix { return p.prefix }

// String returns the mesh's prefix as text.
func (p Plan) String() string { return p.prefix.String() }

// MaxNetwork returns the highest network number: 2^(64-length) - 1.
// Network 0 is the mesh's own.
func (p Plan) MaxNetwork() uint64 { return 1<<(NetworkBits-p.prefix.Bits()) - 1 }

// Network returns the /64 of network n. It panics if n is above MaxNetwork:
// numbers come from the store, which never gives such a one.
func (p Plan) Network(n uint64) netip.Prefix {
	return netip.PrefixFrom(p.Addr(Parts{Network: n}), NetworkBits)
}

// Home returns host h's share, a /96, of network n.
func (p Plan) Home(n uint64, h Host) netip.Prefix {
	return netip.PrefixFrom(p.Addr(Parts{Network: n, Host: h}), HomeBits)
}

// Endpoint returns the /112 of one slot of host h in network n.
func (p Plan) Endpoint(n uint64, h Host, slot uint16) netip.Prefix {
	return netip.PrefixFrom(p.Addr(Parts{Network: n, Host: h, Slot: slot}), EndpointBits)
}

// HostAddr returns host h's own address in network n: slot 0, sub 1.
func (p Plan) HostAddr(n uint64, h Host) netip.Addr {
	return p.Addr(Parts{Network: n, Host: h, Sub: SubProbe})
}

// Resolver returns the resolver's address in network n, the same on every host.
func (p Plan) Resolver(n uint64) netip.Addr {
	return p.Addr(Parts{Network: n, Sub: SubResolver})
}

// Addr puts an address together. It panics on numbers outside their field.
func (p Plan) Addr(x Parts) netip.Addr {
	if !p.IsValid() || x.Network > p.MaxNetwork() || x.Host.Number > MaxHost {
		panic(fmt.Sprintf("ipam: %+v does not fit plan %s", x, p.prefix))
	}
	a := p.prefix.Addr().As16()
	binary.BigEndian.PutUint64(a[:8], binary.BigEndian.Uint64(a[:8])|x.Network)
	binary.BigEndian.PutUint32(a[8:12], uint32(x.Host.Region)<<24|x.Host.Number)
	binary.BigEndian.PutUint16(a[12:14], x.Slot)
	binary.BigEndian.PutUint16(a[14:], x.Sub)
	return netip.AddrFrom16(a)
}

// Parts takes an address apart; ok is false if it is not of this mesh.
func (p Plan) Parts(addr netip.Addr) (parts Parts, ok bool) {
	if addr.Zone() != "" || !p.prefix.Contains(addr) {
		return Parts{}, false
	}
	a := addr.As16()
	rh := binary.BigEndian.Uint32(a[8:12])
	return Parts{
		Network: binary.BigEndian.Uint64(a[:8]) & p.MaxNetwork(),
		Host:    Host{Region: uint8(rh >> 24), Number: rh & MaxHost},
		Slot:    binary.BigEndian.Uint16(a[12:14]),
		Sub:     binary.BigEndian.Uint16(a[14:]),
	}, true
}

// EndpointOf returns the /112 that addr lies in.
func EndpointOf(addr netip.Addr) netip.Prefix {
	return netip.PrefixFrom(addr, EndpointBits).Masked()
}

// MainAddr returns the address in use of an endpoint's /112: its sub 2.
func MainAddr(endpoint netip.Prefix) netip.Addr { return withSub(endpoint, SubMain) }

// ProbeAddr returns the probe address of an endpoint's /112: its sub 1.
func ProbeAddr(endpoint netip.Prefix) netip.Addr { return withSub(endpoint, SubProbe) }

func withSub(endpoint netip.Prefix, sub uint16) netip.Addr {
	a := endpoint.Masked().Addr().As16()
	binary.BigEndian.PutUint16(a[14:], sub)
	return netip.AddrFrom16(a)
}

// MarshalText writes the plan as its prefix.
func (p Plan) MarshalText() ([]byte, error) { return p.prefix.MarshalText() }

// UnmarshalText reads a prefix and checks it as NewPlan does.
func (p *Plan) UnmarshalText(text []byte) error {
	prefix, err := netip.ParsePrefix(string(text))
	if err != nil {
		return fmt.Errorf("mesh prefix %q: %w", text, ErrPrefix)
	}
	*p, err = NewPlan(prefix)
	return err
}
