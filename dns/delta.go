package dns

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Delta is what changes of Data: what is listed replaces what has the same name, or
// comes new, and what is Removed goes. What is both is set. Names count in lower
// case; that of an org as it is.
type Delta struct {
	Regions        []Region
	RemovedRegions []string
	Hosts          []Host
	RemovedHosts   []string
	Orgs           []OrgDelta
}

// OrgDelta is what changes of one org.
type OrgDelta struct {
	Name string
	// Set has the org's own part: its lists are not looked at. What belongs to an org
	// that is not set is kept, and not answered.
	Set     *Org
	Removed bool // the org; not what belongs to it

	Apps            []App
	RemovedApps     []string
	Machines        []Machine
	RemovedMachines []string // ids
	Clients         []Client
	RemovedClients  []string
	Own             []OwnName
}

// OwnName is all that an org's own records say of one name; none: nothing.
type OwnName struct {
	Name    string
	Records []OwnRecord
}

// With returns the zone after d. It answers as NewZone of the Data after d does, and
// costs what d holds: the size of the zone does not matter. Two changes cost more,
// the place of a region and the own host: a look at each host and at each org.
func (z *Zone) With(d Delta) *Zone {
	e := &edit{zone: *z, made: new(edition), orgs: map[string]*org{}}
	e.regions(d.Regions, d.RemovedRegions)
	e.hosts(d.Hosts, d.RemovedHosts)
	for _, o := range d.Orgs {
		e.org(o)
	}
	if next := e.done(); e.changed {
		return next
	}
	return z
}

// edit makes a zone out of another one.
type edit struct {
	zone    Zone
	made    *edition
	orgs    map[string]*org // that may have changed: copies of this edit
	changed bool
}

func (e *edit) done() *Zone {
	for name, o := range e.orgs {
		was, there := e.zone.orgs.get(name)
		if there && was.same(o) || !there && o.empty() {
			continue
		}
		e.changed = true
		if o.made = e.made; o.empty() {
			e.zone.orgs = e.zone.orgs.without(e.made, name)
		} else {
			e.zone.orgs = e.zone.orgs.set(e.made, name, o)
		}
	}
	return &e.zone
}

// regions changes the places, and the words that stand for them.
func (e *edit) regions(set []Region, removed []string) {
	z := &e.zone
	if len(set) == 0 && len(removed) == 0 {
		return
	}
	before := z.places
	z.places = maps.Clone(before)
	if z.places == nil {
		z.places = map[string]Region{}
	}
	for _, name := range removed {
		delete(z.places, lower(name))
	}
	for _, r := range set {
		name := lower(r.Name)
		if !usableRegion(name) {
			delete(z.places, name)
			continue
		}
		if r.Place != nil && !r.Place.valid() {
			r.Place = nil
		}
		z.places[name] = r
	}
	if maps.EqualFunc(before, z.places, func(a, b Region) bool { return a.at() == b.at() }) {
		z.places = before
		return
	}
	e.changed = true
	e.words()
	e.estimates()
}

// words finds the words that are regions: those that are listed, and the hosts'.
func (e *edit) words() {
	z := &e.zone
	has := make(map[string]bool, len(z.places))
	for name := range z.places {
		has[name] = true
	}
	for name := range z.inhabited {
		has[name] = true
	}
	if z.regions == nil || !maps.Equal(has, z.regions.has) {
		z.regions = &words{has}
	}
}

func (e *edit) hosts(set []Host, removed []string) {
	before := e.zone.hosts
	for _, name := range removed {
		e.host(lower(name), nil)
	}
	for _, d := range set {
		name, region := lower(d.Name), lower(d.Region)
		if !validLabel(name) || !usableRegion(region) {
			e.host(name, nil)
			continue
		}
		e.host(name, &host{name: name, region: region, addr: d.Addr, cordoned: d.Cordoned, self: name == e.zone.self})
	}
	if !before.same(e.zone.hosts) {
		e.zone.hostsAt = e.made
	}
}

