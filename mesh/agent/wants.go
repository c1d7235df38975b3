package agent

import (
	"net/netip"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers"
)

// wants is what a view asks of a host's data plane, in a form that follows the view
// change by change: a change costs what changed, whatever the size of the view. It
// leads to the same tunnels, routes, addresses and networks as the view itself; a
// property holds the two together.
//
// A claimant is what may be a peer: a host, or a client whose gateway this is. Of
// two with one key the first is the peer, and a prefix that two of them claim is the
// one's with the lower key, as in sound.
type wants struct {
	plan ipam.Plan
	self mesh.Host
	own  wgtypes.Key // our public key: never a peer's

	hosts    map[string]mesh.ViewHost
	orgs     map[string]mesh.Org
	clients  map[string]mesh.ViewClient
	here     map[string]mesh.Machine    // on this host, or about to come
	health   map[string]mesh.Health     // of those, as the view has it
	numbers  map[string]uint32          // of every host since the start, those that went too
	carriers map[string]map[string]bool // org: hosts that carry it
	away     map[string]away            // by machines/<key> or clients/<key>
	awayAt   map[string]map[string]bool // host: keys of away
	networks map[uint64]int             // carried, by how many orgs: one
	sources  map[netip.Addr]int         // whose probes are answered
	peers    map[string]*claimant       // by hosts/<name> or clients/<key>
	byKey    map[wgtypes.Key][]string   // claimants, the first one is the peer
	claims   map[netip.Prefix][]string  // claimants
	grants   map[string]mesh.Grant      // by ID
	granted  []mesh.Granted             // since it was made
	spots    map[string]mesh.Machine    // every machine, as far as grants need it
	apps     map[string]map[string]bool // <org>/<app>: machines
	touched  *touched                   // what follow has changed so far; nil: nobody asks
}

// claimant is what may be a peer.
type claimant struct {
	peers.Peer                      // AllowedIPs: what it holds whatever is away from home
	prefixes   map[netip.Prefix]int // all, and how often each is claimed
}

// away is an endpoint that is at a host other than its home, or at one that is not
// known; or one beyond that a grant leads to.
type away struct {
	endpoint netip.Prefix
	host     string
}

const (
	hostKind    = "hosts/"
	clientKind  = "clients/"
	machineKind = "machines/"
)

// wantsOf returns what a host's view asks for.
func wantsOf(v *mesh.View, own wgtypes.Key) *wants {
	w := &wants{
		plan: v.Plan, self: *v.Host, own: own,
		hosts: map[string]mesh.ViewHost{}, orgs: map[string]mesh.Org{}, clients: map[string]mesh.ViewClient{},
		here: map[string]mesh.Machine{}, health: map[string]mesh.Health{}, numbers: map[string]uint32{v.Host.Name: v.Host.Number},
		carriers: map[string]map[string]bool{}, away: map[string]away{}, awayAt: map[string]map[string]bool{},
		networks: map[uint64]int{}, sources: map[netip.Addr]int{}, peers: map[string]*claimant{},
		byKey: map[wgtypes.Key][]string{}, claims: map[netip.Prefix][]string{},
		grants: map[string]mesh.Grant{}, spots: make(map[string]mesh.Machine, len(v.Machines)), apps: map[string]map[string]bool{},
	}
	w.apply(mesh.Delta{Orgs: v.Orgs, Hosts: v.Hosts, Clients: v.Clients, Machines: v.Machines, Health: v.Health, Grants: v.Grants, Granted: v.Granted})
	return w
}

// follow takes a change of the view and returns what it touches. It is false, and
// what w says is worth nothing any more, if w has to be made anew: the host itself
// has another place, or another host has a new number.
func (w *wants) follow(list []mesh.Delta) (t *touched, ok bool) {
	w.touched = newTouched()
	defer func() { w.touched = nil }()
	for _, d := range list {
		if !w.takes(d) {
			return nil, false
		}
		w.apply(d)
	}
	return w.touched, true
}

func (w *wants) takes(d mesh.Delta) bool {
	if h := d.Host; h != nil && (h.Name != w.self.Name || h.Position() != w.self.Position() || h.NAT != w.self.NAT) {
		return false
	}
	if w.beyond(d) {
		return false
	}
	for _, h := range d.Hosts {
		if n, known := w.numbers[h.Name]; known && n != h.Number {
			return false
		}
	}
	return true
}

// apply takes first what went, as View.Apply does.
func (w *wants) apply(d mesh.Delta) {
	for _, r := range d.Removed {
		w.remove(r)
	}
	if d.Host != nil {
		w.self = *d.Host
	}
	for _, o := range d.Orgs {
		w.org(o.Name, &o)
	}
	for _, h := range d.Hosts {
		w.host(h.Name, &h)
	}
	for _, c := range d.Clients {
		w.client(clientKey(c), &c)
	}
	for _, m := range d.Machines {
		w.machine(machineKey(m), &m)
	}
	for _, g := range d.Grants {
		w.grant(g.ID, &g)
	}
	for _, g := range d.Granted {
		w.grantedTo(g)
	}
	for _, h := range d.Health {
		if key := healthKey(h); w.isHere(key) {
			w.health[key] = h
			w.touched.machine(key)
		}
	}
}

func (w *wants) isHere(key string) bool { _, ok := w.here[key]; return ok }

func (w *wants) remove(entry string) {
	kind, key, _ := strings.Cut(entry, "/")
	switch kind {
	case "orgs":
		w.org(key, nil)
	case "hosts":
		w.host(key, nil)
	case "clients":
		w.client(key, nil)
	case "machines":
		w.machine(key, nil)
	case "grants":
		w.grant(key, nil)
	case "health":
		if _, known := w.health[key]; known {
			delete(w.health, key)
			w.touched.machine(key)
		}
	}
}

