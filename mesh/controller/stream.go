package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// Why a stream ends, other than by the node's own doing.
var (
	errStopping = errors.New("the controller is being stopped")
	errGone     = errors.New("the node was removed")
	errReplaced = errors.New("the same node has opened another stream, and this one is dead")
)

// serveView is GET /v1/nodes/self/view: a snapshot of what the node may know, then
// what changes in it, and pings between.
func (s *server) serveView(w http.ResponseWriter, req *http.Request) {
	c := callerOf(req.Context())
	ctx, cancel := context.WithCancelCause(req.Context())
	defer cancel(nil)
	stop := context.AfterFunc(s.closing, func() { cancel(errStopping) })
	defer stop()
	st := newStream(c, connectionOf(req.Context()), ctx, cancel)
	out := &events{w: w, rc: http.NewResponseController(w), timeout: s.cfg.WriteTimeout}
	out.rc.SetReadDeadline(time.Time{})

	if err := s.streams.admit(ctx, st, s.cfg.FenceAfter); err != nil {
		if fenced := (*fencedError)(nil); errors.As(err, &fenced) {
			s.log.Error("two nodes use one key: the newer is fenced", "node", c.node.String(), "addr", c.addr, "other", fenced.other)
			out.start()
			out.send("", api.EventFenced, []byte(fenced.Error()))
		}
		return
	}
	defer s.streams.leave(st)
	if c.role == host {
		s.background.Go(func() { s.announce(ctx, c.node.Name) })
	}
	err := s.follow(ctx, c, st, out)
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

// follow sends the node its view until the stream ends, and returns why it did.
func (s *server) follow(ctx context.Context, c caller, st *stream, out *events) error {
	select {
	case <-s.store.Ready():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// Subscribed before the state is read, so that no change falls between.
	wake, unsubscribe := s.store.Subscribe()
	defer unsubscribe()
	at := s.store.State()
	view, err := s.viewOf(c, at)
	if err != nil {
		writeRefusal(out.w, s.refusal("self-view", err))
		return err
	}
	out.start()
	if err := out.sendJSON(view.Revision, api.EventSnapshot, view); err != nil {
		return err
	}
	ping := time.NewTicker(s.cfg.PingEvery)
	defer ping.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake:
			next := s.store.State()
			if next.Revision == at.Revision {
				continue
			}
			at = next
			nextView, err := s.viewOf(c, at)
			if err != nil {
				return err // the next request says why, with its status
			}
			delta := mesh.DiffViews(view, nextView)
			view = nextView
			if delta.Empty() {
				continue
			}
			if err := out.sendJSON(delta.Revision, api.EventDelta, delta); err != nil {
				return err
			}
			continue
		case <-ping.C:
		case <-st.nudge:
		}
		// The time is when this controller last knew its state to be current.
		if err := out.sendJSON(at.Revision, api.EventPing, api.Ping{Revision: at.Revision, Time: time.Now().Add(-s.store.Age()).UTC()}); err != nil {
			return err
		}
		st.pings.Add(1)
	}
}

// viewOf returns the node's view, if the key that opened the stream is still its.
func (s *server) viewOf(c caller, st mesh.State) (mesh.View, error) {
	if n, ok := st.NodeByTLSKey(c.key); ok && n == c.node {
		if v, ok := st.View(c.node, s.deployment); ok {
			return v, nil
		}
	}
	return mesh.View{}, refuse(api.ErrUnauthorized, "to join again it needs a new token", "%s: %s", c.node, errGone)
}

// events writes server-sent events. A reader that does not take one within the
// timeout is cut off (over HTTP/1.1 up to 5 s later: crypto/tls tries to say
// goodbye).
type events struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
}

func (e *events) start() {
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy in between is not to collect
}

func (e *events) sendJSON(rev mesh.Revision, kind string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", kind, err)
	}
	return e.send(rev.String(), kind, b)
}

// send writes one event, data without line breaks, and flushes it.
func (e *events) send(id, kind string, data []byte) error {
	if err := e.rc.SetWriteDeadline(time.Now().Add(e.timeout)); err != nil {
		return fmt.Errorf("send %s: %w", kind, err)
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	_, err := fmt.Fprintf(e.w, "%sevent: %s\ndata: %s\n\n", id, kind, data)
	if err == nil {
		err = e.rc.Flush()
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", kind, err)
	}
	// HTTP/2 resets a stream when its deadline passes, also when nothing is being
	// written.
	return e.rc.SetWriteDeadline(time.Time{})
}
