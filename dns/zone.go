// Package dns answers the names of a mesh: apps, machines and clients of an org,
// nearest first, to the members of that org and to nobody else.
//
// Three layers: a Zone is what there is (immutable, made from Data), Facts is what
// was measured, and Answer, a pure function of both, decides. A Server only reads,
// packs and writes; names of the mesh are answered from memory and never wait for
// anything. A Forwarder passes the other names on.
//
// Out of scope: where the sockets come from (the caller binds them, in the
// namespace where they belong), measuring (Facts are handed in), validating source
// addresses (the firewall has done so), and DNSSEC.
package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Data is all that a host answers from: the orgs that it carries.
type Data struct {
	Prefix   netip.Prefix // the mesh's, /16 to /48
	Resolver netip.Addr   // the machines' resolver, <mesh>::3
	Self     string       // name of the host that answers
	Regions  []Region
	Hosts    []Host // Self included
	Orgs     []Org
	// Strangers turns the same-app rule off: nobody is taken for a machine of the app
	// that he asks for. It is for fault injection.
	Strangers bool
}

// Region is a place. Place is nil where it is not known.
type Region struct {
	Name  string
	Place *Place
}

// Place is a point on Earth in degrees; north and east are positive.
type Place struct{ Lat, Lon float64 }

func (p Place) valid() bool {
	return p.Lat >= -90 && p.Lat <= 90 && p.Lon >= -180 && p.Lon <= 180 // no NaN either
}

// Host is an edge server. Addr is its own address, (0, host)::1.
type Host struct {
	Name, Region string
	Addr         netip.Addr
	Cordoned     bool // its machines are not to be used; only `all.` names them
}

// Org is a tenant: one network and what is in it.
type Org struct {
	Name     string
	Prefix   netip.Prefix // its network, a /64 of the mesh
	Resolver netip.Addr   // <network>::3
	Host     netip.Addr   // Self's address in the network, (network, self)::1
	Apps     []App
	Machines []Machine
	Clients  []Client
	Own      []OwnRecord
}

// App is an app's settings. A machine's app need not be listed: it exists through
// its machines, with the defaults.
type App struct {
	Name   string
	Answer string // what its bare name answers: "near" (also ""), "all" or a number
	TTL    int    // seconds; 0 or less: 5; at most 3600
}

// Machine is one endpoint of an app.
type Machine struct {
	ID, App, Group   string
	Meta             map[string]string
	Host             string // name of the host it is on
	Addr             netip.Addr
	Started, Healthy bool
}

// Client is a person's device.
type Client struct {
	Name string
	Addr netip.Addr
}

// TTLs in seconds. A lease, an id or a mistake must not become one.
const (
	defaultTTL  = 5
	maxTTL      = 3600
	negativeTTL = 1
)

// Zone is an index over Data. It never changes; share it freely.
type Zone struct {
	strangers bool
	prefix    netip.Prefix
	regions   map[string]bool
	orgs      map[netip.Prefix]*org // by network, a /64
}

type org struct {
	prefix   netip.Prefix
	resolver netip.Addr
	apps     map[string]*app
	appNames []string // sorted
	machines map[string]*machine
	list     []*machine // the same, sorted by id
	byAddr   map[netip.Addr]*machine
	clients  map[string]netip.Addr
	hosts    map[string]netip.Addr // their addresses in this network
	names    []reverse             // sorted by address, one each
	own      map[string]*own       // by name under internal.
}

type app struct {
	name     string
	mode     mode
	limit    int // with modeCount
	ttl      uint32
	machines []*machine // sorted by id
}

// mode is what an app's bare name answers to those outside it.
type mode uint8

const (
	modeNear  mode = iota // the near set
	modeAll               // everything
	modeCount             // the nearest few
)

type machine struct {
	id, app, group string
	meta           map[string]string // keys and values in lower case
	host           *host
	addr           netip.Addr
	up             bool // started and healthy
	started        bool
}

type host struct {
	name, region string
	addr         netip.Addr
	cordoned     bool
	self         bool
	estimate     time.Duration // round trip from Self, see estimate
}

