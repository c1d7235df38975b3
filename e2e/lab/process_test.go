package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestProcess(t *testing.T) {
	t.Parallel()
	l := newLab(t, "pkill")
	h := newHost(t, l, "a", HostConfig{Env: []string{"X=1", "Y=1"}})
	p, err := h.Start("p", "sh", []string{"-c", "echo out $X $Y; echo err >&2; pwd; sleep 1000; echo never"}, []string{"Y=2"})
	must(t, err)
	must(t, p.AwaitLog(t.Context(), "home\n", 5*time.Second))
	if diff := cmp.Diff("out 1 2\nerr\n"+filepath.Join(h.Dir(), "home")+"\n", p.Log()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if p.Exited() || p.ExitCode() != -1 {
		t.Errorf("it runs, but Exited %v, ExitCode %d", p.Exited(), p.ExitCode())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait: %v", err)
	}
	must(t, p.Kill(), p.Kill())
	if err := p.Wait(t.Context()); err == nil || err.Error() != "signal: killed" || !p.Exited() {
		t.Errorf("killed: %v", err)
	}
	sh(t, h, "pkill sleep")

	// A second one of the same name adds to the file, and has a log of its own.
	p, err = h.Start("p", "sh", []string{"-c", "echo again; exit 7"}, nil)
	must(t, err)
	var exit *exec.ExitError
	if err := p.Wait(t.Context()); !errors.As(err, &exit) || p.ExitCode() != 7 {
		t.Errorf("exit code %d, %v; want 7", p.ExitCode(), err)
	}
	if p.Log() != "again\n" || p.LastLine() != "again" {
		t.Errorf("log %q, last line %q", p.Log(), p.LastLine())
	}
	if whole, err := os.ReadFile(p.LogFile()); !strings.HasPrefix(string(whole), "out 1 2\n") || err != nil {
		t.Errorf("log file %q, %v", whole, err)
	}
	if err := p.AwaitLog(t.Context(), "nothing", time.Minute); err == nil || !strings.Contains(err.Error(), "it has ended: again") {
		t.Errorf("AwaitLog: %v", err)
	}
	if tails := l.Tails(); !strings.Contains(tails, "--- p on a (ended: exit status 7)\nagain\n") {
		t.Errorf("Tails: %s", tails)
	}
	if _, err := h.Start("x", "no-such-program", nil, nil); err == nil || !strings.Contains(err.Error(), "start x on a: ") {
		t.Errorf("no such program: %v", err)
	}
	if _, err := h.Start("../x", "true", nil, nil); err == nil {
		t.Error("a log outside the host's directory")
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	h := newHost(t, l, "a", HostConfig{})
	p, err := h.Start("p", "sleep", []string{"1000"}, nil)
	must(t, err)
	state := func(want string) {
		t.Helper()
		await(t, "the process to be "+want, func() error {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
			if err == nil && !strings.Contains(string(b), "State:\t"+want) {
				err = errors.New("it is not")
			}
			return err
		})
	}
	must(t, p.Pause())
	state("T")
	must(t, p.Continue())
	state("S")
	must(t, p.Pause())
	must(t, p.Stop())
	if err := p.Wait(t.Context()); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("stopped while paused: %v", err)
	}
	must(t, p.Stop(), p.Signal(unix.SIGHUP))
}

func TestRun(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	h := newHost(t, l, "a", HostConfig{})
	ctx := t.Context()
	if out, err := h.RunEnv(ctx, []string{"A=b"}, "sh", "-c", "echo $A; echo no >&2"); out != "b\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	out, err := h.Run(ctx, "sh", "-c", "echo said; echo why >&2; exit 3")
	want := &ExitError{Host: "a", Command: "sh -c echo said; echo why >&2; exit 3", Result: Result{"said\n", "why\n", 3}}
	if diff := cmp.Diff(error(want), err); diff != "" || out != "said\n" {
		t.Errorf("%q (-want +got):\n%s", out, diff)
	}
	if err == nil || err.Error() != "sh -c echo said; echo why >&2; exit 3 on a: exit code 3: why" {
		t.Errorf("%v", err)
	}
	r, err := h.Exec(ctx, Command{Path: "cat", Stdin: strings.Repeat("x", 1<<20), Dir: "/"})
	if len(r.Stdout) != 1<<20 || r.Code != 0 || err != nil {
		t.Errorf("cat: %d bytes, code %d, %v", len(r.Stdout), r.Code, err)
	}
	if _, err := h.Run(ctx, "no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("no such program: %v", err)
	}
	// All of the process group goes, not only the shell.
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := h.Run(short, "sh", "-c", "sleep 1000 & sleep 1000; true"); err == nil {
		t.Error("what ran too long gave no error")
	}
	must(t, h.checkQuiet())
}

// A daemon that keeps the command's output open is not waited for; orphans are
// reaped, not left as zombies.
func TestRunLeavesADaemon(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ps", "pkill")
	h := newHost(t, l, "a", HostConfig{})
	began := time.Now()
	sh(t, h, "setsid sleep 30 & setsid sleep 0.01 & true")
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it took %s", d)
	}
	await(t, "the short one to be reaped", func() error {
		if got := sh(t, h, "ps -eo stat=,args= | grep '[s]leep' | grep -v 2147"); !strings.HasSuffix(got, "sleep 30") || strings.Contains(got, "Z") || strings.Contains(got, "\n") {
			return errors.New(got)
		}
		return nil
	})
	sh(t, h, "pkill -x sleep")
}

// As the machines of `weft run`: namespaces of their own, inside a host's.
func TestRunIn(t *testing.T) {
	t.Parallel()
	l := newLab(t, "unshare")
	h := newHost(t, l, "a", HostConfig{})
	p, err := h.Start("machine", "unshare", []string{"-n", "-m", "-p", "-u", "-f", "--mount-proc", "--kill-child", "sh", "-c", "hostname inner; mount -t tmpfs t /mnt; touch /mnt/inner; echo up; sleep 1000"}, nil)
	must(t, err)
	must(t, p.AwaitLog(t.Context(), "up", 5*time.Second))
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.Pid(), p.Pid()))
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	must(t, err)
	out, err := h.RunIn(t.Context(), pid, "sh", "-c", "hostname; ls /mnt; tail -n +3 /proc/net/dev | wc -l; cat /proc/1/comm; readlink /proc/self >/dev/null && echo self")
	if diff := cmp.Diff("inner\ninner\n1\nsh\nself\n", out); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := h.RunIn(t.Context(), 1<<22+1, "true"); err == nil {
		t.Error("ran in a process that there is not")
	}
	must(t, p.Kill())
}
