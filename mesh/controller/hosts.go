package controller

import (
	"context"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/store"
)

func (s *server) hostRoutes(r *router) {
	type inHost struct {
		Host string `path:"host"`
	}
	show := func(st mesh.State) func(mesh.Host) (api.HostInfo, bool) {
		return func(h mesh.Host) (api.HostInfo, bool) { return hostInfo(st, h), true }
	}
	route(r, "host-list", func(context.Context, caller, *nothing) (*answer[[]api.HostInfo], error) {
		st := s.store.State()
		return collect(st.Hosts.All(), show(st)), nil
	})
	route(r, "host-show", func(_ context.Context, _ caller, in *inHost) (*answer[api.HostInfo], error) {
		st := s.store.State()
		return find(st.Hosts, "host", in.Host, show(st))
	})
	route(r, "host-update", func(ctx context.Context, c caller, in *struct {
		Host string `path:"host"`
		Body api.UpdateHost
	}) (*answer[api.HostInfo], error) {
		h, rev, err := s.store.SetHost(ctx, c.actor(), in.Host, store.HostChange{Cordoned: in.Body.Cordoned})
		if err != nil {
			return nil, err
		}
		s.done(ctx, c, rev, "host changed", "host", h.Name)
		return &answer[api.HostInfo]{hostInfo(s.store.State(), h)}, nil
	})
	route(r, "host-remove", func(ctx context.Context, c caller, in *inHost) (*none, error) {
		rev, err := s.store.RemoveHost(ctx, c.actor(), in.Host)
		return s.removed(ctx, c, rev, err, "host removed", "host", in.Host)
	})
}

func hostInfo(st mesh.State, h mesh.Host) api.HostInfo {
	return api.HostInfo{Host: h, Present: st.Presence.Has(h.Name), Address: st.Mesh.Plan.HostAddr(0, h.Position())}
}
