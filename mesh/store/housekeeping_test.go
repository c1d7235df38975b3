package store

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

func TestClientsExpire(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := run(t, newMesh(t, Config{Now: c.Now}))
	org(t, s, "acme")
	host(t, s, "h")
	job := must(s.CreateClient(t.Context(), "op", ClientSpec{Org: "acme", Name: "job", Key: key("job"), TLSKey: "tls", Gateway: "h", TTL: time.Hour}))(t)
	client(t, s, "acme", "laptop", "h")
	if !job.Expires.Equal(c.Now().Add(time.Hour)) {
		t.Errorf("it expires at %s", job.Expires)
	}
	expire := func() []string {
		t.Helper()
		mirroredAt(t, s, s.newest.Load())
		if err := s.Housekeep(t.Context()); err != nil {
			t.Fatal(err)
		}
		mirroredAt(t, s, s.newest.Load())
		return keysBelow(t, s, "clients/")
	}
	c.add(time.Hour - time.Second)
	if got := expire(); len(got) != 2 {
		t.Errorf("a second before: %q", got)
	}
	c.add(time.Second)
	for range 2 {
		if got := expire(); !slices.Equal(got, []string{clientKey("acme", "laptop")}) {
			t.Errorf("then: %q", got)
		}
	}
	// Its keys are free, its address is kept for as long as it lasted, and no longer.
	kept, there, err := read[mesh.Reservation](t, s, reservationKey("acme", mesh.KindClient, "job"))
	if err != nil || !there || !kept.Until.Equal(c.Now().Add(time.Hour)) {
		t.Errorf("kept: %+v %t %v", kept, there, err)
	}
	again := must(s.CreateClient(t.Context(), "op", ClientSpec{Org: "acme", Name: "job", Key: key("job"), TLSKey: "tls", Gateway: "h"}))(t)
	if again.Endpoint != job.Endpoint || !again.Expires.IsZero() {
		t.Errorf("again: %+v, was %+v", again, job)
	}
	c.add(1000 * time.Hour)
	if got := expire(); len(got) != 2 {
		t.Errorf("one without an end: %q", got)
	}
	events, err := s.Events(t.Context(), 100)
	if i := slices.IndexFunc(events, func(e mesh.Event) bool { return e.Action == "client.expire" }); err != nil || i < 0 || events[i].Actor != actorJobs || events[i].Target != "acme/job" {
		t.Errorf("events %+v, %v", events, err)
	}
	holdsTogether(t, s, fresh(t, s))
}

// A client whose time is over comes back, or its time is made longer, just before
// any step of the job: then it stays.
func TestExpiryMeetsANewClient(t *testing.T) {
	t.Parallel()
	for k := 0; ; k++ {
		c := newClock()
		s := newMesh(t, Config{Now: c.Now})
		org(t, s, "acme")
		host(t, s, "h")
		must(s.CreateClient(t.Context(), "", ClientSpec{Org: "acme", Name: "job", Key: key("old"), Gateway: "h", TTL: time.Hour}))(t)
		c.add(2 * time.Hour)
		one, reached := between(t, s, k, func() {
			if _, err := s.RemoveClient(t.Context(), "", "acme", "job"); err != nil && !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
			must(s.CreateClient(t.Context(), "", ClientSpec{Org: "acme", Name: "job", Key: key("new"), Gateway: "h", TTL: time.Hour}))(t)
		})
		if err := one.expireClient(t.Context(), "acme", "job"); err != nil {
			t.Fatal(err)
		}
		got, there, _ := read[mesh.Client](t, s, clientKey("acme", "job"))
		if !*reached {
			if there || k < 2 {
				t.Errorf("after %d steps: there %t", k, there)
			}
			return
		}
		if !there || got.Key != key("new") {
			t.Errorf("before step %d: there %t", k, there)
		}
		holdsTogether(t, s, fresh(t, s))
	}
}

func TestATokenSaysHowLongItsClientsLast(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newMesh(t, Config{Now: c.Now})
	org(t, s, "acme")
	host(t, s, "h")
	use := token(t, s, mesh.Token{ID: "ci", Kind: mesh.KindClient, Org: "acme", ClientTTL: "90m", Expires: c.Now().Add(time.Hour)})
	spec := ClientSpec{Name: "job", Key: key("job"), TLSKey: "tls", Gateway: "h", TTL: 1000 * time.Hour}
	if job := must(s.EnrollClient(t.Context(), spec, use))(t); !job.Expires.Equal(c.Now().Add(90 * time.Minute)) {
		t.Errorf("it expires at %s", job.Expires)
	}
	for _, tok := range []mesh.Token{
		{ID: "x", Kind: mesh.KindClient, Org: "acme", ClientTTL: "soon"},
		{ID: "x", Kind: mesh.KindClient, Org: "acme", ClientTTL: "0s"},
		{ID: "x", Kind: mesh.KindClient, Org: "acme", ClientTTL: "-1h"},
		{ID: "x", Kind: mesh.KindHost, Orgs: []string{"all"}, ClientTTL: "1h"},
	} {
		tok.Hash, tok.Expires = hash("x"), c.Now().Add(time.Hour)
		if err := third(s.CreateToken(t.Context(), "", tok)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", tok, err)
		}
	}
}

func TestTokensAreForgotten(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newMesh(t, Config{Now: c.Now})
	org(t, s, "acme")
	token(t, s, mesh.Token{ID: "short", Kind: mesh.KindHost, Orgs: []string{"all"}, Expires: c.Now().Add(time.Hour)})
	token(t, s, mesh.Token{ID: "long", Kind: mesh.KindHost, Orgs: []string{"all"}, Expires: c.Now().Add(100 * time.Hour)})
	for _, tt := range []struct {
		after time.Duration
		left  []string
	}{
		{2 * time.Hour, []string{"tokens/long", "tokens/short"}}, // for a day it can be seen why it does not work
		{23*time.Hour + time.Second, []string{"tokens/long"}},
		{0, []string{"tokens/long"}},
	} {
		c.add(tt.after)
		if err := s.ExpireTokens(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := keysBelow(t, s, keyTokens); !slices.Equal(got, tt.left) {
			t.Errorf("%s later: %q, want %q", tt.after, got, tt.left)
		}
	}
}
