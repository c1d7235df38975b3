package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// counted is a Store whose transactions are counted; hold, unless nil, is called
// before each.
func counted(t testing.TB, s *Store, hold func()) (*Store, *atomic.Int64) {
	t.Helper()
	var n atomic.Int64
	other := again(t, s)
	other.client = withKV(s.client, &faultyKV{KV: s.client.KV, before: func() error {
		n.Add(1)
		if hold != nil {
			hold()
		}
		return nil
	}})
	if _, err := other.needPlan(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Store(0)
	return other, &n
}

// runMirror runs the mirror of s alone: nothing else that s does counts.
func runMirror(t testing.TB, s *Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var loop sync.WaitGroup
	s.running.Store(true)
	loop.Go(func() { s.keepMirror(ctx) })
	t.Cleanup(func() { cancel(); loop.Wait() })
	select {
	case <-s.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("the mirror is not ready")
	}
}

// Registering one more machine is one request, however many there are.
func TestAMachineIsOneRequest(t *testing.T) {
	t.Parallel()
	s, n := counted(t, newMesh(t, Config{}), nil)
	runMirror(t, s)
	org(t, s, "acme")
	host(t, s, "h")
	machine(t, s, "acme", "web", "first", "h")
	eventually(t, s, "it is mirrored", func(state mesh.State) bool { return state.Machines.Has("acme/first") })
	for i := range 5 {
		before := n.Load()
		m := stable(t, s, "acme", fmt.Sprint("m", i), "h")
		if got := n.Load() - before; got != 1 || int(slot(t, m)) != i+2 {
			t.Errorf("slot %d took %d requests", slot(t, m), got)
		}
	}
}

// Those who come while a transaction is under way share the next one, also on the
// same host; each has its own address and its own entry in the log.
func TestManyShareATransaction(t *testing.T) {
	t.Parallel()
	gate, inside := make(chan struct{}), make(chan struct{}, 100)
	var shut atomic.Bool
	s, n := counted(t, newMesh(t, Config{Timeout: time.Minute}), func() {
		if shut.Load() {
			inside <- struct{}{}
			<-gate
		}
	})
	runMirror(t, s)
	org(t, s, "acme")
	host(t, s, "h")
	machine(t, s, "acme", "web", "first", "h")
	eventually(t, s, "it is mirrored", func(state mesh.State) bool { return state.Machines.Has("acme/first") })
	log := len(keysBelow(t, s, keyAudit))

	const count = 21
	var slots unique
	var all sync.WaitGroup
	create := func(i int) {
		all.Go(func() {
			m, rev, err := s.CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", ID: fmt.Sprint("m", i), Host: "h"})
			if err != nil || rev <= 0 {
				t.Errorf("machine %d: %v", i, err)
				return
			}
			slots.add(t, uint64(slot(t, m)), m.ID)
		})
	}
	before := n.Load()
	shut.Store(true)
	create(0)
	<-inside
	for i := 1; i < count; i++ {
		create(i)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s.gathering.mu.Lock()
		waiting := len(s.gathering.waiting)
		s.gathering.mu.Unlock()
		if waiting == count-1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d wait, want %d", waiting, count-1)
		}
	}
	shut.Store(false)
	close(gate)
	all.Wait()
	if got := n.Load() - before; got != 2 {
		t.Errorf("%d machines took %d requests", count, got)
	}
	if got := len(keysBelow(t, s, keyAudit)) - log; got != count {
		t.Errorf("%d entries in the log, want %d", got, count)
	}
	for i := range count {
		if _, ok := slots.seen[uint64(i+2)]; !ok {
			t.Errorf("slot %d was not given", i+2)
		}
	}
	holdsTogether(t, s, fresh(t, s))
}

