package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/mesh"
)

// steps are what can be done to a mesh, at two stores in turn, and to the ledger.
type steps struct {
	*ledger
	t      *rapid.T
	clock  *clock
	stores []*Store
	rev    int64
	tokens int // that were ever made
}

// Any changes in any order do what the ledger says, or are refused for what it says;
// and after each of them both mirrors are the ledger.
func TestStoreIsAsTheLedger(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		s, end := newSteps(t, r)
		defer end()
		s.settle()
		all := s.all()
		for range rapid.IntRange(10, 60).Draw(r, "steps") {
			step := rapid.SampledFrom(all).Draw(r, "step")
			step.do()
			s.same()
		}
	})
}

// step is something that can be done.
type step struct {
	name string
	do   func()
}

func (s step) String() string { return s.name }

// all are the steps, those more often that make something of what is there.
func (s *steps) all() (all []step) {
	for _, x := range []struct {
		times int
		step
	}{
		{2, step{"create org", s.createOrg}}, {1, step{"remove org", s.removeOrg}}, {1, step{"limit org", s.limitOrg}},
		{3, step{"create token", s.createToken}}, {1, step{"remove token", s.removeToken}},
		{4, step{"enrol host", s.enrollHost}}, {1, step{"cordon host", s.cordonHost}}, {1, step{"remove host", s.removeHost}},
		{12, step{"create machine", s.createMachine}}, {6, step{"move machine", s.moveMachine}},
		{2, step{"stop machine", s.stopMachine}}, {4, step{"remove machine", s.removeMachine}},
		{4, step{"create client", s.createClient}}, {3, step{"enrol client", s.enrollClient}},
		{2, step{"set gateway", s.setGateway}}, {3, step{"remove client", s.removeClient}},
		{1, step{"create app", s.createApp}}, {1, step{"remove app", s.removeApp}},
		{3, step{"wait", s.wait}}, {2, step{"keep house", s.keepHouse}},
	} {
		for range x.times {
			all = append(all, x.step)
		}
	}
	return all
}

// settle makes two orgs and two hosts.
func (s *steps) settle() {
	for _, org := range []string{"a", "ab"} {
		s.createOrgNamed(org)
	}
	for i, host := range []string{"h", "h1"} {
		s.createTokenOf(mesh.KindHost, "", 2)
		s.enrollHostBy(host, fmt.Sprint("k", i+1), fmt.Sprint("t", s.tokens))
	}
	s.same()
}

// newSteps makes a mesh in which few numbers are left.
func newSteps(t *testing.T, r *rapid.T) (*steps, func()) {
	clock := newClock()
	config := Config{Now: clock.Now, SlotRest: time.Hour, HostRest: 2 * time.Hour, AddressRest: 3 * time.Hour}
	one := newMesh(t, config)
	put := func(key string, next uint64) {
		if _, err := one.client.Put(t.Context(), one.root+key, fmt.Sprint(next)); err != nil {
			t.Fatal(err)
		}
	}
	plan := testPlan(t)
	put(keyNextNetwork, plan.MaxNetwork()-5)
	for n := plan.MaxNetwork() - 5; n <= plan.MaxNetwork(); n++ {
		put(nextSlotKey(n, 1), 65532)
	}
	s := &steps{ledger: newLedger(clock.Now(), plan, config), t: r, clock: clock, stores: []*Store{one, again(t, one)}}
	ctx, cancel := context.WithCancel(context.Background())
	var mirrors sync.WaitGroup
	for _, x := range s.stores {
		x.running.Store(true)
		mirrors.Go(func() { x.keepMirror(ctx) })
		<-x.Ready()
	}
	return s, func() { cancel(); mirrors.Wait() }
}

func (s *steps) at() *Store { return rapid.SampledFrom(s.stores).Draw(s.t, "store") }

func (s *steps) pick(what string, of ...string) string { return rapid.SampledFrom(of).Draw(s.t, what) }

func (s *steps) org() string  { return s.pick("org", "a", "ab") }
func (s *steps) host() string { return s.pick("host", "h", "h1") }
func (s *steps) key() string  { return s.pick("key", "k1", "k2", "k3", "k4", "k5") }

// done checks how a change ended, and reports whether it is to be written down.
func (s *steps) done(rev int64, err error, want refusals) bool {
	s.t.Helper()
	refused, wrong := want.check(err)
	if wrong != nil {
		s.t.Fatal(wrong)
	}
	if !refused {
		if rev < s.rev {
			s.t.Fatalf("revision %d after %d", rev, s.rev)
		}
		s.rev = rev
	}
	return !refused
}

// same compares both mirrors with the ledger.
func (s *steps) same() {
	for i, x := range s.stores {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := x.Wait(ctx, s.rev)
		cancel()
		if err != nil {
			s.t.Fatal(err)
		}
		state := x.State()
		if diff := cmp.Diff(strings.Split(s.text(), "\n"), strings.Split(stateText(state), "\n")); diff != "" {
			s.t.Fatalf("mirror %d (-ledger +mirror):\n%s", i, diff)
		}
		for org := range s.orgs {
			if n := state.Count("machines", org); n != s.count("machines", org) {
				s.t.Fatalf("mirror %d counts %d machines of %s, there are %d", i, n, org, s.count("machines", org))
			}
		}
	}
}