// org takes an org as it is now; nil: it is not carried any more.
func (w *wants) org(name string, now *mesh.Org) {
	was, known := w.orgs[name]
	if known && now != nil && was.Network == now.Network {
		w.orgs[name] = *now
		return
	}
	w.touchGrants()
	if known {
		w.network(was.Network, -1)
		delete(w.orgs, name)
	}
	if now != nil {
		w.network(now.Network, 1)
		w.orgs[name] = *now
	}
	for h := range w.carriers[name] {
		w.base(h)
	}
}

func (w *wants) network(n uint64, by int) {
	w.touched.network(n, w.networks[n] > 0)
	count(w.networks, n, by)
}

// host takes a host as it is now; nil: it went.
func (w *wants) host(name string, now *mesh.ViewHost) {
	was, known := w.hosts[name]
	if known {
		for _, org := range was.Orgs {
			unset(w.carriers, org, name)
		}
		w.source(w.plan.HostAddr(0, was.Position()), -1)
	}
	if known && now == nil {
		w.touched.probed(true)
		delete(w.hosts, name)
		w.claimant(hostKind+name, nil)
		return
	}
	if now == nil {
		return
	}
	w.touched.probed(!known || was.Region != now.Region || was.Position() != now.Position())
	w.hosts[name], w.numbers[name] = *now, now.Number
	for _, org := range now.Orgs {
		set(w.carriers, org, name)
	}
	w.source(w.plan.HostAddr(0, now.Position()), 1)
	w.base(name)
	if !known {
		for key := range w.awayAt[name] {
			w.point(key, 1)
		}
	}
}

// base makes a host what it is to the device, whatever is there away from home.
func (w *wants) base(name string) {
	h := w.hosts[name]
	alone := mesh.View{Plan: w.plan, Host: &w.self, Hosts: []mesh.ViewHost{h}}
	for _, org := range h.Orgs {
		if o, carried := w.orgs[org]; carried {
			alone.Orgs = append(alone.Orgs, o)
		}
	}
	w.claimant(hostKind+name, &alone.Config(wgtypes.Key{}, 0).Peers[0])
}

// client takes a client as it is now; nil: it went.
func (w *wants) client(key string, now *mesh.ViewClient) {
	if org, name, _ := strings.Cut(key, "/"); len(w.grants) > 0 && w.namesClient(org, name) {
		w.touchGrants()
	}
	if was, known := w.clients[key]; known {
		w.source(ipam.ProbeAddr(was.Endpoint), -1)
		delete(w.clients, key)
	}
	id := clientKind + key
	if now == nil {
		w.claimant(id, nil)
		w.goes(id)
		return
	}
	w.clients[key] = *now
	w.source(ipam.ProbeAddr(now.Endpoint), 1)
	alone := mesh.View{Plan: w.plan, Host: &w.self, Clients: []mesh.ViewClient{*now}}
	if c := alone.Config(wgtypes.Key{}, 0); len(c.Peers) > 0 {
		w.goes(id)
		w.claimant(id, &c.Peers[0])
		return
	}
	w.claimant(id, nil)
	w.stands(id, now.Endpoint, now.Gateway)
}

// machine takes a machine as it is now; nil: it went.
func (w *wants) machine(key string, now *mesh.Machine) {
	id := machineKind + key
	w.touched.told(key, now, w.isHere(key))
	w.spotted(key, now)
	if now == nil {
		delete(w.here, key)
		delete(w.health, key)
		w.goes(id)
		return
	}
	if now.Host == w.self.Name || now.Next == w.self.Name {
		w.here[key] = *now
	} else {
		delete(w.here, key)
		delete(w.health, key)
	}
	w.stands(id, now.Endpoint, now.Host)
}

// stands notes where an endpoint is.
func (w *wants) stands(id string, endpoint netip.Prefix, host string) {
	at := away{endpoint, host}
	if w.away[id] == at {
		return
	}
	w.goes(id)
	parts, _ := w.plan.Parts(endpoint.Addr())
	if n, known := w.numbers[host]; host == w.self.Name || known && n == parts.Host.Number {
		return
	}
	w.stood(id, at)
}

func (w *wants) stood(id string, at away) {
	w.away[id] = at
	set(w.awayAt, at.host, id)
	w.point(id, 1)
}

// goes forgets where an endpoint was.
func (w *wants) goes(id string) {
	at, known := w.away[id]
	if !known {
		return
	}
	w.point(id, -1)
	unset(w.awayAt, at.host, id)
	delete(w.away, id)
}

// point gives an endpoint that is away from home to the host where it is, or takes
// it from there.
func (w *wants) point(id string, by int) {
	at := w.away[id]
	parts, _ := w.plan.Parts(at.endpoint.Addr())
	h, known := w.hosts[at.host]
	beyond := strings.HasPrefix(id, grantedKind)
	if known && beyond {
		// What that host itself has to say about a packet to the endpoint.
		w.claim(hostKind+at.host, netip.PrefixFrom(w.plan.HostAddr(parts.Network, h.Position()), 128), by)
	}
	if known && (beyond || h.Number != parts.Host.Number) {
		w.claim(hostKind+at.host, at.endpoint, by)
	}
}

func (w *wants) source(a netip.Addr, by int) {
	w.touched.source(a, w.sources[a] > 0)
	count(w.sources, a, by)
}
