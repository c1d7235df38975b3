// Package peers says what tunnels a node should have, and what has to change to
// get there. It is pure: Config is data, Diff computes, and a Device, in a
// folder of its own per backend, carries out. Who is a peer of whom is decided
// elsewhere (package mesh); what a packet may do after a tunnel is Policy's.
package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Config is the whole of a WireGuard device, as wanted or as found.
type Config struct {
	PrivateKey wgtypes.Key // the zero key: none
	ListenPort uint16      // UDP; 0 in a wanted Config lets the device choose
	Peers      []Peer      // in any order, one per key
}

// String is the whole of c as text, one line per peer and prefix, for a golden
// file or a person. It says whether there is a private key, never which.
func (c Config) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "port %d\n", c.ListenPort)
	if c.PrivateKey != (wgtypes.Key{}) {
		b.WriteString("key [redacted]\n")
	}
	for _, p := range c.Peers {
		fmt.Fprintf(&b, "peer %s", p.Key)
		if p.Endpoint.IsValid() {
			fmt.Fprintf(&b, " endpoint=%s", p.Endpoint)
		}
		if p.Keepalive != 0 {
			fmt.Fprintf(&b, " keepalive=%s", p.Keepalive)
		}
		if p.Retarget {
			b.WriteString(" retarget")
		}
		b.WriteByte('\n')
		for _, ip := range p.AllowedIPs {
			fmt.Fprintf(&b, "  %s\n", ip)
		}
	}
	return b.String()
}

// Format prints String whatever the verb, so that not even %#v or %x shows the
// private key.
func (c Config) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// LogValue is the short form for a log.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("port", int(c.ListenPort)), slog.Int("peers", len(c.Peers)))
}

// MarshalJSON refuses: a Config is for a device, and its private key for nobody
// else. It guards against loggers that encode what they are given.
func (c Config) MarshalJSON() ([]byte, error) {
	return nil, errors.New("a tunnel configuration holds a private key and is not written as JSON")
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

// Device is a WireGuard interface. Methods are for one goroutine at a time. With a
// context that has ended they do nothing and return its error. Every
// implementation passes peerstest.Run.
type Device interface {
	// Config asks the device what it holds, sorted as Config.Sort does.
	// It never answers from memory of what Apply was given.
	Config(ctx context.Context) (Config, error)
	// Apply carries out changes in order, as the function Apply models it. On an
	// error some may have been made; the caller asks Config again and computes a new
	// Diff.
	Apply(ctx context.Context, changes []Change) error
	// Stats lists every peer's counters, sorted by key.
	Stats(ctx context.Context) ([]Stats, error)
	// Close removes the device. It is idempotent.
	Close() error
}

// ErrClosed is what a Device's methods return after Close.
var ErrClosed = errors.New("device is closed")
