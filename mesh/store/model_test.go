package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// ledger is what the store should hold, as plain maps by the State's keys. It says
// what a change must be refused for, and what it leads to; which of the free
// addresses and numbers is given is the store's choice, and only checked.
type ledger struct {
	now      time.Time
	plan     ipam.Plan
	rest     Config
	orgs     map[string]mesh.Org
	apps     map[string]bool
	hosts    map[string]mesh.Host
	machines map[string]mesh.Machine
	clients  map[string]mesh.Client
	tokens   map[string]mesh.Token
	reserved map[string]mesh.Reservation

	networks map[uint64]bool      // that were ever given
	slots    map[string]time.Time // endpoints that were given back: when they can be given again
	numbers  map[uint32]time.Time // the same of hosts' numbers
}

func newLedger(now time.Time, plan ipam.Plan, rest Config) *ledger {
	return &ledger{
		now: now, plan: plan, rest: rest, orgs: map[string]mesh.Org{}, apps: map[string]bool{}, hosts: map[string]mesh.Host{},
		machines: map[string]mesh.Machine{}, clients: map[string]mesh.Client{}, tokens: map[string]mesh.Token{},
		reserved: map[string]mesh.Reservation{}, networks: map[uint64]bool{}, slots: map[string]time.Time{}, numbers: map[uint32]time.Time{},
	}
}

