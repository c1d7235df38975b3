package userspace

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watched is one end of a pipe, and who waits for it.
type watched struct {
	*waiter
	out    *os.File
	looked atomic.Int32
	ended  chan error
}

func watch(t *testing.T, l *load) *watched {
	t.Helper()
	var fds [2]int
	must(t, unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC))
	in, out := os.NewFile(uintptr(fds[0]), "in"), os.NewFile(uintptr(fds[1]), "out")
	t.Cleanup(func() { in.Close(); out.Close() })
	raw, err := in.SyscallConn()
	must(t, err)
	w := &watched{out: out, ended: make(chan error, 1)}
	w.waiter = newWaiter(raw, in.SetReadDeadline, l, func(fd uintptr) bool {
		w.looked.Add(1)
		n, _ := unix.Read(int(fd), make([]byte, 1))
		return n == 1
	})
	return w
}

func (w *watched) start() { go func() { w.ended <- w.read() }() }

func (w *watched) write(t *testing.T) {
	t.Helper()
	_, err := w.out.Write([]byte{1})
	must(t, err)
}

func (w *watched) end(t *testing.T) {
	t.Helper()
	select {
	case err := <-w.ended:
		must(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("it waits still")
	}
}

// In a device that is idle nobody looks but when there is something.
func TestIdleWaits(t *testing.T) {
	t.Parallel()
	l := newLoad(newGate(1), newGate(1))
	w := watch(t, l)
	for range 3 {
		w.looked.Store(0)
		w.start()
		eventually(t, "it waits", w.forEver.Load)
		w.write(t)
		w.end(t)
		if n := w.looked.Load(); n > 4 {
			t.Errorf("it looked %d times for one thing", n)
		}
	}
	w.write(t) // what is there already
	w.start()
	w.end(t)
}

// Those who wait when the device gets busy look, and go on to look while it is; when it
// is idle again they wait.
func TestBusyLooks(t *testing.T) {
	t.Parallel()
	out := newGate(4)
	l := newLoad(out, newGate(4))
	w := watch(t, l)
	w.start()
	eventually(t, "it waits", w.forEver.Load)
	out.enter(3)
	eventually(t, "the device is busy", l.busy)
	out.leave(1)
	before := w.looked.Load()
	eventually(t, "it looks again and again", func() bool { return w.looked.Load() > before+5 })
	out.leave(2)
	eventually(t, "it waits without a deadline", func() bool { return w.forEver.Load() })
	l.wake() // for nothing
	w.write(t)
	w.end(t)
}

// Who is closed ends, busy or not, and is not known any more.
func TestClosedEnds(t *testing.T) {
	t.Parallel()
	for _, inside := range []int{0, 3} {
		out := newGate(4)
		l := newLoad(out, newGate(4))
		out.enter(inside)
		if inside > 0 {
			eventually(t, "the device is busy", l.busy)
		}
		b := &bind{load: l}
		receivers, _, err := b.Open(0)
		must(t, err)
		ended := make(chan error, len(receivers))
		for _, receive := range receivers {
			go func() {
				_, err := receive(room(1))
				ended <- err
			}()
		}
		must(t, b.Close())
		for range receivers {
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Fatal("it waits still")
			}
		}
		l.wake()
		if n := len(l.waiters); n != 0 {
			t.Errorf("%d are known that were closed", n)
		}
	}
}
