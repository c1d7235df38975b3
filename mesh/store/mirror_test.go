package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/mesh"
)

// dump is all of a State, by key, with what its indexes answer.
func dump(s mesh.State) map[string]any {
	out := map[string]any{"mesh": s.Mesh}
	table(out, "orgs", s.Orgs)
	table(out, "apps", s.Apps)
	table(out, "regions", s.Regions)
	table(out, "hosts", s.Hosts)
	table(out, "machines", s.Machines)
	table(out, "clients", s.Clients)
	table(out, "tokens", s.Tokens)
	table(out, "operators", s.Operators)
	table(out, "presence", s.Presence)
	for name := range s.Hosts.All() {
		out["on "+name] = []any{s.OrgsOf(name), s.MachinesOn(name), s.ClientsAt(name)}
	}
	for name := range s.Orgs.All() {
		out["carry "+name] = s.HostsOf(name)
	}
	return out
}

func table[T any](out map[string]any, kind string, t mesh.Table[T]) {
	for k, v := range t.All() {
		out[kind+"/"+k] = v
	}
}

// fresh is a list of its own, beside any mirror.
func fresh(t testing.TB, s *Store) mesh.State {
	t.Helper()
	state, err := newStore(t, s.config).at(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// sameAsFresh waits until the mirror has all revisions and compares it.
func sameAsFresh(t testing.TB, s *Store) {
	t.Helper()
	want := fresh(t, s)
	got := mirroredAt(t, s, want.Revision.Revision)
	if diff := cmp.Diff(dump(want), dump(got), compare); diff != "" {
		t.Fatalf("mirror (-listed +mirrored):\n%s", diff)
	}
	if got.Revision.Epoch != got.Mesh.Epoch {
		t.Fatalf("epoch %d in a mesh of epoch %d", got.Revision.Epoch, got.Mesh.Epoch)
	}
}

// model is what the operations of TestMirrorEqualsAFreshList should lead to.
type model struct {
	orgs     map[string]bool
	hosts    map[string][]string // orgs it may carry
	machines map[string]string   // org/id: host
	clients  map[string]string   // org/name: gateway
	apps     map[string]bool
}

func (m *model) mayCarry(host, org string) bool {
	return slices.Contains(m.hosts[host], org) || slices.Contains(m.hosts[host], mesh.AllOrgs)
}

func (m *model) dropOrg(org string) {
	delete(m.orgs, org)
	of := func(k string) bool { return strings.HasPrefix(k, org+"/") }
	maps.DeleteFunc(m.machines, func(k, _ string) bool { return of(k) })
	maps.DeleteFunc(m.clients, func(k, _ string) bool { return of(k) })
	maps.DeleteFunc(m.apps, func(k string, _ bool) bool { return of(k) })
	for h, orgs := range m.hosts {
		m.hosts[h] = slices.DeleteFunc(slices.Clone(orgs), func(o string) bool { return o == org })
	}
}

func (m *model) dropHost(host string) {
	delete(m.hosts, host)
	maps.DeleteFunc(m.machines, func(_, h string) bool { return h == host })
	for c, gateway := range m.clients {
		if gateway != host {
			continue
		}
		org, _, _ := strings.Cut(c, "/")
		m.clients[c] = ""
		for h := range m.hosts {
			if m.mayCarry(h, org) {
				m.clients[c] = "somewhere"
			}
		}
	}
}

// After any operations the mirror is what a fresh list gives, and both are what a
// simple model says.
func TestMirrorEqualsAFreshList(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		s := newMesh(t, Config{})
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		defer func() { cancel(); <-done }()
		m := &model{map[string]bool{}, map[string][]string{}, map[string]string{}, map[string]string{}, map[string]bool{}}
		enrolled, steps := 0, 0

		org := rapid.SampledFrom([]string{"a", "ab", "b"})
		host := rapid.SampledFrom([]string{"h", "h1", "h2"})
		id := rapid.SampledFrom([]string{"1", "2", "3", "4"})
		expect := func(rt *rapid.T, err, want error) bool {
			if want == nil && err != nil || !errors.Is(err, want) {
				rt.Fatalf("error %v, want %v", err, want)
			}
			return err == nil
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create org": func(rt *rapid.T) {
				o := org.Draw(rt, "org")
				if expect(rt, third(s.CreateOrg(ctx, "", o)), when(m.orgs[o], ErrExists)) {
					m.orgs[o] = true
				}
			},
			"remove org": func(rt *rapid.T) {
				o := org.Draw(rt, "org")
				if expect(rt, second(s.RemoveOrg(ctx, "", o)), when(!m.orgs[o], ErrNotFound)) {
					m.dropOrg(o)
				}
			},
			"enrol host": func(rt *rapid.T) {
				h, o := host.Draw(rt, "host"), org.Draw(rt, "org")
				orgs := []string{mesh.AllOrgs}
				if m.orgs[o] {
					orgs = []string{o}
				}
				enrolled++
				use := token(t, s, mesh.Token{ID: fmt.Sprint("t", enrolled), Kind: mesh.KindHost, Orgs: orgs})
				spec := hostSpec(h)
				spec.Key, spec.TLSKey = key(fmt.Sprint(h, "/", enrolled)), fmt.Sprint(h, "/", enrolled)
				if expect(rt, third(s.EnrollHost(ctx, spec, use)), when(m.hosts[h] != nil, ErrExists)) {
					m.hosts[h] = orgs
				}
			},
			"remove host": func(rt *rapid.T) {
				h := host.Draw(rt, "host")
				if expect(rt, second(s.RemoveHost(ctx, "", h)), when(m.hosts[h] == nil, ErrNotFound)) {
					m.dropHost(h)
				}
			},
			"create machine": func(rt *rapid.T) {
				o, h, i := org.Draw(rt, "org"), host.Draw(rt, "host"), id.Draw(rt, "id")
				at, there := m.machines[o+"/"+i]
				want := first(when(!m.orgs[o] || m.hosts[h] == nil, ErrNotFound), when(!m.mayCarry(h, o), ErrConflict), when(there && at != h, ErrExists))
				if expect(rt, third(s.CreateMachine(ctx, "", MachineSpec{Org: o, App: "web", ID: i, Host: h})), want) {
					m.machines[o+"/"+i], m.apps[o+"/web"] = h, true
				}
			},
			"stop machine": func(rt *rapid.T) {
				o, i := org.Draw(rt, "org"), id.Draw(rt, "id")
				_, there := m.machines[o+"/"+i]
				expect(rt, third(s.SetMachine(ctx, "", MachineRef{Org: o, ID: i}, MachineChange{State: new(mesh.StateStopped)})), when(!there, ErrNotFound))
			},
			"remove machine": func(rt *rapid.T) {
				o, i := org.Draw(rt, "org"), id.Draw(rt, "id")
				_, there := m.machines[o+"/"+i]
				if expect(rt, second(s.RemoveMachine(ctx, "", MachineRef{Org: o, ID: i})), when(!there, ErrNotFound)) {
					delete(m.machines, o+"/"+i)
				}
			},
			"create client": func(rt *rapid.T) {
				o, h, i := org.Draw(rt, "org"), host.Draw(rt, "host"), id.Draw(rt, "id")
				_, there := m.clients[o+"/"+i]
				want := first(when(there, ErrExists), when(!m.orgs[o] || m.hosts[h] == nil, ErrNotFound), when(!m.mayCarry(h, o), ErrConflict))
				if expect(rt, third(s.CreateClient(ctx, "", ClientSpec{Org: o, Name: i, Key: key(o + "/" + i), Gateway: h})), want) {
					m.clients[o+"/"+i] = h
				}
			},
			"set gateway": func(rt *rapid.T) {
				o, h, i := org.Draw(rt, "org"), host.Draw(rt, "host"), id.Draw(rt, "id")
				_, there := m.clients[o+"/"+i]
				want := first(when(!there || m.hosts[h] == nil, ErrNotFound), when(!m.mayCarry(h, o), ErrConflict))
				if expect(rt, third(s.SetGateway(ctx, "", o, i, h)), want) {
					m.clients[o+"/"+i] = h
				}
			},
			"remove client": func(rt *rapid.T) {
				o, i := org.Draw(rt, "org"), id.Draw(rt, "id")
				_, there := m.clients[o+"/"+i]
				if expect(rt, second(s.RemoveClient(ctx, "", o, i)), when(!there, ErrNotFound)) {
					delete(m.clients, o+"/"+i)
				}
			},
			"remove app": func(rt *rapid.T) {
				o := org.Draw(rt, "org")
				busy := false
				for k := range m.machines {
					busy = busy || strings.HasPrefix(k, o+"/")
				}
				if expect(rt, second(s.RemoveApp(ctx, "", o, "web")), first(when(!m.apps[o+"/web"], ErrNotFound), when(busy, ErrConflict))) {
					delete(m.apps, o+"/web")
				}
			},
			"": func(rt *rapid.T) {
				if steps++; steps%8 == 0 {
					m.check(rt, fresh(t, s))
				}
			},
		})
		m.check(rt, fresh(t, s))
		sameAsFresh(t, s)
	})
}

