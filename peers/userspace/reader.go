package userspace

import (
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// waitingMax is how many bytes wait in our queue at most.
	waitingMax = 4 << 20
	// framesMax is how many frames are read at once: room in the kernel's queue, whose
	// order is that of arrival, is made before the next packets go out.
	framesMax = 64
)

// reader reads packets from a TUN link, for one goroutine, and hands them out in the
// order of fairQueue, as many as are there.
type reader struct {
	wait    *waiter
	queue   *fairQueue
	silence *silence

	block bool   // wait until there is a frame
	next  []byte // where it goes
	got   int    // frames by the last call
	errno unix.Errno

	current frame // handed out up to segment
	segment int
}

func newReader(file *os.File, l *load) (*reader, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &reader{queue: newFairQueue(waitingMax), silence: newSilence()}
	r.wait = newWaiter(raw, file.SetReadDeadline, l, r.call)
	return r, nil
}

// read waits for packets and writes them into bufs, each after offset bytes.
func (r *reader) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		r.block = r.current == nil && r.queue.bytes == 0
		r.got, r.errno = 0, 0
		if err := r.wait.read(); err != nil {
			return 0, os.ErrClosed // there is no other reason
		}
		switch r.errno {
		case 0, unix.EAGAIN:
		case unix.EBADFD: // the link was deleted
			return 0, os.ErrClosed
		default:
			return 0, fmt.Errorf("read from the link: %w", r.errno)
		}
		if n := r.fill(bufs, sizes, offset); n > 0 {
			return n, nil
		}
	}
}

// call reads frames into the queue. It is false if the link is to be waited for. The
// scheduler is not told about the calls, which do not block.
func (r *reader) call(fd uintptr) bool {
	for r.got < framesMax {
		if r.next == nil {
			r.next = r.queue.buffer(largeFrame)
		}
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&r.next[0])), uintptr(len(r.next)))
		switch errno {
		case 0:
			r.got++
			r.take(int(n))
		case unix.EINTR:
		case unix.EAGAIN:
			return r.got > 0 || !r.block
		default:
			r.errno = errno
			return true
		}
	}
	return true
}

// take puts the frame that was read into the queue. A small one moves, for it to
// take no more room than it needs.
func (r *reader) take(size int) {
	f := frame(r.next[:size])
	if !f.valid() {
		return
	}
	if size <= smallFrame {
		small := r.queue.buffer(size)[:size]
		copy(small, f)
		r.queue.push(small)
		return
	}
	r.next = nil
	r.queue.push(f)
}

func (r *reader) fill(bufs [][]byte, sizes []int, offset int) (n int) {
	now := time.Now()
	for n < len(bufs) {
		if r.current == nil {
			if r.current, r.segment = r.queue.pop(), 0; r.current == nil {
				break
			}
		}
		room := bufs[n:]
		admitted := r.silence.admit(r.current, n == 0, now)
		switch admitted {
		case admitNone:
			r.done()
			continue
		case admitLater:
			return n
		case admitOne:
			room = room[:1]
		}
		did := r.current.split(r.segment, room, sizes[n:], offset)
		r.silence.enter(r.current, bufs[n:n+did], now)
		n += did
		if r.segment += did; r.segment >= r.current.segments() {
			r.done()
		}
		if admitted == admitOne {
			break
		}
	}
	return n
}

// done is for a frame that was handed out, or is not to be.
func (r *reader) done() {
	r.queue.free(r.current)
	r.current = nil
}
