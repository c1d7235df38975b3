package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// recordsFormat is the stored format since which records are known. An org that a
// controller of an older one removes keeps its records.
const recordsFormat = 3

// CreateRecord creates one of an org's own records: all values of a type at a name.
func (s *Store) CreateRecord(ctx context.Context, actor string, r mesh.Record) (made mesh.Record, rev int64, err error) {
	return s.putRecord(ctx, actor, r, false)
}

// SetRecord creates a record, or replaces the one of its name and type.
func (s *Store) SetRecord(ctx context.Context, actor string, r mesh.Record) (made mesh.Record, rev int64, err error) {
	return s.putRecord(ctx, actor, r, true)
}

func (s *Store) putRecord(ctx context.Context, actor string, r mesh.Record, replace bool) (made mesh.Record, rev int64, err error) {
	if r, err = r.Canonical(); err != nil {
		return made, 0, invalid(err)
	}
	key := recordKey(r.Org, r.Name, r.Type)
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		keys := []string{keyMesh, orgKey(r.Org), key, recordKey(r.Org, r.Name, mesh.RecordAlias)}
		if mesh.CheckName("app", r.App()) == nil {
			keys = append(keys, appKey(r.Org, r.App()))
		}
		if err := t.fetch(ctx, keys...); err != nil {
			return err
		}
		org, err := t.liveOrg(ctx, r.Org)
		if err != nil {
			return err
		}
		if err := t.mayRecord(ctx, r); err != nil {
			return err
		}
		action := "record.create"
		if old, there, err := get[mesh.Record](ctx, t, key); err != nil {
			return err
		} else if there {
			if !replace {
				return mesh.WithHint(ErrExists, "to replace it: weft record set --org %s %s %s VALUE...", r.Org, r.Name, r.Type)
			}
			if old.TTL == r.TTL && slices.Equal(old.Values, r.Values) {
				return nil
			}
			action = "record.set"
		} else if err := t.room(ctx, org, kindRecords); err != nil {
			return err
		}
		return errors.Join(t.put(key, r), t.event(action, r.Org+"/"+r.Name+"/"+r.Type, strings.Join(r.Values, ", ")))
	})
	return result(r, rev, err, "record %s %s of org %s", r.Name, r.Type, r.Org)
}

// mayRecord reports what else has the name of a record.
func (t *tx) mayRecord(ctx context.Context, r mesh.Record) error {
	if m, _, err := get[mesh.Mesh](ctx, t, keyMesh); err != nil {
		return err
	} else if m.Schema < recordsFormat {
		return mesh.WithHint(fmt.Errorf("%w: some controllers do not know records yet", ErrConflict), "upgrade all controllers, and try again")
	}
	if t.seen[appKey(r.Org, r.App())] != nil {
		return mesh.WithHint(fmt.Errorf("%w: %s is an app, and the names under it are its own", ErrConflict, r.App()),
			"choose another name; what %s.internal answers: weft app set --org %s %s --answer near|all|N", r.App(), r.Org, r.App())
	}
	if r.Type != mesh.RecordAlias && t.seen[recordKey(r.Org, r.Name, mesh.RecordAlias)] == nil {
		return nil
	}
	// An alias stands alone. Two that come at once see each other by this.
	if err := t.alone(ctx, "records/"+r.Org+"/"+r.Name); err != nil {
		return err
	}
	prefix := recordKey(r.Org, r.Name, "")
	found, err := t.read(ctx, clientv3.OpGet(t.s.root+prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly()))
	if err != nil {
		return err
	}
	t.unchanged(prefix, found[0].Header.Revision)
	for _, kv := range found[0].Kvs {
		if kind := strings.TrimPrefix(string(kv.Key), t.s.root+prefix); kind != r.Type {
			return mesh.WithHint(fmt.Errorf("%w: it has a record of type %s, and an alias stands alone", ErrConflict, kind),
				"remove that one first: weft record remove --org %s %s %s", r.Org, r.Name, kind)
		}
	}
	return nil
}

// RemoveRecord removes the record of a name and a type; of type "" all of the name.
func (s *Store) RemoveRecord(ctx context.Context, actor, org, name, kind string) (rev int64, err error) {
	what := name
	if kind != "" {
		if kind, err = mesh.RecordType(kind); err != nil {
			return 0, invalid(err)
		}
		what += " " + kind
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		prefix := recordKey(org, name, "")
		found, err := t.read(ctx, clientv3.OpGet(t.s.root+prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly()))
		if err != nil {
			return err
		}
		gone := 0
		for _, kv := range found[0].Kvs {
			key := strings.TrimPrefix(string(kv.Key), s.root)
			if kind != "" && key != prefix+kind {
				continue
			}
			gone++
			t.seen[key] = kv
			t.delete(key)
		}
		if gone == 0 {
			return ErrNotFound
		}
		return t.event("record.remove", strings.TrimSuffix(org+"/"+name+"/"+kind, "/"), "")
	})
	return removed(rev, err, "remove record %s of org %s", what, org)
}
