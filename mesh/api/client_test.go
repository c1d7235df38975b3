package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts HTTPS servers and returns a client of all of them, in this order.
func serve(t *testing.T, bearer string, handlers ...http.HandlerFunc) *Client {
	t.Helper()
	cfg := Config{Bearer: bearer, Timeout: 5 * time.Second, TLS: &tls.Config{RootCAs: x509.NewCertPool()}}
	for _, h := range handlers {
		s := httptest.NewUnstartedServer(h)
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		cfg.TLS.RootCAs.AddCert(s.Certificate())
		cfg.Servers = append(cfg.Servers, s.URL+"/")
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, servers := range [][]string{nil, {""}, {"127.0.0.1:7443"}, {"http://127.0.0.1:7443"}, {"https://"}, {"https://a:7443", "x"}, {"https://a:b:c"}} {
		if _, err := New(Config{Servers: servers}); err == nil {
			t.Errorf("%q was taken", servers)
		}
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	c := serve(t, "ann.secret", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		json.NewEncoder(w).Encode([]string{
			r.Method, r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("Accept"), r.Header.Get("Content-Type"), string(b),
		})
	})
	for _, tt := range []struct {
		method string
		in     any
		want   []string
	}{
		{"GET", nil, []string{"GET", "/v1/orgs", "Bearer ann.secret", "application/json", "", ""}},
		{"POST", CreateOrg{Name: "acme"}, []string{"POST", "/v1/orgs", "Bearer ann.secret", "application/json", "application/json", `{"name":"acme"}`}},
	} {
		var got []string
		if err := c.Do(t.Context(), tt.method, "/v1/orgs", tt.in, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.method, diff)
		}
		if err := c.Do(t.Context(), tt.method, "/v1/orgs", tt.in, nil); err != nil {
			t.Errorf("without out: %v", err)
		}
	}
	var out []string
	if err := serve(t, "", answer(204, "")).Do(t.Context(), "DELETE", "/x", nil, &out); err != nil || out != nil {
		t.Errorf("204: %v, %v", out, err)
	}
	if err := serve(t, "", answer(200, "nonsense")).Do(t.Context(), "GET", "/x", nil, &out); err == nil || !strings.Contains(err.Error(), "GET /x: read the answer") {
		t.Errorf("nonsense: %v", err)
	}
	if err := c.Do(t.Context(), "POST", "/x", func() {}, nil); err == nil {
		t.Error("a function was sent")
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		status  int
		body    string
		is      error
		message string
		hint    string
	}{
		{"problem", 403, `{"status":403,"code":"token-refused","detail":"it is spent","hint":"make a new one"}`, ErrToken, "it is spent", "make a new one"},
		{"the status on the wire counts", 404, `{"status":200,"code":"not-found","detail":"x"}`, ErrNotFound, "x", ""},
		{"code from the status", 404, `{"detail":"x"}`, ErrNotFound, "x", ""},
		{"no problem, but text", 401, `go away`, ErrUnauthorized, "the controller answered 401 Unauthorized", ""},
		{"nothing", 507, ``, ErrFull, "the controller answered 507 Insufficient Storage", ""},
		{"not JSON of ours", 403, `{"error":"x"}`, ErrForbidden, "the controller answered 403 Forbidden", ""},
		{"unknown code", 418, `{"code":"teapot","detail":"short and stout"}`, &Error{Code: "teapot"}, "short and stout", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := serve(t, "", answer(tt.status, tt.body)).Do(t.Context(), "GET", "/x", nil, nil)
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, tt.is) || e.Status != tt.status || err.Error() != tt.message || mesh.HintOf(err) != tt.hint {
				t.Errorf("got %#v (%v), want %v: %q, hint %q", e, err, tt.is, tt.message, tt.hint)
			}
		})
	}
}

