package controller

import (
	"context"
	"net/netip"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// renumber takes it that a host is reached elsewhere than its record says.
func (s *server) renumber(ctx context.Context, c caller, r api.Reach) error {
	to, changed, err := reachedAt(c.host, r, c.addr, s.store.State().Mesh.Plan.Prefix())
	if err != nil || !changed {
		return err
	}
	rev, err := s.store.SetEndpoints(ctx, c.actor(), c.node.Name, to, r.Endpoint != "")
	if err == nil && rev > 0 {
		s.settle(ctx, rev)
		s.log.Info("host is reached elsewhere", "host", c.node.Name, "endpoints", to, "before", c.host.Endpoints, "rev", rev)
	}
	return err
}

// reachedAt says where a host is reached, as when it joined: where its operator says,
// which is refused if nobody can reach it there, or where the controller sees it. The
// latter never replaces what an operator gave, and only an address of its own kind: a
// host that others know by a public address may speak to a controller over a private
// network, or over the other family.
func reachedAt(h mesh.Host, r api.Reach, seen netip.Addr, inside netip.Prefix) (to []netip.AddrPort, changed bool, err error) {
	if h.NAT || len(h.Endpoints) == 0 {
		return nil, false, nil
	}
	was := h.Endpoints[0].Addr()
	if r.Endpoint == "" && (h.Fixed || !sameKind(was, seen) && !inside.Contains(seen)) {
		return nil, false, nil
	}
	to, err = endpointsOf(api.EnrollRequest{Name: h.Name, Endpoint: r.Endpoint, Port: r.Port}, seen, inside)
	if err != nil {
		return nil, false, err
	}
	return to, to[0] != h.Endpoints[0] || h.Fixed != (r.Endpoint != ""), nil
}

// sharedSpace is that of RFC 6598, between providers and their customers.
func sharedSpace() netip.Prefix { return netip.MustParsePrefix("100.64.0.0/10") }

// sameKind reports whether who reaches one address reaches the other, as far as can be
// known from the addresses.
func sameKind(a, b netip.Addr) bool {
	return b.IsValid() && b.IsGlobalUnicast() && a.Is4() == b.Is4() && a.IsPrivate() == b.IsPrivate() && sharedSpace().Contains(a) == sharedSpace().Contains(b)
}