// host sets a host, or removes it (nil).
func (e *edit) host(name string, h *host) {
	z := &e.zone
	was, _ := z.hosts.get(name)
	if h != nil {
		h.estimate = z.estimate(h)
	}
	if was == h || was != nil && h != nil && *was == *h {
		return
	}
	e.changed = true
	if h == nil {
		z.hosts = z.hosts.without(e.made, name)
	} else {
		z.hosts = z.hosts.set(e.made, name, h)
	}
	if was == nil || h == nil || was.region != h.region {
		z.inhabited = maps.Clone(z.inhabited)
		if z.inhabited == nil {
			z.inhabited = map[string]int{}
		}
		if was != nil {
			if z.inhabited[was.region]--; z.inhabited[was.region] == 0 {
				delete(z.inhabited, was.region)
			}
		}
		if h != nil {
			z.inhabited[h.region]++
		}
		e.words()
		if name == z.self {
			e.estimates()
		}
	}
	if was == nil || h == nil || was.addr != h.addr {
		e.named(name)
	}
}

// named tells the orgs that know a host that its address is another one. The own
// host is known to all.
func (e *edit) named(host string) {
	var orgs []string
	if host == e.zone.self {
		for name := range e.zone.orgs.all() {
			orgs = append(orgs, name)
		}
	} else {
		for _, name := range e.zone.carriers.prefixed(carrier(host, "")) {
			orgs = append(orgs, name)
		}
	}
	for _, name := range orgs {
		e.hostIn(e.touch(name), host)
	}
}

// estimates does them all again: a place, or where they are from, has changed.
func (e *edit) estimates() {
	z := &e.zone
	var moved []*host
	for _, h := range z.hosts.all() {
		if at := z.estimate(h); at != h.estimate {
			n := *h
			n.estimate = at
			moved = append(moved, &n)
		}
	}
	for _, h := range moved {
		z.hosts, z.hostsAt = z.hosts.set(e.made, h.name, h), e.made
	}
}

func (z *Zone) estimate(h *host) time.Duration {
	from, ok := z.hosts.get(z.self)
	if h.name == z.self {
		from, ok = h, true
	}
	if !ok {
		return unknownDistance
	}
	return estimate(from.region, h.region, z.places[from.region].Place, z.places[h.region].Place)
}

// touch returns the org of that name, to be changed; it may be a new one.
func (e *edit) touch(name string) *org {
	o := e.orgs[name]
	if o == nil {
		if was, there := e.zone.orgs.get(name); there {
			o = new(org)
			*o = *was
		} else {
			o = &org{name: name}
		}
		e.orgs[name] = o
	}
	return o
}

func (e *edit) org(d OrgDelta) {
	o := e.touch(d.Name)
	before, was := o.network(e.zone.prefix)
	if d.Set != nil {
		if s := d.Set; o.prefix != s.Prefix || o.resolver != s.Resolver || o.host != s.Host {
			e.rebuild(o, s.Prefix, s.Resolver, s.Host)
		}
		o.listed = true
	} else if d.Removed {
		o.listed = false
	}
	if after, is := o.network(e.zone.prefix); was != is || before != after {
		e.unlist(before, was, o.name)
		e.list(after, is, o.name)
	}
	for _, name := range d.RemovedApps {
		e.removeApp(o, lower(name))
	}
	for _, a := range d.Apps {
		e.setApp(o, a)
	}
	for _, id := range d.RemovedMachines {
		e.setMachine(o, lower(id), nil)
	}
	for _, m := range d.Machines {
		e.setMachine(o, lower(m.ID), newInstance(m))
	}
	for _, name := range d.RemovedClients {
		e.setClient(o, lower(name), netip.Addr{})
	}
	for _, c := range d.Clients {
		e.setClient(o, lower(c.Name), c.Addr)
	}
	for _, n := range d.Own {
		e.setOwn(o, n)
	}
}

// list and unlist keep who claims a network.
func (e *edit) list(network string, ok bool, org string) {
	if !ok {
		return
	}
	names, _ := e.zone.networks.get(network)
	i, there := slices.BinarySearch(names, org)
	if !there {
		e.zone.networks = e.zone.networks.set(e.made, network, slices.Insert(slices.Clone(names), i, org))
	}
}

func (e *edit) unlist(network string, ok bool, org string) {
	names, _ := e.zone.networks.get(network)
	i, there := slices.BinarySearch(names, org)
	if !ok || !there {
		return
	}
	if names = slices.Delete(slices.Clone(names), i, i+1); len(names) == 0 {
		e.zone.networks = e.zone.networks.without(e.made, network)
	} else {
		e.zone.networks = e.zone.networks.set(e.made, network, names)
	}
}
