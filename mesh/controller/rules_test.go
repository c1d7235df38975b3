package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// Who asks. acme is the org that is asked about, where there is one.
var columns = []string{
	"nobody",
	"wrong",    // a credential whose secret is wrong
	"operator", // of the mesh
	"admin",    // of acme
	"admin2",   // of another org
	"member",   // of acme
	"member2",  // of another org
	"carrying", // a host that carries acme
	"allowed",  // a host that may carry acme, and does not
	"barred",   // a host that may not carry acme
	"client",   // of acme
	"client2",  // of another org
	"expired",  // a host whose certificate is out of date
	"revoked",  // a host that was removed
}

// cell is one row of the table: a request, and what each asker gets.
type cell struct {
	rule string
	note string // if there is more than one row of a rule
	// make prepares the request: what it is about is there, and new if it goes away.
	make    func(x *fixture) (path string, body any)
	fresh   bool   // the asker goes away: each request has an asker of its own
	private bool   // on the listener for metrics
	status  string // by column
}

// self is what routes of nodes answer: ok to nodes, and nothing to anybody else.
func self(ok string) string {
	return strings.ReplaceAll("401 401 403 403 403 403 403 OK OK OK OK OK 401 401", "OK", ok)
}

// CVE-2026-47724: ownership was checked only in the web page. Here is every route
// with everybody who might try it, each answer spelled out, against a real
// controller over TLS.
func table() []cell {
	fixed := func(path string) func(*fixture) (string, any) {
		return func(*fixture) (string, any) { return path, nil }
	}
	all := func(status string) string { return strings.TrimSpace(strings.Repeat(status+" ", len(columns))) }
	//                       nobody wrong operator admin admin2 member member2 carrying allowed barred client client2 expired revoked
	const operatorOnly200 = "401    401   200      403   403    403    403     403      403     403    403    403     401     401"
	const operatorOnly201 = "401    401   201      403   403    403    403     403      403     403    403    403     401     401"
	const operatorOnly204 = "401    401   204      403   403    403    403     403      403     403    403    403     401     401"
	const anyPerson200 = "   401    401   200      200   200    200    200     403      403     403    403    403     401     401"
	const ownPeople200 = "   401    401   200      200   404    200    404     403      403     403    403    403     401     401"
	const andHosts200 = "    401    401   200      200   404    200    404     200      200     403    403    403     401     401"
	const ownPeople201 = "   401    401   201      201   404    201    404     403      403     403    403    403     401     401"
	const ownAdmin200 = "    401    401   200      200   404    403    403     403      403     403    403    403     401     401"
	const ownAdmin201 = "    401    401   201      201   404    403    403     403      403     403    403    403     401     401"
	const ownAdmin204 = "    401    401   204      204   404    403    403     403      403     403    403    403     401     401"
	const notOfOthers204 = " 401    401   204      204   404    403    404     403      403     403    403    403     401     401"
	const anyAdmin200 = "    401    401   200      200   200    403    403     403      403     403    403    403     401     401"
	const meshAdmin200 = "   401    401   200      404   404    403    403     403      403     403    403    403     401     401"
	const meshAdmin204 = "   401    401   204      404   404    403    403     403      403     403    403    403     401     401"
	const onlyClients200 = " 401    401   403      403   403    403    403     403      403     403    200    200     401     401"
	const renew = "          401    401   403      403   403    403    403     200      200     200    200    200     200     401"
	const newMachine = "     401    401   403      403   403    403    403     201      201     403    403    403     401     401"
	const gone = "           401    401   204      204   404    403    403     204      404     403    403    403     401     401"
	const wanted = "         401    401   200      200   404    403    403     403      404     403    403    403     401     401"

	return []cell{
		{rule: "health", make: fixed("/healthz"), status: all("200")},
		{rule: "health", note: "on the other listener", make: fixed("/healthz"), private: true, status: all("200")},
		{rule: "ready", make: fixed("/readyz"), status: all("200")},
		{rule: "metrics", make: fixed("/metrics"), private: true, status: all("200")},
		{rule: "metrics", note: "not on the API's listener", make: fixed("/metrics"), status: all("404")},
		{rule: "openapi", make: fixed("/openapi.json"), status: all("200")},
		{rule: "mesh-show", make: fixed("/v1/mesh"), status: all("200")},
		{rule: "enroll", make: (*fixture).enrolment, status: all("201")},
		{rule: "self-renew", make: fixed("/v1/nodes/self/renew"), status: renew},
		{rule: "self-report", make: func(*fixture) (string, any) { return "/v1/nodes/self/report", api.Report{} }, status: self("204")},
		{rule: "self-gateway", make: func(*fixture) (string, any) {
			return "/v1/nodes/self/gateway", api.GatewayRequest{Gateway: "gw"}
		}, status: onlyClients200},
		{rule: "self-view", make: fixed("/v1/nodes/self/view"), status: self("200")},
		{rule: "self-leave", make: fixed("/v1/nodes/self"), fresh: true, status: self("204")},

		{rule: "org-list", make: fixed("/v1/orgs"), status: anyPerson200},
		{rule: "org-create", make: func(x *fixture) (string, any) { return "/v1/orgs", api.CreateOrg{Name: x.name("o")} }, status: operatorOnly201},
		{rule: "org-show", make: fixed("/v1/orgs/acme"), status: ownPeople200},
		{rule: "org-update", make: func(*fixture) (string, any) {
			return "/v1/orgs/acme", map[string]any{"limits": map[string]any{"machines": 5000}}
		}, status: operatorOnly200},
		{rule: "org-remove", make: (*fixture).org, status: operatorOnly204},
		{rule: "region-list", make: fixed("/v1/regions"), status: anyPerson200},
		{rule: "region-create", make: func(x *fixture) (string, any) { return "/v1/regions", api.CreateRegion{Name: x.name("r")} }, status: operatorOnly201},
		{rule: "region-show", make: fixed("/v1/regions/fra"), status: anyPerson200},
		{rule: "region-remove", make: (*fixture).region, status: operatorOnly204},

		{rule: "token-list", make: fixed("/v1/tokens"), status: anyAdmin200},
		{rule: "token-create", note: "a client's of acme", make: func(*fixture) (string, any) { return "/v1/tokens", clientToken }, status: ownAdmin201},
		{rule: "token-create", note: "a host's", make: func(*fixture) (string, any) { return "/v1/tokens", hostToken }, status: operatorOnly201},
		{rule: "token-create", note: "a host's that names an org", make: func(*fixture) (string, any) {
			return "/v1/tokens", api.CreateToken{Kind: mesh.KindHost, Org: "acme", Orgs: []string{"all"}}
		}, status: strings.ReplaceAll(operatorOnly201, "201", "422")},
		{rule: "token-show", note: "a client's of acme", make: (*fixture).clientToken, status: ownAdmin200},
		{rule: "token-show", note: "a host's", make: (*fixture).hostToken, status: meshAdmin200},
		{rule: "token-remove", note: "a client's of acme", make: (*fixture).clientToken, status: ownAdmin204},
		{rule: "token-remove", note: "a host's", make: (*fixture).hostToken, status: meshAdmin204},

		{rule: "operator-list", make: fixed("/v1/operators"), status: anyAdmin200},
		{rule: "operator-create", note: "a member of acme", make: func(x *fixture) (string, any) {
			return "/v1/operators", api.CreateOperator{ID: x.name("m"), Role: mesh.RoleOrgMember, Org: "acme"}
		}, status: ownAdmin201},
		{rule: "operator-create", note: "of the mesh", make: func(x *fixture) (string, any) {
			return "/v1/operators", api.CreateOperator{ID: x.name("m"), Role: mesh.RoleOperator}
		}, status: operatorOnly201},
		{rule: "operator-create", note: "of the mesh, that names an org", make: func(x *fixture) (string, any) {
			return "/v1/operators", api.CreateOperator{ID: x.name("m"), Role: mesh.RoleOperator, Org: "acme"}
		}, status: strings.ReplaceAll(operatorOnly201, "201", "422")},
		{rule: "operator-show", note: "a member of acme", make: (*fixture).orgMember, status: ownAdmin200},
		{rule: "operator-show", note: "of the mesh", make: (*fixture).meshOperator, status: meshAdmin200},
		{rule: "operator-remove", note: "a member of acme", make: (*fixture).orgMember, status: ownAdmin204},
		{rule: "operator-remove", note: "of the mesh", make: (*fixture).meshOperator, status: meshAdmin204},

		{rule: "host-list", make: fixed("/v1/hosts"), status: operatorOnly200},
		{rule: "host-show", make: fixed("/v1/hosts/carrying"), status: operatorOnly200},
		{rule: "host-update", make: func(*fixture) (string, any) { return "/v1/hosts/gw", map[string]any{"cordoned": false} }, status: operatorOnly200},
		{rule: "host-remove", make: (*fixture).host, status: operatorOnly204},

		{rule: "app-list", make: fixed("/v1/orgs/acme/apps"), status: ownPeople200},
		{rule: "app-create", make: func(x *fixture) (string, any) { return "/v1/orgs/acme/apps", api.CreateApp{Name: x.name("a")} }, status: ownAdmin201},
		{rule: "app-show", make: (*fixture).app, status: ownPeople200},
		{rule: "app-update", make: func(x *fixture) (string, any) {
			path, _ := x.app()
			return path, map[string]any{"answer": "all", "ttl": 7}
		}, status: ownAdmin200},
		{rule: "app-remove", make: (*fixture).app, status: ownAdmin204},

		{rule: "record-list", make: fixed("/v1/orgs/acme/records"), status: ownPeople200},
		{rule: "record-create", make: func(x *fixture) (string, any) {
			return "/v1/orgs/acme/records", api.CreateRecord{Name: x.name("r"), Type: "TXT", Values: []string{"x"}}
		}, status: ownAdmin201},
		{rule: "record-show", make: func(x *fixture) (string, any) { return x.record(""), nil }, status: ownPeople200},
		{rule: "record-set", make: func(x *fixture) (string, any) {
			return x.record("/TXT"), api.SetRecord{Values: []string{"y"}}
		}, status: ownAdmin200},
		{rule: "record-remove", make: func(x *fixture) (string, any) { return x.record("/txt"), nil }, status: ownAdmin204},
		{rule: "record-clear", make: func(x *fixture) (string, any) { return x.record(""), nil }, status: ownAdmin204},

		{rule: "grant-list", make: fixed("/v1/grants"), status: anyPerson200},
		{rule: "grant-create", make: func(x *fixture) (string, any) { return "/v1/grants", x.newGrant("globex") }, status: operatorOnly201},
		{rule: "grant-show", note: "between the orgs of all", make: func(x *fixture) (string, any) { return x.grant("globex"), nil }, status: anyPerson200},
		{rule: "grant-show", note: "to a third org", make: func(x *fixture) (string, any) { return x.grant(x.third()), nil }, status: ownPeople200},
		{rule: "grant-remove", make: func(x *fixture) (string, any) { return x.grant("globex"), nil }, status: operatorOnly204},

		{rule: "machine-list", make: fixed("/v1/orgs/acme/machines"), status: ownPeople200},
		{rule: "machine-create", make: func(*fixture) (string, any) { return "/v1/orgs/acme/machines", api.CreateMachine{App: "web"} }, status: newMachine},
		{rule: "machine-create", note: "of an org that is not there", make: func(*fixture) (string, any) {
			return "/v1/orgs/none/machines", api.CreateMachine{App: "web"}
		}, status: strings.ReplaceAll(newMachine, "201", "403")},
		{rule: "machine-show", make: (*fixture).machine, status: andHosts200},
		{rule: "machine-update", note: "drains", make: func(x *fixture) (string, any) {
			path, _ := x.machine()
			return path, map[string]any{"state": "draining"}
		}, status: strings.ReplaceAll(gone, "204", "200")},
		{rule: "machine-update", note: "what a host may not", make: func(x *fixture) (string, any) {
			path, _ := x.machine()
			return path, map[string]any{"cordoned": true}
		}, status: wanted},
		{rule: "machine-remove", make: (*fixture).machine, status: gone},
		{rule: "machine-move", note: "that is not prepared", make: func(x *fixture) (string, any) {
			path, _ := x.machine()
			return path + "/host", api.MoveMachine{Generation: 1}
		}, status: strings.ReplaceAll(newMachine, "201", "409")},
		{rule: "machine-unmove", note: "that is not prepared", make: func(x *fixture) (string, any) {
			path, _ := x.machine()
			return path + "/host", nil
		}, status: strings.ReplaceAll(newMachine, "201", "404")},

		{rule: "client-list", make: fixed("/v1/orgs/acme/clients"), status: ownPeople200},
		{rule: "client-create", make: func(x *fixture) (string, any) {
			return "/v1/orgs/acme/clients", api.CreateClient{Name: x.name("c"), Key: newWireGuardKey(x.t)}
		}, status: ownPeople201},
		{rule: "client-show", make: (*fixture).client, status: ownPeople200},
		{rule: "client-remove", note: "that an admin made", make: (*fixture).client, status: notOfOthers204},

		{rule: "event-list", make: fixed("/v1/events"), status: operatorOnly200},
		{rule: "backup", make: fixed("/v1/backup"), status: operatorOnly200},
	}
}

