package agent

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/probe"
)

// zoneData is what a host's resolver answers from: the orgs that its view holds.
// off is HostConfig.Disable.
func zoneData(v *mesh.View, off map[string]bool) dns.Data {
	d := dns.Data{Prefix: v.Plan.Prefix(), Resolver: v.Plan.Resolver(0), Strangers: off[DisableSameApp]}
	for _, r := range v.Regions {
		d.Regions = append(d.Regions, namedRegion(r))
	}
	if h := v.Host; h != nil {
		d.Self = h.Name
		d.Hosts = append(d.Hosts, namedSelf(v.Plan, h))
	}
	for _, h := range v.Hosts {
		if h.Name != d.Self {
			d.Hosts = append(d.Hosts, namedHost(v.Plan, h))
		}
	}
	at := map[string]int{} // org: index in d.Orgs
	for _, o := range v.Orgs {
		at[o.Name] = len(d.Orgs)
		d.Orgs = append(d.Orgs, namedOrg(v.Plan, o, v.Host))
	}
	for _, a := range v.Apps {
		if i, ok := at[a.Org]; ok {
			d.Orgs[i].Apps = append(d.Orgs[i].Apps, namedApp(a, off))
		}
	}
	known := notesOf(v)
	for _, m := range v.Machines {
		if i, ok := at[m.Org]; ok {
			d.Orgs[i].Machines = append(d.Orgs[i].Machines, known.machine(m))
		}
	}
	for _, c := range v.Clients {
		if i, ok := at[c.Org]; ok {
			d.Orgs[i].Clients = append(d.Orgs[i].Clients, namedClient(c))
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(known.records), compareNames) {
		if i, ok := at[key.org]; ok {
			d.Orgs[i].Own = append(d.Orgs[i].Own, known.own(key).Records...)
		}
	}
	return d
}

// The named functions say in the words of package dns what a view holds.

func namedRegion(r mesh.Region) dns.Region {
	out := dns.Region{Name: r.Name}
	if r.At != nil {
		out.Place = &dns.Place{Lat: r.At.Latitude, Lon: r.At.Longitude}
	}
	return out
}

func namedSelf(plan ipam.Plan, h *mesh.Host) dns.Host {
	return dns.Host{Name: h.Name, Region: h.Region, Addr: plan.HostAddr(0, h.Position()), Cordoned: h.Cordoned}
}

func namedHost(plan ipam.Plan, h mesh.ViewHost) dns.Host {
	return dns.Host{Name: h.Name, Region: h.Region, Addr: plan.HostAddr(0, h.Position()), Cordoned: h.Cordoned}
}

func namedOrg(plan ipam.Plan, o mesh.Org, self *mesh.Host) dns.Org {
	out := dns.Org{Name: o.Name, Prefix: plan.Network(o.Network), Resolver: plan.Resolver(o.Network)}
	if self != nil {
		out.Host = plan.HostAddr(o.Network, self.Position())
	}
	return out
}

func namedApp(a mesh.App, off map[string]bool) dns.App {
	out := dns.App{Name: a.Name, Answer: a.Answer, TTL: a.TTL}
	if off[DisableNear] {
		out.Answer = "all"
	}
	return out
}

func namedClient(c mesh.ViewClient) dns.Client {
	return dns.Client{Name: c.Name, Addr: ipam.MainAddr(c.Endpoint)}
}

// namedRecords are the values of one record; those that cannot be are left out.
func namedRecords(r mesh.Record) []dns.OwnRecord {
	var out []dns.OwnRecord
	for _, value := range r.Values {
		own := dns.OwnRecord{Name: r.Name, TTL: r.TTL}
		switch r.Type {
		case mesh.RecordAAAA:
			addr, err := netip.ParseAddr(value)
			if err != nil {
				continue
			}
			own.Type, own.Addr = dns.TypeAAAA, addr
		case mesh.RecordTXT:
			own.Type, own.Text = dns.TypeTXT, value
		case mesh.RecordSRV:
			s, err := mesh.ParseService(value)
			if err != nil {
				continue
			}
			own.Type, own.Priority, own.Weight, own.Port, own.Target = dns.TypeSRV, s.Priority, s.Weight, s.Port, s.Target
		case mesh.RecordAlias:
			own.Type, own.Target = dns.TypeAlias, value
		default:
			continue
		}
		out = append(out, own)
	}
	return out
}

// notes are what the names need of a view besides what a change of it says: a
// machine's health is told apart from the machine, and a name's records by type.
type notes struct {
	checked map[string]mesh.Machine // by key: those with checks
	health  map[string]mesh.Health  // by key of the machine
	records map[ownName]map[string]mesh.Record
}

// ownName is a name of own records.
type ownName struct{ org, name string }

func compareNames(a, b ownName) int {
	return cmp.Or(cmp.Compare(a.org, b.org), cmp.Compare(a.name, b.name))
}

func notesOf(v *mesh.View) notes {
	n := notes{map[string]mesh.Machine{}, map[string]mesh.Health{}, map[ownName]map[string]mesh.Record{}}
	for _, h := range v.Health {
		n.health[h.Org+"/"+h.Machine] = h
	}
	for _, m := range v.Machines {
		n.note(m)
	}
	for _, r := range v.Records {
		n.record(r)
	}
	return n
}

func (n notes) note(m mesh.Machine) {
	if len(m.Checks) > 0 {
		n.checked[machineKey(m)] = m
	} else {
		delete(n.checked, machineKey(m))
	}
}

func (n notes) record(r mesh.Record) {
	at := ownName{r.Org, r.Name}
	if n.records[at] == nil {
		n.records[at] = map[string]mesh.Record{}
	}
	n.records[at][r.Type] = r
}

func (n notes) machine(m mesh.Machine) dns.Machine {
	health, known := n.health[machineKey(m)]
	return dns.Machine{
		ID: m.ID, App: m.App, Group: m.Group, Meta: m.Meta, Host: m.Host, Addr: m.Address(),
		Started: m.State == mesh.StateStarted, Healthy: m.Healthy(health, known), Cordoned: m.Cordoned, Unlisted: m.Unlisted,
	}
}

// own is all that a name has, in the order of the types.
func (n notes) own(at ownName) dns.OwnName {
	out := dns.OwnName{Name: at.name}
	for _, kind := range slices.Sorted(maps.Keys(n.records[at])) {
		out.Records = append(out.Records, namedRecords(n.records[at][kind])...)
	}
	return out
}

// facts joins what was measured with what the controllers say of presence. asOf
// is when they last said something: what they do not say any more is not counted.
// A host is dead when its probes fail and its presence has been gone for dead.
func facts(hosts []mesh.ViewHost, measured probe.Results, p *presence, asOf time.Time, dead time.Duration) dns.Facts {
	out := make(dns.Facts, len(hosts))
	for _, h := range hosts {
		r := measured[h.Name]
		f := dns.Fact{RTT: r.RTT, Suspect: r.Suspect}
		f.Dead = f.Suspect && p != nil && p.goneFor(h.Name, asOf) >= dead
		out[h.Name] = f
	}
	return out
}

// Two hosts hear of each other at about the same time, and a word to one that has not
// made its end of the tunnel yet is lost: WireGuard says the next one 5 s later. So the
// one that speaks first waits for firstWord, and the other one, which speaks only if it
// has heard nothing, for secondWord. Both are longer than a word of a machine's, which
// does not wait, is on its way from the other end of the world.
const (
	firstWord  = 200 * time.Millisecond
	secondWord = 500 * time.Millisecond
)

// probeTargets are the hosts of a view. Of two hosts the one with the lower
// number speaks first; see probe.Target.Wait.
func probeTargets(v *mesh.View) []probe.Target {
	var out []probe.Target
	for _, h := range v.Hosts {
		t := probe.Target{Name: h.Name, Region: h.Region, Addr: v.Plan.HostAddr(0, h.Position()), Wait: firstWord}
		if v.Host != nil && v.Host.Number > h.Number {
			t.Wait = secondWord
		}
		out = append(out, t)
	}
	return out
}

// probeSources are those whose probes a host answers: the hosts of its view, and
// clients by their probe address.
func probeSources(v *mesh.View) map[netip.Addr]bool {
	out := make(map[netip.Addr]bool, len(v.Hosts)+len(v.Clients))
	for _, h := range v.Hosts {
		out[v.Plan.HostAddr(0, h.Position())] = true
	}
	for _, c := range v.Clients {
		out[ipam.ProbeAddr(c.Endpoint)] = true
	}
	return out
}
