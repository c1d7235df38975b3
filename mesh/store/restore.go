package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/backup"
)

// Restored says what a restore has done.
type Restored struct {
	Mesh   mesh.Mesh // as it is now
	Keys   int       // that were put back
	Tokens int       // that were not
}

// restoreBytes bounds a transaction: etcd takes 1.5 MiB.
const restoreBytes = 1 << 20

// restoring is the mark of a restore that is not complete.
type restoring struct {
	Backup string    `json:"backup"` // SHA-256
	Begun  time.Time `json:"begun"`
}

// restore is one under way.
type restore struct {
	s     *Store
	guard clientv3.Cmp // the mark is still ours
	ops   []clientv3.Op
	size  int
	keys  int
	token int
}

// Restore puts a backup back where there is no mesh, and nothing else below the
// root: a new etcd, or what an earlier Restore that did not end has left. from reads
// what CheckBackup has read. Until the end there is no mesh record, so no controller
// takes what is there for a mesh.
//
// What was given or used up since the backup is not given again: see Restorable.
func (s *Store) Restore(ctx context.Context, b *Restorable, from io.Reader) (Restored, error) {
	out, err := s.restore(ctx, b, from)
	if err != nil {
		return out, fmt.Errorf("restore the mesh at %s: %w", s.root, err)
	}
	return out, nil
}

func (s *Store) restore(ctx context.Context, b *Restorable, from io.Reader) (Restored, error) {
	in, err := backup.NewReader(from)
	if err != nil {
		return Restored{}, err
	}
	guard, err := s.beginRestore(ctx, b)
	if err != nil {
		return Restored{}, err
	}
	w := &restore{s: s, guard: guard}
	if err := w.clear(ctx); err != nil {
		return Restored{}, err
	}
	now := s.now()
	for {
		record, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = w.put(ctx, b, record, now)
		}
		if err != nil {
			return Restored{}, err
		}
	}
	if got := in.Summary().SHA256; got != b.SHA256 {
		return Restored{}, fmt.Errorf("%w: it was another one when it was checked", backup.ErrDamaged)
	}
	return w.finish(ctx, b, now)
}

// beginRestore takes hold of a root without a mesh.
func (s *Store) beginRestore(ctx context.Context, b *Restorable) (guard clientv3.Cmp, err error) {
	rev, err := s.change(ctx, "", func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, keyMesh, keyRestoring); err != nil {
			return err
		}
		if t.seen[keyMesh] != nil {
			return mesh.WithHint(fmt.Errorf("%w: there is a mesh already", ErrExists),
				"a backup is restored to a new data directory, or to an etcd cluster that holds no mesh")
		}
		if t.seen[keyRestoring] == nil {
			if err := s.mustBeEmpty(ctx, t); err != nil {
				return err
			}
		}
		return t.put(keyRestoring, restoring{b.SHA256, s.now()})
	})
	return clientv3.Compare(clientv3.ModRevision(s.root+keyRestoring), "=", rev), err
}

// halfRestored says why there is no mesh, and why there must not be another one.
func (s *Store) halfRestored() error {
	return mesh.WithHint(fmt.Errorf("%w: at %s a backup is being restored, or a restore was interrupted", ErrConflict, s.root),
		"wait for it to end, or begin it again: weft-controller restore --file FILE")
}

// mustBeEmpty refuses a root that holds anything of anybody. Controllers that go on
// while there is no etcd may have told already that their hosts are there.
func (s *Store) mustBeEmpty(ctx context.Context, t *tx) error {
	for _, r := range s.beside(passing...) {
		found, err := t.read(ctx, clientv3.OpGet(r[0], clientv3.WithRange(r[1]), clientv3.WithLimit(1), clientv3.WithKeysOnly()))
		if err != nil {
			return err
		}
		if len(found[0].Kvs) > 0 {
			return mesh.WithHint(fmt.Errorf("%w: there is no mesh, but there are other keys, such as %s", ErrConflict, found[0].Kvs[0].Key),
				"choose another etcd or another --etcd-root; or, if these are of no use: etcdctl del --prefix %s", s.root)
		}
	}
	return nil
}

