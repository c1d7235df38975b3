package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// everything is all that is below a root, values with their keys.
func everything(t testing.TB, c *clientv3.Client, root string) map[string]string {
	t.Helper()
	r, err := c.Get(t.Context(), root, withPrefix())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range r.Kvs {
		out[strings.TrimPrefix(string(kv.Key), root)] = string(kv.Value)
	}
	return out
}

// full is a mesh with some of everything, on an etcd of its own.
func full(t *testing.T, c Config) *Store {
	t.Helper()
	c.Client = ownServer(t).Client()
	s := newMesh(t, c)
	org(t, s, "acme")
	for _, h := range []string{"h1", "h2"} {
		host(t, s, h)
		if err := s.SaveReport(t.Context(), h, map[string]string{"version": "test"}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 60 {
		machine(t, s, "acme", "web", fmt.Sprintf("m%d", i), fmt.Sprintf("h%d", i%2+1))
	}
	for _, key := range []string{"unknown/kind", "health/acme/m1", presenceKey("h1"), keyElected + "/1", aliveKey("c"), controllerKey("c")} {
		if _, err := s.client.Put(t.Context(), s.root+key, `{"of":"`+key+`"}`); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.client.Put(t.Context(), "/elsewhere", "stays"); err != nil {
		t.Fatal(err)
	}
	return s
}

// crowd puts more than is read at once.
func crowd(t *testing.T, s *Store) {
	t.Helper()
	for i := range migratePage/maxOps + 1 {
		var ops []clientv3.Op
		for j := range maxOps {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%sunknown/many/%d-%d", s.root, i, j), "x"))
		}
		if _, err := s.client.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

// moved is what must be in the target: all but what hangs on leases, and the mesh
// record with its new epoch.
func moved(t testing.TB, s *Store, epoch uint32) map[string]string {
	t.Helper()
	want := everything(t, s.client, s.root)
	for key := range want {
		if strings.HasPrefix(key, "presence/") || strings.HasPrefix(key, "election/") {
			delete(want, key)
		}
	}
	was := fmt.Sprintf(`"epoch":%d`, s.mesh.Load().Epoch)
	if !strings.Contains(want[keyMesh], was) {
		t.Fatalf("the mesh record %s has not %s", want[keyMesh], was)
	}
	want[keyMesh] = strings.Replace(want[keyMesh], was, fmt.Sprintf(`"epoch":%d`, epoch), 1)
	return want
}

func sameKeys(t testing.TB, got, want map[string]string) {
	t.Helper()
	for key, value := range want {
		if there, ok := got[key]; !ok {
			t.Errorf("%s is lost", key)
		} else if there != value {
			t.Errorf("%s is %s, want %s", key, there, value)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("%s came from nowhere", key)
		}
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	now := time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		name         string
		epoch, after uint32
	}{
		{"a first epoch", 1, uint32(now.Unix())},
		{"an epoch of a clock that was ahead", uint32(now.Unix()) + 1000, uint32(now.Unix()) + 1001},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := full(t, Config{Now: func() time.Time { return now }})
			crowd(t, s)
			if tt.epoch != 1 {
				record := strings.Replace(everything(t, s.client, s.root)[keyMesh], `"epoch":1`, fmt.Sprintf(`"rack":"r7","epoch":%d`, tt.epoch), 1)
				if _, err := s.client.Put(t.Context(), s.root+keyMesh, record); err != nil {
					t.Fatal(err)
				}
				if _, _, _, err := s.Load(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			target := ownServer(t).Client()
			got, err := s.Migrate(t.Context(), target)
			if err != nil {
				t.Fatal(err)
			}
			want := moved(t, s, tt.after)
			if got.Keys != len(want) || got.Mesh.Epoch != tt.after || got.Already {
				t.Errorf("it says %+v, want %d keys and epoch %d", got, len(want), tt.after)
			}
			have := everything(t, target, s.root)
			// The fields of a record may change places.
			if !sameJSON(have[keyMesh], want[keyMesh]) {
				t.Errorf("the mesh record is %s, want %s", have[keyMesh], want[keyMesh])
			}
			have[keyMesh] = want[keyMesh]
			sameKeys(t, have, want)

			// The same again finds that nothing is left to do, also once the mesh has lived
			// on in the target.
			there := newStore(t, Config{Client: target, Root: s.root})
			org(t, there, "later")
			if got, err := s.Migrate(t.Context(), target); err != nil || !got.Already || got.Mesh.Epoch != tt.after {
				t.Errorf("again: %+v, %v", got, err)
			}
			if !fresh(t, there).Orgs.Has("later") {
				t.Error("the second migration took back what had happened in the target")
			}
			// And allocation goes on where it was.
			m := machine(t, there, "acme", "web", "new", "h1")
			if key, taken := fresh(t, s).AtEndpoint(m.Endpoint); taken {
				t.Errorf("the new machine has the address of %s", key)
			}
		})
	}
}

func sameJSON(a, b string) bool {
	x, err1 := encode([]byte(a), struct{}{})
	y, err2 := encode([]byte(b), struct{}{})
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func TestMigrateRefusesWhatIsNotEmpty(t *testing.T) {
	t.Parallel()
	s := full(t, Config{})
	other := full(t, Config{Root: s.root})
	for _, tt := range []struct {
		name string
		make func(t *testing.T) *clientv3.Client
		want string
	}{
		{"another mesh", func(*testing.T) *clientv3.Client { return other.client }, "there is a mesh at"},
		{"any key", func(t *testing.T) *clientv3.Client {
			c := ownServer(t).Client()
			c.Put(t.Context(), s.root+"hosts/h1", "{}")
			return c
		}, "there are keys below"},
		{"a part of another mesh", func(t *testing.T) *clientv3.Client {
			c := ownServer(t).Client()
			interrupted(t, other, c, 1)
			return c
		}, "a part of another mesh"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			target := tt.make(t)
			before := everything(t, target, s.root)
			_, err := s.Migrate(t.Context(), target)
			if !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(mesh.HintOf(err), "etcdctl del --prefix "+s.root) {
				t.Errorf("error %v, hint %q", err, mesh.HintOf(err))
			}
			sameKeys(t, everything(t, target, s.root), before)
		})
	}
}

// interrupted is a migration that dies after some of its transactions in the target.
func interrupted(t testing.TB, s *Store, target *clientv3.Client, after int) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := s.Migrate(ctx, dieAfter(target, after, cancel))
	return err != nil
}

// Wherever a migration is interrupted, there is no mesh in the target that a
// controller would serve, and the next attempt makes it whole, also if the source
// has changed meanwhile.
func TestMigrateInterrupted(t *testing.T) {
	t.Parallel()
	s := full(t, Config{})
	target := ownServer(t).Client()
	for n := 1; ; n++ {
		if !interrupted(t, s, target, n) {
			break
		}
		if _, _, found, err := newStore(t, Config{Client: target, Root: s.root}).Load(t.Context()); found || err != nil {
			// Its last transaction was carried out, and only the answer is missing.
			if got, err := s.Migrate(t.Context(), target); err != nil || !got.Already {
				t.Fatalf("interrupted after %d transactions: found %v, and the next attempt says %+v, %v", n, found, got, err)
			}
			break
		}
		done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: fmt.Sprintf("m%d", n)}))(t)
	}
	sameKeys(t, everything(t, target, s.root), moved(t, s, newStore(t, Config{Client: target, Root: s.root}).epoch(t)))
}

func (s *Store) epoch(t testing.TB) uint32 {
	m, _, found, err := s.Load(t.Context())
	if err != nil || !found {
		t.Fatalf("load: %v %v", found, err)
	}
	return m.Epoch
}

// Of two migrations at once to the same place one is completed, whole.
func TestMigrateTwice(t *testing.T) {
	t.Parallel()
	s := full(t, Config{})
	target := ownServer(t).Client()
	errs := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := s.Migrate(t.Context(), target)
			errs <- err
		}()
	}
	failed := 0
	for range 2 {
		if err := <-errs; err != nil {
			failed++
			if !errors.Is(err, ErrConflict) {
				t.Errorf("the slower one: %v", err)
			}
		}
	}
	if failed == 2 {
		t.Fatal("both failed")
	}
	sameKeys(t, everything(t, target, s.root), moved(t, s, newStore(t, Config{Client: target, Root: s.root}).epoch(t)))
}

// An attempt that another one has taken over from does nothing more, least of all
// make a mesh of what is there.
func TestMigrateOvertaken(t *testing.T) {
	t.Parallel()
	s := full(t, Config{})
	for k := 1; ; k++ {
		target, n, overtaken := ownServer(t).Client(), -1, false
		slow := withKV(target, &faultyKV{KV: target.KV, before: func() error {
			if n++; n == k { // one lane or another: the order does not matter
				overtaken = true
				interrupted(t, s, target, 3)
			}
			return nil
		}})
		s := again(t, s)
		m := &migration{from: s, to: newStore(t, Config{Client: slow, Root: s.root}), lanes: 1}
		_, err := m.run(t.Context())
		if !overtaken {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		_, _, found, loaded := newStore(t, Config{Client: target, Root: s.root}).Load(t.Context())
		if !errors.Is(err, ErrConflict) || found || loaded != nil {
			t.Errorf("overtaken at transaction %d: %v; there is a mesh: %v %v", k, err, found, loaded)
		}
	}
}
