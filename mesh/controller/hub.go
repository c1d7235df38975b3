package controller

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/store"
)

// hub brings each step of the state to the streams that it concerns, and to no
// other: what a change costs does not depend on how much there is beside it.
//
//	store.Feed -> step -> sorted out once (mesh.Advance)
//	                        |-- one delta for all carriers of an org: encoded once,
//	                        |   put into the inbox of each of their streams
//	                        '-- else: the streams concerned are told that they are
//	                            behind, and each makes its own delta
//	a stream that is behind, and one that resumes: all steps since its position as
//	one delta (ring), or, where that is not known any more, a snapshot
//
// A stream has no view in memory, only what it is still to send.
type hub struct {
	store      source
	deployment mesh.Deployment
	log        *slog.Logger
	counters   hubCounters
	encoding   chan struct{} // one for each snapshot that is being made

	mu       sync.Mutex // guards what follows
	feed     feed
	state    mesh.State // to which the steps so far led
	ring     ring
	advances map[uint64]*mesh.Advance // to the present, by position; of the last step or merged

	pinged   *event // the last ping, and when it was made
	pingedAt time.Time

	streams  map[*stream]bool
	byKey    map[string]*stream
	byNode   map[mesh.Node][]*stream
	carriers map[string]map[*stream]bool // by org that the host carries
	clients  map[string]map[*stream]bool // by org that the client is of
}

// source is where the steps come from: a *store.Store.
type source interface {
	Age() time.Duration
	feed() feed
}

// feed is a *store.Feed.
type feed interface {
	Start() mesh.State
	C() <-chan struct{}
	Take() []mesh.Step
	Revision() mesh.Revision
	Close()
}

type storeSource struct{ *store.Store }

func (s storeSource) feed() feed { return s.Feed() }

// hubCounters are for the metrics.
type hubCounters struct {
	encoded, deltas, overflows, slow, resumed, snapshots atomic.Uint64
}

func newHub(s source, d mesh.Deployment, log *slog.Logger) *hub {
	return &hub{
		store: s, deployment: d, log: log, encoding: make(chan struct{}, runtime.GOMAXPROCS(0)),
		ring:     ring{maxSteps: ringSteps, maxKeys: ringKeys},
		advances: map[uint64]*mesh.Advance{}, streams: map[*stream]bool{}, byKey: map[string]*stream{}, byNode: map[mesh.Node][]*stream{},
		carriers: map[string]map[*stream]bool{}, clients: map[string]map[*stream]bool{},
	}
}

// run follows the store until ctx ends. The store must be ready.
func (h *hub) run(ctx context.Context) {
	h.mu.Lock()
	h.pumpLocked()
	feed := h.feed
	h.mu.Unlock()
	defer feed.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-feed.C():
			h.mu.Lock()
			h.pumpLocked()
			h.mu.Unlock()
		}
	}
}

// pumpLocked takes the steps that the feed has. Whoever needs the present calls it:
// the state is then at least what the store's was.
func (h *hub) pumpLocked() {
	if h.feed == nil {
		h.feed = h.store.feed()
		h.state = h.feed.Start()
		h.ring.forget(h.state.Revision)
	}
	for _, step := range h.feed.Take() {
		h.stepLocked(step)
	}
	h.state.Revision = h.feed.Revision()
}

func (h *hub) stepLocked(step mesh.Step) {
	a := mesh.NewAdvance(step, h.deployment)
	position := h.ring.end()
	h.state = step.After
	clear(h.advances)
	back := later(step.Before.Revision, step.After.Revision)
	if a.Resync() || back {
		h.ring.forget(step.After.Revision)
	} else {
		h.ring.add(step)
		h.advances[position] = a
	}
	h.revokeLocked(step)
	h.indexLocked(a)
	switch {
	case back:
		h.log.Error("etcd went back: nodes have newer views, and follow this controller no more until it has a new epoch",
			"from", step.Before.Revision.String(), "to", step.After.Revision.String())
		for s := range h.streams {
			s.cancel(errWentBack)
		}
	case a.Resync():
		for s := range h.streams {
			s.fallBehind(position)
		}
	default:
		h.deliverLocked(a, position)
	}
}

