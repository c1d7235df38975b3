package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A change that is made over and over (registering a machine) reads the same few
// keys each time, and they are nearly always as this Store saw them last. So it is
// planned on those; its transaction compares them as it compares what was read.
// And changes that come while a transaction is under way share the next one: they
// are planned one after the other, each on what those before it write. So a change
// costs one request, and many at once cost few.
//
// Nothing rests on what is remembered being right: a change that it does not fit,
// and all of a transaction that did not happen, are made alone, by what is read.

// maxJoint bounds how many changes share a transaction, maxJointBytes what they
// write (etcd takes 1.5 MB), maxFlying how many such transactions are under way.
const (
	maxJoint      = 40
	maxJointBytes = 512 << 10
	maxFlying     = 3
)

var (
	errAlone  = errors.New("not with others")  // the change cannot be part of a batch
	errBusy   = errors.New("in another batch") // it can be part of a later one
	errNoRoom = errors.New("no room")          // of the next one
)

// joint is a change that may share a transaction.
type joint struct {
	actor string
	plan  func(context.Context, *tx) error
	over  chan struct{} // closed when rev and err are set
	rev   int64
	err   error
}

func (j *joint) end(rev int64, err error) {
	j.rev, j.err = rev, err
	close(j.over)
}

// gathering is where changes wait for the next transaction.
type gathering struct {
	mu      sync.Mutex // guards what follows
	waiting []*joint
	busy    bool // somebody serves them

	wake chan struct{} // tells who serves that there are more
}

// shared is change for what is made over and over, by many at once.
func (s *Store) shared(ctx context.Context, actor string, plan func(context.Context, *tx) error) (int64, error) {
	j := &joint{actor: actor, plan: plan, over: make(chan struct{})}
	if s.gathering.join(j) {
		go s.serve()
	}
	select {
	case <-j.over:
	case <-ctx.Done():
		if s.gathering.leave(j) {
			return 0, ctx.Err()
		}
		<-j.over // it is being made; the time of that is bounded
	}
	if errors.Is(j.err, errAlone) {
		return s.change(ctx, actor, plan)
	}
	return j.rev, j.err
}

// join reports whether nobody serves those who wait.
func (g *gathering) join(j *joint) (serve bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, j)
	serve, g.busy = !g.busy, true
	select {
	case g.wake <- struct{}{}:
	default:
	}
	return serve
}

// leave reports whether j was still waiting.
func (g *gathering) leave(j *joint) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting, j)
	if i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	return i >= 0
}

// take returns those who wait.
func (g *gathering) take() (all []*joint) {
	g.mu.Lock()
	defer g.mu.Unlock()
	all, g.waiting = g.waiting, nil
	return all
}

// putBack has some wait on, before those who came later.
func (g *gathering) putBack(all []*joint) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(all, g.waiting...)
}

// over ends the service if nobody waits.
func (g *gathering) over() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busy = len(g.waiting) > 0
	return !g.busy
}

// serve makes the changes that wait until there are none. A few transactions are
// under way at a time, no two with the same name for themselves.
func (s *Store) serve() {
	g := &s.gathering
	flying, held := 0, map[string]bool{}
	landed := make(chan *batch, maxFlying)
	for {
		all := g.take()
		for flying < maxFlying && len(all) > 0 {
			b := newBatch(s)
			if all = b.fill(all, held); len(b.changes) == 0 {
				b.recycle()
				break
			}
			for name := range b.held {
				held[name] = true
			}
			flying++
			go func() { b.commit(); landed <- b }()
		}
		g.putBack(all)
		if flying == 0 && g.over() {
			return
		}
		select {
		case <-g.wake:
		case b := <-landed:
			flying--
			for name := range b.held {
				delete(held, name)
			}
			b.recycle()
		}
	}
}

// batch is a transaction of several changes.
type batch struct {
	s       *Store
	all     *tx // what they see and write together
	changes []*joint
	unlocks []func()

	wrote map[string]*mvccpb.KeyValue // by those that are in it; nil: deleted
	at    map[string]int              // where the operation on a key is in all.ops
	bytes int
	empty map[string]bool // ranges that it compares to be empty
	held  map[string]bool // names that it has for itself
	used  []string        // remembered keys that it rests on
	next  *tx             // the change that is being added
}

// part is what makes an attempt at a change one at a part of a batch.
type part struct {
	batch *batch
	taken map[string]bool // names of other batches
	free  []string        // keys that are taken to be free
	empty []string        // ranges that are taken to be empty
	names []string        // that it has for itself
	used  []string
}

// newBatch returns an empty batch, with the room that an earlier one took: with many
// callers that is most of what a change would allocate.
func newBatch(s *Store) *batch {
	if b, ok := s.batches.Get().(*batch); ok {
		return b
	}
	return &batch{
		s: s, all: &tx{s: s, seen: map[string]*mvccpb.KeyValue{}}, wrote: map[string]*mvccpb.KeyValue{}, at: map[string]int{},
		empty: map[string]bool{}, held: map[string]bool{}, next: &tx{s: s, seen: map[string]*mvccpb.KeyValue{}, part: &part{}},
	}
}

// recycle empties a batch that nobody looks at any more for the next one.
func (b *batch) recycle() {
	b.all.clear()
	b.next.clear()
	*b.next.part = part{}
	clear(b.changes)
	clear(b.unlocks)
	clear(b.wrote)
	clear(b.at)
	clear(b.empty)
	clear(b.held)
	b.changes, b.unlocks, b.used, b.bytes = b.changes[:0], b.unlocks[:0], b.used[:0], 0
	b.s.batches.Put(b)
}

