package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Command is a program to run to its end.
type Command struct {
	Path  string // found as Host.Start does
	Args  []string
	Env   []string // added to that of the host
	Dir   string   // "": the host's HOME
	Stdin string
}

// Result is what a program left behind.
type Result struct {
	Stdout, Stderr string
	Code           int // -1 if a signal ended it
}

// ExitError is a command that ended with another code than 0.
type ExitError struct {
	Host    string
	Command string // with its arguments
	Result
}

func (e *ExitError) Error() string {
	said := strings.TrimSpace(e.Stderr)
	if said == "" {
		said = strings.TrimSpace(e.Stdout)
	}
	return fmt.Sprintf("%s on %s: exit code %d: %s", e.Command, e.Host, e.Code, said)
}

// Run runs a program on the host and returns what it printed on stdout. An exit
// code other than 0 is an *ExitError, with the output all the same. If ctx ends,
// the program and its process group are killed.
func (h *Host) Run(ctx context.Context, path string, args ...string) (string, error) {
	return h.RunEnv(ctx, nil, path, args...)
}

// RunEnv is Run with additions to the environment.
func (h *Host) RunEnv(ctx context.Context, env []string, path string, args ...string) (string, error) {
	c := Command{Path: path, Args: args, Env: env}
	r, err := h.Exec(ctx, c)
	return h.output(c, r, err)
}

// RunIn is Run in the namespaces (network, mount, host name, process) of a process
// that runs on the host in some of its own, as `docker exec` would. pid is what the
// lab sees.
func (h *Host) RunIn(ctx context.Context, pid int, path string, args ...string) (string, error) {
	c := Command{Path: path, Args: args}
	r, err := h.ExecIn(ctx, pid, c)
	return h.output(c, r, err)
}

// ExecIn is Exec in the namespaces of a process, as RunIn is Run.
func (h *Host) ExecIn(ctx context.Context, pid int, c Command) (r Result, err error) {
	err = insideProcess(pid, func() (err error) {
		r, err = h.exec(ctx, c, func(start func() error) error { return start() })
		return err
	})
	return r, err
}

func (h *Host) output(c Command, r Result, err error) (string, error) {
	if err == nil && r.Code != 0 {
		err = &ExitError{Host: h.name, Command: strings.Join(append([]string{c.Path}, c.Args...), " "), Result: r}
	}
	return r.Stdout, err
}

// Exec runs a program on the host. Whatever its exit code, the error is nil; it is
// not if the program could not be started or ctx ended.
func (h *Host) Exec(ctx context.Context, c Command) (Result, error) {
	b, err := h.running()
	if err != nil {
		return Result{}, err
	}
	return h.exec(ctx, c, b.thread.do)
}

// exec runs c, which on calls to start. Input and output are files in memory and
// not pipes, so that a daemon that the program leaves behind, and that keeps them,
// is not waited for.
func (h *Host) exec(ctx context.Context, c Command, on func(start func() error) error) (r Result, err error) {
	cmd := h.command(ctx, c.Path, c.Args, c.Env)
	if c.Dir != "" {
		cmd.Dir = c.Dir
	}
	var files [3]*os.File
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		if err != nil {
			return r, fmt.Errorf("run %s on %s: make a file in memory: %w", c.Path, h.name, err)
		}
		files[i] = os.NewFile(uintptr(fd), name)
		defer files[i].Close()
	}
	if _, err := files[0].WriteAt([]byte(c.Stdin), 0); err != nil {
		return r, fmt.Errorf("run %s on %s: %w", c.Path, h.name, err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	if err := on(cmd.Start); err != nil {
		return r, fmt.Errorf("run %s on %s: %w", c.Path, h.name, err)
	}
	err = cmd.Wait()
	r.Stdout, r.Stderr, r.Code = contents(files[1]), contents(files[2]), cmd.ProcessState.ExitCode()
	if exit := new(exec.ExitError); errors.As(err, &exit) && ctx.Err() == nil {
		return r, nil
	}
	if err != nil {
		err = fmt.Errorf("run %s on %s: %w", strings.Join(append([]string{c.Path}, c.Args...), " "), h.name, err)
	}
	return r, err
}

// contents reads a whole file, wherever its offset is.
func contents(f *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
	if err != nil {
		return ""
	}
	return string(b)
}

// insideProcess calls fn on a thread that has entered the namespaces of a process.
func insideProcess(pid int, fn func() error) error {
	result := make(chan error, 1)
	onOwnThread(func() {
		err := errors.New("the function inside the namespaces ended its goroutine")
		defer func() { result <- err }()
		if err = enterProcess(pid); err == nil {
			err = fn()
		}
	})
	return <-result
}

func enterProcess(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("enter process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter process %d: unshare the file system attributes: %w", pid, err)
	}
	const all = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID
	if err := unix.Setns(fd, all); err != nil {
		return fmt.Errorf("enter the namespaces of process %d: %w", pid, err)
	}
	return nil
}

// DialContext connects from the host, for example as the DialContext of an
// http.Transport. The address is literal; that of a unix socket is a path on the
// host.
func (h *Host) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	do := h.Do
	if strings.HasPrefix(network, "unix") {
		do = h.DoInside
	} else if host, _, err := net.SplitHostPort(address); err != nil || net.ParseIP(strings.SplitN(host, "%", 2)[0]) == nil {
		// A name would be looked up by the machine's resolver, on the machine.
		return nil, fmt.Errorf("dial %s from %s: not a literal address", address, h.name)
	}
	err = do(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on the host, for programs that are part of a test.
func (h *Host) Listen(network, address string) (l net.Listener, err error) {
	do := h.Do
	if strings.HasPrefix(network, "unix") {
		do = h.DoInside
	}
	err = do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a UDP socket on the host.
func (h *Host) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = h.Do(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}
