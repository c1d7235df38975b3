package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// holds tells of a machine that holds an endpoint.
func holds(s *Store, id, host string, endpoint netip.Prefix, stable bool) (mesh.Machine, error) {
	m, _, err := s.CreateMachine(context.Background(), "host/"+host, MachineSpec{
		Org: "acme", App: "web", ID: id, Host: host, Stable: stable, Endpoint: endpoint,
	})
	return m, err
}

// What a host says that it holds is given to it, if nobody has it; and then it is as
// if it had never been lost.
func TestAdoption(t *testing.T) {
	t.Parallel()
	plan := testPlan(t)
	const acme, beta = 1, 2
	a, b := ipam.Host{Region: 1, Number: 1}, ipam.Host{Region: 1, Number: 2}
	at := func(network uint64, h ipam.Host, slot uint16) netip.Prefix { return plan.Endpoint(network, h, slot) }
	for _, tt := range []struct {
		name     string
		id       string
		endpoint netip.Prefix
		stable   bool
		want     error
		says     string
		next     uint16   // slot that the next one gets at a
		resting  []uint16 // slots that rest at a in acme
	}{
		{name: "never given", id: "new", endpoint: at(acme, a, 5), stable: true, next: 6},
		{name: "with a gap", id: "new", endpoint: at(acme, a, 8), next: 9, resting: []uint16{5, 6, 7}},
		{name: "with a wide gap", id: "new", endpoint: at(acme, a, 305), next: 306, resting: seq(5, 304)},
		{name: "that rests", id: "new", endpoint: at(acme, a, 3), next: 5},
		{name: "that nobody has any more", id: "new", endpoint: at(acme, a, 4), next: 5},
		{name: "its own, kept", id: "kept", endpoint: at(acme, a, 2), stable: true, next: 5},
		{name: "another one than is kept for it", id: "kept", endpoint: at(acme, a, 5), stable: true, next: 6, resting: []uint16{2}},
		{name: "its own, already there", id: "one", endpoint: at(acme, a, 1), stable: true, next: 5},
		{name: "homed at another host", id: "new", endpoint: at(acme, b, 7), stable: true, next: 5},
		{name: "homed at a host that is gone", id: "new", endpoint: at(acme, ipam.Host{Region: 7, Number: 77}, 1), stable: true, next: 5},

		{name: "another's", id: "new", endpoint: at(acme, a, 1), stable: true, want: ErrConflict, says: "belongs to machines/acme/one"},
		{name: "a client's", id: "new", endpoint: at(acme, b, 1), stable: true, want: ErrConflict, says: "belongs to clients/acme/laptop"},
		{name: "kept for another", id: "new", endpoint: at(acme, a, 2), stable: true, want: ErrConflict, says: "kept for machine kept"},
		{name: "kept for its name, and not stable", id: "kept", endpoint: at(acme, a, 2), want: ErrConflict, says: "kept for machine kept"},
		{name: "of a name that has another one", id: "one", endpoint: at(acme, a, 5), stable: true, want: ErrExists},
		{name: "homed elsewhere, not stable", id: "new", endpoint: at(acme, b, 7), want: ErrConflict, says: "not homed at host a"},
		{name: "homed elsewhere by its region", id: "new", endpoint: at(acme, ipam.Host{Region: 2, Number: 1}, 7), want: ErrConflict, says: "not homed at host a"},
		{name: "of another org", id: "new", endpoint: at(beta, a, 5), stable: true, want: ErrConflict, says: "not of org acme's network"},
		{name: "the host's own", id: "new", endpoint: at(acme, a, 0), stable: true, want: ErrInvalid, says: "is no machine's"},
		{name: "a resolver's", id: "new", endpoint: at(acme, ipam.Host{}, 1), stable: true, want: ErrInvalid, says: "is no machine's"},
		{name: "of another mesh", id: "new", endpoint: netip.MustParsePrefix("fd99::/112"), stable: true, want: ErrConflict, says: "not of org"},
		{name: "not a /112", id: "new", endpoint: netip.PrefixFrom(at(acme, a, 5).Addr(), 96), stable: true, want: ErrInvalid},
		{name: "far beyond", id: "new", endpoint: at(acme, a, 5000), stable: true, want: ErrConflict, says: "4995 beyond those that were given"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			s := newMesh(t, Config{Now: c.Now, SlotRest: 1000 * time.Hour})
			org(t, s, "acme")
			org(t, s, "beta")
			host(t, s, "a")
			host(t, s, "b")
			stable(t, s, "acme", "one", "a")               // slot 1
			stable(t, s, "acme", "kept", "a")              // 2
			machine(t, s, "acme", "web", "rests", "a")     // 3
			lost := machine(t, s, "acme", "web", "4", "a") // 4
			client(t, s, "acme", "laptop", "b")            // 1 at b
			for _, id := range []string{"kept", "rests"} {
				done(s.RemoveMachine(t.Context(), "", MachineRef{Org: "acme", ID: id}))(t)
			}
			// Lost in a restore that raised the counter: neither in use nor resting.
			if _, err := s.client.Delete(t.Context(), s.root+machineKey("acme", lost.ID)); err != nil {
				t.Fatal(err)
			}
			before := keysBelow(t, s, "")
			m, err := holds(s, tt.id, "a", tt.endpoint, tt.stable)
			if !errors.Is(err, tt.want) || tt.want == nil && err != nil || tt.want != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("error %v, want %v that says %q", err, tt.want, tt.says)
			}
			holdsTogether(t, s, fresh(t, s))
			if err != nil {
				if after := keysBelow(t, s, ""); !slices.Equal(before, after) {
					t.Errorf("refused, and something changed: %q, was %q", after, before)
				}
				return
			}
			if m.Endpoint != tt.endpoint || m.Host != "a" {
				t.Errorf("it is %+v", m)
			}
			if again, err := holds(s, tt.id, "a", tt.endpoint, tt.stable); err != nil || again.Generation != m.Generation {
				t.Errorf("told again: %+v %v", again, err)
			}
			if next := machine(t, s, "acme", "web", "next", "a"); slot(t, next) != tt.next {
				t.Errorf("the next one has slot %d, want %d", slot(t, next), tt.next)
			}
			var resting []uint16
			for _, k := range keysBelow(t, s, restingSlots(acme, 1)) {
				var due int64
				var n uint16
				fmt.Sscanf(strings.TrimPrefix(k, restingSlots(acme, 1)), "%d-%d", &due, &n)
				if n != 3 { // "rests"
					resting = append(resting, n)
				}
			}
			if slices.Sort(resting); !slices.Equal(resting, tt.resting) {
				t.Errorf("resting: %v, want %v", resting, tt.resting)
			}
			holdsTogether(t, s, fresh(t, s))
		})
	}
}

