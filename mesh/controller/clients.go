package controller

import (
	"context"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/store"
)

func (s *server) clientRoutes(r *router) {
	type inClient struct {
		Org    string `path:"org"`
		Client string `path:"client"`
	}
	show := func(c mesh.Client) (api.ClientInfo, bool) { return clientInfo(c), true }
	route(r, "client-list", func(_ context.Context, _ caller, in *inOrg) (*answer[[]api.ClientInfo], error) {
		st := s.store.State()
		if err := liveOrg(st, in.Org); err != nil {
			return nil, err
		}
		return collect(st.Clients.Prefix(in.Org+"/"), show), nil
	})
	route(r, "client-show", func(_ context.Context, _ caller, in *inClient) (*answer[api.ClientInfo], error) {
		return find(s.store.State().Clients, "client", in.Org+"/"+in.Client, show)
	})
	route(r, "client-create", s.clientCreate)
	route(r, "client-remove", func(ctx context.Context, c caller, in *inClient) (*none, error) {
		rev, err := s.store.RemoveClient(ctx, c.actor(), in.Org, in.Client)
		return s.removed(ctx, c, rev, err, "client removed", "client", in.Org+"/"+in.Client)
	})
}

func clientInfo(c mesh.Client) api.ClientInfo { return api.ClientInfo{Client: c, Address: c.Address()} }

func (s *server) clientCreate(ctx context.Context, c caller, in *struct {
	Org  string `path:"org"`
	Body api.CreateClient
}) (*answer[api.CreatedClient], error) {
	key, err := parseKey(in.Body.Key)
	if err != nil {
		return nil, err
	}
	spec := store.ClientSpec{Org: in.Org, Name: in.Body.Name, Key: key, Gateway: in.Body.Gateway}
	if in.Body.TTL != "" {
		if spec.TTL, err = time.ParseDuration(in.Body.TTL); err != nil || spec.TTL < time.Second {
			return nil, refuse(api.ErrInvalid, "", "client %s: ttl %q: want a duration of at least a second, for example 24h", in.Body.Name, in.Body.TTL)
		}
	}
	created, rev, err := s.store.CreateClient(ctx, c.actor(), spec)
	if err != nil {
		return nil, err
	}
	s.done(ctx, c, rev, "client created", "client", created.Org+"/"+created.Name)
	st := s.store.State()
	org, _ := st.Orgs.Get(created.Org)
	gateway, ok := st.Hosts.Get(created.Gateway)
	if !ok || len(gateway.Endpoints) == 0 || org.Network == 0 {
		return nil, refuse(api.ErrConflict, "", "client %s/%s: it was created, but its org or its gateway %s has just been removed", created.Org, created.Name, created.Gateway)
	}
	return &answer[api.CreatedClient]{api.CreatedClient{
		Client: created, Address: created.Address(),
		Network: st.Mesh.Plan.Network(org.Network), Resolver: st.Mesh.Plan.Resolver(org.Network),
		Granted: st.GrantedNetworks(created.Org, created.Name),
		Gateway: api.GatewayAddress{Name: gateway.Name, Key: gateway.Key, Endpoint: gateway.Endpoints[0]},
	}}, nil
}
