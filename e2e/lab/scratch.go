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

// scratch is a lab's directory. Its owner holds a lock on it, which ends with the
// owner's process: a directory that can be locked is nobody's.
type scratch struct {
	base, dir string
	lock      *os.File
}

// newScratch makes a directory in base and removes those of labs that are gone.
func newScratch(base string) (*scratch, error) {
	all, err := lockBase(base)
	if err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	defer all.Close()
	if err := sweep(base); err != nil {
		return nil, fmt.Errorf("remove what an earlier lab left: %w", err)
	}
	s := &scratch{base: base}
	if s.dir, err = os.MkdirTemp(base, fmt.Sprintf("lab-%d-", os.Getpid())); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	// Programs of the hosts may run as other users.
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	if s.lock, err = lockDir(s.dir, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	return s, nil
}

// lockBase makes base, if need be, and takes its lock, so that there is one at a
// time who makes and removes in it: between making a directory and locking it, it
// looks like nobody's.
func lockBase(base string) (*os.File, error) {
	for {
		// "It exists" is also what removing it in the middle of this call looks like.
		if err := os.MkdirAll(base, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		// In a directory for everybody, somebody else may have been there first.
		info, err := os.Lstat(base)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() {
			return nil, fmt.Errorf("%s is not a directory of our own", base)
		}
		lock, err := lockDir(base, unix.LOCK_EX)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// While we waited, the one before may have removed it.
		if now, err := os.Lstat(base); err == nil && os.SameFile(info, now) {
			return lock, nil
		}
		lock.Close()
	}
}

// Sweep removes what labs of base left whose process was killed, and base if nothing
// else is in it. Labs do so themselves when they begin.
func Sweep(base string) error {
	if _, err := os.Lstat(base); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	all, err := lockBase(base)
	if err != nil {
		return fmt.Errorf("remove what an earlier lab left: %w", err)
	}
	defer all.Close()
	if err := sweep(base); err != nil {
		return fmt.Errorf("remove what an earlier lab left: %w", err)
	}
	if err := os.Remove(base); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove what an earlier lab left: %w", err)
	}
	return nil
}

// sweep removes the directories whose owner is gone.
func sweep(base string) error {
	dirs, err := filepath.Glob(filepath.Join(base, "lab-*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		lock, err := lockDir(dir, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return err
		}
		err = os.RemoveAll(dir)
		lock.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func lockDir(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
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

// close gives the directory up, and base with it if nothing else is there.
func (s *scratch) close(keep bool) error {
	defer s.lock.Close()
	if keep {
		return nil
	}
	all, err := lockBase(s.base)
	if err != nil {
		return fmt.Errorf("remove the lab's directory: %w", err)
	}
	defer all.Close()
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the lab's directory: %w", err)
	}
	if err := os.Remove(s.base); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
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
	var left []leftover
	err := Await(context.Background(), "the processes of "+h.name+" to end", time.Second, func(context.Context) (err error) {
		if left, err = h.leftovers(); err == nil && len(left) > 0 {
			err = errors.New(joined(left))
		}
		return err
	})
	if len(left) > 0 {
		return fmt.Errorf("host %s: left running, and killed: %s", h.name, joined(left))
	}
	return err
}

func joined(list []leftover) string {
	var text []string
	for _, l := range list {
		text = append(text, l.String())
	}
	return strings.Join(text, "; ")
}