// What was remembered is outdated: nothing is decided by it. Another controller
// changes something, before any step of a change that shares transactions.
func TestWhatIsRememberedIsOutdated(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	yes := true
	for _, tt := range []struct {
		name  string
		other func(*Store) error
		want  error
		slot  uint16 // of the machine, if it is made
	}{
		{"the org goes", func(s *Store) error { return second(s.RemoveOrg(ctx, "", "acme")) }, ErrNotFound, 0},
		{"the org goes and comes back", func(s *Store) error {
			return errors.Join(second(s.RemoveOrg(ctx, "", "acme")), third(s.CreateOrg(ctx, "", "acme")))
		}, nil, 1},
		{"the host goes", func(s *Store) error { return second(s.RemoveHost(ctx, "", "h")) }, ErrNotFound, 0},
		{"the host is cordoned", func(s *Store) error { return third(s.SetHost(ctx, "", "h", HostChange{Cordoned: &yes})) }, ErrConflict, 0},
		{"the name is taken, elsewhere", func(s *Store) error {
			return third(s.CreateMachine(ctx, "", MachineSpec{Org: "acme", App: "web", ID: "new", Host: "h2"}))
		}, ErrExists, 0},
		{"the name is taken, here", func(s *Store) error {
			return third(s.CreateMachine(ctx, "", MachineSpec{Org: "acme", App: "web", ID: "new", Host: "h", Stable: true}))
		}, nil, 3},
		{"the next address is given", func(s *Store) error {
			return third(s.CreateMachine(ctx, "", MachineSpec{Org: "acme", App: "web", ID: "other", Host: "h"}))
		}, nil, 4},
		{"an address is free again", func(s *Store) error { return second(s.RemoveMachine(ctx, "", MachineRef{Org: "acme", ID: "passing"})) }, nil, 2},
		{"an address is kept for it", func(s *Store) error {
			spec := MachineSpec{Org: "acme", App: "web", ID: "new", Host: "h2", Stable: true}
			return errors.Join(third(s.CreateMachine(ctx, "", spec)), second(s.RemoveMachine(ctx, "", MachineRef{Org: "acme", ID: "new"})))
		}, nil, 1},
		{"the limit is lowered", func(s *Store) error { return third(s.UpdateOrg(ctx, "", "acme", mesh.Limits{Machines: 2})) }, ErrLimit, 0},
		{"the app goes", func(s *Store) error {
			return errors.Join(second(s.RemoveMachine(ctx, "", MachineRef{Org: "acme", ID: "first"})),
				second(s.RemoveMachine(ctx, "", MachineRef{Org: "acme", ID: "passing"})), second(s.RemoveApp(ctx, "", "acme", "web")))
		}, nil, 2},
	} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, running %t", tt.name, running), func(t *testing.T) {
				t.Parallel()
				for k := 0; ; k++ {
					s := newMesh(t, Config{SlotRest: time.Nanosecond})
					org(t, s, "acme")
					host(t, s, "h")
					host(t, s, "h2")
					var mu sync.Mutex // the hook is called by whoever serves
					n, reached, watched := -1, false, false
					var intruded error
					one, _ := counted(t, s, func() {
						mu.Lock()
						defer mu.Unlock()
						if !watched {
							return
						}
						if n++; n == k {
							reached = true
							intruded = tt.other(s)
						}
					})
					if running {
						runMirror(t, one)
					}
					stable(t, one, "acme", "first", "h")
					machine(t, one, "acme", "web", "passing", "h")
					if running {
						mirroredAt(t, one, one.newest.Load())
					}
					watch := func(on bool) {
						mu.Lock()
						defer mu.Unlock()
						watched = on
					}
					watch(true)
					m, _, err := one.CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", ID: "new", Host: "h", Stable: true})
					watch(false)
					if intruded != nil && !reached {
						t.Fatal(intruded)
					}
					if !reached {
						if k == 0 {
							t.Error("no step: this test proves nothing")
						}
						return
					}
					if k == 0 {
						if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
							t.Errorf("error %v, want %v", err, tt.want)
						}
						if tt.want == nil && err == nil && slot(t, m) != tt.slot {
							t.Errorf("slot %d, want %d", slot(t, m), tt.slot)
						}
					} else if err != nil && tt.want == nil {
						t.Errorf("before step %d: %v", k, err)
					}
					holdsTogether(t, s, fresh(t, s))
					if t.Failed() {
						return
					}
				}
			})
		}
	}
}