// deliverLocked brings a step, which leads on from position, to the streams that it
// concerns.
func (h *hub) deliverLocked(a *mesh.Advance, position uint64) {
	x := a.Audience()
	if c, ok := a.Common(); ok {
		x.Orgs = nil
		h.shareLocked(c, position)
	}
	mark := func(set map[*stream]bool) {
		for s := range set {
			s.fallBehind(position)
		}
	}
	if x.All {
		mark(h.streams)
		return
	}
	if x.AllClients {
		for _, set := range h.clients {
			mark(set)
		}
	}
	for _, org := range x.Orgs {
		mark(h.carriers[org])
	}
	for _, org := range x.Clients {
		mark(h.clients[org])
	}
	for _, node := range x.Nodes {
		for _, s := range h.byNode[node] {
			s.fallBehind(position)
		}
	}
}

// shareLocked brings a delta, encoded once, to all who share it.
func (h *hub) shareLocked(c mesh.Common, position uint64) {
	set := h.carriers[c.Org]
	if len(set) == 0 {
		return
	}
	var e *event
	if !c.Delta.Empty() {
		var err error
		if e, err = h.encode(c.Delta); err != nil {
			h.log.Error("a delta cannot be encoded", "rev", c.Delta.Revision.String(), "err", err)
			return
		}
	}
	for s := range set {
		switch {
		case excepted(c, s.node.Name):
			s.fallBehind(position)
		case e != nil && s.push(e, position):
			h.counters.overflows.Add(1)
		}
	}
}

func excepted(c mesh.Common, host string) bool {
	_, found := slices.BinarySearch(c.Except, host)
	return found
}

// encode makes the event of a delta.
func (h *hub) encode(d mesh.Delta) (*event, error) {
	h.counters.encoded.Add(1)
	return newEvent(d.Revision, api.EventDelta, d)
}

// revokeLocked ends the streams of nodes that are no more what they were when they
// were let in.
func (h *hub) revokeLocked(step mesh.Step) {
	check := func(s *stream) {
		if s != nil && h.checkLocked(s) != nil {
			s.cancel(errGone)
		}
	}
	for _, key := range step.Keys {
		kind, rest, _ := strings.Cut(key, "/")
		node := mesh.Node{Kind: mesh.KindHost, Name: rest}
		tlsKey := ""
		switch kind {
		case "hosts":
			x, _ := step.After.Hosts.Get(rest)
			tlsKey = x.TLSKey
		case "clients":
			x, _ := step.After.Clients.Get(rest)
			tlsKey = x.TLSKey
			node.Kind = mesh.KindClient
			node.Org, node.Name, _ = strings.Cut(rest, "/")
		case "orgs":
			for s := range h.clients[rest] {
				check(s)
			}
			continue
		default:
			continue
		}
		for _, s := range h.byNode[node] {
			check(s)
		}
		check(h.byKey[tlsKey]) // it may be another node's now
	}
}

// checkLocked reports whether the key that opened a stream is still its node's, and
// the node has a view.
func (h *hub) checkLocked(s *stream) error {
	if n, ok := h.state.NodeByTLSKey(s.key); ok && n == s.node && h.state.HasView(n) {
		return nil
	}
	return refuse(api.ErrUnauthorized, "to join again it needs a new token", "%s: %s", s.node, errGone)
}

// indexLocked follows who carries what.
func (h *hub) indexLocked(a *mesh.Advance) {
	a.Carry(func(host, org string, now bool) {
		for _, s := range h.byNode[mesh.Node{Kind: mesh.KindHost, Name: host}] {
			if now {
				enter(h.carriers, org, s)
			} else {
				remove(h.carriers, org, s)
			}
		}
	})
}

