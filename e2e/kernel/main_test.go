package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWire(t *testing.T) {
	t.Parallel()
	var line, stdout, stderr bytes.Buffer
	out := sayer{to: &line}
	long := bytes.Repeat([]byte("x"), maxSay+7)
	out.as(sayStdout).Write(long)
	out.as(sayStderr).Write([]byte("no\r\n"))
	whole := bytes.NewReader(line.Bytes())
	if _, err := hear(whole, &stdout, &stderr); err != io.EOF {
		t.Errorf("without a last message: %v, want EOF", err)
	}
	if !bytes.Equal(stdout.Bytes(), long) || stderr.String() != "no\r\n" {
		t.Errorf("heard %d bytes and %q", stdout.Len(), stderr.String())
	}
	say(&line, sayExit, []byte{7})
	if code, err := hear(&line, io.Discard, io.Discard); code != 7 || err != nil {
		t.Errorf("exit code %d, %v, want 7", code, err)
	}
	say(&line, sayFailed, []byte("no disk"))
	if _, err := hear(&line, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("a machine that failed: %v", err)
	}
	for _, bad := range []string{"o\xff\xff\xff\xff", "z\x00\x00\x00\x00", "x\x00\x00\x00\x02ab", "o\x00\x00"} {
		if _, err := hear(strings.NewReader(bad), io.Discard, io.Discard); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestIndex(t *testing.T) {
	t.Parallel()
	ms := modules{
		{name: "wireguard", path: "/m/wireguard.ko", depends: []string{"udp_tunnel", "curve25519"}, aliases: []string{"rtnl-link-wireguard"}},
		{name: "udp_tunnel", path: "/m/udp_tunnel.ko", depends: []string{"built_in"}},
		{name: "curve25519", path: "/m/curve25519.ko", depends: []string{"udp_tunnel"}},
	}
	index := ms.index()
	want := []string{"/m/udp_tunnel.ko", "/m/curve25519.ko", "/m/wireguard.ko"}
	for _, name := range []string{"wireguard", "rtnl-link-wireguard"} {
		if diff := cmp.Diff(want, lookup(index, name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for _, name := range []string{"wire", "rtnl-link", "built_in", ""} {
		if got := lookup(index, name); got != nil {
			t.Errorf("%q is found: %q", name, got)
		}
	}
}

// The archive is one that others can read.
func TestArchive(t *testing.T) {
	t.Parallel()
	var a archive
	a.dir("dev")
	a.file("init", 0o755, []byte("abcde"))
	b := a.bytes()
	if len(b)%4 != 0 || bytes.Count(b, []byte("070701")) != 3 {
		t.Errorf("%d bytes, %d entries, want 3", len(b), bytes.Count(b, []byte("070701")))
	}
	// Header: 13 numbers of 8 digits after the magic; the 7th is the size.
	at := bytes.Index(b, []byte("init\x00"))
	if head := string(b[at-110 : at]); head[6+8:6+16] != "000081ED" || head[6+48:6+56] != "00000005" || head[6+88:6+96] != "00000005" {
		t.Errorf("head of init: %s", head)
	}
	if data := b[(at+5+3)/4*4:]; !bytes.HasPrefix(data, []byte("abcde\x00\x00\x00070701")) {
		t.Errorf("data of init: %q", data[:14])
	}
}

func TestPackRefuses(t *testing.T) {
	t.Parallel()
	for dir, want := range map[string]string{
		filepath.Join(t.TempDir(), "with space"): "cannot name a directory with a space",
		t.TempDir():                              "has 0 kernels, want 1",
	} {
		if err := pack(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pack = %v, want %q", err, want)
		}
	}
}

// A test that is skipped in the machine, or none that runs, is a failure; what else a
// program prints and how it ends is as it was.
func TestVerdict(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		prints string
		ends   int
		code   int
		adds   string
	}{
		{"--- PASS: TestA (0.00s)\nPASS\n", 0, 0, ""},
		{"=== RUN   TestA\n    a_test.go:7: no root\n--- SKIP: TestA (0.00s)\nPASS\n", 0, 1, "FAIL: in the virtual machine TestA (0.00s) was skipped\n"},
		{"--- PASS: TestA (0.00s)\n    --- SKIP: TestA/b (0.00s)\n    --- SKIP: TestA/c (0.00s)\nPASS\n", 0, 1, "FAIL: in the virtual machine TestA/b (0.00s) was skipped, TestA/c (0.00s) was skipped\n"},
		{"testing: warning: no tests to run\nPASS\n", 0, 1, "FAIL: in the virtual machine no test ran\n"},
		{"--- SKIP: TestA (0.00s)\n--- FAIL: TestB (0.00s)\nFAIL\n", 2, 2, ""},
		{"it says --- SKIP: nothing\nno end of line", 0, 0, ""},
	} {
		for _, step := range []int{1, 7, 1000} {
			var out strings.Builder
			v := verdict{to: &out}
			for part := range slices.Chunk([]byte(tt.prints), step) {
				if n, err := v.Write(part); n != len(part) || err != nil {
					t.Fatal(n, err)
				}
			}
			if code := v.code(tt.ends); code != tt.code || out.String() != tt.prints+tt.adds {
				t.Errorf("%q ended with %d, want %d, and printed %q", tt.prints, code, tt.code, out.String())
			}
		}
	}
}

// A machine hands over exit code, output and environment, and one that does not end
// is ended, with all that belongs to it.
func TestMachine(t *testing.T) {
	dir := os.Getenv("WEFT_VM_DIR")
	if dir == "" {
		t.Skip("make test-kernel unpacks a virtual machine and sets WEFT_VM_DIR")
	}
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	var stdout, stderr strings.Builder
	m := machine{dir: dir, stdout: &stdout, stderr: &stderr}
	m.job = job{
		Args: []string{"/bin/sh", "-c", `echo "$WEFT_VM $COLOUR in $(pwd)"; echo no >&2; echo 1 >/usr/changed; exit 7`},
		Dir:  "/usr", Env: []string{"COLOUR=red", "PATH=/usr/bin:/bin"},
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code, err := m.run(ctx)
	if err != nil || code != 7 || stdout.String() != "1 red in /usr\n" || stderr.String() != "no\n" {
		t.Errorf("run = %d, %v; it wrote %q and %q", code, err, stdout.String(), stderr.String())
	}
	if _, err := os.Stat("/usr/changed"); err == nil {
		t.Error("the machine changed this one's files")
	}

	stdout.Reset()
	m.job.Args = []string{"/bin/sh", "-c", "echo up; sleep 100"}
	ctx, cancel = context.WithTimeoutCause(t.Context(), time.Minute, errors.New("too long"))
	defer cancel()
	m.stdout = writerFunc(func(b []byte) (int, error) { // it runs: end it
		cancel()
		return stdout.Write(b)
	})
	if _, err := m.run(ctx); !errors.Is(err, context.Canceled) || stdout.String() != "up\n" {
		t.Errorf("run = %v; it wrote %q", err, stdout.String())
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if left := children(t); left != "" {
		t.Errorf("processes of this one are left over: %s", left)
	}
}

// children are this process's, those that ended and were not waited for included.
func children(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		b, _ := os.ReadFile(f)
		all.Write(b)
	}
	return all.String()
}
