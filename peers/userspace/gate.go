package userspace

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

const (
	// inFlight is how many packets are inside wireguard-go at most, each way, give or
	// take a batch. Each holds a buffer of 64 KiB, and delays those behind it. What
	// more there is waits before: in our queue, or in the socket's.
	inFlight = 256
	// forgotten is after how long a packet that went in and did not come out is taken
	// for dropped: wireguard-go does not say so, for example where a peer is silent.
	// None that lives stays so long, unless there is no processor to be had.
	forgotten = 10 * time.Millisecond
)

// gate counts the packets that are inside wireguard-go, one way.
type gate struct {
	limit int
	freed chan struct{} // has room for one: somebody may go on
	left  func()        // if not nil: called when some came out and the gate is busy

	mu      sync.Mutex
	inside  int       // guarded by mu, as is entries: the sum of their n
	entries []entry   // the oldest first
	since   time.Time // when the first went in, of those inside without a break
}

type entry struct {
	at time.Time
	n  int
}

func newGate(limit int) *gate { return &gate{limit: limit, freed: make(chan struct{}, 1)} }

// enter says that n packets go in.
func (g *gate) enter(n int) {
	if n == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.inside == 0 {
		g.since = now
	}
	g.inside += n
	g.entries = append(g.entries, entry{now, n})
}

// leave says that n packets came out: those that went in first.
func (g *gate) leave(n int) {
	g.mu.Lock()
	full := g.inside >= g.limit
	g.remove(n)
	// Half of it has to be free: to wake a reader for each packet costs more.
	wake := full && g.inside < g.limit || g.inside <= g.limit/2 && g.inside+n > g.limit/2
	busy := g.inside > 0 && g.left != nil && time.Since(g.since) >= busyAfter
	g.mu.Unlock()
	if wake {
		g.signal()
	}
	if busy {
		g.left()
	}
}

// busy reports whether packets have been inside for some time without a break.
func (g *gate) busy(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside > 0 && now.Sub(g.since) >= busyAfter
}

func (g *gate) signal() {
	select {
	case g.freed <- struct{}{}:
	default:
	}
}

func (g *gate) remove(n int) {
	done := 0
	for ; done < len(g.entries) && n > 0; done++ {
		e := &g.entries[done]
		took := min(n, e.n)
		e.n -= took
		n -= took
		g.inside -= took
		if e.n > 0 {
			break
		}
	}
	g.entries = append(g.entries[:0], g.entries[done:]...)
}

// wait returns when there is room, at the latest when what is inside is forgotten.
func (g *gate) wait() {
	var timer *time.Timer
	for {
		left := g.full(time.Now())
		if left <= 0 {
			break
		}
		if timer == nil {
			timer = time.NewTimer(left)
			defer timer.Stop()
		} else {
			timer.Reset(left)
		}
		select {
		case <-g.freed:
		case <-timer.C:
		}
	}
	if timer != nil {
		g.signal() // another may wait too
	}
}

// full returns how long the gate stays shut if nothing comes out; 0: it is open.
func (g *gate) full(now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.entries) > 0 && now.Sub(g.entries[0].at) >= forgotten {
		g.remove(g.entries[0].n)
	}
	if g.inside < g.limit {
		return 0
	}
	return forgotten - now.Sub(g.entries[0].at)
}

// gatedBind counts what passes between wireguard-go and its sockets.
type gatedBind struct {
	conn.Bind
	out, in *gate
	silence *silence
}

// Open implements conn.Bind.
func (b *gatedBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := b.Bind.Open(port)
	for i, receive := range fns {
		fns[i] = func(bufs [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
			b.in.wait()
			n, err := receive(bufs, sizes, from)
			packets := 0
			for i := range n {
				if isData(bufs[i][:sizes[i]]) {
					packets++
				}
			}
			b.in.enter(packets)
			return n, err
		}
	}
	return fns, port, err
}

// Send implements conn.Bind.
func (b *gatedBind) Send(bufs [][]byte, to conn.Endpoint) error {
	err := b.Bind.Send(bufs, to)
	packets := 0
	for _, buf := range bufs {
		if isData(buf) {
			packets++
		}
	}
	b.out.leave(packets)
	b.silence.leave(bufs)
	return err
}

// isData reports whether a message carries a packet: is no handshake and no keepalive.
func isData(message []byte) bool {
	return len(message) > device.MessageKeepaliveSize && binary.LittleEndian.Uint32(message) == device.MessageTransportType
}
