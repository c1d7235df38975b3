package controller

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// streams knows the stream of each key. A second stream with the key of a live one
// is a copy of the node (a cloned disk) or the node itself, come back before its
// old connection was noticed to be dead. Which of the two is found out by asking
// the old connection for a sign of life:
//
//	                 nobody has the key ----------------------> admitted
//	newcomer -----.                                              ^
//	               the old stream ends, or its peer does        |
//	               not acknowledge a ping: it is cut -----------'
//	               the old one's peer acknowledges ------------> newcomer is fenced
type streams struct {
	mu     sync.Mutex
	byKey  map[string]*stream // guarded by mu
	fenced atomic.Uint64
}

// stream is one open view stream.
type stream struct {
	inbox
	node   mesh.Node
	key    string
	addr   netip.Addr
	conn   net.Conn // nil if not known
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it has left
	pings  atomic.Uint64 // sent
}

func newStream(c caller, conn net.Conn, ctx context.Context, cancel context.CancelCauseFunc) *stream {
	return &stream{
		inbox: inbox{wake: make(chan struct{}, 1)}, node: c.node, key: c.key, addr: c.addr, conn: conn, ctx: ctx, cancel: cancel,
		done: make(chan struct{}),
	}
}

// fencedError says that another node uses the same key.
type fencedError struct{ other netip.Addr }

func (e *fencedError) Error() string {
	return fmt.Sprintf("another node uses the same key, from %s: is this disk a copy? remove the node's state directory here and enrol it with a token of its own", e.other)
}

// How a live stream is told from a dead one.
const (
	fenceGrace = time.Second            // what it takes at least: news of a closed connection may be on the way
	fencePoll  = 100 * time.Millisecond // between looks at what was acknowledged
)

// admit enters st as the stream of its key. It returns a *fencedError if the key
// has a live one; patience is how long that has to prove it.
func (s *streams) admit(ctx context.Context, st *stream, patience time.Duration) error {
	for {
		s.mu.Lock()
		old := s.byKey[st.key]
		if old == nil {
			s.byKey[st.key] = st
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		alive, err := old.alive(ctx, patience)
		if err != nil {
			return err
		}
		if alive {
			s.fenced.Add(1)
			return &fencedError{old.addr}
		}
		old.cancel(errReplaced)
		select {
		case <-old.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *streams) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byKey, st.key)
	close(st.done)
}

func (s *streams) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byKey)
}

// alive finds out whether the peer of an open stream still acknowledges what it is
// sent.
func (s *stream) alive(ctx context.Context, patience time.Duration) (bool, error) {
	before := s.pings.Load()
	s.askPing()
	grace := time.NewTimer(min(fenceGrace, patience))
	defer grace.Stop()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	poll := time.NewTicker(min(fencePoll, patience))
	defer poll.Stop()
	graceOver := false
	for {
		select {
		case <-s.ctx.Done():
			return false, nil
		case <-s.done:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		case <-limit.C:
			return s.pings.Load() > before && unacknowledged(s.conn) == 0, nil
		case <-grace.C:
			graceOver = true
		case <-poll.C:
			if graceOver && s.pings.Load() > before && unacknowledged(s.conn) == 0 {
				return true, nil
			}
		}
	}
}

// connection is what is known of a connection from its first moment.
type connection struct {
	since time.Time
	conn  net.Conn // below TLS
}

func connectionOf(ctx context.Context) net.Conn {
	c, _ := ctx.Value(connectionKey).(connection)
	return c.conn
}

// withConnection is http.Server's ConnContext.
func (s *server) withConnection(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	return context.WithValue(ctx, connectionKey, connection{time.Now(), conn})
}
