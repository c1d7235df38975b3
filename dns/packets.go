package dns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/ipv6"
)

// batch is how many packets one system call reads or writes at most. Under load it
// makes them cheap; when there is little to do, each call has one packet.
const batch = 32

// packetLoop answers what arrives at conn, in batches.
func (s *Server) packetLoop(ctx context.Context, conn net.PacketConn, role Role, waiting *sync.WaitGroup) error {
	l := s.newPacketLoop(ctx, conn, role, waiting)
	for failures := 0; ; {
		n, err := l.read()
		if err != nil {
			failures++
			if err := retry(ctx, failures, "read DNS queries", conn.LocalAddr(), err); err != nil || ctx.Err() != nil {
				return err
			}
			continue
		}
		failures = 0
		s.udp.Add(uint64(n))
		s.guarded(l.hot.refresh)
		now := time.Now()
		l.begin(now)
		for next := 0; next < n; { // a panic costs one query, and those after it are taken up
			s.guarded(func() {
				for next < n {
					m := &l.in[next]
					next++
					if source := sourceOf(m.Addr); s.rates.allow(source, now) {
						l.take(m, source)
					} else {
						s.limited.Add(1)
					}
				}
			})
		}
		l.hot.flush()
		ready := l.ready
		l.write()
		s.ownTime.add(time.Since(now), uint64(ready))
	}
}

// packetLoop is the state of one loop.
type packetLoop struct {
	s       *Server
	ctx     context.Context
	conn    net.PacketConn
	packets *ipv6.PacketConn // nil: conn has no batches
	role    Role
	waiting *sync.WaitGroup
	hot     *hot
	seen    uint      // messages, to look at some of them
	began   time.Time // when the batch was read
	exact   int       // messages of this second that are still counted each

	in, out []ipv6.Message
	ready   int      // of out: how many are to be sent
	answers [][]byte // buffers of answers, one for each of out
}

func (s *Server) newPacketLoop(ctx context.Context, conn net.PacketConn, role Role, waiting *sync.WaitGroup) *packetLoop {
	l := &packetLoop{s: s, ctx: ctx, conn: conn, role: role, waiting: waiting, hot: s.newHot()}
	n := 1
	if _, ok := conn.(*net.UDPConn); ok {
		// Also for an IPv4 socket: only the calls are used that both have.
		l.packets, n = ipv6.NewPacketConn(conn), batch
	}
	l.in, l.out, l.answers = make([]ipv6.Message, n), make([]ipv6.Message, n), make([][]byte, n)
	for i := range n {
		l.in[i].Buffers = [][]byte{make([]byte, readSize)}
		l.out[i].Buffers = make([][]byte, 1)
		l.answers[i] = make([]byte, 0, udpSize)
	}
	return l
}

// read fills l.in with at least one message.
func (l *packetLoop) read() (n int, err error) {
	if l.packets != nil {
		return l.packets.ReadBatch(l.in, 0)
	}
	m := &l.in[0]
	m.N, m.Addr, err = l.conn.ReadFrom(m.Buffers[0])
	return 1, err
}

// take answers one message: into l.out if it can be at once.
func (l *packetLoop) take(m *ipv6.Message, source netip.Addr) {
	packet := m.Buffers[0][:m.N]
	if l.seen++; l.exact > 0 {
		l.exact--
		l.count(packet, 1)
	} else if l.seen%topSample == 0 {
		l.count(packet, topSample)
	}
	if out := l.hot.answer(l.answers[l.ready], packet, source, l.role); out != nil {
		l.put(out, m.Addr)
		if l.s.cfg.QueryLog != nil {
			l.s.tell(packet, out, Asked{Source: source, Took: time.Since(l.began)})
		}
		return
	}
	start := time.Now()
	out, wait := l.s.handle(packet, source, l.role, false)
	if out != nil {
		l.put(out, m.Addr)
		l.s.tell(packet, out, Asked{Source: source, Took: time.Since(start)})
	}
	if wait != nil {
		to, packet := m.Addr, slices.Clone(packet)
		l.waiting.Add(1)
		go func() {
			defer l.waiting.Done()
			l.s.guarded(func() {
				out := wait(l.ctx)
				l.send(out, to)
				l.s.tell(packet, out, Asked{Source: source, Forwarded: true, Took: time.Since(start)})
			})
		}()
	}
}

// begin notes when a batch was read.
func (l *packetLoop) begin(now time.Time) {
	if now.Unix() != l.began.Unix() {
		l.exact = topExact
	}
	l.began = now
}

// count notes the name of a query that stands for weight ones.
func (l *packetLoop) count(packet []byte, weight uint64) {
	if q, ok := parsePlain(packet); ok {
		l.s.top.add(presentation(q.labels()), weight)
	}
}

func (l *packetLoop) put(answer []byte, to net.Addr) {
	l.out[l.ready].Buffers[0], l.out[l.ready].Addr = answer, to
	l.ready++
}

// write sends what is ready. What cannot be sent is passed over: the asker asks again.
func (l *packetLoop) write() {
	for out := l.out[:l.ready]; len(out) > 0; {
		n, err := 1, error(nil)
		if l.packets != nil {
			n, err = l.packets.WriteBatch(out, 0)
		} else {
			_, err = l.conn.WriteTo(out[0].Buffers[0], out[0].Addr)
		}
		if err != nil || n < 1 {
			l.s.unwritten.Add(1)
			n = max(n, 1)
		}
		out = out[n:]
	}
	l.ready = 0
}

func (l *packetLoop) send(answer []byte, to net.Addr) {
	if answer == nil {
		return
	}
	if _, err := l.conn.WriteTo(answer, to); err != nil {
		l.s.unwritten.Add(1)
	}
}

func sourceOf(a net.Addr) netip.Addr { return withoutPort(addrPortOf(a)) }
