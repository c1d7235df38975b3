package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/etcd"
)

// A mesh of 100,000 keys from the etcd inside to three members, by the command; and
// how long a change waits when the leading member stops.
func TestBenchMigrate(t *testing.T) {
	benchmark(t, "ip", "curl")
	const keys = 100_000
	l := newLab(t)
	w, err := world.New(t.Context(), world.Config{Lab: l, Bin: bin(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctl := w.Controllers[0]
	if err := ctl.Process.Stop(); err != nil {
		t.Fatal(err)
	}
	fill(t, filepath.Join(ctl.DataDir, "etcd"), keys)
	e := newEtcd(t, l)
	began := time.Now()
	out, err := w.Migrate(t.Context(), ctl, e)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	_, rest, _ := strings.Cut(out, ": ")
	if n, _ := strconv.Atoi(strings.Fields(rest)[0]); n < keys {
		t.Fatalf("it moved %d keys, want %d: %s", n, keys, out)
	}
	figure("migrate_100k_keys", took.Seconds(), "s", "<= 20")

	if err := w.Run(t.Context(), ctl); err != nil {
		t.Fatal(err)
	}
	for i, stop := range []struct {
		name string
		how  func(*world.EtcdMember) error
	}{{"killed", (*world.EtcdMember).Kill}, {"paused", func(m *world.EtcdMember) error { return m.Process.Pause() }}} {
		leader, _, err := e.Leader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stop.how(leader); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		await(t, "a change", time.Minute, func(ctx context.Context) error {
			_, err := w.Weft(ctx, "org", "create", fmt.Sprintf("org-%d", i))
			return err
		})
		figure("change_after_etcd_leader_"+stop.name, float64(time.Since(began).Milliseconds()), "ms", "<= 10000")
		if stop.name == "killed" {
			if err := leader.Start(); err != nil {
				t.Fatal(err)
			}
			if err := e.Await(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// fill puts keys of the size of a machine's record into the etcd of a controller that
// has ended. No controller knows their kind.
func fill(t *testing.T, dir string, keys int) {
	t.Helper()
	server, err := etcd.Start(t.Context(), etcd.Config{Dir: dir, UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	value := strings.Repeat("x", 250)
	for i := 0; i < keys; i += 100 {
		var ops []clientv3.Op
		for j := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("/weft/bench/acme/machine-%06d", i+j), value))
		}
		if _, err := server.Client().Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
}