func enter(index map[string]map[*stream]bool, key string, s *stream) {
	if index[key] == nil {
		index[key] = map[*stream]bool{}
	}
	index[key][s] = true
}

func remove(index map[string]map[*stream]bool, key string, s *stream) {
	if delete(index[key], s); len(index[key]) == 0 {
		delete(index, key)
	}
}

// way is what a stream has to send to be at the present: the delta of an advance,
// or, if there is none, a snapshot.
type way struct {
	advance *mesh.Advance
	state   mesh.State
}

// open enters a stream. From then on its inbox gets what comes after the way that
// it returns, which begins at revision since, if that is known.
func (h *hub) open(s *stream, since mesh.Revision) (way, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pumpLocked()
	if err := h.checkLocked(s); err != nil {
		return way{}, err
	}
	h.streams[s], h.byKey[s.key] = true, s
	h.byNode[s.node] = append(h.byNode[s.node], s)
	if s.node.Kind == mesh.KindClient {
		enter(h.clients, s.node.Org, s)
	}
	for _, org := range h.carriedLocked(s) {
		enter(h.carriers, org, s)
	}
	if position, ok := h.ring.find(since); ok {
		return h.wayLocked(position), nil
	}
	return way{state: h.state}, nil
}

func (h *hub) carriedLocked(s *stream) []string {
	if s.node.Kind != mesh.KindHost {
		return nil
	}
	return h.state.OrgsOf(s.node.Name)
}

// close takes a stream out.
func (h *hub) close(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.streams, s)
	if h.byKey[s.key] == s {
		delete(h.byKey, s.key)
	}
	if rest := slices.DeleteFunc(h.byNode[s.node], func(x *stream) bool { return x == s }); len(rest) > 0 {
		h.byNode[s.node] = rest
	} else {
		delete(h.byNode, s.node)
	}
	if s.node.Kind == mesh.KindClient {
		remove(h.clients, s.node.Org, s)
	}
	for _, org := range h.carriedLocked(s) {
		remove(h.carriers, org, s)
	}
}

// catchUp returns the way of a stream that is behind; ok is false if it is not.
func (h *hub) catchUp(s *stream) (w way, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	position, ok := s.caughtUp()
	if !ok {
		return way{}, false
	}
	return h.wayLocked(position), true
}

// wayLocked returns the way from a position to the present. Streams at the same
// position share it.
func (h *hub) wayLocked(position uint64) way {
	a := h.advances[position]
	if a == nil {
		if step, ok := h.ring.since(position, h.state); ok {
			a = mesh.NewAdvance(step, h.deployment)
			h.advances[position] = a
		}
	}
	return way{a, h.state}
}

// ping returns the event that says how current the state is. All steps up to its
// revision are in the inboxes.
func (h *hub) ping() (e *event, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pumpLocked()
	// Streams whose time comes at once share one.
	if rev, now := h.state.Revision, time.Now(); h.pinged == nil || h.pinged.rev != rev || now.Sub(h.pingedAt) >= pingShared {
		if e, err = h.pingAt(rev); err != nil {
			return nil, err
		}
		h.pinged, h.pingedAt = e, now
	}
	return h.pinged, nil
}

// pingShared is how long a ping is as good as new.
const pingShared = 50 * time.Millisecond

// pingAt is a ping with a revision of its own.
func (h *hub) pingAt(rev mesh.Revision) (*event, error) {
	// The time is when this controller last knew its state to be current.
	age := h.store.Age()
	return newEvent(rev, api.EventPing, api.Ping{Revision: rev, Time: time.Now().Add(-age).UTC(), Age: age})
}

// len returns the number of streams.
func (h *hub) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.streams)
}

// Why a stream ends, other than by the node's own doing.
var (
	errStopping = errors.New("the controller is being stopped")
	errGone     = errors.New("the node was removed")
	errReplaced = errors.New("the same node has opened another stream, and this one is dead")
	errSlow     = errors.New("the node takes too long to read")
	errWentBack = errors.New("the state went back to an earlier one")
)
