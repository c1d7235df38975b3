package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// stable registers a machine that keeps its address.
func stable(t testing.TB, s *Store, org, id, host string) mesh.Machine {
	t.Helper()
	return must(s.CreateMachine(t.Context(), "test", MachineSpec{Org: org, App: "web", ID: id, Host: host, Stable: true}))(t)
}

// Stable addresses and names after a redeploy: what ends and comes back under its
// name, on whatever host, is what it was.
func TestStableAddressesAfterRedeploy(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	org(t, s, "acme")
	org(t, s, "beta")
	for _, h := range []string{"h1", "h2"} {
		host(t, s, h)
	}
	first := stable(t, s, "acme", "db", "h1")
	if first.Generation != 1 {
		t.Errorf("generation %d of a new machine", first.Generation)
	}
	before := len(keysBelow(t, s, keyAddresses))
	done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: "db"}))(t)
	kept, there, err := read[mesh.Reservation](t, s, reservationKey("acme", mesh.KindMachine, "db"))
	want := mesh.Reservation{
		Org: "acme", Kind: mesh.KindMachine, Name: "db", Endpoint: first.Endpoint, Generation: 1, Until: kept.Until,
	}
	if err != nil || !there || before != 0 || kept != want || time.Until(kept.Until) < 29*24*time.Hour {
		t.Fatalf("kept: %+v, there %t, %v", kept, there, err)
	}

	// Nobody else gets it: not one who is not stable, not a client, not another org.
	passing := machine(t, s, "acme", "web", "db", "h2")
	if passing.Endpoint == first.Endpoint {
		t.Error("a machine that is not stable was given the address")
	}
	for name, endpoint := range map[string]string{
		"client":      client(t, s, "acme", "db", "h1").Endpoint.String(),
		"other org":   stable(t, s, "beta", "db", "h1").Endpoint.String(),
		"other name":  stable(t, s, "acme", "db2", "h1").Endpoint.String(),
		"same number": machine(t, s, "acme", "web", "", "h1").Endpoint.String(),
	} {
		if endpoint == first.Endpoint.String() {
			t.Errorf("%s was given the address", name)
		}
	}
	done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: "db"}))(t)
	for i, h := range []string{"h2", "h2", "h1"} {
		back := stable(t, s, "acme", "db", h)
		if back.Endpoint != first.Endpoint || back.Generation != uint64(i+2) || back.Host != h {
			t.Errorf("back on %s: %s generation %d on %s, want %s generation %d", h, back.Endpoint, back.Generation, back.Host, first.Endpoint, i+2)
		}
		if left := keysBelow(t, s, keyAddresses); len(left) != 0 {
			t.Errorf("still kept: %q", left)
		}
		done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: "db"}))(t)
	}
	holdsTogether(t, s, fresh(t, s))
}

func TestAClientKeepsItsAddress(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	org(t, s, "acme")
	host(t, s, "h1")
	host(t, s, "h2")
	first := client(t, s, "acme", "laptop", "h1")
	moved := must(s.SetGateway(t.Context(), "test", "acme", "laptop", "h2"))(t)
	if first.Generation != 1 || moved.Generation != 2 || moved.Endpoint != first.Endpoint {
		t.Errorf("generations %d and %d", first.Generation, moved.Generation)
	}
	must(s.SetGateway(t.Context(), "test", "acme", "laptop", "h2"))(t)
	done(s.RemoveClient(t.Context(), "test", "acme", "laptop"))(t)
	eventually(t, s, "the hosts are there", func(state mesh.State) bool { return state.Hosts.Has("h1") })
	back := must(s.CreateClient(t.Context(), "test", ClientSpec{Org: "acme", Name: "laptop", Key: key("new"), Gateway: "h2"}))(t)
	if back.Endpoint != first.Endpoint || back.Generation != 3 || back.Home != "h1" || back.Gateway != "h2" {
		t.Errorf("back: %+v, was %+v", back, first)
	}
	// With a token, too, and when its home is gone.
	done(s.RemoveClient(t.Context(), "test", "acme", "laptop"))(t)
	mirroredAt(t, s, done(s.RemoveHost(t.Context(), "test", "h1"))(t))
	use := token(t, s, mesh.Token{ID: "again", Kind: mesh.KindClient, Org: "acme"})
	back = must(s.EnrollClient(t.Context(), ClientSpec{Name: "laptop", Key: key("newer"), TLSKey: "tls"}, use))(t)
	if back.Endpoint != first.Endpoint || back.Generation != 4 || back.Home != "" || back.Gateway != "h2" {
		t.Errorf("back: %+v, was %+v", back, first)
	}
	holdsTogether(t, s, fresh(t, s))
}

