// Package mesh holds the nouns of a mesh, its whole State at one revision, and
// the View of it that one node may have. A View leads to tunnels (Config), to
// isolation (Policy), to routes and addresses; all of that is pure. Keeping the
// State (mesh/store), serving it (mesh/controller) and acting on a View
// (mesh/agent) are done elsewhere.
package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/ipam"
)

// Mesh is the installation itself: one per etcd root.
type Mesh struct {
	Plan    ipam.Plan `json:"prefix"`
	Created time.Time `json:"created"`
	Epoch   uint32    `json:"epoch"`  // drawn anew by a restore
	Schema  int       `json:"schema"` // version of the stored format
}

// Org is a tenant. It owns one network.
type Org struct {
	Name      string    `json:"name"`
	Network   uint64    `json:"network"` // never 0, never used again
	Created   time.Time `json:"created"`
	Tombstone bool      `json:"tombstone,omitempty"` // being removed: nothing of it is in any view
	Limits    Limits    `json:"limits,omitzero"`
}

// Limits bound what an org may have. 0 is the default of the kind.
type Limits struct {
	Machines int `json:"machines,omitempty"`
	Clients  int `json:"clients,omitempty"`
	Tokens   int `json:"tokens,omitempty"`   // that are neither spent nor expired
	Metadata int `json:"metadata,omitempty"` // pairs of a machine
	Records  int `json:"records,omitempty"`  // record sets, see Record
	Grants   int `json:"grants,omitempty"`   // that name the org, on either side
}

// DefaultLimits are an org's where its own say nothing.
var DefaultLimits = Limits{Machines: 10000, Clients: 10000, Tokens: 1000, Metadata: 32, Records: 1000, Grants: 100}

// Or returns l with what it leaves open taken from other.
func (l Limits) Or(other Limits) Limits {
	return Limits{
		Machines: cmp.Or(l.Machines, other.Machines), Clients: cmp.Or(l.Clients, other.Clients),
		Tokens: cmp.Or(l.Tokens, other.Tokens), Metadata: cmp.Or(l.Metadata, other.Metadata),
		Records: cmp.Or(l.Records, other.Records), Grants: cmp.Or(l.Grants, other.Grants),
	}
}

// App is a named group of machines in an org.
type App struct {
	Org    string `json:"org"`
	Name   string `json:"name"`
	Answer string `json:"answer,omitempty"` // "near" (default), "all" or a number
	TTL    int    `json:"ttl,omitempty"`    // seconds; 0: the default of 5
}

// Region is a place.
type Region struct {
	Name   string `json:"name"`
	Number uint8  `json:"number"`
	At     *Point `json:"at,omitempty"`
}

// Point is a place on Earth, in degrees; north and east are positive.
type Point struct {
	Latitude  float64 `json:"latitude"`
	Longitude float64 `json:"longitude"`
}

// ParsePoint reads "LATITUDE,LONGITUDE" in degrees.
func ParsePoint(s string) (*Point, error) {
	a, b, ok := strings.Cut(s, ",")
	lat, err1 := strconv.ParseFloat(strings.TrimSpace(a), 64)
	lon, err2 := strconv.ParseFloat(strings.TrimSpace(b), 64)
	if !ok || err1 != nil || err2 != nil || !(lat >= -90 && lat <= 90) || !(lon >= -180 && lon <= 180) {
		return nil, fmt.Errorf("place %q: want LATITUDE,LONGITUDE in degrees, for example 50.1,8.7", s)
	}
	return &Point{lat, lon}, nil
}

// String is the inverse of ParsePoint.
func (p *Point) String() string {
	if p == nil {
		return ""
	}
	return strconv.FormatFloat(p.Latitude, 'g', -1, 64) + "," + strconv.FormatFloat(p.Longitude, 'g', -1, 64)
}

// AllOrgs in Host.Orgs or Token.Orgs stands for every org.
const AllOrgs = "all"

// Key is a WireGuard public key. As text it is what wg(8) prints.
type Key wgtypes.Key

