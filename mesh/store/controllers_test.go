package store

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// runFor is run with an end of the test's choice.
func runFor(t testing.TB, s *Store) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	var err error
	stopped := false
	stop = func() error {
		if !stopped {
			stopped = true
			cancel()
			err = <-ended
		}
		return err
	}
	t.Cleanup(func() { stop() })
	select {
	case <-s.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("the mirror is not ready")
	}
	return stop
}

func named(name string) mesh.Controller {
	return mesh.Controller{Name: name, URLs: []string{"https://" + name + ".example:7443"}, Version: "test"}
}

func register(t testing.TB, s *Store, c mesh.Controller) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Register(ctx, c); err != nil {
		t.Fatal(err)
	}
}

func names(state mesh.State) (out []string) {
	for name := range state.Controllers.All() {
		out = append(out, name)
	}
	return out
}

// exists reports whether there is a key below the root of s.
func exists(t testing.TB, s *Store, key string) bool {
	t.Helper()
	r, err := s.client.Get(t.Context(), s.root+key, clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	return r.Count > 0
}

// leaseOf is the lease that a key hangs on.
func leaseOf(t testing.TB, s *Store, key string) clientv3.LeaseID {
	t.Helper()
	r, err := s.client.Get(t.Context(), s.root+key)
	if err != nil || len(r.Kvs) == 0 {
		t.Fatalf("get %s: %v, %d keys", key, err, len(r.Kvs))
	}
	return clientv3.LeaseID(r.Kvs[0].Lease)
}

func TestRegister(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{})
	two := again(t, one)
	run(t, one)
	run(t, two)
	register(t, one, named("one"))
	register(t, two, named("two"))
	for _, s := range []*Store{one, two} {
		eventually(t, s, "both are known", func(state mesh.State) bool { return slices.Equal(names(state), []string{"one", "two"}) })
	}
	got, _ := two.State().Controllers.Get("one")
	want := named("one")
	want.Schema, want.Started = Schema, got.Started
	if diff := cmp.Diff(want, got); diff != "" || got.Started.IsZero() {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if urls := mesh.Controllers([]string{"https://zero.example:7443", "https://one.example:7443"}, one.State()); !slices.Equal(urls, []string{
		"https://one.example:7443", "https://two.example:7443", "https://zero.example:7443",
	}) {
		t.Errorf("URLs %q", urls)
	}

	// Whoever comes with a name that is taken is refused, unless it is the same one
	// that starts anew: then the key hangs on its own lease from now on.
	three := run(t, again(t, one))
	taken := named("two")
	taken.URLs = []string{"https://other.example:7443"}
	if err := three.Register(t.Context(), taken); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "https://two.example:7443") {
		t.Errorf("a name that is taken: %v", err)
	}
	before := leaseOf(t, one, aliveKey("two"))
	register(t, three, named("two"))
	if after := leaseOf(t, one, aliveKey("two")); after == before || after != three.presence.current() {
		t.Errorf("the key of the controller that started anew hangs on lease %x, was %x, want %x", after, before, three.presence.current())
	}
	// The end of the old one takes nothing away from the new one.
	if err := two.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !exists(t, one, controllerKey("two")) || !exists(t, one, aliveKey("two")) {
		t.Error("the end of a controller took the record of its successor away")
	}
	if err := three.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, one, "it has left", func(state mesh.State) bool { return slices.Equal(names(state), []string{"one"}) })
	if exists(t, one, aliveKey("two")) {
		t.Error("a controller that has left is alive")
	}
	if err := three.Register(t.Context(), mesh.Controller{Name: "No Label"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a name that is no label: %v", err)
	}
}

