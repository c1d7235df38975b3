package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

func splitFields(s string) []string { return strings.Fields(s) }

func containsAll(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// prepare asks for a machine of acme's app web to come to host.
func prepare(s *Store, id, host string) (mesh.Machine, error) {
	m, _, err := s.CreateMachine(context.Background(), "test", MachineSpec{Org: "acme", App: "web", ID: id, Host: host, Stable: true, Move: true})
	return m, err
}

// moveTo moves a machine of acme to host.
func moveTo(t testing.TB, s *Store, id, host string) mesh.Machine {
	t.Helper()
	m, err := prepare(s, id, host)
	if err != nil {
		t.Fatal(err)
	}
	return must(s.MoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: id}, host, m.Generation))(t)
}

func TestMoves(t *testing.T) {
	t.Parallel()
	db := MachineRef{Org: "acme", ID: "db"}
	cordon := func(on bool) func(*Store) error {
		return func(s *Store) error {
			return third(s.SetHost(context.Background(), "", "b", HostChange{Cordoned: &on}))
		}
	}
	prepares := func(id, host string) func(*Store) error {
		return func(s *Store) error { _, err := prepare(s, id, host); return err }
	}
	commits := func(host string, generation uint64) func(*Store) error {
		return func(s *Store) error { return third(s.MoveMachine(context.Background(), "", db, host, generation)) }
	}
	cancels := func(host string) func(*Store) error {
		return func(s *Store) error { return second(s.CancelMove(context.Background(), "", db, host)) }
	}
	removesHost := func(host string) func(*Store) error {
		return func(s *Store) error { return second(s.RemoveHost(context.Background(), "", host)) }
	}
	asks := func(spec MachineSpec) func(*Store) error {
		spec.Org, spec.ID = "acme", "db"
		return func(s *Store) error { return third(s.CreateMachine(context.Background(), "", spec)) }
	}
	type step struct {
		do   func(*Store) error
		want error
	}
	for _, tt := range []struct {
		name  string
		steps []step
		is    string // host, next, generation; "" if the machine is gone
	}{
		{"there", []step{{prepares("db", "b"), nil}, {commits("b", 1), nil}}, "b  2"},
		{"prepared", []step{{prepares("db", "b"), nil}}, "a b 1"},
		{"and home again", []step{{prepares("db", "b"), nil}, {commits("b", 1), nil}, {prepares("db", "a"), nil}, {commits("a", 2), nil}}, "a  3"},
		{"asked twice", []step{{prepares("db", "b"), nil}, {prepares("db", "b"), nil}, {commits("b", 1), nil}, {commits("b", 1), nil}}, "b  2"},
		{"to where it is", []step{{prepares("db", "a"), nil}}, "a  1"},
		{"not asked for", []step{{asks(MachineSpec{App: "web", Host: "b", Stable: true}), ErrExists}}, "a  1"},
		{"not prepared", []step{{commits("b", 1), ErrConflict}}, "a  1"},
		{"with an old generation", []step{{prepares("db", "b"), nil}, {commits("b", 0), ErrConflict}}, "a b 1"},
		{"with one of the future", []step{{prepares("db", "b"), nil}, {commits("b", 2), ErrConflict}}, "a b 1"},
		{"by another host", []step{{prepares("db", "b"), nil}, {commits("c", 1), ErrConflict}}, "a b 1"},
		{"two want it", []step{{prepares("db", "b"), nil}, {prepares("db", "c"), ErrConflict}}, "a b 1"},
		{"late, and it went elsewhere", []step{
			{prepares("db", "b"), nil}, {cancels("b"), nil}, {prepares("db", "c"), nil}, {commits("c", 1), nil}, {commits("b", 1), ErrConflict}, {commits("b", 2), ErrConflict},
		}, "c  2"},
		{"a late answer does not point back", []step{
			{prepares("db", "b"), nil}, {commits("b", 1), nil}, {prepares("db", "a"), nil}, {commits("a", 2), nil}, {commits("b", 1), ErrConflict},
		}, "a  3"},
		{"called off", []step{{prepares("db", "b"), nil}, {cancels("b"), nil}, {commits("b", 1), ErrConflict}}, "a  1"},
		{"called off by another", []step{{prepares("db", "b"), nil}, {cancels("c"), ErrNotFound}}, "a b 1"},
		{"called off twice", []step{{prepares("db", "b"), nil}, {cancels("b"), nil}, {cancels("b"), ErrNotFound}}, "a  1"},
		{"of a machine that is not there", []step{{prepares("other", "b"), nil}, {cancels("a"), ErrNotFound}}, "a  1"},
		{"to a host that is not there", []step{{prepares("db", "nowhere"), ErrNotFound}}, "a  1"},
		{"to a host that may not carry the org", []step{{prepares("db", "other"), ErrConflict}}, "a  1"},
		{"to a cordoned host", []step{{cordon(true), nil}, {prepares("db", "b"), ErrConflict}}, "a  1"},
		{"to a host that is cordoned meanwhile", []step{{prepares("db", "b"), nil}, {cordon(true), nil}, {commits("b", 1), nil}}, "b  2"},
		{"as another app", []step{{asks(MachineSpec{App: "other", Host: "b", Stable: true, Move: true}), ErrConflict}}, "a  1"},
		{"the new host goes", []step{{prepares("db", "b"), nil}, {removesHost("b"), nil}, {commits("b", 1), ErrConflict}, {prepares("db", "c"), nil}}, "a c 1"},
		{"the old host goes", []step{{prepares("db", "b"), nil}, {removesHost("a"), nil}, {commits("b", 1), ErrNotFound}}, ""},
		{"the old host goes, and it comes all the same", []step{{prepares("db", "b"), nil}, {removesHost("a"), nil}, {prepares("db", "b"), nil}}, "b  2"},
		{"it ends meanwhile", []step{
			{prepares("db", "b"), nil},
			{func(s *Store) error { return second(s.RemoveMachine(context.Background(), "", db)) }, nil}, {commits("b", 1), ErrNotFound}, {prepares("db", "b"), nil},
		}, "b  2"},
		{"removed by the host that it goes to", []step{
			{prepares("db", "b"), nil},
			{func(s *Store) error {
				return second(s.RemoveMachine(context.Background(), "", MachineRef{Org: "acme", ID: "db", Host: "b"}))
			}, ErrConflict},
		}, "a b 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newMesh(t, Config{})
			org(t, s, "acme")
			for _, h := range []string{"a", "b", "c"} {
				host(t, s, h)
			}
			org(t, s, "beta")
			host(t, s, "other", "beta")
			was := stable(t, s, "acme", "db", "a")
			for i, step := range tt.steps {
				if err := step.do(s); !errors.Is(err, step.want) || step.want == nil && err != nil {
					t.Fatalf("step %d: %v, want %v", i, err, step.want)
				}
			}
			m, there, err := read[mesh.Machine](t, s, machineKey("acme", "db"))
			if err != nil {
				t.Fatal(err)
			}
			is := ""
			if there {
				is = fmt.Sprintf("%s %s %d", m.Host, m.Next, m.Generation)
			}
			if is != tt.is || there && m.Endpoint != was.Endpoint {
				t.Errorf("it is %q at %s, want %q at %s", is, m.Endpoint, tt.is, was.Endpoint)
			}
			holdsTogether(t, s, fresh(t, s))
		})
	}
}