// String is base64, as wg(8) prints it.
func (k Key) String() string { return wgtypes.Key(k).String() }

// MarshalText writes base64.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads base64.
func (k *Key) UnmarshalText(text []byte) error {
	parsed, err := wgtypes.ParseKey(string(text))
	if err != nil {
		return fmt.Errorf("WireGuard key %q: want 32 bytes in base64", text)
	}
	*k = Key(parsed)
	return nil
}

// Host is an edge server. Its identity is its two keys.
type Host struct {
	Name         string           `json:"name"`
	Number       uint32           `json:"number"` // unique in the mesh
	Region       string           `json:"region"`
	RegionNumber uint8            `json:"region_number"`
	Key          Key              `json:"key"`     // WireGuard public key
	TLSKey       string           `json:"tls_key"` // hash of the TLS public key, see KeyHash in mesh/enroll
	Endpoints    []netip.AddrPort `json:"endpoints,omitempty"`
	NAT          bool             `json:"nat,omitempty"`   // no endpoint: others wait for it to speak
	Fixed        bool             `json:"fixed,omitempty"` // Endpoints are what its operator gave; else where a controller saw it
	Orgs         []string         `json:"orgs"`            // orgs it may carry, or AllOrgs
	Cordoned     bool             `json:"cordoned,omitempty"`
	Created      time.Time        `json:"created"`
}

// Position is where the host stands in addresses.
func (h Host) Position() ipam.Host { return ipam.Host{Region: h.RegionNumber, Number: h.Number} }

// MayCarry reports whether machines and clients of org may be on the host.
func (h Host) MayCarry(org string) bool {
	for _, o := range h.Orgs {
		if o == AllOrgs || o == org {
			return true
		}
	}
	return false
}

// Machine states. All but the first one are what somebody wants; a machine is in
// names while it is started, not cordoned, and passes its checks (Machine.Serves).
//
//	          checks passed once         drain             stop
//	created --------------------> started -----> draining -----> stopped
//	                                 ^               |              |
//	                                 '--- start -----'--------------'
const (
	StateCreated  = "created" // its checks have not passed yet; without checks it is started at once
	StateStarted  = "started"
	StateDraining = "draining" // it ends what it has begun, and gets nothing new
	StateStopped  = "stopped"
)

// Machine is one workload endpoint of an app.
type Machine struct {
	Org      string            `json:"org"`
	ID       string            `json:"id"` // unique in the org
	App      string            `json:"app"`
	Group    string            `json:"group,omitempty"`
	Meta     map[string]string `json:"meta,omitempty"`
	Host     string            `json:"host"`             // where it is
	Next     string            `json:"next,omitempty"`   // host that it is about to move to: that one carries the org already
	Endpoint netip.Prefix      `json:"endpoint"`         // its /112, which encodes its home
	Stable   bool              `json:"stable,omitempty"` // it keeps its endpoint on another host, and for a while after its end
	// Generation counts the hosts that the endpoint has been on: of two records, the
	// one with the higher generation says where it is.
	Generation uint64    `json:"generation,omitempty"`
	State      string    `json:"state"`
	Cordoned   bool      `json:"cordoned,omitempty"` // taken out of names by somebody, whatever its state
	Unlisted   bool      `json:"unlisted,omitempty"` // it has no names but <machine>.vm.<app>; see dns.Machine
	Checks     []Check   `json:"checks,omitempty"`
	Created    time.Time `json:"created"`
}

// Address is the address in use.
func (m Machine) Address() netip.Addr { return ipam.MainAddr(m.Endpoint) }

// Client is a person's device or a CI job.
type Client struct {
	Org      string       `json:"org"`
	Name     string       `json:"name"` // unique in the org
	Key      Key          `json:"key"`  // WireGuard public key
	TLSKey   string       `json:"tls_key,omitempty"`
	Endpoint netip.Prefix `json:"endpoint"` // its /112, which encodes its home
	Home     string       `json:"home"`     // host
	Gateway  string       `json:"gateway"`  // host it is connected through
	// Generation counts the gateways, as Machine.Generation counts hosts.
	Generation uint64    `json:"generation,omitempty"`
	Expires    time.Time `json:"expires,omitzero"` // after which it is removed; zero: never
	Owner      string    `json:"owner,omitempty"`  // the actor that made it: operator/ID or token/ID
	Created    time.Time `json:"created"`
}