func seq(from, to uint16) (out []uint16) {
	for n := from; n <= to; n++ {
		out = append(out, n)
	}
	return out
}

// Hosts tell of the same endpoint under different names, others take new ones and
// those that rest, at three controllers: nobody has what another has.
func TestAdoptionsRace(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{SlotRest: time.Nanosecond})
	stores := []*Store{one, again(t, one), run(t, again(t, one))}
	org(t, one, "acme")
	h := host(t, one, "h")
	host(t, one, "other")
	for i := range 6 {
		machine(t, one, "acme", "web", fmt.Sprint("old", i), "h")
		done(one.RemoveMachine(t.Context(), "", MachineRef{Org: "acme", ID: fmt.Sprint("old", i)}))(t)
	}
	var got unique
	adopted := make([]bool, 60)
	together(60, func(i int) {
		s := stores[i%3]
		var m mesh.Machine
		var err error
		if i%2 == 0 {
			// 15 endpoints, each told of by two hosts.
			endpoint := one.plan().Endpoint(1, h.Position(), uint16(1+i/2%15))
			m, err = holds(s, fmt.Sprint("x", i), []string{"h", "other"}[i/2%2], endpoint, true)
			adopted[i] = err == nil
		} else {
			m, _, err = s.CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", ID: fmt.Sprint("x", i), Host: "h"})
		}
		switch {
		case err == nil:
			got.add(t, uint64(slot(t, m)), m.ID)
		case !errors.Is(err, ErrConflict) && !errors.Is(err, ErrUnavailable):
			t.Error(err)
		}
	})
	if !slices.Contains(adopted, true) {
		t.Error("nothing was adopted: this test proves nothing")
	}
	holdsTogether(t, one, fresh(t, one))
}

// Whatever comes in between two steps of an adoption, the endpoint is given once.
func TestAdoptionMeetsOthers(t *testing.T) {
	t.Parallel()
	for name, intrude := range map[string]func(*testing.T, *Store, netip.Prefix){
		"another adoption": func(t *testing.T, s *Store, e netip.Prefix) {
			if _, err := holds(s, "thief", "b", e, true); err != nil && !errors.Is(err, ErrConflict) {
				t.Error(err)
			}
		},
		"one from the counter": func(t *testing.T, s *Store, _ netip.Prefix) {
			machine(t, s, "acme", "web", "", "a")
		},
		"one that rests, taken": func(t *testing.T, s *Store, _ netip.Prefix) {
			done(s.RemoveMachine(t.Context(), "", MachineRef{Org: "acme", ID: "old"}))(t)
			machine(t, s, "acme", "web", "", "a")
		},
		"its name, taken": func(t *testing.T, s *Store, _ netip.Prefix) {
			stable(t, s, "acme", "mine", "b")
		},
		"its holder goes, and comes again": func(t *testing.T, s *Store, _ netip.Prefix) {
			done(s.RemoveMachine(t.Context(), "", MachineRef{Org: "acme", ID: "old"}))(t)
			machine(t, s, "acme", "web", "old", "a")
		},
	} {
		for _, slot := range []uint16{1, 2, 3, 4, 5} { // in use; resting; nobody's any more; the next one; after it
			t.Run(fmt.Sprint(name, ", slot ", slot), func(t *testing.T) {
				t.Parallel()
				for k := 0; ; k++ {
					s := newMesh(t, Config{SlotRest: time.Nanosecond})
					org(t, s, "acme")
					h := host(t, s, "a")
					host(t, s, "b")
					machine(t, s, "acme", "web", "old", "a")
					machine(t, s, "acme", "web", "rests", "a")
					lost := machine(t, s, "acme", "web", "lost", "a")
					done(s.RemoveMachine(t.Context(), "", MachineRef{Org: "acme", ID: "rests"}))(t)
					if _, err := s.client.Delete(t.Context(), s.root+machineKey("acme", lost.ID)); err != nil {
						t.Fatal(err)
					}
					endpoint := s.plan().Endpoint(1, h.Position(), slot)
					one, reached := between(t, s, k, func() { intrude(t, s, endpoint) })
					_, err := holds(one, "mine", "a", endpoint, true)
					if err != nil && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists) {
						t.Errorf("before step %d: %v", k, err)
					}
					holdsTogether(t, s, fresh(t, s))
					if t.Failed() || !*reached {
						return
					}
				}
			})
		}
	}
}