func TestAPassingMachineDoesNotMove(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	org(t, s, "acme")
	host(t, s, "a")
	host(t, s, "b")
	machine(t, s, "acme", "web", "one", "a")
	_, err := prepare(s, "one", "b")
	if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "it is on host a and is not stable") || mesh.HintOf(err) == "" {
		t.Errorf("%v, hint %q", err, mesh.HintOf(err))
	}
}

// The hosts that carry an org do so before the machine comes.
func TestTheNextHostCarriesTheOrg(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	org(t, s, "acme")
	host(t, s, "a")
	host(t, s, "b")
	stable(t, s, "acme", "db", "a")
	if _, err := prepare(s, "db", "b"); err != nil {
		t.Fatal(err)
	}
	state := mirroredAt(t, s, s.newest.Load())
	if got := strings.Join(state.HostsOf("acme"), " "); got != "a b" {
		t.Errorf("acme is carried by %q", got)
	}
	done(s.CancelMove(t.Context(), "", MachineRef{Org: "acme", ID: "db"}, "b"))(t)
	state = mirroredAt(t, s, s.newest.Load())
	if got := strings.Join(state.HostsOf("acme"), " "); got != "a" {
		t.Errorf("called off: acme is carried by %q", got)
	}
}

// A move that nobody completes is given up after two minutes by the job, and not
// before; one that another one follows has its own two minutes.
func TestMovesAreGivenUp(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := run(t, newMesh(t, Config{Now: c.Now}))
	org(t, s, "acme")
	for _, h := range []string{"a", "b", "c"} {
		host(t, s, h)
	}
	stable(t, s, "acme", "db", "a")
	stable(t, s, "acme", "stays", "a")
	next := func() string {
		t.Helper()
		mirroredAt(t, s, s.newest.Load())
		if err := s.giveUpMoves(t.Context()); err != nil {
			t.Fatal(err)
		}
		m, _, _ := read[mesh.Machine](t, s, machineKey("acme", "db"))
		return m.Next
	}
	prepares := func(host string) {
		t.Helper()
		if _, err := prepare(s, "db", host); err != nil {
			t.Fatal(err)
		}
	}
	prepares("b")
	if got := next(); got != "b" {
		t.Errorf("at once: next %q", got)
	}
	c.add(movePatience - time.Second)
	if got := next(); got != "b" {
		t.Errorf("before its time: next %q", got)
	}
	done(s.CancelMove(t.Context(), "", MachineRef{Org: "acme", ID: "db"}, "b"))(t)
	prepares("c")
	c.add(time.Second)
	if got := next(); got != "c" {
		t.Errorf("another one: next %q", got)
	}
	c.add(movePatience)
	if got := next(); got != "" {
		t.Errorf("after its time: next %q", got)
	}
	if got := next(); got != "" {
		t.Errorf("twice: next %q", got)
	}
}

