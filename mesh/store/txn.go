package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/mesh"
)

// maxOps is the most operations in one transaction that etcd is asked for; etcd
// takes 128.
const maxOps = 120

// maxAttempts bounds how often one change is tried against others who change
// the same.
const maxAttempts = 30

// errAgain, from a plan, asks for another attempt: what it decided on is outdated.
var errAgain = errors.New("try again")

// tx is one attempt at a change. A plan reads through it, decides, and writes
// into it; the commit compares that everything that was read is still the same, so
// the attempt is serializable. Not for concurrent use.
type tx struct {
	s        *Store
	actor    string
	rev      int64                       // of the first read
	seen     map[string]*mvccpb.KeyValue // read, by key below the root; nil: was not there
	compares []clientv3.Cmp
	ops      []clientv3.Op
	unlock   func()
	part     *part // of a batch; nil: it is a transaction of its own
}

// change runs plan until its transaction commits, and returns the revision that
// has it. A plan that writes nothing changes nothing: then it is the revision that
// was read.
func (s *Store) change(ctx context.Context, actor string, plan func(context.Context, *tx) error) (int64, error) {
	for attempt := range maxAttempts {
		rev, err := s.attempt(ctx, actor, plan)
		if !errors.Is(err, errAgain) {
			return rev, err
		}
		if err := pause(ctx, attempt); err != nil {
			return 0, err
		}
	}
	return 0, s.outdone(ctx)
}

// outdone says why no attempt at a change was the one that counts.
func (s *Store) outdone(ctx context.Context) error {
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(s.root+keyMesh, clientv3.WithCountOnly())})
	if err == nil && r.Responses[0].GetResponseRange().Count == 0 {
		return fmt.Errorf("%w: there is no mesh at %s; is one being restored?", ErrUnavailable, s.root)
	}
	return fmt.Errorf("%w: others changed the same %d times in a row", ErrUnavailable, maxAttempts)
}

func (s *Store) attempt(ctx context.Context, actor string, plan func(context.Context, *tx) error) (int64, error) {
	t := &tx{s: s, actor: actor, seen: map[string]*mvccpb.KeyValue{}, unlock: func() {}}
	defer func() { t.unlock() }()
	if err := plan(ctx, t); err != nil {
		return 0, err
	}
	if len(t.ops) == 0 {
		return t.rev, nil
	}
	return s.carryOut(ctx, t)
}

// carryOut commits what was planned, if all that was seen is still the same.
func (s *Store) carryOut(ctx context.Context, t *tx) (int64, error) {
	t.compares = slices.Grow(t.compares, len(t.seen)+1)
	for key, kv := range t.seen {
		var rev int64
		if kv != nil {
			rev = kv.ModRevision
		}
		t.compares = append(t.compares, clientv3.Compare(clientv3.ModRevision(s.root+key), "=", rev))
	}
	if _, seen := t.seen[keyMesh]; !seen {
		// A restore and a migration put the mesh record last: before that, what a
		// change would be decided on is not all there.
		t.compares = append(t.compares, clientv3.Compare(clientv3.CreateRevision(s.root+keyMesh), ">", 0))
	}
	r, err := s.commit(ctx, t.compares, t.ops)
	if err != nil {
		return 0, unsure(err)
	}
	if !r.Succeeded {
		return 0, errAgain
	}
	s.recall.wrote(s.root, t.ops, r.Header.Revision)
	return r.Header.Revision, nil
}

// commit is one etcd transaction.
func (s *Store) commit(ctx context.Context, compares []clientv3.Cmp, ops []clientv3.Op) (*clientv3.TxnResponse, error) {
	return s.commitWithin(ctx, s.config.Timeout, compares, ops)
}

func (s *Store) commitWithin(ctx context.Context, d time.Duration, compares []clientv3.Cmp, ops []clientv3.Op) (*clientv3.TxnResponse, error) {
	bounded, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	r, err := s.client.Txn(bounded).If(compares...).Then(ops...).Commit()
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	for rev := s.newest.Load(); rev < r.Header.Revision && !s.newest.CompareAndSwap(rev, r.Header.Revision); rev = s.newest.Load() {
	}
	return r, nil
}

