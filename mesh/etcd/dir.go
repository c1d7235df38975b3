package etcd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The lock file also marks the directory as ours: an etcd data directory
// without it belongs to some other installation. It is empty until the server has
// been ready once.
const (
	lockName   = "weft.lock"
	lockText   = "This directory is weft's embedded etcd. It is locked while it is in use.\n"
	memberDir  = "member"            // etcd's own
	unfinished = "member.unfinished" // what a first start that did not end left behind
	movedName  = "moved"             // where the content has gone to, as text
)

// MovedError says that what a data directory held is elsewhere now: a server on it
// would go on with a state that nobody else has.
type MovedError struct{ Dir, To string }

// Error implements error.
func (e *MovedError) Error() string {
	return fmt.Sprintf("data directory %s: the mesh has moved to %s", e.Dir, e.To)
}

// Retire marks a data directory whose content has moved to another etcd: no server
// starts on it any more. The files stay.
func Retire(dir, to string) error {
	path := filepath.Join(dir, movedName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("mark data directory: %w", err)
	}
	_, err = f.WriteString(to + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("mark data directory: %w", err)
	}
	return nil
}

// movedTo returns where the content of a directory has gone to, or "".
func movedTo(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, movedName))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// ErrInUse says that a server runs on a data directory already.
var ErrInUse = errors.New("in use by another process")

// claim is the hold on a data directory. The kernel gives it up if the process dies.
type claim struct {
	file  *os.File
	dir   string
	fresh bool // no server has been ready here yet
}

// claimDir makes the directory if needed and locks it. On an error nothing has
// changed.
func claimDir(dir string) (*claim, error) {
	marker := filepath.Join(dir, lockName)
	if err := checkDir(dir, marker); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	f, err := os.OpenFile(marker, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	c := &claim{file: f, dir: dir}
	if err := c.lock(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return c, nil
}

func (c *claim) lock() error {
	err := unix.Flock(int(c.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("data directory %s: %w", c.dir, ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("lock data directory %s: %w", c.dir, err)
	}
	info, err := c.file.Stat()
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if c.fresh = info.Size() == 0; !c.fresh {
		return nil
	}
	// A first start that was killed can leave a log without the member's own
	// entry: etcd would wait for ever to be elected. Nothing was written by anyone.
	aside := filepath.Join(c.dir, unfinished)
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := os.Rename(filepath.Join(c.dir, memberDir), aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// keep notes that the server has been ready, before anybody can write to it.
func (c *claim) keep() error {
	if !c.fresh {
		return nil
	}
	if _, err := c.file.WriteString(lockText); err != nil {
		return fmt.Errorf("mark data directory %s: %w", c.dir, err)
	}
	if err := c.file.Sync(); err != nil {
		return fmt.Errorf("mark data directory %s: %w", c.dir, err)
	}
	return nil
}

// checkDir refuses what is there and not ours.
func checkDir(dir, marker string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("data directory %s: it is a file", dir)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() {
		return fmt.Errorf("data directory %s: it belongs to user %d, and this process runs as user %d", dir, owner.Uid, os.Geteuid())
	}
	if _, err := os.Stat(marker); err == nil {
		to, err := movedTo(dir)
		if err == nil && to != "" {
			err = &MovedError{dir, to}
		}
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() == memberDir {
			return fmt.Errorf("data directory %s: it holds an etcd member that is not weft's (there is no %s)", dir, lockName)
		}
		names = append(names, e.Name())
	}
	if len(names) > 0 {
		if len(names) > 3 {
			names = append(names[:3], "...")
		}
		return fmt.Errorf("data directory %s: it is not weft's: it holds %s", dir, strings.Join(names, ", "))
	}
	return nil
}

// release unlocks the directory. The file stays: it is the mark.
func (c *claim) release() error { return c.file.Close() }