// Address is the address in use.
func (c Client) Address() netip.Addr { return ipam.MainAddr(c.Endpoint) }

// Reservation keeps the endpoint of a stable machine or of a client that is gone:
// whoever registers under that name again, on any host, gets it back.
type Reservation struct {
	Org        string       `json:"org"`
	Kind       string       `json:"kind"` // KindMachine or KindClient
	Name       string       `json:"name"` // a machine's ID, a client's name
	Endpoint   netip.Prefix `json:"endpoint"`
	Generation uint64       `json:"generation,omitempty"` // that the last record had
	Until      time.Time    `json:"until"`                // after which the endpoint may be given to others
}

// KindMachine is the kind of a machine's reservation.
const KindMachine = "machine"

// Controller is a running controller, or one that ran a while ago.
type Controller struct {
	Name    string    `json:"name"`
	URLs    []string  `json:"urls"`    // base URLs at which nodes reach it
	Version string    `json:"version"` // of the program
	Schema  int       `json:"schema"`  // the newest stored format that it knows
	Started time.Time `json:"started"`
}

// Token kinds: what joins by it.
const (
	KindHost   = "host"
	KindClient = "client"
)

// Token lets somebody join. The secret itself is not stored.
type Token struct {
	ID      string    `json:"id"`
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
	Kind    string    `json:"kind"`
	Org     string    `json:"org,omitempty"`    // of a client
	Orgs    []string  `json:"orgs,omitempty"`   // a host may carry
	Region  string    `json:"region,omitempty"` // of a host
	Uses    int       `json:"uses"`             // left
	Expires time.Time `json:"expires"`
	Created time.Time `json:"created"`
	// ClientTTL is how long the clients last that join with it, as a duration; "": for
	// ever.
	ClientTTL string `json:"client_ttl,omitempty"`
}

// Operator roles.
const (
	RoleOperator  = "operator"   // the whole mesh
	RoleOrgAdmin  = "org-admin"  // everything of one org
	RoleOrgMember = "org-member" // reading one org, own clients
)

// Operator is a person or a program with a credential.
type Operator struct {
	ID      string    `json:"id"`
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
	Role    string    `json:"role"`
	Org     string    `json:"org,omitempty"` // with an org role
	Created time.Time `json:"created"`
}

// Presence says that a host's stream is open at some controller.
type Presence struct {
	Host       string `json:"host"`
	Controller string `json:"controller"`
}

// Event is one entry of the audit log.
type Event struct {
	ID     string    `json:"id"`
	Time   time.Time `json:"time"`
	Actor  string    `json:"actor"`  // operator/ID, host/NAME, client/ORG/NAME, token/ID
	Action string    `json:"action"` // org.create, host.enroll, ...
	Target string    `json:"target"`
	Note   string    `json:"note,omitempty"`
}

// Revision names a state of one mesh: the store's revision within an epoch.
// As text it is "<epoch>.<revision>".
type Revision struct {
	Epoch    uint32
	Revision int64
}

func (r Revision) String() string { return fmt.Sprintf("%d.%d", r.Epoch, r.Revision) }

// MarshalText writes "<epoch>.<revision>".
func (r Revision) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads "<epoch>.<revision>".
func (r *Revision) UnmarshalText(text []byte) error {
	a, b, ok := strings.Cut(string(text), ".")
	epoch, err1 := strconv.ParseUint(a, 10, 32)
	rev, err2 := strconv.ParseInt(b, 10, 64)
	if !ok || err1 != nil || err2 != nil || rev < 0 {
		return fmt.Errorf("revision %q: want EPOCH.REVISION", text)
	}
	*r = Revision{uint32(epoch), rev}
	return nil
}