// fixture is a mesh with everybody in it.
type fixture struct {
	*world
	n       int
	askers  map[string]*asker
	carrier *node // the host that carries acme
}

// asker sends requests as somebody.
type asker struct {
	http   *http.Client
	bearer string
}

func (x *fixture) name(prefix string) string { x.n++; return fmt.Sprintf("%s%d", prefix, x.n) }

func newFixture(t *testing.T) *fixture {
	x := &fixture{world: newWorld(t, nil), askers: map[string]*asker{}}
	x.world.org("acme")
	x.world.org("globex")
	x.world.region("fra")
	x.world.host("gw", "fra", "all")
	for _, who := range columns {
		x.askers[who] = x.asker(who, who)
	}
	return x
}

// asker makes who anew; as a node it gets the name.
func (x *fixture) asker(who, name string) *asker {
	as := func(id, role, org string) *asker {
		id = "op-" + id
		created := do[api.CreatedOperator](x.t, x.admin, "POST", "/v1/operators", api.CreateOperator{ID: id, Role: role, Org: org})
		return &asker{x.bare("h2", nil), created.ID + "." + created.Secret}
	}
	of := func(n *node) *asker { return &asker{x.bare("h2", n.certificate), ""} }
	switch who {
	case "nobody":
		return &asker{x.bare("h2", nil), ""}
	case "wrong":
		return &asker{x.bare("h2", nil), firstOperator + "." + strings.Repeat("a", 32)}
	case "operator":
		return &asker{x.bare("h2", nil), x.cred.Text()}
	case "admin":
		return as(name, mesh.RoleOrgAdmin, "acme")
	case "admin2":
		return as(name, mesh.RoleOrgAdmin, "globex")
	case "member":
		return as(name, mesh.RoleOrgMember, "acme")
	case "member2":
		return as(name, mesh.RoleOrgMember, "globex")
	case "carrying":
		n := x.world.host(name, "fra", "acme")
		n.machine("acme", "web", name)
		if x.carrier == nil {
			x.carrier = n
		}
		return of(n)
	case "allowed":
		return of(x.world.host(name, "fra", "globex", "acme"))
	case "barred":
		return of(x.world.host(name, "fra", "globex"))
	case "client":
		return of(x.laptop("acme", name))
	case "client2":
		return of(x.laptop("globex", name))
	case "expired":
		n := x.world.host(name, "fra", "all")
		n.expire()
		return of(n)
	case "revoked":
		n := x.world.host(name, "fra", "all")
		if err := x.admin.Do(x.t.Context(), "DELETE", "/v1/hosts/"+name, nil, nil); err != nil {
			x.t.Fatal(err)
		}
		return of(n)
	}
	x.t.Fatalf("who is %s?", who)
	return nil
}

