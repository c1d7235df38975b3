package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/weftmesh/weft/mesh"
)

// Migrated says what a migration has moved.
type Migrated struct {
	Mesh    mesh.Mesh // as it is in the target, with the new epoch
	Keys    int       // that were copied, the mesh record included
	Already bool      // an earlier one was complete; nothing was copied now
}

// keyMigrating marks the target of a migration that is not complete: what is there
// is a part of a mesh, which no controller can take for a mesh, for the mesh record
// comes last.
const keyMigrating = "migrating"

// Limits of a migration's requests: etcd takes 128 operations and 1.5 MiB.
const (
	migratePage  = 2000    // keys read at once
	migrateBytes = 1 << 20 // in one transaction
	migrateLanes = 8
)

// ErrNotEmpty says that the target of a migration holds something else.
var ErrNotEmpty = errors.New("not empty")

// Migrate copies the mesh of s, on whose etcd nothing else may work meanwhile, to
// the same root of another etcd, which must hold nothing there, or what an earlier
// attempt at this left. Presence and candidacies stay behind.
// The mesh record is put last, when all else has been compared, and with a higher
// epoch: every node then takes a new snapshot.
func (s *Store) Migrate(ctx context.Context, to *clientv3.Client) (Migrated, error) {
	target, err := New(Config{Client: to, Root: s.root, Log: s.log, Now: s.config.Now, Rand: s.config.Rand, Timeout: max(s.config.Timeout, 10*time.Second), Schema: s.config.Schema})
	if err != nil {
		return Migrated{}, err
	}
	m := &migration{from: s, to: target, lanes: migrateLanes}
	out, err := m.run(ctx)
	if err != nil {
		return out, fmt.Errorf("migrate: %w", err)
	}
	return out, nil
}

type migration struct {
	from, to *Store
	lanes    int // transactions under way
	mesh     mesh.Mesh
	record   []byte // the mesh record as stored
	rev      int64  // of the source
	mark     migrating
	guard    clientv3.Cmp // the target's mark is still ours
}

// migrating is the mark in the target.
type migrating struct {
	Identity string    `json:"identity"` // of the mesh: two with the same are the same
	Started  time.Time `json:"started"`
}

func (m *migration) run(ctx context.Context) (Migrated, error) {
	if err := m.open(ctx); err != nil {
		return Migrated{}, err
	}
	already, err := m.begin(ctx)
	if err != nil || already != nil {
		return Migrated{Mesh: deref(already), Already: already != nil}, err
	}
	if err := m.copy(ctx); err != nil {
		return Migrated{}, err
	}
	keys, err := m.compare(ctx)
	if err != nil {
		return Migrated{}, err
	}
	moved, err := m.finish(ctx)
	return Migrated{Mesh: moved, Keys: keys + 1}, err
}

func deref(m *mesh.Mesh) mesh.Mesh {
	if m == nil {
		return mesh.Mesh{}
	}
	return *m
}

// open reads what is to be moved.
func (m *migration) open(ctx context.Context) error {
	r, err := m.from.commit(ctx, nil, []clientv3.Op{
		clientv3.OpGet(m.from.root + keyMesh), clientv3.OpGet(m.from.root+keyCAs, clientv3.WithPrefix()),
	})
	if err != nil {
		return fmt.Errorf("read the mesh: %w", err)
	}
	record := r.Responses[0].GetResponseRange().Kvs
	if len(record) == 0 {
		return fmt.Errorf("mesh at %s: %w", m.from.root, ErrNotFound)
	}
	m.record, m.rev = record[0].Value, r.Header.Revision
	if m.mesh, err = m.from.decodeMesh(m.record); err != nil {
		return err
	}
	m.mark = migrating{Identity: identity(m.mesh, r.Responses[1].GetResponseRange().Kvs), Started: m.from.now()}
	return nil
}

