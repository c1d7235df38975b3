package etcd

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// A server that cannot write what it has agreed to ends at once, and cannot start
// before there is space again. So writes are refused while there is still some: etcd
// wants to set a new log segment aside (64 MB), and beside it the database grows.
const (
	diskReserve = 128 << 20 // free bytes below which nothing is written
	diskEnough  = 160 << 20 // free bytes from which on it is again
	diskEvery   = 500 * time.Millisecond
)

// disk knows whether the file system of the data directory has space.
type disk struct {
	dir   string
	short atomic.Bool
	free  atomic.Int64
}

// look asks the file system. changed says that short is another one than before.
func (d *disk) look() (changed bool, err error) {
	free, err := freeSpace(d.dir)
	if err != nil {
		return false, err
	}
	d.free.Store(free)
	return d.set(free), nil
}

// freeSpace is how many bytes can be written to the file system of dir.
func freeSpace(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}

func (d *disk) set(free int64) (changed bool) {
	short := d.short.Load()
	now := free < diskReserve || short && free < diskEnough
	d.short.Store(now)
	return now != short
}

// refusal is nil as long as there is space to write. It wraps etcd's own NOSPACE.
func (d *disk) refusal() error {
	if !d.short.Load() {
		return nil
	}
	return fmt.Errorf("%w: the disk with %s has %d MB left, and etcd needs %d; make space there", rpctypes.ErrNoSpace, d.dir, d.free.Load()>>20, int64(diskEnough)>>20)
}

// watchDisk looks at the file system until ctx ends.
func (s *Server) watchDisk(ctx context.Context) {
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	failed := false
	for {
		changed, err := s.disk.look()
		if err != nil && !failed {
			s.log.Warn("watch the disk", "err", err)
		}
		failed = err != nil
		if free := s.disk.free.Load() >> 20; changed && s.disk.short.Load() {
			s.log.Error("the disk is nearly full; nothing is written to etcd until there is space", "dir", s.disk.dir, "free_mb", free, "need_mb", int64(diskEnough)>>20)
		} else if changed {
			s.log.Info("the disk has space again", "dir", s.disk.dir, "free_mb", free)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// guardedKV refuses what would write while the disk is short. Reads go through.
type guardedKV struct {
	clientv3.KV
	disk *disk
}

func (g guardedKV) Put(ctx context.Context, key, val string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	if err := g.disk.refusal(); err != nil {
		return nil, err
	}
	return g.KV.Put(ctx, key, val, opts...)
}

func (g guardedKV) Delete(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	if err := g.disk.refusal(); err != nil {
		return nil, err
	}
	return g.KV.Delete(ctx, key, opts...)
}

func (g guardedKV) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	if err := g.disk.refusal(); err != nil && !op.IsGet() {
		return clientv3.OpResponse{}, err
	}
	return g.KV.Do(ctx, op)
}

func (g guardedKV) Txn(ctx context.Context) clientv3.Txn {
	return &guardedTxn{Txn: g.KV.Txn(ctx), disk: g.disk}
}

// guardedTxn is for one goroutine, as a transaction is.
type guardedTxn struct {
	clientv3.Txn
	disk   *disk
	writes bool
}

func (t *guardedTxn) If(c ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(c...); return t }

func (t *guardedTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.note(ops)
	t.Txn = t.Txn.Then(ops...)
	return t
}

func (t *guardedTxn) Else(ops ...clientv3.Op) clientv3.Txn {
	t.note(ops)
	t.Txn = t.Txn.Else(ops...)
	return t
}

func (t *guardedTxn) note(ops []clientv3.Op) {
	for _, op := range ops {
		t.writes = t.writes || !op.IsGet()
	}
}

func (t *guardedTxn) Commit() (*clientv3.TxnResponse, error) {
	if err := t.disk.refusal(); err != nil && t.writes {
		return nil, err
	}
	return t.Txn.Commit()
}
