package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// mirror is the State in memory. keepMirror alone changes it:
//
//	list at R -> watch from R+1 -> ... -> compacted, or etcd went back: list again
//	                  |                    and apply the difference
//	                  '- broken: watch again from the last revision
type mirror struct {
	state atomic.Pointer[mesh.State]
	ready chan struct{} // closed after the first list
	nudge chan struct{} // asks keepMirror to ask etcd for its progress

	mu        sync.Mutex    // guards what follows
	known     int64         // revision up to which the state is complete
	confirmed time.Time     // when that was last heard
	advanced  chan struct{} // closed and replaced when known grows
	wakes     map[chan struct{}]bool
	feeds     map[*Feed]bool

	// Only keepMirror's:
	revs    map[string]int64 // revision of each object, by key
	cluster uint64           // whose revisions these are; 0: list first
	heard   bool             // etcd said something since the last interruption
	trouble bool             // the interruption was logged
}

func newMirror() mirror {
	return mirror{
		ready: make(chan struct{}), nudge: make(chan struct{}, 1), advanced: make(chan struct{}), wakes: map[chan struct{}]bool{},
		feeds: map[*Feed]bool{}, revs: map[string]int64{},
	}
}

func (m *mirror) isReady() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

// Ready is closed when the mirror has had its first complete list.
func (s *Store) Ready() <-chan struct{} { return s.mirror.ready }

// State returns the mirror: a snapshot that never changes. It is empty until Ready.
func (s *Store) State() mesh.State {
	if state := s.mirror.state.Load(); state != nil {
		return *state
	}
	return mesh.State{}
}

// Subscribe returns a channel that gets a value when State has changed. Several
// changes may share one; the caller looks at State itself. cancel ends it.
func (s *Store) Subscribe() (wake <-chan struct{}, cancel func()) {
	m := &s.mirror
	c := make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wakes[c] = true
	return c, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.wakes, c)
	}
}

// nudgeAfter is how long Wait waits before it has etcd asked for its progress:
// revisions that change nothing below the root are not heard of otherwise.
const nudgeAfter = 10 * time.Millisecond

