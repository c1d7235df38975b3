package controller

import (
	"errors"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// What a host reports of its machines' health and of its place among round trips is
// in the views of others; what it says of others' machines is not.
func TestReportsOfHealthAndPlace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	a, b := w.host("a", "fra", "all"), w.host("b", "fra", "all")
	checks := []mesh.Check{{Kind: mesh.CheckTCP, Port: 80, Interval: mesh.Duration(time.Second)}}
	made := do[api.MachineInfo](t, a.Client, "POST", "/v1/orgs/acme/machines", api.CreateMachine{ID: "m", App: "web", Checks: checks})
	if made.State != mesh.StateCreated || len(made.Checks) != 1 || made.Checks[0] != checks[0] || made.Health != nil {
		t.Errorf("made %+v", made)
	}
	b.machine("acme", "web", "other")
	at := mesh.Coordinate{Vec: make([]float64, mesh.CoordinateDimensions), Error: 0.5, Height: 0.01}
	since := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	report := func(n *node, passing bool) error {
		return n.Do(t.Context(), "POST", "/v1/nodes/self/report", api.Report{
			Version: "x", Coordinate: &at, Health: []mesh.Health{{Org: "acme", Machine: "m", Passing: passing, Since: since}},
		}, nil)
	}
	if err := errors.Join(report(a, true), report(b, false)); err != nil {
		t.Fatal(err)
	}
	show := do[api.MachineInfo](t, w.admin, "GET", "/v1/orgs/acme/machines/m", nil)
	if show.State != mesh.StateStarted || show.Health == nil || !show.Health.Passing || !show.Health.Since.Equal(since) {
		t.Errorf("%+v", show)
	}
	v := (<-b.view().events).Snapshot
	if v == nil || len(v.Health) != 1 || len(v.Hosts) != 1 || v.Hosts[0].Coordinate == nil || v.Hosts[0].Coordinate.Height != at.Height || v.Coordinate == nil {
		t.Errorf("the other host's view: %+v", v)
	}
	at.Vec[0] = 1e6
	if err := report(a, false); !errors.Is(err, api.ErrInvalid) {
		t.Errorf("a coordinate that cannot be: %v", err)
	}
	show = do[api.MachineInfo](t, w.admin, "GET", "/v1/orgs/acme/machines/m", nil)
	if show.Health.Passing {
		t.Error("a bad coordinate kept the health from being taken")
	}
}

// A newer agent may say more than this controller knows, also within what it knows.
func TestReportsOfANewerAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	a := w.host("a", "fra", "all")
	a.machine("acme", "web", "m")
	report := map[string]any{
		"weather": "fine", "health": []any{map[string]any{"org": "acme", "machine": "m", "passing": true, "since": "2030-01-01T00:00:00Z", "colour": "red"}},
	}
	if err := a.Do(t.Context(), "POST", "/v1/nodes/self/report", report, nil); err != nil {
		t.Error(err)
	}
	machine := map[string]any{"app": "web", "checks": []any{map[string]any{"kind": "tcp", "port": 1, "colour": "red"}}}
	if err := a.Do(t.Context(), "POST", "/v1/orgs/acme/machines", machine, nil); err != nil {
		t.Error(err)
	}
	// A person's typing error is refused as before.
	record := map[string]any{"name": "x", "type": "TXT", "value": []any{"x"}}
	if err := w.admin.Do(t.Context(), "POST", "/v1/orgs/acme/records", record, nil); !errors.Is(err, api.ErrInvalid) {
		t.Errorf("a field that there is not: %v", err)
	}
}
