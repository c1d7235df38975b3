package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// Many at once, at three controllers of which one runs a mirror, reach for the last
// ones that an org may have: not one too many, and none is left out.
func TestLimitsAreExact(t *testing.T) {
	t.Parallel()
	const limit, callers = 20, 36
	for _, tt := range []struct {
		kind   string
		create func(s *Store, i int) error
		remove func(s *Store) error
	}{
		{kindMachines, func(s *Store, i int) error {
			return third(s.CreateMachine(context.Background(), "", MachineSpec{Org: "acme", App: "web", ID: fmt.Sprint("x", i), Host: fmt.Sprint("h", i%3)}))
		}, func(s *Store) error {
			return second(s.RemoveMachine(context.Background(), "", MachineRef{Org: "acme", ID: "x99"}))
		}},
		{kindClients, func(s *Store, i int) error {
			return third(s.CreateClient(context.Background(), "", ClientSpec{Org: "acme", Name: fmt.Sprint("x", i), Key: key(fmt.Sprint(i)), Gateway: fmt.Sprint("h", i%3)}))
		}, func(s *Store) error { return second(s.RemoveClient(context.Background(), "", "acme", "x99")) }},
		{kindTokens, func(s *Store, i int) error {
			return third(s.CreateToken(context.Background(), "", mesh.Token{
				ID: fmt.Sprint("x", i), Hash: hash("x"), Kind: mesh.KindClient, Org: "acme", Expires: time.Now().Add(time.Hour),
			}))
		}, func(s *Store) error { return second(s.RemoveToken(context.Background(), "", "x99")) }},
		{kindRecords, func(s *Store, i int) error {
			return third(s.CreateRecord(context.Background(), "", mesh.Record{Org: "acme", Name: fmt.Sprint("x", i), Type: mesh.RecordTXT, Values: []string{"v"}}))
		}, func(s *Store) error { return second(s.RemoveRecord(context.Background(), "", "acme", "x99", "")) }},
		{kindGrants, func(s *Store, i int) error {
			return third(s.CreateGrant(context.Background(), "", grantOf(i)))
		}, func(s *Store) error {
			for id, g := range fresh(t, s).Grants.All() {
				if g.From.App == "x99" {
					return second(s.RemoveGrant(context.Background(), "", id))
				}
			}
			return errors.New("x99 is not there")
		}},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			t.Parallel()
			one := newMesh(t, Config{})
			stores := []*Store{one, again(t, one), run(t, again(t, one))}
			org(t, one, "acme")
			org(t, one, "other")
			for i := range 3 {
				host(t, one, fmt.Sprint("h", i))
			}
			must(one.UpdateOrg(t.Context(), "test", "acme", mesh.Limits{Machines: limit, Clients: limit, Tokens: limit, Records: limit, Grants: limit}))(t)
			if err := tt.create(one, 99); err != nil {
				t.Fatal(err)
			}
			var in atomic.Int64
			together(callers, func(i int) {
				err := tt.create(stores[i%3], i)
				switch {
				case err == nil:
					in.Add(1)
				case !errors.Is(err, ErrLimit):
					t.Error(err)
				}
			})
			if in.Load() != limit-1 {
				t.Errorf("%d were let in, want %d", in.Load(), limit-1)
			}
			err := tt.create(stores[2], 77)
			noun := strings.TrimSuffix(tt.kind, "s")
			if want := fmt.Sprintf("org acme: limit reached: it has %d %ss, and may have %d", limit, noun, limit); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), want) {
				t.Errorf("one more: %v", err)
			}
			if hint := mesh.HintOf(err); hint != fmt.Sprintf("an operator can raise it: weft org limit acme --%s %d", tt.kind, 2*limit) {
				t.Errorf("hint %q", hint)
			}
			// One goes, one more fits; and with a lower limit nothing goes.
			if err := tt.remove(one); err != nil {
				t.Fatal(err)
			}
			if err := tt.create(stores[1], 78); err != nil {
				t.Errorf("in the place of one that went: %v", err)
			}
			must(one.UpdateOrg(t.Context(), "test", "acme", mesh.Limits{Machines: 1, Clients: 1, Tokens: 1, Records: 1, Grants: 1}))(t)
			if err := tt.create(stores[0], 79); !errors.Is(err, ErrLimit) {
				t.Errorf("far beyond a lower limit: %v", err)
			}
			if got := fresh(t, one).Count(tt.kind, "acme"); got != limit {
				t.Errorf("it has %d", got)
			}
		})
	}
}

