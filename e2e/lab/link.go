package lab

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	rateQueue    = 100 * time.Millisecond // what may wait for its turn on a capped path
	rateQueueMin = 32 << 10               // bytes that always may
	linkQueueMax = 64 << 20               // bytes of buffers on their way on one path
	reorderBy    = 10 * time.Millisecond  // so much later comes a packet that others overtake
)

// link is the way from one port to another.
type link struct {
	from, to *port
	path     atomic.Pointer[Path] // never nil; replaced under mu
	queued   atomic.Int64         // bytes of buffers on their way

	mu   sync.Mutex
	rand *rand.Rand    // decides loss, jitter, reordering and duplication
	free time.Duration // when a capped path has sent what it was given

	frames, packets, bytes, lost, cutOff, full, resolved, failed, reordered, duplicated, big atomic.Uint64
}

// newLink makes a path without delay. Its losses depend on the switch's seed and
// on its own packets only.
func newLink(from, to *port) *link {
	l := &link{from: from, to: to, rand: rand.New(rand.NewPCG(from.s.seed, uint64(from.index)<<32|uint64(to.index)))}
	l.path.Store(&Path{})
	return l
}

func (l *link) change(edit func(*Path)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := *l.path.Load()
	edit(&p)
	share := func(x float64) bool { return x >= 0 && x <= 1 } // not NaN
	if p.Delay < 0 || p.Jitter < 0 || p.Rate < 0 || p.MTU < 0 || !share(p.Loss) || !share(p.Reorder) || !share(p.Duplicate) {
		return fmt.Errorf("path %s to %s: %+v: delay, jitter, rate and MTU are at least 0, loss is 0 to 1, and so are reordering and duplication", l.from.name, l.to.name, p)
	}
	if p.Rate == 0 {
		l.free = 0
	}
	l.path.Store(&p)
	return nil
}

func (l *link) counters() Counters {
	return Counters{
		Frames: l.frames.Load(), Packets: l.packets.Load(), Bytes: l.bytes.Load(),
		Lost: l.lost.Load(), Cut: l.cutOff.Load(), Full: l.full.Load(),
		Resolved: l.resolved.Load(), Failed: l.failed.Load(),
		Reordered: l.reordered.Load(), Duplicated: l.duplicated.Load(),
		Big: l.big.Load(),
	}
}

// send lets the frame go its way: at once, later, or never. It does not keep frame.
func (l *link) send(frame, scratch []byte) {
	if resolves(frame) {
		l.resolved.Add(1)
		l.deliver(frame)
		return
	}
	l.frames.Add(1)
	p := l.path.Load()
	n, bytes := packets(frame)
	switch {
	case p.Cut || l.from.cut.Load() || l.to.cut.Load():
		l.cutOff.Add(uint64(n))
	case *p == Path{}:
		l.packets.Add(uint64(n))
		l.bytes.Add(uint64(bytes))
		l.deliver(frame)
	case n > 1 && (p.Loss > 0 || p.Rate > 0 || p.Jitter > 0 || p.Reorder > 0 || p.Duplicate > 0 || p.MTU > 0):
		s, _ := parseSegmented(frame)
		s.segment(frame, scratch, func(packet []byte) { l.shape(p, packet, 1, len(packet)-vnetLen) })
	default:
		l.shape(p, frame, n, bytes)
	}
}

// shape sends a frame of n packets by the rules of p.
func (l *link) shape(p *Path, frame []byte, n, bytes int) {
	if p.MTU > 0 && bytes-(netOff-vnetLen) > p.MTU {
		l.big.Add(uint64(n))
		return
	}
	due, counter := l.schedule(p, bytes)
	if counter == nil && due > l.from.s.now() && l.queued.Load() > linkQueueMax {
		counter = &l.full
	}
	if counter != nil {
		counter.Add(uint64(n))
		return
	}
	l.packets.Add(uint64(n))
	l.bytes.Add(uint64(bytes))
	l.carry(frame, due)
	if l.twice(p) {
		l.duplicated.Add(uint64(n))
		l.carry(frame, due)
	}
}

// carry delivers a frame when it is due.
func (l *link) carry(frame []byte, due time.Duration) {
	if due <= l.from.s.now() {
		l.deliver(frame)
		return
	}
	b := l.from.s.pool.get(frame)
	l.queued.Add(int64(cap(b.data)))
	l.to.out.push(due, b, l)
}

// schedule says when a frame arrives, or which counter counts its loss.
func (l *link) schedule(p *Path, bytes int) (due time.Duration, lost *atomic.Uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.Loss > 0 && l.rand.Float64() < p.Loss {
		return 0, &l.lost
	}
	due = l.from.s.now()
	if p.Rate > 0 {
		start := max(due, l.free)
		if start-due > max(rateQueue, sending(rateQueueMin, p.Rate)) {
			return 0, &l.full
		}
		l.free = start + sending(bytes, p.Rate)
		due = l.free
	}
	due += p.Delay
	if p.Jitter > 0 {
		due += time.Duration(l.rand.Int64N(int64(p.Jitter) + 1))
	}
	if p.Reorder > 0 && l.rand.Float64() < p.Reorder {
		l.reordered.Add(1)
		due += reorderBy
	}
	return due, nil
}

// twice decides whether a packet is delivered a second time.
func (l *link) twice(p *Path) bool {
	if p.Duplicate == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rand.Float64() < p.Duplicate
}

// sending is how long a capped path takes to send so many bytes.
func sending(bytes int, rate int64) time.Duration {
	return time.Duration(float64(bytes) * 8 / float64(rate) * float64(time.Second))
}

func (l *link) deliver(frame []byte) {
	if !l.to.write(frame) {
		l.failed.Add(1)
	}
}

// arrived ends a frame's time in the outbox.
func (l *link) arrived(b *buffer) {
	l.deliver(b.data)
	l.queued.Add(-int64(cap(b.data)))
	l.from.s.pool.put(b)
}

// buffer holds a frame on its way.
type buffer struct {
	data  []byte
	class int
}

// pool keeps buffers of a few sizes, so that a small frame does not hold 64 kB.
type pool [3]sync.Pool

var bufferSizes = [len(pool{})]int{2 << 10, 16 << 10, maxFrame}

func (p *pool) get(frame []byte) *buffer {
	class := 0
	for len(frame) > bufferSizes[class] {
		class++
	}
	b, _ := p[class].Get().(*buffer)
	if b == nil {
		b = &buffer{data: make([]byte, bufferSizes[class]), class: class}
	}
	b.data = append(b.data[:0], frame...)
	return b
}

func (p *pool) put(b *buffer) { p[b.class].Put(b) }