// reverse is one address with the name that PTR gives for it.
type reverse struct {
	addr netip.Addr
	name string
}

// NewZone indexes d, which must not be changed afterwards. What cannot be right is
// skipped, so that one bad record never hides the others: names that are no labels
// or that are reserved, a second record of a name or an address (the first one
// stays), an org outside the mesh or in network 0, and an address outside its
// org's network.
func NewZone(d Data) *Zone {
	z := &Zone{strangers: d.Strangers, prefix: d.Prefix, regions: map[string]bool{}, orgs: map[netip.Prefix]*org{}}
	places := map[string]*Place{}
	for _, r := range d.Regions {
		if name := lower(r.Name); usableRegion(name) && !z.regions[name] {
			z.regions[name] = true
			if r.Place != nil && r.Place.valid() {
				places[name] = r.Place
			}
		}
	}
	hosts := z.indexHosts(d, places)
	for _, o := range d.Orgs {
		if validNetwork(d.Prefix, o.Prefix) && z.orgs[o.Prefix] == nil {
			z.orgs[o.Prefix] = newOrg(o, hosts, lower(d.Self))
		}
	}
	return z
}

func validNetwork(mesh, network netip.Prefix) bool {
	return mesh.IsValid() && network.IsValid() && network.Bits() == networkBits && network == network.Masked() &&
		mesh.Contains(network.Addr()) && network.Addr() != mesh.Masked().Addr() // network 0 is no org's
}

func (z *Zone) indexHosts(d Data, places map[string]*Place) map[string]*host {
	hosts := map[string]*host{}
	self := lower(d.Self)
	for _, h := range d.Hosts {
		name, region := lower(h.Name), lower(h.Region)
		if !validLabel(name) || !usableRegion(region) || hosts[name] != nil {
			continue
		}
		z.regions[region] = true
		hosts[name] = &host{name: name, region: region, addr: h.Addr, cordoned: h.Cordoned, self: name == self}
	}
	from := hosts[self]
	for _, h := range hosts {
		h.estimate = unknownDistance
		if from != nil {
			h.estimate = estimate(from.region, h.region, places[from.region], places[h.region])
		}
	}
	return hosts
}

func newOrg(d Org, hosts map[string]*host, self string) *org {
	o := &org{
		prefix: d.Prefix, resolver: d.Resolver,
		apps: map[string]*app{}, machines: map[string]*machine{}, byAddr: map[netip.Addr]*machine{},
		clients: map[string]netip.Addr{}, hosts: map[string]netip.Addr{},
	}
	for _, a := range d.Apps {
		if name := lower(a.Name); usableApp(name) && o.apps[name] == nil {
			o.apps[name] = newApp(name, a)
		}
	}
	taken := map[netip.Addr]bool{}
	claim := func(addr netip.Addr, name string) bool {
		if !d.Prefix.Contains(addr) || taken[addr] {
			return false
		}
		taken[addr] = true
		o.names = append(o.names, reverse{addr, name})
		return true
	}
	if d.Resolver.IsValid() {
		claim(d.Resolver, "_api.internal.")
	}
	if h := hosts[self]; h != nil && d.Host.IsValid() && claim(d.Host, self+".host.internal.") {
		o.hosts[self] = d.Host
	}
	for _, m := range d.Machines {
		o.addMachine(m, hosts, claim)
	}
	for _, c := range d.Clients {
		name := lower(c.Name)
		if _, there := o.clients[name]; validLabel(name) && !there && claim(c.Addr, name+"._peer.internal.") {
			o.clients[name] = c.Addr
		}
	}
	o.sort()
	o.addHosts(hosts, claim)
	o.sortNames()
	o.addRecords(d.Own)
	return o
}

func newApp(name string, d App) *app {
	a := &app{name: name, ttl: defaultTTL}
	if d.TTL > 0 {
		a.ttl = uint32(min(d.TTL, maxTTL))
	}
	if n, err := strconv.Atoi(d.Answer); err == nil && n > 0 {
		a.mode, a.limit = modeCount, n
	} else if d.Answer == "all" {
		a.mode = modeAll
	}
	return a
}

