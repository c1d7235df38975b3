package dns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// packetLoop answers what arrives at conn, in batches.
func (s *Server) packetLoop(ctx context.Context, conn net.PacketConn, role Role, waiting *sync.WaitGroup) error {
	l := s.newPacketLoop(ctx, conn, role, waiting)
	for failures := 0; ; {
		n, err := l.packets.read()
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
					i := next
					next++
					packet, from := l.packets.packet(i)
					if s.rates.allow(withoutPort(from), now) {
						l.take(i, packet, from)
					} else {
						s.limited.Add(1)
					}
				}
			})
		}
		l.hot.flush()
		if unwritten := l.packets.flush(); unwritten > 0 { // the askers ask again
			s.unwritten.Add(uint64(unwritten))
		}
		s.ownTime.add(time.Since(now), uint64(l.ready))
		l.ready = 0
	}
}

// packetLoop is the state of one loop.
type packetLoop struct {
	s       *Server
	ctx     context.Context
	conn    net.PacketConn
	packets packets
	role    Role
	waiting *sync.WaitGroup
	hot     *hot
	seen    uint      // packets, to look at some of them
	began   time.Time // when the batch was read
	exact   int       // packets of this second that are still counted each

	ready   int      // answers that flush is to send
	answers [][]byte // buffers, one for each of a batch
}

func (s *Server) newPacketLoop(ctx context.Context, conn net.PacketConn, role Role, waiting *sync.WaitGroup) *packetLoop {
	l := &packetLoop{s: s, ctx: ctx, conn: conn, packets: newPackets(conn), role: role, waiting: waiting, hot: s.newHot(), answers: make([][]byte, batch)}
	for i := range l.answers {
		l.answers[i] = make([]byte, 0, udpSize)
	}
	return l
}

// take answers one packet of a batch: with the others if it can be at once.
func (l *packetLoop) take(i int, packet []byte, from netip.AddrPort) {
	if l.seen++; l.exact > 0 {
		l.exact--
		l.s.count(packet, 1)
	} else if l.seen%topSample == 0 {
		l.s.count(packet, topSample)
	}
	source := withoutPort(from)
	if out := l.hot.answer(l.answers[l.ready], packet, source, l.role); out != nil {
		l.put(i, out)
		if l.s.cfg.QueryLog != nil {
			l.s.tell(packet, out, Asked{Source: source, Took: time.Since(l.began)})
		}
		return
	}
	start := time.Now()
	out, wait := l.s.handle(packet, source, l.role, false)
	if out != nil {
		l.put(i, out)
		l.s.tell(packet, out, Asked{Source: source, Took: time.Since(start)})
	}
	if wait != nil {
		packet := slices.Clone(packet)
		l.waiting.Add(1)
		go func() {
			defer l.waiting.Done()
			l.s.guarded(func() {
				out := wait(l.ctx)
				l.send(out, from)
				l.s.tell(packet, out, Asked{Source: source, Forwarded: true, Took: time.Since(start)})
			})
		}()
	}
}

func (l *packetLoop) put(i int, answer []byte) {
	l.packets.reply(i, answer)
	l.ready++
}

// begin notes when a batch was read.
func (l *packetLoop) begin(now time.Time) {
	if now.Unix() != l.began.Unix() {
		l.exact = topExact
	}
	l.began = now
}

func (l *packetLoop) send(answer []byte, to netip.AddrPort) {
	if answer == nil {
		return
	}
	if _, err := l.conn.WriteTo(answer, net.UDPAddrFromAddrPort(to)); err != nil {
		l.s.unwritten.Add(1)
	}
}
