package store

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
)

// between is a Store into whose k-th transaction (from 0) others' changes come:
// just before it is carried out. reached tells whether there was a k-th one.
func between(t testing.TB, s *Store, k int, intrude func()) (other *Store, reached *bool) {
	other, reached = again(t, s), new(bool)
	if _, err := other.needPlan(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := -1
	other.client = withKV(s.client, &faultyKV{KV: s.client.KV, before: func() error {
		if n++; n == k {
			*reached = true
			intrude()
		}
		return nil
	}})
	return other, reached
}

// Every change, with every other one that could spoil it coming in between any
// two of its steps. Either may be refused; what is left holds together.
func TestChangesThatMeet(t *testing.T) {
	t.Parallel()
	type call func(context.Context, *Store) error
	createMachine := call(func(ctx context.Context, s *Store) error {
		return third(s.CreateMachine(ctx, "", MachineSpec{Org: "acme", App: "web", ID: "new", Host: "h"}))
	})
	createClient := call(func(ctx context.Context, s *Store) error {
		return third(s.CreateClient(ctx, "", ClientSpec{Org: "acme", Name: "new", Key: key("new"), Gateway: "h"}))
	})
	createClientAnywhere := call(func(ctx context.Context, s *Store) error {
		return third(s.CreateClient(ctx, "", ClientSpec{Org: "acme", Name: "new", Key: key("new")}))
	})
	enrollHost := call(func(ctx context.Context, s *Store) error {
		spec := hostSpec("new")
		spec.Region = "nrt"
		return third(s.EnrollHost(ctx, spec, TokenUse{"spare", hash("spare")}))
	})
	enrollAgain := call(func(ctx context.Context, s *Store) error {
		return third(s.EnrollHost(ctx, hostSpec("h"), TokenUse{"spare", hash("spare")}))
	})
	enrollClient := call(func(ctx context.Context, s *Store) error {
		return third(s.EnrollClient(ctx, ClientSpec{Name: "new", Key: key("new"), TLSKey: "new"}, TokenUse{"people", hash("people")}))
	})
	setGateway := call(func(ctx context.Context, s *Store) error { return third(s.SetGateway(ctx, "", "acme", "laptop", "h")) })
	createApp := call(func(ctx context.Context, s *Store) error {
		return third(s.CreateApp(ctx, "", mesh.App{Org: "acme", Name: "other"}))
	})
	createToken := call(func(ctx context.Context, s *Store) error {
		return third(s.CreateToken(ctx, "", mesh.Token{ID: "new", Hash: hash("new"), Kind: mesh.KindHost, Orgs: []string{"acme"}, Region: "nrt", Expires: s.now().AddDate(1, 0, 0)}))
	})
	createAdmin := call(func(ctx context.Context, s *Store) error {
		return third(s.CreateOperator(ctx, "", mesh.Operator{ID: "admin", Hash: hash("x"), Role: mesh.RoleOrgAdmin, Org: "acme"}))
	})
	removeOrg := call(func(ctx context.Context, s *Store) error { return second(s.RemoveOrg(ctx, "", "acme")) })
	removeHost := call(func(ctx context.Context, s *Store) error { return second(s.RemoveHost(ctx, "", "h")) })
	removeApp := call(func(ctx context.Context, s *Store) error { return second(s.RemoveApp(ctx, "", "acme", "web")) })
	removeMachine := call(func(ctx context.Context, s *Store) error {
		return second(s.RemoveMachine(ctx, "", MachineRef{Org: "acme", ID: "old"}))
	})
	removeRegion := call(func(ctx context.Context, s *Store) error { return second(s.RemoveRegion(ctx, "", "nrt")) })
	removeFirst := call(func(ctx context.Context, s *Store) error { return second(s.RemoveOperator(ctx, "", "first")) })
	removeSecond := call(func(ctx context.Context, s *Store) error { return second(s.RemoveOperator(ctx, "", "second")) })
	region := func(name string) call {
		return func(ctx context.Context, s *Store) error { return third(s.CreateRegion(ctx, "", name, nil)) }
	}

	for _, tt := range []struct {
		name          string
		call, intrude call
	}{
		{"app removed, its first machine comes", removeApp, createMachine},
		{"machine made, its app goes", createMachine, removeApp},
		{"machine made, its org goes", createMachine, removeOrg},
		{"machine made, its host goes", createMachine, removeHost},
		{"machine removed, its host goes", removeMachine, removeHost},
		{"host removed, a machine comes", removeHost, createMachine},
		{"host removed, a client comes", removeHost, setGateway},
		{"host removed, it joins again", removeHost, enrollAgain},
		{"client made, its gateway goes", createClient, removeHost},
		{"client made, the gateway that was chosen goes", createClientAnywhere, removeHost},
		{"client made, its org goes", createClient, removeOrg},
		{"client joins, its org goes", enrollClient, removeOrg},
		{"client made, its key is taken", createClient, enrollClient},
		{"gateway set, it goes", setGateway, removeHost},
		{"gateway set, the org goes", setGateway, removeOrg},
		{"app made, its org goes", createApp, removeOrg},
		{"token made, its org goes", createToken, removeOrg},
		{"token made, its region goes", createToken, removeRegion},
		{"admin made, the org goes", createAdmin, removeOrg},
		{"org removed, a machine comes", removeOrg, createMachine},
		{"org removed, a token comes", removeOrg, createToken},
		{"org removed, again", removeOrg, removeOrg},
		{"host removed, again", removeHost, removeHost},
		{"region removed, a host comes", removeRegion, enrollHost},
		{"host joins, its region goes", enrollHost, removeRegion},
		{"region made, another one too", region("ams"), region("sea")},
		{"operators remove each other", removeFirst, removeSecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for k := 0; ; k++ {
				s := newMesh(t, Config{})
				must(s.CreateOperator(t.Context(), "", mesh.Operator{ID: "second", Hash: hash("2"), Role: mesh.RoleOperator}))(t)
				org(t, s, "acme")
				host(t, s, "h")
				host(t, s, "h1")
				if tt.name != "app removed, its first machine comes" {
					machine(t, s, "acme", "web", "old", "h")
				} else {
					must(s.CreateApp(t.Context(), "", mesh.App{Org: "acme", Name: "web"}))(t)
				}
				client(t, s, "acme", "laptop", "h1")
				client(t, s, "acme", "phone", "h")
				token(t, s, mesh.Token{ID: "spare", Kind: mesh.KindHost, Orgs: []string{"all"}})
				token(t, s, mesh.Token{ID: "people", Kind: mesh.KindClient, Org: "acme"})
				var intruded error
				one, reached := between(t, s, k, func() { intruded = tt.intrude(t.Context(), s) })
				err := tt.call(t.Context(), one)
				for _, err := range []error{err, intruded} {
					if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists) && !errors.Is(err, ErrToken) {
						t.Errorf("before step %d: %v", k, err)
					}
				}
				holdsTogether(t, s, fresh(t, s))
				if left := keysBelow(t, s, keyRemoving); len(left) > 0 {
					t.Errorf("before step %d: left %q", k, left)
				}
				if t.Failed() {
					t.Fatalf("with the other change before step %d: %v, other %v", k, err, intruded)
				}
				if !*reached {
					if k == 0 {
						t.Error("the change has no steps: this test proves nothing")
					}
					return
				}
			}
		})
	}
}

