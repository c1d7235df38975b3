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
	"math"
	"net/netip"
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
	Cordoned         bool // as that of a host
	// Unlisted: it has no name but <machine>.vm.<app>.internal., and its address has
	// that one.
	Unlisted bool
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

// Zone is an index over Data. It never changes; share it freely. With leads to the
// next one.
type Zone struct {
	*fixed
	places    map[string]Region // that are listed; never changed
	inhabited map[string]int    // how many hosts are in a region; never changed
	regions   *words            // that names of apps know
	hosts     table[*host]
	hostsAt   *edition    // of the edit that made hosts what they are
	orgs      table[*org] // by name
	// networks has the names of the orgs that claim a network, by its first eight
	// bytes; the lowest one has it.
	networks table[[]string]
	carriers table[string] // see carrier; the org's name
}

// fixed is what no Delta changes.
type fixed struct {
	prefix    netip.Prefix
	self      string
	strangers bool
}

// words are the names of regions. They are few.
type words struct{ has map[string]bool }

// host is a host as the zone keeps it.
type host struct {
	name, region string
	addr         netip.Addr
	cordoned     bool
	self         bool
	estimate     time.Duration // round trip from Self, see estimate
}

// NewZone indexes d, which must not be changed afterwards. What cannot be right is
// skipped, so that one bad record never hides the others: names that are no labels
// or that are reserved, an org outside the mesh or in network 0, and an address
// outside its org's network. Names that differ only in case are one name.
//
// Of two that claim the same thing one has it, and the other comes forward when that
// one goes. Of a name that is there twice in d the first one stays. An address is
// the resolver's first, then the host's own, a machine's, a client's and another
// host's, and among these that of the lowest name. A network is that of the org of
// the lowest name.
func NewZone(d Data) *Zone {
	e := &edit{made: new(edition), orgs: map[string]*org{}}
	e.zone = Zone{fixed: &fixed{d.Prefix, lower(d.Self), d.Strangers}, regions: &words{}}
	e.regions(firsts(d.Regions, func(r Region) (string, bool) { return lower(r.Name), usableRegion(lower(r.Name)) }), nil)
	e.hosts(firsts(d.Hosts, func(h Host) (string, bool) { return lower(h.Name), usableRegion(lower(h.Region)) }), nil)
	for _, o := range firsts(d.Orgs, func(o Org) (string, bool) { return o.Name, true }) {
		e.org(OrgDelta{
			Name: o.Name, Set: &o,
			Apps:     firsts(o.Apps, func(a App) (string, bool) { return lower(a.Name), true }),
			Machines: firsts(o.Machines, func(m Machine) (string, bool) { return lower(m.ID), usableApp(lower(m.App)) }),
			Clients:  firsts(o.Clients, func(c Client) (string, bool) { return lower(c.Name), c.Addr.Is6() }),
			Own:      ownNames(o.Own),
		})
	}
	return e.done()
}

// firsts returns those of list that can be, and of each name the first one.
func firsts[T any](list []T, key func(T) (name string, ok bool)) []T {
	seen := make(map[string]bool, len(list))
	out := make([]T, 0, len(list))
	for _, x := range list {
		if name, ok := key(x); ok && !seen[name] {
			seen[name] = true
			out = append(out, x)
		}
	}
	return out
}

func (r Region) at() Place {
	if r.Place == nil {
		return Place{Lat: math.MaxFloat64}
	}
	return *r.Place
}

func validNetwork(mesh, network netip.Prefix) bool {
	return mesh.IsValid() && network.IsValid() && network.Bits() == networkBits && network == network.Masked() &&
		mesh.Contains(network.Addr()) && network.Addr() != mesh.Masked().Addr() // network 0 is no org's
}

// orgOf returns the org that a query's source belongs to, or nil.
func (z *Zone) orgOf(source netip.Addr) *org {
	if !source.Is6() || source.Zone() != "" {
		return nil
	}
	a := source.As16()
	return z.orgWith(a[:networkBits/8])
}

// orgWith returns the org that has a network, by its first eight bytes, or nil.
func (z *Zone) orgWith(network []byte) *org {
	names, ok := z.networks.get(string(network))
	if !ok {
		return nil
	}
	o, _ := z.orgs.get(names[0])
	return o
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
