package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	initName   = "weft-init" // what the machine's first process is called
	initSocket = 3           // its end of the socket pair
)

// Init turns this process into a machine's first process if Run started it as
// that: it runs the command, passes signals on to it, reaps what nobody else
// waits for, and returns when the command has ended; the kernel then kills the
// rest. Call it first thing in main, and exit with code if ok.
func Init() (code int, ok bool) {
	if len(os.Args) < 3 || os.Args[0] != initName || os.Getpid() != 1 {
		return 0, false
	}
	socket := os.NewFile(initSocket, "run")
	unix.CloseOnExec(initSocket)
	code, err := beInit(socket, group(os.Args[1]), os.Args[2:])
	if err != nil {
		json.NewEncoder(socket).Encode(report{Code: code, Error: err.Error()})
	}
	return code, true
}

func beInit(socket *os.File, g group, command []string) (code int, err error) {
	// Before the command starts, so that none of its signals or children is missed. A
	// first process gets no signal that it does not ask for.
	signals, children := make(chan os.Signal, 64), make(chan os.Signal, 1)
	if list := passedOn(); len(list) > 0 { // none would mean all
		signal.Notify(signals, list...)
	}
	signal.Notify(children, unix.SIGCHLD)
	if g == foregroundGroup {
		// Asked for, they are not ignored by the command as they are by us.
		signal.Notify(signals, unix.SIGCONT, unix.SIGTTOU)
	}

	// Only processes of this namespace are in it.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return ExitFailed, fmt.Errorf("mount the machine's /proc: %w", err)
	}
	path, code, err := lookUp(command[0])
	if err != nil {
		return code, err
	}
	pid, err := syscall.ForkExec(path, command, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: g == ownGroup},
	})
	if err != nil {
		return execCode(err), fmt.Errorf("run %s: %w", command[0], err)
	}
	if err := json.NewEncoder(socket).Encode(report{Started: true}); err != nil {
		return ExitFailed, fmt.Errorf("report to weft run: %w", err)
	}
	orphaned := make(chan struct{})
	go func() {
		// Ends when weft run does, however it does. (The death signal says the same,
		// unless weft run died before it was set.)
		io.Copy(io.Discard, socket)
		close(orphaned)
	}()
	for {
		select {
		case s := <-signals:
			forward(pid, s, g)
		case <-children:
			status, changed := reap(pid, g)
			switch {
			case changed && status.Stopped():
				// Failing means that weft run is gone, and so are we in a moment.
				json.NewEncoder(socket).Encode(report{Stopped: true})
			case changed:
				return statusCode(status), nil
			}
		case <-orphaned:
			return ExitSignal + int(unix.SIGKILL), nil
		}
	}
}

// forward passes a signal on to the command. On a terminal the keys' signals reach
// it without us.
func forward(pid int, s os.Signal, g group) {
	n, ok := s.(syscall.Signal)
	key := n == unix.SIGINT || n == unix.SIGQUIT
	switch {
	case !ok || n == unix.SIGTTOU || key && g != ownGroup:
	case n == unix.SIGCONT:
		if its, err := unix.Getpgid(pid); err == nil && its > 0 {
			unix.Kill(-its, n)
		}
	default:
		unix.Kill(pid, n)
	}
}

// reap waits for all that have ended, and returns the command's status if it is
// among them or, on a terminal of its own, has been stopped.
func reap(pid int, g group) (status unix.WaitStatus, changed bool) {
	options := unix.WNOHANG
	if g == foregroundGroup {
		options |= unix.WUNTRACED
	}
	for {
		var s unix.WaitStatus
		got, err := unix.Wait4(-1, &s, options, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || got <= 0:
			return status, changed
		case got == pid:
			status, changed = s, true
		}
	}
}

func statusCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return ExitSignal + int(s.Signal())
	}
	return s.ExitStatus()
}

// lookUp finds the command as a shell does: in our PATH, which is the command's.
func lookUp(name string) (path string, code int, err error) {
	path, err = exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		err = nil // PATH says "."; so does the shell
	}
	if err != nil {
		return "", execCode(err), fmt.Errorf("run %s: %w", name, unwrapExec(err))
	}
	return path, 0, nil
}

func unwrapExec(err error) error {
	if e := new(exec.Error); errors.As(err, &e) {
		return e.Err
	}
	return err
}

func execCode(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return ExitNotFound
	}
	return ExitNotExecutable
}
