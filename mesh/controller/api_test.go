package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/store"
)

func TestOpenAPIDescribesEveryRoute(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	resp, err := w.bare("h2", nil).Get(w.url + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		OpenAPI string                                `json:"openapi"`
		Paths   map[string]map[string]json.RawMessage `json:"paths"`
	}
	text := readAll(t, resp)
	if err := json.Unmarshal([]byte(text), &d); err != nil || d.OpenAPI == "" {
		t.Fatalf("%v: %.100s", err, text)
	}
	for _, r := range rules() {
		switch r.id {
		case "health", "ready", "metrics", "openapi": // text, and the description itself
			continue
		}
		op := string(d.Paths[r.path][strings.ToLower(r.method)])
		if !strings.Contains(op, `"operationId":"`+r.id+`"`) {
			t.Errorf("%s is not described: %.100s", r.pattern(), op)
		}
		if !strings.Contains(op, "application/problem+json") || !strings.Contains(op, "#/components/schemas/Error") {
			t.Errorf("%s does not say how it refuses: %s", r.pattern(), op)
		}
	}
	for _, field := range []string{`"tls_key"`, `"hint"`, `"region_number"`, `"View"`, `"Delta"`} {
		if !strings.Contains(text, field) {
			t.Errorf("%s is not described", field)
		}
	}
}

// An empty list is an array, and no answer holds more than its type says.
func TestListsAreArrays(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	for _, path := range []string{"/v1/regions", "/v1/hosts", "/v1/tokens", "/v1/orgs/acme/apps", "/v1/orgs/acme/machines", "/v1/orgs/acme/clients"} {
		var raw json.RawMessage
		if err := w.admin.Do(t.Context(), "GET", path, nil, &raw); err != nil || strings.TrimSpace(string(raw)) != "[]" {
			t.Errorf("%s: %s, %v", path, raw, err)
		}
	}
	var raw json.RawMessage
	if err := w.admin.Do(t.Context(), "GET", "/v1/orgs", nil, &raw); err != nil || strings.Contains(string(raw), "$schema") {
		t.Errorf("orgs: %s, %v", raw, err)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	w.host("fra1", "fra", "all")
	for _, tt := range []struct {
		name, method, path, body string
		want                     *api.Error
		says                     string
	}{
		{"unknown field", "POST", "/v1/orgs", `{"name":"x","colour":"red"}`, api.ErrInvalid, "colour: there is no such field"},
		{"unknown field, deep", "POST", "/v1/regions", `{"name":"x","at":{"latitude":1,"longitude":2,"height":3}}`, api.ErrInvalid, "at.height: there is no such field"},
		{"missing field", "POST", "/v1/orgs", `{}`, api.ErrInvalid, "name"},
		{"wrong type", "POST", "/v1/orgs", `{"name":7}`, api.ErrInvalid, "name: expected string"},
		{"bad name", "POST", "/v1/orgs", `{"name":"Acme Inc"}`, api.ErrInvalid, `"Acme Inc"`},
		{"reserved name", "POST", "/v1/orgs", `{"name":"all"}`, api.ErrInvalid, "every org"},
		{"twice", "POST", "/v1/orgs", `{"name":"acme"}`, api.ErrExists, "acme"},
		{"missing org", "GET", "/v1/orgs/none", ``, api.ErrNotFound, "org none: not found"},
		{"list of a missing org", "GET", "/v1/orgs/none/machines", ``, api.ErrNotFound, "org none: not found"},
		{"name with a slash", "GET", "/v1/orgs/acme/apps/a%2Fb", ``, api.ErrNotFound, `app "a/b"`},
		{"no route", "GET", "/v1/nothing", ``, api.ErrNotFound, "GET /v1/nothing: no such route"},
		{"other method", "PATCH", "/v1/orgs", `{}`, api.ErrNotFound, "no such route"},
		{"token kind", "POST", "/v1/tokens", `{"kind":"machine"}`, api.ErrInvalid, "kind"},
		{"token ttl", "POST", "/v1/tokens", `{"kind":"client","org":"acme","ttl":"soon"}`, api.ErrInvalid, `ttl "soon"`},
		{"token ttl below zero", "POST", "/v1/tokens", `{"kind":"client","org":"acme","ttl":"-1h"}`, api.ErrInvalid, `ttl "-1h"`},
		{"token uses", "POST", "/v1/tokens", `{"kind":"client","org":"acme","uses":-1}`, api.ErrInvalid, "uses -1"},
		{"token of no org", "POST", "/v1/tokens", `{"kind":"client"}`, api.ErrInvalid, "names one org"},
		{"token of a missing org", "POST", "/v1/tokens", `{"kind":"client","org":"none"}`, api.ErrNotFound, "none"},
		{"host token without orgs", "POST", "/v1/tokens", `{"kind":"host"}`, api.ErrInvalid, "orgs"},
		{"operator id", "POST", "/v1/operators", `{"id":"A B","role":"operator"}`, api.ErrInvalid, `"A B"`},
		{"operator role", "POST", "/v1/operators", `{"id":"x","role":"king"}`, api.ErrInvalid, "role"},
		{"last operator", "DELETE", "/v1/operators/admin", ``, api.ErrConflict, "last"},
		{"client key", "POST", "/v1/orgs/acme/clients", `{"name":"x","key":"no"}`, api.ErrInvalid, "WireGuard public key"},
		{"client gateway", "POST", "/v1/orgs/acme/clients", `{"name":"x","key":"` + newWireGuardKey(t) + `","gateway":"none"}`, api.ErrNotFound, "none"},
		{"region in use", "DELETE", "/v1/regions/fra", ``, api.ErrConflict, "1 host"},
		{"events beyond the limit", "GET", "/v1/events?limit=100000", ``, api.ErrInvalid, "limit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var body any
			if tt.body != "" {
				body = json.RawMessage(tt.body)
			}
			e := refused(t, w.admin.Do(t.Context(), tt.method, tt.path, body, nil), tt.want)
			if !strings.Contains(e.Message, tt.says) {
				t.Errorf("says %q, want %q in it", e.Message, tt.says)
			}
		})
	}
	a := &asker{w.bare("h2", nil), w.cred.Text()}
	for _, body := range []string{`{"name":`, `[]`, `nonsense`, ``, `{"name":"` + strings.Repeat("x", 1<<20) + `"}`} {
		req, err := http.NewRequest("POST", w.url+"/v1/orgs", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+a.bearer)
		req.Header.Set("Content-Type", "application/json")
		resp, err := a.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text := readAll(t, resp)
		if ct := resp.Header.Get("Content-Type"); resp.StatusCode/100 != 4 || ct != "application/problem+json" {
			t.Errorf("%.20q: %d %s %s", body, resp.StatusCode, ct, text)
		}
		checkRefusal(t, fmt.Sprintf("%.20q", body), resp.StatusCode, text)
		if len(text) > 1000 {
			t.Errorf("%.20q: the refusal has %d bytes", body, len(text))
		}
	}
}

