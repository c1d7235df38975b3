package probe

import (
	"errors"
	"net"
	"net/netip"
	"time"
)

// receive reads until the connection is closed. A read can fail for one packet's
// sake; only errors in a row are the connection's own.
func (p *Prober) receive() error {
	b := make([]byte, 1<<16)
	for failed := 0; failed < 100; {
		n, from, err := p.cfg.Conn.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			if failed++; failed == 100 {
				return err
			}
			continue
		}
		failed = 0
		packet, err := Parse(b[:n])
		if err != nil {
			continue
		}
		p.received(packet, from)
	}
	return nil
}

func (p *Prober) received(packet Packet, from netip.AddrPort) {
	from = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
	answers, news := p.hear(packet, from, time.Now())
	for _, a := range answers {
		p.cfg.Conn.WriteToUDPAddrPort(a.bytes, a.to)
	}
	if news {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// hear takes a packet in. It returns what is to be sent for it, and whether there is
// something to judge.
func (p *Prober) hear(packet Packet, from netip.AddrPort, now time.Time) (answers []outgoing, news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.byAddr[from.Addr()]
	if s != nil && from.Port() != p.cfg.Port {
		s = nil
	}
	if s != nil {
		s.talk.hear(HearingOf(packet.Flags), packet.Kind, now, p.cfg.Timing.SuspectAfter)
		news = s.result().Way.OneWay()
	}
	switch packet.Kind {
	case Request:
		flags := FlagHoldsData | Hearing{Said: true, Age: Never}.Flags()
		if s != nil {
			flags = s.talk.flags(now)
		}
		if reply, ok := Answer(packet, flags); ok && p.cfg.Allowed(from.Addr()) {
			answers = append(answers, outgoing{reply.Append(make([]byte, 0, Size)), from})
		}
	case Reply:
		if s != nil && s.tracker.Received(packet.Nonce, now) {
			news = news || changed((*p.results.Load())[s.Name], s.tracker)
		} else if s != nil && s.path != nil && s.path.Received(packet.Nonce, now) {
			news = true
		}
	case Tell:
		whom := p.byAddr[packet.Subject()]
		if s != nil && whom != nil && p.cfg.Allowed(from.Addr()) && p.relay.take(now) {
			answers = append(answers, p.outgoing(about(Told, from.Addr(), packet.Flags), whom.Addr))
		}
	case Told:
		if who := p.byAddr[packet.Subject()]; s != nil && who != nil && p.cfg.Allowed(from.Addr()) {
			who.talk.passedOn(HearingOf(packet.Flags), from.Addr(), now)
			news = true
		}
	}
	return answers, news
}

func changed(r Result, t *Tracker) bool { return r.RTT != t.RTT() || r.Suspect != t.Suspect() }
