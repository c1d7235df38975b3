package controller

import (
	"context"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// Grants between orgs. Two orgs are concerned, so operators of the mesh make them;
// the people of both see them.

func (s *server) grantRoutes(r *router) {
	show := func(c caller, st mesh.State) func(mesh.Grant) (api.GrantInfo, bool) {
		return func(g mesh.Grant) (api.GrantInfo, bool) {
			return grantInfo(c, st, g), c.sees(g.From.Org) || c.sees(g.To.Org)
		}
	}
	route(r, "grant-list", func(_ context.Context, c caller, _ *nothing) (*answer[[]api.GrantInfo], error) {
		st := s.store.State()
		return collect(st.Grants.All(), show(c, st)), nil
	})
	route(r, "grant-show", func(_ context.Context, c caller, in *inID) (*answer[api.GrantInfo], error) {
		st := s.store.State()
		return find(st.Grants, "grant", in.ID, show(c, st))
	})
	route(r, "grant-create", func(ctx context.Context, c caller, in *struct{ Body api.CreateGrant }) (*answer[api.GrantInfo], error) {
		b := in.Body
		g, rev, err := s.store.CreateGrant(ctx, c.actor(), mesh.Grant{From: b.From, To: b.To, Protocol: b.Protocol, FirstPort: b.FirstPort, LastPort: b.LastPort})
		if err != nil {
			return nil, err
		}
		s.done(ctx, c, rev, "grant created", "grant", g.ID)
		return &answer[api.GrantInfo]{grantInfo(c, s.store.State(), g)}, nil
	})
	route(r, "grant-remove", func(ctx context.Context, c caller, in *inID) (*none, error) {
		rev, err := s.store.RemoveGrant(ctx, c.actor(), in.ID)
		return s.removed(ctx, c, rev, err, "grant removed", "grant", in.ID)
	})
}

// grantInfo tells how much of a side is there to those who see its org alone.
func grantInfo(c caller, st mesh.State, g mesh.Grant) api.GrantInfo {
	out := api.GrantInfo{Grant: g}
	if c.sees(g.From.Org) {
		out.Sources = new(st.Named(g.From))
	}
	if c.sees(g.To.Org) {
		out.Targets = new(st.Named(g.To))
	}
	return out
}
