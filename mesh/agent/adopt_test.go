package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/attach"
)

// After a restore the controllers are told of what runs here; what they do not give
// back is fenced, and nothing happens while they do not answer.
func TestAdopt(t *testing.T) {
	restore := func(r *registry, change func()) {
		r.set(func() { r.epoch, r.asked = 2, nil; change() })
	}
	for _, tt := range []struct {
		name   string
		change func(r *registry, w mesh.Machine) // what the backup says
		asked  []string
		fenced bool
	}{
		{"unknown", func(r *registry, w mesh.Machine) { delete(r.records, "o/w") }, []string{"POST o/machines"}, false},
		{"its name had another address", func(r *registry, w mesh.Machine) {
			w.Endpoint = testPlan(t).Endpoint(1, mesh.Host{Number: 1}.Position(), 99)
			r.records["o/w"] = w
		}, []string{"DELETE o/machines/w", "POST o/machines"}, false},
		{"it was still on another host", func(r *registry, w mesh.Machine) {
			w.Host, w.Generation = "b", 4
			r.records["o/w"] = w
		}, []string{"POST o/machines", "PUT o/machines/w/host"}, false},
		{"another one has the address", func(r *registry, w mesh.Machine) {
			delete(r.records, "o/w")
			w.ID = "x"
			r.records["o/x"] = w
		}, []string{"POST o/machines"}, true},
		{"another host has it by the same right", func(r *registry, w mesh.Machine) {
			w.Host = "b"
			r.records["o/w"] = w
		}, []string{"POST o/machines"}, true},
	} {
		m, r := newMachines(t, t.TempDir())
		r.epoch = 1
		s, err := m.enter(t.Context(), web("w"), 1, r.view)
		if err != nil {
			t.Fatal(err)
		}
		s.record.Generation = 5
		r.records["o/w"] = s.record
		before := r.view()
		m.plan(before, nil, contact{})
		restore(r, func() { tt.change(r, s.record) })
		told := r.view()
		for range 2 { // told once
			// What the controllers say is held back: the view in force has it still.
			held := *retain(before, told)
			in, _ := m.plan(&held, nil, contact{told: told})
			if len(in) != 1 || s.fate != fateStays {
				t.Fatalf("%s: in the firewall %v, fate %d", tt.name, in, s.fate)
			}
		}
		select {
		case <-s.lost:
		default:
			t.Fatalf("%s: not told to register again", tt.name)
		}
		shown := find(told, "o", "w")
		r.down = true
		if _, err := m.adopt(t.Context(), s.record, shown); err == nil || refusedForGood(err) {
			t.Errorf("%s: without controllers: %v", tt.name, err)
		}
		r.down, r.asked = false, nil
		got, err := m.adopt(t.Context(), s.record, shown)
		if diff := cmp.Diff(tt.asked, r.asked); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if tt.fenced {
			if !refusedForGood(err) {
				t.Errorf("%s: %+v, %v", tt.name, got, err)
			}
			continue
		}
		if err != nil || got.Endpoint != s.record.Endpoint || got.Host != "a" {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
			continue
		}
		m.adopted(s, got, told.Revision.Epoch)
		m.plan(told, nil, contact{}) // the view does not have it yet
		m.plan(r.view(), nil, contact{})
		if s.fate != fateStays || s.asked || s.epoch != 2 || !s.seen {
			t.Errorf("%s: in the end %+v", tt.name, s.standing)
		}
	}
}

// A link that no view knows stays for a while when the controllers were restored
// while the agent was down: its process is still to come back.
func TestUnknownLinkAfterARestore(t *testing.T) {
	for _, tt := range []struct {
		epoch uint32
		stays bool
	}{{1, false}, {2, true}} {
		synctest.Test(t, func(t *testing.T) {
			m, r := newMachines(t, t.TempDir())
			r.epoch = 1
			w := r.on("a", "w", 1)
			found := []attach.Found{{Link: attach.LinkName("o", "w"), Endpoint: w.Endpoint}}
			m.plan(r.view(), found, contact{fromCache: true})
			delete(r.records, "o/w")
			r.epoch = tt.epoch
			in, leftover := m.plan(r.view(), found, contact{})
			if stays := len(in) == 1; stays != tt.stays || len(leftover) == 1 == tt.stays {
				t.Errorf("epoch %d: in the firewall %v, left over %v", tt.epoch, in, leftover)
			}
			letPass(11 * time.Second)
			if _, leftover := m.plan(r.view(), found, contact{}); len(leftover) != 1 {
				t.Errorf("epoch %d: after its time left over %v", tt.epoch, leftover)
			}
		})
	}
}
