package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// looked is a machine with a check.
func looked(t *testing.T, s *Store, id, host string) mesh.Machine {
	t.Helper()
	return must(s.CreateMachine(t.Context(), "test", MachineSpec{
		Org: "acme", App: "web", ID: id, Host: host, Stable: true, Checks: []mesh.Check{{Kind: mesh.CheckTCP, Port: 80}},
	}))(t)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	ctx := t.Context()
	org(t, s, "acme")
	host(t, s, "h")
	host(t, s, "h1")
	if m := looked(t, s, "a", "h"); m.State != mesh.StateCreated {
		t.Errorf("a machine with checks begins %s", m.State)
	}
	if m := machine(t, s, "acme", "web", "plain", "h"); m.State != mesh.StateStarted {
		t.Errorf("a machine without checks begins %s", m.State)
	}
	looked(t, s, "elsewhere", "h1")
	since := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	seen := func(id string, passing bool, note string) mesh.Health {
		return mesh.Health{Org: "acme", Machine: id, Passing: passing, Since: since, Note: note}
	}
	report := func(from string, seen ...mesh.Health) mesh.State {
		t.Helper()
		rev, err := s.SetHealth(ctx, "host/"+from, from, seen)
		if err != nil {
			t.Fatal(err)
		}
		return mirroredAt(t, s, rev)
	}
	// What is not this host's, not there or has no checks is passed over.
	state := report("h", seen("a", false, "refused"), seen("elsewhere", true, ""), seen("plain", false, ""), seen("gone", true, ""))
	if got, _ := state.Health.Get("acme/a"); got != seen("a", false, "refused") || state.Health.Len() != 1 {
		t.Errorf("%+v of %d", got, state.Health.Len())
	}
	if m, _ := state.Machines.Get("acme/a"); m.State != mesh.StateCreated {
		t.Errorf("it is %s before it has passed", m.State)
	}
	// Of two words about one machine the last one counts; the first pass starts it.
	state = report("h", seen("a", false, "x"), seen("a", true, ""))
	if m, _ := state.Machines.Get("acme/a"); m.State != mesh.StateStarted {
		t.Errorf("it is %s after it has passed", m.State)
	}
	before := state.Revision
	if after := report("h", seen("a", true, "")); after.Revision != before {
		t.Error("the same again was written again")
	}
	state = report("h", seen("a", false, strings.Repeat("ä", 200)))
	if got, _ := state.Health.Get("acme/a"); got.Passing || got.Note != strings.Repeat("ä", 100) {
		t.Errorf("a long note: %d bytes", len(got.Note))
	}
	// A stopped machine does not start by passing.
	must(s.SetMachine(ctx, "test", MachineRef{"acme", "a", ""}, MachineChange{State: new(mesh.StateStopped)}))(t)
	state = report("h", seen("a", true, ""))
	if m, _ := state.Machines.Get("acme/a"); m.State != mesh.StateStopped {
		t.Errorf("a stopped machine is %s", m.State)
	}
	if _, err := s.SetHealth(ctx, "", "h", []mesh.Health{{Org: "acme", Machine: "a/b"}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a name that is none: %v", err)
	}
	rev, err := s.RemoveMachine(ctx, "test", MachineRef{Org: "acme", ID: "a"})
	done(rev, err)(t)
	if mirroredAt(t, s, rev).Health.Len() != 0 {
		t.Error("the machine is gone, and its health is not")
	}
	if m := looked(t, s, "a", "h"); m.State != mesh.StateCreated {
		t.Errorf("a new one of that name begins %s", m.State)
	}
}

// A host that comes back has much to tell: more than one transaction takes.
func TestHealthOfMany(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	org(t, s, "acme")
	host(t, s, "h")
	var seen []mesh.Health
	for i := range 2*healthPage + 1 {
		id := fmt.Sprint("m", i)
		looked(t, s, id, "h")
		seen = append(seen, mesh.Health{Org: "acme", Machine: id, Passing: true})
	}
	rev, err := s.SetHealth(t.Context(), "host/h", "h", seen)
	if err != nil {
		t.Fatal(err)
	}
	state := mirroredAt(t, s, rev)
	if state.Health.Len() != len(seen) {
		t.Errorf("%d of %d", state.Health.Len(), len(seen))
	}
	for _, m := range state.Machines.All() {
		if m.State != mesh.StateStarted {
			t.Fatalf("machine %s is %s", m.ID, m.State)
		}
	}
	done(s.RemoveHost(t.Context(), "test", "h"))(t)
	if left := fresh(t, s); left.Health.Len()+left.Machines.Len() != 0 {
		t.Errorf("the host is gone; %d machines and the health of %d are left", left.Machines.Len(), left.Health.Len())
	}
}

func TestWantedStates(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	ctx := t.Context()
	org(t, s, "acme")
	host(t, s, "h")
	machine(t, s, "acme", "web", "m", "h")
	looked(t, s, "new", "h")
	set := func(id string, c MachineChange) mesh.Machine {
		t.Helper()
		return must(s.SetMachine(ctx, "test", MachineRef{Org: "acme", ID: id}, c))(t)
	}
	if m := set("m", MachineChange{Cordoned: new(true), State: new(mesh.StateDraining)}); !m.Cordoned || m.State != mesh.StateDraining {
		t.Errorf("%+v", m)
	}
	if m := set("m", MachineChange{State: new(mesh.StateStarted)}); !m.Cordoned || m.State != mesh.StateStarted {
		t.Errorf("%+v", m)
	}
	if m := set("new", MachineChange{State: new(mesh.StateStarted)}); m.State != mesh.StateCreated {
		t.Errorf("a machine that has not passed its checks is %s because somebody wants it", m.State)
	}
	for _, state := range []string{mesh.StateCreated, "paused", ""} {
		if _, _, err := s.SetMachine(ctx, "", MachineRef{Org: "acme", ID: "m"}, MachineChange{State: &state}); !errors.Is(err, ErrInvalid) {
			t.Errorf("state %q: %v", state, err)
		}
	}
	events, err := s.Events(ctx, 100)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, e := range events {
		if strings.HasPrefix(e.Target, "acme/") && e.Action != "machine.create" {
			said = append(said, e.Action+" "+e.Target)
		}
	}
	if got, want := fmt.Sprint(said), "[machine.draining acme/m machine.cordon acme/m machine.started acme/m]"; got != want && got != "[machine.cordon acme/m machine.draining acme/m machine.started acme/m]" {
		t.Errorf("events %s, want %s", got, want)
	}
}

// The same machine again with other checks has those; with another app it is refused
// as before.
func TestRegisteredAgainWithOtherChecks(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	org(t, s, "acme")
	host(t, s, "h")
	first := looked(t, s, "a", "h")
	spec := MachineSpec{Org: "acme", App: "web", ID: "a", Host: "h", Stable: true, Unlisted: true, Checks: []mesh.Check{{Kind: mesh.CheckTCP, Port: 81}}}
	m := must(s.CreateMachine(t.Context(), "test", spec))(t)
	if m.Endpoint != first.Endpoint || m.Checks[0].Port != 81 || !m.Unlisted {
		t.Errorf("%+v", m)
	}
	spec.App = "db"
	if _, _, err := s.CreateMachine(t.Context(), "test", spec); !errors.Is(err, ErrExists) {
		t.Errorf("with another app: %v", err)
	}
	spec.App, spec.ID, spec.Checks = "web", "b", []mesh.Check{{Kind: "udp"}}
	if _, _, err := s.CreateMachine(t.Context(), "test", spec); !errors.Is(err, ErrInvalid) {
		t.Errorf("with a check that is none: %v", err)
	}
}
