package peers

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Op says what a Change does.
type Op uint8

// The changes, in the order in which Diff yields them: what is added comes
// before what is taken away, so that a prefix that moves to another peer is never
// without one (WireGuard moves it in a single step when the new peer claims it).
const (
	SetDevice  Op = iota // private key and listen port
	AddPeer              // a new peer, with everything it has; one that is there keeps what is not given
	UpdatePeer           // endpoint or keepalive of a known peer
	Move                 // give a known peer more prefixes; another peer's are moved
	Drop                 // take prefixes from a known peer that nobody else gets
	RemovePeer           // the peer and all its prefixes
)

func (o Op) String() string {
	return [...]string{"set-device", "add", "update", "move", "drop", "remove"}[o]
}

// Change is one step from a Config to another.
type Change struct {
	Op   Op
	Peer Peer // Key, and: all (AddPeer); Endpoint, Keepalive (UpdatePeer); AllowedIPs (Move, Drop)
	// SetEndpoint, with UpdatePeer: Peer.Endpoint is to be set. Keepalive always is.
	SetEndpoint bool
	// Device, with SetDevice: PrivateKey is to be set, and ListenPort unless it is 0.
	// A device that is told its own port again opens new sockets and loses what is
	// in the old ones.
	Device Config
}

// String is one line for a log or a golden file. It never shows a private key.
func (c Change) String() string {
	if c.Op == SetDevice {
		if c.Device.ListenPort == 0 {
			return "set-device"
		}
		return fmt.Sprintf("set-device port=%d", c.Device.ListenPort)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", c.Op, c.Peer.Key)
	if c.Op == AddPeer || c.Op == UpdatePeer {
		if c.Peer.Endpoint.IsValid() && (c.Op == AddPeer || c.SetEndpoint) {
			fmt.Fprintf(&b, " endpoint=%s", c.Peer.Endpoint)
		}
		if c.Op == UpdatePeer || c.Peer.Keepalive != 0 {
			fmt.Fprintf(&b, " keepalive=%s", c.Peer.Keepalive)
		}
	}
	sign := "+"
	if c.Op == Drop {
		sign = "-"
	}
	for _, p := range c.Peer.AllowedIPs {
		fmt.Fprintf(&b, " %s%s", sign, p)
	}
	return b.String()
}

// LogValue is String: a logger must not walk into the private key.
func (c Change) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Diff computes the changes that lead from what a device has to what is wanted,
// and nothing else: an empty result means there is nothing to do. A peer that is
// known is updated in place, never removed and added, so its session lives on. An
// endpoint that differs is left alone unless the wanted peer says Retarget or the
// device has none. An IPv4 address in IPv6 form is an IPv4 address, and private keys that
// X25519 takes for the same are the same.
//
// Both must be valid (see Config.Validate). A wanted ListenPort of 0 accepts any.
func Diff(have, want Config) []Change {
	var device, add, update, move, drop, remove []Change

	if clamp(have.PrivateKey) != clamp(want.PrivateKey) || want.ListenPort != 0 && have.ListenPort != want.ListenPort {
		port := want.ListenPort
		if port == have.ListenPort {
			port = 0
		}
		device = append(device, Change{Op: SetDevice, Device: Config{PrivateKey: want.PrivateKey, ListenPort: port}})
	}

	had := make(map[wgtypes.Key]Peer, len(have.Peers))
	for _, p := range have.Peers {
		had[p.Key] = p
	}
	wanted := make(map[wgtypes.Key]bool, len(want.Peers))
	claimed := make(map[netip.Prefix]bool) // prefixes that some peer wants: moved, not dropped
	for _, p := range want.Peers {
		wanted[p.Key] = true
		for _, ip := range p.AllowedIPs {
			claimed[ip] = true
		}
	}

	for _, w := range sortedPeers(want.Peers) {
		h, known := had[w.Key]
		w.Endpoint, h.Endpoint = unmap(w.Endpoint), unmap(h.Endpoint)
		if !known {
			w.Retarget = false
			w.AllowedIPs = sortedPrefixes(w.AllowedIPs)
			add = append(add, Change{Op: AddPeer, Peer: w})
			continue
		}
		setEndpoint := w.Endpoint.IsValid() && w.Endpoint != h.Endpoint && (w.Retarget || !h.Endpoint.IsValid())
		if setEndpoint || w.Keepalive != h.Keepalive {
			c := Change{Op: UpdatePeer, Peer: Peer{Key: w.Key, Keepalive: w.Keepalive}, SetEndpoint: setEndpoint}
			if setEndpoint {
				c.Peer.Endpoint = w.Endpoint
			}
			update = append(update, c)
		}
		if plus := without(w.AllowedIPs, h.AllowedIPs, nil); len(plus) > 0 {
			move = append(move, Change{Op: Move, Peer: Peer{Key: w.Key, AllowedIPs: plus}})
		}
		if minus := without(h.AllowedIPs, w.AllowedIPs, claimed); len(minus) > 0 {
			drop = append(drop, Change{Op: Drop, Peer: Peer{Key: w.Key, AllowedIPs: minus}})
		}
	}
	for _, h := range sortedPeers(have.Peers) {
		if !wanted[h.Key] {
			remove = append(remove, Change{Op: RemovePeer, Peer: Peer{Key: h.Key}})
		}
	}
	return slices.Concat(device, add, update, move, drop, remove)
}

// SortChanges puts changes in the order in which Diff yields them, and the prefixes
// of each in theirs. It is for those who know the difference without computing it.
func SortChanges(changes []Change) {
	slices.SortFunc(changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Op, b.Op), CompareKeys(a.Peer.Key, b.Peer.Key))
	})
	for i := range changes {
		changes[i].Peer.AllowedIPs = sortedPrefixes(changes[i].Peer.AllowedIPs)
	}
}

