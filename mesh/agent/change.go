package agent

import (
	"context"
	"net/netip"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/link"
)

// The part of system that changes what is named.

// ChangeFirewall implements system.
func (p *plane) ChangeFirewall(ctx context.Context, before, after peers.Policy) error {
	return p.wall.Change(ctx, before, after)
}

// Opened implements system.
func (p *plane) Opened() (peers.Device, bool) { return p.device.opened() }

// opened returns the device, if there is one that has not ended.
func (g *guardedDevice) opened() (peers.Device, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.device == nil || g.gone.Load() {
		return nil, false
	}
	return lockedDevice{g, g.device}, true
}

// ChangeLink implements system.
func (p *plane) ChangeLink(changes []link.Change) ([]string, error) { return link.Apply(p.ns, changes) }

// ChangeNames implements system.
func (p *plane) ChangeNames(plus, minus []peers.Network) error {
	if p.cfg.Disable[DisableDNS] {
		return nil
	}
	roles := make(map[netip.Addr]dns.Role, len(plus))
	for _, n := range plus {
		roles[n.Resolver] = dns.Role{Network: n.Prefix}
	}
	var gone []netip.Addr
	for _, n := range minus {
		gone = append(gone, n.Resolver)
	}
	return p.resolvers.change(roles, gone, p.listenDNS, p.log, p.wake)
}

// ChangeProbes implements system.
func (p *plane) ChangeProbes(targets []probe.Target, plus, minus []netip.Addr) error {
	p.prober.allowed.change(plus, minus)
	if now := p.prober.current.Load(); now != nil && targets != nil {
		now.Set(targets)
	}
	return nil
}

// Strange implements system.
func (p *plane) Strange(ctx context.Context) (bool, error) {
	if p.cfg.Disable[DisableFirewall] {
		return false, nil
	}
	return p.wall.Moved(ctx)
}
