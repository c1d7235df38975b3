package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var here = netip.MustParseAddr("127.0.0.1")

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, address)
}

func portOf(t *testing.T, l net.Listener) uint16 {
	t.Helper()
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

func TestAttempts(t *testing.T) {
	t.Parallel()
	var asked atomic.Pointer[string]
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uri := r.Method + " " + r.RequestURI
		asked.Store(&uri)
		var code int
		fmt.Sscan(strings.TrimPrefix(r.URL.Path, "/"), &code)
		if code == 0 {
			<-r.Context().Done() // never
			return
		}
		w.Header().Set("Location", "/500")
		w.WriteHeader(code)
	}))
	defer web.Close()
	port := portOf(t, web.Listener)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := portOf(t, closed)
	closed.Close()
	for _, tt := range []struct {
		check mesh.Check
		why   string // it fails
	}{
		{mesh.Check{Kind: mesh.CheckTCP, Port: port}, ""},
		{mesh.Check{Kind: mesh.CheckTCP, Port: nobody}, "refused"},
		{mesh.Check{Kind: mesh.CheckHTTP, Port: port, Path: "/200?x=1"}, ""},
		{mesh.Check{Kind: mesh.CheckHTTP, Port: port, Path: "/204"}, ""},
		{mesh.Check{Kind: mesh.CheckHTTP, Port: port, Path: "/302"}, ""}, // and is not followed
		{mesh.Check{Kind: mesh.CheckHTTP, Port: port, Path: "/404"}, "HTTP status 404"},
		{mesh.Check{Kind: mesh.CheckHTTP, Port: port, Path: "/503"}, "HTTP status 503"},
		{mesh.Check{Kind: mesh.CheckHTTP, Port: nobody, Path: "/200"}, "refused"},
		{mesh.Check{Kind: mesh.CheckHTTP, Port: port, Path: "/hang"}, "deadline"},
		{mesh.Check{Kind: mesh.CheckExec, Command: "true"}, "not one that is made from outside"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if tt.why == "deadline" {
			cancel()
			ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
		}
		err := Attempt(ctx, dial, tt.check, here)
		cancel()
		if tt.why == "" && err != nil || tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why)) {
			t.Errorf("%s: %v, want %q", tt.check, err, tt.why)
		}
		if want := "GET " + tt.check.Path; tt.check.Kind == mesh.CheckHTTP && tt.check.Port == port && *asked.Load() != want {
			t.Errorf("asked for %s, want %s", *asked.Load(), want)
		}
	}
}

// watched runs a Watch until the test ends, and tells each change.
func watched(t *testing.T, c Config) (*Watch, func(Verdict) Health) {
	t.Helper()
	changed := make(chan struct{}, 100)
	c.Addr, c.Dial, c.Changed = here, dial, func() { changed <- struct{}{} }
	w := New(c)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return w, func(want Verdict) Health {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			if h := w.Health(); h.Verdict == want {
				return h
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("it is %+v, want %s", w.Health(), want)
			}
		}
	}
}

const fast = mesh.Duration(100 * time.Millisecond)

// A machine starts late, fails, and comes back; all of its checks have to pass.
func TestWatch(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			w.WriteHeader(500)
		}
	}))
	defer web.Close()
	port := portOf(t, web.Listener)
	_, await := watched(t, Config{Start: time.Now(), Checks: []mesh.Check{
		{Kind: mesh.CheckTCP, Port: port, Interval: fast}, {Kind: mesh.CheckHTTP, Port: port, Path: "/", Interval: fast},
	}})
	await(Passing)
	broken.Store(true)
	if h := await(Failing); !strings.Contains(h.Note, "http:") || !strings.Contains(h.Note, "HTTP status 500") {
		t.Errorf("note %q", h.Note)
	}
	broken.Store(false)
	if h := await(Passing); h.Note != "" {
		t.Errorf("note %q", h.Note)
	}
}

// A check's own thresholds count.
func TestThresholds(t *testing.T) {
	t.Parallel()
	w := New(Config{Checks: []mesh.Check{{Kind: mesh.CheckExec, Command: "true", Fall: 1, Rise: 3}}, Start: begin})
	for i, tt := range []struct {
		failure error
		want    Verdict
	}{
		{nil, Passing}, {errors.New("no"), Failing}, {nil, Failing}, {nil, Failing}, {nil, Passing},
	} {
		w.Told(0, tt.failure, begin.Add(time.Duration(i+1)*time.Second))
		if got := w.Health().Verdict; got != tt.want {
			t.Errorf("after result %d: %s, want %s", i, got, tt.want)
		}
	}
}

// In its grace a machine cannot fail; after it, it does.
func TestGrace(t *testing.T) {
	t.Parallel()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := portOf(t, closed)
	closed.Close()
	start := time.Now()
	_, await := watched(t, Config{Start: start, Checks: []mesh.Check{{Kind: mesh.CheckTCP, Port: nobody, Interval: fast, Grace: mesh.Duration(800 * time.Millisecond)}}})
	h := await(Failing)
	if h.Since.Sub(start) < 800*time.Millisecond {
		t.Errorf("it failed after %s", h.Since.Sub(start))
	}
}

// What commands say counts as what is seen from outside, and silence as a failure.
func TestCommandsAreTold(t *testing.T) {
	t.Parallel()
	w, await := watched(t, Config{Start: time.Now(), Checks: []mesh.Check{{Kind: mesh.CheckExec, Command: "x", Interval: fast, Timeout: fast}}})
	if w.Told(1, nil, time.Now()) || w.Told(-1, nil, time.Now()) {
		t.Error("a check that there is not was told of")
	}
	if !w.Told(0, nil, time.Now()) {
		t.Error("the check was not told of")
	}
	await(Passing)
	for range mesh.DefaultCheckFall {
		w.Told(0, errors.New("exit status 1"), time.Now())
	}
	if h := await(Failing); h.Note != "exec:x: exit status 1" {
		t.Errorf("note %q", h.Note)
	}
	for range mesh.DefaultCheckRise {
		w.Told(0, nil, time.Now())
	}
	await(Passing)
	if h := await(Failing); !strings.Contains(h.Note, "nobody runs it") { // nothing more is heard
		t.Errorf("note %q", h.Note)
	}
}

// One that passed before it was looked at goes on passing until it fails.
func TestWatchGoesOn(t *testing.T) {
	t.Parallel()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := portOf(t, closed)
	closed.Close()
	w := New(Config{Start: time.Now(), Before: Passing, Checks: []mesh.Check{{Kind: mesh.CheckTCP, Port: nobody}}})
	if h := w.Health(); h.Verdict != Passing {
		t.Errorf("it begins %s", h.Verdict)
	}
	_, await := watched(t, Config{Start: time.Now(), Before: Passing, Checks: []mesh.Check{{Kind: mesh.CheckTCP, Port: nobody, Interval: fast}}})
	await(Failing)
}
