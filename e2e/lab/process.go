package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that the lab has started on a host. What it prints goes
// straight to a file in the host's directory. Methods are for any goroutine.
type Process struct {
	host *Host
	name string
	cmd  *exec.Cmd
	log  string
	from int64         // where its part of the log starts
	done chan struct{} // closed when it has ended
	err  error         // of Wait; valid after done
}

// Start starts a program on the host. name is that of its log, to which a process
// of the same name adds. path is found as a shell would, in the machine's PATH and
// the directories for the administrator. The environment is small: PATH, HOME (a
// directory of the host), LANG, what Go's runtime and tools read, HostConfig.Env,
// then env; the last wins. The working directory is HOME. The process ends with
// the lab, whatever happens to it, and so do all that it starts.
func (h *Host) Start(name, path string, args, env []string) (*Process, error) {
	b, err := h.running()
	if err != nil {
		return nil, err
	}
	if name == "" || filepath.Base(name) != name {
		return nil, fmt.Errorf("start %s on %s: %q is no name for a log", path, h.name, name)
	}
	p := &Process{host: h, name: name, log: filepath.Join(h.dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.name, err)
	}
	defer log.Close()
	if p.from, err = log.Seek(0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.name, err)
	}
	p.cmd = h.command(context.Background(), path, args, env)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := b.thread.do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	h.lab.started(p)
	return p, nil
}

// command prepares a program of the host. It must be started on the host's thread.
//
// There is no Pdeathsig: the runtime compares the child's parent with its own
// process id, sees a stranger (0, from another process namespace) and kills the
// child. The host's process 1 has one, and takes all others with it.
func (h *Host) command(ctx context.Context, path string, args, env []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, lookPath(path), args...)
	cmd.Args[0] = path
	cmd.Env = append(h.lab.environ(h), env...)
	cmd.Dir = filepath.Join(h.dir, "home")
	// A group of its own: Ctrl-C in a terminal reaches the lab, which ends its
	// processes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	return cmd
}

// lookPath finds a program as the administrator's shell would. What is not found
// is left as it is, for the error to name it.
func lookPath(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	if filepath.Base(name) == name {
		for _, dir := range adminDirs {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path
			}
		}
	}
	return name
}

// adminDirs are not in every user's PATH.
var adminDirs = [...]string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// Name is the name that Start was given.
func (p *Process) Name() string { return p.name }

// Host is where it runs.
func (p *Process) Host() *Host { return p.host }

// Pid is the process id as the lab sees it. On the host it has another one.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exited reports whether the process has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Wait waits for the end of the process, or of ctx. It returns nil if the exit code
// was 0, an *exec.ExitError otherwise.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s on %s to end: %w", p.name, p.host.name, ctx.Err())
	}
}

// ExitCode is the exit code; -1 while it runs, and if a signal ended it.
func (p *Process) ExitCode() int {
	if !p.Exited() {
		return -1
	}
	return p.cmd.ProcessState.ExitCode()
}

// Signal sends a signal to the process alone. One that has ended is not an error.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to %s on %s: %w", sig, p.name, p.host.name, err)
	}
	return nil
}

// Pause stops the process where it is (SIGSTOP), until Continue, and returns when
// the kernel says that it has stopped.
func (p *Process) Pause() error {
	if err := p.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	return Await(context.Background(), p.name+" on "+p.host.name+" to stop", p.host.lab.cfg.Grace, func(context.Context) error {
		state, err := p.State()
		if err != nil {
			return Hopeless(err)
		}
		if state != 'T' {
			return fmt.Errorf("it is in state %c", state)
		}
		return nil
	})
}

// Continue lets a paused process go on.
func (p *Process) Continue() error { return p.Signal(unix.SIGCONT) }

// State is what the kernel says the process does: R runs, S sleeps, D waits for a
// disk, T is stopped, Z has ended (proc(5)). It is an error if there is none.
func (p *Process) State() (byte, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		return 0, fmt.Errorf("state of %s on %s: %w", p.name, p.host.name, err)
	}
	// It follows the name, which is in parentheses and may hold some.
	after := string(b[bytes.LastIndexByte(b, ')')+1:])
	if len(after) < 2 {
		return 0, fmt.Errorf("state of %s on %s: %q", p.name, p.host.name, b)
	}
	return after[1], nil
}

// Kill ends the process as a crash would (SIGKILL) and returns when it has ended.
func (p *Process) Kill() error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Stop asks the process to end (SIGTERM) and returns when it has ended. One that
// has not within Config.Grace is killed, which is an error.
func (p *Process) Stop() error {
	// A paused process would not see the first signal.
	if err := errors.Join(p.Signal(unix.SIGTERM), p.Signal(unix.SIGCONT)); err != nil {
		return err
	}
	timer := time.NewTimer(p.host.lab.cfg.Grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	if err := p.Kill(); err != nil {
		return err
	}
	return fmt.Errorf("stop %s on %s: it did not end within %s and was killed", p.name, p.host.name, p.host.lab.cfg.Grace)
}

// LogFile is the file that the process prints to.
func (p *Process) LogFile() string { return p.log }

// Log is what the process has printed, on stdout and stderr, as far as it went to
// its own file.
func (p *Process) Log() string {
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, p.from, 1<<40))
	if err != nil {
		return ""
	}
	return string(b)
}

// LastLine is the last line that it has printed that is not empty.
func (p *Process) LastLine() string {
	lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
	return lines[len(lines)-1]
}

// AwaitLog waits until the process has printed text. It does not wait for one that
// has ended.
func (p *Process) AwaitLog(ctx context.Context, text string, deadline time.Duration) error {
	what := fmt.Sprintf("%s on %s to print %q", p.name, p.host.name, text)
	return Await(ctx, what, deadline, func(context.Context) error {
		ended := p.Exited()
		switch {
		case strings.Contains(p.Log(), text):
			return nil
		case ended:
			return Hopeless(fmt.Errorf("it has ended: %s", p.LastLine()))
		}
		return fmt.Errorf("its last line is %q", p.LastLine())
	})
}
