package attach

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// The environment of a process that stands in for `weft run`: the file of its
// plane's namespace, and the number of its machine.
const (
	standInEnv     = "WEFT_TEST_RUN"
	standInMachine = "WEFT_TEST_MACHINE"
	standInRoom    = "WEFT_TEST_ROOM" // what kind of host it is on: see makeRoom
)

// standIn is `weft run`, with the agent's half in the same process.
func standIn() int {
	var n int
	fmt.Sscan(os.Getenv(standInMachine), &n)
	plane, err := netns.OpenPath(os.Getenv(standInEnv))
	room := os.Getenv(standInRoom)
	text, drains := strings.CutPrefix(room, "drain=")
	drain, _ := time.ParseDuration(text)
	if err == nil && !drains {
		err = makeRoom(room)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stand-in:", err)
		return 99
	}
	code, err := Run(context.Background(), RunConfig{
		Command: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Attach: attachTo(plane, n),
		Drain: drain, Draining: func() { fmt.Fprintln(os.Stderr, "draining") },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "stand-in:", err)
	}
	return code
}

// attachTo is what the agent does when `weft run` asks.
func attachTo(plane *netns.Handle, n int) func(context.Context, int) (Settings, error) {
	return func(_ context.Context, tid int) (Settings, error) {
		ns, err := netns.OpenPath(fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), tid))
		if err != nil {
			return Settings{}, err
		}
		defer ns.Close()
		s := Settings{Resolver: netip.MustParseAddr("fd12:3456:789a::3"), Search: []string{"internal"}, Hostname: fmt.Sprint("web-", n)}
		return s, Attach(plane, ns, machine(n))
	}
}

// makeRoom gives the stand-in, which has a mount namespace of its own, a host's
// /etc and /run as they are with systemd-resolved and nscd; resolv.conf leads to a
// file that is there (resolved), that is not (dangling), or that nobody hides
// (elsewhere). Or nothing but nohup.
func makeRoom(kind string) error {
	switch kind {
	case "":
		return nil
	case "nohup":
		signal.Ignore(unix.SIGHUP)
		return nil
	}
	steps := []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("etc", "/etc", "tmpfs", 0, ""),
		unix.Mount("run", "/run", "tmpfs", 0, ""),
		os.MkdirAll("/run/systemd/resolve", 0o755),
		os.MkdirAll("/run/nscd", 0o755),
		os.WriteFile("/run/systemd/resolve/io.systemd.Resolve", nil, 0o666),
		os.WriteFile("/run/nscd/socket", nil, 0o666),
		os.WriteFile("/etc/hosts", []byte("127.0.0.1 localhost\n"), 0o644),
	}
	if kind == "resolved" {
		steps = append(steps, os.WriteFile("/run/systemd/resolve/stub-resolv.conf", []byte("nameserver 127.0.0.53\n"), 0o644))
	}
	if kind == "elsewhere" {
		steps = append(steps, os.Symlink("../run/NetworkManager/resolv.conf", "/etc/resolv.conf"))
	} else {
		steps = append(steps, os.Symlink("../run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf"))
	}
	return errors.Join(steps...)
}

func standInEnviron(plane *netns.Handle, n int, room string) []string {
	return append(os.Environ(), fmt.Sprintf("%s=/proc/%d/fd/%d", standInEnv, os.Getpid(), plane.Fd()),
		fmt.Sprintf("%s=%d", standInMachine, n), standInRoom+"="+room)
}

// process is a stand-in at work.
type process struct {
	*exec.Cmd
	lines  chan string // of its output, closed at the end of it
	stderr *lockedBuffer
	waited chan struct{}
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

// start runs a command as machine n, in a process of its own.
func start(t *testing.T, plane *netns.Handle, n int, room string, command ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command("/proc/self/exe", command...), lines: make(chan string, 1000), stderr: &lockedBuffer{}, waited: make(chan struct{})}
	p.Env = standInEnviron(plane, n, room)
	// An end of the test ends it.
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if room != "" {
		p.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	}
	p.Stderr = p.stderr
	out, err := p.StdoutPipe()
	check(t, err)
	started := make(chan error)
	go func() {
		defer close(p.waited)
		// Its death signal follows the thread that started it.
		onThread(func() error {
			err := p.Start()
			started <- err
			if err != nil {
				return err
			}
			lines := bufio.NewScanner(out)
			for lines.Scan() {
				p.lines <- lines.Text()
			}
			close(p.lines)
			return p.Wait()
		})
	}()
	check(t, <-started)
	t.Cleanup(func() { p.Process.Kill(); <-p.waited })
	return p
}

// line waits for a line of output.
func (p *process) line(t *testing.T, want string) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case got, ok := <-p.lines:
			if !ok {
				t.Fatalf("no line %q: the output has ended; stderr %q", want, p.stderr)
			}
			if got == want {
				return
			}
		case <-timer.C:
			t.Fatalf("no line %q; stderr %q", want, p.stderr)
		}
	}
}

// end waits for the end of the output and of the process, and returns what was
// left of the one and the code of the other. The output ends when nobody has it
// open any more: none of the machine's processes.
func (p *process) end(t *testing.T) (rest []string, code int) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for lines := p.lines; lines != nil; {
		select {
		case got, ok := <-lines:
			if !ok {
				lines = nil
				break
			}
			rest = append(rest, got)
		case <-timer.C:
			t.Fatalf("it does not end; output %q, stderr %q", rest, p.stderr)
		}
	}
	select {
	case <-p.waited:
	case <-timer.C:
		t.Fatalf("it does not end; output %q, stderr %q", rest, p.stderr)
	}
	return rest, p.ProcessState.ExitCode()
}

// output runs a command as a machine to its end, in this process.
func output(t *testing.T, plane *netns.Handle, n int, command ...string) (out string, code int, err error) {
	t.Helper()
	r, w, err := os.Pipe()
	check(t, err)
	read := make(chan string)
	go func() {
		var b strings.Builder
		for lines := bufio.NewScanner(r); lines.Scan(); {
			b.WriteString(lines.Text() + "\n")
		}
		read <- b.String()
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	code, err = Run(ctx, RunConfig{Command: command, Stdout: w, Stderr: w, Attach: attachTo(plane, n)})
	w.Close()
	out = <-read
	r.Close()
	return out, code, err
}