func when(holds bool, err error) error { return only(holds, err) }

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// check compares a state with the model.
func (m *model) check(rt *rapid.T, state mesh.State) {
	got := &model{map[string]bool{}, map[string][]string{}, map[string]string{}, map[string]string{}, map[string]bool{}}
	for k := range state.Orgs.All() {
		got.orgs[k] = true
	}
	for k, h := range state.Hosts.All() {
		got.hosts[k] = h.Orgs
	}
	for k, x := range state.Machines.All() {
		got.machines[k] = x.Host
	}
	for k, c := range state.Clients.All() {
		got.clients[k] = c.Gateway
		if m.clients[k] == "somewhere" {
			m.clients[k] = c.Gateway
		}
	}
	for k := range state.Apps.All() {
		got.apps[k] = true
	}
	if diff := cmp.Diff(m, got, cmp.AllowUnexported(model{}), compare); diff != "" {
		rt.Fatalf("state (-model +store):\n%s", diff)
	}
}

// Cilium #31985: valid peers were removed because clean-up ran on a list that was
// not complete. Here compaction takes the watch's revisions away while it is
// broken; the mirror must never, not for a moment, be without what is still there.
func TestCilium31985NothingRemovedBeforeFirstList(t *testing.T) {
	t.Parallel()
	server := ownServer(t)
	gate := newGate(server.Client())
	s := newMesh(t, Config{Client: gate.client, ProgressEvery: 20 * time.Millisecond})
	host(t, s, "h")
	org(t, s, "acme")
	for i := range 20 {
		machine(t, s, "acme", "web", fmt.Sprint("stays", i), "h")
	}
	machine(t, s, "acme", "web", "goes", "h")
	before := s.State()
	if before.Hosts.Len() != 0 {
		t.Fatal("a State before Run")
	}

	// What a subscriber sees, all of it: from the first list on, never fewer.
	run(t, s)
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	wake, cancel := s.Subscribe()
	defer cancel()
	watching.Go(func() {
		for {
			n := 0
			for k := range s.State().Machines.All() {
				if strings.Contains(k, "stays") {
					n++
				}
			}
			if n != 20 {
				t.Errorf("revision %s has %d machines of 20", s.State().Revision, n)
				return
			}
			select {
			case <-wake:
			case <-ctx.Done():
				return
			}
		}
	})

	gate.shut()
	other := newStore(t, Config{Client: server.Client(), Root: s.root})
	done(other.RemoveMachine(t.Context(), "", MachineRef{Org: "acme", ID: "goes"}))(t)
	m, rev, err := other.CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", ID: "comes", Host: "h"})
	must(m, rev, err)(t)
	m, rev, err = other.SetMachine(t.Context(), "", MachineRef{Org: "acme", ID: "stays0"}, MachineChange{State: new(mesh.StateStopped)})
	must(m, rev, err)(t)
	if _, err := server.Client().Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	gate.open()
	state := mirroredAt(t, s, rev)
	stop()
	watching.Wait()
	if got, _ := state.Machines.Get("acme/stays0"); got.State != mesh.StateStopped || state.Machines.Has("acme/goes") || !state.Machines.Has("acme/comes") {
		t.Errorf("the difference was not applied: %v", slices.Collect(maps.Keys(dump(state))))
	}
	if !gate.compacted() {
		t.Error("the watch was never told of a compaction: this test proves nothing")
	}
	sameAsFresh(t, s)
}

