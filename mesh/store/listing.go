package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// listing is everything that State holds, as stored, at one revision.
type listing struct {
	revision int64
	cluster  uint64
	kvs      []*mvccpb.KeyValue // the mesh record first
}

// listTimeout bounds the reading of everything.
const listTimeout = 30 * time.Second

// listAll reads all kinds in one request, so at one revision. In pages it would
// take several times as long.
func (s *Store) listAll(ctx context.Context) (listing, error) {
	ops := make([]clientv3.Op, len(mirrored))
	for i, kind := range mirrored {
		if strings.HasSuffix(kind, "/") {
			ops[i] = clientv3.OpGet(s.root+kind, clientv3.WithPrefix())
		} else {
			ops[i] = clientv3.OpGet(s.root + kind)
		}
	}
	r, err := s.commitWithin(ctx, max(s.config.Timeout, listTimeout), nil, ops)
	if err != nil {
		return listing{}, fmt.Errorf("list: %w", err)
	}
	l := listing{revision: r.Header.Revision, cluster: r.Header.ClusterId}
	for _, part := range r.Responses {
		l.kvs = append(l.kvs, part.GetResponseRange().Kvs...)
	}
	return l, nil
}

// relist brings the mirror to a new list by the difference, in one step.
func (s *Store) relist(ctx context.Context) error {
	m := &s.mirror
	found, err := s.listAll(ctx)
	if err != nil {
		return err
	}
	before := s.State()
	epoch, there := found.epoch(s.root)
	if !there && before.Mesh.Plan.IsValid() {
		// etcd was emptied, or a backup is being restored: what is there, if anything,
		// is not all.
		return fmt.Errorf("%w: there is no mesh at %s any more", ErrUnavailable, s.root)
	}
	if found.revision < m.known || epoch != before.Revision.Epoch {
		for key := range m.revs {
			m.revs[key] = -1 // revisions of another history say nothing
		}
	}
	state, keys := s.difference(before, found, m.revs)
	m.cluster = found.cluster
	var steps []mesh.Step
	if len(keys) > 0 {
		steps = []mesh.Step{{Before: before, After: state, Keys: keys, Merged: true}}
	}
	m.publish(state, found.revision, steps)
	if !m.isReady() {
		close(m.ready)
	}
	return nil
}

// epoch is that of the mesh in a listing; ok is false if there is none.
func (l listing) epoch(root string) (epoch uint32, ok bool) {
	for _, kv := range l.kvs {
		if string(kv.Key) != root+keyMesh {
			continue
		}
		var m struct {
			Epoch uint32 `json:"epoch"`
		}
		return m.Epoch, json.Unmarshal(kv.Value, &m) == nil
	}
	return 0, false
}

// difference applies to state what a listing has and state has not: what changed
// by its revision (revs, which is brought up to date), and what is gone. keys are
// those of all that changed.
func (s *Store) difference(state mesh.State, found listing, revs map[string]int64) (_ mesh.State, keys []string) {
	there := make(map[string]bool, len(found.kvs))
	var changes []mesh.Change
	for _, kv := range found.kvs {
		key := strings.TrimPrefix(string(kv.Key), s.root)
		there[key] = true
		if rev, held := revs[key]; held && rev == kv.ModRevision {
			continue
		}
		if c, ok := s.decoded(key, kv, state); ok {
			revs[key] = kv.ModRevision
			changes = append(changes, c)
		}
	}
	for key := range revs {
		if !there[key] {
			delete(revs, key)
			changes = append(changes, mesh.Change{Key: key})
		}
	}
	state = state.With(changes...)
	state.Revision.Revision = found.revision
	return state, keysOf(changes)
}
