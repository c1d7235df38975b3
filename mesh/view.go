package mesh

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftmesh/weft/ipam"
)

// View is what one node may know, as of one revision. It goes over the wire as
// JSON; fields that a reader does not know are ignored. Lists are sorted by key.
type View struct {
	Revision Revision  `json:"revision"`
	Plan     ipam.Plan `json:"prefix"`
	// Format is the ViewFormat of the controllers that the view is from: of older ones
	// it lacks what is newer, and no delta brings that.
	Format int `json:"format,omitempty"`
	// Self is the node the view is for; of Host and Client one is set.
	Self   Node    `json:"self"`
	Host   *Host   `json:"host,omitempty"`
	Client *Client `json:"client,omitempty"`
	// Coordinate is the host's own, as the controllers have it; nil: none.
	Coordinate *Coordinate `json:"coordinate,omitempty"`

	Controllers []string `json:"controllers"` // base URLs
	Roots       []string `json:"roots"`       // PEM, the CA's certificates

	Regions  []Region     `json:"regions,omitempty"`
	Hosts    []ViewHost   `json:"hosts,omitempty"` // other hosts
	Orgs     []Org        `json:"orgs,omitempty"`  // carried (a client: its own)
	Apps     []App        `json:"apps,omitempty"`
	Machines []Machine    `json:"machines,omitempty"`
	Clients  []ViewClient `json:"clients,omitempty"`
	Records  []Record     `json:"records,omitempty"`
	Health   []Health     `json:"health,omitempty"` // of the machines that have one
	// Grants are those that name an endpoint at this node; Granted are the endpoints
	// beyond, of orgs that it does not carry.
	Grants  []Grant   `json:"grants,omitempty"`
	Granted []Granted `json:"granted,omitempty"`
}

// ViewFormat counts what was added to views. New in 1 are records, health and
// coordinates; in 2, grants.
const ViewFormat = 2

// ViewHost is a host as another node sees it.
type ViewHost struct {
	Name         string           `json:"name"`
	Number       uint32           `json:"number"`
	Region       string           `json:"region"`
	RegionNumber uint8            `json:"region_number"`
	Key          Key              `json:"key"`
	Endpoints    []netip.AddrPort `json:"endpoints,omitempty"`
	NAT          bool             `json:"nat,omitempty"`
	Cordoned     bool             `json:"cordoned,omitempty"`
	Present      bool             `json:"present,omitempty"` // a controller holds its stream
	Orgs         []string         `json:"orgs,omitempty"`    // carried by both; none: a grant leads there
	// Coordinate is where the host is among round trips; nil: not known. Clients are
	// not told.
	Coordinate *Coordinate `json:"coordinate,omitempty"`
}

// Position is where the host stands in addresses.
func (h ViewHost) Position() ipam.Host { return ipam.Host{Region: h.RegionNumber, Number: h.Number} }

// ViewClient is a client as a host sees it. Only its gateway knows its key.
type ViewClient struct {
	Org      string       `json:"org"`
	Name     string       `json:"name"`
	Endpoint netip.Prefix `json:"endpoint"`
	Home     string       `json:"home"`
	Gateway  string       `json:"gateway"`
	Key      *Key         `json:"key,omitempty"`
}

// Validate reports numbers in a received view that its plan has no room for: what
// is computed from such a view (Config, Addresses, Routes, Policy) would panic.
func (v View) Validate() error {
	if !v.Plan.IsValid() {
		return errors.New("the view has no mesh prefix")
	}
	for _, o := range v.Orgs {
		if o.Network == 0 || o.Network > v.Plan.MaxNetwork() {
			return fmt.Errorf("org %s: network %d is not one of mesh %s", o.Name, o.Network, v.Plan)
		}
	}
	number := func(host string, n uint32) error {
		if n == 0 || n > ipam.MaxHost {
			return fmt.Errorf("host %s: number %d is not within 1 to %d", host, n, ipam.MaxHost)
		}
		return nil
	}
	if v.Host != nil {
		if err := number(v.Host.Name, v.Host.Number); err != nil {
			return err
		}
	}
	for _, h := range v.Hosts {
		if err := number(h.Name, h.Number); err != nil {
			return err
		}
	}
	for _, g := range v.Granted {
		if p := g.Endpoint; p.Bits() != ipam.EndpointBits || p != p.Masked() || !v.Plan.Prefix().Contains(p.Addr()) {
			return fmt.Errorf("granted endpoint %s is not a /%d of mesh %s", p, ipam.EndpointBits, v.Plan)
		}
	}
	return nil
}

// Deployment is what a view holds beside the State: where the controllers are
// and whom to trust.
type Deployment struct {
	Controllers []string // base URLs of the controller that serves the view; a view has all controllers'
	Roots       []string // PEM
}

