package prober

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Config says who an endpoint is.
type Config struct {
	Socket string           // the file of the unix socket
	Who    string           // what it says that it is; no blanks
	Echoes []netip.AddrPort // where it listens, over TCP and UDP
}

// Serve listens, and does what it is told, until ctx ends.
func Serve(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	e := &ears{heard: map[Heard]*Heard{}}
	for _, at := range cfg.Echoes {
		if _, err := e.listen(ctx, &group, at); err != nil {
			return err
		}
	}
	if err := os.Remove(cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", cfg.Socket)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler(cfg, e), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func handler(cfg Config, e *ears) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /self", func(w http.ResponseWriter, _ *http.Request) {
		addresses, err := own()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(Self{Who: cfg.Who, Addresses: addresses, Heard: e.take()}) // the caller may be gone
	})
	mux.HandleFunc("POST /ask", func(w http.ResponseWriter, r *http.Request) {
		var in ask
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(Try(r.Context(), cfg.Who, in.Within, in.Questions)) // likewise
	})
	return mux
}

// own lists the global IPv6 addresses of this network namespace.
func own() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

// Client tells the endpoint at a unix socket what to do.
type Client struct{ Socket string }

// Ask has the questions tried, within that long each.
func (c Client) Ask(ctx context.Context, within time.Duration, questions []Question) (answers []Answer, err error) {
	if len(questions) == 0 {
		return nil, nil
	}
	if err = c.do(ctx, "POST", "/ask", ask{within, questions}, &answers); err == nil && len(answers) != len(questions) {
		err = fmt.Errorf("%s: %d answers to %d questions", c.Socket, len(answers), len(questions))
	}
	return answers, err
}

// Self asks the endpoint about itself, and what it has heard since the last time.
func (c Client) Self(ctx context.Context) (s Self, err error) {
	return s, c.do(ctx, "GET", "/self", nil, &s)
}

func (c Client) do(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://prober"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
	}}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Socket, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", c.Socket, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