func (s *steps) wait() {
	d := time.Duration(rapid.SampledFrom([]int{1, 29, 60, 61, 180, 24 * 60}).Draw(s.t, "minutes")) * time.Minute
	s.clock.add(d)
	s.now = s.now.Add(d)
}

func (s *steps) keepHouse() {
	x := s.at()
	if err := x.Wait(context.Background(), s.rev); err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(x.FreeReservations(context.Background()), x.ExpireTokens(context.Background())); err != nil {
		s.t.Fatal(err)
	}
	r, err := x.client.Get(context.Background(), x.root)
	if err != nil {
		s.t.Fatal(err)
	}
	s.rev = r.Header.Revision
	s.due()
}

func (s *steps) createOrg() { s.createOrgNamed(s.org()) }

func (s *steps) createOrgNamed(name string) {
	_, there := s.orgs[name]
	var want refusals
	want.when(there, ErrExists)
	want.when(len(s.networks) == 6, ErrFull)
	o, rev, err := s.at().CreateOrg(context.Background(), "", name)
	if !s.done(rev, err, want) {
		return
	}
	if s.networks[o.Network] || o.Network == 0 {
		s.t.Fatalf("org %s got network %d, which was given before", name, o.Network)
	}
	s.networks[o.Network] = true
	s.orgs[name] = mesh.Org{Name: name, Network: o.Network}
}

func (s *steps) removeOrg() {
	name := s.org()
	_, there := s.orgs[name]
	var want refusals
	want.when(!there, ErrNotFound)
	rev, err := s.at().RemoveOrg(context.Background(), "", name)
	if s.done(rev, err, want) {
		s.ledger.removeOrg(name)
	}
}

func (s *steps) limitOrg() {
	name := s.org()
	limits := mesh.Limits{Machines: rapid.IntRange(0, 4).Draw(s.t, "machines"), Clients: rapid.IntRange(0, 3).Draw(s.t, "clients"), Tokens: rapid.IntRange(0, 3).Draw(s.t, "tokens")}
	o, there := s.orgs[name]
	var want refusals
	want.when(!there, ErrNotFound)
	_, rev, err := s.at().UpdateOrg(context.Background(), "", name, limits)
	if s.done(rev, err, want) {
		o.Limits = limits
		s.orgs[name] = o
	}
}

func (s *steps) createToken() {
	s.createTokenOf(s.pick("kind", mesh.KindHost, mesh.KindClient), s.org(), rapid.IntRange(1, 2).Draw(s.t, "uses"))
}

func (s *steps) createTokenOf(kind, org string, uses int) {
	s.tokens++
	id := fmt.Sprint("t", s.tokens)
	t := mesh.Token{ID: id, Hash: hash(id), Kind: kind, Uses: uses, Expires: s.now.Add(time.Hour)}
	var want refusals
	if t.Kind == mesh.KindHost {
		t.Orgs = []string{mesh.AllOrgs}
	} else {
		t.Org = org
		o, there := s.orgs[t.Org]
		want.when(!there, ErrNotFound)
		want.when(there && s.usableTokens(t.Org) >= o.Limits.Or(mesh.DefaultLimits).Tokens, ErrLimit)
	}
	_, rev, err := s.at().CreateToken(context.Background(), "", t)
	if s.done(rev, err, want) {
		s.ledger.tokens[id] = t
	}
}

// token picks one that was made at some time.
func (s *steps) token() string {
	return fmt.Sprint("t", rapid.IntRange(max(1, s.tokens-3), max(1, s.tokens)).Draw(s.t, "token"))
}

func (s *steps) removeToken() {
	id := s.token()
	_, there := s.ledger.tokens[id]
	var want refusals
	want.when(!there, ErrNotFound)
	rev, err := s.at().RemoveToken(context.Background(), "", id)
	if s.done(rev, err, want) {
		delete(s.ledger.tokens, id)
	}
}

// spend says whether a token lets somebody of a kind in.
func (s *steps) spend(id, kind string, want *refusals) mesh.Token {
	t, there := s.ledger.tokens[id]
	want.when(!there || t.Kind != kind || t.Uses < 1 || !s.now.Before(t.Expires), ErrToken)
	return t
}

func (s *steps) createApp() {
	org := s.org()
	_, there := s.orgs[org]
	var want refusals
	want.when(!there, ErrNotFound)
	want.when(s.apps[org+"/web"], ErrExists)
	_, rev, err := s.at().CreateApp(context.Background(), "", mesh.App{Org: org, Name: "web"})
	if s.done(rev, err, want) {
		s.apps[org+"/web"] = true
	}
}

func (s *steps) removeApp() {
	key := s.org() + "/" + s.pick("app", "web", "db")
	org, app, _ := strings.Cut(key, "/")
	used := slices.ContainsFunc(slices.Collect(maps.Values(s.machines)), func(m mesh.Machine) bool { return m.Org == org && m.App == app })
	var want refusals
	want.when(!s.apps[key], ErrNotFound)
	want.when(used, ErrConflict)
	rev, err := s.at().RemoveApp(context.Background(), "", org, app)
	if s.done(rev, err, want) {
		delete(s.apps, key)
	}
}