// pause waits a random time that grows with the attempts, up to 50 ms.
func pause(ctx context.Context, attempt int) error {
	limit := min(time.Millisecond<<min(attempt, 6), 50*time.Millisecond)
	return wait(ctx, rand.N(limit)+time.Microsecond)
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// alone waits until no other change of this Store has the same name, and holds it
// until the attempt ends: one controller need not race itself. Call it before
// reading what the others change. A token's name is taken before an address space's.
func (t *tx) alone(ctx context.Context, name string) error {
	if t.part != nil {
		return t.part.alone(t, name)
	}
	unlock, err := t.s.locks.lock(ctx, name)
	if err != nil {
		return err
	}
	before := t.unlock
	t.unlock = func() { unlock(); before() }
	return nil
}

// fetch reads keys that were not read before, in one request.
func (t *tx) fetch(ctx context.Context, keys ...string) error {
	var ops []clientv3.Op
	var want []string
	for _, key := range keys {
		if _, ok := t.seen[key]; !ok && !t.recalled(key) {
			want = append(want, key)
			ops = append(ops, clientv3.OpGet(t.s.root+key))
		}
	}
	if len(ops) == 0 {
		return nil
	}
	r, err := t.read(ctx, ops...)
	if err != nil {
		return err
	}
	for i, key := range want {
		t.seen[key] = nil
		if kvs := r[i].Kvs; len(kvs) > 0 {
			t.seen[key] = kvs[0]
		}
		t.s.recall.set(key, t.seen[key], nil)
	}
	return nil
}

// read is one request of several ranges, at one revision. What it returns is
// not compared at the commit.
func (t *tx) read(ctx context.Context, ops ...clientv3.Op) ([]*clientv3.GetResponse, error) {
	if t.part != nil {
		return nil, errAlone
	}
	r, err := t.s.commit(ctx, nil, ops)
	if err != nil {
		return nil, err
	}
	if t.rev == 0 {
		t.rev = r.Header.Revision
	}
	out := make([]*clientv3.GetResponse, len(ops))
	for i, x := range r.Responses {
		out[i] = (*clientv3.GetResponse)(x.GetResponseRange())
		out[i].Header = r.Header
	}
	return out, nil
}

// get returns the object at key; ok is false if there is none.
func get[T any](ctx context.Context, t *tx, key string) (v T, ok bool, err error) {
	if err := t.fetch(ctx, key); err != nil {
		return v, false, err
	}
	kv := t.seen[key]
	if kv == nil {
		return v, false, nil
	}
	object, err := t.decoded(key, kv)
	if err != nil {
		return v, false, fmt.Errorf("stored value of %s: %w", key, err)
	}
	v, ok = object.(T)
	return v, ok, nil
}

// put sets the object at key.
func (t *tx) put(key string, v any, opts ...clientv3.OpOption) error {
	var old []byte
	if kv := t.seen[key]; kv != nil {
		old = kv.Value
	}
	text, err := encode(old, v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	t.ops = append(t.ops, clientv3.OpPut(t.s.root+key, string(text), opts...))
	return nil
}

func (t *tx) delete(key string) { t.ops = append(t.ops, clientv3.OpDelete(t.s.root+key)) }

// unchanged makes the commit compare that nothing was created below prefix, which
// ends in "/", since revision rev.
func (t *tx) unchanged(prefix string, rev int64) {
	t.compares = append(t.compares, clientv3.Compare(clientv3.CreateRevision(t.s.root+prefix), "<", rev+1).WithPrefix())
}

// event adds the audit entry of the change.
func (t *tx) event(action, target, note string) error {
	id, err := t.s.draw(4)
	if err != nil {
		return err
	}
	now := t.s.now()
	e := mesh.Event{ID: now.Format(auditTime) + "-" + id, Time: now, Actor: t.actor, Action: action, Target: target, Note: note}
	return t.put(keyAudit+e.ID, e)
}

// draw returns n random bytes in hexadecimal.
func (s *Store) draw(n int) (string, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(s.config.Rand, b); err != nil {
		return "", fmt.Errorf("draw an id: %w", err)
	}
	return hex.EncodeToString(b), nil
}

// locks are mutexes by name that obey a context. mu guards held.
type locks struct {
	mu   sync.Mutex
	held map[string]*namedLock
}

// try is lock for one who does not wait.
func (l *locks) try(name string) (unlock func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[name] != nil {
		return nil, false
	}
	n := &namedLock{turn: make(chan struct{}, 1), users: 1}
	l.held[name] = n
	return func() { n.turn <- struct{}{}; l.leave(name, n) }, true
}

// leave counts one user less.
func (l *locks) leave(name string, n *namedLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n.users--; n.users == 0 {
		delete(l.held, name)
	}
}

type namedLock struct {
	turn  chan struct{} // holds one value while free
	users int           // holding or waiting
}

func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	n := l.held[name]
	if n == nil {
		n = &namedLock{turn: make(chan struct{}, 1)}
		n.turn <- struct{}{}
		l.held[name] = n
	}
	n.users++
	l.mu.Unlock()
	select {
	case <-n.turn:
		return func() { n.turn <- struct{}{}; l.leave(name, n) }, nil
	case <-ctx.Done():
		l.leave(name, n)
		return nil, ctx.Err()
	}
}

// unavailable makes an error of etcd readable. What may pass wraps
// ErrUnavailable; a caller who gave up gets the error of the context.
func unavailable(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	reason, hint, refused := "", "", false
	var etcd rpctypes.EtcdError
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		reason, refused = "etcd is full (NOSPACE): changes are refused, reading goes on", true
		hint = "start the controller again with a larger --etcd-quota; of a cluster, raise its members' --quota-backend-bytes, or compact and defragment it, and then: etcdctl alarm disarm"
		// The server inside says more: its disk is nearly full.
		if _, disk, found := strings.Cut(err.Error(), rpctypes.ErrNoSpace.Error()+": "); found {
			reason, hint = disk, ""
		}
	case errors.Is(err, rpctypes.ErrCorrupt):
		reason, refused = "etcd found its data damaged (CORRUPT) and refuses everything", true
		hint = "restore a backup: weft-controller restore --help; of a cluster, replace the member with the alarm: etcdctl alarm list"
	case err.Error() == proposalDropped || strings.HasSuffix(err.Error(), " desc = "+proposalDropped):
		reason, refused = "etcd is choosing a leader", true
	case errors.Is(err, rpctypes.ErrNoLeader), errors.Is(err, rpctypes.ErrNotLeader), errors.Is(err, rpctypes.ErrLeaderChanged):
		reason = "etcd has no leader"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, rpctypes.ErrTimeout), status.Code(err) == codes.DeadlineExceeded:
		reason = "etcd did not answer in time"
	case errors.Is(err, rpctypes.ErrTooManyRequests):
		reason, refused = "etcd is overloaded", true
	case errors.Is(err, rpctypes.ErrStopped), errors.Is(err, context.Canceled), status.Code(err) == codes.Canceled:
		reason = "etcd is stopping"
	case status.Code(err) == codes.Unavailable, errors.As(err, &etcd) && etcd.Code() == codes.Unavailable:
		reason = "etcd cannot be reached: " + err.Error()
	default:
		return fmt.Errorf("etcd: %w", err)
	}
	if hint != "" {
		return mesh.WithHint(&noAnswer{reason, refused}, "%s", hint)
	}
	return &noAnswer{reason, refused}
}

// proposalDropped is the text of raft.ErrProposalDropped, which etcd passes on without a
// code: its leader is gone or leaves, and nothing was proposed.
const proposalDropped = "raft proposal dropped"

// noAnswer is an ErrUnavailable.
type noAnswer struct {
	reason  string
	refused bool // etcd did answer: it does not do it
}

func (e *noAnswer) Error() string { return ErrUnavailable.Error() + ": " + e.reason }
func (e *noAnswer) Unwrap() error { return ErrUnavailable }

// unsure makes the error of a commit say that it may have been done all the same.
func unsure(err error) error {
	var n *noAnswer
	if errors.As(err, &n) && !n.refused {
		return fmt.Errorf("%w; %w", err, ErrUnsure)
	}
	return err
}

// unmarshal reads a stored value that State does not hold.
func unmarshal(key string, value []byte, into any) error {
	if err := json.Unmarshal(value, into); err != nil {
		return fmt.Errorf("stored value of %s: %w", key, err)
	}
	return nil
}