// clear makes an attempt one at nothing yet.
func (t *tx) clear() {
	clear(t.seen)
	clear(t.ops)
	clear(t.compares)
	*t = tx{s: t.s, seen: t.seen, ops: t.ops[:0], compares: t.compares[:0], part: t.part}
}

// fill adds changes until there is no room, and returns those that are left: the
// others of them need a name that is another batch's.
func (b *batch) fill(all []*joint, taken map[string]bool) (left []*joint) {
	for i, j := range all {
		switch err := b.add(j, taken); err {
		case nil:
			b.changes = append(b.changes, j)
		case errBusy:
			left = append(left, j)
		case errNoRoom:
			return append(left, all[i:]...)
		default:
			j.end(0, errAlone)
		}
	}
	return left
}

// add plans a change on those before it.
func (b *batch) add(j *joint, taken map[string]bool) error {
	t := b.next
	t.clear()
	t.actor, t.unlock = j.actor, func() {}
	*t.part = part{batch: b, taken: taken}
	err := j.plan(context.Background(), t)
	switch {
	case err != nil:
	case len(t.ops) == 0:
		err = errAlone // nothing would be compared
	case len(b.changes) > 0 && !b.fits(t):
		err = errNoRoom
	default:
		err = b.merge(t)
	}
	if err != nil {
		t.unlock()
		return err
	}
	b.unlocks = append(b.unlocks, t.unlock)
	return nil
}

func (b *batch) fits(t *tx) bool {
	compares := len(b.all.seen) + len(b.all.compares) + len(t.seen) + len(t.compares)
	return len(b.changes) < maxJoint && compares < maxOps && len(b.all.ops)+len(t.ops) <= maxOps && b.bytes+size(t.ops) <= maxJointBytes
}

func size(ops []clientv3.Op) (n int) {
	for _, op := range ops {
		n += len(op.KeyBytes()) + len(op.ValueBytes())
	}
	return n
}

// merge makes a change part of the batch, if it can be.
func (b *batch) merge(t *tx) error {
	for _, op := range t.ops {
		if i, there := b.at[string(op.KeyBytes())]; there && !(op.IsPut() && b.all.ops[i].IsPut()) {
			return errAlone // etcd does one thing to a key
		}
	}
	for key, kv := range t.seen {
		if _, ours := b.wrote[key]; !ours {
			b.all.seen[key] = kv
		}
	}
	b.all.compares = append(b.all.compares, t.compares...)
	for _, op := range t.ops {
		key := string(op.KeyBytes())
		if i, there := b.at[key]; there {
			b.all.ops[i] = op
		} else {
			b.at[key] = len(b.all.ops)
			b.all.ops = append(b.all.ops, op)
		}
		var kv *mvccpb.KeyValue
		if op.IsPut() {
			kv = &mvccpb.KeyValue{Value: op.ValueBytes()}
		}
		b.wrote[strings.TrimPrefix(key, b.s.root)] = kv
	}
	b.bytes += size(t.ops)
	b.used = append(b.used, t.part.used...)
	for _, prefix := range t.part.empty {
		b.empty[prefix] = true
	}
	for _, name := range t.part.names {
		b.held[name] = true
	}
	return nil
}

// commit makes the changes. When something is not as it was remembered, each is
// made alone.
func (b *batch) commit() {
	rev, err := b.s.carryOut(context.Background(), b.all)
	if errors.Is(err, errAgain) {
		b.s.recall.forget(b.used...)
		err = errAlone
	}
	for _, unlock := range b.unlocks {
		unlock()
	}
	for _, j := range b.changes {
		j.end(rev, err)
	}
}

// suppose makes a plan that is part of a batch take a key for free that is to be
// created.
func (t *tx) suppose(key string) {
	if t.part != nil {
		t.part.free = append(t.part.free, key)
	}
}

// recalled takes key as seen in a batch, if there is something to go by.
func (t *tx) recalled(key string) bool {
	if t.part == nil {
		return false
	}
	b := t.part.batch
	if kv, ok := b.wrote[key]; ok {
		t.seen[key] = kv
		return true
	}
	if kv, ok := b.all.seen[key]; ok {
		t.seen[key] = kv
		return true
	}
	if slices.Contains(t.part.free, key) {
		t.seen[key] = nil
		return true
	}
	m, ok := t.s.recall.get(key)
	if ok {
		t.seen[key], t.part.used = m.kv, append(t.part.used, key)
	}
	return ok
}

// recalledEmpty takes the range from prefix to end for empty in a batch, if it was
// empty last time, and has that compared.
func (t *tx) recalledEmpty(prefix, end string) bool {
	if t.part == nil {
		return false
	}
	if t.part.batch.empty[prefix] {
		return true
	}
	if _, ok := t.s.recall.get(prefix); !ok {
		return false
	}
	// Of an empty range, etcd compares a key that was never created.
	t.compares = append(t.compares, clientv3.Compare(clientv3.CreateRevision(t.s.root+prefix), "=", 0).WithRange(t.s.root+end))
	t.part.used, t.part.empty = append(t.part.used, prefix), append(t.part.empty, prefix)
	return true
}

// alone is tx.alone for a part of a batch. It does not wait: the batch has names of
// others by then, and they could be waiting for those.
func (p *part) alone(t *tx, name string) error {
	if p.batch.held[name] || slices.Contains(p.names, name) {
		return nil
	}
	if p.taken[name] {
		return errBusy
	}
	unlock, ok := t.s.locks.try(name)
	if !ok {
		return errAlone
	}
	before := t.unlock
	t.unlock = func() { unlock(); before() }
	p.names = append(p.names, name)
	return nil
}