func TestReservationsEnd(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := run(t, newMesh(t, Config{Now: c.Now}))
	o := org(t, s, "acme")
	h := host(t, s, "h")
	stable(t, s, "acme", "db", "h") // slot 1
	free := func() (resting []string) {
		t.Helper()
		mirroredAt(t, s, s.newest.Load())
		if err := s.FreeReservations(t.Context()); err != nil {
			t.Fatal(err)
		}
		return keysBelow(t, s, restingSlots(o.Network, h.Number))
	}
	done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: "db"}))(t)
	c.add(30*24*time.Hour - time.Second)
	if got := free(); len(got) > 0 {
		t.Errorf("a second before: %q rests", got)
	}
	c.add(time.Second)
	want := []string{restingKey(restingSlots(o.Network, h.Number), c.Now().Add(time.Hour), 1)}
	if got := free(); !slices.Equal(got, want) || len(keysBelow(t, s, keyAddresses)) > 0 {
		t.Errorf("when it is due: %q rests, want %q", got, want)
	}
	if got := free(); !slices.Equal(got, want) {
		t.Errorf("twice: %q rests", got)
	}
	if back := stable(t, s, "acme", "db", "h"); slot(t, back) != 2 || back.Generation != 1 {
		t.Errorf("too late: slot %d, generation %d", slot(t, back), back.Generation)
	}
	c.add(time.Hour)
	if next := machine(t, s, "acme", "web", "", "h"); slot(t, next) != 1 {
		t.Errorf("after its rest: slot %d", slot(t, next))
	}
}

// A host goes for good: its stable machines come back elsewhere as they were, and
// its number waits for them.
func TestARemovedHostsMachinesComeBack(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := run(t, newMesh(t, Config{Now: c.Now}))
	org(t, s, "acme")
	host(t, s, "a")
	host(t, s, "b")
	stays, goes := stable(t, s, "acme", "stays", "a"), machine(t, s, "acme", "web", "goes", "a")
	away := stable(t, s, "acme", "away", "a")
	moveTo(t, s, "away", "b")
	mirroredAt(t, s, done(s.RemoveHost(t.Context(), "test", "a"))(t))

	if m, _, _ := read[mesh.Machine](t, s, machineKey("acme", "away")); m.Endpoint != away.Endpoint || m.Host != "b" {
		t.Errorf("homed there and living elsewhere: %+v", m)
	}
	if got := keysBelow(t, s, keyAddresses); !slices.Equal(got, []string{reservationKey("acme", mesh.KindMachine, "stays")}) {
		t.Errorf("kept: %q", got)
	}
	c.add(30 * 24 * time.Hour)
	if h := host(t, s, "c"); h.Number != 3 {
		t.Errorf("number %d was given again while addresses are kept there", h.Number)
	}
	back := stable(t, s, "acme", "stays", "b")
	if back.Endpoint != stays.Endpoint || back.Generation != 2 {
		t.Errorf("back: %+v, was %+v", back, stays)
	}
	if h := host(t, s, "d"); h.Number != 4 {
		t.Errorf("number %d was given again while machines are homed there", h.Number)
	}
	for _, id := range []string{"stays", "away"} {
		done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: id}))(t)
	}
	c.add(30 * 24 * time.Hour)
	mirroredAt(t, s, s.newest.Load())
	if err := s.FreeReservations(t.Context()); err != nil {
		t.Fatal(err)
	}
	mirroredAt(t, s, s.newest.Load())
	reborn := host(t, s, "e")
	if reborn.Number != 1 {
		t.Errorf("number %d, want 1: nothing is homed there any more", reborn.Number)
	}
	// Slots of the number that were given rest on: they are not given by the new host.
	if m := machine(t, s, "acme", "web", "new", "e"); m.Endpoint == stays.Endpoint || m.Endpoint == away.Endpoint {
		t.Errorf("the new host gave %s", m.Endpoint)
	}
	_ = goes
	holdsTogether(t, s, fresh(t, s))
}

func TestAnOrgsReservationsGoWithIt(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	host(t, s, "h")
	for _, name := range []string{"a", "ab"} {
		org(t, s, name)
		for i := range 70 {
			stable(t, s, name, fmt.Sprint("m", i), "h")
			done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: name, ID: fmt.Sprint("m", i)}))(t)
		}
	}
	done(s.RemoveOrg(t.Context(), "test", "a"))(t)
	if got := len(keysBelow(t, s, keyAddresses)); got != 70 || len(keysBelow(t, s, keyAddresses+"ab/")) != 70 {
		t.Errorf("%d addresses are kept", got)
	}
	org(t, s, "a")
	if m := stable(t, s, "a", "m1", "h"); m.Generation != 1 {
		t.Errorf("generation %d in a new org of the same name", m.Generation)
	}
}

