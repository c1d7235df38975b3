package controller

import (
	"context"
	"iter"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// routes registers the API.
func (s *server) routes(r *router) {
	r.handle("health", s.health)
	r.handle("ready", s.ready)
	r.handle("self-view", s.serveView)
	r.handle("backup", s.backup)
	route(r, "mesh-show", s.meshShow)
	route(r, "enroll", s.enroll)
	route(r, "self-renew", s.renew)
	route(r, "self-report", s.report)
	route(r, "self-gateway", s.gateway)
	route(r, "self-leave", s.leave)
	s.orgRoutes(r)
	s.accessRoutes(r)
	s.hostRoutes(r)
	s.machineRoutes(r)
	s.clientRoutes(r)
	s.recordRoutes(r)
	s.grantRoutes(r)
	route(r, "event-list", s.eventList)
	r.describeView()
	r.describeBackup()
	r.handle("openapi", openapi(r.huma.OpenAPI()))
}

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// describeView adds the view stream, which is not huma's, to the description.
func (r *router) describeView() {
	d, rule := r.huma.OpenAPI(), r.rules["self-view"]
	event := func(t reflect.Type) *huma.Schema { return d.Components.Schemas.Schema(t, true, "") }
	d.AddOperation(&huma.Operation{
		OperationID: rule.id, Method: rule.method, Path: rule.path, Summary: rule.does,
		Description: "Server-sent events: a snapshot (View), then deltas (Delta) and pings (Ping); fenced (text) ends the stream for good.",
		Responses: map[string]*huma.Response{
			"200": {Description: "OK", Content: map[string]*huma.MediaType{"text/event-stream": {
				Schema: &huma.Schema{OneOf: []*huma.Schema{event(typeOf[mesh.View]()), event(typeOf[mesh.Delta]()), event(typeOf[api.Ping]())}},
			}}},
			"default": r.refusalSchema(),
		},
	})
}

// Parts of requests.
type (
	nothing struct{}
	inOrg   struct {
		Org string `path:"org"`
	}
)

// collect turns a table's objects into what a list shows. It is never nil: an
// empty list is an array, too.
func collect[T, U any](all iter.Seq2[string, T], show func(T) (U, bool)) *answer[[]U] {
	out := []U{}
	for _, v := range all {
		if u, ok := show(v); ok {
			out = append(out, u)
		}
	}
	return &answer[[]U]{out}
}

// find returns one object for an answer, or says that it is not there.
func find[T, U any](t mesh.Table[T], kind, key string, show func(T) (U, bool)) (*answer[U], error) {
	if v, ok := t.Get(key); ok {
		if u, ok := show(v); ok {
			return &answer[U]{u}, nil
		}
	}
	return nil, notFound(kind + " " + key)
}

func (s *server) meshShow(context.Context, caller, *nothing) (*answer[api.MeshInfo], error) {
	return &answer[api.MeshInfo]{api.MeshInfo{Version: s.cfg.Version, Pin: s.ca.Pin(), Controllers: mesh.Controllers(s.cfg.Advertise, s.store.State())}}, nil
}

// done waits until a change is in the mirror, and logs it.
func (s *server) done(ctx context.Context, c caller, rev int64, what, key, name string) {
	s.settle(ctx, rev)
	s.log.Info(what, key, name, "actor", c.actor(), "rev", rev)
}

func (s *server) removed(ctx context.Context, c caller, rev int64, err error, what, key, name string) (*none, error) {
	if err != nil {
		return nil, err
	}
	s.done(ctx, c, rev, what, key, name)
	return &none{}, nil
}

func (s *server) eventList(ctx context.Context, _ caller, in *struct {
	Limit int `query:"limit" default:"100" minimum:"1" maximum:"1000" doc:"how many at most, the newest"`
}) (*answer[[]mesh.Event], error) {
	events, err := s.store.Events(ctx, in.Limit)
	if err != nil {
		return nil, err
	}
	if events == nil {
		events = []mesh.Event{}
	}
	return &answer[[]mesh.Event]{events}, nil
}

func liveOrg(st mesh.State, name string) error {
	if o, ok := st.Orgs.Get(name); !ok || o.Tombstone {
		return notFound("org " + name)
	}
	return nil
}

func parseKey(text string) (mesh.Key, error) {
	var key mesh.Key
	if err := key.UnmarshalText([]byte(text)); err != nil || key == (mesh.Key{}) {
		return key, refuse(api.ErrInvalid, "`wg pubkey` makes one from a private key", "WireGuard public key: it is not 32 bytes in base64")
	}
	return key, nil
}
