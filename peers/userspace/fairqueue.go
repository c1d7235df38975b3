package userspace

import "hash/maphash"

// fairQueue holds frames that were read from the link until wireguard-go takes them.
// Each flow has its turn, and one that has just begun to send, or sends little, comes
// first: a ping does not wait behind a download (RFC 8290, without CoDel). Frames of
// one flow keep their order. When more than limit bytes wait, the flow that has the
// most of them loses its oldest frame. It is for one goroutine.
type fairQueue struct {
	limit int // bytes
	bytes int
	seed  maphash.Seed
	flows [flowCount]flow
	// The flows that have frames: young ones first, each list in turns.
	young, old flowList

	small, large [][]byte // buffers to use again
}

const (
	flowCount = 256
	// A flow may send quantum bytes each turn: less than the largest frame, so that
	// flows of small packets are not behind one of large ones.
	quantum = 16 << 10

	smallFrame = 2 << 10
	largeFrame = frameHeader + 1<<16
)

type flow struct {
	frames  []frame
	bytes   int
	deficit int
	listed  bool
	next    *flow
}

type flowList struct{ first, last *flow }

func (l *flowList) push(f *flow) {
	f.next = nil
	if l.last == nil {
		l.first = f
	} else {
		l.last.next = f
	}
	l.last = f
}

func (l *flowList) pop() *flow {
	f := l.first
	if l.first = f.next; l.first == nil {
		l.last = nil
	}
	return f
}

func newFairQueue(limit int) *fairQueue {
	return &fairQueue{limit: limit, seed: maphash.MakeSeed()}
}

// push adds a frame, and takes it over.
func (q *fairQueue) push(f frame) {
	to := &q.flows[maphash.Bytes(q.seed, f.flowKey(make([]byte, 0, 48)))%flowCount]
	to.frames = append(to.frames, f)
	to.bytes += len(f)
	q.bytes += len(f)
	if !to.listed {
		to.listed, to.deficit = true, quantum
		q.young.push(to)
	}
	for q.bytes > q.limit {
		q.drop()
	}
}

// drop loses the oldest frame of the largest flow.
func (q *fairQueue) drop() {
	worst := &q.flows[0]
	for i := range q.flows {
		if f := &q.flows[i]; f.bytes > worst.bytes {
			worst = f
		}
	}
	q.free(q.take(worst))
}

// pop returns the frame whose turn it is; nil if there is none. The caller gives it
// to free when it is done.
func (q *fairQueue) pop() frame {
	for {
		list := &q.young
		if list.first == nil {
			list = &q.old
		}
		f := list.first
		switch {
		case f == nil:
			return nil
		case f.deficit <= 0:
			f.deficit += quantum
			q.old.push(list.pop())
		case len(f.frames) == 0:
			// Not forgotten yet: else it would be young again with the next frame.
			list.pop()
			if list == &q.young && q.old.first != nil {
				q.old.push(f)
			} else {
				f.listed = false
			}
		default:
			f.deficit -= len(f.frames[0])
			return q.take(f)
		}
	}
}

func (q *fairQueue) take(f *flow) frame {
	first := f.frames[0]
	f.frames[0] = nil
	f.frames = f.frames[1:]
	if len(f.frames) == 0 {
		f.frames = nil
	}
	f.bytes -= len(first)
	q.bytes -= len(first)
	return first
}

// buffer returns room for a frame of size bytes.
func (q *fairQueue) buffer(size int) []byte {
	from, room := &q.large, largeFrame
	if size <= smallFrame {
		from, room = &q.small, smallFrame
	}
	if n := len(*from); n > 0 {
		b := (*from)[n-1]
		*from = (*from)[:n-1]
		return b
	}
	return make([]byte, room)
}

func (q *fairQueue) free(f frame) {
	switch cap(f) {
	case smallFrame:
		q.small = append(q.small, f[:smallFrame])
	case largeFrame:
		q.large = append(q.large, f[:largeFrame])
	}
}
