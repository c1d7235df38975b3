package controller

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// serveView is GET /v1/nodes/self/view: a snapshot of what the node may know, then
// what changes in it, and pings between. A node that says with Last-Event-ID up to
// which revision it has its view gets, instead of the snapshot, what changed since,
// as long as that is known.
func (s *server) serveView(w http.ResponseWriter, req *http.Request) {
	c := callerOf(req.Context())
	ctx, cancel := context.WithCancelCause(req.Context())
	defer cancel(nil)
	stop := context.AfterFunc(s.closing, func() { cancel(errStopping) })
	defer stop()
	st := newStream(c, connectionOf(req.Context()), ctx, cancel)
	out := &wire{w: w, rc: http.NewResponseController(w), timeout: s.cfg.WriteTimeout, clear: req.ProtoMajor > 1}
	out.rc.SetReadDeadline(time.Time{})
	since := lastEvent(req)
	if err := s.awaitRevision(ctx, since); err != nil {
		writeRefusal(w, s.refusal("self-view", err))
		return
	}

	if err := s.streams.admit(ctx, st, s.cfg.FenceAfter); err != nil {
		if fenced := (*fencedError)(nil); errors.As(err, &fenced) {
			s.log.Error("two nodes use one key: the newer is fenced", "node", c.node.String(), "addr", c.addr, "other", fenced.other)
			out.start()
			out.write(fmt.Appendf(nil, "event: %s\ndata: %s\n\n", api.EventFenced, fenced))
		}
		return
	}
	defer s.streams.leave(st)
	if c.role == host {
		s.background.Go(func() { s.announce(ctx, c.node.Name) })
	}
	err := s.follow(ctx, st, out, since)
	s.log.Debug("stream ended", "node", c.node.String(), "err", err)
}

// announce makes a host present until ctx ends. Neither the stream nor its end
// wait for it: the store may be slow.
func (s *server) announce(ctx context.Context, name string) {
	for _, step := range []struct {
		what string
		do   func(context.Context, string, string) error
	}{{"tell that the host is present", s.store.Present}, {"tell that the host is absent", s.store.Absent}} {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), announceTimeout)
		if err := step.do(bounded, name, s.cfg.Name); err != nil {
			s.log.Warn(step.what, "host", name, "err", err)
		}
		cancel()
		<-ctx.Done()
	}
}

// announceTimeout bounds one call to the store about presence.
const announceTimeout = 5 * time.Second

// lastEvent is the revision up to which the node has its view, zero if it has none.
func lastEvent(req *http.Request) (rev mesh.Revision) {
	if rev.UnmarshalText([]byte(req.Header.Get("Last-Event-ID"))) != nil {
		return mesh.Revision{}
	}
	return rev
}

// behindTimeout is how long a node that has seen more than this controller waits for
// it. Another one may be further.
const behindTimeout = 3 * time.Second

// awaitRevision returns when the state is at least of revision rev: no node is ever
// given an older view than it has.
func (s *server) awaitRevision(ctx context.Context, rev mesh.Revision) error {
	ctx, cancel := context.WithTimeout(ctx, behindTimeout)
	defer cancel()
	wake, unsubscribe := s.store.Subscribe()
	defer unsubscribe()
	for now := s.store.State().Revision; later(rev, now); now = s.store.State().Revision {
		if rev.Epoch == now.Epoch && s.store.Wait(ctx, rev.Revision) == nil {
			return nil // the revisions between the two change nothing
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return refuse(api.ErrUnavailable, "another controller may be further", "the node has its view at revision %s, and this controller is only at %s", rev, now)
		}
	}
	return nil
}

// follow sends the node its view, from revision since on, until the stream ends, and
// returns why it did.
func (s *server) follow(ctx context.Context, st *stream, w *wire, since mesh.Revision) error {
	way, err := s.hub.open(st, since)
	if err != nil {
		writeRefusal(w.w, s.refusal("self-view", err))
		return err
	}
	defer s.hub.close(st)
	w.start()
	out := &events{out: w, sent: since}
	if err := s.begin(ctx, st, out, way); err != nil {
		return err
	}
	// One channel for all there is to wait for: every change wakes every stream that
	// it concerns, and a select costs a tenth of what follows.
	defer context.AfterFunc(ctx, st.wakeUp)()
	ping := time.AfterFunc(s.cfg.PingEvery, st.quiet)
	defer ping.Stop()
	for err == nil {
		<-st.wake
		tick := st.tick.Swap(false)
		// Whatever was sent says that the view is current, as a ping does.
		quiet := time.Since(out.last)
		if st.pingDue.Swap(false) || tick && quiet >= s.cfg.PingEvery {
			err = s.ping(ctx, st, out)
			quiet = 0
		} else {
			err = s.flush(ctx, st, out)
		}
		if tick {
			ping.Reset(s.cfg.PingEvery - quiet)
		}
	}
	return err
}

