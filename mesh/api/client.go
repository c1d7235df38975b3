package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// Config says how to reach the controllers of a mesh.
type Config struct {
	Servers []string      // base URLs, tried in turn; at least one
	TLS     *tls.Config   // whom to trust, and the node's certificate; see enroll.ClientTLS
	Bearer  string        // an operator's "<id>.<secret>", or empty
	Timeout time.Duration // of one request to one server; default 15 s
	// Dial connects to a server; default: from this process, within 5 s.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client talks to the controllers. It is safe for use by many goroutines.
type Client struct {
	cfg  Config
	http *http.Client
	next atomic.Uint32 // index of the server that answered last
}

// ErrUnreachable says that no controller answered. It wraps the reasons.
var ErrUnreachable = errors.New("no controller can be reached")

// New returns a client. It connects to nothing yet.
func New(cfg Config) (*Client, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("no controller address given")
	}
	cfg.Servers = slices.Clone(cfg.Servers)
	for i, s := range cfg.Servers {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("controller address %q: want https://HOST:PORT", s)
		}
		cfg.Servers[i] = strings.TrimSuffix(s, "/")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	}
	return &Client{cfg: cfg, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig:     cfg.TLS,
		DialContext:         cfg.Dial,
		TLSHandshakeTimeout: 5 * time.Second,
		ForceAttemptHTTP2:   true,
		IdleConnTimeout:     time.Minute,
	}}}, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Do sends in (nil: no body) as JSON and reads the answer into out (nil: ignored).
// A refusal is an *Error; if no controller answers, the error wraps
// ErrUnreachable. A server that does not answer is followed by the next one.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout*time.Duration(len(c.cfg.Servers)))
	defer cancel()
	resp, err := c.send(ctx, method, path, body, "application/json")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil || resp.StatusCode == http.StatusNoContent {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	return nil
}

// send tries the servers in turn, beginning with the one that answered last. An
// answer that refuses is returned as *Error.
func (c *Client) send(ctx context.Context, method, path string, body []byte, accept string) (*http.Response, error) {
	first := c.next.Load()
	var reasons []error
	for i := range uint32(len(c.cfg.Servers)) {
		n := (first + i) % uint32(len(c.cfg.Servers))
		req, err := http.NewRequestWithContext(ctx, method, c.cfg.Servers[n]+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", accept)
		if body != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		if c.cfg.Bearer != "" {
			req.Header.Set("Authorization", "Bearer "+c.cfg.Bearer)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			reasons = append(reasons, fmt.Errorf("%s: %w", c.cfg.Servers[n], trimURL(err)))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if resp.StatusCode < 300 {
			c.next.Store(n)
			return resp, nil
		}
		refusal := readError(resp)
		if refusal.Status == http.StatusServiceUnavailable || refusal.Status == http.StatusBadGateway {
			reasons = append(reasons, fmt.Errorf("%s: %w", c.cfg.Servers[n], refusal))
			continue
		}
		return nil, refusal
	}
	return nil, fmt.Errorf("%w: %w", ErrUnreachable, errors.Join(reasons...))
}

// trimURL drops the method and URL that net/http puts in front of the reason.
func trimURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func readError(resp *http.Response) *Error {
	defer resp.Body.Close()
	e := &Error{}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if json.Unmarshal(b, e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("the controller answered %s", resp.Status)
	}
	if e.Status = resp.StatusCode; e.Code == "" {
		for _, known := range []*Error{ErrInvalid, ErrUnauthorized, ErrForbidden, ErrNotFound, ErrConflict, ErrFull, ErrUnavailable} {
			if known.Status == e.Status {
				e.Code = known.Code
			}
		}
	}
	return e
}

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
	cancel context.CancelFunc
	timer  *time.Timer
}

// View opens the node's view stream, which begins with a snapshot. The stream ends
// with an error when nothing comes for silence (0: one minute).
func (c *Client) View(ctx context.Context, silence time.Duration) (*Stream, error) {
	if silence == 0 {
		silence = time.Minute
	}
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(silence, cancel)
	resp, err := c.send(ctx, http.MethodGet, "/v1/nodes/self/view", nil, "text/event-stream")
	if err != nil {
		cancel()
		return nil, err
	}
	s := &Stream{body: resp.Body, cancel: cancel, timer: timer}
	s.lines = bufio.NewReaderSize(&watched{resp.Body, timer, silence}, 64<<10)
	return s, nil
}

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
	s.cancel()
	s.body.Close()
}

// Next returns the next event. Events of a kind that is not known are skipped.
func (s *Stream) Next() (Event, error) {
	var kind string
	var data []byte
	for {
		line, err := s.lines.ReadBytes('\n')
		if err != nil {
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
