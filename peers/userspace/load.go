package userspace

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// busyAfter is how long packets must have been inside without a break for the device
	// to be busy.
	busyAfter = 500 * time.Microsecond
	// glance is how often a busy device looks whether there is something to read.
	glance = 300 * time.Microsecond
)

// load knows whether the device is busy, and those who wait to read. Go's scheduler
// asks the kernel which files are ready when it has nothing else to do; while it has,
// every ten milliseconds. So in a busy device a packet of one way would wait that long
// for those of the other. Timers are looked at all the time: while the device is busy,
// who waits does so with a deadline, and looks.
type load struct {
	gates [2]*gate

	mu      sync.Mutex
	waiters []*waiter // guarded by mu
}

func newLoad(gates ...*gate) *load {
	l := &load{gates: [2]*gate(gates)}
	for _, g := range gates {
		g.left = l.wake
	}
	return l
}

func (l *load) busy() bool {
	now := time.Now()
	return slices.ContainsFunc(l.gates[:], func(g *gate) bool { return g.busy(now) })
}

// wake makes those look who began to wait when the device was not busy.
func (l *load) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.waiters {
		if w.forEver.Load() {
			_ = w.deadline(time.Unix(1, 0)) // an error means that it is closed
		}
	}
}

func (l *load) add(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiters = append(l.waiters, w)
}

func (l *load) remove(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiters = slices.DeleteFunc(l.waiters, func(o *waiter) bool { return o == w })
}

// waiter waits until a file can be read, for one goroutine.
type waiter struct {
	raw      syscall.RawConn
	deadline func(time.Time) error // sets that of reading
	load     *load                 // nil: never busy

	timed   bool // there is a deadline
	forEver atomic.Bool
	try     func(fd uintptr) bool
	done    bool
	once    func(fd uintptr)
}

func newWaiter(raw syscall.RawConn, deadline func(time.Time) error, l *load, try func(fd uintptr) bool) *waiter {
	w := &waiter{raw: raw, deadline: deadline, load: l, try: try}
	w.once = func(fd uintptr) { w.done = w.try(fd) }
	if l != nil {
		l.add(w)
	}
	return w
}

// read calls try until it is true, each time that the file may be readable.
func (w *waiter) read() error {
	if err := w.raw.Control(w.once); err != nil || w.done {
		return err
	}
	for {
		if err := w.wait(); !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

func (w *waiter) wait() error {
	w.forEver.Store(true)
	defer w.forEver.Store(false)
	switch {
	case w.load != nil && w.load.busy():
		w.forEver.Store(false)
		w.timed = true
		if err := w.deadline(time.Now().Add(glance)); err != nil {
			return err
		}
	case w.timed:
		w.timed = false
		if err := w.deadline(time.Time{}); err != nil {
			return err
		}
	}
	err := w.raw.Read(w.try)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		w.timed = true // whoever set it
	}
	return err
}

func (w *waiter) close() {
	if w.load != nil {
		w.load.remove(w)
	}
}
