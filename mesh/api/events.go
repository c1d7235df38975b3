package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// Event is one message of a view stream; one of the fields is set.
type Event struct {
	Snapshot *mesh.View
	Delta    *mesh.Delta
	Ping     *Ping
	Fenced   string // the reason, if the stream ended for good
}

// Stream is an open view stream. Next blocks; Close ends it.
type Stream struct {
	body   io.ReadCloser
	lines  *bufio.Reader
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

// View opens the node's view stream. last is the revision that the node holds (zero:
// none): the controller then begins with a delta that leads from it, if it still
// knows how, and otherwise, as without last, with a snapshot. A controller that is
// behind last answers 503. The stream ends with an error when nothing comes for
// silence (0: one minute); its beginning may take longer.
func (c *Client) View(ctx context.Context, last mesh.Revision, silence time.Duration) (*Stream, error) {
	if silence == 0 {
		silence = time.Minute
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(max(silence, c.begin), func() { cancel(ErrSilent) })
	q := request{method: http.MethodGet, path: "/v1/nodes/self/view", accept: "text/event-stream", stream: true}
	if last != (mesh.Revision{}) {
		q.last = last.String()
	}
	resp, err := c.send(ctx, q)
	if err != nil {
		timer.Stop()
		cancel(nil)
		return nil, silent(ctx, err)
	}
	timer.Reset(silence)
	s := &Stream{body: resp.Body, ctx: ctx, cancel: cancel, timer: timer}
	s.lines = bufio.NewReaderSize(&watched{resp.Body, timer, silence}, 64<<10)
	return s, nil
}

// ErrSilent says that a view stream was given up because nothing came: the
// controller hangs, or the way to it is broken.
var ErrSilent = errors.New("nothing was heard")

// silent returns ErrSilent instead of err if that is why.
func silent(ctx context.Context, err error) error {
	if why := context.Cause(ctx); errors.Is(why, ErrSilent) {
		return why
	}
	return err
}

// streamTransport makes HTTP/1.1 connections, one for each stream: a stream is the
// only one on its connection anyway, HTTP/2's frames and windows cost the
// controller more, and the connection's own acknowledgements are the stream's.
func streamTransport(cfg Config) http.RoundTripper {
	var only http.Protocols
	only.SetHTTP1(true)
	return &http.Transport{
		TLSClientConfig:     cfg.TLS.Clone(),
		DialContext:         cfg.Dial,
		TLSHandshakeTimeout: connectTimeout,
		Protocols:           &only,
		DisableCompression:  true,
		IdleConnTimeout:     time.Second,
	}
}

// beginTimeout bounds the time until a stream begins. A controller that finds the
// node's key in use first sees for a few seconds whether that is so, and one that is
// a little behind waits as long.
const beginTimeout = 10 * time.Second

// watched restarts the silence timer with every read that brings something.
type watched struct {
	r       io.Reader
	timer   *time.Timer
	silence time.Duration
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	if n > 0 {
		w.timer.Reset(w.silence)
	}
	return n, err
}

// Close ends the stream.
func (s *Stream) Close() {
	s.timer.Stop()
	s.cancel(nil)
	s.body.Close()
}

// Next returns the next event. Events of a kind that is not known are skipped.
func (s *Stream) Next() (Event, error) {
	var kind string
	var data []byte
	for {
		line, err := s.lines.ReadBytes('\n')
		if err != nil {
			if s.ctx != nil {
				err = silent(s.ctx, err)
			}
			return Event{}, fmt.Errorf("view stream: %w", err)
		}
		line = bytes.TrimRight(line, "\r\n")
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(line) == 0 && kind != "":
			e, err := decodeEvent(kind, data)
			if err != nil || e != (Event{}) {
				return e, err
			}
			kind, data = "", nil
		case string(field) == "event":
			kind = string(value)
		case string(field) == "data":
			if data != nil {
				data = append(data, '\n')
			}
			data = append(data, value...)
		}
	}
}

func decodeEvent(kind string, data []byte) (e Event, err error) {
	switch kind {
	case EventSnapshot:
		e.Snapshot = &mesh.View{}
		err = json.Unmarshal(data, e.Snapshot)
	case EventDelta:
		e.Delta = &mesh.Delta{}
		err = json.Unmarshal(data, e.Delta)
	case EventPing:
		e.Ping = &Ping{}
		err = json.Unmarshal(data, e.Ping)
	case EventFenced:
		e.Fenced = string(data)
	}
	if err != nil {
		return Event{}, fmt.Errorf("view stream: %s: %w", kind, err)
	}
	return e, nil
}
