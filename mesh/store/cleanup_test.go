package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
)

// fill gives an org an app, machines on host, clients at it, an admin and a token.
func fill(t testing.TB, s *Store, name, host string, machines, clients int) {
	t.Helper()
	org(t, s, name)
	for i := range machines {
		machine(t, s, name, "web", fmt.Sprint("m", i), host)
	}
	for i := range clients {
		must(s.CreateClient(t.Context(), "test", ClientSpec{
			Org: name, Name: fmt.Sprint("c", i), Key: key(fmt.Sprint(name, i)), TLSKey: fmt.Sprint(name, i), Gateway: host,
		}))(t)
	}
	token(t, s, mesh.Token{ID: "for-" + name, Kind: mesh.KindClient, Org: name})
	must(s.CreateOperator(t.Context(), "test", mesh.Operator{ID: "admin-" + name, Hash: hash(name), Role: mesh.RoleOrgAdmin, Org: name}))(t)
}

// belongs lists the stored keys that name the org or were given for it.
func belongs(t testing.TB, s *Store, org string, network uint64) []string {
	t.Helper()
	var out []string
	for _, k := range keysBelow(t, s, "") {
		if strings.HasPrefix(k, keyAudit) {
			continue
		}
		if strings.Contains(k+"/", "/"+org+"/") || strings.HasSuffix(k, "-"+org) || strings.Contains(k, fmt.Sprintf("slots/%d/", network)) {
			out = append(out, k)
		}
	}
	return out
}

// Fly.io 2024-06: a delete by prefix took the wrong host with it. Here org "a"
// goes, with more in it than fits one transaction, and org "ab" keeps all it has;
// so does host "h1" when "h" goes.
func TestFly202406RemovalTakesNothingElse(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	ctx := t.Context()
	for _, name := range []string{"h", "h1"} {
		host(t, s, name)
	}
	for _, name := range []string{"a", "ab"} {
		fill(t, s, name, "h", 70, 35)
		for i := range 3 {
			machine(t, s, name, "web", fmt.Sprint("other", i), "h1")
		}
	}
	both := token(t, s, mesh.Token{ID: "both", Kind: mesh.KindHost, Orgs: []string{"a", "ab"}, Uses: 2})
	must(s.EnrollHost(ctx, hostSpec("limited"), both))(t)
	state := s.State()
	a, _ := state.Orgs.Get("a")
	ab, _ := state.Orgs.Get("ab")
	keep := belongs(t, s, "ab", ab.Network)
	keys := len(keysBelow(t, s, "keys/"))

	state = mirroredAt(t, s, done(s.RemoveOrg(ctx, "test", "a"))(t))
	if left := belongs(t, s, "a", a.Network); len(left) > 0 {
		t.Errorf("left of a: %q", left)
	}
	if diff := cmp.Diff(keep, belongs(t, s, "ab", ab.Network)); diff != "" {
		t.Errorf("ab (-before +after):\n%s", diff)
	}
	if got := len(keysBelow(t, s, "keys/")); got != keys-2*35 {
		t.Errorf("%d keys, want %d: two fewer for each client of a", got, keys-2*35)
	}
	// A later org called a must not find hosts and tokens that were for this one.
	eventually(t, s, "nobody names a", func(state mesh.State) bool {
		limited, _ := state.Hosts.Get("limited")
		both, _ := state.Tokens.Get("both")
		return !limited.MayCarry("a") && limited.MayCarry("ab") && len(both.Orgs) == 1 && !state.Tokens.Has("for-a")
	})
	if again := org(t, s, "a"); again.Network == a.Network {
		t.Errorf("the network of the removed org was given again")
	}

	rev := done(s.RemoveHost(ctx, "test", "h"))(t)
	state = mirroredAt(t, s, rev)
	if got := state.MachinesOn("h"); len(got) > 0 {
		t.Errorf("%d machines on a host that is gone", len(got))
	}
	if got := state.MachinesOn("h1"); len(got) != 3 {
		t.Errorf("%d machines on h1, want 3", len(got))
	}
	if n := len(state.ClientsAt("h1")) + len(state.ClientsAt("limited")); n != 35 {
		t.Errorf("%d clients of h found another gateway, want 35", n)
	}
	if left := keysBelow(t, s, keyRemoving); len(left) > 0 {
		t.Errorf("removal not complete: %q", left)
	}
}

func TestOrgIsCutOffAtOnce(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	ctx := t.Context()
	host(t, s, "h")
	fill(t, s, "acme", "h", 2, 2)
	// A removal that got no further than its tombstone.
	tombstone(t, s, "acme")
	eventually(t, s, "the view is without the org", func(state mesh.State) bool {
		v, there := state.View(mesh.Node{Kind: mesh.KindHost, Name: "h"}, mesh.Deployment{})
		return there && len(v.Orgs)+len(v.Machines)+len(v.Clients)+len(v.Apps) == 0
	})
	for name, err := range map[string]error{
		"machine": third(s.CreateMachine(ctx, "", MachineSpec{Org: "acme", App: "web", Host: "h"})),
		"client":  third(s.CreateClient(ctx, "", ClientSpec{Org: "acme", Name: "x", Key: key("x")})),
		"app":     third(s.CreateApp(ctx, "", mesh.App{Org: "acme", Name: "x"})),
	} {
		// Clean-up may be done by now.
		if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrNotFound) {
			t.Errorf("%s in an org that is being removed: %v", name, err)
		}
	}
}

