package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// thread is an operating system thread that stays in a host's namespaces and
// starts the host's processes. It lives until close: a process with Pdeathsig dies
// with the thread that started it, so also with the lab.
type thread struct {
	work chan func()
	done chan struct{}

	mu     sync.Mutex // held while something is done
	closed bool
}

func newThread() *thread {
	t := &thread{work: make(chan func()), done: make(chan struct{})}
	onOwnThread(func() {
		defer close(t.done)
		for fn := range t.work {
			fn()
		}
	})
	return t
}

// do calls fn on the thread and returns what it returns.
func (t *thread) do(fn func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return os.ErrClosed
	}
	result := make(chan error, 1)
	t.work <- func() { result <- fn() }
	return <-result
}

// close ends the thread. What is being done is waited for.
func (t *thread) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed = true
		close(t.work)
	}
	<-t.done
}

// onOwnThread calls fn in the background on a thread that ends with it: Go destroys
// a locked thread when its goroutine ends. All but the first thread of the process,
// which Go only parks, with the namespaces it is in: whoever finds himself there
// holds it until another thread has been found.
func onOwnThread(fn func()) {
	locked := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			onOwnThread(fn)
			close(locked)
			return
		}
		close(locked)
		fn()
	}()
	<-locked
}

// inside calls fn on a thread that has entered the namespaces, and waits for it.
func inside(namespaces *namespaces, fn func() error) error {
	result := make(chan error, 1)
	onOwnThread(func() {
		err := errors.New("the function inside the namespaces ended its goroutine")
		defer func() { result <- err }()
		if err = namespaces.enter(); err == nil {
			err = fn()
		}
	})
	return <-result
}

// namespaces are the open namespaces of a host.
type namespaces struct {
	net, mnt, uts *os.File
}

// current opens the calling thread's namespaces. /proc must be the lab's.
func current() (n *namespaces, err error) {
	n = &namespaces{}
	for _, x := range []struct {
		file **os.File
		name string
	}{{&n.net, "net"}, {&n.mnt, "mnt"}, {&n.uts, "uts"}} {
		if *x.file, err = os.Open("/proc/thread-self/ns/" + x.name); err != nil {
			n.close()
			return nil, fmt.Errorf("open the namespaces of a thread: %w", err)
		}
	}
	return n, nil
}

// enter moves the calling thread, which must not be used for anything else after.
func (n *namespaces) enter() error {
	// The other threads share root and working directory with this one, and the
	// kernel moves nobody to another mount namespace who shares them.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter namespaces: unshare the file system attributes: %w", err)
	}
	for _, x := range []struct {
		file *os.File
		flag int
	}{{n.net, unix.CLONE_NEWNET}, {n.uts, unix.CLONE_NEWUTS}, {n.mnt, unix.CLONE_NEWNS}} {
		if err := unix.Setns(int(x.file.Fd()), x.flag); err != nil {
			return fmt.Errorf("enter %s: %w", x.file.Name(), err)
		}
	}
	return nil
}

func (n *namespaces) close() {
	for _, f := range []*os.File{n.net, n.mnt, n.uts} {
		if f != nil {
			f.Close()
		}
	}
}
