package mesh

import (
	"maps"
	"net/netip"
	"slices"
)

// grantAdvance is what changed about one grant.
type grantAdvance struct {
	// whole: its record is another one, or one of its orgs came or went.
	whole bool
	sides map[string]bool // orgs of the sides on which something is another one
	// ends are the endpoints on either side of which something is another one, hosts
	// those where one may have come or gone.
	ends  map[netip.Prefix]bool
	hosts map[string]bool
}

// sortGrants sorts out what the step is to grants: to each that names something that
// changed. It costs what changed, times the grants of the orgs in question.
func (a *Advance) sortGrants(changed []string) {
	a.grants = map[string]*grantAdvance{}
	for _, id := range changed {
		a.grant(id).whole = true
	}
	if a.before.Grants.Len()+a.after.Grants.Len() == 0 {
		return
	}
	for _, org := range a.orgOrder {
		o := a.orgs[org]
		came := a.before.alive(org) != a.after.alive(org)
		for _, s := range []State{a.before, a.after} {
			for id, g := range s.grantsNaming(org) {
				if came {
					a.grant(id).whole = true
				}
				side, _ := g.side(org)
				a.endpointsOfGrant(s, id, side, o)
			}
		}
	}
	a.grantOrder = slices.Sorted(maps.Keys(a.grants))
}

func (a *Advance) grant(id string) *grantAdvance {
	g := a.grants[id]
	if g == nil {
		g = &grantAdvance{sides: map[string]bool{}, ends: map[netip.Prefix]bool{}, hosts: map[string]bool{}}
		a.grants[id] = g
	}
	return g
}

// endpointsOfGrant notes what of one side changed with the org of it.
func (a *Advance) endpointsOfGrant(s State, id string, side Party, o *orgAdvance) {
	note := func(endpoint netip.Prefix, hosts ...string) {
		g := a.grant(id)
		g.sides[side.Org], g.ends[endpoint] = true, true
		for _, h := range hosts {
			g.hosts[h] = true
		}
	}
	for _, key := range o.machines {
		if m, ok := s.Machines.Get(key); ok && side.namesMachine(m) {
			note(m.Endpoint, m.Host, m.Next)
		}
	}
	for _, key := range o.clients {
		if c, ok := s.Clients.Get(key); ok && side.namesClient(c.Org, c.Name) {
			note(c.Endpoint, c.Gateway)
		}
	}
	for _, host := range o.carry {
		// It knows all of the org, or no longer does, whatever is on it.
		a.grant(id).hosts[host] = true
		if !s.standsAt(host, side) {
			continue
		}
		a.grant(id).sides[side.Org] = true
		for _, key := range s.byHost.Prefix(host + "/m/" + side.Org + "/") {
			if m, ok := s.Machines.Get(key); ok && side.namesMachine(m) {
				note(m.Endpoint)
			}
		}
		for _, key := range s.byHost.Prefix(host + "/c/" + side.Org + "/") {
			if c, ok := s.Clients.Get(key); ok && side.namesClient(c.Org, c.Name) {
				note(c.Endpoint)
			}
		}
	}
}

// grantsSeen adds what of grants, and of endpoints beyond them, a node sees otherwise
// than before, and to others the hosts beyond them that it may see otherwise.
func (a *Advance) grantsSeen(d *draft, before, after *sight, others map[string]bool) {
	var ids []string
	ends := map[netip.Prefix]bool{}
	for _, id := range a.grantOrder {
		was, had := before.grant(id)
		is, has := after.grant(id)
		if !had && !has {
			continue
		}
		ids = append(ids, id)
		g := a.grants[id]
		if !g.whole && sameSight(before, after, is) {
			maps.Copy(ends, g.ends)
			maps.Copy(others, g.hosts)
			continue
		}
		if had {
			before.all(was, ends, others)
		}
		if has {
			after.all(is, ends, others)
		}
	}
	replace(&d.Grants, &d.gone.grants, ids, before.grant, after.grant)
	byKey := make(map[string]netip.Prefix, len(ends))
	for end := range ends {
		byKey[end.String()] = end
	}
	replace(&d.Granted, &d.gone.granted, slices.Sorted(maps.Keys(byKey)),
		func(key string) (Granted, bool) { return before.granted(byKey[key]) },
		func(key string) (Granted, bool) { return after.granted(byKey[key]) })
	delete(others, "")
}

// sameSight reports whether what a node sees of a grant that did not change depends
// on the endpoints alone.
func sameSight(before, after *sight, g Grant) bool {
	for _, p := range []Party{g.From, g.To} {
		if before.stands(p) != after.stands(p) || before.carries(p.Org) != after.carries(p.Org) {
			return false
		}
	}
	return true
}

// all adds all that a grant leads to from the node, on either side.
func (x *sight) all(g Grant, ends map[netip.Prefix]bool, hosts map[string]bool) {
	for _, p := range []Party{g.From, g.To} {
		for e := range x.state.endpointsOf(p) {
			ends[e] = true
		}
		if x.client == nil {
			for h := range x.state.hostsAt(p) {
				hosts[h] = true
			}
		}
	}
}

// grantAudience adds whom the step concerns because of grants: where an endpoint of
// the one side is, if something of the other side changed.
func (a *Advance) grantAudience(hosts map[string]bool, clients map[string]bool, out *Audience) {
	tell := func(s State, p Party) {
		for h := range s.hostsAt(p) {
			hosts[h] = true
		}
		switch {
		case p.whole():
			clients[p.Org] = true
		case p.Client != "":
			out.Nodes = append(out.Nodes, Node{Kind: KindClient, Org: p.Org, Name: p.Client})
		}
	}
	for _, id := range a.grantOrder {
		g := a.grants[id]
		maps.Copy(hosts, g.hosts)
		for _, s := range []State{a.before, a.after} {
			x, ok := s.Grants.Get(id)
			if !ok {
				continue
			}
			if g.whole || g.sides[x.To.Org] {
				tell(s, x.From)
			}
			if g.whole || g.sides[x.From.Org] {
				tell(s, x.To)
			}
		}
	}
	for _, name := range a.hosts {
		for _, s := range []State{a.before, a.after} {
			for h := range s.seenByHost(name).beyond() {
				hosts[h] = true
			}
		}
	}
	delete(hosts, "")
}

// leadsTo reports whether a grant leads from the node to a host, or from there to
// the node.
func (x *sight) leadsTo(host string) bool {
	for _, l := range x.reaches() {
		if x.state.standsAt(host, l.to) {
			return true
		}
	}
	return false
}

// onlyOrg reports whether nothing but one org changed.
func (a *Advance) onlyOrg() bool {
	for _, g := range a.grants {
		if g.whole {
			return false
		}
	}
	return !a.resync && !a.controllers && len(a.regions)+len(a.hosts) == 0 && len(a.orgOrder) == 1
}
