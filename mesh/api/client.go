package api

import (
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
	"time"
)

// Config says how to reach the controllers of a mesh.
type Config struct {
	// Servers are base URLs, at least one. The first is asked first until another one
	// has answered; the others follow in random order.
	Servers []string
	TLS     *tls.Config   // whom to trust, and the node's certificate; see enroll.ClientTLS
	Bearer  string        // an operator's "<id>.<secret>", or empty
	Timeout time.Duration // of one request to one server; default 15 s
	// Dial connects to a server; default: from this process, within 5 s.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// OnAge, if not nil, is told of answers that may be out of date: the controller
	// last knew so long ago that it was current.
	OnAge func(time.Duration)
}

// Client talks to the controllers. It is safe for use by many goroutines.
type Client struct {
	cfg     Config
	http    *http.Client
	streams *http.Client
	begin   time.Duration // see beginTimeout
	turns   turns
}

// ErrUnreachable says that no controller answered, or none could do it now. It
// wraps the reasons.
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
		cfg.Dial = (&net.Dialer{Timeout: connectTimeout}).DialContext
	}
	return &Client{
		cfg: cfg, turns: newTurns(len(cfg.Servers)), begin: beginTimeout, streams: &http.Client{Transport: streamTransport(cfg)},
		http: &http.Client{Transport: &http.Transport{
			TLSClientConfig:     cfg.TLS,
			DialContext:         cfg.Dial,
			TLSHandshakeTimeout: connectTimeout,
			ForceAttemptHTTP2:   true,
			IdleConnTimeout:     time.Minute,
		}},
	}, nil
}

// connectTimeout bounds a connection, and once more its handshake: a controller
// that hangs still accepts connections.
const connectTimeout = 5 * time.Second

// Close drops idle connections.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.streams.CloseIdleConnections()
}

// Server returns the controller that is asked first: the one that answered last.
func (c *Client) Server() string { return c.cfg.Servers[c.turns.order()[0]] }

// Do sends in (nil: no body) as JSON and reads the answer into out (nil: ignored).
// A refusal is an *Error. A controller that does not answer, or cannot do it now
// (503), is followed by the next one; if none can, the error wraps ErrUnreachable.
//
// A change that a controller may have made is not asked for again elsewhere, unless
// twice is the same as once (PUT, DELETE): the error then says so, and wraps
// ErrUnreachable, too.
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
	resp, err := c.send(ctx, request{method: method, path: path, body: body, accept: "application/json"})
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
