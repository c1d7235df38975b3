package mesh

import (
	"net/netip"
	"strings"
)

// State is everything that the store holds, at one revision. It is immutable:
// With returns the next one, sharing all that stayed. The zero State is empty.
//
// Keys are those of the store below its root, without the kind: an org's name,
// "<org>/<machine>", and so on.
type State struct {
	Revision  Revision
	Mesh      Mesh
	Orgs      Table[Org]
	Apps      Table[App]
	Regions   Table[Region]
	Hosts     Table[Host]
	Machines  Table[Machine]
	Clients   Table[Client]
	Tokens    Table[Token]
	Operators Table[Operator]
	Presence  Table[Presence]
	// Reserved has keys "<org>/<kind>/<name>".
	Reserved    Table[Reservation]
	Controllers Table[Controller]
	Records     Table[Record]     // "<org>/<name>/<type>"
	Health      Table[Health]     // "<org>/<machine>"
	Coordinates Table[Coordinate] // "<host>"
	Grants      Table[Grant]      // "<id>"

	byHost  Table[string] // "<host>/m/<org>/<id>", "<host>/c/<org>/<name>": key in Machines or Clients
	carries Table[int]    // "<host>/<org>": number of reasons
	carried Table[int]    // "<org>/<host>": the same, the other way round
	byPlace Table[string] // endpoint: "machines/<key>" or "clients/<key>"
	counts  Table[int]    // "<kind>/<org>": number of machines, clients, tokens, records or grants
	byTLS   Table[string] // TLS key hash: "host/<host>" or "client/<org>/<client>"

	grantsOf Table[string] // "<org>/<id>": ID of a grant that names the org
	byApp    Table[string] // "<org>/<app>/<machine>": key in Machines
	stands   Table[int]    // "<org>/<app>/<host>": number of its machines there; app "": of all machines and clients
}

// Change is one object that was set, or removed (Object nil). Key is
// "<kind>/<rest>" as in the store: "orgs/acme", "machines/acme/1". The type of
// Object belongs to the kind.
type Change struct {
	Key    string
	Object any
}

// Step is one step from a state to a later one.
type Step struct {
	Before, After State
	Keys          []string // of all objects that were set or removed, as in Change
	// Merged says that it may be of several revisions, of which those between the
	// two are not known.
	Merged bool
}

// With returns the state after changes. A change of an unknown kind is ignored:
// a newer controller may store what this one does not know.
func (s State) With(changes ...Change) State {
	if len(changes) >= many {
		return s.withMany(changes)
	}
	return s.with(changes)
}

func (s State) with(changes []Change) State {
	for _, c := range changes {
		kind, key, _ := strings.Cut(c.Key, "/")
		switch kind {
		case "mesh":
			if m, ok := c.Object.(Mesh); ok {
				s.Mesh, s.Revision.Epoch = m, m.Epoch
			}
		case "orgs":
			s.Orgs = with(s.Orgs, key, c.Object)
		case "apps":
			s.Apps = with(s.Apps, key, c.Object)
		case "regions":
			s.Regions = with(s.Regions, key, c.Object)
		case "hosts":
			s.indexHost(key, -1)
			s.Hosts = with(s.Hosts, key, c.Object)
			s.indexHost(key, +1)
		case "machines":
			s.indexMachine(key, -1)
			s.Machines = with(s.Machines, key, c.Object)
			s.indexMachine(key, +1)
		case "clients":
			s.indexClient(key, -1)
			s.Clients = with(s.Clients, key, c.Object)
			s.indexClient(key, +1)
		case "tokens":
			s.indexToken(key, -1)
			s.Tokens = with(s.Tokens, key, c.Object)
			s.indexToken(key, +1)
		case "operators":
			s.Operators = with(s.Operators, key, c.Object)
		case "presence":
			s.Presence = with(s.Presence, key, c.Object)
		case "addresses":
			s.Reserved = with(s.Reserved, key, c.Object)
		case "controllers":
			s.Controllers = with(s.Controllers, key, c.Object)
		case "records":
			s.indexRecord(key, -1)
			s.Records = with(s.Records, key, c.Object)
			s.indexRecord(key, +1)
		case "health":
			s.Health = with(s.Health, key, c.Object)
		case "coordinates":
			s.Coordinates = with(s.Coordinates, key, c.Object)
		case "grants":
			s.indexGrant(key, -1)
			s.Grants = with(s.Grants, key, c.Object)
			s.indexGrant(key, +1)
		}
	}
	return s
}

func with[T any](t Table[T], key string, object any) Table[T] {
	if v, ok := object.(T); ok {
		return t.Set(key, v)
	}
	return t.Delete(key)
}

// The index functions add (by +1) or take away (by -1) what the object now
// at key contributes to the indexes.

func (s *State) indexHost(key string, by int) {
	if h, ok := s.Hosts.Get(key); ok {
		s.byTLS = entry(s.byTLS, h.TLSKey, "host/"+key, by)
	}
}

func (s *State) indexMachine(key string, by int) {
	if m, ok := s.Machines.Get(key); ok {
		s.byHost = entry(s.byHost, m.Host+"/m/"+key, key, by)
		s.byPlace = entry(s.byPlace, place(m.Endpoint), "machines/"+key, by)
		s.counts = tally(s.counts, "machines/"+m.Org, by)
		s.carry(m.Host, m.Org, by)
		s.carry(m.Next, m.Org, by)
		s.byApp = entry(s.byApp, m.Org+"/"+m.App+"/"+m.ID, key, by)
		s.stand(m.Org, m.App, m.Host, by)
		s.stand(m.Org, m.App, m.Next, by)
	}
}

