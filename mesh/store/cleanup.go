package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// The clean-up of an org or a host that is already cut off. Every transaction of
// it compares that the tombstone is still the one it began with, deletes exact
// keys, and holds at most maxOps operations; it can stop after any of them and be
// taken up by any controller.

const (
	cleanEvery = 10 * time.Second // between looks for removals that were interrupted
	trimEvery  = time.Hour        // between looks at the audit log and old tokens
	page       = 30               // objects in one transaction: at most four operations each
	tokenGrace = 24 * time.Hour   // how long a token that expired is still listed
)

// keepClean completes removals that were interrupted, until ctx ends.
func (s *Store) keepClean(ctx context.Context) {
	tick := time.NewTicker(cleanEvery)
	defer tick.Stop()
	select {
	case <-s.Ready():
	case <-ctx.Done():
		return
	}
	for {
		s.resume(ctx)
		select {
		case <-tick.C:
		case <-s.cleaning:
		case <-ctx.Done():
			return
		}
	}
}

// resume completes every removal that it finds.
func (s *Store) resume(ctx context.Context) {
	for name, org := range s.State().Orgs.All() {
		if org.Tombstone {
			s.finish(ctx, 0, "org", name, s.cleanOrg)
		}
	}
	left, err := s.list(ctx, keyRemoving, 0)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("look for interrupted removals", "err", err)
		}
		return
	}
	for _, kv := range left {
		name := strings.TrimPrefix(string(kv.Key), s.root+keyRemoving)
		s.finish(ctx, 0, "host", name, s.cleanHost)
	}
}

// finish runs a clean-up and returns the last revision of the removal, which
// began at rev. A clean-up that fails is Run's to complete.
func (s *Store) finish(ctx context.Context, rev int64, kind, name string, clean func(context.Context, string) (int64, error)) int64 {
	last, err := clean(ctx, name)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("removal is not complete yet, it will be taken up again", kind, name, "err", err)
	}
	if err != nil {
		select {
		case s.cleaning <- struct{}{}:
		default:
		}
	}
	return max(rev, last)
}

// list returns what is below prefix, which ends in "/"; limit 0 means all.
func (s *Store) list(ctx context.Context, prefix string, limit int64) ([]*mvccpb.KeyValue, error) {
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(s.root+prefix, clientv3.WithPrefix(), clientv3.WithLimit(limit))})
	if err != nil {
		return nil, err
	}
	return r.Responses[0].GetResponseRange().Kvs, nil
}

// sweep is one clean-up under way.
type sweep struct {
	s     *Store
	guard clientv3.Cmp // the tombstone that it began with is still there
	rev   int64        // of the last transaction
}

// errOver says that somebody else has completed the clean-up.
var errOver = errors.New("the removal is complete")

func (w *sweep) commit(ctx context.Context, compares []clientv3.Cmp, ops []clientv3.Op) error {
	r, err := w.s.commit(ctx, append(compares, w.guard), ops)
	if err != nil {
		return err
	}
	if !r.Succeeded {
		return errAgain
	}
	w.rev = r.Header.Revision
	return nil
}

// each walks the objects below prefix in pages until edit has nothing more to do.
// edit says what to do with one object: nothing, or at most four operations. What
// it decided on is compared.
func (w *sweep) each(ctx context.Context, prefix string, edit func(key string, kv *mvccpb.KeyValue) ([]clientv3.Op, error)) error {
	from := w.s.root + prefix
	for attempt := 0; ; {
		r, err := w.s.commit(ctx, nil, []clientv3.Op{
			clientv3.OpGet(from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(w.s.root+prefix)), clientv3.WithLimit(page)),
		})
		if err != nil {
			return err
		}
		kvs := r.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 {
			return nil
		}
		var compares []clientv3.Cmp
		var ops []clientv3.Op
		for _, kv := range kvs {
			edits, err := edit(strings.TrimPrefix(string(kv.Key), w.s.root), kv)
			if err != nil {
				return err
			}
			if len(edits) > 0 {
				compares = append(compares, clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision))
				ops = append(ops, edits...)
			}
		}
		if len(ops) > 0 {
			err := w.commit(ctx, compares, ops)
			if errors.Is(err, errAgain) && attempt < maxAttempts {
				attempt++
				if err := w.still(ctx); err != nil {
					return err
				}
				if err := pause(ctx, attempt); err != nil {
					return err
				}
				continue // with the same page, read anew
			}
			if err != nil {
				return err
			}
		}
		from = string(kvs[len(kvs)-1].Key) + "\x00"
		attempt = 0
	}
}

// still returns errOver if the tombstone is gone.
func (w *sweep) still(ctx context.Context) error {
	r, err := w.s.commit(ctx, []clientv3.Cmp{w.guard}, nil)
	if err == nil && !r.Succeeded {
		return errOver
	}
	return err
}

func deletes(keys ...string) []clientv3.Op {
	ops := make([]clientv3.Op, len(keys))
	for i, k := range keys {
		ops[i] = clientv3.OpDelete(k)
	}
	return ops
}