// Removing a host takes nothing from a later one of the same name: there is none
// until the removal is complete.
func TestAHostOfTheSameNameWaits(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	org(t, s, "acme")
	host(t, s, "h")
	machine(t, s, "acme", "web", "old", "h")
	use := token(t, s, mesh.Token{ID: "again", Kind: mesh.KindHost, Orgs: []string{"all"}, Uses: 99})
	refused := 0
	steps := 0
	for k := range 20 {
		one, reached := between(t, s, k, func() {
			steps++
			if _, _, err := s.EnrollHost(t.Context(), hostSpec("h"), use); errors.Is(err, ErrConflict) {
				refused++
			}
		})
		done(one.RemoveHost(t.Context(), "", "h"))(t)
		must(s.EnrollHost(t.Context(), hostSpec("h"), use))(t)
		machine(t, s, "acme", "web", fmt.Sprint("m", k), "h")
		if state := fresh(t, s); !state.Machines.Has(fmt.Sprint("acme/m", k)) {
			t.Fatal("the new host's machine is gone")
		}
		if !*reached {
			break
		}
	}
	if refused == 0 {
		t.Errorf("nobody was refused in %d steps of removals: this test proves nothing", steps)
	}
}

// A controller that is slow to clean up takes nothing from a later org of the
// same name: another one completed the removal, and the org was made anew.
func TestALaterOrgOfTheSameNameKeepsAll(t *testing.T) {
	t.Parallel()
	for k := 0; ; k++ {
		s := newMesh(t, Config{})
		host(t, s, "h")
		fill(t, s, "acme", "h", 3, 2)
		var want []string
		one, reached := between(t, s, k, func() {
			if err := second(s.RemoveOrg(t.Context(), "", "acme")); err != nil && !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
			fill(t, s, "acme", "h", 3, 2)
			want = belongs(t, s, "acme", 2)
		})
		done(one.RemoveOrg(t.Context(), "", "acme"))(t)
		if !*reached {
			return
		}
		// Before its first transaction the slow one had not yet asked for anything:
		// then it is the later org that it removes, as it was told to.
		if state := fresh(t, s); state.Orgs.Has("acme") {
			if diff := cmp.Diff(want, belongs(t, s, "acme", 2)); diff != "" {
				t.Errorf("before step %d (-later org +what is left):\n%s", k, diff)
			}
		} else if k > 1 {
			t.Errorf("before step %d: the later org is gone", k)
		}
		holdsTogether(t, s, fresh(t, s))
		if t.Failed() {
			return
		}
	}
}

// A client that chooses another gateway while its own is being removed keeps its choice.
func TestAGatewayChosenDuringARemoval(t *testing.T) {
	t.Parallel()
	for _, choice := range []string{"h1", "h2"} {
		for k := 1; ; k++ { // 0 is before the removal
			s := newMesh(t, Config{})
			org(t, s, "acme")
			for _, name := range []string{"h", "h1", "h2"} {
				host(t, s, name)
				machine(t, s, "acme", "web", name, name) // so that none is preferred
			}
			client(t, s, "acme", "phone", "h")
			var err error
			one, reached := between(t, s, k, func() { err = third(s.SetGateway(t.Context(), "", "acme", "phone", choice)) })
			done(one.RemoveHost(t.Context(), "", "h"))(t)
			if !*reached {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			state := fresh(t, s)
			if c, _ := state.Clients.Get("acme/phone"); c.Gateway != choice {
				t.Errorf("before step %d: gateway %q, chosen was %q", k, c.Gateway, choice)
			}
		}
	}
}
