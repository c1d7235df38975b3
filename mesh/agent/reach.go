package agent

import (
	"net"
	"net/netip"
	"slices"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// reachOf is what the controllers are to be told of where this host's WireGuard can be
// reached; nil: nothing, their record of it is right. Without an endpoint that was
// given it may be wrong if its address is none of the host's own. Behind a router that
// maps addresses one to one it never is; a controller, which sees where the host
// speaks from, finds out.
func reachOf(given netip.AddrPort, port uint16, record mesh.Host, own []netip.Addr) *api.Reach {
	switch {
	case record.NAT || len(record.Endpoints) == 0:
		return nil
	case given.IsValid():
		if record.Fixed && slices.Contains(record.Endpoints, given) {
			return nil
		}
		return &api.Reach{Endpoint: given.String()}
	case record.Fixed:
		return nil
	}
	for _, e := range record.Endpoints {
		if e.Port() == port && slices.Contains(own, e.Addr().Unmap()) {
			return nil
		}
	}
	return &api.Reach{Port: port}
}

// ownAddrs are the addresses of the underlay that the host has, sorted; nil: not known.
func ownAddrs() []netip.Addr {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok && !addr.IsLoopback() {
				out = append(out, addr.Unmap())
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// reach is reachOf for a view, and the addresses that it was decided by.
func (h *host) reach(v *mesh.View) (r *api.Reach, own []netip.Addr) {
	known := h.own.Load()
	if known == nil || v == nil || v.Host == nil || h.cfg.NAT {
		return nil, nil
	}
	return reachOf(h.cfg.Endpoint, h.cfg.Port, *v.Host, *known), *known
}

// lookAtOwn looks which addresses the host has, and fires renumbered if they have changed.
func (h *host) lookAtOwn() {
	now, was := ownAddrs(), h.own.Load()
	if now == nil || was != nil && slices.Equal(*was, now) {
		return
	}
	if was != nil && slices.ContainsFunc(*was, func(a netip.Addr) bool { return !slices.Contains(now, a) }) {
		h.member.Load().reconnect()
	}
	h.own.Store(&now)
	h.renumbered.fire()
}

// reconnect makes the next requests open new connections: nobody answers on one from an
// address that is gone, and the kernel does not say so.
func (m *member) reconnect() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetClientsLocked()
}