// Wait returns when State has revision rev, as a change returned it.
func (s *Store) Wait(ctx context.Context, rev int64) error {
	m := &s.mirror
	nudge := time.NewTicker(nudgeAfter)
	defer nudge.Stop()
	for {
		m.mu.Lock()
		known, advanced := m.known, m.advanced
		m.mu.Unlock()
		if known >= rev {
			return nil
		}
		select {
		case <-advanced:
		case <-nudge.C:
			select {
			case m.nudge <- struct{}{}:
			default:
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for revision %d (the mirror has %d): %w", rev, known, ctx.Err())
		}
	}
}

// Age says how long ago the mirror was last known to be current. Before Ready it
// is the longest duration there is.
func (s *Store) Age() time.Duration {
	m := &s.mirror
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.confirmed.IsZero() {
		return math.MaxInt64
	}
	return time.Since(m.confirmed)
}

// at returns a state that has revision rev: the mirror where there is one, else
// one that is read for the purpose.
func (s *Store) at(ctx context.Context, rev int64) (mesh.State, error) {
	if s.mirror.isReady() && s.running.Load() {
		bounded, cancel := context.WithTimeout(ctx, s.config.Timeout)
		defer cancel()
		if err := s.Wait(bounded, rev); err != nil {
			return mesh.State{}, unavailable(ctx, err)
		}
		return s.State(), nil
	}
	found, err := s.listAll(ctx)
	if err != nil {
		return mesh.State{}, err
	}
	state, _ := s.difference(mesh.State{}, found, map[string]int64{})
	return state, nil
}

// publish makes state the State, to which steps lead; complete says up to which
// revision it is.
func (m *mirror) publish(state mesh.State, complete int64, steps []mesh.Step) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Store(&state)
	// The feeds before those who wait: who sees a revision finds its step there.
	for f := range m.feeds {
		f.addLocked(steps, state.Revision)
	}
	m.confirmed = time.Now()
	if complete != m.known {
		m.known = complete
		close(m.advanced)
		m.advanced = make(chan struct{})
	}
	if len(steps) == 0 {
		return
	}
	for c := range m.wakes {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// keepMirror follows etcd until ctx ends.
func (s *Store) keepMirror(ctx context.Context) {
	m := &s.mirror
	for attempt := 0; ; attempt++ {
		m.heard = false
		err := s.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if m.heard {
			attempt = 0
		}
		switch {
		case errors.Is(err, errRelist):
			m.cluster = 0
			s.log.Info("mirror lists anew", "rev", m.known, "err", err)
		case !m.trouble:
			m.trouble = true
			s.log.Warn("mirror is interrupted", "rev", m.known, "err", err)
		}
		if wait(ctx, min(20*time.Millisecond<<min(attempt, 7), 2*time.Second)) != nil {
			return
		}
	}
}

// errRelist says that the watch cannot go on from where it was.
var errRelist = errors.New("revisions are gone")

// follow lists if need be and watches until that breaks.
func (s *Store) follow(ctx context.Context) error {
	m := &s.mirror
	resume := s.relist
	if m.cluster != 0 {
		resume = s.sameMesh
	}
	if err := resume(ctx); err != nil {
		return err
	}
	watch, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	// The watchdog: etcd is asked for its progress, and when nothing at all comes
	// for three times as long, the watch is taken for dead. It also ends a watch
	// that cannot even begin.
	limit := 3 * s.config.ProgressEvery
	watchdog := time.AfterFunc(limit, cancel)
	defer watchdog.Stop()
	ask := time.NewTicker(s.config.ProgressEvery)
	defer ask.Stop()

	from, to := s.mirrorRange()
	events := s.client.Watch(watch, from, to, clientv3.WithRev(m.known+1), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	for silent := false; ; {
		asked := false
		select {
		case r, open := <-events:
			silent = false
			if !open && watch.Err() == nil {
				return fmt.Errorf("%w: the watch ended", ErrUnavailable)
			}
			if open {
				watchdog.Reset(limit)
				if err := s.hear(ctx, r); err != nil {
					return err
				}
			}
		case <-ask.C:
			if silent {
				quiet, err := s.quiet(ctx)
				if err != nil {
					return err
				}
				if quiet {
					watchdog.Reset(limit)
				}
			}
			asked, silent = true, true
		case <-m.nudge:
			asked = true
		case <-watch.Done():
		}
		if asked {
			if err := s.client.RequestProgress(watch); err != nil && watch.Err() == nil {
				return unavailable(ctx, err)
			}
		}
		if watch.Err() != nil {
			return fmt.Errorf("%w: nothing heard for %s", ErrUnavailable, limit)
		}
	}
}

// quiet reports whether nothing was written since the known revision, so that
// there is nothing to hear. A watch that begins with a revision that is still to come
// is not told of progress either, and on a full etcd it does not come.
func (s *Store) quiet(ctx context.Context) (bool, error) {
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(s.root+keyMesh, clientv3.WithCountOnly())})
	if err != nil || r.Header.Revision != s.mirror.known {
		return false, err
	}
	s.mirror.publish(s.State(), r.Header.Revision, nil)
	return true, nil
}

// hear takes one message of the watch.
func (s *Store) hear(ctx context.Context, r clientv3.WatchResponse) error {
	m := &s.mirror
	if err := r.Err(); err != nil {
		if r.CompactRevision != 0 || errors.Is(err, rpctypes.ErrCompacted) {
			return fmt.Errorf("%w: compacted at %d", errRelist, r.CompactRevision)
		}
		return unavailable(ctx, err)
	}
	m.heard = true
	if r.Header.ClusterId != m.cluster {
		return fmt.Errorf("%w: it is another cluster", errRelist)
	}
	if r.Header.Revision < m.known {
		return s.behind(ctx)
	}
	if m.trouble {
		m.trouble = false
		s.log.Info("mirror follows again", "rev", m.known)
	}
	switch {
	case len(r.Events) > 0:
		return s.apply(r.Events)
	case r.IsProgressNotify():
		m.publish(s.State(), r.Header.Revision, nil)
	}
	return nil
}

// sameMesh looks, before a watch goes on, whether the mesh record is still the one
// that was seen. Revisions and the number of a cluster do not tell: a new cluster
// with the members' old names has the old number, and may have come further.
func (s *Store) sameMesh(ctx context.Context) error {
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(s.root + keyMesh)})
	if err != nil {
		return err
	}
	kvs, seen := r.Responses[0].GetResponseRange().Kvs, s.mirror.revs[keyMesh]
	if len(kvs) == 0 && seen != 0 || len(kvs) > 0 && kvs[0].ModRevision != seen {
		return fmt.Errorf("%w: the mesh in etcd is another one, or of another time", errRelist)
	}
	return nil
}

