package store

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
)

func record(name, kind string, values ...string) mesh.Record {
	return mesh.Record{Org: "acme", Name: name, Type: kind, Values: values}
}

func TestRecords(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	ctx := t.Context()
	org(t, s, "acme")
	org(t, s, "acme-2")
	host(t, s, "h")
	machine(t, s, "acme", "web", "m1", "h")

	made := must(s.CreateRecord(ctx, "test", record("DB.", "aaaa", "fd12::0:2", "fd12::1")))(t)
	want := mesh.Record{Org: "acme", Name: "db", Type: "AAAA", Values: []string{"fd12::1", "fd12::2"}}
	if diff := cmp.Diff(want, made); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	must(s.CreateRecord(ctx, "test", record("db", "TXT", "primary")))(t)
	must(s.CreateRecord(ctx, "test", record("api", "alias", "web.internal")))(t)
	other := record("db", "TXT", "theirs")
	other.Org = "acme-2"
	must(s.CreateRecord(ctx, "test", other))(t)
	want.TTL, want.Values = 60, []string{"fd12::3"}
	set, rev, err := s.SetRecord(ctx, "test", want)
	must(set, rev, err)(t)
	if got, _ := mirroredAt(t, s, rev).Records.Get("acme/db/AAAA"); !cmp.Equal(got, want) {
		t.Errorf("in the mirror (-want +got):\n%s", cmp.Diff(want, got))
	}
	if _, _, err := s.SetRecord(ctx, "test", want); err != nil {
		t.Error(err)
	}
	if r, err := s.client.Get(ctx, s.root+recordKey("acme", "db", "AAAA")); err != nil || r.Kvs[0].ModRevision != rev {
		t.Errorf("the same again: %v, %v; it was written at %d", r.Kvs, err, rev)
	}

	for _, tt := range []struct {
		what string
		want error
		text string
		do   func() error
	}{
		{"twice", ErrExists, "exists", func() error { return third(s.CreateRecord(ctx, "", record("db", "TXT", "x"))) }},
		{"beside an alias", ErrConflict, "an alias stands alone", func() error { return third(s.CreateRecord(ctx, "", record("api", "TXT", "x"))) }},
		{"an alias beside others", ErrConflict, "an alias stands alone", func() error { return third(s.CreateRecord(ctx, "", record("db", "alias", "web.internal"))) }},
		{"an app's name", ErrConflict, "web is an app", func() error { return third(s.CreateRecord(ctx, "", record("web", "TXT", "x"))) }},
		{"under an app's name", ErrConflict, "web is an app", func() error { return third(s.SetRecord(ctx, "", record("a.b.web", "TXT", "x"))) }},
		{"a reserved word", ErrInvalid, "reserved", func() error { return third(s.CreateRecord(ctx, "", record("x.google", "TXT", "x"))) }},
		{"of nobody", ErrNotFound, "org gone", func() error {
			return third(s.CreateRecord(ctx, "", mesh.Record{Org: "gone", Name: "x", Type: "TXT", Values: []string{"x"}}))
		}},
		{"an app of a record's name", ErrConflict, "its own record db", func() error { return third(s.CreateApp(ctx, "", mesh.App{Org: "acme", Name: "db"})) }},
		{"remove what is not there", ErrNotFound, "", func() error { return second(s.RemoveRecord(ctx, "", "acme", "nope", "")) }},
		{"remove a type that is not there", ErrNotFound, "", func() error { return second(s.RemoveRecord(ctx, "", "acme", "db", "SRV")) }},
		{"remove what is no type", ErrInvalid, "", func() error { return second(s.RemoveRecord(ctx, "", "acme", "db", "MX")) }},
	} {
		if err := tt.do(); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %v (%s)", tt.what, err, tt.want, tt.text)
		}
	}

	done(s.RemoveRecord(ctx, "test", "acme", "api", "alias"))(t)
	must(s.CreateRecord(ctx, "test", record("api", "TXT", "x")))(t)
	rev, err = s.RemoveRecord(ctx, "test", "acme", "db", "")
	done(rev, err)(t)
	state := mirroredAt(t, s, rev)
	if state.Records.Has("acme/db/AAAA") || state.Records.Has("acme/db/TXT") || !state.Records.Has("acme-2/db/TXT") || state.Count(kindRecords, "acme") != 1 {
		t.Errorf("after the removal of db: %d records", state.Records.Len())
	}
	rev, err = s.RemoveOrg(ctx, "test", "acme")
	done(rev, err)(t)
	if n := mirroredAt(t, s, rev).Records.Len(); n != 1 {
		t.Errorf("%d records are left, want that of the other org", n)
	}
}

// An alias and another record of one name that come at once: never both.
func TestAnAliasStandsAloneInARace(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{})
	stores := []*Store{one, again(t, one)}
	org(t, one, "acme")
	for range 10 {
		var in atomic.Int64
		together(4, func(i int) {
			r := record("x", "alias", "web.internal")
			if i%2 == 1 {
				r = record("x", []string{"TXT", "TXT", "AAAA", "AAAA"}[i], "fd12::1")
			}
			switch err := third(stores[i%2].CreateRecord(context.Background(), "", r)); {
			case err == nil:
				in.Add(1)
			case !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists):
				t.Error(err)
			}
		})
		kinds := map[string]bool{}
		for key := range fresh(t, one).Records.All() {
			kinds[key] = true
		}
		if kinds["acme/x/alias"] && len(kinds) > 1 || len(kinds) == 0 {
			t.Fatalf("records %v", kinds)
		}
		done(one.RemoveRecord(t.Context(), "", "acme", "x", ""))(t)
	}
}