// View returns what node may know. ok is false if there is no such node.
//
// A host sees the orgs that it carries, with their apps, machines (and their
// health), clients and records, and the other hosts that carry one of them. A client sees its org and the
// hosts that may be its gateway. Both see the grants that name an endpoint at them,
// and of the org on the other side the endpoints that these name; a host also the
// hosts where those are.
func (s State) View(node Node, d Deployment) (v View, ok bool) {
	v = View{Revision: s.Revision, Plan: s.Mesh.Plan, Format: ViewFormat, Self: node, Controllers: s.controllers(d), Roots: d.Roots}
	for _, r := range s.Regions.All() {
		v.Regions = append(v.Regions, r)
	}
	switch node.Kind {
	case KindHost:
		h, ok := s.Hosts.Get(node.Name)
		if !ok {
			return View{}, false
		}
		v.Host, v.Coordinate = &h, s.coordinateOf(node.Name)
		s.viewHost(&v, h)
		return v, true
	case KindClient:
		c, ok := s.Clients.Get(node.Org + "/" + node.Name)
		org, there := s.Orgs.Get(node.Org)
		if !ok || !there || org.Tombstone {
			return View{}, false
		}
		v.Client = &c
		v.Orgs = []Org{org}
		for _, h := range s.Hosts.All() {
			if h.seenByClient(c) {
				v.Hosts = append(v.Hosts, s.viewOf(h, []string{c.Org}))
			}
		}
		s.viewGrants(&v, s.seenByClient(c))
		return v, true
	}
	return View{}, false
}

// HasView reports whether View has something for node.
func (s State) HasView(node Node) bool {
	switch node.Kind {
	case KindHost:
		return s.Hosts.Has(node.Name)
	case KindClient:
		_, ok := s.clientNode(node)
		return ok
	}
	return false
}

func (s State) viewHost(v *View, self Host) {
	carried := s.OrgsOf(self.Name)
	shared := map[string][]string{} // host: orgs
	for _, name := range carried {
		org, _ := s.Orgs.Get(name)
		v.Orgs = append(v.Orgs, org)
		for _, h := range s.HostsOf(name) {
			if h != self.Name {
				shared[h] = append(shared[h], name)
			}
		}
	}
	by := s.seenByHost(self.Name)
	for h := range by.beyond() {
		if _, ok := shared[h]; !ok && h != self.Name {
			shared[h] = nil
		}
	}
	s.viewGrants(v, by)
	for _, name := range slices.Sorted(maps.Keys(shared)) {
		if h, ok := s.Hosts.Get(name); ok {
			v.Hosts = append(v.Hosts, s.viewOfPeer(h, shared[name]))
		}
	}
	// What is keyed by "<org>/..." comes in the order of such keys, in which "a-b/"
	// stands before "a/".
	slices.SortFunc(carried, func(a, b string) int { return strings.Compare(a+"/", b+"/") })
	for _, name := range carried {
		s.viewOrg(v, self, name)
	}
}

func (s State) viewOrg(v *View, self Host, name string) {
	for _, a := range s.Apps.Prefix(name + "/") {
		v.Apps = append(v.Apps, a)
	}
	for _, m := range s.Machines.Prefix(name + "/") {
		v.Machines = append(v.Machines, m)
	}
	for _, c := range s.Clients.Prefix(name + "/") {
		v.Clients = append(v.Clients, c.seenBy(self.Name))
	}
	for _, r := range s.Records.Prefix(name + "/") {
		v.Records = append(v.Records, r)
	}
	for _, h := range s.Health.Prefix(name + "/") {
		v.Health = append(v.Health, h)
	}
}

// seenBy is a client as a host sees it. Only the gateway gets the key.
func (c Client) seenBy(host string) ViewClient {
	v := ViewClient{Org: c.Org, Name: c.Name, Endpoint: c.Endpoint, Home: c.Home, Gateway: c.Gateway}
	if host != "" && c.Gateway == host {
		v.Key = &c.Key
	}
	return v
}

// offersGateway reports whether clients can reach the host without having heard of
// it otherwise.
func (h Host) offersGateway() bool { return len(h.Endpoints) > 0 && !h.NAT }

// seenByClient reports whether the host is in a client's view: it is its gateway,
// or may be.
func (h Host) seenByClient(c Client) bool {
	return h.Name == c.Gateway || h.MayCarry(c.Org) && h.offersGateway()
}

// controllers are the URLs of all controllers, in order.
func (s State) controllers(d Deployment) []string {
	out := slices.Clone(d.Controllers)
	for _, c := range s.Controllers.All() {
		out = append(out, c.URLs...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (s State) viewOf(h Host, orgs []string) ViewHost {
	return ViewHost{
		Name: h.Name, Number: h.Number, Region: h.Region, RegionNumber: h.RegionNumber, Key: h.Key,
		Endpoints: h.Endpoints, NAT: h.NAT, Cordoned: h.Cordoned, Present: s.Presence.Has(h.Name), Orgs: orgs,
	}
}

// viewOfPeer is a host as another one sees it.
func (s State) viewOfPeer(h Host, orgs []string) ViewHost {
	v := s.viewOf(h, orgs)
	v.Coordinate = s.coordinateOf(h.Name)
	return v
}

func (s State) coordinateOf(host string) *Coordinate {
	if c, ok := s.Coordinates.Get(host); ok {
		return &c
	}
	return nil
}