// What requests are about, each new.

func (x *fixture) enrolment() (string, any) {
	n := x.newNode()
	return "/v1/enroll", n.request(x.token(hostToken).Token, x.name("h"))
}
func (x *fixture) org() (string, any) {
	name := x.name("o")
	x.world.org(name)
	return "/v1/orgs/" + name, nil
}
func (x *fixture) region() (string, any) {
	name := x.name("r")
	x.world.region(name)
	return "/v1/regions/" + name, nil
}
func (x *fixture) clientToken() (string, any) { return "/v1/tokens/" + x.token(clientToken).ID, nil }
func (x *fixture) hostToken() (string, any)   { return "/v1/tokens/" + x.token(hostToken).ID, nil }
func (x *fixture) orgMember() (string, any) {
	id := x.name("m")
	x.operator(id, mesh.RoleOrgMember, "acme")
	return "/v1/operators/" + id, nil
}
func (x *fixture) meshOperator() (string, any) {
	id := x.name("m")
	x.operator(id, mesh.RoleOperator, "")
	return "/v1/operators/" + id, nil
}
func (x *fixture) host() (string, any) {
	name := x.name("h")
	x.world.host(name, "fra", "all")
	return "/v1/hosts/" + name, nil
}
func (x *fixture) app() (string, any) {
	name := x.name("a")
	do[mesh.App](x.t, x.admin, "POST", "/v1/orgs/acme/apps", api.CreateApp{Name: name})
	return "/v1/orgs/acme/apps/" + name, nil
}

