package agent

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
)

// claimant takes what a claimant is; nil: it went, and all its claims with it.
func (w *wants) claimant(id string, now *peers.Peer) {
	c := w.peers[id]
	if c == nil && now == nil {
		return
	}
	if renamed := c == nil || now == nil || c.Key != now.Key; renamed {
		c = w.rename(id, c, now)
	} else {
		w.touchKey(c.Key, false)
	}
	if now == nil {
		for ip := range c.prefixes {
			w.unclaim(id, ip)
		}
		delete(w.peers, id)
		return
	}
	base := c.AllowedIPs
	c.Peer = *now
	for _, ip := range c.AllowedIPs {
		w.claim(id, ip, 1)
	}
	for _, ip := range base {
		w.claim(id, ip, -1)
	}
}

// rename makes a claimant one of another key, or of none, and returns it.
func (w *wants) rename(id string, c *claimant, now *peers.Peer) *claimant {
	if c == nil {
		c = &claimant{prefixes: map[netip.Prefix]int{}}
		w.peers[id] = c
	} else {
		w.touchKey(c.Key, true)
		w.byKey[c.Key] = slices.DeleteFunc(w.byKey[c.Key], func(x string) bool { return x == id })
		if len(w.byKey[c.Key]) == 0 {
			delete(w.byKey, c.Key)
		}
	}
	if now != nil {
		w.touchKey(now.Key, true)
		w.byKey[now.Key] = append(w.byKey[now.Key], id)
		slices.SortFunc(w.byKey[now.Key], compareClaimants)
		c.Key = now.Key
	}
	return c
}

// compareClaimants puts hosts before clients.
func compareClaimants(a, b string) int {
	if ha, hb := strings.HasPrefix(a, hostKind), strings.HasPrefix(b, hostKind); ha != hb {
		if ha {
			return -1
		}
		return 1
	}
	return strings.Compare(a, b)
}

// claim adds by to how often a claimant claims a prefix. What a device would not
// take is left out, as in sound.
func (w *wants) claim(id string, ip netip.Prefix, by int) {
	c := w.peers[id]
	if c == nil || !ip.IsValid() || ip != ip.Masked() {
		return
	}
	had := c.prefixes[ip] > 0
	if has := c.prefixes[ip]+by > 0; has != had {
		w.touchPrefix(ip)
		if has {
			w.claims[ip] = append(w.claims[ip], id)
		} else {
			w.unclaim(id, ip)
		}
	}
	count(c.prefixes, ip, by)
}

func (w *wants) unclaim(id string, ip netip.Prefix) {
	w.claims[ip] = slices.DeleteFunc(w.claims[ip], func(x string) bool { return x == id })
	if len(w.claims[ip]) == 0 {
		delete(w.claims, ip)
	}
}

// peer returns the claimant that is the peer with a key, nil if there is none.
func (w *wants) peer(key wgtypes.Key) *claimant {
	if ids := w.byKey[key]; len(ids) > 0 && key != w.own && key != (wgtypes.Key{}) {
		return w.peers[ids[0]]
	}
	return nil
}

// owner returns the peer that has a prefix; the zero key: nobody.
func (w *wants) owner(ip netip.Prefix) (key wgtypes.Key) {
	for _, id := range w.claims[ip] {
		c := w.peers[id]
		if w.peer(c.Key) == c && (key == (wgtypes.Key{}) || bytes.Compare(c.Key[:], key[:]) < 0) {
			key = c.Key
		}
	}
	return key
}

func (w *wants) claimed(ip netip.Prefix) claimed { return claimed{w.owner(ip), len(w.claims[ip]) > 0} }

// held returns the prefixes that a peer has.
func (w *wants) held(key wgtypes.Key) []netip.Prefix {
	var out []netip.Prefix
	for ip := range prefixesOf(w.peer(key)) {
		if w.owner(ip) == key {
			out = append(out, ip)
		}
	}
	return out
}

// config is what the device has to hold, as sound has it of a view's Config.
func (w *wants) config(key wgtypes.Key, port uint16) peers.Config {
	c := peers.Config{PrivateKey: key, ListenPort: port}
	for key := range w.byKey {
		if p := w.peer(key); p != nil {
			peer := p.Peer
			peer.AllowedIPs = w.held(key)
			c.Peers = append(c.Peers, peer)
		}
	}
	c.Sort()
	return c
}

// holds reports whether an address is to be on the data plane itself.
func (w *wants) holds(a netip.Addr) bool {
	parts, ok := w.plan.Parts(a)
	if !ok || parts.Network != 0 && w.networks[parts.Network] == 0 {
		return false
	}
	return a == w.plan.HostAddr(parts.Network, w.self.Position()) || a == w.plan.Resolver(parts.Network)
}

// touchKey notes what a key is to the device before it changes. all: another
// claimant may become its peer.
func (w *wants) touchKey(key wgtypes.Key, all bool) {
	if w.touched == nil {
		return
	}
	w.touched.peer(key, w.peer(key))
	if !all {
		return
	}
	for _, id := range w.byKey[key] {
		for ip := range w.peers[id].prefixes {
			w.touchPrefix(ip)
		}
	}
}

func (w *wants) touchPrefix(ip netip.Prefix) {
	if w.touched != nil {
		w.touched.prefix(ip, func() claimed { return w.claimed(ip) })
	}
}

func prefixesOf(c *claimant) map[netip.Prefix]int {
	if c == nil {
		return nil
	}
	return c.prefixes
}

func count[K comparable](m map[K]int, k K, by int) {
	if m[k] += by; m[k] <= 0 {
		delete(m, k)
	}
}

func set[K, V comparable](m map[K]map[V]bool, k K, v V) {
	if m[k] == nil {
		m[k] = map[V]bool{}
	}
	m[k][v] = true
}

func unset[K, V comparable](m map[K]map[V]bool, k K, v V) {
	delete(m[k], v)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}
