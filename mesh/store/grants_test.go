package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
)

func grantTo(port uint16) mesh.Grant {
	return mesh.Grant{From: mesh.Party{Org: "acme", App: "web"}, To: mesh.Party{Org: "other", App: "db"}, Protocol: mesh.ProtocolTCP, FirstPort: port}
}

func TestGrants(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	ctx := t.Context()
	for _, name := range []string{"acme", "other", "third"} {
		org(t, s, name)
	}
	made, rev, err := s.CreateGrant(ctx, "operator/me", grantTo(5432))
	must(made, rev, err)(t)
	if len(made.ID) != 8 || made.LastPort != 5432 || made.Created.IsZero() {
		t.Errorf("made %+v", made)
	}
	if got, _ := mirroredAt(t, s, rev).Grants.Get(made.ID); !got.Created.Equal(made.Created) || !got.Same(made) {
		t.Errorf("in the mirror (-want +got):\n%s", cmp.Diff(made, got))
	}
	same := grantTo(0)
	same.FirstPort, same.LastPort = 5432, 5432
	back := mesh.Grant{From: made.To, To: made.From, Protocol: mesh.ProtocolTCP, FirstPort: 5432}
	for _, tt := range []struct {
		what string
		want error
		text string
		hint string
		do   func() error
	}{
		{"the same again", ErrExists, "it is grant " + made.ID, "weft grant show " + made.ID, func() error { return third(s.CreateGrant(ctx, "", same)) }},
		{"within an org", ErrInvalid, "both sides are of org acme", "without", func() error {
			return third(s.CreateGrant(ctx, "", mesh.Grant{From: made.From, To: made.From, Protocol: "tcp"}))
		}},
		{"of nobody", ErrNotFound, "grant all from gone to acme: org gone", "", func() error {
			return third(s.CreateGrant(ctx, "", mesh.Grant{From: mesh.Party{Org: "gone"}, To: mesh.Party{Org: "acme"}, Protocol: "all"}))
		}},
		{"remove what is not there", ErrNotFound, "remove grant nope", "", func() error { return second(s.RemoveGrant(ctx, "", "nope")) }},
	} {
		if err := tt.do(); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(mesh.HintOf(err), tt.hint) {
			t.Errorf("%s: %v (hint %q), want %v (%s; %s)", tt.what, err, mesh.HintOf(err), tt.want, tt.text, tt.hint)
		}
	}
	must(s.CreateGrant(ctx, "", back))(t) // the other way round is another one
	kept := must(s.CreateGrant(ctx, "", mesh.Grant{From: mesh.Party{Org: "third"}, To: mesh.Party{Org: "other"}, Protocol: "all"}))(t)

	rev, err = s.RemoveGrant(ctx, "operator/me", made.ID)
	done(rev, err)(t)
	if state := mirroredAt(t, s, rev); state.Grants.Has(made.ID) || state.Count(kindGrants, "acme") != 1 || state.Count(kindGrants, "other") != 2 {
		t.Errorf("after the removal: %d grants", state.Grants.Len())
	}
	events, err := s.Events(ctx, 100)
	if err != nil {
		t.Fatal(err)
	}
	var log []string
	for _, e := range events {
		if e.Actor == "operator/me" {
			log = append(log, e.Action+" "+e.Target+" "+e.Note)
		}
	}
	slices.Sort(log)
	want := []string{"grant.create " + made.ID + " tcp 5432 from acme/web to other/db", "grant.remove " + made.ID + " tcp 5432 from acme/web to other/db"}
	if diff := cmp.Diff(want, log); diff != "" {
		t.Errorf("audit log (-want +got):\n%s", diff)
	}

	// An org takes those with it that name it, on either side.
	rev, err = s.RemoveOrg(ctx, "test", "acme")
	done(rev, err)(t)
	state := mirroredAt(t, s, rev)
	if state.Grants.Len() != 1 || !state.Grants.Has(kept.ID) {
		t.Errorf("%d grants are left, want that of the other orgs", state.Grants.Len())
	}
	if err := third(s.CreateGrant(ctx, "", grantTo(1))); !errors.Is(err, ErrNotFound) {
		t.Errorf("from an org that is gone: %v", err)
	}
}

// Both orgs must have room.
func TestTheLimitOfGrantsIsThatOfBothOrgs(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	org(t, s, "acme")
	org(t, s, "other")
	must(s.UpdateOrg(t.Context(), "", "other", mesh.Limits{Grants: 2}))(t)
	for port := range uint16(2) {
		must(s.CreateGrant(t.Context(), "", grantTo(port+1)))(t)
	}
	err := third(s.CreateGrant(t.Context(), "", grantTo(9)))
	if want := "org other: limit reached: it has 2 grants, and may have 2"; !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	if _, _, err := s.UpdateOrg(t.Context(), "", "other", mesh.Limits{Grants: maxGrants + 1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a limit beyond what may be: %v", err)
	}
}

// An older controller would leave grants behind with the org that it removes, and
// its hosts would not know of them.
func TestNoGrantsBesideAnOlderController(t *testing.T) {
	t.Parallel()
	older := newMesh(t, Config{Schema: grantsFormat - 1})
	s := newStore(t, Config{Root: older.root})
	org(t, s, "acme")
	org(t, s, "other")
	if err := third(s.CreateGrant(t.Context(), "", grantTo(1))); !errors.Is(err, ErrConflict) || !strings.Contains(mesh.HintOf(err), "upgrade all controllers") {
		t.Errorf("%v (hint %q)", err, mesh.HintOf(err))
	}
	plant(t, s, mesh.Controller{Name: "new", Schema: Schema})
	if err := s.raiseSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(s.CreateGrant(t.Context(), "", grantTo(1)))(t)
}

func grantOf(i int) mesh.Grant {
	g := grantTo(80)
	g.From.App = fmt.Sprint("x", i)
	return g
}
