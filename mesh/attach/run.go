package attach

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/mesh"
)

// Exit codes of Run, beside the command's own: what env(1), nohup(1) and docker
// use.
const (
	ExitFailed        = 125 // Run itself failed
	ExitNotExecutable = 126 // the command cannot be executed
	ExitNotFound      = 127 // there is no such command
	ExitSignal        = 128 // plus the signal that ended the command
)

// defaultKillAfter is RunConfig.KillAfter's.
const defaultKillAfter = 10 * time.Second

// RunConfig says what to run, and how it gets into the mesh.
type RunConfig struct {
	Command []string // name, looked up in Env's PATH, and arguments
	Env     []string // the whole environment, as NAME=VALUE; nil: the caller's
	Dir     string   // working directory; "": the caller's
	// Files of the command; nil: /dev/null. On a terminal the shell's job control and
	// the keys' signals work as without us.
	Stdin, Stdout, Stderr *os.File
	// KillAfter is how long the command has to end after the context did; 0: 10 s.
	KillAfter time.Duration
	// Attach ties the machine to the mesh while thread tid of this process holds its
	// network namespace (/proc/self/task/TID/ns/net). Required.
	Attach func(ctx context.Context, tid int) (Settings, error)
	// Started, if set, is called once the command runs, with the machine's first
	// process for Exec. ctx ends with the command, and Run waits for it to return.
	Started func(ctx context.Context, init int)
	// Drain, if over 0, is how long a SIGTERM, SIGINT or SIGHUP to this process waits
	// before it is passed on; a second one does not. Draining, if set, is called when
	// that begins, and is not waited for.
	Drain    time.Duration
	Draining func()
}

// Settings is what the command finds inside.
type Settings struct {
	Resolver netip.Addr // its only nameserver
	Search   []string   // domains to complete short names with
	Hostname string     // "": the host's
}

func (c RunConfig) validate() error {
	switch {
	case len(c.Command) == 0 || c.Command[0] == "":
		return errors.New("no command given")
	case c.Attach == nil:
		return errors.New("no way to attach is given")
	}
	return nil
}

// Run runs a command as a machine: in network, mount, UTS and process namespaces
// of its own, with the resolver of the mesh and no way around it. It returns when
// the command has ended, and with it everything that the command started.
//
// The code is the command's, or 128 plus the signal that ended it, with a nil
// error; with an error it is one of the Exit constants. SIGHUP, SIGINT, SIGQUIT,
// SIGTERM, SIGUSR1 and SIGUSR2 to this process are passed on to the command until
// Run returns; so the caller does not end ctx on them. When ctx ends the command
// gets SIGTERM, and after KillAfter SIGKILL. When this process dies, even by
// SIGKILL, the command and all that it started are killed.
//
// The program must call Init first thing in main.
func Run(ctx context.Context, c RunConfig) (code int, err error) {
	if err := c.validate(); err != nil {
		return ExitFailed, err
	}
	err = onThread(func() error {
		code, err = run(ctx, c)
		return err
	})
	return code, err
}

// run is Run on a thread of its own, which it leaves in the machine's namespaces.
// The child inherits them from the thread, and its death signal follows the
// thread's end: so the thread waits until the child is gone.
func run(ctx context.Context, c RunConfig) (code int, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		err = fmt.Errorf("make the machine's namespaces: %w", err)
		if errors.Is(err, os.ErrPermission) {
			err = mesh.WithHint(err, "running a machine needs root")
		}
		return ExitFailed, err
	}
	// Before anything else is mounted: nothing of it may reach the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return ExitFailed, fmt.Errorf("make the machine's mounts private: %w", err)
	}
	settings, err := c.Attach(ctx, unix.Gettid())
	if err != nil {
		return ExitFailed, err
	}
	if err := furnish(settings); err != nil {
		return ExitFailed, err
	}
	return spawn(ctx, c)
}

// spawn starts the machine's init, passes signals on to it and waits for it.
func spawn(ctx context.Context, c RunConfig) (code int, err error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return ExitFailed, err
	}
	defer ours.Close()
	defer theirs.Close()
	m := &minder{terminal: terminalOf(c.Stdin, c.Stdout), killAfter: cmp.Or(c.KillAfter, defaultKillAfter), drain: c.Drain, draining: c.Draining}
	signals := make(chan os.Signal, 16)
	if list := append(passedOn(), m.terminal.signals()...); len(list) > 0 { // none would mean all
		signal.Notify(signals, list...)
		defer signal.Stop(signals)
	}
	lend, release := m.terminal.hold()
	defer release()
	cmd := initCommand(c, theirs, m.terminal.group, lend)
	if err := cmd.Start(); err != nil {
		return ExitFailed, fmt.Errorf("start the machine's init: %w", err)
	}
	theirs.Close()
	m.init = cmd.Process

	ended := make(chan struct{})
	minding := make(chan error, 1)
	go func() {
		// What comes before the command runs waits: nobody would hear it.
		reports := json.NewDecoder(ours)
		var err error
		if code, err = readStarted(reports); err == nil {
			beside := startedBeside(ctx, c, cmd.Process.Pid)
			m.mind(ctx, signals, readStopped(reports), ended)
			beside()
		}
		minding <- err
	}()
	waitErr := cmd.Wait()
	close(ended)
	if err := <-minding; err != nil {
		return code, err
	}
	if cmd.ProcessState == nil {
		return ExitFailed, fmt.Errorf("wait for the command: %w", waitErr)
	}
	return exitCode(cmd.ProcessState), nil
}

