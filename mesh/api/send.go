package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// turns says in which order the controllers are asked. The one that answered last
// comes first; those that failed last time come last, the one whose turn is the
// longest ago in front of them; chance decides about the others, so that the clients
// of a controller that is gone spread.
type turns struct {
	mu       sync.Mutex // guards what follows
	first    int        // -1: none
	failed   []int      // the failure with which the last request ended; 0: it did not
	failures int        // so far
}

func newTurns(n int) turns { return turns{failed: make([]int, n)} }

func (t *turns) order() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := rand.Perm(len(t.failed))
	rank := func(i int) int {
		if i == t.first {
			return -1
		}
		return t.failed[i]
	}
	slices.SortStableFunc(out, func(a, b int) int { return rank(a) - rank(b) })
	return out
}

func (t *turns) answered(i int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.first, t.failed[i] = i, 0
}

func (t *turns) missed(i int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures++
	if t.failed[i] = t.failures; t.first == i {
		t.first = -1
	}
}

// request is what send sends, to one controller or another.
type request struct {
	method, path, accept string
	body                 []byte
	last                 string // Last-Event-ID, or empty
	stream               bool
}

// repeatable reports whether it does not matter if it is done twice (RFC 9110
// section 9.2.2).
func (q request) repeatable() bool {
	switch q.method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// send asks one controller after the other until one answers. An answer that
// refuses is returned as *Error.
func (c *Client) send(ctx context.Context, q request) (*http.Response, error) {
	var reasons []error
	unsure := false // an earlier one may have done it
	for _, n := range c.turns.order() {
		resp, left, err := c.sendTo(ctx, n, q)
		if err == nil && resp.StatusCode < 300 {
			c.turns.answered(n)
			if age, e := strconv.ParseUint(resp.Header.Get("Age"), 10, 31); e == nil && age > 0 && c.cfg.OnAge != nil {
				c.cfg.OnAge(time.Duration(age) * time.Second)
			}
			return resp, nil
		}
		if err == nil {
			refusal := readError(resp)
			switch refusal.Status {
			case http.StatusServiceUnavailable, http.StatusBadGateway:
				err, left = refusal, refusal.Unsure
			case http.StatusGatewayTimeout: // of a proxy on the way
				err = refusal
			case http.StatusNotFound:
				if c.turns.answered(n); unsure && q.method == http.MethodDelete {
					return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody}, nil
				}
				return nil, refusal
			default:
				c.turns.answered(n)
				return nil, refusal
			}
		}
		c.turns.missed(n)
		reasons = append(reasons, fmt.Errorf("%s: %w", c.cfg.Servers[n], err))
		unsure = unsure || left
		if ctx.Err() != nil || left && !q.repeatable() {
			break
		}
	}
	return nil, &unanswered{reasons: reasons, unsure: unsure && q.method != http.MethodGet}
}

// sendTo asks one controller. left is whether the request may have reached it.
func (c *Client) sendTo(ctx context.Context, n int, q request) (resp *http.Response, left bool, err error) {
	client, cancel := c.streams, context.CancelFunc(func() {})
	if !q.stream {
		client = c.http
		ctx, cancel = context.WithTimeout(ctx, c.cfg.Timeout)
	}
	defer func() {
		if err != nil {
			cancel()
		} else {
			resp.Body = &ending{resp.Body, cancel}
		}
	}()
	// Called before anything is written, on the goroutine that asks.
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { left = true }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), q.method, c.cfg.Servers[n]+q.path, bytes.NewReader(q.body))
	if err != nil {
		return nil, false, err
	}
	req.Header.Set("Accept", q.accept)
	if q.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if q.last != "" {
		req.Header.Set("Last-Event-ID", q.last)
	}
	if c.cfg.Bearer != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Bearer)
	}
	resp, err = client.Do(req)
	if err != nil {
		return nil, left, trimURL(err)
	}
	return resp, true, nil
}

// ending ends a request's context with its body.
type ending struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (e *ending) Close() error {
	defer e.cancel()
	return e.ReadCloser.Close()
}

// unanswered is why no controller did what was asked.
type unanswered struct {
	reasons []error // one for each that was asked
	unsure  bool    // one of them may have done it
}

func (u *unanswered) Unwrap() []error { return append([]error{ErrUnreachable}, u.reasons...) }

func (u *unanswered) Error() string {
	what := ErrUnreachable.Error()
	if !slices.ContainsFunc(u.reasons, func(err error) bool { return !errors.As(err, new(*Error)) }) {
		what = "no controller can do it now"
	}
	var texts []string
	for _, err := range u.reasons {
		texts = append(texts, err.Error())
	}
	text := what + ": " + strings.Join(texts, "; ")
	if u.unsure {
		text += "; it may have been done all the same"
	}
	return text
}

// Hint returns what to do next; see mesh.WithHint.
func (u *unanswered) Hint() string {
	if u.unsure {
		return "look whether it was done before you try again"
	}
	for _, err := range u.reasons {
		if hint := mesh.HintOf(err); hint != "" {
			return hint
		}
	}
	return ""
}