// text is the ledger as lines, one an object.
func (m *ledger) text() string {
	var lines []string
	for k, o := range m.orgs {
		lines = append(lines, fmt.Sprintf("orgs/%s network %d limits %+v", k, o.Network, o.Limits))
	}
	for k := range m.apps {
		lines = append(lines, "apps/"+k)
	}
	for k, h := range m.hosts {
		lines = append(lines, hostLine(k, h))
	}
	for k, x := range m.machines {
		lines = append(lines, machineLine(k, x))
	}
	for k, c := range m.clients {
		lines = append(lines, clientLine(k, c))
	}
	for k, t := range m.tokens {
		lines = append(lines, fmt.Sprintf("tokens/%s kind %s org %s uses %d", k, t.Kind, t.Org, t.Uses))
	}
	for k, r := range m.reserved {
		lines = append(lines, reservationLine(k, r))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// stateText is a State as text is the ledger.
func stateText(s mesh.State) string {
	var lines []string
	for k, o := range s.Orgs.All() {
		lines = append(lines, fmt.Sprintf("orgs/%s network %d limits %+v", k, o.Network, o.Limits))
	}
	for k := range s.Apps.All() {
		lines = append(lines, "apps/"+k)
	}
	for k, h := range s.Hosts.All() {
		lines = append(lines, hostLine(k, h))
	}
	for k, x := range s.Machines.All() {
		lines = append(lines, machineLine(k, x))
	}
	for k, c := range s.Clients.All() {
		lines = append(lines, clientLine(k, c))
	}
	for k, t := range s.Tokens.All() {
		lines = append(lines, fmt.Sprintf("tokens/%s kind %s org %s uses %d", k, t.Kind, t.Org, t.Uses))
	}
	for k, r := range s.Reserved.All() {
		lines = append(lines, reservationLine(k, r))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func hostLine(k string, h mesh.Host) string {
	return fmt.Sprintf("hosts/%s number %d key %s orgs %v cordoned %t", k, h.Number, h.Key, h.Orgs, h.Cordoned)
}

func machineLine(k string, m mesh.Machine) string {
	return fmt.Sprintf("machines/%s app %s on %s next %q at %s generation %d stable %t %s", k, m.App, m.Host, m.Next, m.Endpoint, m.Generation, m.Stable, m.State)
}

func clientLine(k string, c mesh.Client) string {
	return fmt.Sprintf("clients/%s key %s through %q at %s generation %d", k, c.Key, c.Gateway, c.Endpoint, c.Generation)
}

func reservationLine(k string, r mesh.Reservation) string {
	return fmt.Sprintf("addresses/%s at %s generation %d until %s", k, r.Endpoint, r.Generation, r.Until.Format(time.RFC3339))
}

// count is how many of a kind an org has.
func (m *ledger) count(kind, org string) (n int) {
	keys := slices.Collect(maps.Keys(m.machines))
	if kind == "clients" {
		keys = slices.Collect(maps.Keys(m.clients))
	}
	for _, k := range keys {
		if strings.HasPrefix(k, org+"/") {
			n++
		}
	}
	return n
}

// usableTokens is how many of an org's tokens can still be spent.
func (m *ledger) usableTokens(org string) (n int) {
	for _, t := range m.tokens {
		if t.Org == org && t.Uses > 0 && m.now.Before(t.Expires) {
			n++
		}
	}
	return n
}

// keyTaken says whether a node has a key.
func (m *ledger) keyTaken(k mesh.Key) bool {
	for _, h := range m.hosts {
		if h.Key == k {
			return true
		}
	}
	for _, c := range m.clients {
		if c.Key == k {
			return true
		}
	}
	return false
}

// endpoint checks an endpoint that was given anew, homed at host.
func (m *ledger) endpoint(what string, e interface{ String() string }, parts ipam.Parts, org mesh.Org, host mesh.Host) error {
	if parts.Network != org.Network || parts.Host != host.Position() || parts.Slot == 0 {
		return fmt.Errorf("%s got %s, which is not of network %d at host %d", what, e, org.Network, host.Number)
	}
	return m.unused(what, e.String())
}

func (m *ledger) unused(what, endpoint string) error {
	for k, x := range m.machines {
		if x.Endpoint.String() == endpoint {
			return fmt.Errorf("%s got %s, which is machine %s's", what, endpoint, k)
		}
	}
	for k, x := range m.clients {
		if x.Endpoint.String() == endpoint {
			return fmt.Errorf("%s got %s, which is client %s's", what, endpoint, k)
		}
	}
	for k, x := range m.reserved {
		if x.Endpoint.String() == endpoint {
			return fmt.Errorf("%s got %s, which is kept for %s", what, endpoint, k)
		}
	}
	if due, rests := m.slots[endpoint]; rests && m.now.Unix() < due.Unix() {
		return fmt.Errorf("%s got %s, which rests until %s", what, endpoint, due)
	}
	return nil
}

// dropMachine and dropClient are what becomes of the address of one that goes.
func (m *ledger) dropMachine(key string) {
	x := m.machines[key]
	delete(m.machines, key)
	if x.Stable {
		m.keep(mesh.Reservation{Org: x.Org, Kind: mesh.KindMachine, Name: x.ID, Endpoint: x.Endpoint, Generation: x.Generation})
	} else {
		m.slots[x.Endpoint.String()] = m.now.Add(m.rest.SlotRest)
	}
}

func (m *ledger) dropClient(key string) {
	c := m.clients[key]
	delete(m.clients, key)
	m.keep(mesh.Reservation{Org: c.Org, Kind: mesh.KindClient, Name: c.Name, Endpoint: c.Endpoint, Generation: c.Generation})
}

func (m *ledger) keep(r mesh.Reservation) {
	r.Until = m.now.Add(m.rest.AddressRest)
	key := r.Org + "/" + r.Kind + "/" + r.Name
	if old, there := m.reserved[key]; there && old.Endpoint != r.Endpoint {
		m.slots[old.Endpoint.String()] = m.now.Add(m.rest.SlotRest)
	}
	m.reserved[key] = r
}

// removeOrg is what is left without an org.
func (m *ledger) removeOrg(name string) {
	delete(m.orgs, name)
	in := func(key string) bool { return strings.HasPrefix(key, name+"/") }
	maps.DeleteFunc(m.apps, func(k string, _ bool) bool { return in(k) })
	maps.DeleteFunc(m.machines, func(k string, _ mesh.Machine) bool { return in(k) })
	maps.DeleteFunc(m.clients, func(k string, _ mesh.Client) bool { return in(k) })
	maps.DeleteFunc(m.reserved, func(k string, _ mesh.Reservation) bool { return in(k) })
	maps.DeleteFunc(m.tokens, func(_ string, t mesh.Token) bool { return t.Org == name })
}

// removeHost is what is left without a host; clients' new gateways are the store's
// choice.
func (m *ledger) removeHost(name string, now mesh.State) error {
	m.numbers[m.hosts[name].Number] = m.now.Add(m.rest.HostRest)
	delete(m.hosts, name)
	for _, k := range slices.Collect(maps.Keys(m.machines)) {
		x := m.machines[k]
		if x.Host == name {
			m.dropMachine(k)
		} else if x.Next == name {
			x.Next = ""
			m.machines[k] = x
		}
	}
	for k, c := range m.clients {
		if c.Gateway != name {
			continue
		}
		chosen, _ := now.Clients.Get(k)
		if _, there := m.hosts[chosen.Gateway]; chosen.Gateway != "" && !there || chosen.Gateway == "" && len(m.hosts) > 0 {
			return fmt.Errorf("client %s has gateway %q", k, chosen.Gateway)
		}
		c.Gateway, c.Generation = chosen.Gateway, c.Generation+1
		m.clients[k] = c
	}
	return nil
}

// due is what periodic jobs do.
func (m *ledger) due() {
	for k, r := range m.reserved {
		if !m.now.Before(r.Until) {
			delete(m.reserved, k)
			m.slots[r.Endpoint.String()] = m.now.Add(m.rest.SlotRest)
		}
	}
	maps.DeleteFunc(m.tokens, func(_ string, t mesh.Token) bool { return m.now.Sub(t.Expires) > tokenGrace })
}

// refusals are what a change may be refused for, in no order.
type refusals []error

func (r *refusals) when(on bool, err error) {
	if on {
		*r = append(*r, err)
	}
}

// check says whether err is what was expected of the change.
func (r refusals) check(err error) (refused bool, wrong error) {
	switch {
	case err == nil && len(r) == 0:
		return false, nil
	case err == nil:
		return false, fmt.Errorf("it was done, and should have been refused: %w", errors.Join(r...))
	case len(r) == 0:
		return true, fmt.Errorf("it was refused, and should have been done: %w", err)
	}
	for _, want := range r {
		if errors.Is(err, want) {
			return true, nil
		}
	}
	return true, fmt.Errorf("it was refused with %q, and should have been for: %w", err, errors.Join(r...))
}
