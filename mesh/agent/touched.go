package agent

import (
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/link"
)

// touched is what changes of a view have touched in wants: what each part was
// before. What it is after stands in wants, and the difference is what has to be
// done.
type touched struct {
	peers     map[wgtypes.Key]*peers.Peer // nil: there was none; without prefixes
	owners    map[netip.Prefix]claimed    // whose it was
	networks  map[uint64]bool             // whether it was carried
	sources   map[netip.Addr]bool         // whether its probes were answered
	targets   bool                        // hosts to probe came, went or moved
	machines  map[string]*mesh.Machine    // those the changes name, as they are now; nil: gone
	regranted bool                        // what grants let through may have changed
	boxes     []peers.Grant               // that before
	left      map[string]bool             // machines that were here
	noted     map[string]bool             // machines here of which something is news
}

// claimed is what a prefix is: the peer that has it, the zero key for nobody, and
// whether there is a route to it. The route is there, too, if none of those that claim
// the prefix can be a peer.
type claimed struct {
	by     wgtypes.Key
	routed bool
}

func newTouched() *touched {
	return &touched{
		peers: map[wgtypes.Key]*peers.Peer{}, owners: map[netip.Prefix]claimed{}, networks: map[uint64]bool{},
		sources: map[netip.Addr]bool{}, machines: map[string]*mesh.Machine{}, noted: map[string]bool{}, left: map[string]bool{},
	}
}

// The methods that note something are called with nil, too, while nobody asks.

func (t *touched) peer(key wgtypes.Key, c *claimant) {
	if _, noted := t.peers[key]; noted {
		return
	}
	t.peers[key] = nil
	if c != nil {
		p := c.Peer
		t.peers[key] = &p
	}
}

func (t *touched) prefix(ip netip.Prefix, was func() claimed) {
	if _, noted := t.owners[ip]; !noted {
		t.owners[ip] = was()
	}
}

func (t *touched) network(n uint64, carried bool) {
	if t != nil {
		note(t.networks, n, carried)
	}
}

func (t *touched) source(a netip.Addr, answered bool) {
	if t != nil {
		note(t.sources, a, answered)
	}
}

func (t *touched) probed(changed bool) {
	if t != nil {
		t.targets = t.targets || changed
	}
}

func (t *touched) told(key string, now *mesh.Machine, here bool) {
	if t != nil {
		t.machines[key] = now
		t.left[key] = t.left[key] || here
	}
}

func (t *touched) machine(key string) {
	if t != nil {
		t.noted[key] = true
	}
}

func note[K comparable](m map[K]bool, k K, was bool) {
	if _, noted := m[k]; !noted {
		m[k] = was
	}
}

// tunnels returns what the device has to change, in the order of peers.Diff. A peer
// that goes loses its prefixes; it is itself among retired, to be removed in a
// moment (see emptied).
func (w *wants) tunnels(t *touched) (changes []peers.Change, retired []wgtypes.Key) {
	var add, update, move, drop []peers.Change
	added := map[wgtypes.Key]bool{}
	for key, was := range t.peers {
		now := w.peer(key)
		switch {
		case was == nil && now == nil:
		case was == nil:
			p := now.Peer
			p.AllowedIPs, p.Retarget, added[key] = w.held(key), false, true
			add = append(add, peers.Change{Op: peers.AddPeer, Peer: p})
		case now == nil:
			retired = append(retired, key)
		default:
			if c := updated(*was, now.Peer); c.SetEndpoint || was.Keepalive != now.Keepalive {
				update = append(update, c)
			}
		}
	}
	plus, minus := map[wgtypes.Key][]netip.Prefix{}, map[wgtypes.Key][]netip.Prefix{}
	nobody := wgtypes.Key{}
	for ip, claimed := range t.owners {
		was := claimed.by
		switch now := w.owner(ip); {
		case now == was:
		case now == nobody:
			minus[was] = append(minus[was], ip)
		case !added[now]:
			plus[now] = append(plus[now], ip)
		}
	}
	for key, ips := range plus {
		move = append(move, peers.Change{Op: peers.Move, Peer: peers.Peer{Key: key, AllowedIPs: ips}})
	}
	for key, ips := range minus {
		drop = append(drop, peers.Change{Op: peers.Drop, Peer: peers.Peer{Key: key, AllowedIPs: ips}})
	}
	changes = slices.Concat(add, update, move, drop)
	peers.SortChanges(changes)
	slices.SortFunc(retired, peers.CompareKeys)
	return changes, retired
}

// updated is the change of a peer that stays: an endpoint that the view changed was
// given by somebody, whatever the peer has roamed to.
func updated(was, now peers.Peer) peers.Change {
	c := peers.Change{Op: peers.UpdatePeer, Peer: peers.Peer{Key: now.Key, Keepalive: now.Keepalive}}
	if now.Endpoint.IsValid() && now.Endpoint != was.Endpoint {
		c.SetEndpoint, c.Peer.Endpoint = true, now.Endpoint
	}
	return c
}

// links returns what has to change of addresses and routes, in the order of
// link.Diff.
func (w *wants) links(t *touched, on, addressesOn string, mtu func(netip.Prefix, wgtypes.Key) int) []link.Change {
	var out []link.Change
	var sources map[netip.Prefix]netip.Addr
	if len(w.granted) > 0 {
		sources = w.beyondView().Sources()
	}
	for ip, was := range t.owners {
		switch now := w.claimed(ip); {
		case !was.routed && now.routed:
			out = append(out, link.Change{Op: link.AddRoute, Link: on, Prefix: ip, MTU: mtu(ip, now.by), Source: sources[ip]})
		case was.routed && now.routed && mtu(ip, was.by) != mtu(ip, now.by):
			out = append(out, link.Change{Op: link.ChangeRoute, Link: on, Prefix: ip, MTU: mtu(ip, now.by), Source: sources[ip]})
		case was.routed && !now.routed:
			out = append(out, link.Change{Op: link.DropRoute, Link: on, Prefix: ip})
		}
	}
	for n, was := range t.networks {
		now := w.networks[n] > 0
		own, resolver := netip.PrefixFrom(w.plan.HostAddr(n, w.self.Position()), 128), netip.PrefixFrom(w.plan.Resolver(n), 128)
		switch {
		case now && !was:
			out = append(out, link.Change{Op: link.SetAddress, Link: addressesOn, Prefix: own},
				link.Change{Op: link.SetAddress, Link: addressesOn, Prefix: resolver, Deprecated: true})
		case was && !now:
			out = append(out, link.Change{Op: link.DropAddress, Link: addressesOn, Prefix: own},
				link.Change{Op: link.DropAddress, Link: addressesOn, Prefix: resolver})
		}
	}
	link.Sort(out)
	return out
}

// policy returns the networks that the firewall gets and loses.
func (w *wants) policy(t *touched) (plus, minus []peers.Network) {
	for n, was := range t.networks {
		p := peers.Network{Prefix: w.plan.Network(n), Host: w.plan.HostAddr(n, w.self.Position()), Resolver: w.plan.Resolver(n)}
		switch now := w.networks[n] > 0; {
		case now && !was:
			plus = append(plus, p)
		case was && !now:
			minus = append(minus, p)
		}
	}
	return plus, minus
}
