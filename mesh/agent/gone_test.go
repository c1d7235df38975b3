package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
)

// The last machine of an org goes from a host that has not seen where to, and its org
// with it: the controllers are asked, for as long as it takes.
func TestGoneWithItsOrg(t *testing.T) {
	elsewhere := func(r *registry) {
		w := r.records["o/w"]
		w.Host, w.Generation = "b", w.Generation+1
		r.records["o/w"] = w
	}
	for _, tt := range []struct {
		name   string
		become func(r *registry)
		code   string
		fenced bool // its namespace does not get it back
	}{
		{name: "moved", become: elsewhere, code: local.OverMoved},
		{name: "removed", become: func(r *registry) { delete(r.records, "o/w") }, code: local.OverRemoved, fenced: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, r := newMachines(t, t.TempDir())
				h := &host{cfg: HostConfig{Timing: Timing{}.withDefaults()}, machines: m, log: m.log}
				s, err := m.enter(t.Context(), web("w"), 7, r.view)
				if err != nil {
					t.Fatal(err)
				}
				m.plan(r.view(), nil, contact{})
				was := r.records["o/w"]
				r.set(func() { r.down = true })
				in, leftover := m.plan(&mesh.View{Plan: testPlan(t)}, nil, contact{})
				if s.fate != fateGone || len(in)+len(leftover) != 0 {
					t.Fatalf("fate %d, in the firewall %v, left over %v", s.fate, in, leftover)
				}
				var over *local.Over
				go func() { over = h.gone(t.Context(), s) }()
				letPass(time.Minute)
				if over != nil {
					t.Fatalf("without a controller: %+v", over)
				}
				// A controller that is behind says that it is here.
				r.set(func() { r.down = false })
				letPass(time.Minute)
				if over != nil {
					t.Fatalf("a controller that is behind: %+v", over)
				}
				r.set(func() { tt.become(r) })
				letPass(time.Minute)
				if over == nil || over.Code != tt.code {
					t.Fatalf("told %+v", over)
				}
				m.leaves(s)
				if _, any := m.begin(); any || len(m.stays) != 0 {
					t.Error("its record is to be removed, or its name not free")
				}
				if len(h.problems.list()) != 0 {
					t.Errorf("problems: %v", h.problems.list())
				}
				// Its process asks again.
				back := web("w")
				back.Held = &local.Held{Endpoint: was.Endpoint}
				var e *api.Error
				_, err = m.enter(t.Context(), back, 7, func() *mesh.View { return &mesh.View{Plan: testPlan(t)} })
				if want := tt.code; !errors.As(err, &e) || !tt.fenced && e.Code != want || tt.fenced && e.Code != api.ErrNotFound.Code {
					t.Errorf("its process comes back: %v", err)
				}
			})
		})
	}
}

// A process that comes back to an agent that has not seen where its machine went.
func TestComeBackWithoutItsOrg(t *testing.T) {
	for _, tt := range []struct {
		name, there, code string
		down              bool
	}{
		{name: "moved", there: "b", code: local.OverMoved},
		{name: "removed", code: local.OverRemoved},
		{name: "the controller asked is behind", there: "a", code: "unavailable"},
		{name: "none answers", there: "b", down: true, code: ""},
	} {
		m, r := newMachines(t, t.TempDir())
		w := r.on("b", "w", 1)
		if w.Host = tt.there; tt.there == "" {
			delete(r.records, "o/w")
		} else {
			r.records["o/w"] = w
		}
		r.down = tt.down
		request := web("w")
		request.Held = &local.Held{Endpoint: w.Endpoint}
		var e *api.Error
		_, err := m.enter(t.Context(), request, 7, func() *mesh.View { return &mesh.View{Plan: testPlan(t)} })
		if err == nil || errors.As(err, &e) != (tt.code != "") || e != nil && e.Code != tt.code || tt.down && !errors.Is(err, api.ErrUnreachable) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if want := []string{"GET o/machines/w"}; !slices.Equal(r.asked, want) {
			t.Errorf("%s: asked %v, want %v", tt.name, r.asked, want)
		}
	}
}

// A process that ends while nobody says what became of its machine takes nothing with it.
func TestEndsWhileGone(t *testing.T) {
	m, r := newMachines(t, t.TempDir())
	h := &host{cfg: HostConfig{Timing: Timing{}.withDefaults()}, machines: m, log: m.log}
	s, err := m.enter(t.Context(), web("w"), 7, r.view)
	if err != nil {
		t.Fatal(err)
	}
	m.plan(r.view(), nil, contact{})
	m.plan(&mesh.View{Plan: testPlan(t)}, nil, contact{})
	ctx, end := context.WithCancel(t.Context())
	end()
	if over := h.gone(ctx, s); over != nil {
		t.Errorf("told %+v", over)
	}
	m.leaves(s)
	if _, any := m.begin(); any || len(m.stays) != 0 {
		t.Error("a record that may be another host's is to be removed")
	}
}
