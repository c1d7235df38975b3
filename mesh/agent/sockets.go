package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh/agent/probe"
)

// sockets are the resolvers that run: one UDP and one TCP socket per address. Only
// the loop calls set and close.
type sockets struct {
	server *dns.Server
	open   map[netip.Addr]*running
}

// running is a goroutine with its end.
type running struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended
}

func (r *running) stop() {
	r.cancel()
	<-r.done
}

// ended reports whether it has ended by itself.
func (r *running) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// goRun runs f until its context is cancelled.
func goRun(f func(ctx context.Context)) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel, make(chan struct{})}
	go func() {
		defer close(r.done)
		f(ctx)
	}()
	return r
}

// set makes want the addresses that are served. One whose sockets failed is opened
// again.
func (s *sockets) set(want map[netip.Addr]dns.Role, listen func(netip.Addr) (net.PacketConn, net.Listener, error), log *slog.Logger, wake func()) error {
	if s.open == nil {
		s.open = map[netip.Addr]*running{}
	}
	var minus []netip.Addr
	for at := range s.open {
		if _, wanted := want[at]; !wanted {
			minus = append(minus, at)
		}
	}
	return s.change(want, minus, listen, log, wake)
}

// change makes the addresses of plus served, too, and those of minus not any more.
func (s *sockets) change(plus map[netip.Addr]dns.Role, minus []netip.Addr, listen func(netip.Addr) (net.PacketConn, net.Listener, error), log *slog.Logger, wake func()) error {
	var errs []error
	for at, role := range plus {
		if r := s.open[at]; r != nil && !r.ended() {
			continue
		}
		delete(s.open, at)
		udp, tcp, err := listen(at)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.open[at] = goRun(func(ctx context.Context) { s.serve(ctx, at, role, udp, tcp, log, wake) })
		log.Info("resolver answers", "addr", at.String())
	}
	for _, at := range minus {
		if r := s.open[at]; r != nil {
			r.stop()
			delete(s.open, at)
			log.Info("resolver ended", "addr", at.String())
		}
	}
	return errors.Join(errs...)
}

func (s *sockets) serve(ctx context.Context, at netip.Addr, role dns.Role, udp net.PacketConn, tcp net.Listener, log *slog.Logger, wake func()) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := make(chan error, 1)
	go func() {
		stream <- s.server.ServeStream(ctx, tcp, role)
		cancel()
	}()
	err := s.server.ServePacket(ctx, udp, role)
	cancel()
	if err = errors.Join(err, <-stream); err != nil {
		log.Warn("resolver failed", "addr", at.String(), "err", err)
		wake()
	}
}

func (s *sockets) close() {
	for _, r := range s.open {
		r.stop()
	}
	clear(s.open)
}

// proberSlot is the prober that runs, if one does. Only the loop calls set and
// close; results may be asked by anybody.
type proberSlot struct {
	allowed allowList
	changed signal

	current atomic.Pointer[probe.Prober]
	self    netip.Addr
	run     *running
}

// set gives the prober its targets; it is started when there is none, or when its
// socket failed, or for another address.
func (s *proberSlot) set(self netip.Addr, targets []probe.Target, cfg probe.Config, listen func() (*net.UDPConn, error)) error {
	if s.run != nil && (s.run.ended() || s.self != self) {
		s.run.stop()
		s.run = nil
	}
	if s.run == nil {
		conn, err := listen()
		if err != nil {
			return err
		}
		cfg.Conn, cfg.Changed = conn, s.changed.fire
		cfg.Allowed = s.allowed.has
		p := probe.New(cfg)
		s.current.Store(p)
		s.self = self
		s.run = goRun(func(ctx context.Context) {
			if err := p.Run(ctx); err != nil {
				cfg.Log.Warn("probes failed", "err", err)
			}
		})
	}
	s.current.Load().Set(targets)
	return nil
}

// allowList are those whose probes are answered. The loop changes it, the prober asks.
type allowList struct {
	mu sync.RWMutex
	at map[netip.Addr]bool // guarded by mu
}

func (l *allowList) has(a netip.Addr) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.at[a]
}

func (l *allowList) set(all map[netip.Addr]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = all
}

func (l *allowList) change(plus, minus []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range plus {
		l.at[a] = true
	}
	for _, a := range minus {
		delete(l.at, a)
	}
}

func (s *proberSlot) results() probe.Results {
	if p := s.current.Load(); p != nil {
		return p.Results()
	}
	return nil
}

func (s *proberSlot) sights() map[string]probe.Sight {
	if p := s.current.Load(); p != nil {
		return p.Sights()
	}
	return nil
}

// tops and decrypts see probe.Prober.
func (s *proberSlot) tops(tops map[string]int) {
	if p := s.current.Load(); p != nil {
		p.Tops(tops)
	}
}

func (s *proberSlot) decrypts(names map[string]bool) {
	if p := s.current.Load(); p != nil {
		p.Decrypts(names)
	}
}

func (s *proberSlot) close() {
	if s.run != nil {
		s.run.stop()
	}
}