// startedBeside calls c.Started, and returns what ends it and waits for it.
func startedBeside(ctx context.Context, c RunConfig, init int) (stop func()) {
	if c.Started == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Started(ctx, init)
	}()
	return func() { cancel(); <-done }
}

func initCommand(c RunConfig, socket *os.File, g group, lend bool) *exec.Cmd {
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: slices.Concat([]string{initName, string(g)}, c.Command), Env: c.Env, Dir: c.Dir,
		ExtraFiles: []*os.File{socket}, // initSocket
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID,
			Pdeathsig:  unix.SIGKILL,
			Setpgid:    g != sharedGroup,
		},
	}
	if lend {
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(c.Stdin.Fd())
	}
	// A nil *os.File in an interface is not nil to exec.
	if c.Stdin != nil {
		cmd.Stdin = c.Stdin
	}
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	if c.Stderr != nil {
		cmd.Stderr = c.Stderr
	}
	return cmd
}

// minder looks after a running command.
type minder struct {
	init      *os.Process
	terminal  *terminal
	killAfter time.Duration
	drain     time.Duration
	draining  func()
}

// mind passes on signals, and the end of ctx as SIGTERM and then SIGKILL, until
// the command has ended. When the command is stopped, so are we.
func (m *minder) mind(ctx context.Context, signals <-chan os.Signal, stopped, ended <-chan struct{}) {
	done := ctx.Done()
	var kill, drained <-chan time.Time
	var held os.Signal // until drained
	for {
		select {
		case s := <-signals:
			if held == nil && m.drain > 0 && ends(s) {
				held = s
				timer := time.NewTimer(m.drain)
				defer timer.Stop()
				drained = timer.C
				if m.draining != nil {
					go m.draining()
				}
				break
			}
			if ends(s) {
				drained = nil
			}
			m.pass(s)
		case <-drained:
			drained = nil
			m.pass(held)
		case _, ok := <-stopped:
			if !ok {
				stopped = nil
				break
			}
			m.terminal.stop()
		case <-done:
			done = nil
			m.init.Signal(unix.SIGTERM)
			timer := time.NewTimer(m.killAfter)
			defer timer.Stop()
			kill = timer.C
		case <-kill:
			m.init.Kill()
		case <-ended:
			return
		}
	}
}

// ends reports whether a signal asks the command to end.
func ends(s os.Signal) bool { return s == unix.SIGTERM || s == unix.SIGINT || s == unix.SIGHUP }

// pass passes one signal on. Where the command shares our process group, SIGINT
// and SIGQUIT come from a key, and the command got them too.
func (m *minder) pass(s os.Signal) {
	key := s == unix.SIGINT || s == unix.SIGQUIT
	switch {
	case key && m.terminal.group == sharedGroup:
	case key && m.terminal.group == foregroundGroup:
		// As a key would: init takes it for one, and leaves it to the command.
		unix.Kill(-m.init.Pid, s.(syscall.Signal))
	case s == unix.SIGCONT:
		m.terminal.resume(m.init.Pid)
		m.init.Signal(s)
	default:
		m.init.Signal(s)
	}
}

func exitCode(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return ExitSignal + int(w.Signal())
	}
	return s.ExitCode()
}

// passedOn are the signals that the command gets in our place: not those that we
// were started to ignore (nohup), for then it ignores them too.
func passedOn() []os.Signal {
	all := []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2}
	return slices.DeleteFunc(all, signal.Ignored)
}

// report is what the machine's init says: once that the command runs or why not,
// and then each time that it is stopped.
type report struct {
	Started bool   `json:"started,omitempty"`
	Code    int    `json:"code,omitempty"`
	Error   string `json:"error,omitempty"`
	Stopped bool   `json:"stopped,omitempty"`
}

// readStarted waits until the command runs, or returns why it does not.
func readStarted(r *json.Decoder) (code int, err error) {
	var rep report
	if err := r.Decode(&rep); err != nil {
		return ExitFailed, errors.New("the machine's init ended before it ran the command")
	}
	if !rep.Started {
		return rep.Code, errors.New(rep.Error)
	}
	return 0, nil
}

// readStopped tells of each stop. It ends, and closes the channel, with the init.
func readStopped(r *json.Decoder) <-chan struct{} {
	stopped := make(chan struct{}, 1)
	go func() {
		defer close(stopped)
		for {
			var rep report
			if r.Decode(&rep) != nil {
				return
			}
			select {
			case stopped <- struct{}{}:
			default: // one is on its way
			}
		}
	}()
	return stopped
}

// socketPair joins us and the machine's init: it reports on it, and takes its end
// for ours.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "run"), os.NewFile(uintptr(fds[1]), "init"), nil
}

// onThread calls fn on a thread of its own that ends with it, so that nothing that
// fn did to it is left over. The first thread of the process does not end: whoever
// finds himself there asks again.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- onThread(fn)
			return
		}
		done <- fn()
	}()
	return <-done
}