// A watch that says nothing more, without an end, is found by the watchdog.
func TestASilentWatchIsReplaced(t *testing.T) {
	t.Parallel()
	silent := &silentWatcher{Watcher: shared.Client().Watcher}
	c := withKV(shared.Client(), &faultyKV{KV: shared.Client().KV})
	c.Watcher = silent
	s := run(t, newMesh(t, Config{Client: c, ProgressEvery: 20 * time.Millisecond}))
	_, rev, err := again(t, s).CreateOrg(t.Context(), "", "acme")
	if err != nil {
		t.Fatal(err)
	}
	if state := mirroredAt(t, s, rev); !state.Orgs.Has("acme") {
		t.Error("the org is missing")
	}
}

// Wait and Age know that the mirror is current also when nothing happens to it.
func TestAgeAndWaitWithoutChanges(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{ProgressEvery: time.Hour})
	if s.Age() < 1000*time.Hour {
		t.Errorf("age before the first list: %s", s.Age())
	}
	run(t, s)
	r, err := s.client.Put(t.Context(), "/elsewhere", "x")
	if err != nil {
		t.Fatal(err)
	}
	mirroredAt(t, s, r.Header.Revision) // although the mirror gets no event of it
	if s.Age() > 5*time.Second {
		t.Errorf("age %s", s.Age())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := s.Wait(ctx, r.Header.Revision+1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for the future: %v", err)
	}
}