// identity tells meshes apart: by their prefix and their certificate authorities.
func identity(m mesh.Mesh, cas []*mvccpb.KeyValue) string {
	h := sha256.New()
	fmt.Fprintln(h, m.Plan, m.Created.UTC())
	for _, kv := range cas {
		var ca CARecord
		if json.Unmarshal(kv.Value, &ca) == nil {
			h.Write(ca.Certificate)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// begin marks the target, if it is empty or holds a part of this mesh. It returns
// the mesh of a target that holds all of it.
func (m *migration) begin(ctx context.Context) (already *mesh.Mesh, err error) {
	text, err := json.Marshal(m.mark)
	if err != nil {
		return nil, err
	}
	key := m.to.root + keyMigrating
	empty := clientv3.Compare(clientv3.CreateRevision(m.to.root), "=", 0).WithPrefix()
	put := clientv3.OpPut(key, string(text))
	r, err := m.to.commit(ctx, []clientv3.Cmp{empty}, []clientv3.Op{put})
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	if !r.Succeeded {
		before, err := m.to.commit(ctx, nil, []clientv3.Op{
			clientv3.OpGet(key), clientv3.OpGet(m.to.root + keyMesh), clientv3.OpGet(m.to.root+keyCAs, clientv3.WithPrefix()),
		})
		if err != nil {
			return nil, fmt.Errorf("begin: %w", err)
		}
		mark, record := before.Responses[0].GetResponseRange().Kvs, before.Responses[1].GetResponseRange().Kvs
		if already := m.complete(record, before.Responses[2].GetResponseRange().Kvs); already != nil && len(mark) == 0 {
			return already, nil
		}
		if err := m.check(mark, record); err != nil {
			return nil, err
		}
		if r, err = m.again(ctx, mark[0].ModRevision, put); err != nil {
			return nil, err
		}
	}
	m.guard = clientv3.Compare(clientv3.ModRevision(key), "=", r.Header.Revision)
	return nil, nil
}

// again begins anew where an earlier attempt was interrupted. The mesh may have
// changed since, so what that has put goes. It loses its guard, should it still run.
func (m *migration) again(ctx context.Context, mark int64, put clientv3.Op) (*clientv3.TxnResponse, error) {
	key := m.to.root + keyMigrating
	r, err := m.to.commit(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", mark)}, []clientv3.Op{
		clientv3.OpDelete(m.to.root, clientv3.WithRange(key)),
		put,
		clientv3.OpDelete(key+"\x00", clientv3.WithRange(clientv3.GetPrefixRangeEnd(m.to.root))),
	})
	if err != nil {
		return nil, fmt.Errorf("begin again: %w", err)
	}
	if !r.Succeeded {
		return nil, errOtherMigration
	}
	m.from.log.Info("an interrupted migration begins anew")
	return r, nil
}

var errOtherMigration = fmt.Errorf("%w: another migration to the same place runs", ErrConflict)

// complete returns the mesh in the target if it is this one, after its move.
func (m *migration) complete(record, cas []*mvccpb.KeyValue) *mesh.Mesh {
	if len(record) == 0 {
		return nil
	}
	there, err := m.to.decodeMesh(record[0].Value)
	if err != nil || there.Epoch <= m.mesh.Epoch || identity(there, cas) != m.mark.Identity {
		return nil
	}
	return &there
}

// check refuses a target that is not empty and not of this migration.
func (m *migration) check(mark, record []*mvccpb.KeyValue) error {
	what := fmt.Sprintf("there are keys below %s", m.to.root)
	var earlier migrating
	switch {
	case len(record) > 0:
		what = fmt.Sprintf("there is a mesh at %s", m.to.root)
	case len(mark) > 0 && json.Unmarshal(mark[0].Value, &earlier) == nil:
		if earlier.Identity == m.mark.Identity {
			return nil
		}
		what = fmt.Sprintf("at %s is a part of another mesh, whose migration was begun on %s and not completed", m.to.root, earlier.Started.Format(time.RFC3339))
	}
	return mesh.WithHint(fmt.Errorf("the target is %w: %s", ErrNotEmpty, what),
		"choose another etcd, or, if that is of no use any more: etcdctl del --prefix %s", m.to.root)
}

// moves reports whether a key below the root is copied. The mesh record is, too,
// but last.
func moves(key string) bool {
	return key != keyMesh && key != keyMigrating && !strings.HasPrefix(key, "presence/") && !strings.HasPrefix(key, keyElection)
}

// copy puts everything but the mesh record.
func (m *migration) copy(ctx context.Context) error {
	lanes, ctx := errgroup.WithContext(ctx)
	lanes.SetLimit(m.lanes)
	var ops []clientv3.Op
	size := 0
	flush := func() {
		batch := ops
		ops, size = nil, 0
		lanes.Go(func() error { return m.commit(ctx, batch) })
	}
	err := m.from.walk(ctx, m.rev, func(key string, kv *mvccpb.KeyValue) error {
		if !moves(key) {
			return nil
		}
		if n := len(kv.Key) + len(kv.Value); len(ops) == maxOps || size+n > migrateBytes && len(ops) > 0 {
			flush()
		}
		ops = append(ops, clientv3.OpPut(m.to.root+key, string(kv.Value)))
		size += len(kv.Key) + len(kv.Value)
		return nil
	})
	if len(ops) > 0 && err == nil {
		flush()
	}
	if failed := lanes.Wait(); failed != nil {
		return failed // and err only says that the reading was ended for it
	}
	return err
}

func (m *migration) commit(ctx context.Context, ops []clientv3.Op) error {
	r, err := m.to.commit(ctx, []clientv3.Cmp{m.guard}, ops)
	if err != nil {
		return err
	}
	if !r.Succeeded {
		return errOtherMigration
	}
	return nil
}

// walk calls each for everything below the root, in the order of the keys, as it was
// at a revision.
func (s *Store) walk(ctx context.Context, rev int64, each func(key string, kv *mvccpb.KeyValue) error) error {
	end := clientv3.GetPrefixRangeEnd(s.root)
	for from := s.root; ; {
		r, err := s.commit(ctx, nil, []clientv3.Op{
			clientv3.OpGet(from, clientv3.WithRange(end), clientv3.WithLimit(migratePage), clientv3.WithRev(rev)),
		})
		if err != nil {
			return fmt.Errorf("read %s: %w", from, err)
		}
		found := r.Responses[0].GetResponseRange()
		for _, kv := range found.Kvs {
			if err := each(strings.TrimPrefix(string(kv.Key), s.root), kv); err != nil {
				return err
			}
		}
		if !found.More {
			return nil
		}
		from = string(found.Kvs[len(found.Kvs)-1].Key) + "\x00"
	}
}

// compare returns how many keys both sides hold, or an error if one has what the
// other has not.
func (m *migration) compare(ctx context.Context) (keys int, err error) {
	r, err := m.to.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(m.to.root + keyMigrating)})
	if err != nil {
		return 0, err
	}
	copied := make(map[string][]byte)
	err = m.to.walk(ctx, r.Header.Revision, func(key string, kv *mvccpb.KeyValue) error {
		if key != keyMigrating {
			copied[key] = kv.Value
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	err = m.from.walk(ctx, m.rev, func(key string, kv *mvccpb.KeyValue) error {
		if !moves(key) {
			return nil
		}
		value, there := copied[key]
		if !there || !bytes.Equal(value, kv.Value) {
			return fmt.Errorf("%w: the copy of %s is not what it should be", ErrConflict, key)
		}
		delete(copied, key)
		keys++
		return nil
	})
	if err != nil {
		return 0, err
	}
	for key := range copied {
		return 0, fmt.Errorf("%w: the target has %s (and %d more), and the source has not", ErrConflict, key, len(copied)-1)
	}
	return keys, nil
}

// finish makes the copy a mesh.
func (m *migration) finish(ctx context.Context) (mesh.Mesh, error) {
	moved := m.mesh
	moved.Epoch = nextEpoch(m.mesh.Epoch, m.from.now())
	text, err := encode(m.record, moved)
	if err != nil {
		return moved, err
	}
	err = m.commit(ctx, []clientv3.Op{
		clientv3.OpPut(m.to.root+keyMesh, string(text)), clientv3.OpDelete(m.to.root + keyMigrating),
	})
	return moved, err
}

// nextEpoch is the epoch of a mesh after a restore or a migration: later than any
// that it ever had, also one that a backup does not know of.
func nextEpoch(old uint32, now time.Time) uint32 {
	return max(old+1, uint32(min(now.Unix(), 1<<32-1)))
}