// Moves by many at once, at several controllers: each generation is on one host,
// and the record ends where the last one that succeeded put it.
func TestMovesRace(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{})
	stores := []*Store{one, again(t, one), again(t, one)}
	org(t, one, "acme")
	for i := range 4 {
		host(t, one, fmt.Sprint("h", i))
	}
	was := stable(t, one, "acme", "db", "h0")
	var at unique // generation: host
	together(24, func(i int) {
		s, host := stores[i%3], fmt.Sprint("h", i%4)
		for range 10 {
			m, err := prepare(s, "db", host)
			if err == nil && m.Next == host {
				if i%5 == 0 {
					_, err = s.CancelMove(t.Context(), "", MachineRef{Org: "acme", ID: "db"}, host)
				} else if m, _, err = s.MoveMachine(t.Context(), "", MachineRef{Org: "acme", ID: "db"}, host, m.Generation); err == nil {
					at.mu.Lock()
					if at.seen == nil {
						at.seen = map[uint64]string{}
					}
					if other, taken := at.seen[m.Generation]; taken && other != host {
						t.Errorf("generation %d is on %s and on %s", m.Generation, other, host)
					}
					at.seen[m.Generation] = host
					at.mu.Unlock()
				}
			}
			if err != nil && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
		}
	})
	m, _, _ := read[mesh.Machine](t, one, machineKey("acme", "db"))
	if len(at.seen) == 0 || at.seen[m.Generation] != m.Host || m.Endpoint != was.Endpoint {
		t.Errorf("it is on %s, generation %d; moves: %v", m.Host, m.Generation, at.seen)
	}
	holdsTogether(t, one, fresh(t, one))
}
