package lab

import (
	"container/heap"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// outbox holds the frames that are on their way to one port, and hands each over
// when it is due. It waits on a timerfd: timers of the Go runtime are late by up to
// a millisecond when the process is idle, these by a twentieth of that.
type outbox struct {
	to    *port
	fd    int      // of timer; its Fd method would make it blocking
	timer *os.File // readable when the first frame is due
	done  chan struct{}

	mu     sync.Mutex
	frames queue
	seq    uint64
	closed bool
}

type queued struct {
	due  time.Duration
	seq  uint64
	b    *buffer
	link *link
}

// queue is a heap by due time; what is due at the same time stays in order. So the
// frames of a path keep their order as long as its delay does not shrink.
type queue []queued

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].due < q[j].due || q[i].due == q[j].due && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(queued)) }
func (q *queue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = queued{}
	*q = (*q)[:last]
	return x
}

func newOutbox(to *port) (*outbox, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer for the path to %s: %w", to.name, err)
	}
	o := &outbox{to: to, fd: fd, timer: os.NewFile(uintptr(fd), "timerfd"), done: make(chan struct{})}
	go o.run()
	return o, nil
}

// push adds a frame.
func (o *outbox) push(due time.Duration, b *buffer, l *link) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.seq++
	heap.Push(&o.frames, queued{due, o.seq, b, l})
	if o.frames[0].seq == o.seq {
		o.armLocked()
	}
}

// armLocked sets the timer for the first frame.
func (o *outbox) armLocked() {
	wait := max(o.frames[0].due-o.to.s.now(), 1) // 0 would stop the timer
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(wait))}
	// It fails for a bad descriptor or time only, which these are not.
	_ = unix.TimerfdSettime(o.fd, 0, &spec, nil)
}

func (o *outbox) run() {
	defer close(o.done)
	var expirations [8]byte
	var due []queued
	for {
		if _, err := o.timer.Read(expirations[:]); err != nil {
			return
		}
		due = o.take(due[:0])
		for i, f := range due {
			f.link.arrived(f.b)
			due[i] = queued{}
		}
	}
}

// take appends the frames that are due and sets the timer for the next.
func (o *outbox) take(due []queued) []queued {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.frames) > 0 && o.frames[0].due <= o.to.s.now() {
		due = append(due, heap.Pop(&o.frames).(queued))
	}
	if len(o.frames) > 0 && !o.closed {
		o.armLocked()
	}
	return due
}

// close drops what is on its way and ends the goroutine.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed, o.frames = true, nil
	o.timer.Close()
	o.mu.Unlock()
	<-o.done
}