// beside are the ranges of all keys below the root but for those of kinds, which
// are in order.
func (s *Store) beside(kinds ...string) (ranges [][2]string) {
	from := s.root
	for _, kind := range kinds {
		ranges = append(ranges, [2]string{from, s.root + kind})
		from = clientv3.GetPrefixRangeEnd(s.root + kind)
	}
	return append(ranges, [2]string{from, clientv3.GetPrefixRangeEnd(s.root)})
}

// clear removes what an earlier attempt has left.
func (w *restore) clear(ctx context.Context) error {
	for _, r := range w.s.beside(passing...) {
		for from := r[0]; ; {
			found, err := w.s.commit(ctx, nil, []clientv3.Op{
				clientv3.OpGet(from, clientv3.WithRange(r[1]), clientv3.WithLimit(maxOps), clientv3.WithKeysOnly())})
			if err != nil {
				return err
			}
			kvs := found.Responses[0].GetResponseRange().Kvs
			if len(kvs) == 0 {
				break
			}
			for _, kv := range kvs {
				if key := string(kv.Key); key != w.s.root+keyRestoring {
					w.ops = append(w.ops, clientv3.OpDelete(key))
				}
				from = string(kv.Key) + "\x00"
			}
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// put adds what becomes of a record to the transaction that is being made.
func (w *restore) put(ctx context.Context, b *Restorable, record backup.Record, now time.Time) error {
	then, ok, err := b.restored(record, now)
	if err != nil {
		return fmt.Errorf("value of %s: %w", record.Key, err)
	}
	if !ok {
		if strings.HasPrefix(record.Key, keyTokens) {
			w.token++
		}
		return nil
	}
	size := len(w.s.root) + len(then.Key) + len(then.Value)
	if len(w.ops) == maxOps || w.size+size > restoreBytes && len(w.ops) > 0 {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	w.ops = append(w.ops, clientv3.OpPut(w.s.root+then.Key, string(then.Value)))
	w.size += size
	w.keys++
	return nil
}

// flush commits what was collected.
func (w *restore) flush(ctx context.Context) error {
	ops := w.ops
	w.ops, w.size = nil, 0
	if len(ops) == 0 {
		return nil
	}
	r, err := w.s.commit(ctx, []clientv3.Cmp{w.guard}, ops)
	if err == nil && !r.Succeeded {
		err = fmt.Errorf("%w: another restore to the same place runs", ErrConflict)
	}
	return err
}

// finish makes what is there a mesh.
func (w *restore) finish(ctx context.Context, b *Restorable, now time.Time) (Restored, error) {
	if err := w.flush(ctx); err != nil {
		return Restored{}, err
	}
	records, m, err := b.last(now)
	if err != nil {
		return Restored{}, err
	}
	id, err := w.s.draw(4)
	if err != nil {
		return Restored{}, err
	}
	e := mesh.Event{ID: now.Format(auditTime) + "-" + id, Time: now, Actor: "restore", Action: "mesh.restore", Target: m.Plan.String(),
		Note: fmt.Sprintf("backup of %s, revision %d.%d", b.Header.Taken.UTC().Format(time.RFC3339), b.Header.Epoch, b.Header.At)}
	text, err := json.Marshal(e)
	if err != nil {
		return Restored{}, err
	}
	for _, r := range slices.Concat(records, []backup.Record{{Key: keyAudit + e.ID, Value: text}}) {
		w.ops = append(w.ops, clientv3.OpPut(w.s.root+r.Key, string(r.Value)))
		w.keys++
	}
	w.ops = append(w.ops, clientv3.OpDelete(w.s.root+keyRestoring))
	if err := w.flush(ctx); err != nil {
		return Restored{}, err
	}
	return Restored{Mesh: m, Keys: w.keys, Tokens: w.token}, nil
}
