package mesh

import (
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftmesh/weft/peers"
)

func (s *State) indexGrant(key string, by int) {
	if g, ok := s.Grants.Get(key); ok {
		for _, org := range []string{g.From.Org, g.To.Org} {
			s.grantsOf = entry(s.grantsOf, org+"/"+key, key, by)
			s.counts = tally(s.counts, "grants/"+org, by)
		}
	}
}

// stand counts an endpoint of an app, or with app "" a client, at a host.
func (s *State) stand(org, app, host string, by int) {
	if host == "" {
		return
	}
	s.stands = tally(s.stands, org+"//"+host, by)
	if app != "" {
		s.stands = tally(s.stands, org+"/"+app+"/"+host, by)
	}
}

// grantsNaming iterates over the grants that name org, in the order of their IDs.
func (s State) grantsNaming(org string) iter.Seq2[string, Grant] {
	return func(yield func(string, Grant) bool) {
		for _, id := range s.grantsOf.Prefix(org + "/") {
			if g, ok := s.Grants.Get(id); ok && !yield(id, g) {
				return
			}
		}
	}
}

// inForce reports whether both orgs of a grant are there.
func (s State) inForce(g Grant) bool { return s.alive(g.From.Org) && s.alive(g.To.Org) }

// standsAt reports whether host carries an endpoint of p, or is about to: a machine
// that is there or next there, a client whose gateway it is.
func (s State) standsAt(host string, p Party) bool {
	if !s.carriesOrg(host, p.Org) {
		return false
	}
	switch {
	case p.Machine != "":
		m, ok := s.Machines.Get(p.Org + "/" + p.Machine)
		return ok && (m.Host == host || m.Next == host)
	case p.Client != "":
		c, ok := s.Clients.Get(p.Org + "/" + p.Client)
		return ok && c.Gateway == host
	}
	return s.stands.Has(p.Org + "/" + p.App + "/" + host)
}

// hostsAt iterates over the hosts of which standsAt is true.
func (s State) hostsAt(p Party) iter.Seq[string] {
	return func(yield func(string) bool) {
		if p.Machine != "" || p.Client != "" {
			m, _ := s.Machines.Get(p.Org + "/" + p.Machine)
			c, _ := s.Clients.Get(p.Org + "/" + p.Client)
			hosts := []string{m.Host, m.Next, c.Gateway}
			for i, host := range hosts {
				if host != "" && !slices.Contains(hosts[:i], host) && s.standsAt(host, p) && !yield(host) {
					return
				}
			}
			return
		}
		prefix := p.Org + "/" + p.App + "/"
		for key := range s.stands.Prefix(prefix) {
			if host := key[len(prefix):]; s.carriesOrg(host, p.Org) && !yield(host) {
				return
			}
		}
	}
}

// endpointsOf iterates over the endpoints that p names, wherever they are.
func (s State) endpointsOf(p Party) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		machines := func(key string) bool {
			m, ok := s.Machines.Get(key)
			return !ok || yield(m.Endpoint)
		}
		switch {
		case p.Machine != "":
			machines(p.Org + "/" + p.Machine)
		case p.Client != "":
			if c, ok := s.Clients.Get(p.Org + "/" + p.Client); ok {
				yield(c.Endpoint)
			}
		case p.App != "":
			for _, key := range s.byApp.Prefix(p.Org + "/" + p.App + "/") {
				if !machines(key) {
					return
				}
			}
		default:
			for _, m := range s.Machines.Prefix(p.Org + "/") {
				if !yield(m.Endpoint) {
					return
				}
			}
			for _, c := range s.Clients.Prefix(p.Org + "/") {
				if !yield(c.Endpoint) {
					return
				}
			}
		}
	}
}

// Named returns how many endpoints p names, and are there.
func (s State) Named(p Party) (n int) {
	for range s.endpointsOf(p) {
		n++
	}
	return n
}

// whoIs returns the machine, or the client, that has an endpoint: its org, the host
// where it is ("": none), and whether a party names it.
func (s State) whoIs(endpoint netip.Prefix) (org, host string, named func(Party) bool, ok bool) {
	at, ok := s.AtEndpoint(endpoint)
	kind, key, _ := strings.Cut(at, "/")
	switch kind {
	case "machines":
		m, ok := s.Machines.Get(key)
		return m.Org, m.Host, func(p Party) bool { return p.namesMachine(m) }, ok
	case "clients":
		c, ok := s.Clients.Get(key)
		return c.Org, c.Gateway, func(p Party) bool { return p.namesClient(c.Org, c.Name) }, ok
	}
	return "", "", nil, false
}

// GrantedNetworks returns the networks of the orgs with which a grant joins a client,
// in order: what the client's configuration has to send to its gateway, which sees to
// it that no more is used of them than is granted.
func (s State) GrantedNetworks(org, client string) []netip.Prefix {
	var out []netip.Prefix
	for _, g := range s.grantsNaming(org) {
		side, other := g.side(org)
		if beyond, ok := s.Orgs.Get(other.Org); ok && s.inForce(g) && side.namesClient(org, client) {
			out = append(out, s.Mesh.Plan.Network(beyond.Network))
		}
	}
	slices.SortFunc(out, peers.ComparePrefix)
	return slices.Compact(out)
}
