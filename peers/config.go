// Package peers says what tunnels a node should have, and what has to change to
// get there. It is pure: Config is data, Diff computes, and a Device, in a
// folder of its own per backend, carries out. Who is a peer of whom is decided
// elsewhere (package mesh); what a packet may do after a tunnel is Policy's.
package peers

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Config is the whole of a WireGuard device, as wanted or as found.
type Config struct {
	PrivateKey wgtypes.Key // the zero key: none
	ListenPort uint16      // UDP; 0 in a wanted Config lets the device choose
	Peers      []Peer      // in any order, one per key
}

// Peer is one tunnel.
type Peer struct {
	Key        wgtypes.Key
	Endpoint   netip.AddrPort // invalid: not known, the peer speaks first
	Keepalive  time.Duration  // whole seconds up to 65535; 0: off
	AllowedIPs []netip.Prefix // masked; in any order; one prefix is of one peer only

	// Retarget, in a wanted Config, makes Diff set Endpoint although the device
	// has another one. Without it an endpoint that differs is taken for learnt (the
	// peer roamed) and left alone. See Retarget, the function.
	Retarget bool
}

// Stats is what a device tells of one peer beside its configuration.
type Stats struct {
	Key           wgtypes.Key
	Endpoint      netip.AddrPort
	LastHandshake time.Time // zero: never
	Rx, Tx        uint64    // bytes
}

// Device is a WireGuard interface. Methods are for one goroutine at a time.
// Every implementation passes peerstest.Run.
type Device interface {
	// Config asks the device what it holds, sorted as Config.Sort does.
	// It never answers from memory of what Apply was given.
	Config(ctx context.Context) (Config, error)
	// Apply carries out changes in order. On an error some may have been made;
	// the caller asks Config again and computes a new Diff.
	Apply(ctx context.Context, changes []Change) error
	// Stats lists every peer's counters, sorted by key.
	Stats(ctx context.Context) ([]Stats, error)
	// Close removes the device. It is idempotent.
	Close() error
}

// ErrClosed is what a Device's methods return after Close.
var ErrClosed = errors.New("device is closed")

// Policy is what the data plane lets through: input to package firewall.
// Everything it does not name is refused.
type Policy struct {
	Link      string       // the WireGuard link
	Mesh      netip.Prefix // the whole mesh
	Resolver  netip.Addr   // the machines' resolver, <mesh>::3
	Self      netip.Addr   // the host's own address, (0, host)::1
	ProbePort uint16       // UDP port of tunnel probes, on Self
	Networks  []Network    // the carried networks, sorted by Prefix
	// Attachments are the machines' links, sorted by Link.
	Attachments []Attachment
}

// Network is one carried org's network as the firewall sees it.
type Network struct {
	Prefix   netip.Prefix // its /64
	Host     netip.Addr   // the host's own address in it, (network, host)::1
	Resolver netip.Addr   // <network>::3
}

// Attachment is one machine's link in the data plane's namespace.
type Attachment struct {
	Link     string       // name of the host's end, at most 15 bytes
	Endpoint netip.Prefix // its /112: the only sources it may use
}
