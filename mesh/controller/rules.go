package controller

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// role is what a caller was recognised as; as a set, who may.
type role uint

const (
	anyone role = 1 << iota // no credential is looked at
	operator
	orgAdmin
	orgMember
	host
	client
)

const (
	people = operator | orgAdmin | orgMember
	admins = operator | orgAdmin
	nodes  = host | client
)

// scope says of which org a request is. Callers with an org role get no further
// than their own org; a host no further than the orgs in its record.
type scope uint

const (
	whole      scope = iota // of the mesh or of the caller itself; lists are cut to what the caller may see
	inPath                  // {org}
	inBody                  // the request's body says; see scoped
	ofToken                 // the org of token {id}
	ofOperator              // the org of operator {id}
)

// rule says who may use a route. There is no route without one.
type rule struct {
	id, method, path string
	allow            role
	scope            scope
	expired          bool // a certificate that is out of date will do
	onHost           bool // a host may do this only with a {machine} that is on it
	own              bool // an org member may do this only with a {client} that he made
	stream           bool // the answer has no end, and so no deadline
	does             string
}

// rules is the whole of who may do what. Every handler, also one that is not part
// of the OpenAPI description, is registered through it.
func rules() []rule {
	return []rule{
		{id: "health", method: "GET", path: "/healthz", allow: anyone, does: "see that the process answers"},
		{id: "ready", method: "GET", path: "/readyz", allow: anyone, does: "see whether the controller can serve"},
		{id: "metrics", method: "GET", path: "/metrics", allow: anyone, does: "read the metrics"}, // on a listener of its own
		{id: "openapi", method: "GET", path: "/openapi.json", allow: anyone, does: "read the description of this API"},
		{id: "mesh-show", method: "GET", path: "/v1/mesh", allow: anyone, does: "see which mesh this is"},

		// The token is the credential, and is checked where it is spent.
		{id: "enroll", method: "POST", path: "/v1/enroll", allow: anyone, does: "join with a token"},
		{id: "self-renew", method: "POST", path: "/v1/nodes/self/renew", allow: nodes, expired: true, does: "renew the own certificate"},
		{id: "self-report", method: "POST", path: "/v1/nodes/self/report", allow: nodes, does: "report about itself"},
		{id: "self-gateway", method: "PUT", path: "/v1/nodes/self/gateway", allow: client, does: "choose the own gateway"},
		{id: "self-view", method: "GET", path: "/v1/nodes/self/view", allow: nodes, stream: true, does: "follow the own view"},
		{id: "self-leave", method: "DELETE", path: "/v1/nodes/self", allow: nodes, does: "leave the mesh"},

		{id: "org-list", method: "GET", path: "/v1/orgs", allow: people, does: "list orgs"},
		{id: "org-create", method: "POST", path: "/v1/orgs", allow: operator, does: "create orgs"},
		{id: "org-show", method: "GET", path: "/v1/orgs/{org}", allow: people, scope: inPath, does: "see an org"},
		{id: "org-update", method: "PATCH", path: "/v1/orgs/{org}", allow: operator, scope: inPath, does: "change orgs"},
		{id: "org-remove", method: "DELETE", path: "/v1/orgs/{org}", allow: operator, scope: inPath, does: "remove orgs"},

		{id: "region-list", method: "GET", path: "/v1/regions", allow: people, does: "list regions"},
		{id: "region-create", method: "POST", path: "/v1/regions", allow: operator, does: "create regions"},
		{id: "region-show", method: "GET", path: "/v1/regions/{region}", allow: people, does: "see a region"},
		{id: "region-remove", method: "DELETE", path: "/v1/regions/{region}", allow: operator, does: "remove regions"},

		{id: "token-list", method: "GET", path: "/v1/tokens", allow: admins, does: "list tokens"},
		{id: "token-create", method: "POST", path: "/v1/tokens", allow: admins, scope: inBody, does: "create such a token"},
		{id: "token-show", method: "GET", path: "/v1/tokens/{id}", allow: admins, scope: ofToken, does: "see a token"},
		{id: "token-remove", method: "DELETE", path: "/v1/tokens/{id}", allow: admins, scope: ofToken, does: "remove tokens"},

		{id: "operator-list", method: "GET", path: "/v1/operators", allow: admins, does: "list operators"},
		{id: "operator-create", method: "POST", path: "/v1/operators", allow: admins, scope: inBody, does: "create such an operator"},
		{id: "operator-show", method: "GET", path: "/v1/operators/{id}", allow: admins, scope: ofOperator, does: "see an operator"},
		{id: "operator-remove", method: "DELETE", path: "/v1/operators/{id}", allow: admins, scope: ofOperator, does: "remove operators"},

		{id: "host-list", method: "GET", path: "/v1/hosts", allow: operator, does: "list hosts"},
		{id: "host-show", method: "GET", path: "/v1/hosts/{host}", allow: operator, does: "see a host"},
		{id: "host-update", method: "PATCH", path: "/v1/hosts/{host}", allow: operator, does: "change hosts"},
		{id: "host-remove", method: "DELETE", path: "/v1/hosts/{host}", allow: operator, does: "remove hosts"},

		{id: "app-list", method: "GET", path: "/v1/orgs/{org}/apps", allow: people, scope: inPath, does: "list apps"},
		{id: "app-create", method: "POST", path: "/v1/orgs/{org}/apps", allow: admins, scope: inPath, does: "create apps"},
		{id: "app-show", method: "GET", path: "/v1/orgs/{org}/apps/{app}", allow: people, scope: inPath, does: "see an app"},
		{id: "app-update", method: "PATCH", path: "/v1/orgs/{org}/apps/{app}", allow: admins, scope: inPath, does: "change apps"},
		{id: "app-remove", method: "DELETE", path: "/v1/orgs/{org}/apps/{app}", allow: admins, scope: inPath, does: "remove apps"},

		{id: "record-list", method: "GET", path: "/v1/orgs/{org}/records", allow: people, scope: inPath, does: "list records"},
		{id: "record-create", method: "POST", path: "/v1/orgs/{org}/records", allow: admins, scope: inPath, does: "create records"},
		{id: "record-show", method: "GET", path: "/v1/orgs/{org}/records/{record}", allow: people, scope: inPath, does: "see a name's records"},
		{id: "record-set", method: "PUT", path: "/v1/orgs/{org}/records/{record}/{type}", allow: admins, scope: inPath, does: "change records"},
		{id: "record-remove", method: "DELETE", path: "/v1/orgs/{org}/records/{record}/{type}", allow: admins, scope: inPath, does: "remove records"},
		{id: "record-clear", method: "DELETE", path: "/v1/orgs/{org}/records/{record}", allow: admins, scope: inPath, does: "remove a name's records"},

		{id: "grant-list", method: "GET", path: "/v1/grants", allow: people, does: "list grants"},
		{id: "grant-create", method: "POST", path: "/v1/grants", allow: operator, does: "create grants"},
		{id: "grant-show", method: "GET", path: "/v1/grants/{id}", allow: people, does: "see a grant"},
		{id: "grant-remove", method: "DELETE", path: "/v1/grants/{id}", allow: operator, does: "remove grants"},

		{id: "machine-list", method: "GET", path: "/v1/orgs/{org}/machines", allow: people, scope: inPath, does: "list machines"},
		{id: "machine-create", method: "POST", path: "/v1/orgs/{org}/machines", allow: host, scope: inPath, does: "register a machine"},
		{id: "machine-show", method: "GET", path: "/v1/orgs/{org}/machines/{machine}", allow: people | host, scope: inPath, does: "see a machine"},
		{id: "machine-update", method: "PATCH", path: "/v1/orgs/{org}/machines/{machine}", allow: admins | host, scope: inPath, onHost: true, does: "change machines"},
		{id: "machine-remove", method: "DELETE", path: "/v1/orgs/{org}/machines/{machine}", allow: admins | host, scope: inPath, onHost: true, does: "remove machines"},

		{id: "machine-move", method: "PUT", path: "/v1/orgs/{org}/machines/{machine}/host", allow: host, scope: inPath, does: "take over a machine"},
		{id: "machine-unmove", method: "DELETE", path: "/v1/orgs/{org}/machines/{machine}/host", allow: host, scope: inPath, does: "call off a move to itself"},

		{id: "client-list", method: "GET", path: "/v1/orgs/{org}/clients", allow: people, scope: inPath, does: "list clients"},
		{id: "client-create", method: "POST", path: "/v1/orgs/{org}/clients", allow: people, scope: inPath, does: "create clients"},
		{id: "client-show", method: "GET", path: "/v1/orgs/{org}/clients/{client}", allow: people, scope: inPath, does: "see a client"},
		{id: "client-remove", method: "DELETE", path: "/v1/orgs/{org}/clients/{client}", allow: people, scope: inPath, own: true, does: "remove clients"},

		{id: "event-list", method: "GET", path: "/v1/events", allow: operator, does: "read the audit log"},
		{id: "backup", method: "GET", path: "/v1/backup", allow: operator, stream: true, does: "take a backup"},
	}
}