// Across the line between counting by the mirror and counting in etcd.
func TestALimitBeyondTheMargin(t *testing.T) {
	t.Parallel()
	const limit = limitMargin + 40
	one := newMesh(t, Config{})
	stores := []*Store{run(t, one), run(t, again(t, one))}
	org(t, one, "acme")
	for i := range 8 {
		host(t, one, fmt.Sprint("h", i))
	}
	must(one.UpdateOrg(t.Context(), "test", "acme", mesh.Limits{Machines: limit}))(t)
	var in atomic.Int64
	together(32, func(i int) {
		for range limit/32 + 4 {
			switch _, _, err := stores[i%2].CreateMachine(context.Background(), "", MachineSpec{Org: "acme", App: "web", Host: fmt.Sprint("h", i%8)}); {
			case err == nil:
				in.Add(1)
			case errors.Is(err, ErrUnavailable) && strings.Contains(err.Error(), "times in a row"):
			case !errors.Is(err, ErrLimit):
				t.Error(err)
			}
		}
	})
	for third(one.CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", Host: "h0"})) == nil {
		in.Add(1)
	}
	if got := fresh(t, one).Count(kindMachines, "acme"); in.Load() != limit || got != limit {
		t.Errorf("%d were let in, and %d are there; the limit is %d", in.Load(), got, limit)
	}
}

func TestTokensThatCannotBeUsedDoNotCount(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newMesh(t, Config{Now: c.Now})
	org(t, s, "acme")
	org(t, s, "other")
	host(t, s, "h")
	must(s.UpdateOrg(t.Context(), "", "acme", mesh.Limits{Tokens: 2}))(t)
	create := func(id, org string, ttl time.Duration) error {
		return third(s.CreateToken(t.Context(), "", mesh.Token{ID: id, Hash: hash(id), Kind: mesh.KindClient, Org: org, Expires: c.Now().Add(ttl)}))
	}
	for _, x := range []struct {
		id, org string
		ttl     time.Duration
	}{{"short", "acme", time.Minute}, {"others", "other", time.Hour}, {"once", "acme", time.Hour}} {
		if err := create(x.id, x.org, x.ttl); err != nil {
			t.Fatal(err)
		}
	}
	if err := create("third", "acme", time.Hour); !errors.Is(err, ErrLimit) {
		t.Errorf("a third one: %v", err)
	}
	must(s.EnrollClient(t.Context(), ClientSpec{Name: "x", Key: key("x"), TLSKey: "x", Gateway: "h"}, TokenUse{"once", hash("once")}))(t)
	if err := create("third", "acme", time.Hour); err != nil {
		t.Errorf("one was spent: %v", err)
	}
	c.add(time.Minute)
	if err := create("fourth", "acme", time.Hour); err != nil {
		t.Errorf("one has expired: %v", err)
	}
	if err := create("fifth", "acme", time.Hour); !errors.Is(err, ErrLimit) {
		t.Errorf("a fifth one: %v", err)
	}
	// A host's token is the mesh's.
	token(t, s, mesh.Token{ID: "host", Kind: mesh.KindHost, Orgs: []string{"acme"}})
}

func TestMetadataHasALimit(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	org(t, s, "acme")
	host(t, s, "h")
	create := func(n int) error {
		meta := map[string]string{}
		for i := range n {
			meta[fmt.Sprint("k", i)] = "v"
		}
		return third(s.CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", Host: "h", Meta: meta}))
	}
	if err := errors.Join(create(32), third(s.UpdateOrg(t.Context(), "", "acme", mesh.Limits{Metadata: 64}))); err != nil {
		t.Fatal(err)
	}
	if err := create(64); err != nil {
		t.Error(err)
	}
	if err := create(65); !errors.Is(err, ErrLimit) || mesh.HintOf(err) != "an operator can raise it: weft org limit acme --metadata 65" {
		t.Errorf("%v, hint %q", err, mesh.HintOf(err))
	}
	if err := create(maxMeta + 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("far too many: %v", err)
	}
}

func TestUpdateOrg(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	org(t, s, "acme")
	if got := must(s.UpdateOrg(t.Context(), "op", "acme", mesh.Limits{Machines: 7}))(t); got.Limits != (mesh.Limits{Machines: 7}) || got.Network != 1 {
		t.Errorf("org %+v", got)
	}
	events := len(keysBelow(t, s, keyAudit))
	must(s.UpdateOrg(t.Context(), "op", "acme", mesh.Limits{Machines: 7}))(t)
	if len(keysBelow(t, s, keyAudit)) != events {
		t.Error("the same again was written")
	}
	for _, tt := range []struct {
		org    string
		limits mesh.Limits
		want   error
	}{
		{"nope", mesh.Limits{}, ErrNotFound},
		{"acme", mesh.Limits{Machines: -1}, ErrInvalid},
		{"acme", mesh.Limits{Clients: maxLimit + 1}, ErrInvalid},
		{"acme", mesh.Limits{Metadata: maxMeta + 1}, ErrInvalid},
	} {
		if err := third(s.UpdateOrg(t.Context(), "op", tt.org, tt.limits)); !errors.Is(err, tt.want) {
			t.Errorf("%s %+v: %v, want %v", tt.org, tt.limits, err, tt.want)
		}
	}
	// Two operators change different ones at once: both count.
	together(8, func(i int) {
		err := third(s.ChangeLimits(context.Background(), "op", "acme", func(l mesh.Limits) mesh.Limits {
			l.Clients++
			return l
		}))
		if err != nil {
			t.Error(err)
		}
	})
	if o, _, _ := read[mesh.Org](t, s, orgKey("acme")); o.Limits != (mesh.Limits{Machines: 7, Clients: 8}) {
		t.Errorf("limits %+v", o.Limits)
	}
}