// An older controller would leave records behind with the org that it removes.
func TestNoRecordsBesideAnOlderController(t *testing.T) {
	t.Parallel()
	older := newMesh(t, Config{Schema: 2})
	s := newStore(t, Config{Root: older.root})
	org(t, s, "acme")
	err := third(s.CreateRecord(t.Context(), "", record("x", "TXT", "v")))
	if !errors.Is(err, ErrConflict) || !strings.Contains(mesh.HintOf(err), "upgrade all controllers") {
		t.Errorf("%v (hint %q)", err, mesh.HintOf(err))
	}
	plant(t, s, mesh.Controller{Name: "new", Schema: Schema})
	if err := s.raiseSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(s.CreateRecord(t.Context(), "", record("x", "TXT", "v")))(t)
}

func TestAppSettings(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	ctx := t.Context()
	org(t, s, "acme")
	host(t, s, "h")
	machine(t, s, "acme", "web", "m1", "h")
	if _, err := s.client.Delete(ctx, s.root+appKey("acme", "web")); err != nil { // it exists through its machine alone
		t.Fatal(err)
	}
	app, rev, err := s.SetApp(ctx, "test", "acme", "web", AppChange{Answer: new("3")})
	must(app, rev, err)(t)
	if got, _ := mirroredAt(t, s, rev).Apps.Get("acme/web"); got != (mesh.App{Org: "acme", Name: "web", Answer: "3"}) {
		t.Errorf("%+v", got)
	}
	app = must(s.SetApp(ctx, "test", "acme", "web", AppChange{TTL: new(60)}))(t)
	if app != (mesh.App{Org: "acme", Name: "web", Answer: "3", TTL: 60}) {
		t.Errorf("%+v", app)
	}
	must(s.CreateApp(ctx, "test", mesh.App{Org: "acme", Name: "db", Answer: "all", TTL: 9}))(t)
	for _, tt := range []struct {
		what   string
		want   error
		change func() error
	}{
		{"no such app", ErrNotFound, func() error { return third(s.SetApp(ctx, "", "acme", "nope", AppChange{TTL: new(1)})) }},
		{"no such org", ErrNotFound, func() error { return third(s.SetApp(ctx, "", "gone", "web", AppChange{TTL: new(1)})) }},
		{"no such answer", ErrInvalid, func() error { return third(s.SetApp(ctx, "", "acme", "web", AppChange{Answer: new("0")})) }},
		{"no such TTL", ErrInvalid, func() error { return third(s.SetApp(ctx, "", "acme", "web", AppChange{TTL: new(3601)})) }},
		{"made with a bad answer", ErrInvalid, func() error { return third(s.CreateApp(ctx, "", mesh.App{Org: "acme", Name: "x", Answer: "few"})) }},
	} {
		if err := tt.change(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.what, err, tt.want)
		}
	}
}

func place(x float64) mesh.Coordinate {
	c := mesh.Coordinate{Vec: make([]float64, mesh.CoordinateDimensions), Error: 0.2}
	c.Vec[0] = x
	return c
}

func TestCoordinates(t *testing.T) {
	t.Parallel()
	now := newClock()
	s := run(t, newMesh(t, Config{Now: now.Now}))
	ctx := t.Context()
	host(t, s, "h")
	at := func() float64 {
		c, ok := fresh(t, s).Coordinates.Get("h")
		if !ok {
			return -1
		}
		return c.Vec[0]
	}
	set := func(x, want float64) {
		t.Helper()
		rev, err := s.SetCoordinate(ctx, "h", place(x))
		if err != nil {
			t.Fatal(err)
		}
		if rev > 0 {
			mirroredAt(t, s, rev)
		}
		if got := at(); got != want {
			t.Errorf("after %g: %g is stored, want %g", x, got, want)
		}
	}
	set(0.1, 0.1)
	now.add(2 * time.Minute)
	set(0.105, 0.1) // not worth it
	set(0.2, 0.2)
	set(0.4, 0.2) // a moment ago
	now.add(time.Minute)
	set(0.4, 0.4)
	unsure := place(0.5)
	unsure.Error = 1.5
	now.add(2 * time.Minute)
	rev, err := s.SetCoordinate(ctx, "h", unsure)
	if err != nil || at() != 0.5 {
		t.Fatal(at(), err)
	}
	mirroredAt(t, s, rev)
	set(0.6, 0.6) // a moment ago, and much surer
	set(0.8, 0.6) // no surer than that
	if _, err := s.SetCoordinate(ctx, "gone", place(0.1)); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a host that is not there: %v", err)
	}
	if _, err := s.SetCoordinate(ctx, "h", mesh.Coordinate{Vec: []float64{1}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("of one dimension: %v", err)
	}
	done(s.RemoveHost(ctx, "test", "h"))(t)
	if got := at(); got != -1 {
		t.Errorf("the host is gone, and its coordinate %g is not", got)
	}
}
