package kernel

import (
	"bytes"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

// Limits of one message. wgctrl cuts what is larger itself, but then tells a peer
// that stands twice in it half of what it should.
const (
	maxPeers    = 32
	maxPrefixes = 256
)

// runs cuts changes where drops begin and end. Their order stays.
func runs(changes []peers.Change) iter.Seq[[]peers.Change] {
	return func(yield func([]peers.Change) bool) {
		for len(changes) > 0 {
			n := 1
			for n < len(changes) && (changes[n].Op == peers.Drop) == (changes[0].Op == peers.Drop) {
				n++
			}
			if !yield(changes[:n]) {
				return
			}
			changes = changes[n:]
		}
	}
}

// owned leaves of drops the prefixes that have the peer that they are taken from.
func owned(drops []peers.Change, have peers.Config) []peers.Change {
	owner := map[netip.Prefix]wgtypes.Key{}
	for _, p := range have.Peers {
		for _, ip := range p.AllowedIPs {
			owner[ip] = p.Key
		}
	}
	var out []peers.Change
	for _, c := range drops {
		c.Peer.AllowedIPs = slices.DeleteFunc(slices.Clone(c.Peer.AllowedIPs), func(ip netip.Prefix) bool {
			key, there := owner[ip]
			return !there || key != c.Peer.Key
		})
		if len(c.Peer.AllowedIPs) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// batches cuts changes into messages. A new key and a new port go alone: when the
// port is refused the key is set all the same.
func batches(changes []peers.Change) iter.Seq[[]peers.Change] {
	return func(yield func([]peers.Change) bool) {
		var batch []peers.Change
		entries, prefixes := 0, 0
		for c := range pieces(changes) {
			n := 1
			if c.Op == peers.Drop {
				n = 2
			}
			alone := c.Op == peers.SetDevice || len(batch) > 0 && batch[0].Op == peers.SetDevice
			if len(batch) > 0 && (alone || entries+n > maxPeers || prefixes+len(c.Peer.AllowedIPs) > maxPrefixes) {
				if !yield(batch) {
					return
				}
				batch, entries, prefixes = nil, 0, 0
			}
			batch, entries, prefixes = append(batch, c), entries+n, prefixes+len(c.Peer.AllowedIPs)
		}
		if len(batch) > 0 {
			yield(batch)
		}
	}
}

// pieces cuts changes that do not fit a message into several with the same effect.
func pieces(changes []peers.Change) iter.Seq[peers.Change] {
	return func(yield func(peers.Change) bool) {
		for _, c := range changes {
			if c.Op == peers.SetDevice && c.Device.ListenPort != 0 {
				key := c
				key.Device.ListenPort = 0
				if !yield(key) {
					return
				}
			}
			rest := c.Peer.AllowedIPs
			for {
				n := min(len(rest), maxPrefixes)
				c.Peer.AllowedIPs, rest = rest[:n:n], rest[n:]
				if !yield(c) {
					return
				}
				if len(rest) == 0 {
					break
				}
				if c.Op == peers.AddPeer {
					c = peers.Change{Op: peers.Move, Peer: peers.Peer{Key: c.Peer.Key}}
				}
			}
		}
	}
}

// encode makes a message of a batch. The error is a syscall.Errno: what wgctrl would
// cut off silently is refused as the kernel would.
func encode(batch []peers.Change) (wgtypes.Config, error) {
	var out wgtypes.Config
	for _, c := range batch {
		if c.Op == peers.SetDevice {
			if c.Device.ListenPort != 0 {
				port := int(c.Device.ListenPort)
				out.ListenPort = &port
			} else {
				key := c.Device.PrivateKey
				out.PrivateKey = &key
			}
			continue
		}
		if k := c.Peer.Keepalive; k < 0 || k > 65535*time.Second || k%time.Second != 0 {
			return out, syscall.EINVAL
		}
		entries, err := encodePeer(c)
		if err != nil {
			return out, err
		}
		out.Peers = append(out.Peers, entries...)
	}
	return out, nil
}

func encodePeer(c peers.Change) ([]wgtypes.PeerConfig, error) {
	p := wgtypes.PeerConfig{PublicKey: c.Peer.Key, UpdateOnly: c.Op != peers.AddPeer}
	switch c.Op {
	case peers.RemovePeer:
		p.Remove = true
		return []wgtypes.PeerConfig{p}, nil
	case peers.Drop:
		return sink(c.Peer.AllowedIPs)
	}
	if at := c.Peer.Endpoint; at.IsValid() && (c.Op == peers.AddPeer || c.Op == peers.UpdatePeer && c.SetEndpoint) {
		p.Endpoint = net.UDPAddrFromAddrPort(netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	}
	if c.Op == peers.AddPeer || c.Op == peers.UpdatePeer {
		keepalive := c.Peer.Keepalive
		p.PersistentKeepaliveInterval = &keepalive
	}
	if c.Op != peers.UpdatePeer {
		p.AllowedIPs = ipNets(c.Peer.AllowedIPs)
	}
	return []wgtypes.PeerConfig{p}, nil
}

// sink takes prefixes from whoever has them: a peer that nobody is gets them, and is
// removed by the same message. The kernel has a flag for it only since Linux 6.16,
// and to replace all prefixes of the peer would leave it without any for a moment.
func sink(ips []netip.Prefix) ([]wgtypes.PeerConfig, error) {
	key, err := wgtypes.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("key of a peer to drop prefixes with: %w", err)
	}
	return []wgtypes.PeerConfig{
		{PublicKey: key, AllowedIPs: ipNets(ips)},
		{PublicKey: key, UpdateOnly: true, Remove: true},
	}, nil
}

func ipNets(ips []netip.Prefix) []net.IPNet {
	out := make([]net.IPNet, len(ips))
	for i, ip := range ips {
		out[i] = *netns.IPNet(ip)
	}
	return out
}

// config is what the kernel told, as peers has it.
func config(d *wgtypes.Device) peers.Config {
	c := peers.Config{PrivateKey: d.PrivateKey, ListenPort: uint16(d.ListenPort)}
	for _, p := range d.Peers {
		peer := peers.Peer{Key: p.PublicKey, Endpoint: addrPort(p.Endpoint), Keepalive: p.PersistentKeepaliveInterval}
		for _, n := range p.AllowedIPs {
			if ip, ok := netns.Prefix(&n); ok {
				peer.AllowedIPs = append(peer.AllowedIPs, ip)
			}
		}
		c.Peers = append(c.Peers, peer)
	}
	c.Sort()
	return c
}

func stats(d *wgtypes.Device) []peers.Stats {
	var out []peers.Stats
	for _, p := range d.Peers {
		out = append(out, peers.Stats{
			Key: p.PublicKey, Endpoint: addrPort(p.Endpoint), LastHandshake: p.LastHandshakeTime,
			Rx: uint64(p.ReceiveBytes), Tx: uint64(p.TransmitBytes),
		})
	}
	slices.SortFunc(out, func(a, b peers.Stats) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	return out
}

func addrPort(a *net.UDPAddr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	at := a.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}