func (s *State) indexClient(key string, by int) {
	if c, ok := s.Clients.Get(key); ok {
		s.byTLS = entry(s.byTLS, c.TLSKey, "client/"+key, by)
		if c.Gateway != "" {
			s.byHost = entry(s.byHost, c.Gateway+"/c/"+key, key, by)
		}
		s.byPlace = entry(s.byPlace, place(c.Endpoint), "clients/"+key, by)
		s.counts = tally(s.counts, "clients/"+c.Org, by)
		s.carry(c.Home, c.Org, by)
		s.carry(c.Gateway, c.Org, by)
		s.stand(c.Org, "", c.Gateway, by)
	}
}

func (s *State) indexToken(key string, by int) {
	if t, ok := s.Tokens.Get(key); ok && t.Org != "" {
		s.counts = tally(s.counts, "tokens/"+t.Org, by)
	}
}

func (s *State) indexRecord(key string, by int) {
	if r, ok := s.Records.Get(key); ok {
		s.counts = tally(s.counts, "records/"+r.Org, by)
	}
}

// place is an endpoint as a key.
func place(endpoint netip.Prefix) string {
	if !endpoint.IsValid() {
		return ""
	}
	b := endpoint.Addr().As16()
	return string(b[:])
}

// Count returns how many objects of a kind ("machines", "clients", "tokens", "records"
// or "grants") an org has.
func (s State) Count(kind, org string) int {
	n, _ := s.counts.Get(kind + "/" + org)
	return n
}

// AtEndpoint returns the key of the machine ("machines/<org>/<id>") or client
// ("clients/<org>/<name>") that has an endpoint.
func (s State) AtEndpoint(endpoint netip.Prefix) (key string, ok bool) {
	return s.byPlace.Get(place(endpoint))
}

func entry(t Table[string], key, value string, by int) Table[string] {
	if key == "" {
		return t
	}
	if by > 0 {
		return t.Set(key, value)
	}
	// Another object may have taken the key meanwhile: a difference of two lists
	// sets before it removes.
	if now, _ := t.Get(key); now == value {
		return t.Delete(key)
	}
	return t
}

func (s *State) carry(host, org string, by int) {
	if host == "" {
		return // a client without a gateway, a machine that does not move
	}
	s.carries = tally(s.carries, host+"/"+org, by)
	s.carried = tally(s.carried, org+"/"+host, by)
}

func tally(t Table[int], key string, by int) Table[int] {
	n, _ := t.Get(key)
	if n += by; n > 0 {
		return t.Set(key, n)
	}
	return t.Delete(key)
}

// OrgsOf returns the names of the orgs that host carries, in order. An org that
// is being removed is not carried, and neither is one that the host may not carry
// (any more), whatever is registered there.
func (s State) OrgsOf(host string) []string {
	h, ok := s.Hosts.Get(host)
	if !ok {
		return nil
	}
	var out []string
	for key := range s.carries.Prefix(host + "/") {
		name := key[len(host)+1:]
		if o, ok := s.Orgs.Get(name); ok && !o.Tombstone && h.MayCarry(name) {
			out = append(out, name)
		}
	}
	return out
}

// HostsOf returns the names of the hosts that carry org, in order: those whose
// OrgsOf has it.
func (s State) HostsOf(org string) []string {
	if o, ok := s.Orgs.Get(org); !ok || o.Tombstone {
		return nil
	}
	var out []string
	for key := range s.carried.Prefix(org + "/") {
		name := key[len(org)+1:]
		if h, ok := s.Hosts.Get(name); ok && h.MayCarry(org) {
			out = append(out, name)
		}
	}
	return out
}

// MachinesOn returns the machines on host, in key order.
func (s State) MachinesOn(host string) []Machine {
	var out []Machine
	for _, key := range s.byHost.Prefix(host + "/m/") {
		if m, ok := s.Machines.Get(key); ok {
			out = append(out, m)
		}
	}
	return out
}

// ClientsAt returns the clients whose gateway is host, in key order.
func (s State) ClientsAt(host string) []Client {
	var out []Client
	for _, key := range s.byHost.Prefix(host + "/c/") {
		if c, ok := s.Clients.Get(key); ok {
			out = append(out, c)
		}
	}
	return out
}

// NodeByTLSKey returns the node whose TLS key has the given hash; ok is false if
// there is none (never was, or was removed).
func (s State) NodeByTLSKey(hash string) (node Node, ok bool) {
	text, ok := s.byTLS.Get(hash)
	if !ok || hash == "" {
		return Node{}, false
	}
	return ParseNode(text)
}

// Node names a host or a client. As text it is "host/<host>" or
// "client/<org>/<client>".
type Node struct {
	Kind string // KindHost or KindClient
	Org  string // of a client
	Name string
}

func (n Node) String() string {
	if n.Kind == KindClient {
		return KindClient + "/" + n.Org + "/" + n.Name
	}
	return n.Kind + "/" + n.Name
}

// ParseNode is the inverse of String.
func ParseNode(s string) (Node, bool) {
	kind, rest, _ := strings.Cut(s, "/")
	org, name, two := strings.Cut(rest, "/")
	switch {
	case kind == KindHost && !two && rest != "":
		return Node{Kind: kind, Name: rest}, true
	case kind == KindClient && two && org != "" && name != "":
		return Node{Kind: kind, Org: org, Name: name}, true
	}
	return Node{}, false
}
