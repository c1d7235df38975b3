package controller

import (
	"errors"
	"strings"
	"testing"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func TestGrantsOverTheAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	for _, name := range []string{"acme", "globex"} {
		w.org(name)
	}
	w.region("fra")
	near, far := w.host("near", "fra", "acme"), w.host("far", "fra", "globex")
	near.machine("acme", "web", "web-1")
	far.machine("globex", "db", "db-1")
	far.machine("globex", "cache", "cache-1")

	in := api.CreateGrant{From: mesh.Party{Org: "acme", App: "web"}, To: mesh.Party{Org: "globex", App: "db"}, Protocol: "tcp", FirstPort: 5432}
	g := do[api.GrantInfo](t, w.admin, "POST", "/v1/grants", in)
	if g.LastPort != 5432 || g.Sources == nil || *g.Sources != 1 || g.Targets == nil || *g.Targets != 1 {
		t.Errorf("made %+v", g)
	}
	if org := do[api.OrgInfo](t, w.admin, "GET", "/v1/orgs/globex", nil); org.Has.Grants != 1 || org.Limits.Grants != mesh.DefaultLimits.Grants {
		t.Errorf("the org has %+v of %+v", org.Has, org.Limits)
	}
	for _, in := range []any{
		api.CreateGrant{From: in.From, To: in.From, Protocol: "tcp"},
		map[string]any{"from": in.From, "to": in.To, "protocol": "tcp", "port": 5432},
		api.CreateGrant{From: in.From, To: in.To, Protocol: "sctp"},
	} {
		if err := w.admin.Do(t.Context(), "POST", "/v1/grants", in, nil); !errors.Is(err, api.ErrInvalid) {
			t.Errorf("%+v: %v", in, err)
		}
	}
	err := w.admin.Do(t.Context(), "POST", "/v1/grants", in, nil)
	if !errors.Is(err, api.ErrExists) || !strings.Contains(mesh.HintOf(err), g.ID) {
		t.Errorf("twice: %v (hint %q)", err, mesh.HintOf(err))
	}
	// The file of a client that is granted something sends that to its gateway, too.
	must := func(in api.CreateGrant) { do[api.GrantInfo](t, w.admin, "POST", "/v1/grants", in) }
	must(api.CreateGrant{From: mesh.Party{Org: "acme", Client: "ci"}, To: mesh.Party{Org: "globex", App: "db"}, Protocol: "tcp", FirstPort: 5432})
	network := do[api.OrgInfo](t, w.admin, "GET", "/v1/orgs/globex", nil).Prefix
	for name, want := range map[string]int{"ci": 1, "other": 0} {
		made := do[api.CreatedClient](t, w.admin, "POST", "/v1/orgs/acme/clients", api.CreateClient{Name: name, Key: newWireGuardKey(t)})
		if len(made.Granted) != want || want > 0 && made.Granted[0] != network {
			t.Errorf("client %s: granted %v", name, made.Granted)
		}
	}
}
