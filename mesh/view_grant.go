package mesh

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// Granted is an endpoint of an org that the node does not carry, as a grant has it
// know: where it is, and nothing else.
type Granted struct {
	Endpoint netip.Prefix `json:"endpoint"` // its /112
	Org      string       `json:"org"`
	Host     string       `json:"host,omitempty"` // where it is; clients are not told
	Grants   []string     `json:"grants"`         // IDs of the view's grants that name it, in order
}

// sight decides what one node is told because of grants.
type sight struct {
	state  State
	host   string  // the node, if it is a host
	client *Client // or a client
	// known has the parties that were asked for, by whether they stand at the node. A
	// sight is for one goroutine.
	known map[Party]bool
	leads []lead // see reaches
	asked bool
}

// lead is a grant that names something at the node, and its other side.
type lead struct {
	grant Grant
	to    Party
}

func (s State) seenByHost(name string) *sight {
	return &sight{state: s, host: name, known: map[Party]bool{}}
}

func (s State) seenByClient(c Client) *sight {
	return &sight{state: s, client: &c, known: map[Party]bool{}}
}

// stands reports whether an endpoint of p is at the node, or is the node.
func (x *sight) stands(p Party) bool {
	at, known := x.known[p]
	if !known {
		if x.client != nil {
			at = p.namesClient(x.client.Org, x.client.Name) && x.state.alive(p.Org)
		} else {
			at = x.state.standsAt(x.host, p)
		}
		x.known[p] = at
	}
	return at
}

// carries reports whether the node knows all of an org.
func (x *sight) carries(org string) bool {
	if x.client != nil {
		return org == x.client.Org
	}
	return x.state.carriesOrg(x.host, org)
}

func (x *sight) orgs() []string {
	if x.client != nil {
		return []string{x.client.Org}
	}
	return x.state.OrgsOf(x.host)
}

// grant looks up a grant as the node sees it.
func (x *sight) grant(id string) (Grant, bool) {
	g, ok := x.state.Grants.Get(id)
	return g, ok && x.state.inForce(g) && (x.stands(g.From) || x.stands(g.To))
}

// granted looks up an endpoint as the node sees it because of grants.
func (x *sight) granted(endpoint netip.Prefix) (Granted, bool) {
	org, host, named, ok := x.state.whoIs(endpoint)
	if !ok || host == "" || !x.state.carriesOrg(host, org) || x.carries(org) {
		return Granted{}, false
	}
	out := Granted{Endpoint: endpoint, Org: org, Host: host}
	for id, g := range x.state.grantsNaming(org) {
		if side, other := g.side(org); named(side) && x.state.alive(other.Org) && x.stands(other) {
			out.Grants = append(out.Grants, id)
		}
	}
	if x.client != nil {
		out.Host = ""
	}
	return out, len(out.Grants) > 0
}

// reaches returns the grants in force that lead from the node, or to it, each with
// the side beyond; one between two orgs that are both at the node comes twice.
func (x *sight) reaches() []lead {
	if x.asked || x.state.Grants.Len() == 0 {
		return x.leads
	}
	x.asked = true
	for _, org := range x.orgs() {
		for _, g := range x.state.grantsNaming(org) {
			if side, other := g.side(org); x.stands(side) && x.state.alive(other.Org) {
				x.leads = append(x.leads, lead{g, other})
			}
		}
	}
	return x.leads
}

// beyond iterates over the hosts where endpoints are, or are about to be, that grants
// let the node know of. It may yield one several times.
func (x *sight) beyond() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, l := range x.reaches() {
			for h := range x.state.hostsAt(l.to) {
				if !yield(h) {
					return
				}
			}
		}
	}
}

// viewGrants adds to a view what grants let its node know, but for the hosts.
func (s State) viewGrants(v *View, x *sight) {
	seen := map[netip.Prefix]bool{}
	for _, l := range x.reaches() {
		v.Grants = append(v.Grants, l.grant)
		if x.carries(l.to.Org) {
			continue
		}
		for endpoint := range s.endpointsOf(l.to) {
			if seen[endpoint] {
				continue
			}
			seen[endpoint] = true
			if e, ok := x.granted(endpoint); ok {
				v.Granted = append(v.Granted, e)
			}
		}
	}
	slices.SortFunc(v.Grants, func(a, b Grant) int { return strings.Compare(a.ID, b.ID) })
	v.Grants = slices.CompactFunc(v.Grants, func(a, b Grant) bool { return a.ID == b.ID })
	sortByKey(v.Granted, Granted.key)
}

// sortByKey asks for each key once: an endpoint's is made anew each time.
func sortByKey[T any](list []T, key func(T) string) {
	type keyed struct {
		key string
		at  T
	}
	all := make([]keyed, len(list))
	for i, x := range list {
		all[i] = keyed{key(x), x}
	}
	slices.SortFunc(all, func(a, b keyed) int { return strings.Compare(a.key, b.key) })
	for i, x := range all {
		list[i] = x.at
	}
}