// behind tells a member that lags, which is nothing, from a cluster that was
// restored to an earlier time.
func (s *Store) behind(ctx context.Context) error {
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(s.root+keyMesh, clientv3.WithCountOnly())})
	if err == nil && r.Header.Revision < s.mirror.known {
		err = fmt.Errorf("%w: etcd went back to %d", errRelist, r.Header.Revision)
	}
	return err
}

// apply makes a step of each revision. It stops before one that takes the mesh
// itself away: nobody removes a mesh, so what goes with it is still meant to be.
func (s *Store) apply(events []*clientv3.Event) error {
	m := &s.mirror
	var gone error
	for _, e := range events {
		if e.Type == clientv3.EventTypeDelete && string(e.Kv.Key) == s.root+keyMesh {
			first := slices.IndexFunc(events, func(o *clientv3.Event) bool { return o.Kv.ModRevision == e.Kv.ModRevision })
			events, gone = events[:first], fmt.Errorf("%w: the mesh was deleted from etcd", errRelist)
			break
		}
	}
	if len(events) == 0 {
		return gone
	}
	state := s.State()
	var steps []mesh.Step
	for len(events) > 0 {
		rev, n := events[0].Kv.ModRevision, 1
		for n < len(events) && events[n].Kv.ModRevision == rev {
			n++
		}
		before := state
		changes := s.changes(events[:n], state)
		state = state.With(changes...)
		state.Revision.Revision = rev
		if len(changes) > 0 {
			steps = append(steps, mesh.Step{Before: before, After: state, Keys: keysOf(changes)})
		}
		events = events[n:]
	}
	m.publish(state, state.Revision.Revision, steps)
	return gone
}

func keysOf(changes []mesh.Change) []string {
	keys := make([]string, len(changes))
	for i, c := range changes {
		keys[i] = c.Key
	}
	return keys
}

// changes are what events do to state.
func (s *Store) changes(events []*clientv3.Event, state mesh.State) []mesh.Change {
	m := &s.mirror
	var changes []mesh.Change
	for _, e := range events {
		key := strings.TrimPrefix(string(e.Kv.Key), s.root)
		if e.Type == clientv3.EventTypeDelete {
			if _, held := m.revs[key]; held {
				delete(m.revs, key)
				changes = append(changes, mesh.Change{Key: key})
			}
			continue
		}
		if c, ok := s.decoded(key, e.Kv, state); ok {
			m.revs[key] = e.Kv.ModRevision
			changes = append(changes, c)
		}
	}
	return changes
}

// decoded is the change that a stored object makes. What cannot be read is left
// as it was before: it is of a newer controller, or broken.
func (s *Store) decoded(key string, kv *mvccpb.KeyValue, state mesh.State) (mesh.Change, bool) {
	if !s.knows(key) {
		return mesh.Change{}, false
	}
	plan := state.Mesh.Plan
	if !plan.IsValid() {
		plan = s.plan()
	}
	object, err := decode(key, kv.Value, plan)
	if err != nil {
		s.log.Error("stored object cannot be read and is passed over", "key", key, "rev", kv.ModRevision, "err", err)
	}
	if m, ok := object.(mesh.Mesh); ok {
		s.mesh.Store(&m)
	}
	return mesh.Change{Key: key, Object: object}, err == nil && object != nil
}
