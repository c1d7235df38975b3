package store

import (
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// recallLimit bounds the keys that are remembered.
const recallLimit = 1 << 16

// recall is what this Store read or wrote last of keys that many changes plan on.
// It may be outdated: who plans on it compares it.
type recall struct {
	mu    sync.Mutex // guards known
	known map[string]remembered
}

type remembered struct {
	kv     *mvccpb.KeyValue // nil: it is a range, its key ends in "/", and was empty
	object any              // decoded, if it was
}

// worthwhile reports whether a key is one that many changes plan on.
func worthwhile(key string) bool {
	kind, _, _ := strings.Cut(key, "/")
	return kind == "orgs" || kind == "hosts" || kind == "apps" || kind == "next"
}

func (r *recall) get(key string) (m remembered, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok = r.known[key]
	return m, ok
}

// set notes what is at key. That nothing is there is noted of ranges only.
func (r *recall) set(key string, kv *mvccpb.KeyValue, object any) {
	if !worthwhile(key) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if kv == nil && !strings.HasSuffix(key, "/") {
		delete(r.known, key)
		return
	}
	if len(r.known) >= recallLimit {
		clear(r.known)
	}
	r.known[key] = remembered{kv, object}
}

func (r *recall) forget(keys ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range keys {
		delete(r.known, key)
	}
}

// wrote notes what a transaction has done.
func (r *recall) wrote(root string, ops []clientv3.Op, rev int64) {
	for _, op := range ops {
		key := strings.TrimPrefix(string(op.KeyBytes()), root)
		if !worthwhile(key) {
			continue
		}
		if op.IsPut() {
			r.set(key, &mvccpb.KeyValue{Key: op.KeyBytes(), Value: op.ValueBytes(), ModRevision: rev}, nil)
		} else {
			r.forget(key)
		}
	}
}

// decoded returns the object that kv holds. In a batch it may be shared: it is not
// to be changed in place.
func (t *tx) decoded(key string, kv *mvccpb.KeyValue) (any, error) {
	if t.part == nil {
		return decode(key, kv.Value, t.s.plan())
	}
	m, known := t.s.recall.get(key)
	if known = known && m.kv == kv; known && m.object != nil {
		return m.object, nil
	}
	object, err := decode(key, kv.Value, t.s.plan())
	if known && err == nil {
		t.s.recall.set(key, kv, object)
	}
	return object, err
}