func (r rule) pattern() string { return r.method + " " + r.path }

// lenient reports whether fields that are not known are ignored: in what nodes
// send, so that a newer agent can talk to an older controller. A person's typing
// error is refused.
func (r rule) lenient() bool { return r.allow&people == 0 }

// check decides what can be decided before the body is read.
func (r rule) check(req *http.Request, c caller, st mesh.State) error {
	if err := checkPath(req, r.path); err != nil {
		return err
	}
	if r.allow&anyone != 0 {
		return nil
	}
	switch {
	case c.role == 0:
		return refuse(api.ErrUnauthorized, r.credentialHint(), "%s: no credential was shown", r.pattern())
	case c.expired && !r.expired:
		return refuse(api.ErrUnauthorized, "renew it with POST /v1/nodes/self/renew", "%s: the certificate's time is over", c.actor())
	case r.allow&c.role == 0:
		return refuse(api.ErrForbidden, "it takes "+r.allow.String(), "%s may not %s", c.actor(), r.does)
	}
	switch r.scope {
	case inPath:
		if err := r.checkOrg(c, req.PathValue("org"), "org "+req.PathValue("org")); err != nil {
			return err
		}
	case ofToken:
		t, _ := st.Tokens.Get(req.PathValue("id"))
		return r.checkOrg(c, t.Org, "token "+req.PathValue("id"))
	case ofOperator:
		o, _ := st.Operators.Get(req.PathValue("id"))
		return r.checkOrg(c, o.Org, "operator "+req.PathValue("id"))
	}
	if r.onHost && c.role == host {
		key := req.PathValue("org") + "/" + req.PathValue("machine")
		if m, ok := st.Machines.Get(key); ok && m.Host != c.node.Name {
			return notFound("machine " + key)
		}
	}
	if r.own && c.role == orgMember {
		key := req.PathValue("org") + "/" + req.PathValue("client")
		if x, ok := st.Clients.Get(key); ok && x.Owner != c.actor() {
			return refuse(api.ErrForbidden, "it takes "+admins.String(), "%s may not %s that somebody else made", c.actor(), r.does)
		}
	}
	return nil
}

