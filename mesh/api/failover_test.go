package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
)

// counting counts what a handler is asked.
func counting(n *atomic.Int32, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { n.Add(1); h(w, r) }
}

// A change is asked for at a second controller exactly if the first cannot have made
// it, or if making it twice is making it once.
func TestNothingIsDoneTwice(t *testing.T) {
	t.Parallel()
	always := map[string]bool{"GET": true, "PUT": true, "DELETE": true, "POST": true, "PATCH": true}
	repeatable := map[string]bool{"GET": true, "PUT": true, "DELETE": true}
	for _, tt := range []struct {
		name  string
		first func(t *testing.T) (url string, server *httptest.Server)
		again map[string]bool
	}{
		{"nobody listens", func(t *testing.T) (string, *httptest.Server) { return closedPort(t), nil }, always},
		{"no handshake", func(t *testing.T) (string, *httptest.Server) { return noHandshake(t), nil }, always},
		{"503", answering(answer(503, `{"code":"unavailable","detail":"no leader"}`)), always},
		{"503, and it may be done", answering(answer(503, `{"code":"unavailable","detail":"etcd did not answer in time","unsure":true}`)), repeatable},
		{"502", answering(answer(502, "")), always},
		{"504 of a proxy", answering(answer(504, "")), repeatable},
		{"the answer is cut off", answering(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), repeatable},
		{"no answer in time", answering(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), repeatable},
		{"the connection is cut", cutting, repeatable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			url, server := tt.first(t)
			timeout := 10 * time.Second
			if strings.HasSuffix(tt.name, "in time") {
				timeout = 300 * time.Millisecond
			}
			var second atomic.Int32
			other := httptest.NewTLSServer(counting(&second, answer(200, `"yes"`)))
			t.Cleanup(other.Close)
			pool := other.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs.Clone()
			if server != nil {
				pool.AddCert(server.Certificate())
			}
			for _, method := range []string{"GET", "PUT", "DELETE", "POST", "PATCH"} {
				c, err := New(Config{Servers: []string{url, other.URL}, TLS: &tls.Config{RootCAs: pool}, Timeout: timeout})
				if err != nil {
					t.Fatal(err)
				}
				second.Store(0)
				var out string
				err = c.Do(t.Context(), method, "/x", CreateOrg{Name: "acme"}, &out)
				c.Close()
				switch want := tt.again[method]; {
				case want && (err != nil || out != "yes" || second.Load() != 1):
					t.Errorf("%s: %v, asked elsewhere %d times; want once", method, err, second.Load())
				case !want && (second.Load() != 0 || !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "may have been done") || mesh.HintOf(err) == ""):
					t.Errorf("%s: asked elsewhere %d times, %v; want an error that says that it may have been done", method, second.Load(), err)
				}
			}
		})
	}
}

func answering(h http.HandlerFunc) func(t *testing.T) (string, *httptest.Server) {
	return func(t *testing.T) (string, *httptest.Server) {
		s := httptest.NewUnstartedServer(h)
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.URL, s
	}
}

// cutting cuts the connection when it has read a request.
func cutting(t *testing.T) (string, *httptest.Server) {
	var s *httptest.Server
	url, s := answering(func(http.ResponseWriter, *http.Request) {
		s.CloseClientConnections()
		panic(http.ErrAbortHandler)
	})(t)
	return url, s
}

func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "https://" + l.Addr().String()
}

// noHandshake accepts connections and ends them.
func noHandshake(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "https://" + l.Addr().String()
}

// The first one removed it, and its answer got lost: that the second does not find
// it is no error.
func TestDeleteWhoseAnswerGotLost(t *testing.T) {
	t.Parallel()
	lost := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	gone := answer(404, `{"code":"not-found","detail":"org acme: not found"}`)
	if err := serve(t, "", lost, gone).Do(t.Context(), "DELETE", "/x", nil, nil); err != nil {
		t.Errorf("after a lost answer: %v", err)
	}
	if err := serve(t, "", answer(503, ""), gone).Do(t.Context(), "DELETE", "/x", nil, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("after a controller that did nothing: %v", err)
	}
	if err := serve(t, "", lost, gone).Do(t.Context(), "PUT", "/x", nil, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("another method: %v", err)
	}
}