// A record that is gone, or whose lease is, comes back by itself.
func TestRegistrationHeals(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{PresenceTTL: time.Second})
	run(t, s)
	register(t, s, named("one"))
	eventually(t, s, "it is known", func(state mesh.State) bool { return state.Controllers.Has("one") })
	if _, err := s.client.Delete(t.Context(), s.root+controllerKey("one")); err != nil {
		t.Fatal(err)
	}
	eventually(t, s, "it is gone", func(state mesh.State) bool { return !state.Controllers.Has("one") })
	eventually(t, s, "it is back", func(state mesh.State) bool { return state.Controllers.Has("one") })
	lost := leaseOf(t, s, aliveKey("one"))
	if _, err := s.client.Revoke(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for !exists(t, s, aliveKey("one")) {
		if time.Now().After(deadline) {
			t.Fatal("not alive again after its lease was lost")
		}
		wait(t.Context(), 10*time.Millisecond)
	}
}

// A controller that ends leaves its hosts to the others: they are present all the
// time. The last one takes them along.
func TestHandOver(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{PresenceTTL: 2 * time.Second})
	two := again(t, one)
	stopOne, stopTwo := runFor(t, one), runFor(t, two)
	register(t, one, named("one"))
	register(t, two, named("two"))
	host(t, one, "h1")
	host(t, one, "h2")
	announce(t, one, "h1", "one")
	announce(t, one, "h2", "one")
	watcher := run(t, again(t, one))
	eventually(t, watcher, "the hosts are present", func(state mesh.State) bool { return state.Presence.Len() == 2 })
	feed := watcher.Feed()
	defer feed.Close()

	if err := one.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{"h1", "h2"} {
		if err := one.Absent(t.Context(), h, "one"); err != nil {
			t.Fatal(err)
		}
	}
	announce(t, two, "h1", "two")
	stopOne()
	eventually(t, watcher, "the host that went nowhere is absent", func(state mesh.State) bool { return presentAt(state, "h2") == "" })
	for _, step := range feed.Take() {
		if presentAt(step.After, "h1") == "" {
			t.Error("the host that moved to another controller was absent for a moment")
		}
	}
	if at := presentAt(watcher.State(), "h1"); at != "two" {
		t.Errorf("the host that moved is present at %q", at)
	}

	if err := two.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := two.Absent(t.Context(), "h1", "two"); err != nil {
		t.Fatal(err)
	}
	if exists(t, one, presenceKey("h1")) {
		t.Error("the last controller has left, and a host is still present")
	}
	stopTwo()
}

