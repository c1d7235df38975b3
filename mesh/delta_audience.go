package mesh

import (
	"maps"
	"slices"
)

// Audience is whom a step may concern. The view of every other node is the same
// before and after, but for the revision.
type Audience struct {
	All        bool     // every node
	AllClients bool     // every client
	Orgs       []string // the hosts that carry one of these, before or after
	Clients    []string // the clients of these orgs
	Nodes      []Node   // and these; some may be in the above, too
}

// Audience works out whom the step may concern. It costs what changed, and what
// the hosts in question carry.
func (a *Advance) Audience() Audience {
	if a.resync || a.controllers || len(a.regions) > 0 {
		return Audience{All: true}
	}
	var out Audience
	orgs, clients := map[string]bool{}, map[string]bool{}
	for _, name := range a.orgOrder {
		o := a.orgs[name]
		orgs[name] = true
		if o.record {
			clients[name] = true
		}
		for _, host := range o.carry {
			out.Nodes = append(out.Nodes, Node{Kind: KindHost, Name: host})
		}
		for _, key := range o.clients {
			out.Nodes = append(out.Nodes, Node{Kind: KindClient, Org: name, Name: key[len(name)+1:]})
		}
	}
	beyond := map[string]bool{}
	a.grantAudience(beyond, clients, &out)
	for host := range beyond {
		out.Nodes = append(out.Nodes, Node{Kind: KindHost, Name: host})
	}
	for _, host := range a.hosts {
		out.Nodes = append(out.Nodes, Node{Kind: KindHost, Name: host})
		for _, list := range [][]string{a.carriedBefore[host], a.carriedAfter[host]} {
			for _, org := range list {
				orgs[org] = true
			}
		}
		if !a.hostRecordDiffers(host) {
			continue // the rest is about clients
		}
		for _, s := range []State{a.before, a.after} {
			for _, org := range s.gatewayOf(host) {
				clients[org] = true
			}
		}
	}
	out.AllClients = clients[AllOrgs]
	out.Orgs = slices.Sorted(maps.Keys(orgs))
	if out.AllClients {
		return out
	}
	for _, host := range a.hosts {
		if !a.hostRecordDiffers(host) {
			continue
		}
		for _, s := range []State{a.before, a.after} {
			for _, c := range s.ClientsAt(host) {
				if !clients[c.Org] {
					out.Nodes = append(out.Nodes, Node{Kind: KindClient, Org: c.Org, Name: c.Name})
				}
			}
		}
	}
	out.Clients = slices.Sorted(maps.Keys(clients))
	return out
}

// gatewayOf returns the orgs whose clients may choose the host, or AllOrgs.
func (s State) gatewayOf(host string) []string {
	if h, ok := s.Hosts.Get(host); ok && h.offersGateway() {
		return h.Orgs
	}
	return nil
}