// newGrant is from acme.
func (x *fixture) newGrant(to string) api.CreateGrant {
	return api.CreateGrant{From: mesh.Party{Org: "acme", App: x.name("a")}, To: mesh.Party{Org: to}, Protocol: mesh.ProtocolTCP, FirstPort: 80}
}

func (x *fixture) grant(to string) string {
	return "/v1/grants/" + do[api.GrantInfo](x.t, x.admin, "POST", "/v1/grants", x.newGrant(to)).ID
}

// third is an org of which nobody is.
func (x *fixture) third() string {
	name := x.name("o")
	x.world.org(name)
	return name
}

func (x *fixture) record(kind string) string {
	name := x.name("r")
	do[mesh.Record](x.t, x.admin, "POST", "/v1/orgs/acme/records", api.CreateRecord{Name: name, Type: "TXT", Values: []string{"x"}})
	return "/v1/orgs/acme/records/" + name + kind
}
func (x *fixture) machine() (string, any) {
	return "/v1/orgs/acme/machines/" + x.carrier.machine("acme", "web", x.name("i")).ID, nil
}
func (x *fixture) client() (string, any) {
	name := x.name("c")
	do[api.CreatedClient](x.t, x.admin, "POST", "/v1/orgs/acme/clients", api.CreateClient{Name: name, Key: newWireGuardKey(x.t)})
	return "/v1/orgs/acme/clients/" + name, nil
}