func TestControllersAreForgotten(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newMesh(t, Config{Now: c.Now})
	stop := runFor(t, s)
	register(t, s, named("gone"))
	if _, err := s.client.Delete(t.Context(), s.root+aliveKey("gone")); err != nil {
		t.Fatal(err)
	}
	stop()
	other := run(t, again(t, s))
	register(t, other, named("here"))
	for _, tt := range []struct {
		after time.Duration
		want  []string
	}{
		{0, []string{"gone", "here"}},
		{controllerRest - time.Minute, []string{"gone", "here"}},
		{2 * time.Minute, []string{"here"}},
		{48 * time.Hour, []string{"here"}},
	} {
		c.add(tt.after)
		if err := other.forgetControllers(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := names(fresh(t, other)); !slices.Equal(got, tt.want) {
			t.Errorf("after %s more: %q, want %q", tt.after, got, tt.want)
		}
	}
	if exists(t, other, goneKey("gone")) {
		t.Error("the note outlived the record")
	}
}

// Whoever comes back within the day begins a new day.
func TestAControllerThatComesBack(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newMesh(t, Config{Now: c.Now})
	run(t, s)
	register(t, s, named("one"))
	for range 3 {
		if _, err := s.client.Delete(t.Context(), s.root+aliveKey("one")); err != nil {
			t.Fatal(err)
		}
		if err := s.forgetControllers(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.add(controllerRest - time.Minute)
		register(t, s, named("one"))
		if exists(t, s, goneKey("one")) {
			t.Fatal("it is alive, and noted as gone")
		}
	}
	if err := s.forgetControllers(t.Context()); err != nil || !exists(t, s, controllerKey("one")) {
		t.Errorf("it is forgotten (%v)", err)
	}
}

// The stored format rises when everybody who is alive knows the newer one.
func TestFormatIsRaised(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		others  []mesh.Controller // beside a new one; Version "dead" is not alive
		present string            // controller of a host's presence
		want    int
	}{
		{"alone", nil, "", Schema},
		{"another new one", []mesh.Controller{{Name: "b", Schema: Schema}}, "b", Schema},
		{"an old one", []mesh.Controller{{Name: "b", Schema: 1}}, "", 1},
		{"an old one that is dead", []mesh.Controller{{Name: "b", Schema: 1, Version: "dead"}}, "", Schema},
		{"one that is newer still", []mesh.Controller{{Name: "b", Schema: Schema + 1}}, "", Schema},
		{"one that never registered, and has a host", nil, "https://192.0.2.1:7443", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			old := newMesh(t, Config{Schema: 1})
			host(t, old, "h")
			s := newStore(t, Config{Root: old.root})
			for _, c := range append(tt.others, mesh.Controller{Name: "a", Schema: Schema}) {
				plant(t, s, c)
			}
			if tt.present != "" {
				if _, err := s.client.Put(t.Context(), s.root+presenceKey("h"), `{"controller":"`+tt.present+`"}`); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.raiseSchema(t.Context()); err != nil {
				t.Fatal(err)
			}
			if m := fresh(t, s).Mesh; m.Schema != tt.want {
				t.Errorf("format %d, want %d", m.Schema, tt.want)
			}
		})
	}
}

// plant puts the record of a controller that this test pretends there is.
func plant(t testing.TB, s *Store, c mesh.Controller) {
	t.Helper()
	text, err := encode(nil, c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Put(t.Context(), s.root+controllerKey(c.Name), string(text)); err != nil {
		t.Fatal(err)
	}
	if c.Version == "dead" {
		return
	}
	if _, err := s.client.Put(t.Context(), s.root+aliveKey(c.Name), ""); err != nil {
		t.Fatal(err)
	}
}

// At no moment are there a newer format and an older controller that has just been
// let in, whatever comes between the steps of either.
func TestFormatAndRegistrationMeet(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		record bool // the older controller has one, and is not alive
		first  bool // its registration is what is interrupted, not the raise
	}{
		{"it comes while the format is raised", false, false},
		{"it comes back while the format is raised", true, false},
		{"the format is raised while it comes", false, true},
		{"the format is raised while it comes back", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for k := 0; ; k++ {
				older := newMesh(t, Config{Schema: 1})
				s := newStore(t, Config{Root: older.root})
				plant(t, s, mesh.Controller{Name: "new", Schema: Schema})
				if tt.record {
					plant(t, s, mesh.Controller{Name: "old", Schema: 1, Version: "dead"})
				}
				lease, err := s.client.Grant(t.Context(), 60)
				if err != nil {
					t.Fatal(err)
				}
				var registered error
				register := func(older *Store) {
					older.presence.lease = lease.ID
					older.registration.record = &mesh.Controller{Name: "old", Schema: 1}
					registered = older.settleRegistration(t.Context())
				}
				raise := func(s *Store) {
					if err := s.raiseSchema(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				var reached *bool
				if tt.first {
					slow, there := between(t, older, k, func() { raise(s) })
					register(slow)
					reached = there
				} else {
					slow, there := between(t, s, k, func() { register(older) })
					raise(slow)
					if reached = there; !*reached {
						register(older)
					}
				}
				format := fresh(t, s).Mesh.Schema
				if refused := errors.Is(registered, ErrFormat); registered != nil && !refused || refused != (format == Schema) {
					t.Errorf("step %d: format %d, and the registration of an older controller: %v", k, format, registered)
				}
				if !*reached {
					return
				}
			}
		})
	}
}

// A controller that was away while the format was raised does not go on.
func TestOldControllerEnds(t *testing.T) {
	t.Parallel()
	older := newMesh(t, Config{Schema: 1, PresenceTTL: time.Second})
	s := newStore(t, Config{Root: older.root})
	ended := make(chan error, 1)
	go func() { ended <- older.Run(t.Context()) }()
	<-older.Ready()
	register(t, older, named("old"))
	plant(t, s, mesh.Controller{Name: "new", Schema: Schema})
	if err := s.raiseSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m := fresh(t, s).Mesh; m.Schema != 1 {
		t.Fatalf("format %d beside a controller that knows 1", m.Schema)
	}
	// As if it had been paused for longer than its lease.
	if _, err := s.client.Delete(t.Context(), s.root+aliveKey("old")); err != nil {
		t.Fatal(err)
	}
	if err := s.raiseSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, ErrFormat) || !strings.Contains(mesh.HintOf(err), "newer one") {
			t.Errorf("it ended with %v (hint %q)", err, mesh.HintOf(err))
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on, and does not know the format")
	}
	if _, _, _, err := again(t, older).Load(t.Context()); !errors.Is(err, ErrFormat) {
		t.Errorf("another start: %v", err)
	}
}

// During an upgrade a controller of the last format and one of this work on one
// mesh: what is new does not confuse the old one, and what the old one rewrites
// keeps what it does not know.
func TestOldBesideNew(t *testing.T) {
	t.Parallel()
	older := newMesh(t, Config{Schema: 1})
	newer := newStore(t, Config{Root: older.root})
	var said logged
	older.log = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))
	run(t, older)
	run(t, newer)
	register(t, older, named("old"))
	register(t, newer, named("new"))
	org(t, newer, "acme")
	h := host(t, older, "h")

	// What a controller newer than both would put: a field, a kind, a kind in a kind.
	raw := func(key, value string) {
		t.Helper()
		if _, err := newer.client.Put(t.Context(), newer.root+key, value); err != nil {
			t.Fatal(err)
		}
	}
	raw("grants/g1", `{"from":"acme"}`)
	raw("health/acme/web", `{"state":"passing"}`)
	raw(controllerKey("next"), `{"urls":["https://next:1"],"schema":9,"weight":3}`)
	raw(reservationKey("acme", mesh.KindMachine, "web"), `{"endpoint":"fd12:3456:789a:1:100:1:7:0/112"}`)
	eventually(t, newer, "the new one holds what it knows", func(state mesh.State) bool {
		return state.Controllers.Len() == 3 && state.Reserved.Len() == 1
	})
	text, err := encode(nil, h)
	if err != nil {
		t.Fatal(err)
	}
	raw(hostKey("h"), strings.Replace(string(text), "{", `{"rack":"r7",`, 1))
	yes := true
	_, rev, err := older.SetHost(t.Context(), "test", "h", HostChange{Cordoned: &yes})
	if err != nil {
		t.Fatal(err)
	}
	state := mirroredAt(t, older, rev)
	if state.Controllers.Len() != 0 || state.Reserved.Len() != 0 {
		t.Errorf("the old one holds %d controllers and %d reservations, which it cannot know", state.Controllers.Len(), state.Reserved.Len())
	}
	if got, _ := mirroredAt(t, newer, rev).Hosts.Get("h"); !got.Cordoned {
		t.Error("what the old one wrote is not what the new one reads")
	}
	r, err := newer.client.Get(t.Context(), newer.root+hostKey("h"))
	if err != nil || !strings.Contains(string(r.Kvs[0].Value), `"rack":"r7"`) {
		t.Errorf("after the old one's change the host is %s (%v)", r.Kvs[0].Value, err)
	}
	if text := said.String(); text != "" {
		t.Errorf("the old one complains:\n%s", text)
	}
	if err := older.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := newer.raiseSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, newer, "the format is raised once the old one has left", func(state mesh.State) bool { return state.Mesh.Schema == Schema })
}