// A controller that does not answer, or whose store does not, is followed by the
// next one; one that refuses has the last word.
func TestServersAreTriedInTurn(t *testing.T) {
	t.Parallel()
	var refusing atomic.Bool
	var first, second atomic.Int32
	c := serve(t, "",
		counting(&first, func(w http.ResponseWriter, r *http.Request) {
			if refusing.Load() {
				answer(403, `{"code":"forbidden","detail":"no"}`)(w, r)
				return
			}
			answer(503, `{"code":"unavailable","detail":"no leader"}`)(w, r)
		}),
		counting(&second, answer(200, `"yes"`)))
	for range 3 {
		var out string
		if err := c.Do(t.Context(), "GET", "/x", nil, &out); err != nil || out != "yes" {
			t.Fatalf("%q, %v", out, err)
		}
	}
	if first.Load() != 1 || second.Load() != 3 {
		t.Errorf("the first was asked %d times, the second %d: the one that answered is asked first", first.Load(), second.Load())
	}
	if c.turns.failed[0] == 0 || c.turns.failed[1] != 0 {
		t.Error("it is not remembered that the first failed")
	}
	c.turns.answered(0)
	refusing.Store(true)
	if err := c.Do(t.Context(), "GET", "/x", nil, nil); !errors.Is(err, ErrForbidden) || second.Load() != 3 {
		t.Errorf("a refusal was not the last word: %v", err)
	}

	err := serve(t, "", answer(503, `{"code":"unavailable","detail":"no leader"}`), answer(502, "")).Do(t.Context(), "GET", "/x", nil, nil)
	if !errors.Is(err, ErrUnreachable) || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no leader") {
		t.Errorf("none answers: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(answer(200, ""))
	gone := s.URL
	s.Close()
	c, err := New(Config{Servers: []string{gone}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = c.Do(t.Context(), "GET", "/v1/mesh", nil, nil)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), gone) || strings.Contains(err.Error(), "Get \"") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Do(ctx, "GET", "/v1/mesh", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// stream answers with the text of an event stream, and keeps it open if asked.
func stream(text string, open bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, text)
		http.NewResponseController(w).Flush()
		if open {
			<-r.Context().Done()
		}
	}
}

func TestStream(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	text := ": a comment\n\n" +
		"id: 1.7\nevent: snapshot\ndata: {\"revision\":\"1.7\",\"news\":1}\n\n" +
		"retry: 10\nevent: weather\ndata: fine\n\n" +
		"event:delta\r\ndata:{\"revision\":\"1.8\",\r\ndata:\"removed\":[\"hosts/" + long + "\"]}\r\n\r\n" +
		"id: 1.8\nevent: ping\ndata: {\"revision\":\"1.8\",\"time\":\"2026-01-02T03:04:05Z\"}\n\n" +
		"event: fenced\ndata: another node\n\n"
	c := serve(t, "", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/nodes/self/view" || r.Header.Get("Accept") != "text/event-stream" {
			answer(404, "")(w, r)
			return
		}
		stream(text, false)(w, r)
	})
	s, err := c.View(t.Context(), mesh.Revision{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got []string
	for {
		e, err := s.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("it ends with %v", err)
			}
			break
		}
		switch {
		case e.Snapshot != nil:
			got = append(got, "snapshot "+e.Snapshot.Revision.String())
		case e.Delta != nil:
			got = append(got, fmt.Sprint("delta ", e.Delta.Revision, " ", len(e.Delta.Removed[0])))
		case e.Ping != nil:
			got = append(got, fmt.Sprint("ping ", e.Ping.Revision, " ", e.Ping.Time.Year()))
		default:
			got = append(got, "fenced "+e.Fenced)
		}
	}
	want := []string{"snapshot 1.7", fmt.Sprint("delta 1.8 ", 6+len(long)), "ping 1.8 2026", "fenced another node"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestStreamRefuses(t *testing.T) {
	t.Parallel()
	if _, err := serve(t, "", answer(401, "")).View(t.Context(), mesh.Revision{}, 0); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("refused: %v", err)
	}
	s, err := serve(t, "", stream("event: delta\ndata: {\n\n", false)).View(t.Context(), mesh.Revision{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Next(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("damaged: %v", err)
	}
}

// A stream on which nothing comes ends: the other side may be gone without a word.
func TestStreamEndsInSilence(t *testing.T) {
	t.Parallel()
	s, err := serve(t, "", stream("event: ping\ndata: {\"revision\":\"1.1\"}\n\n", true)).View(t.Context(), mesh.Revision{}, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if e, err := s.Next(); err != nil || e.Ping == nil {
		t.Fatalf("%+v, %v", e, err)
	}
	ended := make(chan error, 1)
	go func() { _, err := s.Next(); ended <- err }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("an event out of nothing")
		}
	case <-time.After(5 * time.Second):
		t.Error("it does not end")
	}
}

func TestStreamCloseEndsNext(t *testing.T) {
	t.Parallel()
	s, err := serve(t, "", stream(": hello\n", true)).View(t.Context(), mesh.Revision{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := s.Next(); ended <- err }()
	s.Close()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("an event out of nothing")
		}
	case <-time.After(5 * time.Second):
		t.Error("it does not end")
	}
}

// Whatever a controller sends, the reader neither panics nor hands out an event
// that is none.
func FuzzStream(f *testing.F) {
	f.Add("event: snapshot\ndata: {}\n\n")
	f.Add("event: ping\ndata: {\"revision\":\"1.1\"}\r\n\r\nevent: fenced\ndata: x\n\n")
	f.Add("event: delta\ndata: {\"removed\":[\"a/b\"]}\n\n:\ndata\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := &Stream{lines: bufio.NewReader(strings.NewReader(text))}
		for {
			e, err := s.Next()
			if err != nil {
				return
			}
			if e == (Event{}) {
				t.Fatal("an event that is none")
			}
			if e.Delta != nil && e.Snapshot == nil {
				mesh.View{}.Apply(*e.Delta)
			}
		}
	})
}

func TestErrorsCompareByCode(t *testing.T) {
	t.Parallel()
	e := fmt.Errorf("wrapped: %w", &Error{Status: 409, Code: "conflict", Message: "x", Advice: "y"})
	if !errors.Is(e, ErrConflict) || errors.Is(e, ErrExists) || errors.Is(e, io.EOF) || mesh.HintOf(e) != "y" {
		t.Error("codes do not tell errors apart")
	}
}
