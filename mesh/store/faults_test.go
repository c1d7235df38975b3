package store

import (
	"context"
	"errors"
	"strings"
	"sync"
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
func (t *faultyTxn) Else(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(o...); return t }

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

// gate is a client whose watches can be cut.
type gate struct {
	client *clientv3.Client
	clientv3.Watcher

	mu      sync.Mutex
	shutBy  chan struct{} // closed while shut
	openBy  chan struct{} // closed while open
	sawGone bool
}

func newGate(c *clientv3.Client) *gate {
	g := &gate{Watcher: c.Watcher, shutBy: make(chan struct{}), openBy: make(chan struct{})}
	close(g.openBy)
	g.client = withKV(c, &faultyKV{KV: c.KV})
	g.client.Watcher = g
	return g
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shutBy)
	g.openBy = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.openBy)
	g.shutBy = make(chan struct{})
}

func (g *gate) compacted() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sawGone
}

func (g *gate) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	out := make(chan clientv3.WatchResponse)
	g.mu.Lock()
	shut, opened := g.shutBy, g.openBy
	g.mu.Unlock()
	go func() {
		defer close(out)
		select {
		case <-opened:
		case <-ctx.Done():
			return
		}
		inner, cancel := context.WithCancel(ctx)
		defer cancel()
		in := g.Watcher.Watch(inner, key, opts...)
		for {
			select {
			case r, more := <-in:
				if !more {
					return
				}
				g.mu.Lock()
				g.sawGone = g.sawGone || r.CompactRevision != 0
				g.mu.Unlock()
				select {
				case out <- r:
				case <-ctx.Done():
					return
				}
			case <-shut:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// Close is not this client's to do.
func (g *gate) Close() error { return nil }

// silentWatcher's first watch never says anything.
type silentWatcher struct {
	clientv3.Watcher
	once sync.Once
}

func (w *silentWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	var out clientv3.WatchChan
	w.once.Do(func() { out = make(chan clientv3.WatchResponse) })
	if out == nil {
		out = w.Watcher.Watch(ctx, key, opts...)
	}
	return out
}

func (w *silentWatcher) Close() error { return nil }

// switched is a client that can be led to another server.
type switched struct {
	mu sync.Mutex
	to *clientv3.Client
}

func (s *switched) set(c *clientv3.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = c
}

func (s *switched) get() *clientv3.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.to
}

func (s *switched) client() *clientv3.Client {
	c := clientv3.NewCtxClient(context.Background())
	c.KV, c.Watcher, c.Lease = switchedKV{s.to.KV, s}, switchedWatcher{s.to.Watcher, s}, switchedLease{s.to.Lease, s}
	return c
}

type switchedKV struct {
	clientv3.KV
	s *switched
}

func (k switchedKV) Txn(ctx context.Context) clientv3.Txn { return k.s.get().Txn(ctx) }

type switchedWatcher struct {
	clientv3.Watcher
	s *switched
}

func (w switchedWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	return w.s.get().Watch(ctx, key, opts...)
}

func (w switchedWatcher) RequestProgress(ctx context.Context) error {
	return w.s.get().RequestProgress(ctx)
}

type switchedLease struct {
	clientv3.Lease
	s *switched
}

func (l switchedLease) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	return l.s.get().Grant(ctx, ttl)
}

func (l switchedLease) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	return l.s.get().KeepAliveOnce(ctx, id)
}

type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
