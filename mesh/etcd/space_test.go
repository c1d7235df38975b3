package etcd

import (
	"errors"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Once there is too little space, there must be clearly more before it is enough.
func TestDiskShort(t *testing.T) {
	t.Parallel()
	d := &disk{}
	for i, step := range []struct {
		free           int64
		changed, short bool
	}{
		{1 << 40, false, false}, {diskReserve, false, false}, {diskReserve - 1, true, true},
		{0, false, true}, {diskReserve, false, true}, {diskEnough - 1, false, true}, {diskEnough, true, false},
	} {
		if changed := d.set(step.free); changed != step.changed || d.short.Load() != step.short {
			t.Errorf("step %d, %d bytes free: changed %v, short %v", i, step.free, changed, d.short.Load())
		}
	}
	d.dir = "/does/not/exist"
	if _, err := d.look(); err == nil || !strings.Contains(err.Error(), d.dir) {
		t.Errorf("look: %v", err)
	}
	d.dir = t.TempDir()
	if _, err := d.look(); err != nil || d.free.Load() <= 0 {
		t.Errorf("look: %d bytes free, %v", d.free.Load(), err)
	}
}

// With a disk that is nearly full nothing is written, and everything is read.
func TestFullDiskRefusesWrites(t *testing.T) {
	t.Parallel()
	s := start(t, testConfig(t.TempDir()))
	put(t, s.Client(), "k", "v")
	d := &disk{dir: "/proc"} // it has 0 bytes free
	if changed, err := d.look(); !changed || err != nil {
		t.Fatalf("look: %v, %v", changed, err)
	}
	c := guardedKV{s.Client().KV, d}
	ctx := t.Context()
	has := clientv3.Compare(clientv3.Version("k"), ">", 0)
	write, read := clientv3.OpPut("k", "w"), clientv3.OpGet("k")
	for _, tt := range []struct {
		what    string
		do      func() error
		refused bool
	}{
		{"put", func() error { _, err := c.Put(ctx, "k", "w"); return err }, true},
		{"delete", func() error { _, err := c.Delete(ctx, "k"); return err }, true},
		{"do put", func() error { _, err := c.Do(ctx, write); return err }, true},
		{"do get", func() error { _, err := c.Do(ctx, read); return err }, false},
		{"get", func() error { _, err := c.Get(ctx, "k"); return err }, false},
		{"txn that writes", func() error { _, err := c.Txn(ctx).If(has).Then(write, read).Commit(); return err }, true},
		{"txn that may write", func() error { _, err := c.Txn(ctx).If(has).Then(read).Else(write).Commit(); return err }, true},
		{"txn that reads", func() error { _, err := c.Txn(ctx).If(has).Then(read).Commit(); return err }, false},
	} {
		err := tt.do()
		if tt.refused != errors.Is(err, rpctypes.ErrNoSpace) || !tt.refused && err != nil {
			t.Errorf("%s: %v, want it refused: %v", tt.what, err, tt.refused)
		}
		if tt.refused && err != nil && !strings.Contains(err.Error(), "/proc has 0 MB left") {
			t.Errorf("%s: %v, want the disk named", tt.what, err)
		}
	}
	if got := get(t, s.Client(), "k"); got != "v" {
		t.Errorf("k = %q, want v", got)
	}
}
