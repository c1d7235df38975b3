package agent

import (
	"net/netip"
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
		region := dns.Region{Name: r.Name}
		if r.At != nil {
			region.Place = &dns.Place{Lat: r.At.Latitude, Lon: r.At.Longitude}
		}
		d.Regions = append(d.Regions, region)
	}
	if h := v.Host; h != nil {
		d.Self = h.Name
		d.Hosts = append(d.Hosts, dns.Host{Name: h.Name, Region: h.Region, Addr: v.Plan.HostAddr(0, h.Position()), Cordoned: h.Cordoned})
	}
	for _, h := range v.Hosts {
		d.Hosts = append(d.Hosts, dns.Host{Name: h.Name, Region: h.Region, Addr: v.Plan.HostAddr(0, h.Position()), Cordoned: h.Cordoned})
	}
	at := map[string]int{} // org: index in d.Orgs
	for _, o := range v.Orgs {
		org := dns.Org{Name: o.Name, Prefix: v.Plan.Network(o.Network), Resolver: v.Plan.Resolver(o.Network)}
		if v.Host != nil {
			org.Host = v.Plan.HostAddr(o.Network, v.Host.Position())
		}
		at[o.Name] = len(d.Orgs)
		d.Orgs = append(d.Orgs, org)
	}
	for _, a := range v.Apps {
		if i, ok := at[a.Org]; ok {
			app := dns.App{Name: a.Name, Answer: a.Answer, TTL: a.TTL}
			if off[DisableNear] {
				app.Answer = "all"
			}
			d.Orgs[i].Apps = append(d.Orgs[i].Apps, app)
		}
	}
	for _, m := range v.Machines {
		if i, ok := at[m.Org]; ok {
			d.Orgs[i].Machines = append(d.Orgs[i].Machines, dns.Machine{
				ID: m.ID, App: m.App, Group: m.Group, Meta: m.Meta, Host: m.Host,
				Addr: m.Address(), Started: m.State == mesh.StateStarted, Healthy: true,
			})
		}
	}
	for _, c := range v.Clients {
		if i, ok := at[c.Org]; ok {
			d.Orgs[i].Clients = append(d.Orgs[i].Clients, dns.Client{Name: c.Name, Addr: ipam.MainAddr(c.Endpoint)})
		}
	}
	return d
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

// probeTargets are the hosts of a view. Of two hosts the one with the lower
// number speaks first; see probe.Target.Wait.
func probeTargets(v *mesh.View) []probe.Target {
	var out []probe.Target
	for _, h := range v.Hosts {
		t := probe.Target{Name: h.Name, Region: h.Region, Addr: v.Plan.HostAddr(0, h.Position())}
		if v.Host != nil && v.Host.Number > h.Number {
			t.Wait = time.Second
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
