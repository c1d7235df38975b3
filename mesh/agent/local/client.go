package local

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"

	"github.com/weftmesh/weft/mesh/api"
)

// ErrNotRunning says that nothing listens on the socket.
var ErrNotRunning = errors.New("not running")

// Client asks the program that listens on Socket.
type Client struct{ Socket string }

func (c Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://weft"+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	// One connection a request: an attachment lives as long as its connection.
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
	}}
	resp, err := transport.RoundTrip(req)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return nil, fmt.Errorf("%s: %w (%w)", c.Socket, ErrNotRunning, op.Err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Socket, err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		e := &api.Error{Status: resp.StatusCode}
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if json.Unmarshal(text, e) != nil || e.Message == "" {
			e.Message = fmt.Sprintf("%s: %s", c.Socket, bytes.TrimSpace(text))
		}
		return nil, e
	}
	return resp, nil
}

func (c Client) get(ctx context.Context, path string, out any) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(out)
}

// Status asks what the node does.
func (c Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.get(ctx, "/v1/status", &s)
}

// Dig asks the node's resolver as a member of org.
func (c Client) Dig(ctx context.Context, org, name, kind string) (d Dig, err error) {
	return d, c.get(ctx, "/v1/dig?"+url.Values{"org": {org}, "name": {name}, "type": {kind}}.Encode(), &d)
}

// Explain asks why the node's resolver answers a member of org as it does; as is the
// machine that would ask, or nothing.
func (c Client) Explain(ctx context.Context, org, as, name, kind string) (e Explain, err error) {
	return e, c.get(ctx, "/v1/explain?"+url.Values{"org": {org}, "as": {as}, "name": {name}, "type": {kind}}.Encode(), &e)
}

// Top asks for the names that are asked most.
func (c Client) Top(ctx context.Context) (t Top, err error) {
	return t, c.get(ctx, "/v1/top", &t)
}

// Ping sends one echo to a name or an address as a member of org.
func (c Client) Ping(ctx context.Context, org, name string) (p Ping, err error) {
	return p, c.get(ctx, "/v1/ping?"+url.Values{"org": {org}, "name": {name}}.Encode(), &p)
}

// Down asks a laptop's `weft up` to end. It returns when that has begun.
func (c Client) Down(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodPost, "/v1/down", nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Ready tells the agent that the process of a machine that is being moved can
// serve.
func (c Client) Ready(ctx context.Context, r Ready) error {
	resp, err := c.do(ctx, http.MethodPost, "/v1/attach/ready", r)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Checked tells the agent what a check said that is a command.
func (c Client) Checked(ctx context.Context, r CheckResult) error {
	resp, err := c.do(ctx, http.MethodPost, "/v1/attach/check", r)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Drain has the agent take a machine out of names. When it returns the machine is out
// of its own host's; an error says that the others may not know yet.
func (c Client) Drain(ctx context.Context, r Drain) error {
	resp, err := c.do(ctx, http.MethodPost, "/v1/attach/drain", r)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Attachment is a machine's stay in the mesh.
type Attachment struct {
	Attached
	body    io.ReadCloser
	arrived chan struct{}
	gone    chan struct{}
	held    atomic.Pointer[Held]
	over    *Over // set before gone is closed
}

// Attach asks the agent to attach a machine. The stay ends with ctx or Close.
func (c Client) Attach(ctx context.Context, r AttachRequest) (*Attachment, error) {
	resp, err := c.do(ctx, http.MethodPost, "/v1/attach", r)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewReader(resp.Body)
	a := &Attachment{body: resp.Body, arrived: make(chan struct{}), gone: make(chan struct{})}
	line, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &a.Attached)
	}
	if err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: attach: %w", c.Socket, err)
	}
	a.held.Store(&a.Attached.Held)
	if a.From == "" {
		close(a.arrived)
	}
	go a.follow(lines)
	return a, nil
}

// follow reads notices until the agent has gone.
func (a *Attachment) follow(lines *bufio.Reader) {
	defer close(a.gone)
	here := a.From == ""
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var n Notice
		if json.Unmarshal(line, &n) != nil {
			continue // of a newer agent
		}
		if n.Over != nil {
			a.over = n.Over
		}
		if n.Holds != nil {
			a.held.Store(n.Holds)
			if !here {
				here = true
				close(a.arrived)
			}
		}
	}
}

// Arrived is closed when what is sent to the machine comes here: at once, unless
// it is being moved.
func (a *Attachment) Arrived() <-chan struct{} { return a.arrived }

// Holds is what the machine holds, to come back with. Its endpoint is not valid if
// the agent is of a version that does not say.
func (a *Attachment) Holds() Held { return *a.held.Load() }

// Gone is closed when the connection to the agent has ended.
func (a *Attachment) Gone() <-chan struct{} { return a.gone }

// Over is why the agent ended the stay, once it is gone; nil: it did not say.
func (a *Attachment) Over() *Over { return a.over }

// Close ends the stay.
func (a *Attachment) Close() error { err := a.body.Close(); <-a.gone; return err }
