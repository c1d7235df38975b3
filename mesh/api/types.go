// Package api is the language between the controller and everyone else: wire
// types, error codes, the view stream's events, and a Go client. The server is
// mesh/controller.
package api

import (
	"net/netip"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// Error is what a request was refused with. It travels as RFC 9457 problem JSON.
type Error struct {
	Status  int    `json:"status"`         // HTTP status
	Code    string `json:"code"`           // one of the codes below, stable
	Message string `json:"detail"`         // what failed, on what, why
	Advice  string `json:"hint,omitempty"` // what to do next
	// Unsure: the change was sent to etcd, which did not answer; it may have been made.
	Unsure bool `json:"unsure,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Is makes errors.Is(err, api.ErrNotFound) compare codes.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Hint returns what to do next; see mesh.WithHint.
func (e *Error) Hint() string { return e.Advice }

// GetStatus lets huma write the error.
func (e *Error) GetStatus() int { return e.Status }

// ContentType is that of RFC 9457, whatever was asked for.
func (e *Error) ContentType(string) string { return "application/problem+json" }

// Errors by code; compare with errors.Is.
var (
	ErrInvalid      = &Error{Status: 422, Code: "invalid"}
	ErrUnauthorized = &Error{Status: 401, Code: "unauthorized"} // no or unknown credential
	ErrForbidden    = &Error{Status: 403, Code: "forbidden"}    // known, but not allowed
	ErrNotFound     = &Error{Status: 404, Code: "not-found"}
	ErrExists       = &Error{Status: 409, Code: "exists"}
	ErrConflict     = &Error{Status: 409, Code: "conflict"}
	ErrToken        = &Error{Status: 403, Code: "token-refused"} // wrong, spent, expired: enrolling again with it is useless
	ErrFull         = &Error{Status: 507, Code: "full"}
	ErrLimit        = &Error{Status: 409, Code: "limit"}       // an org has as much as it may have
	ErrUnavailable  = &Error{Status: 503, Code: "unavailable"} // the store does not answer; try again
)

// MeshInfo answers GET /v1/mesh, which needs no credential.
type MeshInfo struct {
	Version string `json:"version" doc:"version of the controller"`
	Pin     string `json:"pin" doc:"hash of the mesh's certificate authority"`
	// Controllers are the base URLs of all that are known.
	Controllers []string `json:"controllers,omitempty" doc:"base URLs of the controllers"`
}

// EnrollRequest is POST /v1/enroll: a node joins with a token.
type EnrollRequest struct {
	Token string `json:"token" doc:"join token: weft-<kind>-<id>.<secret>.<pin>"`
	Name  string `json:"name" doc:"name of the host or client"`
	// Key is the WireGuard public key, TLSKey the TLS public key (PKIX, DER);
	// the private halves stay where they were made.
	Key    string `json:"key" doc:"WireGuard public key, base64"`
	TLSKey []byte `json:"tls_key" doc:"TLS public key, PKIX DER"`
	// Of a host: where WireGuard can be reached. Without Endpoint the address that
	// the request came from, with Port.
	Endpoint string `json:"endpoint,omitempty" doc:"IP:port at which others reach this host's WireGuard"`
	Port     uint16 `json:"port,omitempty" doc:"WireGuard UDP port, if endpoint is not given"`
	NAT      bool   `json:"nat,omitempty" doc:"the host cannot be reached; it speaks first"`
	Region   string `json:"region,omitempty" doc:"region of the host, if the token does not say"`
}

// EnrollResponse carries what a node needs from then on.
type EnrollResponse struct {
	Node        string   `json:"node" doc:"host/NAME or client/ORG/NAME"`
	Certificate []byte   `json:"certificate" doc:"DER"`
	Roots       []string `json:"roots" doc:"CA certificates, PEM"`
	Controllers []string `json:"controllers" doc:"base URLs"`
}

// RenewResponse answers POST /v1/nodes/self/renew: a certificate for the same key.
type RenewResponse struct {
	Certificate []byte   `json:"certificate" doc:"DER"`
	Roots       []string `json:"roots" doc:"CA certificates, PEM"`
}

// Report is POST /v1/nodes/self/report: what a node tells about itself.
type Report struct {
	Version  string                   `json:"version,omitempty" doc:"version of the agent"`
	Revision string                   `json:"revision,omitempty" doc:"view that is in effect"`
	RTT      map[string]time.Duration `json:"rtt,omitempty" doc:"measured round trips to hosts, nanoseconds"`
	Suspect  []string                 `json:"suspect,omitempty" doc:"hosts that do not answer"`
	// Health has the machines of the host whose checks began to pass or to fail: what
	// differs from what its view says.
	Health []mesh.Health `json:"health,omitempty" doc:"what differs from the health in the view"`
	// Reach says where the host's WireGuard can be reached, if its record may be wrong:
	// the address there is none of its own, or its operator gave another one.
	Reach *Reach `json:"reach,omitempty" doc:"where the host can be reached, if that may have changed"`
	// Coordinate is where the host is among round trips, as it has worked out.
	Coordinate *mesh.Coordinate `json:"coordinate,omitempty" doc:"network coordinate of the host"`
}

// Reach is where a host's WireGuard can be reached: as in EnrollRequest.
type Reach struct {
	Endpoint string `json:"endpoint,omitempty" doc:"IP:port at which others reach this host's WireGuard"`
	Port     uint16 `json:"port,omitempty" doc:"WireGuard UDP port, if endpoint is not given"`
}

// GatewayRequest is PUT /v1/nodes/self/gateway: a client chooses its gateway.
type GatewayRequest struct {
	Gateway string `json:"gateway" doc:"host"`
}

// CreateOrg is POST /v1/orgs.
type CreateOrg struct {
	Name string `json:"name"`
}

// CreateRegion is POST /v1/regions.
type CreateRegion struct {
	Name string      `json:"name"`
	At   *mesh.Point `json:"at,omitempty"`
}

// CreateToken is POST /v1/tokens.
type CreateToken struct {
	Kind   string   `json:"kind" enum:"host,client"`
	Org    string   `json:"org,omitempty" doc:"org of a client"`
	Orgs   []string `json:"orgs,omitempty" doc:"orgs that a host may carry, or all"`
	Region string   `json:"region,omitempty" doc:"region of a host"`
	Uses   int      `json:"uses,omitempty" doc:"how often it can be used; default 1"`
	TTL    string   `json:"ttl,omitempty" doc:"how long it is valid, for example 24h; default 1h"`
	// ClientTTL is how long the clients last that join with it.
	ClientTTL string `json:"client_ttl,omitempty" doc:"how long the clients last that join with it, for example 24h; default: for ever"`
}

// CreatedToken answers CreateToken. The token itself is shown only here.
type CreatedToken struct {
	ID      string    `json:"id"`
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// Token is a token as listed: without its secret or its hash.
type Token struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Org     string    `json:"org,omitempty"`
	Orgs    []string  `json:"orgs,omitempty"`
	Region  string    `json:"region,omitempty"`
	Uses    int       `json:"uses"`
	Expires time.Time `json:"expires"`
	// ClientTTL is how long the clients last that join with it; "": for ever.
	ClientTTL string `json:"client_ttl,omitempty"`
}

// CreateOperator is POST /v1/operators.
type CreateOperator struct {
	ID   string `json:"id"`
	Role string `json:"role" enum:"operator,org-admin,org-member"`
	Org  string `json:"org,omitempty"`
}

// CreatedOperator answers CreateOperator. The secret is shown only here.
type CreatedOperator struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
}

// Operator is an operator as listed.
type Operator struct {
	ID   string `json:"id"`
	Role string `json:"role"`
	Org  string `json:"org,omitempty"`
}

// CreateApp is POST /v1/orgs/{org}/apps.
type CreateApp struct {
	Name   string `json:"name"`
	Answer string `json:"answer,omitempty" doc:"what its bare name answers: near (the default), all, or how many of the nearest"`
	TTL    int    `json:"ttl,omitempty" doc:"seconds, 1 to 3600; default 5"`
}

// UpdateApp is PATCH /v1/orgs/{org}/apps/{app}. What is not given stays.
type UpdateApp struct {
	Answer *string `json:"answer,omitempty" doc:"what its bare name answers: near, all, or how many of the nearest"`
	TTL    *int    `json:"ttl,omitempty" doc:"seconds, 1 to 3600; 0: the default of 5"`
}

// CreateRecord is POST /v1/orgs/{org}/records: one of the org's own records, all values of
// a type at a name.
type CreateRecord struct {
	Name   string   `json:"name" doc:"under internal."`
	Type   string   `json:"type" doc:"AAAA, TXT, SRV or alias"`
	TTL    int      `json:"ttl,omitempty" doc:"seconds, 1 to 3600; default 5"`
	Values []string `json:"values" doc:"addresses, texts, \"PRIORITY WEIGHT PORT TARGET\", or the one name that an alias stands for"`
}

// SetRecord is PUT /v1/orgs/{org}/records/{record}/{type}: the record is created, or
// its TTL and values are replaced.
type SetRecord struct {
	TTL    int      `json:"ttl,omitempty" doc:"seconds, 1 to 3600; default 5"`
	Values []string `json:"values"`
}

// CreateGrant is POST /v1/grants: endpoints of the one org may begin flows to
// endpoints of the other. What a side names need not be there yet.
type CreateGrant struct {
	From      mesh.Party `json:"from"`
	To        mesh.Party `json:"to"`
	Protocol  string     `json:"protocol" enum:"tcp,udp,icmp,all"`
	FirstPort uint16     `json:"first_port,omitempty" doc:"of tcp and udp; default: all ports"`
	LastPort  uint16     `json:"last_port,omitempty" doc:"default: first_port"`
}

// GrantInfo is a grant as its people see it.
type GrantInfo struct {
	mesh.Grant
	// Sources and Targets are how many endpoints there are on either side; nil: whoever
	// asks is not of that org.
	Sources *int `json:"sources,omitempty"`
	Targets *int `json:"targets,omitempty"`
}

// CreateMachine is POST /v1/orgs/{org}/machines: a host registers a machine that
// is on it. The app is created with its first machine.
type CreateMachine struct {
	ID    string            `json:"id,omitempty" doc:"name; drawn if empty"`
	App   string            `json:"app"`
	Group string            `json:"group,omitempty" doc:"process group"`
	Meta  map[string]string `json:"meta,omitempty"`
	// Stable: it keeps its address on another host. Default: if it has a name.
	Stable   *bool        `json:"stable,omitempty" doc:"keep the address on another host; default: if id is given"`
	Unlisted bool         `json:"unlisted,omitempty" doc:"no names but <machine>.vm.<app>"`
	Checks   []mesh.Check `json:"checks,omitempty" doc:"what its host looks at; it is in no names before they have passed"`
	// Move takes the machine from the host that it is on: the answer is its record,
	// prepared (next is this host) and not yet moved. MoveMachine completes it.
	Move bool `json:"move,omitempty" doc:"prepare to take over a machine that is on another host"`
	// Endpoint is the /112 that the machine holds already: the host had registered it,
	// and the controllers do not know it any more, after a restore.
	Endpoint netip.Prefix `json:"endpoint,omitzero" doc:"the /112 that the machine holds already"`
}

// MoveMachine is PUT /v1/orgs/{org}/machines/{machine}/host: the host that a
// machine was prepared to move to (CreateMachine.Move) is ready to receive what is
// sent to it.
type MoveMachine struct {
	Generation uint64 `json:"generation" doc:"that the prepared record has"`
}

// UpdateMachine is PATCH /v1/orgs/{org}/machines/{machine}: what somebody wants of a
// machine. It changes what its names answer, not what runs. A host may drain one that
// is on it.
type UpdateMachine struct {
	State    *string `json:"state,omitempty" enum:"started,draining,stopped"`
	Cordoned *bool   `json:"cordoned,omitempty" doc:"out of names, whatever its state"`
}

// UpdateOrg is PATCH /v1/orgs/{org}.
type UpdateOrg struct {
	Limits UpdateLimits `json:"limits,omitzero" doc:"0: the default"`
}

// UpdateLimits changes the limits that are given.
type UpdateLimits struct {
	Machines *int `json:"machines,omitempty"`
	Clients  *int `json:"clients,omitempty"`
	Tokens   *int `json:"tokens,omitempty"`
	Metadata *int `json:"metadata,omitempty" doc:"pairs of a machine"`
	Records  *int `json:"records,omitempty" doc:"own records"`
	Grants   *int `json:"grants,omitempty" doc:"grants that name the org"`
}

// Of returns limits with what u gives.
func (u UpdateLimits) Of(l mesh.Limits) mesh.Limits {
	for _, x := range []struct {
		to   *int
		from *int
	}{{&l.Machines, u.Machines}, {&l.Clients, u.Clients}, {&l.Tokens, u.Tokens}, {&l.Metadata, u.Metadata}, {&l.Records, u.Records}, {&l.Grants, u.Grants}} {
		if x.from != nil {
			*x.to = *x.from
		}
	}
	return l
}

// CreateClient is POST /v1/orgs/{org}/clients: a client that does not follow a
// view (a stock WireGuard app).
type CreateClient struct {
	Name    string `json:"name"`
	Key     string `json:"key" doc:"WireGuard public key, base64"`
	Gateway string `json:"gateway,omitempty" doc:"host; default: one that carries the org"`
	TTL     string `json:"ttl,omitempty" doc:"how long it lasts, for example 24h; default: for ever"`
}

// CreatedClient answers CreateClient with all that a WireGuard configuration needs.
type CreatedClient struct {
	Client  mesh.Client  `json:"client"`
	Address netip.Addr   `json:"address"`
	Network netip.Prefix `json:"network"` // AllowedIPs
	// Granted are the networks of other orgs that a grant joins the client with:
	// AllowedIPs, too.
	Granted  []netip.Prefix `json:"granted,omitempty"`
	Resolver netip.Addr     `json:"resolver"` // DNS
	Gateway  GatewayAddress `json:"gateway"`
}

// GatewayAddress is how to reach a gateway.
type GatewayAddress struct {
	Name     string         `json:"name"`
	Key      mesh.Key       `json:"key"`
	Endpoint netip.AddrPort `json:"endpoint"`
}

// UpdateHost is PATCH /v1/hosts/{host}.
type UpdateHost struct {
	Cordoned *bool `json:"cordoned,omitempty"`
}

// HostInfo is a host as an operator sees it.
type HostInfo struct {
	mesh.Host
	Present bool       `json:"present" doc:"its stream is open at a controller"`
	Address netip.Addr `json:"address" doc:"its own address in the mesh"`
}

// MachineInfo is a machine as an operator sees it.
type MachineInfo struct {
	mesh.Machine
	Address netip.Addr `json:"address"`
	Region  string     `json:"region"`
	// Health is what its checks said last; nil: nothing, or it has none.
	Health *mesh.Health `json:"health,omitempty"`
}

// ClientInfo is a client as an operator sees it.
type ClientInfo struct {
	mesh.Client
	Address netip.Addr `json:"address"`
}

// OrgInfo is an org as an operator sees it.
type OrgInfo struct {
	mesh.Org
	Prefix netip.Prefix `json:"prefix"`
	// Limits are those that hold: the org's own, and the defaults where it has none.
	Limits mesh.Limits `json:"limits"`
	Has    OrgCount    `json:"has"`
}

// OrgCount is how many of each kind an org has.
type OrgCount struct {
	Machines int `json:"machines"`
	Clients  int `json:"clients"`
	Records  int `json:"records"`
	Grants   int `json:"grants" doc:"those that name it on either side"`
	Tokens   int `json:"tokens" doc:"those that are used up or expired included, until they are forgotten"`
}

// The events of GET /v1/nodes/self/view, a stream of server-sent events whose id
// is the revision. First a snapshot (a mesh.View), then deltas (mesh.Delta), and a
// ping (Ping) every few seconds. Fenced ends the stream for good: another node
// uses the same key.
const (
	EventSnapshot = "snapshot"
	EventDelta    = "delta"
	EventPing     = "ping"
	EventFenced   = "fenced"
)

// Ping tells a node how old its view is.
type Ping struct {
	Revision mesh.Revision `json:"revision"`
	Time     time.Time     `json:"time"`
	// Age is how long ago the controller knew its state to be current. Time says the
	// same by the controller's clock.
	Age time.Duration `json:"age,omitempty" doc:"since the state was known to be current, nanoseconds"`
}