func (o *org) addMachine(d Machine, hosts map[string]*host, claim func(netip.Addr, string) bool) {
	id, name := lower(d.ID), lower(d.App)
	if !validLabel(id) || !usableApp(name) || o.machines[id] != nil || !claim(d.Addr, id+".vm."+name+".internal.") {
		return
	}
	h := hosts[lower(d.Host)]
	if h == nil { // between two views: it can be used, but nothing is known of where it is
		h = &host{name: lower(d.Host), region: "unknown", estimate: unknownDistance}
	}
	m := &machine{id: id, app: name, group: lower(d.Group), host: h, addr: d.Addr, up: d.Started && d.Healthy, started: d.Started}
	if len(d.Meta) > 0 {
		m.meta = make(map[string]string, len(d.Meta))
		for k, v := range d.Meta {
			m.meta[lower(k)] = lower(v)
		}
	}
	if o.apps[name] == nil {
		o.apps[name] = newApp(name, App{})
	}
	o.machines[id], o.byAddr[m.addr] = m, m
	o.list = append(o.list, m)
	o.apps[name].machines = append(o.apps[name].machines, m)
}

// addHosts gives the hosts with machines of the org their name and address in its
// network: the mesh's part of (0, host)::1 replaced by the network. Other hosts are
// none of the org's business.
func (o *org) addHosts(hosts map[string]*host, claim func(netip.Addr, string) bool) {
	for _, m := range o.list {
		h := hosts[m.host.name]
		if h == nil || !h.addr.Is6() {
			continue
		}
		a, n := h.addr.As16(), o.prefix.Addr().As16()
		copy(a[:8], n[:8])
		addr := netip.AddrFrom16(a)
		if _, there := o.hosts[h.name]; !there && claim(addr, h.name+".host.internal.") {
			o.hosts[h.name] = addr
		}
	}
	for name := range o.hosts { // the host's own address has a name, too, for who sees it in a trace
		if h := hosts[name]; h.addr.IsValid() && !o.prefix.Contains(h.addr) {
			o.names = append(o.names, reverse{h.addr, name + ".host.internal."})
		}
	}
}

func (o *org) sort() {
	for name, a := range o.apps {
		o.appNames = append(o.appNames, name)
		slices.SortFunc(a.machines, func(x, y *machine) int { return cmp.Compare(x.id, y.id) })
	}
	slices.Sort(o.appNames)
	slices.SortFunc(o.list, func(x, y *machine) int { return cmp.Compare(x.id, y.id) })
}

func (o *org) sortNames() {
	slices.SortFunc(o.names, func(x, y reverse) int {
		if c := x.addr.Compare(y.addr); c != 0 {
			return c
		}
		return strings.Compare(x.name, y.name)
	})
	o.names = slices.CompactFunc(o.names, func(x, y reverse) bool { return x.addr == y.addr })
}

// orgOf returns the org that a query's source belongs to, or nil.
func (z *Zone) orgOf(source netip.Addr) *org {
	if !source.Is6() || source.Zone() != "" {
		return nil
	}
	network, err := source.Prefix(networkBits)
	if err != nil {
		return nil
	}
	return z.orgs[network]
}

// nameAt returns the name of an address.
func (o *org) nameAt(addr netip.Addr) (string, bool) {
	i, ok := o.find(addr)
	if !ok {
		return "", false
	}
	return o.names[i].name, true
}

func (o *org) find(addr netip.Addr) (int, bool) {
	return slices.BinarySearchFunc(o.names, addr, func(r reverse, a netip.Addr) int { return r.addr.Compare(a) })
}

// anyIn reports whether an address that the org may know lies in p.
func (o *org) anyIn(p netip.Prefix) bool {
	i, _ := o.find(p.Masked().Addr())
	return i < len(o.names) && p.Contains(o.names[i].addr)
}

// networkBits is the length of an org's network, and so how a source tells its org.
const networkBits = 64

// lower maps ASCII letters to lower case, the only folding that the DNS knows
// (RFC 4343).
func lower(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for j := i; j < len(b); j++ {
				if 'A' <= b[j] && b[j] <= 'Z' {
					b[j] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}
