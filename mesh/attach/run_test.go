package attach

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// What a command finds in its machine.
func TestRunFurnishes(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	before, err := os.ReadFile("/etc/resolv.conf")
	check(t, err)
	host, err := os.Hostname()
	check(t, err)
	tests := []struct{ name, script, want string }{
		{"resolver", "cat /etc/resolv.conf", "nameserver fd12:3456:789a::3\nsearch internal\n"},
		{"host name", "cat /proc/sys/kernel/hostname", "web-1\n"},
		{"links in /sys", "ls /sys/class/net", "eth0\nlo\n"},
		{"links in /proc", "grep -c : /proc/net/dev", "2\n"},
		{"processes: init and the shell", "set -- /proc/[0-9]*; echo $#", "2\n"},
		{"init's name", "tr '\\0' ' ' </proc/1/cmdline | cut -c -9", "weft-init\n"},
		{"nothing of ours is left open", "ls -l /proc/self/fd | grep socket; true", ""},
	}
	for _, tt := range tests {
		got, code, err := output(t, plane, 1, "sh", "-c", tt.script)
		if diff := cmp.Diff(tt.want, got); diff != "" || code != 0 || err != nil {
			t.Errorf("%s: code %d, %v (-want +got):\n%s", tt.name, code, err, diff)
		}
	}
	after, err := os.ReadFile("/etc/resolv.conf")
	check(t, err)
	now, err := os.Hostname()
	check(t, err)
	if string(before) != string(after) || host != now {
		t.Errorf("the host was changed: %q, %q", after, now)
	}
	eventually(t, "no link is left", func() bool { return len(attached(t, plane)) == 0 })
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "weft-resolv-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %q, %v", left, err)
	}
}

func attached(t *testing.T, plane *netns.Handle) []Found {
	t.Helper()
	list, err := List(plane)
	check(t, err)
	return list
}

// There is no way to ask the host's resolver past resolv.conf: not where that is
// systemd-resolved's file, and not by the sockets of nss-resolve and nscd.
func TestRunHidesTheHostsResolver(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	for _, room := range []string{"resolved", "dangling"} {
		p := start(t, plane, 1, room, "sh", "-c", `
			cat /etc/resolv.conf
			ls -A /run/systemd/resolve /run/nscd
			cat /etc/hosts`)
		rest, code := p.end(t)
		want := []string{
			"nameserver fd12:3456:789a::3", "search internal",
			"/run/nscd:", "", "/run/systemd/resolve:", "stub-resolv.conf",
			"127.0.0.1 localhost",
		}
		if diff := cmp.Diff(want, rest); diff != "" || code != 0 {
			t.Errorf("%s: code %d, stderr %q (-want +got):\n%s", room, code, p.stderr, diff)
		}
	}
	// A link to nowhere else: there is nothing to lay the file over.
	p := start(t, plane, 2, "elsewhere", "true")
	if _, code := p.end(t); code != ExitFailed || !strings.Contains(p.stderr.String(), "/run/NetworkManager") {
		t.Errorf("a link to nowhere: code %d, stderr %q", code, p.stderr)
	}
}

// The first packet of a machine is answered, and nothing of the host is in reach
// but what the plane answers.
func TestRunIsInTheMesh(t *testing.T) {
	t.Parallel()
	plane, other := newPlane(t), newNamespace(t)
	check(t, Attach(plane, other, machine(2)))
	p := start(t, plane, 1, "", "sh", "-c", "echo ready; read x")
	p.line(t, "ready")
	mustPing(t, "another machine to it", other, mainAddr(1))
	mustPing(t, "the plane to it", plane, mainAddr(1))
	got := attached(t, plane)
	if len(got) != 2 {
		t.Errorf("attached: %v", got)
	}
}

func TestRunExitCodes(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	check(t, os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644))
	script := filepath.Join(dir, "script")
	check(t, os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o755))
	junk := filepath.Join(dir, "junk")
	check(t, os.WriteFile(junk, []byte("\x00\x01"), 0o755))
	tests := []struct {
		name    string
		command []string
		code    int
		err     string // "" for none
	}{
		{"success", []string{"true"}, 0, ""},
		{"its own code", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"a code like ours", []string{"sh", "-c", "exit 125"}, 125, ""},
		{"ended by SIGTERM", []string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		{"ended by SIGKILL", []string{"sh", "-c", "kill -KILL $$"}, 137, ""},
		{"no such command", []string{"weft-no-such-command"}, 127, "run weft-no-such-command: executable file not found in $PATH"},
		{"no such file", []string{"/no/such/file"}, 127, "run /no/such/file: "},
		{"no such interpreter", []string{script}, 127, "no such file"},
		{"not executable", []string{plain}, 126, "permission denied"},
		{"a directory", []string{dir}, 126, "run " + dir},
		{"not a program", []string{junk}, 126, "exec format error"},
		{"an empty name", []string{""}, 125, "no command given"},
		{"no command", nil, 125, "no command given"},
	}
	for _, tt := range tests {
		_, code, err := output(t, plane, 1, tt.command...)
		if code != tt.code || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %d, %v; want %d, %q", tt.name, code, err, tt.code, tt.err)
		}
	}
	sentinel := errors.New("the agent says no")
	code, err := Run(context.Background(), RunConfig{Command: []string{"true"}, Attach: func(context.Context, int) (Settings, error) { return Settings{}, sentinel }})
	if code != ExitFailed || !errors.Is(err, sentinel) {
		t.Errorf("not attached: %d, %v", code, err)
	}
	if code, err := Run(context.Background(), RunConfig{Command: []string{"true"}}); code != ExitFailed || err == nil {
		t.Errorf("no Attach: %d, %v", code, err)
	}
}

