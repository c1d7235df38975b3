package agent

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// zones keeps the zone that a host answers from. It follows the view change by
// change, as soon as one arrives; the loop's pass adds what this host knows better
// than its view:
//
//	follower -- view, or a change of it --> base ---.
//	loop ----- how what is in effect differs ------- '--> zone
type zones struct {
	off     map[string]bool // HostConfig.Disable
	current atomic.Pointer[dns.Zone]

	mu    sync.Mutex // guards what follows
	base  *dns.Zone  // nil: there is no view yet
	plan  ipam.Plan
	self  *mesh.Host
	notes notes
	over  *dns.Delta // nil: nothing differs
}

func newZones(off map[string]bool) *zones { return &zones{off: off} }

// Load returns the zone, nil if there is none yet.
func (z *zones) Load() *dns.Zone { return z.current.Load() }

// follow takes the view in force. If step is not nil, it is all that leads there from
// the one before.
func (z *zones) follow(v *version, step *mesh.Delta) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if step != nil && z.base != nil && (step.Host == nil || z.self != nil && step.Host.Name == z.self.Name && step.Host.Position() == z.self.Position()) {
		if step.Host != nil {
			z.self = step.Host
		}
		z.base = z.base.With(zoneDelta(*step, z.plan, z.self, z.notes, z.off))
	} else {
		view := v.View()
		z.plan, z.self, z.notes = view.Plan, view.Host, notesOf(view)
		z.base = dns.NewZone(zoneData(view, z.off))
	}
	z.publish()
}

// differ takes what the loop has put in effect, out of the view that it has seen.
func (z *zones) differ(seen, effect *mesh.View) {
	var over *dns.Delta
	if effect != seen {
		d := zoneDelta(mesh.DiffViews(*seen, *effect), seen.Plan, effect.Host, notesOf(seen), z.off)
		over = &d
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if over != nil || z.over != nil {
		z.over = over
		z.publish()
	}
}

// correct takes what this host knows better than its view, see overlay.
func (z *zones) correct(d *mesh.Delta) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.over = nil
	if d != nil {
		none := notes{map[string]mesh.Machine{}, map[string]mesh.Health{}, map[ownName]map[string]mesh.Record{}}
		over := zoneDelta(*d, z.plan, z.self, none, z.off)
		z.over = &over
	}
	z.publish()
}

func (z *zones) publish() {
	zone := z.base
	if zone == nil {
		return
	}
	if z.over != nil {
		zone = zone.With(*z.over)
	}
	z.current.Store(zone)
}

// zoneDelta is what a change of a view is to its names. n is of the view before, and
// becomes that of the view after.
func zoneDelta(d mesh.Delta, plan ipam.Plan, self *mesh.Host, n notes, off map[string]bool) dns.Delta {
	b := deltaMaker{orgs: map[string]int{}}
	for _, r := range d.Regions {
		b.out.Regions = append(b.out.Regions, namedRegion(r))
	}
	if d.Host != nil {
		b.out.Hosts = append(b.out.Hosts, namedSelf(plan, d.Host))
	}
	for _, h := range d.Hosts {
		if self == nil || h.Name != self.Name {
			b.out.Hosts = append(b.out.Hosts, namedHost(plan, h))
		}
	}
	for _, o := range d.Orgs {
		set := namedOrg(plan, o, self)
		b.org(o.Name).Set = &set
	}
	for _, a := range d.Apps {
		o := b.org(a.Org)
		o.Apps = append(o.Apps, namedApp(a, off))
	}
	for _, c := range d.Clients {
		o := b.org(c.Org)
		o.Clients = append(o.Clients, namedClient(c))
	}
	named, beats := map[ownName]bool{}, map[string]bool{} // changed: own names, machines' health
	for _, key := range d.Removed {
		b.remove(key, self, n, named, beats)
	}
	for _, h := range d.Health {
		n.health[h.Org+"/"+h.Machine] = h
		beats[h.Org+"/"+h.Machine] = true
	}
	for _, m := range d.Machines {
		n.note(m)
		delete(beats, machineKey(m))
		o := b.org(m.Org)
		o.Machines = append(o.Machines, n.machine(m))
	}
	for key := range beats {
		if m, ok := n.checked[key]; ok {
			o := b.org(m.Org)
			o.Machines = append(o.Machines, n.machine(m))
		}
	}
	for _, r := range d.Records {
		n.record(r)
		named[ownName{r.Org, r.Name}] = true
	}
	for at := range named {
		o := b.org(at.org)
		o.Own = append(o.Own, n.own(at))
	}
	return b.out
}

// deltaMaker puts a dns.Delta together.
type deltaMaker struct {
	out  dns.Delta
	orgs map[string]int // index in out.Orgs
}

func (b *deltaMaker) org(name string) *dns.OrgDelta {
	i, there := b.orgs[name]
	if !there {
		i = len(b.out.Orgs)
		b.orgs[name] = i
		b.out.Orgs = append(b.out.Orgs, dns.OrgDelta{Name: name})
	}
	return &b.out.Orgs[i]
}

// remove takes one entry of mesh.Delta.Removed.
func (b *deltaMaker) remove(key string, self *mesh.Host, n notes, named map[ownName]bool, beats map[string]bool) {
	kind, rest, _ := strings.Cut(key, "/")
	org, name, _ := strings.Cut(rest, "/")
	switch kind {
	case "regions":
		b.out.RemovedRegions = append(b.out.RemovedRegions, rest)
	case "hosts":
		if self == nil || rest != self.Name {
			b.out.RemovedHosts = append(b.out.RemovedHosts, rest)
		}
	case "orgs":
		b.org(rest).Removed = true
	case "apps":
		b.org(org).RemovedApps = append(b.org(org).RemovedApps, name)
	case "machines":
		delete(n.checked, rest)
		b.org(org).RemovedMachines = append(b.org(org).RemovedMachines, name)
	case "clients":
		b.org(org).RemovedClients = append(b.org(org).RemovedClients, name)
	case "health":
		delete(n.health, rest)
		beats[rest] = true
	case "records":
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return
		}
		at := ownName{org, name[:i]}
		delete(n.records[at], name[i+1:])
		if len(n.records[at]) == 0 {
			delete(n.records, at)
		}
		named[at] = true
	}
}
