package store

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// presentAt returns where a host is present, "" if nowhere.
func presentAt(state mesh.State, host string) string {
	p, _ := state.Presence.Get(host)
	return p.Controller
}

func announce(t testing.TB, s *Store, host, controller string) {
	t.Helper()
	if err := s.Present(t.Context(), host, controller); err != nil {
		eventually(t, s, "Run announces it", func(state mesh.State) bool { return presentAt(state, host) == controller })
	}
}

func TestPresence(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{})
	two := run(t, again(t, one))
	run(t, one)
	host(t, one, "h")
	expect := func(want string) {
		t.Helper()
		if got := presentAt(fresh(t, one), "h"); got != want {
			t.Errorf("the host is present at %q, want %q", got, want)
		}
		for _, s := range []*Store{one, two} {
			eventually(t, s, "the host is present at "+want, func(state mesh.State) bool { return presentAt(state, "h") == want })
		}
	}
	absent := func(s *Store, controller string) {
		t.Helper()
		if err := s.Absent(t.Context(), "h", controller); err != nil {
			t.Fatal(err)
		}
	}
	announce(t, one, "h", "one")
	expect("one")

	// A reconnect to the same controller: the new stream begins before the old one ends.
	announce(t, one, "h", "one")
	absent(one, "one")
	expect("one")

	// To another one: the old one's end takes nothing away.
	announce(t, two, "h", "two")
	expect("two")
	absent(one, "one")
	expect("two")

	absent(two, "two")
	expect("")
	absent(two, "two") // once too often

	// A host that is not there, or is removed, has no presence.
	for _, name := range []string{"gone", "h"} {
		if err := one.Present(t.Context(), name, "one"); err != nil {
			t.Error(err)
		}
	}
	expect("one")
	done(one.RemoveHost(t.Context(), "test", "h"))(t)
	expect("")
	if got := keysBelow(t, one, "presence/"); len(got) > 0 {
		t.Errorf("presence: %q", got)
	}
}

// flannel #621, #1240: what was durable hung on leases, and went when etcd had
// trouble. Here a controller dies; with its lease goes the presence of its hosts
// and nothing else.
func TestFlannel621OnlyPresenceIsLeased(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	org(t, s, "acme")
	host(t, s, "h")
	machine(t, s, "acme", "web", "m1", "h")
	client(t, s, "acme", "laptop", "h")

	dying := again(t, s)
	ctx, die := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); dying.Run(ctx) }()
	<-dying.Ready()
	announce(t, dying, "h", "dying")
	eventually(t, s, "the host is present", func(state mesh.State) bool { return presentAt(state, "h") == "dying" })
	before := dump(fresh(t, s))
	die()
	<-done
	if presentAt(fresh(t, s), "h") == "" {
		t.Error("presence went at once: hosts that reconnect would have been away")
	}
	if _, err := s.client.Revoke(t.Context(), dying.presence.lease); err != nil { // its time is over
		t.Fatal(err)
	}
	eventually(t, s, "presence is gone", func(state mesh.State) bool { return presentAt(state, "h") == "" })
	after := dump(s.State())
	delete(before, "presence/h")
	if len(before) != len(after) {
		t.Errorf("more than presence is gone: %d objects, %d before", len(after), len(before))
	}
	// Of the other keys, only candidacies hang on leases.
	r, err := s.client.Get(t.Context(), s.root, withPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range r.Kvs {
		if kv.Lease != 0 && !strings.HasPrefix(string(kv.Key), s.root+keyElection) {
			t.Errorf("%s hangs on a lease", kv.Key)
		}
	}
}

// A controller whose lease expired although it lives (etcd was away for longer)
// says again who is there, by itself.
func TestPresenceComesBackAfterALostLease(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{PresenceTTL: time.Second})
	host(t, s, "h")
	if err := s.Present(t.Context(), "h", "one"); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("present before Run: %v, want ErrUnavailable", err)
	}
	run(t, s) // and Run goes on trying
	eventually(t, s, "the host is present", func(state mesh.State) bool { return presentAt(state, "h") == "one" })
	s.presence.mu.Lock()
	lease := s.presence.lease
	s.presence.mu.Unlock()
	wake, cancel := s.Subscribe()
	defer cancel()
	if _, err := s.client.Revoke(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	for gone := false; ; {
		state := s.State()
		gone = gone || presentAt(state, "h") == ""
		if gone && presentAt(state, "h") == "one" {
			break
		}
		select {
		case <-wake:
		case <-time.After(10 * time.Second):
			t.Fatalf("gone %v, and not back", gone)
		}
	}
	if err := s.Absent(t.Context(), "h", "one"); err != nil {
		t.Fatal(err)
	}
	eventually(t, s, "the host is absent", func(state mesh.State) bool { return presentAt(state, "h") == "" })
}

// A controller that was away for longer than its lease, and still has the old
// stream of a host that went to another one, does not take it back; and when the
// other one ends, the host whose stream is open is present again.
func TestPresenceStaysWithTheLastStream(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{PresenceTTL: time.Second})
	two := run(t, again(t, one))
	run(t, one)
	host(t, one, "h")
	host(t, one, "other")
	at := func(controller string) func(mesh.State) bool {
		return func(state mesh.State) bool { return presentAt(state, "h") == controller }
	}
	announce(t, one, "h", "one")
	announce(t, one, "other", "one")
	announce(t, two, "h", "two")
	eventually(t, one, "the host is at the second controller", at("two"))
	lost := one.presence.current()
	if _, err := one.client.Revoke(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	eventually(t, two, "the first one is back", func(state mesh.State) bool {
		return one.presence.current() != lost && presentAt(state, "other") == "one"
	})
	upToDate(t, two)
	if now := presentAt(two.State(), "h"); now != "two" {
		t.Errorf("the host is present at %q: the old stream took it back", now)
	}
	if err := two.Absent(t.Context(), "h", "two"); err != nil {
		t.Fatal(err)
	}
	eventually(t, one, "the host whose stream is open here is present", at("one"))

	// There and back again, faster than the end of the old stream is noticed.
	announce(t, two, "h", "two")
	eventually(t, one, "the host is at the second controller", at("two"))
	announce(t, one, "h", "one")
	eventually(t, two, "the host is back", at("one"))
	if err := two.Absent(t.Context(), "h", "two"); err != nil {
		t.Fatal(err)
	}
	upToDate(t, one)
	if now := presentAt(one.State(), "h"); now != "one" {
		t.Errorf("the host is present at %q: the end of a stream elsewhere took it away", now)
	}
}

// upToDate waits until s has everything that is stored now.
func upToDate(t testing.TB, s *Store) {
	t.Helper()
	r, err := s.client.Get(t.Context(), s.root, clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	mirroredAt(t, s, r.Header.Revision)
}
