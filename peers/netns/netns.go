// Package netns makes, finds and enters Linux network namespaces. A socket or a
// link belongs to the namespace of the thread that made it and stays there, so a
// Handle's Do is all that is ever needed: make the thing inside, use it anywhere.
//
// Pitfalls that callers keep in mind: inside Do use literal addresses (package
// net may resolve a name in another goroutine, and so in another namespace), and
// numeric zones (`fe80::1%5`; names are cached across namespaces).
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Dir is where named namespaces are mounted, as iproute2 does.
const Dir = "/run/netns"

// Handle is an open network namespace. It keeps the namespace alive. A nil
// Handle is the namespace of the process.
type Handle struct{ file *os.File }

// Current returns the calling thread's namespace.
func Current() (*Handle, error) { return OpenPath("/proc/thread-self/ns/net") }

// OpenPath opens a namespace by a file, for example /proc/PID/ns/net.
func OpenPath(path string) (*Handle, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &Handle{f}, nil
}

// Open opens the namespace that is mounted under Dir by name. The error wraps
// os.ErrNotExist if there is none.
func Open(name string) (*Handle, error) {
	path := filepath.Join(Dir, name)
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	// A file that nothing is mounted on is what a crash between making the file and
	// mounting leaves.
	if st.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("open network namespace %s: %w", name, os.ErrNotExist)
	}
	return OpenPath(path)
}

// New makes a namespace without a name. It ends when its last handle, process,
// and link elsewhere is gone.
func New() (*Handle, error) {
	var h *Handle
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		h, err = Current()
		return err
	})
	return h, err
}

// Create makes a namespace and mounts it under Dir. The error wraps os.ErrExist
// if the name is taken; see Open.
func Create(name string) (*Handle, error) {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	path := filepath.Join(Dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if errors.Is(err, os.ErrExist) {
		if h, openErr := Open(name); openErr == nil {
			h.Close()
		} else if errors.Is(openErr, os.ErrNotExist) {
			err = nil // left over by a crash: mount over it
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	if f != nil {
		f.Close()
	}
	h, err := New()
	if err != nil {
		os.Remove(path)
		return nil, err
	}
	if err := h.mount(path); err != nil {
		h.Close()
		os.Remove(path)
		return nil, err
	}
	return h, nil
}

func (h *Handle) mount(path string) error {
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", h.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount network namespace %s: %w", filepath.Base(path), err)
	}
	return nil
}

// Named reports whether the namespace is the one of that name. The error wraps
// os.ErrExist if another one is.
func (h *Handle) Named(name string) (bool, error) {
	now, err := Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer now.Close()
	same, err := h.Same(now)
	if err == nil && !same {
		err = fmt.Errorf("network namespace %s: the name is another one's (take it away: ip netns del %s): %w", name, name, os.ErrExist)
	}
	return same, err
}

// Name gives a namespace its name back that somebody has taken away, and reports
// whether it had to. Errors are those of Named.
func (h *Handle) Name(name string) (changed bool, err error) {
	named, err := h.Named(name)
	if named || err != nil {
		return false, err
	}
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return false, fmt.Errorf("name network namespace %s: %w", name, err)
	}
	path := filepath.Join(Dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return false, fmt.Errorf("name network namespace %s: %w", name, err)
	}
	f.Close()
	return true, h.mount(path)
}

// Remove takes a name away. The namespace itself lives while something uses it.
// No such name is not an error.
func Remove(name string) error {
	path := filepath.Join(Dir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount network namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// Fd returns the file descriptor, -1 for a nil Handle.
func (h *Handle) Fd() int {
	if h == nil {
		return -1
	}
	return int(h.file.Fd())
}

// Close releases the handle.
func (h *Handle) Close() error {
	if h == nil {
		return nil
	}
	return h.file.Close()
}

// Do calls fn on a thread inside the namespace and returns what it returns.
// Goroutines that fn starts are not inside. /proc/thread-self/net and
// /proc/sys/net are the namespace's.
func (h *Handle) Do(fn func() error) error {
	if h == nil {
		return fn()
	}
	return onThread(func() error {
		if err := unix.Setns(h.Fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// onThread calls fn on a thread of its own that ends with it: it stays locked, and
// Go destroys a locked thread when its goroutine ends. All but the first thread of
// the process: Go only parks that one, and /proc/PID/ns/net would show its
// namespace for ever. So whoever finds himself there holds it and asks again.
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

// Netlink returns a netlink handle inside the namespace, for routes, links and
// addresses, and for the further families given (unix.NETLINK_NETFILTER for
// conntrack). Close it when done.
func (h *Handle) Netlink(families ...int) (*netlink.Handle, error) {
	families = append([]int{unix.NETLINK_ROUTE}, families...)
	if h == nil {
		nl, err := netlink.NewHandle(families...)
		if err != nil {
			return nil, fmt.Errorf("open netlink: %w", err)
		}
		return nl, nil
	}
	nl, err := netlink.NewHandleAt(vnetns.NsHandle(h.Fd()), families...)
	if err != nil {
		return nil, fmt.Errorf("open netlink in network namespace: %w", err)
	}
	return nl, nil
}

// Same reports whether both are the same namespace.
func (h *Handle) Same(other *Handle) (bool, error) {
	var a, b unix.Stat_t
	for _, x := range []struct {
		h  *Handle
		st *unix.Stat_t
	}{{h, &a}, {other, &b}} {
		var err error
		if x.h == nil {
			err = unix.Stat("/proc/self/ns/net", x.st)
		} else {
			err = unix.Fstat(x.h.Fd(), x.st)
		}
		if err != nil {
			return false, fmt.Errorf("compare network namespaces: %w", err)
		}
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}