func TestCVE202647724EveryRouteHasItsRule(t *testing.T) {
	t.Parallel()
	x := newFixture(t)
	byID := map[string]rule{}
	for _, r := range rules() {
		byID[r.id] = r
	}
	walked := map[string]bool{}
	for _, row := range table() {
		r, ok := byID[row.rule]
		want := strings.Fields(row.status)
		if !ok || len(want) != len(columns) {
			t.Fatalf("row %s %s: %d cells for %d columns, rule is there: %t", row.rule, row.note, len(want), len(columns), ok)
		}
		walked[row.rule] = true
		for i, who := range columns {
			a := x.askers[who]
			if row.fresh {
				a = x.asker(who, x.name(who))
			}
			path, body := row.make(x)
			base := x.url
			if row.private {
				base = x.metrics
			}
			status, answer := a.ask(t, r.method, base+path, body, r.stream)
			if got := fmt.Sprint(status); got != want[i] {
				t.Errorf("%s %s, %s: %s %s answers %s, want %s: %s", row.rule, row.note, who, r.method, path, got, want[i], answer)
			}
			if status >= 400 {
				checkRefusal(t, row.rule+" "+who, status, answer)
			}
		}
	}
	for _, r := range rules() {
		if !walked[r.id] {
			t.Errorf("rule %s has no row", r.id)
		}
	}
}