// CompareKeys orders keys by their bytes.
func CompareKeys(a, b wgtypes.Key) int { return bytes.Compare(a[:], b[:]) }

// Retarget marks the peers of want whose wanted endpoint is not the one that was
// wanted before: those were given a new address by somebody, not by roaming.
func Retarget(before, want Config) Config {
	was := make(map[wgtypes.Key]netip.AddrPort, len(before.Peers))
	for _, p := range before.Peers {
		was[p.Key] = p.Endpoint
	}
	want.Peers = slices.Clone(want.Peers)
	for i, p := range want.Peers {
		if old, known := was[p.Key]; known && p.Endpoint.IsValid() && old != p.Endpoint {
			want.Peers[i].Retarget = true
		}
	}
	return want
}

// Apply computes what a device that had have holds after changes: the model that
// every Device is held against. WireGuard's rules are in it: a prefix has one
// peer, the last one to claim it; a device is never its own peer; and it holds its
// private key as X25519 uses it.
func Apply(have Config, changes []Change) Config {
	m := model{at: map[wgtypes.Key]*Peer{}, owner: map[netip.Prefix]*Peer{}}
	m.setDevice(have.PrivateKey, have.ListenPort)
	for _, p := range have.Peers {
		m.add(p)
	}
	for _, c := range changes {
		m.apply(c)
	}
	out := Config{PrivateKey: m.key, ListenPort: m.port}
	for ip, p := range m.owner {
		p.AllowedIPs = append(p.AllowedIPs, ip)
	}
	for _, p := range m.at {
		out.Peers = append(out.Peers, *p)
	}
	out.Sort()
	return out
}

// model is a device in memory. The prefixes are in owner only: a peer that was
// removed may be in it still, and nobody asks for that one's.
type model struct {
	key, self wgtypes.Key
	port      uint16
	at        map[wgtypes.Key]*Peer
	owner     map[netip.Prefix]*Peer
}

func (m *model) setDevice(key wgtypes.Key, port uint16) {
	if port != 0 {
		m.port = port
	}
	if m.key = clamp(key); key == (wgtypes.Key{}) {
		m.self = wgtypes.Key{}
		return
	}
	m.self = key.PublicKey()
	delete(m.at, m.self)
}

func (m *model) add(p Peer) {
	if p.Key == m.self {
		return
	}
	q, known := m.at[p.Key]
	if !known {
		q = &Peer{Key: p.Key}
		m.at[p.Key] = q
	}
	if p.Endpoint.IsValid() {
		q.Endpoint = p.Endpoint
	}
	q.Keepalive = p.Keepalive
	m.give(q, p.AllowedIPs)
}

