package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/peers/netns"
)

// serve runs a local server with one handler until the test ends.
func serve(t *testing.T, path string, handler http.HandlerFunc) (end func()) {
	t.Helper()
	log, _ := newLog(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", handler)
	s, err := listenLocal(path, mux, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	end = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		done <- nil
	}
	t.Cleanup(end)
	return end
}

func TestLocalSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "x.sock")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	// One that a crash left: a socket file that nobody listens on.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if answers(path) {
		t.Fatal("nobody answers")
	}
	end := serve(t, path, func(w http.ResponseWriter, r *http.Request) { answer(w, local.Status{Node: "host/a"}, nil) })
	if !answers(path) {
		t.Fatal("it does not answer")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v; want 0660", info.Mode(), err)
	}
	s, err := local.Client{Socket: path}.Status(t.Context())
	if err != nil || s.Node != "host/a" {
		t.Errorf("status: %+v, %v", s, err)
	}
	end()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket stays")
	}
	if _, err := (local.Client{Socket: path}).Status(t.Context()); !errors.Is(err, local.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// Named after the advisory: a local API was open to whoever could connect. Here
// the kernel says who that is; also where the file's mode would let others in.
func TestCVE202241924OnlyRootMayAsk(t *testing.T) {
	if os.Getenv("WEFT_TEST_ASK") != "" {
		_, err := local.Client{Socket: os.Getenv("WEFT_TEST_ASK")}.Status(context.Background())
		fmt.Printf("answer: %v\n", err)
		return
	}
	needRoot(t)
	dir, err := os.MkdirTemp("", "weft-ask-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "x.sock")
	serve(t, path, func(w http.ResponseWriter, r *http.Request) { answer(w, local.Status{}, nil) })
	program := filepath.Join(dir, "test")
	text, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Chmod(dir, 0o755), os.Chmod(path, 0o666), os.WriteFile(program, text, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ask := func(uid uint32) string {
		cmd := exec.Command(program, "-test.run=^TestCVE202241924OnlyRootMayAsk$")
		cmd.Dir, cmd.Env = "/", append(os.Environ(), "WEFT_TEST_ASK="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("as %d: %v\n%s", uid, err, out)
		}
		return string(out)
	}
	if got := ask(0); !strings.Contains(got, "answer: <nil>") {
		t.Errorf("root: %s", got)
	}
	if got := ask(65534); !strings.Contains(got, "only root may ask") {
		t.Errorf("nobody: %s", got)
	}
}

func TestMayAsk(t *testing.T) {
	for _, tt := range []struct {
		uid, own uint32
		want     bool
	}{{0, 0, true}, {1000, 0, false}, {0, 1000, true}, {1000, 1000, true}, {1001, 1000, false}} {
		if got := mayAsk(tt.uid, tt.own); got != tt.want {
			t.Errorf("uid %d asks an agent of %d: %v", tt.uid, tt.own, got)
		}
	}
}

// Errors cross the socket with their code and their hint.
func TestRefuse(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want api.Error
	}{
		{mesh.WithHint(fmt.Errorf("x: %w", api.ErrUnreachable), "do y"), api.Error{Status: 503, Code: "unavailable", Message: "x: no controller can be reached", Advice: "do y"}},
		{fmt.Errorf("x: %w", &api.Error{Status: 404, Code: "not-found", Message: "no z", Advice: "list"}), api.Error{Status: 404, Code: "not-found", Message: "x: no z", Advice: "list"}},
		{&notFound{"web: NXDOMAIN"}, api.Error{Status: 404, Code: "not-found", Message: "web: NXDOMAIN"}},
		{context.DeadlineExceeded, api.Error{Status: 504, Code: "timeout", Message: "context deadline exceeded"}},
		{errors.New("broken"), api.Error{Status: 500, Code: "failed", Message: "broken"}},
	} {
		w := httptest.NewRecorder()
		refuse(w, tt.err)
		var got api.Error
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got != tt.want || w.Code != tt.want.Status {
			t.Errorf("%v: %+v (%d), want %+v", tt.err, got, w.Code, tt.want)
		}
	}
}

// A handler can tell that its asker has gone from that the program ends: only the
// first is a machine's end.
func TestEnding(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	started, seen := make(chan struct{}, 1), make(chan bool, 1)
	end := serve(t, path, func(w http.ResponseWriter, r *http.Request) {
		started <- struct{}{}
		<-r.Context().Done()
		seen <- ending(r.Context())
	})
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() { defer close(gone); local.Client{Socket: path}.Status(ctx) }()
	<-started
	cancel()
	<-gone
	if <-seen {
		t.Error("an asker that went was taken for the end of the program")
	}
	go local.Client{Socket: path}.Status(t.Context())
	<-started
	end()
	if !<-seen {
		t.Error("the end of the program was taken for an asker that went")
	}
}

// A machine's namespace is told by the kernel and must be one of its own.
func TestMachineNamespace(t *testing.T) {
	needRoot(t)
	plane, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer plane.Close()
	w := newWorkload(t)
	pid := int32(os.Getpid())
	ns, id, err := machineNamespace(pid, w.tid, plane)
	if err != nil || id == 0 {
		t.Fatalf("its own: %v", err)
	}
	ns.Close()
	in := func(ns *netns.Handle) int {
		w := &workload{ns: ns}
		tid, end := make(chan int), make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			ns.Do(func() error { tid <- syscall.Gettid(); <-end; return nil })
		}()
		w.tid = <-tid
		t.Cleanup(func() { close(end); <-done })
		return w.tid
	}
	for what, tid := range map[string]int{"the host's": os.Getpid(), "the data plane's": in(plane), "none": 0, "a stranger's": 1} {
		if _, _, err := machineNamespace(pid, tid, plane); !errors.Is(err, api.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// The parts of problems are told once.
func TestProblems(t *testing.T) {
	var p problems
	for i, tt := range []struct {
		cause, sentence string
		news            bool
		list            string
	}{
		{"b", "two", true, "two"}, {"b", "two", false, "two"}, {"a", "one", true, "one two"}, {"b", "", true, "one"}, {"b", "", false, "one"},
	} {
		if got := p.set(tt.cause, tt.sentence); got != tt.news || strings.Join(p.list(), " ") != tt.list {
			t.Errorf("step %d: news %v, list %v", i, got, p.list())
		}
	}
}

func TestBackoff(t *testing.T) {
	b := backoff{first: 100 * time.Millisecond, most: time.Second}
	most := 100 * time.Millisecond
	for range 20 {
		if d := b.step(); d < most/2 || d > most {
			t.Fatalf("wait %s, want %s to %s", d, most/2, most)
		}
		most = min(2*most, time.Second)
	}
	b.reset()
	if d := b.step(); d > 100*time.Millisecond {
		t.Fatalf("after a reset: %s", d)
	}
}