// ask sends a request and returns the status and the body, which of a stream is
// not read.
func (a *asker) ask(t *testing.T, method, url string, body any, stream bool) (int, string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	if body == nil {
		b = nil
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if a.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+a.bearer)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	if stream && resp.StatusCode == http.StatusOK {
		resp.Body.Close()
		return resp.StatusCode, ""
	}
	return resp.StatusCode, readAll(t, resp)
}

// checkRefusal: what is refused says so in the one form, and gives nothing away.
func checkRefusal(t *testing.T, where string, status int, answer string) {
	t.Helper()
	var e api.Error
	if err := json.Unmarshal([]byte(answer), &e); err != nil || e.Status != status || e.Code == "" || e.Message == "" {
		t.Errorf("%s: refusal %d is %q", where, status, answer)
	}
}

// To an org role another org's things look exactly as if they were not there.
func TestOtherOrgsLookLikeNothing(t *testing.T) {
	t.Parallel()
	x := newFixture(t)
	eve := x.askers["admin2"]
	for _, tt := range []struct {
		kind string
		make func() (string, any)
	}{
		{"token", x.clientToken}, {"operator", x.orgMember}, {"app", x.app}, {"machine", x.machine}, {"client", x.client},
		{"org", func() (string, any) { return "/v1/orgs/acme", nil }},
	} {
		there, _ := tt.make()
		missing := there[:strings.LastIndex(there, "/")] + "/missing"
		if tt.kind != "org" && tt.kind != "token" && tt.kind != "operator" {
			missing = strings.Replace(missing, "/acme/", "/nowhere/", 1)
		}
		s1, a1 := eve.ask(t, "GET", x.url+there, nil, false)
		s2, a2 := eve.ask(t, "GET", x.url+missing, nil, false)
		name := there[strings.LastIndex(there, "/")+1:]
		a1 = strings.ReplaceAll(strings.ReplaceAll(a1, name, "missing"), "acme", "nowhere")
		if tt.kind == "org" {
			a2 = strings.ReplaceAll(a2, "nowhere", "missing")
		}
		if s1 != s2 || a1 != a2 {
			t.Errorf("%s: %d %s, but what is not there: %d %s", tt.kind, s1, a1, s2, a2)
		}
	}
}

// Lists hold what the caller may see.
func TestListsAreCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	for _, org := range []string{"acme", "globex"} {
		w.org(org)
		w.token(api.CreateToken{Kind: mesh.KindClient, Org: org})
		w.operator("member-"+org, mesh.RoleOrgMember, org)
	}
	w.region("fra")
	w.token(hostToken)
	admin := w.operator("admin-acme", mesh.RoleOrgAdmin, "acme")
	for _, tt := range []struct {
		path      string
		all, acme int
	}{
		{"/v1/orgs", 2, 1},
		{"/v1/tokens", 3, 1},
		{"/v1/operators", 4, 2},
		{"/v1/regions", 1, 1},
	} {
		if got := do[[]map[string]any](t, w.admin, "GET", tt.path, nil); len(got) != tt.all {
			t.Errorf("%s: the operator sees %d, want %d", tt.path, len(got), tt.all)
		}
		got := do[[]map[string]any](t, admin, "GET", tt.path, nil)
		if len(got) != tt.acme {
			t.Errorf("%s: acme's admin sees %d, want %d", tt.path, len(got), tt.acme)
		}
		if text := jsonText(t, got); strings.Contains(text, "globex") || strings.Contains(text, `"hash"`) {
			t.Errorf("%s: acme's admin sees %s", tt.path, text)
		}
	}
	// Whoever had a role in an org that is gone is nobody.
	if err := w.admin.Do(t.Context(), "DELETE", "/v1/orgs/acme", nil, nil); err != nil {
		t.Fatal(err)
	}
	refused(t, admin.Do(t.Context(), "GET", "/v1/orgs", nil, nil), api.ErrUnauthorized)
}