func TestNoneCanDoItNow(t *testing.T) {
	t.Parallel()
	err := serve(t, "", answer(503, `{"code":"unavailable","detail":"etcd has no leader","hint":"try again in a moment"}`)).Do(t.Context(), "POST", "/x", nil, nil)
	if !errors.Is(err, ErrUnreachable) || !errors.Is(err, ErrUnavailable) || mesh.HintOf(err) != "try again in a moment" {
		t.Errorf("%v, hint %q", err, mesh.HintOf(err))
	}
	if text := err.Error(); !strings.HasPrefix(text, "no controller can do it now: https://") || !strings.HasSuffix(text, "etcd has no leader") {
		t.Errorf("text: %s", text)
	}
}

// The order is chance but for the one that answered last, which is first, and those
// that failed last, which are last.
func TestTurns(t *testing.T) {
	t.Parallel()
	x := newTurns(4)
	orders := func() []string {
		seen := map[string]bool{}
		for range 300 {
			seen[fmt.Sprint(x.order())] = true
		}
		return slices.Sorted(maps.Keys(seen))
	}
	for _, tt := range []struct {
		what string
		do   func()
		want []string
	}{
		{"new", func() {}, []string{"[0 1 2 3]", "[0 1 3 2]", "[0 2 1 3]", "[0 2 3 1]", "[0 3 1 2]", "[0 3 2 1]"}},
		{"2 answered", func() { x.answered(2) }, []string{"[2 0 1 3]", "[2 0 3 1]", "[2 1 0 3]", "[2 1 3 0]", "[2 3 0 1]", "[2 3 1 0]"}},
		{"0 failed", func() { x.missed(0) }, []string{"[2 1 3 0]", "[2 3 1 0]"}},
		{"2 failed", func() { x.missed(2) }, []string{"[1 3 0 2]", "[3 1 0 2]"}},
		{"1 failed", func() { x.missed(1) }, []string{"[3 0 2 1]"}},
		{"0 failed again", func() { x.missed(0) }, []string{"[3 2 1 0]"}},
		{"1 answered", func() { x.answered(1) }, []string{"[1 3 2 0]"}},
	} {
		tt.do()
		if diff := cmp.Diff(tt.want, orders()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.what, diff)
		}
	}
}

func TestAgeIsTold(t *testing.T) {
	t.Parallel()
	var ages []time.Duration
	for _, header := range []string{"", "0", "12", "-1", "soon"} {
		c := serve(t, "", func(w http.ResponseWriter, _ *http.Request) {
			if header != "" {
				w.Header().Set("Age", header)
			}
		})
		c.cfg.OnAge = func(d time.Duration) { ages = append(ages, d) }
		if err := c.Do(t.Context(), "GET", "/x", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]time.Duration{12 * time.Second}, ages); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A stream has a connection of its own, and says from where on it is wanted.
func TestStreamRequest(t *testing.T) {
	t.Parallel()
	var got []string
	c := serve(t, "", func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Proto+" "+strings.Join(r.Header["Last-Event-Id"], ","))
		if r.Header.Get("Last-Event-ID") == "3.14" {
			answer(503, `{"code":"unavailable","detail":"it is behind"}`)(w, r)
			return
		}
		stream("event: ping\ndata: {\"revision\":\"1.1\"}\n\n", false)(w, r)
	})
	for _, last := range []mesh.Revision{{}, {Epoch: 2, Revision: 7}} {
		s, err := c.View(t.Context(), last, 0)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := s.Next(); err != nil || e.Ping == nil {
			t.Errorf("%+v, %v", e, err)
		}
		s.Close()
	}
	if _, err := c.View(t.Context(), mesh.Revision{Epoch: 3, Revision: 14}, 0); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "it is behind") {
		t.Errorf("behind: %v", err)
	}
	if diff := cmp.Diff([]string{"HTTP/1.1 ", "HTTP/1.1 2.7", "HTTP/1.1 3.14"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A controller that accepts a stream and says nothing is known by its silence, and
// told from one that ended it.
func TestSilenceIsTold(t *testing.T) {
	t.Parallel()
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	c := serve(t, "", hang)
	c.begin = 200 * time.Millisecond
	if _, err := c.View(t.Context(), mesh.Revision{}, 100*time.Millisecond); !errors.Is(err, ErrSilent) {
		t.Errorf("before the head: %v", err)
	}
	for _, tt := range []struct {
		open   bool
		silent bool
	}{{true, true}, {false, false}} {
		s, err := serve(t, "", stream(": hello\n", tt.open)).View(t.Context(), mesh.Revision{}, 200*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Next(); errors.Is(err, ErrSilent) != tt.silent {
			t.Errorf("open %v: %v", tt.open, err)
		}
		s.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := serve(t, "", hang).View(ctx, mesh.Revision{}, time.Minute); errors.Is(err, ErrSilent) || !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}
