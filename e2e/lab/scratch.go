package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// scratch is a lab's directory. Its owner holds a lock on a file in it, which ends
// with the owner's process: a directory that can be locked is nobody's.
type scratch struct {
	dir  string
	lock *os.File
}

// newScratch makes a directory in base and removes those of labs that are gone.
func newScratch(base string) (*scratch, error) {
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	// In a directory for everybody, somebody else may have been there first.
	info, err := os.Lstat(base)
	if err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("make the lab's directory in %s: it is not a directory of our own", base)
	}
	// One at a time: a directory is unlocked for the moment between making it and
	// locking it.
	all, err := lockFile(filepath.Join(base, ".lock"), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	if err := sweep(base); err != nil {
		return nil, err
	}
	s := &scratch{}
	if s.dir, err = os.MkdirTemp(base, fmt.Sprintf("lab-%d-", os.Getpid())); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	// Programs of the hosts may run as other users.
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	s.lock, err = lockFile(filepath.Join(s.dir, ".lock"), unix.LOCK_EX|unix.LOCK_NB)
	return s, err
}

// sweep removes the directories whose owner is gone.
func sweep(base string) error {
	dirs, err := filepath.Glob(filepath.Join(base, "lab-*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		lock, err := lockFile(filepath.Join(dir, ".lock"), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return err
		}
		err = os.RemoveAll(dir)
		lock.Close()
		if err != nil {
			return fmt.Errorf("remove what an earlier lab left: %w", err)
		}
	}
	return nil
}

func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the lab's directory: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// close gives the directory up.
func (s *scratch) close(keep bool) error {
	defer s.lock.Close()
	if keep {
		return nil
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the lab's directory: %w", err)
	}
	return nil
}

// checkQuiet reports processes of the host that outlived those the lab has started.
// What is about to end gets a moment for it.
func (h *Host) checkQuiet() error {
	if _, err := h.running(); errors.Is(err, os.ErrClosed) {
		return nil // a reboot went wrong, and has said so
	}
	var left []string
	err := Await(context.Background(), "the processes of "+h.name+" to end", time.Second, func(context.Context) (err error) {
		if left, err = h.leftovers(); err == nil && len(left) > 0 {
			err = errors.New(strings.Join(left, "; "))
		}
		return err
	})
	if len(left) > 0 {
		return fmt.Errorf("host %s: left running, and killed: %s", h.name, strings.Join(left, "; "))
	}
	return err
}
