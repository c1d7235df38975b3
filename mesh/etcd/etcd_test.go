package etcd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
)

// crashDir in the environment makes the test binary the process that is killed
// in TestCrash.
const crashDir = "WEFT_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		writeForEver(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func testConfig(dir string) Config {
	return Config{Dir: dir, Fast: true, UnsafeNoFsync: true, WALSegment: 1 << 20}
}

func start(t *testing.T, c Config) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func put(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	if _, err := c.Put(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, c *clientv3.Client, key string) string {
	t.Helper()
	r, err := c.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

func TestStartCloseAndStartAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "etcd")
	s := start(t, testConfig(dir))
	put(t, s.Client(), "k", "v")
	if n := len(s.etcd.Clients) + len(s.etcd.Peers); n != 0 {
		t.Errorf("%d listeners, want none", n)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v %v, want mode 0700", info.Mode(), err)
	}
	if alarms := s.Alarms(); len(alarms) > 0 {
		t.Errorf("alarms of a fresh server: %q", alarms)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-s.Done():
	default:
		t.Error("Done is open after Close")
	}
	s = start(t, testConfig(dir))
	if got := get(t, s.Client(), "k"); got != "v" {
		t.Errorf("after a restart k = %q, want v", got)
	}
}

// A healthy life says nothing at info or above: silent when nothing happens.
func TestQuiet(t *testing.T) {
	t.Parallel()
	var said lockedBuffer
	c := testConfig(t.TempDir())
	c.Log = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelInfo}))
	for range 2 {
		s := start(t, c)
		put(t, s.Client(), "k", "v")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if said.String() != "" {
		t.Errorf("logged:\n%s", said.String())
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestRefusedDirectories(t *testing.T) {
	t.Parallel()
	used := t.TempDir()
	start(t, testConfig(used))
	file := filepath.Join(t.TempDir(), "file")
	full, foreign, other := t.TempDir(), t.TempDir(), t.TempDir()
	for _, name := range []string{file, filepath.Join(full, "notes.txt")} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(foreign, "member"), 0o700); err != nil {
		t.Fatal(err)
	}
	rows := []struct{ name, dir, want string }{
		{"none", "", "no data directory given"},
		{"in use", used, "in use by another process"},
		{"a file", file, "it is a file"},
		{"other files", full, "it is not weft's: it holds notes.txt"},
		{"somebody's etcd", foreign, "an etcd member that is not weft's"},
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(other, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, struct{ name, dir, want string }{"another user's", other, "belongs to user 12345"})
	}
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			before, _ := os.ReadDir(tt.dir)
			s, err := Start(t.Context(), testConfig(tt.dir))
			if err == nil {
				s.Close()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
			if after, _ := os.ReadDir(tt.dir); len(after) != len(before) {
				t.Errorf("the directory had %d entries and has %d", len(before), len(after))
			}
		})
	}
}

func TestListenOnASocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "etcd.sock")
	c := testConfig(t.TempDir())
	c.Listen = "unix:" + path
	// What a crash leaves: a socket that nobody holds.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	s := start(t, c)
	put(t, s.Client(), "k", "v")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v, want mode 0600", info, err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + path}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if got := get(t, client, "k"); got != "v" {
		t.Errorf("through the socket k = %q, want v", got)
	}
	for _, listen := range []string{"tcp:127.0.0.1:2379", "unix:relative", "http://127.0.0.1:2379"} {
		c := testConfig(t.TempDir())
		c.Listen = listen
		if s, err := Start(t.Context(), c); err == nil {
			s.Close()
			t.Errorf("listens on %q", listen)
		}
	}
	c = testConfig(t.TempDir())
	c.Listen = "unix:" + filepath.Join(c.Dir, "file")
	if err := os.WriteFile(filepath.Join(c.Dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := freeSocket(c.Listen); err == nil {
		t.Error("a file in the socket's place was taken away")
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := Start(ctx, testConfig(dir)); !errors.Is(err, context.Canceled) {
		t.Fatalf("start with an ended context: %v", err)
	}
	start(t, testConfig(dir)) // and the directory is free again
}

// TestCrash kills a process in the middle of its writes: what was acknowledged
// is there, and the lock does not outlive the process.
func TestCrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	acknowledged := 0
	for lines := bufio.NewScanner(out); acknowledged < 200 && lines.Scan(); acknowledged++ {
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if acknowledged < 200 {
		t.Fatalf("only %d writes before the process ended", acknowledged)
	}
	s := start(t, testConfig(dir))
	for i := range acknowledged {
		if got := get(t, s.Client(), fmt.Sprint("k", i)); got != "v" {
			t.Fatalf("write %d was acknowledged and is lost", i)
		}
	}
}

func writeForEver(dir string) {
	s, err := Start(context.Background(), testConfig(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	for i := 0; ; i++ {
		if _, err := s.Client().Put(context.Background(), fmt.Sprint("k", i), "v"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		fmt.Println(i)
	}
}

// BenchmarkStart measures from nothing to the first write.
func BenchmarkStart(b *testing.B) {
	for _, bb := range []struct {
		name string
		fast bool
	}{{"production", false}, {"tests", true}} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				c := Config{Dir: b.TempDir(), Fast: bb.fast, UnsafeNoFsync: bb.fast}
				s, err := Start(b.Context(), c)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.Client().Put(b.Context(), "k", "v"); err != nil {
					b.Fatal(err)
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