func TestVerbs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	fra1 := w.host("fra1", "fra", "all")

	app := do[mesh.App](t, w.admin, "POST", "/v1/orgs/acme/apps", api.CreateApp{Name: "api"})
	if app != (mesh.App{Org: "acme", Name: "api"}) {
		t.Errorf("app %+v", app)
	}
	m := do[api.MachineInfo](t, fra1.Client, "POST", "/v1/orgs/acme/machines",
		api.CreateMachine{ID: "db-1", App: "db", Group: "primary", Meta: map[string]string{"version": "17"}})
	if m.Host != "fra1" || m.Region != "fra" || !m.Stable || m.Group != "primary" || m.Meta["version"] != "17" || m.State != mesh.StateStarted {
		t.Errorf("machine %+v", m)
	}
	if m.Address != m.Endpoint.Addr().Next().Next() {
		t.Errorf("address %s of %s", m.Address, m.Endpoint)
	}
	drawn := fra1.machine("acme", "db", "")
	if drawn.Stable || len(drawn.ID) != 14 {
		t.Errorf("machine %+v", drawn)
	}
	if got := do[api.MachineInfo](t, w.admin, "GET", "/v1/orgs/acme/machines/db-1", nil); got.Address != m.Address {
		t.Errorf("shown: %+v", got)
	}
	refused(t, fra1.Do(t.Context(), "POST", "/v1/orgs/acme/machines", api.CreateMachine{ID: "db-1", App: "db"}, nil), api.ErrExists)

	h := do[api.HostInfo](t, w.admin, "PATCH", "/v1/hosts/fra1", map[string]any{"cordoned": true})
	if !h.Cordoned {
		t.Error("not cordoned")
	}
	e := refused(t, fra1.Do(t.Context(), "POST", "/v1/orgs/acme/machines", api.CreateMachine{App: "db"}, nil), api.ErrConflict)
	if !strings.Contains(e.Message, "cordoned") {
		t.Errorf("says %q", e.Message)
	}

	c := do[api.CreatedClient](t, w.admin, "POST", "/v1/orgs/acme/clients", api.CreateClient{Name: "phone", Key: newWireGuardKey(t)})
	if c.Network.String() != "fd12:3456:789a:1::/64" || c.Resolver.String() != "fd12:3456:789a:1::3" || c.Address != c.Client.Address() || !c.Network.Contains(c.Address) {
		t.Errorf("client %+v", c)
	}
	if c.Gateway.Name != "fra1" || c.Gateway.Endpoint.String() != "192.0.2.1:51820" || wgtypes.Key(c.Gateway.Key) != fra1.keys.WireGuard.PublicKey() {
		t.Errorf("gateway %+v", c.Gateway)
	}
	op := do[api.Operator](t, w.admin, "GET", "/v1/operators/admin", nil)
	if op != (api.Operator{ID: "admin", Role: mesh.RoleOperator}) {
		t.Errorf("operator %+v", op)
	}
	for _, path := range []string{"/v1/orgs/acme/clients/phone", "/v1/orgs/acme/machines/db-1", "/v1/orgs/acme/apps/api"} {
		if err := w.admin.Do(t.Context(), "DELETE", path, nil, nil); err != nil {
			t.Error(err)
		}
		refused(t, w.admin.Do(t.Context(), "GET", path, nil, nil), api.ErrNotFound)
		refused(t, w.admin.Do(t.Context(), "DELETE", path, nil, nil), api.ErrNotFound)
	}
	events := do[[]mesh.Event](t, w.admin, "GET", "/v1/events?limit=4", nil)
	if len(events) != 4 || events[3].Action != "app.remove" || events[3].Actor != "operator/admin" || events[3].Target != "acme/api" {
		t.Errorf("events %+v", events)
	}
}

func TestStoreGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	f := w.host("fra1", "fra", "all").view()
	f.until("a view", func(mesh.View) bool { return true })
	w.etcd.Close()
	a := &asker{w.bare("h2", nil), w.cred.Text()}
	req, err := http.NewRequest("POST", w.url+"/v1/orgs", strings.NewReader(`{"name":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+a.bearer)
	resp, err := a.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text := readAll(t, resp)
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(text, `"unavailable"`) {
		t.Errorf("%d, Retry-After %q: %s", resp.StatusCode, resp.Header.Get("Retry-After"), text)
	}
	err = w.admin.Do(t.Context(), "POST", "/v1/orgs", api.CreateOrg{Name: "x"}, nil)
	if !errors.Is(err, api.ErrUnreachable) || !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("the client says %v", err)
	}
	// What is in memory is still served: lists, and streams go on.
	if orgs := do[[]api.OrgInfo](t, w.admin, "GET", "/v1/orgs", nil); len(orgs) != 1 {
		t.Errorf("orgs %v", orgs)
	}
	for f.next().Ping == nil {
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err    error
		want   *api.Error
		status int
		hint   string
	}{
		{fmt.Errorf("x: %w", store.ErrInvalid), api.ErrInvalid, 422, ""},
		{fmt.Errorf("x: %w", store.ErrExists), api.ErrExists, 409, ""},
		{fmt.Errorf("x: %w", store.ErrNotFound), api.ErrNotFound, 404, ""},
		{fmt.Errorf("x: %w", store.ErrConflict), api.ErrConflict, 409, ""},
		{fmt.Errorf("x: %w", store.ErrFull), api.ErrFull, 507, ""},
		{fmt.Errorf("x: %w", store.ErrToken), api.ErrToken, 403, "weft token create"},
		{fmt.Errorf("x: %w", store.ErrUnavailable), api.ErrUnavailable, 503, "try again"},
		{fmt.Errorf("x: %w; %w", store.ErrUnavailable, store.ErrUnsure), api.ErrUnavailable, 503, "look whether it was done"},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), api.ErrUnavailable, 503, "try again"},
		{mesh.WithHint(fmt.Errorf("x: %w", store.ErrFull), "do that"), api.ErrFull, 507, "do that"},
		{fmt.Errorf("x: %w", api.ErrForbidden), api.ErrForbidden, 403, ""},
	} {
		e, known := refusalOf(tt.err)
		if !known || e.Code != tt.want.Code || e.Status != tt.status || !strings.Contains(e.Advice, tt.hint) {
			t.Errorf("%v: %+v, %t", tt.err, e, known)
		}
		if e.Unsure != errors.Is(tt.err, store.ErrUnsure) {
			t.Errorf("%v: unsure %t", tt.err, e.Unsure)
		}
	}
	e, known := refusalOf(errors.New("password is hunter2"))
	if known || e.Status != 500 || strings.Contains(e.Message, "hunter2") {
		t.Errorf("unforeseen: %+v, %t", e, known)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.client(enroll.ClientConfig{Pin: w.pin}, "admin."+strings.Repeat("a", 32)).Do(t.Context(), "GET", "/v1/orgs", nil, nil)
	text := w.scrape()
	for _, line := range []string{
		"weft_controller_streams 0", `weft_store_objects{kind="org"} 1`, `weft_controller_requests_total{code="201",route="org-create"} 1`,
		`weft_controller_requests_total{code="401",route="org-list"} 1`, "weft_store_revision ", "weft_store_age_seconds ", "go_goroutines ",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("%s is not in the metrics", line)
		}
	}
}