// A job that has lost its turn to another controller, or is just late, frees
// nothing that is in use again: before any of its steps the name comes back.
func TestFreeingMeetsARegistration(t *testing.T) {
	t.Parallel()
	for k := 0; ; k++ {
		s := newMesh(t, Config{AddressRest: time.Nanosecond, SlotRest: time.Nanosecond})
		org(t, s, "acme")
		host(t, s, "h")
		first := stable(t, s, "acme", "db", "h")
		done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: "db"}))(t)
		kept, _, _ := read[mesh.Reservation](t, s, reservationKey("acme", mesh.KindMachine, "db"))
		one, reached := between(t, s, k, func() { stable(t, s, "acme", "db", "h") })
		if err := one.freeReservation(t.Context(), one.plan(), kept); err != nil {
			t.Fatal(err)
		}
		others := []mesh.Machine{machine(t, s, "acme", "web", "x", "h"), machine(t, s, "acme", "web", "y", "h")}
		holdsTogether(t, s, fresh(t, s))
		if m, there, _ := read[mesh.Machine](t, s, machineKey("acme", "db")); *reached && (!there || m.Endpoint != first.Endpoint && k == 0) {
			t.Errorf("before step %d: %+v", k, m)
		}
		if !*reached {
			if k < 2 || others[0].Endpoint != first.Endpoint {
				t.Errorf("%d steps; then %s, want %s free", k, others[0].Endpoint, first.Endpoint)
			}
			return
		}
	}
}

// One that was taken back and is kept anew has its own time.
func TestFreeingMeetsALaterReservation(t *testing.T) {
	t.Parallel()
	for k := 0; ; k++ {
		c := newClock()
		s := newMesh(t, Config{Now: c.Now, AddressRest: time.Hour})
		org(t, s, "acme")
		host(t, s, "h")
		stable(t, s, "acme", "db", "h")
		remove := func() {
			done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: "db"}))(t)
		}
		remove()
		kept, _, _ := read[mesh.Reservation](t, s, reservationKey("acme", mesh.KindMachine, "db"))
		c.add(time.Hour)
		one, reached := between(t, s, k, func() { stable(t, s, "acme", "db", "h"); remove() })
		if err := one.freeReservation(t.Context(), one.plan(), kept); err != nil {
			t.Fatal(err)
		}
		if _, there, _ := read[mesh.Reservation](t, s, reservationKey("acme", mesh.KindMachine, "db")); there != *reached {
			t.Errorf("before step %d: it is kept: %t", k, there)
		}
		if !*reached {
			return
		}
	}
}

// Many at once, at several controllers, want one name back: one gets it, and it is
// the address that it was.
func TestOneComesBack(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{})
	stores := []*Store{one, again(t, one), run(t, again(t, one))}
	org(t, one, "acme")
	for i := range 4 {
		host(t, one, fmt.Sprint("h", i))
	}
	first := stable(t, one, "acme", "db", "h0")
	for round := range 6 {
		done(one.RemoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: "db"}))(t)
		var got unique
		together(24, func(i int) {
			m, _, err := stores[i%3].CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", ID: "db", Host: fmt.Sprint("h", i%4), Stable: true})
			switch {
			case errors.Is(err, ErrExists):
			case err != nil:
				t.Error(err)
			case m.Endpoint != first.Endpoint || m.Generation != uint64(round+2):
				t.Errorf("round %d: %+v", round, m)
			default:
				got.mu.Lock()
				if got.seen == nil {
					got.seen = map[uint64]string{}
				}
				got.seen[0] += m.Host + " "
				got.mu.Unlock()
			}
		})
		m, _, _ := read[mesh.Machine](t, one, machineKey("acme", "db"))
		for _, h := range []string{"h0", "h1", "h2", "h3"} {
			if h != m.Host && slices.Contains(splitFields(got.seen[0]), h) {
				t.Errorf("round %d: host %s was told that it has the machine of %s", round, h, m.Host)
			}
		}
		holdsTogether(t, one, fresh(t, one))
	}
}

// Fields that a newer controller wrote survive what this one does with a record.
func TestUnknownFieldsSurviveMovesAndLimits(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	org(t, s, "acme")
	host(t, s, "a")
	host(t, s, "b")
	stable(t, s, "acme", "db", "a")
	for _, k := range []string{machineKey("acme", "db"), orgKey("acme")} {
		r, err := s.client.Get(t.Context(), s.root+k)
		if err != nil {
			t.Fatal(err)
		}
		text := string(r.Kvs[0].Value)
		if _, err := s.client.Put(t.Context(), s.root+k, `{"newer":{"field":1},`+text[1:]); err != nil {
			t.Fatal(err)
		}
	}
	moveTo(t, s, "db", "b")
	must(s.UpdateOrg(t.Context(), "test", "acme", mesh.Limits{Machines: 5}))(t)
	for _, k := range []string{machineKey("acme", "db"), orgKey("acme")} {
		r, err := s.client.Get(context.Background(), s.root+k)
		if err != nil || !containsAll(string(r.Kvs[0].Value), `"newer":{"field":1}`) {
			t.Errorf("%s: %s %v", k, r.Kvs[0].Value, err)
		}
	}
}