// begin sends what a stream begins with.
func (s *server) begin(ctx context.Context, st *stream, out *events, w way) error {
	if w.advance != nil {
		if delta, ok := w.advance.Resumed(st.node); ok {
			s.hub.counters.resumed.Add(1)
			return s.sendDelta(out, delta)
		}
	}
	return s.sendSnapshot(ctx, st, out, w.state)
}

// flush sends what has come together for a stream.
func (s *server) flush(ctx context.Context, st *stream, out *events) error {
	for ctx.Err() == nil {
		if text, rev, n := st.take(); n > 0 {
			if err := s.send(out, text, rev); err != nil {
				return err
			}
			s.hub.counters.deltas.Add(uint64(n))
			continue
		}
		way, behind := s.hub.catchUp(st)
		if !behind {
			return nil
		}
		if err := s.sendWay(ctx, st, out, way); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// sendWay brings a stream that is behind to the present.
func (s *server) sendWay(ctx context.Context, st *stream, out *events, w way) error {
	if w.advance == nil {
		return s.sendSnapshot(ctx, st, out, w.state)
	}
	delta, ok := w.advance.Delta(st.node)
	switch {
	case !ok:
		return s.sendSnapshot(ctx, st, out, w.state)
	case delta.Empty():
		return nil
	}
	return s.sendDelta(out, delta)
}

func (s *server) sendDelta(out *events, delta mesh.Delta) error {
	// The revisions between the last event's and the present change nothing.
	if later(out.sent, delta.Revision) {
		delta.Revision = out.sent
	}
	e, err := s.hub.encode(delta)
	if err != nil {
		return err
	}
	s.hub.counters.deltas.Add(1)
	return s.send(out, e.text, e.rev)
}

// sendSnapshot sends all of the view. Not all streams make theirs at once: it may be
// large.
func (s *server) sendSnapshot(ctx context.Context, st *stream, out *events, state mesh.State) error {
	select {
	case s.hub.encoding <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	e, err := s.snapshot(st.node, state)
	<-s.hub.encoding
	if err != nil {
		return err
	}
	s.hub.counters.snapshots.Add(1)
	return s.send(out, e.text, e.rev)
}

func (s *server) snapshot(node mesh.Node, state mesh.State) (*event, error) {
	view, ok := state.View(node, s.deployment)
	if !ok {
		return nil, errGone // the next request says so, with its status
	}
	return newEvent(view.Revision, api.EventSnapshot, view)
}

// ping says how current the view is. What belongs to that goes first.
func (s *server) ping(ctx context.Context, st *stream, out *events) error {
	e, err := s.hub.ping()
	if err == nil {
		err = s.flush(ctx, st, out)
	}
	if err == nil && later(out.sent, e.rev) {
		e, err = s.hub.pingAt(out.sent)
	}
	if err == nil {
		err = s.send(out, e.text, e.rev)
	}
	if err == nil {
		st.pings.Add(1)
	}
	return err
}

func (s *server) send(out *events, text []byte, rev mesh.Revision) error {
	err := out.out.write(text)
	if errors.Is(err, errSlow) {
		s.hub.counters.slow.Add(1)
	}
	out.sent, out.last = rev, time.Now()
	return err
}

// events is where a stream's events go.
type events struct {
	out  interface{ write(text []byte) error } // whole events
	sent mesh.Revision                         // of the last one
	last time.Time                             // when that was
}

// wire writes server-sent events. A reader that does not take a part of one within
// the timeout is cut off (over HTTP/1.1 up to 5 s later: crypto/tls tries to say
// goodbye).
type wire struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration // up to half as much again may pass
	clear   bool          // the deadline, after each event
	until   time.Time     // the deadline
}

func (e *wire) start() {
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy in between is not to collect
}

// writePart is how much is to be taken within the timeout: a large view on a slow
// line takes longer as a whole.
const writePart = 64 << 10

// write sends whole events, and flushes them.
func (e *wire) write(text []byte) error {
	for len(text) > 0 {
		part := text[:min(writePart, len(text))]
		text = text[len(part):]
		if err := e.writePart(part); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	if !e.clear {
		return nil // over HTTP/1.1 it matters to writes only
	}
	// HTTP/2 resets a stream when its deadline passes, also when nothing is being
	// written.
	return e.rc.SetWriteDeadline(time.Time{})
}

func (e *wire) writePart(part []byte) error {
	// To move the deadline each time costs a tenth of the whole write.
	if now := time.Now(); e.clear || e.until.Sub(now) < e.timeout {
		e.until = now.Add(e.timeout + e.timeout/2)
		if err := e.rc.SetWriteDeadline(e.until); err != nil {
			return err
		}
	}
	_, err := e.w.Write(part)
	if err == nil {
		err = e.rc.Flush()
	}
	if err != nil && !time.Now().Before(e.until) { // HTTP/2 says only that the stream is closed
		return fmt.Errorf("%w: %w", errSlow, err)
	}
	return err
}