// etcd was restored from a backup: its revisions went back. The mirror notices
// and goes back too. The restored one is another server behind the same client.
func TestMirrorAfterARestore(t *testing.T) {
	t.Parallel()
	before, after := ownServer(t), ownServer(t)
	c := &switched{to: before.Client()}
	s := newMesh(t, Config{Client: c.client(), ProgressEvery: 20 * time.Millisecond})
	org(t, s, "acme")
	old := newStore(t, Config{Client: after.Client(), Root: s.root})
	restored := genesis(t, "first")
	restored.Mesh.Epoch = 2 // as a restore does
	if _, err := old.Init(t.Context(), restored); err != nil {
		t.Fatal(err)
	}
	org(t, old, "older") // the same network, and a revision below
	run(t, s)
	if !s.State().Orgs.Has("acme") {
		t.Fatal("the org is missing")
	}
	epoch := s.State().Revision.Epoch
	c.set(after.Client())
	before.Close() // ends the watches
	eventually(t, s, "the mirror is that of the restored etcd", func(state mesh.State) bool {
		return !state.Orgs.Has("acme") && state.Orgs.Has("older") && state.Regions.Len() == 0
	})
	if s.State().Revision.Epoch == epoch {
		t.Error("the epoch is still that of before")
	}
	sameAsFresh(t, s)
}

// What cannot be read, of a newer controller or broken, changes nothing else.
func TestUnreadableObjects(t *testing.T) {
	t.Parallel()
	var log logged
	s := run(t, newMesh(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil))}))
	org(t, s, "acme")
	host(t, s, "h")
	machine(t, s, "acme", "web", "m1", "h")
	put := func(key, value string) int64 {
		t.Helper()
		r, err := s.client.Put(t.Context(), s.root+key, value)
		if err != nil {
			t.Fatal(err)
		}
		return r.Header.Revision
	}
	put("machines/acme/m1", `{"endpoint":"10.0.0.0/8"}`)
	put("machines/acme/m2", `{"endpoint":"fd00::/112"}`)
	put("machines/acme/m3", `no JSON`)
	put("machines/nonsense", `{}`)
	put("orgs/zero", `{"network":0}`)
	put("orgs/large", `{"network":65536}`)
	put("hosts/large", `{"number":16777216}`)
	put("hosts/keyless", `{"number":9}`)
	put("wonders/acme", `{"of":"a newer version"}`)
	state := mirroredAt(t, s, put("orgs/beta", `{"name":"not beta","network":77,"flavour":"new"}`))
	if got, _ := state.Machines.Get("acme/m1"); got.Host != "h" {
		t.Errorf("what was readable before was lost: %+v", got)
	}
	if state.Machines.Len() != 1 || state.Hosts.Len() != 1 || state.Orgs.Len() != 2 {
		t.Errorf("%d machines, %d hosts, %d orgs", state.Machines.Len(), state.Hosts.Len(), state.Orgs.Len())
	}
	if got, _ := state.Orgs.Get("beta"); got.Name != "beta" || got.Network != 77 {
		t.Errorf("beta: %+v: the key says what it is", got)
	}
	if n := strings.Count(log.String(), "passed over"); n != 8 {
		t.Errorf("%d objects were reported, want 8:\n%s", n, log.String())
	}
	sameView(t, state)
}

// sameView only looks: every view of an odd state must be made without a panic.
func sameView(t *testing.T, state mesh.State) {
	t.Helper()
	for name := range state.Hosts.All() {
		v, there := state.View(mesh.Node{Kind: mesh.KindHost, Name: name}, mesh.Deployment{})
		if !there {
			t.Errorf("host %s has no view", name)
		}
		v.Config(wgtypes.Key(key(name)), 0)
		v.Addresses()
	}
}

func BenchmarkMirrorList(b *testing.B) {
	s := newMesh(b, Config{})
	o := org(b, s, "acme")
	h := host(b, s, "h")
	plan := testPlan(b)
	for i := range 20000 {
		m := mesh.Machine{App: "web", Host: "h", State: "started", Endpoint: plan.Endpoint(o.Network, h.Position(), uint16(i+1))}
		text, _ := encode(nil, m)
		if _, err := s.client.Put(b.Context(), s.root+machineKey("acme", fmt.Sprint("m", i)), string(text)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if state := fresh(b, s); state.Machines.Len() != 20000 {
			b.Fatal(state.Machines.Len())
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "ms/20k-list")
}