// An org member has clients of his own, and takes away those alone.
func TestMembersRemoveTheirOwnClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	w.host("h", "fra", "acme")
	ann, bob := w.operator("ann", mesh.RoleOrgMember, "acme"), w.operator("bob", mesh.RoleOrgMember, "acme")
	made := do[api.CreatedClient](t, ann, "POST", "/v1/orgs/acme/clients", api.CreateClient{Name: "laptop", Key: newWireGuardKey(t)})
	if made.Client.Owner != "operator/ann" {
		t.Errorf("the owner is %q", made.Client.Owner)
	}
	refused(t, bob.Do(t.Context(), "DELETE", "/v1/orgs/acme/clients/laptop", nil, nil), api.ErrForbidden)
	if err := ann.Do(t.Context(), "DELETE", "/v1/orgs/acme/clients/laptop", nil, nil); err != nil {
		t.Fatal(err)
	}
	refused(t, ann.Do(t.Context(), "DELETE", "/v1/orgs/acme/clients/laptop", nil, nil), api.ErrNotFound)
}

// A host is kept from other hosts' machines by the rule already, not only by the
// store, and a machine that is not there looks the same.
func TestHostsMachinesAreItsOwn(t *testing.T) {
	t.Parallel()
	st := mesh.State{}.With(
		mesh.Change{Key: "machines/acme/mine", Object: mesh.Machine{Org: "acme", ID: "mine", Host: "fra1"}},
		mesh.Change{Key: "machines/acme/theirs", Object: mesh.Machine{Org: "acme", ID: "theirs", Host: "fra2"}})
	c := caller{role: host, node: mesh.Node{Kind: mesh.KindHost, Name: "fra1"}, host: mesh.Host{Name: "fra1", Orgs: []string{"acme"}}}
	for _, r := range rules() {
		if r.id != "machine-remove" {
			continue
		}
		for machine, want := range map[string]error{"mine": nil, "theirs": api.ErrNotFound} {
			req := httptest.NewRequest(r.method, "/", nil)
			req.SetPathValue("org", "acme")
			req.SetPathValue("machine", machine)
			if err := r.check(req, c, st); !errors.Is(err, want) {
				t.Errorf("%s: got %v, want %v", machine, err, want)
			}
		}
	}
}

// Construction fails for a route without a rule, a route that is registered twice,
// and a rule without a route.
func TestRoutesNeedRules(t *testing.T) {
	t.Parallel()
	s := &server{requests: requests{counts: map[requestKind]uint64{}}}
	nop := func(http.ResponseWriter, *http.Request) {}
	for _, tt := range []struct {
		name string
		do   func(*router)
		want string
	}{
		{"plain handler by pattern", func(r *router) { r.HandleFunc("GET /v1/backdoor", nop) }, "GET /v1/backdoor has no rule"},
		{"plain handler by id", func(r *router) { r.handle("backdoor", nop) }, "backdoor has no rule"},
		{"huma's", func(r *router) {
			route(r, "backdoor", func(context.Context, caller, *nothing) (*none, error) { return nil, nil })
		}, "backdoor has no rule"},
		{"twice", func(r *router) { r.handle("health", nop); r.handle("health", nop) }, "twice"},
		{"body that does not name the org", func(r *router) {
			route(r, "token-create", func(context.Context, caller, *struct{ Body api.CreateToken }) (*none, error) { return nil, nil })
		}, "token-create"},
	} {
		r := newRouter(s)
		if tt.do(r); r.err == nil || !strings.Contains(r.err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q in it", tt.name, r.err, tt.want)
		}
	}
	if err := unused(newRouter(s)); err == nil || !strings.Contains(err.Error(), "rule health has no route") {
		t.Errorf("unused rules: %v", err)
	}
}