func (m *model) give(to *Peer, ips []netip.Prefix) {
	for _, ip := range ips {
		m.owner[ip] = to
	}
}

func (m *model) apply(c Change) {
	p := m.at[c.Peer.Key]
	switch {
	case c.Op == SetDevice:
		m.setDevice(c.Device.PrivateKey, c.Device.ListenPort)
	case c.Op == AddPeer:
		m.add(c.Peer)
	case p == nil: // the peer is gone: nothing to change
	case c.Op == UpdatePeer:
		p.Keepalive = c.Peer.Keepalive
		if c.SetEndpoint {
			p.Endpoint = c.Peer.Endpoint
		}
	case c.Op == Move:
		m.give(p, c.Peer.AllowedIPs)
	case c.Op == Drop:
		for _, ip := range c.Peer.AllowedIPs {
			if m.owner[ip] == p {
				delete(m.owner, ip)
			}
		}
	case c.Op == RemovePeer:
		delete(m.at, c.Peer.Key)
	}
}

// Sort puts peers in the order of their keys and prefixes in theirs.
func (c *Config) Sort() {
	c.Peers = sortedPeers(c.Peers)
	for i := range c.Peers {
		c.Peers[i].AllowedIPs = sortedPrefixes(c.Peers[i].AllowedIPs)
	}
}

// Validate reports what a device would silently take otherwise: a key or a
// prefix twice, a prefix with host bits, a keepalive that is not whole seconds,
// the device as its own peer.
func (c Config) Validate() error {
	keys := map[wgtypes.Key]bool{}
	var self wgtypes.Key
	if c.PrivateKey != self {
		self = c.PrivateKey.PublicKey()
	}
	owner := map[netip.Prefix]wgtypes.Key{}
	for _, p := range c.Peers {
		switch {
		case p.Key == wgtypes.Key{}:
			return errors.New("a peer has no key")
		case p.Key == self:
			return fmt.Errorf("peer %s: that is the key of the device itself", p.Key)
		case keys[p.Key]:
			return fmt.Errorf("peer %s: the key stands twice", p.Key)
		case p.Keepalive < 0 || p.Keepalive%1e9 != 0 || p.Keepalive > 65535*1e9:
			return fmt.Errorf("peer %s: keepalive %s is not whole seconds from 0 to 65535", p.Key, p.Keepalive)
		}
		keys[p.Key] = true
		for _, ip := range p.AllowedIPs {
			if !ip.IsValid() || ip.Masked() != ip {
				return fmt.Errorf("peer %s: prefix %s has host bits set", p.Key, ip)
			}
			if other, taken := owner[ip]; taken {
				return fmt.Errorf("peer %s: prefix %s is also of peer %s", p.Key, ip, other)
			}
			owner[ip] = p.Key
		}
	}
	return nil
}

// without returns the prefixes of a that are neither in b nor in except, sorted.
func without(a, b []netip.Prefix, except map[netip.Prefix]bool) []netip.Prefix {
	skip := make(map[netip.Prefix]bool, len(b))
	for _, p := range b {
		skip[p] = true
	}
	var out []netip.Prefix
	for _, p := range a {
		if !skip[p] && !except[p] {
			out = append(out, p)
		}
	}
	return sortedPrefixes(out)
}

// clamp sets the bits of a private key that X25519 ignores to what it takes them for
// (RFC 7748, section 5), as every device does with the key that it is given. Without
// that a key made by another tool would be set again for ever.
func clamp(k wgtypes.Key) wgtypes.Key {
	if k != (wgtypes.Key{}) {
		k[0] &= 248
		k[31] = k[31]&127 | 64
	}
	return k
}

// unmap turns an IPv4 address in IPv6 form into what it means: WireGuard sends to
// the former through its IPv6 socket, which cannot reach it.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func sortedPeers(in []Peer) []Peer {
	out := slices.Clone(in)
	slices.SortFunc(out, func(a, b Peer) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	return out
}

func sortedPrefixes(in []netip.Prefix) []netip.Prefix {
	out := slices.Clone(in)
	slices.SortFunc(out, ComparePrefix)
	return out
}

// ComparePrefix orders prefixes by address, then by length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
