package mesh

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Advance is a Step made ready for its deltas: what changed is sorted out once,
// and each delta then costs what the node sees of it, whatever the size of the
// mesh. It does not change, and serves any number of goroutines.
//
// The law: where before and after are a node's views before and after the step,
// Delta(node) equals DiffViews(before, after).
type Advance struct {
	before, after State
	deployment    Deployment
	resync        bool

	controllers bool     // a controller's record changed
	regions     []string // in key order, as all lists here
	hosts       []string // whose record, presence or coordinate is another one
	orgs        map[string]*orgAdvance
	orgOrder    []string // keys of orgs as "<org>/" would stand
	grants      map[string]*grantAdvance
	grantOrder  []string

	// Orgs carried before and after, of the hosts in hosts and in any orgAdvance.carry.
	carriedBefore, carriedAfter map[string][]string
}

// orgAdvance is what changed of one org.
type orgAdvance struct {
	record                  bool // its own record
	apps, machines, clients []string
	records, health         []string
	carry                   []string // hosts that carry it now and did not, or the other way round
}

// NewAdvance sorts out a step. It costs what changed, and what the hosts in
// question carry.
func NewAdvance(s Step, d Deployment) *Advance {
	a := &Advance{
		before: s.Before, after: s.After, deployment: d, orgs: map[string]*orgAdvance{},
		resync: s.Before.Revision.Epoch != s.After.Revision.Epoch || s.Before.Mesh.Plan != s.After.Mesh.Plan,
	}
	pairs := map[carrying]bool{}
	hosts := map[string]bool{}
	var grants []string
	for _, key := range slices.Compact(slices.Sorted(slices.Values(s.Keys))) {
		kind, rest, _ := strings.Cut(key, "/")
		org, _, _ := strings.Cut(rest, "/")
		switch kind {
		case "regions":
			a.regions = append(a.regions, rest)
		case "controllers":
			a.controllers = true
		case "hosts", "presence", "coordinates":
			if !hosts[rest] && a.hostDiffers(rest) {
				hosts[rest] = true
				a.pairsOfHost(pairs, rest)
			}
		case "orgs":
			a.org(rest).record = true
			a.pairsOfOrg(pairs, rest)
		case "apps":
			a.org(org).apps = append(a.org(org).apps, rest)
		case "machines":
			a.org(org).machines = append(a.org(org).machines, rest)
			a.pairsOfMachine(pairs, rest)
		case "clients":
			a.org(org).clients = append(a.org(org).clients, rest)
			a.pairsOfClient(pairs, rest)
		case "records":
			a.org(org).records = append(a.org(org).records, rest)
		case "health":
			a.org(org).health = append(a.org(org).health, rest)
		case "grants":
			grants = append(grants, rest)
		}
	}
	a.hosts = slices.Sorted(maps.Keys(hosts))
	a.settleCarries(pairs)
	a.orgOrder = slices.SortedFunc(maps.Keys(a.orgs), func(a, b string) int { return strings.Compare(a+"/", b+"/") })
	a.sortGrants(grants)
	return a
}

// Before and After are the states that the step leads between.
func (a *Advance) Before() State { return a.before }

// After is described at Before.
func (a *Advance) After() State { return a.after }

// Resync reports whether no delta leads from before to after: it is another epoch.
func (a *Advance) Resync() bool { return a.resync }

func (a *Advance) org(name string) *orgAdvance {
	o := a.orgs[name]
	if o == nil {
		o = &orgAdvance{}
		a.orgs[name] = o
	}
	return o
}

// carrying is a host and an org that it may carry, or have carried.
type carrying struct{ host, org string }

// The pairsOf functions add the pairs of which a changed object may have decided
// whether the host carries the org.

func (a *Advance) pairsOfMachine(pairs map[carrying]bool, key string) {
	for _, s := range []State{a.before, a.after} {
		if m, ok := s.Machines.Get(key); ok {
			pairs[carrying{m.Host, m.Org}], pairs[carrying{m.Next, m.Org}] = true, true
		}
	}
}

func (a *Advance) pairsOfClient(pairs map[carrying]bool, key string) {
	for _, s := range []State{a.before, a.after} {
		if c, ok := s.Clients.Get(key); ok {
			pairs[carrying{c.Home, c.Org}], pairs[carrying{c.Gateway, c.Org}] = true, true
		}
	}
}

func (a *Advance) pairsOfOrg(pairs map[carrying]bool, name string) {
	if a.before.alive(name) == a.after.alive(name) {
		return
	}
	for _, s := range []State{a.before, a.after} {
		for key := range s.carried.Prefix(name + "/") {
			pairs[carrying{key[len(name)+1:], name}] = true
		}
	}
}

func (a *Advance) pairsOfHost(pairs map[carrying]bool, name string) {
	was, there := a.before.Hosts.Get(name)
	is, still := a.after.Hosts.Get(name)
	if there == still && slices.Equal(was.Orgs, is.Orgs) {
		return
	}
	for _, s := range []State{a.before, a.after} {
		for key := range s.carries.Prefix(name + "/") {
			pairs[carrying{name, key[len(name)+1:]}] = true
		}
	}
}

