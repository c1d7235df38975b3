package controller

import (
	"context"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func (s *server) orgRoutes(r *router) {
	route(r, "org-list", func(_ context.Context, c caller, _ *nothing) (*answer[[]api.OrgInfo], error) {
		st := s.store.State()
		return collect(st.Orgs.All(), func(o mesh.Org) (api.OrgInfo, bool) {
			return orgInfo(st, o), c.sees(o.Name) && !o.Tombstone
		}), nil
	})
	route(r, "org-show", func(_ context.Context, _ caller, in *inOrg) (*answer[api.OrgInfo], error) {
		st := s.store.State()
		return find(st.Orgs, "org", in.Org, func(o mesh.Org) (api.OrgInfo, bool) { return orgInfo(st, o), !o.Tombstone })
	})
	route(r, "org-create", func(ctx context.Context, c caller, in *struct{ Body api.CreateOrg }) (*answer[api.OrgInfo], error) {
		o, rev, err := s.store.CreateOrg(ctx, c.actor(), in.Body.Name)
		if err != nil {
			return nil, err
		}
		s.done(ctx, c, rev, "org created", "org", o.Name)
		return &answer[api.OrgInfo]{orgInfo(s.store.State(), o)}, nil
	})
	route(r, "org-update", func(ctx context.Context, c caller, in *struct {
		Org  string `path:"org"`
		Body api.UpdateOrg
	}) (*answer[api.OrgInfo], error) {
		o, rev, err := s.store.ChangeLimits(ctx, c.actor(), in.Org, in.Body.Limits.Of)
		if err != nil {
			return nil, err
		}
		s.done(ctx, c, rev, "org changed", "org", o.Name)
		return &answer[api.OrgInfo]{orgInfo(s.store.State(), o)}, nil
	})
	route(r, "org-remove", func(ctx context.Context, c caller, in *inOrg) (*none, error) {
		rev, err := s.store.RemoveOrg(ctx, c.actor(), in.Org)
		return s.removed(ctx, c, rev, err, "org removed", "org", in.Org)
	})
	type inRegion struct {
		Region string `path:"region"`
	}
	same := func(r mesh.Region) (mesh.Region, bool) { return r, true }
	route(r, "region-list", func(context.Context, caller, *nothing) (*answer[[]mesh.Region], error) {
		return collect(s.store.State().Regions.All(), same), nil
	})
	route(r, "region-show", func(_ context.Context, _ caller, in *inRegion) (*answer[mesh.Region], error) {
		return find(s.store.State().Regions, "region", in.Region, same)
	})
	route(r, "region-create", func(ctx context.Context, c caller, in *struct{ Body api.CreateRegion }) (*answer[mesh.Region], error) {
		region, rev, err := s.store.CreateRegion(ctx, c.actor(), in.Body.Name, in.Body.At)
		if err != nil {
			return nil, err
		}
		s.done(ctx, c, rev, "region created", "region", region.Name)
		return &answer[mesh.Region]{region}, nil
	})
	route(r, "region-remove", func(ctx context.Context, c caller, in *inRegion) (*none, error) {
		rev, err := s.store.RemoveRegion(ctx, c.actor(), in.Region)
		return s.removed(ctx, c, rev, err, "region removed", "region", in.Region)
	})
}

func orgInfo(st mesh.State, o mesh.Org) api.OrgInfo {
	return api.OrgInfo{
		Org: o, Prefix: st.Mesh.Plan.Network(o.Network), Limits: o.Limits.Or(mesh.DefaultLimits),
		Has: api.OrgCount{
			Machines: st.Count("machines", o.Name), Clients: st.Count("clients", o.Name), Tokens: st.Count("tokens", o.Name),
			Records: st.Count("records", o.Name), Grants: st.Count("grants", o.Name),
		},
	}
}
