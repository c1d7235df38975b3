package agent

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/weftmesh/weft/dns"
)

// resolver makes the server of all resolver addresses.
func (p *plane) resolver(prefix netip.Prefix) (*dns.Server, error) {
	upstreams := dns.Upstreams("/etc/resolv.conf")
	if len(p.cfg.Upstreams) > 0 {
		upstreams = func() []netip.AddrPort { return p.cfg.Upstreams }
	}
	for _, a := range inMesh(prefix, p.cfg) {
		p.log.Warn("an upstream resolver is in the mesh, and is not asked", "addr", a.String())
	}
	forward, err := dns.NewForwarder(dns.ForwarderConfig{
		Upstreams: upstreams, Domains: p.cfg.DNSRules, Rebind: p.cfg.RebindOK, Mesh: prefix, Log: p.log,
	})
	if err != nil {
		return nil, err
	}
	cfg := dns.Config{
		Zone: p.zone.Load, Facts: func() dns.Facts { return *p.facts.Load() }, Forward: forward, Log: p.log,
	}
	if p.cfg.QueryLog {
		if p.queries == nil {
			p.queries = newQueryLog(p.log)
		}
		cfg.QueryLog = p.queries.tell
	}
	p.forward.Store(forward)
	return dns.NewServer(cfg), nil
}

// inMesh returns the configured resolvers that a host cannot ask: its own network
// has no way into the mesh.
func inMesh(prefix netip.Prefix, c HostConfig) []netip.AddrPort {
	all := slices.Clone(c.Upstreams)
	for _, domain := range slices.Sorted(maps.Keys(c.DNSRules)) {
		all = append(all, c.DNSRules[domain]...)
	}
	return slices.DeleteFunc(all, func(a netip.AddrPort) bool { return !prefix.Contains(a.Addr().WithZone("")) })
}