// drop deletes everything below prefix, key by key.
func (w *sweep) drop(ctx context.Context, prefix string) error {
	return w.each(ctx, prefix, func(key string, _ *mvccpb.KeyValue) ([]clientv3.Op, error) {
		return deletes(w.s.root + key), nil
	})
}

// edit is each for one type: change returns whether to keep the object, and if it
// is kept the object as it should be, or ok false to leave it.
func edit[T any](ctx context.Context, w *sweep, prefix string, change func(v T) (then T, keep, ok bool)) error {
	return w.each(ctx, prefix, func(key string, kv *mvccpb.KeyValue) ([]clientv3.Op, error) {
		object, err := decode(key, kv.Value, w.s.plan())
		v, is := object.(T)
		if err != nil || !is {
			return nil, nil // a newer controller's: the mirror has said so
		}
		then, keep, ok := change(v)
		if !ok {
			return nil, nil
		}
		if !keep {
			return deletes(string(kv.Key)), nil
		}
		text, err := encode(kv.Value, then)
		return []clientv3.Op{clientv3.OpPut(string(kv.Key), string(text))}, err
	})
}

// cleanOrg removes all that is in an org with a tombstone, and the org last.
func (s *Store) cleanOrg(ctx context.Context, name string) (int64, error) {
	unlock, err := s.locks.lock(ctx, "clean/org/"+name)
	if err != nil {
		return 0, err
	}
	defer unlock()
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(s.root + orgKey(name))})
	if err != nil {
		return 0, err
	}
	kvs := r.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return r.Header.Revision, nil
	}
	object, err := decode(orgKey(name), kvs[0].Value, s.plan())
	if err != nil {
		return 0, fmt.Errorf("stored value of %s: %w", orgKey(name), err)
	}
	org := object.(mesh.Org)
	if !org.Tombstone {
		return 0, nil
	}
	key := s.root + orgKey(name)
	w := &sweep{s: s, guard: clientv3.Compare(clientv3.ModRevision(key), "=", kvs[0].ModRevision)}
	if err := w.org(ctx, org); err != nil {
		return w.rev, ignore(err, errOver)
	}
	err = w.commit(ctx, nil, deletes(key))
	if err == nil {
		s.log.Info("org removed", "org", name, "rev", w.rev)
	}
	return w.rev, ignore(err, errAgain) // somebody else was faster
}

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

// org empties an org. What could bring in something new that names it goes first.
func (w *sweep) org(ctx context.Context, org mesh.Org) error {
	without := func(orgs []string) ([]string, bool) {
		left := slices.DeleteFunc(slices.Clone(orgs), func(o string) bool { return o == org.Name })
		return left, len(left) < len(orgs)
	}
	steps := []func() error{
		func() error {
			return edit(ctx, w, keyTokens, func(t mesh.Token) (mesh.Token, bool, bool) {
				if t.Org == org.Name {
					return t, false, true
				}
				left, fewer := without(t.Orgs)
				t.Orgs = left
				return t, len(left) > 0, fewer
			})
		},
		func() error {
			// A later org of the same name must not be carried by the hosts of this one.
			return edit(ctx, w, keyHosts, func(h mesh.Host) (mesh.Host, bool, bool) {
				left, fewer := without(h.Orgs)
				h.Orgs = left
				return h, true, fewer
			})
		},
		func() error {
			return edit(ctx, w, keyOperators, func(o mesh.Operator) (mesh.Operator, bool, bool) {
				return o, false, o.Org == org.Name
			})
		},
		func() error {
			// Of a later org of the same name nothing may be granted yet.
			return edit(ctx, w, keyGrants, func(g mesh.Grant) (mesh.Grant, bool, bool) {
				return g, false, g.From.Org == org.Name || g.To.Org == org.Name
			})
		},
		func() error {
			return w.each(ctx, clientKey(org.Name, ""), func(key string, kv *mvccpb.KeyValue) ([]clientv3.Op, error) {
				object, err := decode(key, kv.Value, w.s.plan())
				c, is := object.(mesh.Client)
				if err != nil || !is {
					return deletes(string(kv.Key)), nil // unreadable, but it goes
				}
				keys := []string{string(kv.Key), w.s.root + wireguardKey(c.Key)}
				if c.TLSKey != "" {
					keys = append(keys, w.s.root+tlsKey(c.TLSKey))
				}
				return deletes(keys...), nil
			})
		},
		func() error { return w.drop(ctx, machineKey(org.Name, "")) },
		func() error { return w.drop(ctx, keyAddresses+org.Name+"/") },
		func() error { return w.drop(ctx, keyHealth+org.Name+"/") },
		func() error { return w.drop(ctx, keyRecords+org.Name+"/") },
		func() error { return w.drop(ctx, appKey(org.Name, "")) },
		// The network is never given again, so neither are its addresses.
		func() error { return w.drop(ctx, fmt.Sprintf("next/slots/%d/", org.Network)) },
		func() error { return w.drop(ctx, fmt.Sprintf("next/resting/slots/%d/", org.Network)) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
