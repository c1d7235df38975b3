package userspace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// serves reports whether a process that does not answer was started by a Command as
// this one: with the same first argument, for the same link.
func (c RemoteConfig) serves(pid int) bool {
	if pid == 0 || c.Command == nil {
		return false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args, own := strings.Split(string(line), "\x00"), c.Command().Args
	return len(own) > 1 && len(args) > 1 && args[1] == own[1] && slices.Contains(args[1:], c.Name)
}

// end sends a signal to the process that listens on a socket and waits until it is
// gone; one that takes its time is killed. One that has ended is not an error.
func end(path string, pid int, first unix.Signal) error {
	if pid == 0 {
		return fmt.Errorf("%s: its process is in another process namespace", path)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// If it still listens, the number is still its own.
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	conn, err := dial(ctx, path)
	if err != nil {
		return waitEnded(fd, pid, endPatience) // it is about to end, or has
	}
	same := listener(conn.Conn) == pid
	conn.Close()
	if !same {
		return nil
	}
	for _, sig := range []unix.Signal{first, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end process %d: %w", pid, err)
		}
		if err = waitEnded(fd, pid, endPatience); err == nil {
			break
		}
	}
	removeStale(path)
	return waitEnded(fd, pid, 0)
}

// waitEnded waits for the end of a process.
func waitEnded(fd, pid int, patience time.Duration) error {
	for until := time.Now().Add(patience); ; {
		left := max(time.Until(until), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for process %d to end: %w", pid, err)
		case left == 0:
			return fmt.Errorf("process %d: it does not end", pid)
		}
	}
}

// removeStale removes a socket that a killed process has left.
func removeStale(path string) {
	conn, err := dial(context.Background(), path)
	if err == nil {
		conn.Close()
		return
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		os.Remove(path) // if not, the next device replaces it
	}
}