// tombstone marks an org as RemoveOrg does, and does no more.
func tombstone(t testing.TB, s *Store, name string) {
	t.Helper()
	_, err := s.change(t.Context(), "test", func(ctx context.Context, tx *tx) error {
		o, err := tx.liveOrg(ctx, name)
		o.Tombstone = true
		return errors.Join(err, tx.put(orgKey(name), o))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A controller died in the middle of removals: another one completes them, from
// any point. The point is chosen by a context that ends after so many requests.
func TestInterruptedRemovalsAreCompleted(t *testing.T) {
	t.Parallel()
	for _, steps := range []int{1, 2, 3, 4, 6, 9, 14, 20} {
		t.Run(fmt.Sprint("after-", steps), func(t *testing.T) {
			t.Parallel()
			s := newMesh(t, Config{Timeout: 5 * time.Second})
			host(t, s, "h")
			host(t, s, "h1")
			fill(t, s, "acme", "h", 65, 31)
			fill(t, s, "beta", "h", 65, 31)
			acme := uint64(1)

			dying := again(t, s)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dying.client = dieAfter(dying.client, steps, cancel)
			dying.RemoveOrg(ctx, "test", "acme")
			ctx, cancel = context.WithCancel(t.Context())
			defer cancel()
			dying.client = dieAfter(s.client, steps, cancel)
			dying.RemoveHost(ctx, "test", "h")

			org, there, err := read[mesh.Org](t, s, orgKey("acme"))
			if err != nil {
				t.Fatal(err)
			}
			cut := !there || org.Tombstone
			_, hostThere, err := read[mesh.Host](t, s, hostKey("h"))
			if err != nil {
				t.Fatal(err)
			}
			run(t, s)
			eventually(t, s, "removals are complete", func(state mesh.State) bool {
				return (!cut || !state.Orgs.Has("acme")) && (hostThere || len(state.MachinesOn("h"))+len(state.ClientsAt("h")) == 0)
			})
			if cut {
				if left := belongs(t, s, "acme", acme); len(left) > 0 {
					t.Errorf("left of acme: %q", left)
				}
			}
			state := s.State()
			if _, there := state.Orgs.Get("beta"); !there {
				t.Error("beta is gone")
			}
			wantClients := 31
			if !cut {
				wantClients = 62
			}
			if n := state.Clients.Len(); n != wantClients {
				t.Errorf("%d clients, want %d", n, wantClients)
			}
			if hostThere {
				return
			}
			for k, c := range state.Clients.All() {
				if c.Gateway != "h1" {
					t.Errorf("client %s has gateway %q, want h1", k, c.Gateway)
				}
			}
		})
	}
}

func read[T any](t testing.TB, s *Store, key string) (v T, there bool, err error) {
	_, err = s.change(t.Context(), "", func(ctx context.Context, tx *tx) error {
		v, there, err = get[T](ctx, tx, key)
		return err
	})
	return v, there, err
}

func TestClientsOfARemovedHost(t *testing.T) {
	t.Parallel()
	s := run(t, newMesh(t, Config{}))
	for _, name := range []string{"acme", "beta"} {
		org(t, s, name)
	}
	host(t, s, "both", "acme", "beta")
	host(t, s, "absent", "acme")
	host(t, s, "present", "acme")
	announce(t, s, "present", "controller1")
	eventually(t, s, "presence is mirrored", func(state mesh.State) bool { return state.Presence.Has("present") })
	a, b := client(t, s, "acme", "laptop", "both"), client(t, s, "beta", "laptop", "both")
	state := mirroredAt(t, s, done(s.RemoveHost(t.Context(), "test", "both"))(t))
	eventually(t, s, "clients have moved", func(st mesh.State) bool { state = st; return len(st.ClientsAt("both")) == 0 })
	got, _ := state.Clients.Get("acme/laptop")
	if got.Gateway != "present" || got.Endpoint != a.Endpoint {
		t.Errorf("acme's client: gateway %q at %s, want the host that is present, at %s as before", got.Gateway, got.Endpoint, a.Endpoint)
	}
	got, _ = state.Clients.Get("beta/laptop")
	if got.Gateway != "" || got.Endpoint != b.Endpoint {
		t.Errorf("beta's client: gateway %q, want none: no other host may carry beta", got.Gateway)
	}
	// Gone in one step with its host: presence and key.
	if _, err := s.client.Get(t.Context(), s.root); err != nil {
		t.Fatal(err)
	}
	for _, k := range append(keysBelow(t, s, "presence/both"), keysBelow(t, s, wireguardKey(key("both")))...) {
		t.Errorf("left: %s", k)
	}
	host(t, s, "both2") // and the key is free
}