// hostDiffers reports whether others can see that something of the host changed,
// or it itself.
func (a *Advance) hostDiffers(name string) bool {
	return a.hostRecordDiffers(name) || !reflect.DeepEqual(a.before.coordinateOf(name), a.after.coordinateOf(name))
}

// hostRecordDiffers is hostDiffers as clients see it: they are not told coordinates.
func (a *Advance) hostRecordDiffers(name string) bool {
	was, there := a.before.Hosts.Get(name)
	is, still := a.after.Hosts.Get(name)
	return there != still || !reflect.DeepEqual(was, is) || a.before.Presence.Has(name) != a.after.Presence.Has(name)
}

// settleCarries keeps the pairs that became something else, and what all hosts in
// question carry.
func (a *Advance) settleCarries(pairs map[carrying]bool) {
	for p := range pairs {
		if a.before.carriesOrg(p.host, p.org) != a.after.carriesOrg(p.host, p.org) {
			a.org(p.org).carry = append(a.org(p.org).carry, p.host)
		}
	}
	a.carriedBefore, a.carriedAfter = map[string][]string{}, map[string][]string{}
	know := func(host string) {
		if _, known := a.carriedBefore[host]; !known {
			a.carriedBefore[host], a.carriedAfter[host] = a.before.OrgsOf(host), a.after.OrgsOf(host)
		}
	}
	for _, host := range a.hosts {
		know(host)
	}
	for _, o := range a.orgs {
		slices.Sort(o.carry)
		for _, host := range o.carry {
			know(host)
		}
	}
}

// Carry calls yield for each host and org of which the step decided that the host
// carries the org (now is true), or no longer does.
func (a *Advance) Carry(yield func(host, org string, now bool)) {
	for _, org := range a.orgOrder {
		for _, host := range a.orgs[org].carry {
			yield(host, org, a.after.carriesOrg(host, org))
		}
	}
}

// Common is a delta that many nodes share.
type Common struct {
	Org    string   // every host that carries it gets Delta,
	Except []string // but these hosts, in order: clients' keys are in question, or grants
	Delta  Delta
}

// Common returns the delta that is the same for every host that carries an org. It
// is there (ok) if all that changed belongs to one org, and no host carries
// another org than before. Nodes of the audience that do not carry that org have
// deltas of their own.
func (a *Advance) Common() (c Common, ok bool) {
	if !a.onlyOrg() {
		return Common{}, false
	}
	c.Org = a.orgOrder[0]
	o := a.orgs[c.Org]
	if len(o.carry) > 0 {
		return Common{}, false
	}
	draft := draft{Delta: Delta{Revision: a.after.Revision}}
	if a.before.alive(c.Org) && a.after.alive(c.Org) {
		a.changed(&draft, "", c.Org)
	}
	c.Delta = draft.finish()
	for _, key := range o.clients {
		for _, s := range []State{a.before, a.after} {
			if x, ok := s.Clients.Get(key); ok && x.Gateway != "" {
				c.Except = append(c.Except, x.Gateway)
			}
		}
	}
	concerned := map[string]bool{}
	a.grantAudience(concerned, map[string]bool{}, &Audience{})
	c.Except = slices.AppendSeq(c.Except, maps.Keys(concerned))
	slices.Sort(c.Except)
	c.Except = slices.Compact(c.Except)
	return c, true
}

// Object returns the object at a key, as in Change: nil if there is none.
func (s State) Object(key string) any {
	kind, rest, _ := strings.Cut(key, "/")
	switch kind {
	case "mesh":
		return s.Mesh
	case "orgs":
		return object(s.Orgs, rest)
	case "apps":
		return object(s.Apps, rest)
	case "regions":
		return object(s.Regions, rest)
	case "hosts":
		return object(s.Hosts, rest)
	case "machines":
		return object(s.Machines, rest)
	case "clients":
		return object(s.Clients, rest)
	case "tokens":
		return object(s.Tokens, rest)
	case "operators":
		return object(s.Operators, rest)
	case "presence":
		return object(s.Presence, rest)
	case "addresses":
		return object(s.Reserved, rest)
	case "controllers":
		return object(s.Controllers, rest)
	case "records":
		return object(s.Records, rest)
	case "health":
		return object(s.Health, rest)
	case "coordinates":
		return object(s.Coordinates, rest)
	case "grants":
		return object(s.Grants, rest)
	}
	return nil
}

func object[T any](t Table[T], key string) any {
	if v, ok := t.Get(key); ok {
		return v
	}
	return nil
}

// Undo returns the changes that lead from s.After back to s.Before, but for the
// revision: what a step costs to remember without its states.
func (s Step) Undo() []Change {
	out := make([]Change, len(s.Keys))
	for i, key := range s.Keys {
		out[i] = Change{Key: key, Object: s.Before.Object(key)}
	}
	return out
}

// alive reports whether org is there and not being removed.
func (s State) alive(org string) bool {
	o, ok := s.Orgs.Get(org)
	return ok && !o.Tombstone
}

// carriesOrg reports whether OrgsOf(host) has org.
func (s State) carriesOrg(host, org string) bool {
	if !s.carries.Has(host+"/"+org) || !s.alive(org) {
		return false
	}
	h, ok := s.Hosts.Get(host)
	return ok && h.MayCarry(org)
}
