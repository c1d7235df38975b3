// Package churn is what a test of a whole mesh under random churn decides with: what
// is done next, who must reach whom and who must not, which names must be what, and
// whether what is used has grown. All of it is pure. How a mesh is made, harmed and
// asked is the test's business (e2e).
package churn

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// State is what a mesh is told to be. It says nothing of what is on its way there.
type State struct {
	Regions     map[string]string // of the hosts, by name
	Orgs        map[string][]string
	Machines    map[string]Machine // by "<org>/<id>"
	Laptops     map[string]Laptop  // by "<org>/<name>"
	Agents      map[string]bool    // which hosts' agents run
	Controllers map[string]bool    // which controllers run
	Members     map[string]bool    // which members of etcd's cluster run; none: it is in the controller
	Cordoned    string             // the host that is; "": none
	Harmed      map[Pair]bool      // pairs of hosts whose path is cut or bad
	Grants      []Grant
	Temporary   int // orgs that were made on the way, to name the next one
}

// Machine is one that is to be. One that has ended may be started again, with the
// address that it had.
type Machine struct {
	App, Host string
	Home      string // the host where it is at the beginning and in the end
	From      string // the host that it may still be on: it has been moving since the last quiet moment
	Runs      bool
	Temporary bool // it goes with its org
}

// Laptop is one that is to be.
type Laptop struct{ Up bool }

// Pair is two hosts, the lesser name first.
type Pair struct{ A, B string }

// PairOf orders two names.
func PairOf(a, b string) Pair { return Pair{min(a, b), max(a, b)} }

// Grant lets one org begin flows to another's port, over TCP.
type Grant struct {
	From, To string // orgs
	Port     uint16
}

// Clone returns a copy that shares nothing that is ever changed.
func (s State) Clone() State {
	s.Orgs, s.Machines, s.Laptops = maps.Clone(s.Orgs), maps.Clone(s.Machines), maps.Clone(s.Laptops)
	s.Agents, s.Controllers, s.Members = maps.Clone(s.Agents), maps.Clone(s.Controllers), maps.Clone(s.Members)
	s.Harmed, s.Grants = maps.Clone(s.Harmed), slices.Clone(s.Grants)
	return s
}

// Hosts lists the hosts that may carry org, sorted.
func (s State) Hosts(org string) []string { return slices.Sorted(slices.Values(s.Orgs[org])) }

// OrgOf is the org of "<org>/<name>".
func OrgOf(key string) string {
	org, _, _ := strings.Cut(key, "/")
	return org
}

// Endpoint is somebody who is there: a machine or a laptop, and where.
type Endpoint struct {
	Key     string // "<org>/<name>"
	App     string // "": a laptop
	Host    string // "": a laptop
	Was     string // the host that it is moving from, or came from a moment ago
	Address netip.Addr
}

// IsHost reports whether it is a host, and no endpoint.
func (e Endpoint) IsHost() bool { return e.Host != "" && e.Key == e.Host }

// Org is the endpoint's.
func (e Endpoint) Org() string { return OrgOf(e.Key) }

func (e Endpoint) String() string { return fmt.Sprintf("%s (%s)", e.Key, e.Address) }

// Finding is something that must not be.
type Finding struct {
	What     string // one of the words below
	From, To string // keys of endpoints, names of hosts; To may be ""
	Detail   string
}

// What a Finding is.
const (
	Unreached = "unreached" // an allowed pair cannot talk
	Forbidden = "forbidden" // a forbidden pair can
	Outlasts  = "outlasts"  // a pair still can whose grant was removed
	Spoofed   = "spoofed"   // somebody was heard with an address that is not his
	Misnamed  = "misnamed"  // a name is not what it must be
)

func (f Finding) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s: %s -> %s: %s", f.What, f.From, f.To, f.Detail))
}
