package attach

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exec runs a line of shell inside a machine, beside its command: in the network,
// mount, host name and process namespaces of its first process init (see
// RunConfig.Started), as the user of this process, in its working directory. env is
// its environment, nil: this process's. The error says how it ended unless that was with 0, with the end of what
// it wrote. When ctx ends, it and what it started in its process group are killed.
func Exec(ctx context.Context, init int, line string, env []string) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	var out tail
	cmd := &exec.Cmd{
		Path: "/bin/sh", Args: []string{"sh", "-c", line}, Env: env, Dir: dir, Stdout: &out, Stderr: &out,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
		WaitDelay:   time.Second, // for whoever holds its output open
	}
	if err := onThread(func() error {
		if err := enter(init); err != nil {
			return err
		}
		return cmd.Start()
	}); err != nil {
		return fmt.Errorf("run it in the machine: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	defer stop()
	err = cmd.Wait()
	switch text := out.String(); {
	case ctx.Err() != nil && err != nil:
		return ctx.Err()
	case err != nil && text != "":
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// enter takes this thread, which is to end afterwards, and what it starts, into the
// namespaces of a process.
func enter(pid int) error {
	// A thread that shares its working directory with others cannot change its mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the process's directories: %w", err)
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	kinds := []struct {
		name string
		flag int
	}{{"pid", unix.CLONE_NEWPID}, {"uts", unix.CLONE_NEWUTS}, {"net", unix.CLONE_NEWNET}, {"mnt", unix.CLONE_NEWNS}}
	for _, kind := range kinds { // all are opened before /proc is another one
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind.name))
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	for i, kind := range kinds {
		if err := unix.Setns(int(files[i].Fd()), kind.flag); err != nil {
			return fmt.Errorf("enter the machine's %s namespace: %w", kind.name, err)
		}
	}
	return nil
}

// tail keeps the last line that was written to it, as far as it fits.
type tail struct{ text []byte }

const mostTail = 200

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	if over := len(t.text) - 4*mostTail; over > 0 {
		t.text = slices.Delete(t.text, 0, over)
	}
	return len(b), nil
}

func (t *tail) String() string {
	lines := strings.Split(strings.TrimSpace(string(t.text)), "\n")
	last := strings.ToValidUTF8(strings.TrimSpace(lines[len(lines)-1]), "?")
	return last[max(0, len(last)-mostTail):]
}