// The command is looked up in the PATH that it gets, from the directory that it
// gets, and its environment is what it is given.
func TestRunEnvironment(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "mine"), []byte("#!/bin/sh\necho $0 $X; pwd; env | wc -l\n"), 0o755))
	for _, name := range []string{"mine", "./mine"} {
		r, w, err := os.Pipe()
		check(t, err)
		code, err := Run(context.Background(), RunConfig{
			Command: []string{name}, Dir: dir, Env: []string{"PATH=" + dir + ":/usr/bin:/bin", "X=1"}, Stdout: w, Attach: attachTo(plane, 1),
		})
		w.Close()
		buf := make([]byte, 1000)
		n, _ := r.Read(buf)
		r.Close()
		path := name
		if name == "mine" {
			path = filepath.Join(dir, name)
		}
		want := path + " 1\n" + dir + "\n3\n" // PATH, X, and the PWD that the shell adds
		if diff := cmp.Diff(want, string(buf[:n])); diff != "" || code != 0 || err != nil {
			t.Errorf("%s: code %d, %v (-want +got):\n%s", name, code, err, diff)
		}
	}
}

// Signals to `weft run` are the command's, once.
func TestRunPassesSignals(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	// Under nohup what we start would ignore it too.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	for name, s := range map[string]unix.Signal{
		"HUP": unix.SIGHUP, "INT": unix.SIGINT, "QUIT": unix.SIGQUIT, "TERM": unix.SIGTERM, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			last, lastName := unix.SIGTERM, "TERM"
			if s == unix.SIGTERM {
				last, lastName = unix.SIGINT, "INT"
			}
			p := start(t, plane, int(s), "", "sh", "-c", `trap 'echo got' `+name+`; trap 'exit 3' `+lastName+`; sleep 1000 & echo ready; while :; do wait; done`)
			p.line(t, "ready")
			check(t, p.Process.Signal(s))
			p.line(t, "got")
			check(t, p.Process.Signal(last))
			rest, code := p.end(t)
			if len(rest) > 0 || code != 3 {
				t.Errorf("code %d, and once more: %q", code, rest)
			}
		})
	}
	t.Run("untrapped", func(t *testing.T) {
		t.Parallel()
		p := start(t, plane, 40, "", "sh", "-c", "echo ready; exec sleep 1000")
		p.line(t, "ready")
		check(t, p.Process.Signal(unix.SIGTERM))
		if _, code := p.end(t); code != 128+int(unix.SIGTERM) {
			t.Errorf("code %d", code)
		}
	})
	// With nohup the hang-up reaches neither.
	t.Run("nohup", func(t *testing.T) {
		t.Parallel()
		p := start(t, plane, 41, "nohup", "sh", "-c", "sleep 1000 & echo ready; wait")
		p.line(t, "ready")
		check(t, p.Process.Signal(unix.SIGHUP))
		check(t, p.Process.Signal(unix.SIGTERM))
		if _, code := p.end(t); code != 128+int(unix.SIGTERM) {
			t.Errorf("code %d", code)
		}
	})
}

// kill -9 of `weft run` ends all that the command started, the namespace and the
// link.
func TestRunKilled(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	p := start(t, plane, 1, "", "sh", "-c", `sleep 1000 & (setsid sleep 1000 & sleep 1000) & trap '' TERM HUP; echo ready; wait`)
	p.line(t, "ready")
	if got := attached(t, plane); len(got) != 1 {
		t.Fatalf("attached: %v", got)
	}
	check(t, p.Process.Kill())
	// The output ends only when the last of them has.
	if rest, _ := p.end(t); len(rest) > 0 {
		t.Errorf("output after the end: %q", rest)
	}
	eventually(t, "the link is gone", func() bool { return len(attached(t, plane)) == 0 })
	// The name is free at once for the next.
	if _, code, err := output(t, plane, 1, "true"); code != 0 || err != nil {
		t.Errorf("the same machine again: %d, %v", code, err)
	}
}

// What the command leaves behind ends with it.
func TestRunEndsWithTheCommand(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	p := start(t, plane, 1, "", "sh", "-c", "setsid sleep 1000 & sleep 1000 & exit 4")
	if _, code := p.end(t); code != 4 {
		t.Errorf("code %d", code)
	}
	eventually(t, "the link is gone", func() bool { return len(attached(t, plane)) == 0 })
}

// Orphans are reaped by the machine's init.
func TestRunReapsOrphans(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	out, code, err := output(t, plane, 1, "sh", "-c", `
		for i in 1 2 3 4 5 6 7 8 9; do (sleep 0 &); done
		for n in $(seq 500); do
			set -- /proc/[0-9]*
			[ $# -le 2 ] && exit 0
			sleep 0.01
		done
		grep -h State /proc/[0-9]*/status; exit 1`)
	if code != 0 || err != nil {
		t.Errorf("%d, %v: %s", code, err, out)
	}
}

// The end of the context is SIGTERM, and in the end SIGKILL.
func TestRunContextEnds(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	tests := []struct {
		name, script string
		code         int
	}{
		{"in good time", "trap 'exit 9' TERM; echo; sleep 1000 & wait", 9},
		{"not at all", "trap '' TERM; echo; sleep 1000", 137},
	}
	for i, tt := range tests {
		r, w, err := os.Pipe()
		check(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			r.Read(make([]byte, 1)) // it is at work
			cancel()
		}()
		code, err := Run(ctx, RunConfig{Command: []string{"sh", "-c", tt.script}, Stdout: w, KillAfter: 50 * time.Millisecond, Attach: attachTo(plane, i+1)})
		cancel()
		w.Close()
		r.Close()
		if code != tt.code || err != nil {
			t.Errorf("%s: %d, %v; want %d", tt.name, code, err, tt.code)
		}
	}
}
