package store

import (
	"context"
	"errors"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// faultyKV is an etcd client whose transactions fail, or are carried out and not
// answered, as a test decides.
type faultyKV struct {
	clientv3.KV
	before func() error // an error: the transaction is not carried out
	after  func() error // an error: it is, and the answer is lost
}

func (f *faultyKV) Txn(ctx context.Context) clientv3.Txn {
	return &faultyTxn{Txn: f.KV.Txn(ctx), kv: f}
}

type faultyTxn struct {
	clientv3.Txn
	kv *faultyKV
}

func (t *faultyTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.Txn = t.Txn.If(c...); return t }
func (t *faultyTxn) Then(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(o...); return t }

func (t *faultyTxn) Commit() (*clientv3.TxnResponse, error) {
	if t.kv.before != nil {
		if err := t.kv.before(); err != nil {
			return nil, err
		}
	}
	r, err := t.Txn.Commit()
	if err == nil && t.kv.after != nil {
		if err := t.kv.after(); err != nil {
			return nil, err
		}
	}
	return r, err
}

// withKV is the client with another KV.
func withKV(c *clientv3.Client, f *faultyKV) *clientv3.Client {
	other := clientv3.NewCtxClient(c.Ctx())
	other.KV, other.Lease, other.Watcher = f, c.Lease, c.Watcher
	return other
}

var errDied = errors.New("the controller died")

// dieAfter is a controller that is killed at its n-th transaction: after it was
// carried out, before it knows.
func dieAfter(c *clientv3.Client, n int, cancel context.CancelFunc) *clientv3.Client {
	var count atomic.Int64
	return withKV(c, &faultyKV{
		KV: c.KV,
		before: func() error {
			if count.Load() >= int64(n) {
				return errDied
			}
			return nil
		},
		after: func() error {
			if count.Add(1) >= int64(n) {
				cancel()
				return errDied
			}
			return nil
		},
	})
}
