package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/check"
	"github.com/weftmesh/weft/mesh/agent/local"
)

// lookedAfter are machines of host a of which one has a check that is a command.
func lookedAfter(t *testing.T, before check.Verdict) (*machines, *stay) {
	t.Helper()
	m, err := openMachines(&machines{host: "a", dir: t.TempDir(), wake: func() {}, log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s := &stay{key: "acme/web-a", pid: 7}
	m.stays[s.key] = s
	checks := []mesh.Check{{Kind: mesh.CheckExec, Command: "x"}}
	m.watched(s, check.New(check.Config{Checks: checks, Start: time.Now(), Before: before, Changed: func() { m.beat(s) }}), false)
	return m, s
}

// The view on disk may be a little older than what the controllers say: a new agent
// that has no verdict of its own yet does not gainsay them.
func TestNewAgentDoesNotGainsay(t *testing.T) {
	for name, tt := range map[string]struct {
		earlier bool
		health  []mesh.Health
		in      bool
		unsaid  int
	}{
		"it passes, and its process ran before":     {true, []mesh.Health{healthOf(true)}, true, 0},
		"it fails, and its process ran before":      {true, []mesh.Health{healthOf(false)}, false, 0},
		"nobody knows, and its process ran before":  {true, nil, false, 0},
		"another process passed, this one is young": {false, []mesh.Health{healthOf(true)}, false, 1},
	} {
		m, s := lookedAfter(t, check.Unknown)
		m.watched(s, s.watch, tt.earlier)
		v := withHealth(t, mesh.StateStarted, tt.health...)
		if got := inNames(t, m.mask(v)); got != tt.in {
			t.Errorf("%s: it is in this host's names: %v", name, got)
		}
		if got := m.unreported(v); len(got) != tt.unsaid {
			t.Errorf("%s: to report: %v", name, got)
		}
		told(t, m, s, "refused")
		if inNames(t, m.mask(v)) {
			t.Errorf("%s: it fails, and is in names", name)
		}
	}
}

// told has the machine say something as often as counts.
func told(t *testing.T, m *machines, s *stay, failure string) {
	t.Helper()
	for range mesh.DefaultCheckFall {
		if err := m.checked(s, local.CheckResult{Org: "acme", ID: "web-a", Failure: failure}); err != nil {
			t.Fatal(err)
		}
	}
}

// withHealth is a view that says that of web-a.
func withHealth(t *testing.T, state string, health ...mesh.Health) *mesh.View {
	v := *sampleView(t)
	v.Machines = slices.Clone(v.Machines)
	r := findSorted(&v, "acme", "web-a")
	r.State, r.Checks = state, []mesh.Check{{Kind: mesh.CheckExec, Command: "x"}}
	v.Health = health
	return &v
}

func healthOf(passing bool) mesh.Health {
	return mesh.Health{Org: "acme", Machine: "web-a", Passing: passing}
}

// inNames is what the zone of a view says of web-a: whether it is in names.
func inNames(t *testing.T, v *mesh.View) bool {
	t.Helper()
	for _, o := range zoneData(v, nil).Orgs {
		for _, m := range o.Machines {
			if m.ID == "web-a" {
				return m.Started && m.Healthy && !m.Cordoned
			}
		}
	}
	t.Fatal("web-a is not in the zone's data")
	return false
}

// A host's own names follow its own eyes, and it tells what the controllers do not
// know.
func TestOwnHealth(t *testing.T) {
	for _, tt := range []struct {
		name     string
		before   check.Verdict
		says     string // "": nothing, "+": it succeeds, else why not
		view     *mesh.View
		in       bool   // this host's names
		unsaid   string // what is to be reported
		stranger bool   // and the names of others, by the view alone
	}{
		{"nothing known yet", check.Unknown, "", withHealth(t, mesh.StateCreated), false, "[]", false},
		{"the first pass", check.Unknown, "+", withHealth(t, mesh.StateCreated), true, "[acme/web-a true]", false},
		{"it is known to pass, and not to be started", check.Unknown, "+", withHealth(t, mesh.StateCreated, healthOf(true)), true, "[acme/web-a true]", false},
		{"it passes, as is known", check.Passing, "+", withHealth(t, mesh.StateStarted, healthOf(true)), true, "[]", true},
		{"it fails", check.Passing, "refused", withHealth(t, mesh.StateStarted, healthOf(true)), false, "[acme/web-a false exec:x: refused]", true},
		{"it fails, as is known", check.Passing, "refused", withHealth(t, mesh.StateStarted, healthOf(false)), false, "[]", false},
		{"it recovered", check.Failing, "+", withHealth(t, mesh.StateStarted, healthOf(false)), true, "[acme/web-a true]", false},
		{"it fails before it has passed", check.Unknown, "refused", withHealth(t, mesh.StateCreated), false, "[acme/web-a false exec:x: refused]", false},
		{"another process than the one that passed", check.Unknown, "", withHealth(t, mesh.StateStarted, healthOf(true)), false, "[acme/web-a false it has not passed yet]", true},
		{"a new agent, the same process", check.Passing, "", withHealth(t, mesh.StateStarted, healthOf(true)), true, "[]", true},
		{"stopped by somebody", check.Passing, "+", withHealth(t, mesh.StateStopped, healthOf(true)), false, "[]", false},
	} {
		m, s := lookedAfter(t, tt.before)
		switch tt.says {
		case "":
		case "+":
			told(t, m, s, "")
		default:
			told(t, m, s, tt.says)
		}
		if got := inNames(t, tt.view); got != tt.stranger {
			t.Errorf("%s: by the view alone it is in names: %v", tt.name, got)
		}
		if got := inNames(t, m.mask(tt.view)); got != tt.in {
			t.Errorf("%s: it is in this host's names: %v", tt.name, got)
		}
		got := []string{}
		for _, h := range m.unreported(tt.view) {
			text := fmt.Sprintf("%s/%s %v", h.Org, h.Machine, h.Passing)
			if h.Note != "" {
				text += " " + h.Note
			}
			got = append(got, text)
		}
		if fmt.Sprint(got) != tt.unsaid {
			t.Errorf("%s: to report %v, want %s", tt.name, got, tt.unsaid)
		}
	}
}

// What is right in the view is not copied; what the host knows of a machine that is
// elsewhere by now is not said.
func TestMaskOfWhatIsKnown(t *testing.T) {
	m, s := lookedAfter(t, check.Passing)
	v := withHealth(t, mesh.StateStarted, healthOf(true))
	if m.mask(v) != v {
		t.Error("the view says all, and is another one")
	}
	told(t, m, s, "refused")
	first := m.mask(v)
	if first == v || m.mask(v) != first {
		t.Error("a mask is made when something changes, and then once")
	}
	findSorted(v, "acme", "web-a").Host = "b"
	m.maskOf = nil
	if m.mask(v) != v || len(m.unreported(v)) != 0 {
		t.Error("the machine is on another host, and this one speaks of it")
	}
}

// A machine that is about to end is out of names at once, whatever else.
func TestDrainedAtOnce(t *testing.T) {
	m, s := lookedAfter(t, check.Passing)
	v := withHealth(t, mesh.StateStarted, healthOf(true))
	m.drain(s)
	if inNames(t, m.mask(v)) {
		t.Error("it drains, and is in names")
	}
	if got := m.unreported(v); len(got) != 0 {
		t.Errorf("its health is what it was, and %v is reported", got)
	}
}

func TestChecksAreTheProcesss(t *testing.T) {
	m, s := lookedAfter(t, check.Unknown)
	if m.ofPID(s.key, 7) != s || m.ofPID(s.key, 8) != nil || m.ofPID("acme/other", 7) != nil {
		t.Error("whose machine is it?")
	}
	var e *notFound
	if err := m.checked(s, local.CheckResult{Check: 1}); !errors.As(err, &e) {
		t.Errorf("a check that there is not: %v", err)
	}
	s.watch = nil
	if err := m.checked(s, local.CheckResult{}); !errors.As(err, &e) {
		t.Errorf("a machine without checks: %v", err)
	}
}
