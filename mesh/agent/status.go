package agent

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers"
)

// statusOf is what a view and a device say of a node, without what only its kind
// has.
func statusOf(v *mesh.View, c contact, stats []peers.Stats, f dns.Facts, now time.Time) local.Status {
	s := local.Status{
		Node: v.Self.String(), Prefix: v.Plan.Prefix(), Connected: c.connected, Controller: c.controller,
		Revision: v.Revision.String(), FromCache: c.fromCache, Peers: peerList(v, stats, f),
	}
	switch {
	case v.Host != nil:
		s.Address = v.Plan.HostAddr(0, v.Host.Position())
	case v.Client != nil:
		s.Address = ipam.MainAddr(v.Client.Endpoint)
		s.Gateway = v.Client.Gateway
	}
	if !c.last.IsZero() {
		s.ViewAge = max(now.Sub(c.last), 0)
	}
	for _, o := range v.Orgs {
		s.Orgs = append(s.Orgs, o.Name)
	}
	return s
}

// peerList names what the device knows by key, sorted by name.
func peerList(v *mesh.View, stats []peers.Stats, f dns.Facts) []local.Peer {
	byKey := make(map[mesh.Key]local.Peer, len(v.Hosts))
	for _, h := range v.Hosts {
		p := local.Peer{Name: "host/" + h.Name, Region: h.Region, RTT: f[h.Name].RTT, State: hostState(f[h.Name])}
		if len(h.Endpoints) > 0 {
			p.Endpoint = h.Endpoints[0]
		}
		byKey[h.Key] = p
	}
	for _, c := range v.Clients {
		if c.Key != nil {
			byKey[*c.Key] = local.Peer{Name: "client/" + c.Org + "/" + c.Name, State: local.PeerUnmeasured}
		}
	}
	var out []local.Peer
	for _, s := range stats {
		p, known := byKey[mesh.Key(s.Key)]
		if !known {
			p = local.Peer{Name: "unknown", State: local.PeerUnmeasured}
		}
		p.Key, p.LastHandshake, p.Rx, p.Tx = s.Key.String(), s.LastHandshake, s.Rx, s.Tx
		if s.Endpoint.IsValid() {
			p.Endpoint = s.Endpoint
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b local.Peer) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Key, b.Key)) })
	return out
}

// status is GET /v1/status of a host.
func (h *host) status(ctx context.Context) (local.Status, error) {
	base := local.Status{
		Version: h.cfg.Version, Backend: h.cfg.Backend, Link: h.cfg.Link, Namespace: h.cfg.Namespace, Problems: h.problems.list(),
	}
	if m := h.member.Load(); m != nil {
		base.Node, base.Controllers = m.node().String(), m.servers()
	}
	r := h.ready.Load()
	if r == nil || r.follower.View() == nil {
		return base, nil
	}
	v := h.machines.mask(r.follower.View())
	stats, err := h.plane.device.stats(ctx)
	if err != nil {
		return base, err
	}
	s := statusOf(v, r.follower.Contact(), stats, *h.plane.facts.Load(), time.Now())
	s.Version, s.Backend, s.Link, s.Namespace, s.Problems = base.Version, base.Backend, base.Link, base.Namespace, base.Problems
	s.Controllers, s.Device = base.Controllers, h.plane.device.processText()
	s.MTU = h.mtu(v)
	annotate(s.Peers, v, h.plane.prober.results(), h.paths.known())
	if a := h.effect.Load(); a != nil {
		s.Revision = a.view.Revision.String()
	}
	if found, err := attach.List(h.plane.ns); err == nil {
		s.Machines = h.attachedHere(v, found)
	}
	return s, nil
}

// attachedHere lists the machines whose link is there.
func (h *host) attachedHere(v *mesh.View, found []attach.Found) []local.Attached {
	links := make(map[string]attach.Found, len(found))
	for _, f := range found {
		links[f.Link] = f
	}
	var out []local.Attached
	for _, m := range v.Machines {
		if f, there := links[attach.LinkName(m.Org, m.ID)]; there && m.Host == v.Host.Name {
			out = append(out, h.attached(v, m, f.MTU))
		}
	}
	return out
}

func (h *host) attached(v *mesh.View, m mesh.Machine, mtu int) local.Attached {
	return local.Attached{
		Org: m.Org, App: m.App, ID: m.ID, Address: m.Address(), Resolver: v.Plan.Resolver(0),
		Link: attach.LinkName(m.Org, m.ID), MTU: mtu, Host: v.Host.Name, Region: v.Host.Region,
	}
}

// orgAddress is the node's own address in an org's network, and the resolver
// there. An empty name stands for the only org that there is.
func orgAddress(v *mesh.View, org string) (own, resolver netip.Addr, err error) {
	if org == "" && len(v.Orgs) == 1 {
		org = v.Orgs[0].Name
	}
	i := slices.IndexFunc(v.Orgs, func(o mesh.Org) bool { return o.Name == org })
	switch {
	case org == "":
		return own, resolver, invalid("which org? this node carries %d", len(v.Orgs))
	case i < 0:
		return own, resolver, mesh.WithHint(invalid("org %s: this node does not carry it", org), "ask on a host that has a machine of it")
	}
	n := v.Orgs[i].Network
	if v.Host != nil {
		return v.Plan.HostAddr(n, v.Host.Position()), v.Plan.Resolver(n), nil
	}
	return ipam.MainAddr(v.Client.Endpoint), v.Plan.Resolver(n), nil
}