// checkOrg decides whether c may touch org, or what, which is of that org. To an
// org role the things of other orgs do not exist; a host knows the orgs of its
// record, so for it the answer is the same whether or not there is such an org.
func (r rule) checkOrg(c caller, org, what string) error {
	switch {
	case c.role&(orgAdmin|orgMember) != 0 && c.org != org:
		return notFound(what)
	case c.role == host && !c.host.MayCarry(org):
		return refuse(api.ErrForbidden, "the orgs that a host may carry are those of the token that it joined with", "%s may not carry org %s", c.actor(), org)
	}
	return nil
}

// scoped is a request body that says of which org the request is. ok is false if
// it is of the mesh: then it takes an operator.
type scoped interface{ orgOf() (org string, ok bool) }

// checkBody decides what had to wait for the body.
func (r rule) checkBody(c caller, body scoped) error {
	org, ok := body.orgOf()
	if !ok && c.role&(orgAdmin|orgMember) != 0 {
		return refuse(api.ErrForbidden, "it takes "+operator.String(), "%s may not %s", c.actor(), r.does)
	}
	return r.checkOrg(c, org, "org "+org)
}

// checkPath refuses names in the path that are none. They would be looked up as
// keys, in which '/' separates.
func checkPath(req *http.Request, path string) error {
	for _, part := range strings.Split(path, "/") {
		name, ok := strings.CutPrefix(part, "{")
		if !ok {
			continue
		}
		name = strings.TrimSuffix(name, "}")
		if value := req.PathValue(name); checkWord(name, value) != nil {
			return notFound(fmt.Sprintf("%s %q", name, value))
		}
	}
	return nil
}

// checkWord refuses what no {word} of a path can be.
func checkWord(word, value string) error {
	switch word {
	case "record":
		return mesh.CheckRecordName(value)
	case "type":
		_, err := mesh.RecordType(value)
		return err
	}
	return mesh.CheckName("", value)
}

func (r rule) credentialHint() string {
	if r.allow&people != 0 {
		return "choose whom to be with: weft context add NAME --file operator.yaml"
	}
	return "this is for nodes, which show the certificate that they got when they joined"
}

// String lists the roles, for messages.
func (r role) String() string {
	var out []string
	for _, x := range []struct {
		role role
		name string
	}{
		{operator, "the role " + mesh.RoleOperator}, {orgAdmin, "the role " + mesh.RoleOrgAdmin}, {orgMember, "the role " + mesh.RoleOrgMember},
		{host, "a host's certificate"}, {client, "a client's certificate"},
	} {
		if r&x.role != 0 {
			out = append(out, x.name)
		}
	}
	return strings.Join(out, " or ")
}
