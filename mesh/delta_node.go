package mesh

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Delta returns what changes in a node's view. ok is false if no delta leads
// there: the node has no view before or after (it was removed, or its org), or
// Resync is true.
func (a *Advance) Delta(node Node) (d Delta, ok bool) {
	if a.resync {
		return Delta{}, false
	}
	switch node.Kind {
	case KindHost:
		return a.hostDelta(node.Name)
	case KindClient:
		return a.clientDelta(node)
	}
	return Delta{}, false
}

// Resumed is Delta for a node that had its view at before from another controller,
// perhaps: what this one adds to views is in it, changed or not.
func (a *Advance) Resumed(node Node) (d Delta, ok bool) {
	d, ok = a.Delta(node)
	d.Controllers, d.Roots, d.Format = a.after.controllers(a.deployment), a.deployment.Roots, ViewFormat
	return d, ok
}

// draft is a delta that is being made. What is removed is collected by kind, to
// come in the order of DiffViews.
type draft struct {
	Delta
	gone struct{ regions, hosts, orgs, apps, machines, clients, records, health, grants, granted, coordinates []string }
}

func (d *draft) finish() Delta {
	slices.SortFunc(d.Orgs, func(a, b Org) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(d.gone.orgs)
	for _, l := range []struct {
		kind string
		keys []string
	}{
		{"regions", d.gone.regions}, {"hosts", d.gone.hosts}, {"orgs", d.gone.orgs},
		{"apps", d.gone.apps}, {"machines", d.gone.machines}, {"clients", d.gone.clients},
		{"records", d.gone.records}, {"health", d.gone.health},
		{"grants", d.gone.grants}, {"granted", d.gone.granted}, {"coordinates", d.gone.coordinates},
	} {
		for _, key := range l.keys {
			d.Removed = append(d.Removed, l.kind+"/"+key)
		}
	}
	return d.Delta
}

// begin is what changes for every node.
func (a *Advance) begin() draft {
	d := draft{Delta: Delta{Revision: a.after.Revision}}
	if a.controllers {
		is := a.after.controllers(a.deployment)
		if !slices.Equal(a.before.controllers(a.deployment), is) {
			d.Controllers = is
		}
	}
	replace(&d.Regions, &d.gone.regions, a.regions, a.before.Regions.Get, a.after.Regions.Get)
	return d
}

// replace adds what keys lead to: to set what is there and another than before, to
// gone the keys of what is no longer.
func replace[T any](set *[]T, gone *[]string, keys []string, before, after func(string) (T, bool)) {
	for _, key := range keys {
		was, there := before(key)
		is, still := after(key)
		switch {
		case still && (!there || !reflect.DeepEqual(was, is)):
			*set = append(*set, is)
		case there && !still:
			*gone = append(*gone, key)
		}
	}
}

func (a *Advance) hostDelta(name string) (Delta, bool) {
	was, there := a.before.Hosts.Get(name)
	is, still := a.after.Hosts.Get(name)
	if !there || !still {
		return Delta{}, false
	}
	d := a.begin()
	if _, in := slices.BinarySearch(a.hosts, name); in && !reflect.DeepEqual(was, is) {
		d.Host = &is
	}
	a.ownCoordinate(&d, name)
	others := map[string]bool{} // hosts that the node may see otherwise than before
	for _, h := range a.hosts {
		others[h] = true
	}
	for _, org := range a.orgOrder {
		before, after := a.before.carriesOrg(name, org), a.after.carriesOrg(name, org)
		switch {
		case before && after:
			a.changed(&d, name, org)
		case after:
			a.gained(&d, name, org)
			for _, h := range a.after.HostsOf(org) {
				others[h] = true
			}
		case before:
			a.lost(&d, org)
			for _, h := range a.before.HostsOf(org) {
				others[h] = true
			}
		}
		if before || after {
			for _, h := range a.orgs[org].carry {
				others[h] = true
			}
		}
	}
	before, after := a.before.seenByHost(name), a.after.seenByHost(name)
	a.grantsSeen(&d, before, after, others)
	a.hostsSeen(&d, before, after, others)
	return d.finish(), true
}

// ownCoordinate adds a host's own coordinate.
func (a *Advance) ownCoordinate(d *draft, name string) {
	was, is := a.before.coordinateOf(name), a.after.coordinateOf(name)
	switch {
	case is == nil && was != nil:
		d.gone.coordinates = append(d.gone.coordinates, name)
	case !reflect.DeepEqual(was, is):
		d.Coordinate = is
	}
}

// changed adds what changed of an org that host carried before and carries now.
// Of clients the key is told if host is their gateway; "" is nobody's.
func (a *Advance) changed(d *draft, host, org string) {
	o := a.orgs[org]
	if o.record {
		replace(&d.Orgs, &d.gone.orgs, []string{org}, a.before.Orgs.Get, a.after.Orgs.Get)
	}
	replace(&d.Apps, &d.gone.apps, o.apps, a.before.Apps.Get, a.after.Apps.Get)
	replace(&d.Machines, &d.gone.machines, o.machines, a.before.Machines.Get, a.after.Machines.Get)
	replace(&d.Clients, &d.gone.clients, o.clients, a.before.clientSeenBy(host), a.after.clientSeenBy(host))
	replace(&d.Records, &d.gone.records, o.records, a.before.Records.Get, a.after.Records.Get)
	replace(&d.Health, &d.gone.health, o.health, a.before.Health.Get, a.after.Health.Get)
}

// clientSeenBy looks up clients as a host sees them.
func (s State) clientSeenBy(host string) func(key string) (ViewClient, bool) {
	return func(key string) (ViewClient, bool) {
		c, ok := s.Clients.Get(key)
		return c.seenBy(host), ok
	}
}

// gained adds all of an org that host did not carry before.
func (a *Advance) gained(d *draft, host, org string) {
	o, _ := a.after.Orgs.Get(org)
	d.Orgs = append(d.Orgs, o)
	for _, x := range a.after.Apps.Prefix(org + "/") {
		d.Apps = append(d.Apps, x)
	}
	for _, x := range a.after.Machines.Prefix(org + "/") {
		d.Machines = append(d.Machines, x)
	}
	for _, x := range a.after.Clients.Prefix(org + "/") {
		d.Clients = append(d.Clients, x.seenBy(host))
	}
	for _, x := range a.after.Records.Prefix(org + "/") {
		d.Records = append(d.Records, x)
	}
	for _, x := range a.after.Health.Prefix(org + "/") {
		d.Health = append(d.Health, x)
	}
}

// lost takes away all of an org that is no longer carried.
func (a *Advance) lost(d *draft, org string) {
	d.gone.orgs = append(d.gone.orgs, org)
	for key := range a.before.Apps.Prefix(org + "/") {
		d.gone.apps = append(d.gone.apps, key)
	}
	for key := range a.before.Machines.Prefix(org + "/") {
		d.gone.machines = append(d.gone.machines, key)
	}
	for key := range a.before.Clients.Prefix(org + "/") {
		d.gone.clients = append(d.gone.clients, key)
	}
	for key := range a.before.Records.Prefix(org + "/") {
		d.gone.records = append(d.gone.records, key)
	}
	for key := range a.before.Health.Prefix(org + "/") {
		d.gone.health = append(d.gone.health, key)
	}
}

// hostsSeen adds those of others that a host sees otherwise than before.
func (a *Advance) hostsSeen(d *draft, before, after *sight, others map[string]bool) {
	delete(others, before.host)
	replace(&d.Hosts, &d.gone.hosts, slices.Sorted(maps.Keys(others)), before.hostSeen(a.carriedBefore), after.hostSeen(a.carriedAfter))
}

// hostSeen looks up hosts as another one sees them. known has what some carry.
func (x *sight) hostSeen(known map[string][]string) func(name string) (ViewHost, bool) {
	s, self := x.state, x.host
	var own []string
	asked := false
	return func(name string) (ViewHost, bool) {
		h, ok := s.Hosts.Get(name)
		if !ok {
			return ViewHost{}, false
		}
		list, other := known[name], self
		if _, ok := known[name]; !ok {
			if !asked {
				own, asked = s.OrgsOf(self), true
			}
			list, other = own, name
		}
		var shared []string
		for _, org := range list {
			if s.carriesOrg(other, org) {
				shared = append(shared, org)
			}
		}
		return s.viewOfPeer(h, shared), len(shared) > 0 || x.leadsTo(name)
	}
}

func (a *Advance) clientDelta(node Node) (Delta, bool) {
	was, there := a.before.clientNode(node)
	is, still := a.after.clientNode(node)
	if !there || !still {
		return Delta{}, false
	}
	d := a.begin()
	if !reflect.DeepEqual(was, is) {
		d.Client = &is
	}
	if o := a.orgs[node.Org]; o != nil && o.record {
		replace(&d.Orgs, &d.gone.orgs, []string{node.Org}, a.before.Orgs.Get, a.after.Orgs.Get)
	}
	names := a.hosts
	if was.Gateway != is.Gateway {
		names = append(slices.Clone(names), was.Gateway, is.Gateway)
		slices.Sort(names)
		names = slices.Compact(names)
	}
	a.grantsSeen(&d, a.before.seenByClient(was), a.after.seenByClient(is), map[string]bool{})
	replace(&d.Hosts, &d.gone.hosts, names, a.before.gatewaySeenBy(was), a.after.gatewaySeenBy(is))
	return d.finish(), true
}

// clientNode returns the client that a node is, if it has a view.
func (s State) clientNode(node Node) (Client, bool) {
	c, ok := s.Clients.Get(node.Org + "/" + node.Name)
	return c, ok && s.alive(node.Org)
}

// gatewaySeenBy looks up hosts as a client sees them.
func (s State) gatewaySeenBy(c Client) func(name string) (ViewHost, bool) {
	return func(name string) (ViewHost, bool) {
		h, ok := s.Hosts.Get(name)
		if !ok || !h.seenByClient(c) {
			return ViewHost{}, false
		}
		return s.viewOf(h, []string{c.Org}), true
	}
}