// One that cannot be done does not spoil it for those who share its transaction.
func TestARefusalIsOnesOwn(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	org(t, s, "acme")
	org(t, s, "beta")
	host(t, s, "h", "acme")
	machine(t, s, "acme", "web", "first", "h")
	together(60, func(i int) {
		spec := MachineSpec{Org: "acme", App: "web", ID: fmt.Sprint("m", i), Host: "h"}
		var want error
		switch i % 4 {
		case 1:
			spec.Org, want = "beta", ErrConflict
		case 2:
			spec.App, spec.ID, want = "other", "first", ErrExists
		case 3:
			spec.Meta = map[string]string{"much": strings.Repeat("x", 255)}
		}
		if err := third(s.CreateMachine(t.Context(), "", spec)); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%d: %v, want %v", i, err, want)
		}
	})
	if got := fresh(t, s).Count(kindMachines, "acme"); got != 31 {
		t.Errorf("%d machines, want 31", got)
	}
	holdsTogether(t, s, fresh(t, s))
}

// The same request many times at once: one machine, and all are told of it.
func TestTheSameRequestManyTimes(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{})
	stores := []*Store{run(t, one), again(t, one)}
	org(t, one, "acme")
	host(t, one, "h")
	first := stable(t, one, "acme", "other", "h")
	var got unique
	together(30, func(i int) {
		m, _, err := stores[i%2].CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", ID: "db", Host: "h", Stable: true})
		if err != nil || m.Endpoint == first.Endpoint || m.Created.IsZero() {
			t.Errorf("%+v %v", m, err)
		}
		got.mu.Lock()
		defer got.mu.Unlock()
		if got.seen == nil {
			got.seen = map[uint64]string{}
		}
		got.seen[uint64(slot(t, m))] = m.ID
	})
	if len(got.seen) != 1 {
		t.Errorf("it has slots %v", got.seen)
	}
	if left := keysBelow(t, one, "next/resting/"); len(left) > 0 {
		t.Errorf("addresses were given up: %q", left)
	}
}

// A caller who gives up waits for nothing, and what is under way ends by itself.
func TestACallerWhoGivesUpAmongOthers(t *testing.T) {
	t.Parallel()
	gate, inside := make(chan struct{}), make(chan struct{}, 100)
	var shut atomic.Bool
	s, _ := counted(t, newMesh(t, Config{Timeout: time.Minute}), func() {
		if shut.Load() {
			inside <- struct{}{}
			<-gate
		}
	})
	runMirror(t, s)
	org(t, s, "acme")
	host(t, s, "h")
	machine(t, s, "acme", "web", "first", "h")
	eventually(t, s, "it is mirrored", func(state mesh.State) bool { return state.Machines.Has("acme/first") })
	shut.Store(true)
	create := func(ctx context.Context, id string) chan error {
		done := make(chan error, 1)
		go func() {
			done <- third(s.CreateMachine(ctx, "", MachineSpec{Org: "acme", App: "web", ID: id, Host: "h"}))
		}()
		return done
	}
	under := create(t.Context(), "under-way")
	<-inside
	ctx, cancel := context.WithCancel(t.Context())
	late := create(ctx, "late")
	cancel()
	if err := <-late; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up: %v", err)
	}
	shut.Store(false)
	close(gate)
	if err := <-under; err != nil {
		t.Errorf("who did not: %v", err)
	}
	if _, err := s.client.Get(t.Context(), s.root, clientv3.WithCountOnly()); err != nil {
		t.Fatal(err)
	}
	if state := fresh(t, s); state.Machines.Has("acme/late") || !state.Machines.Has("acme/under-way") {
		t.Errorf("machines: %q", keysBelow(t, s, "machines/"))
	}
}
