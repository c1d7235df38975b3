package probe

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is what a Prober sends and receives through: a *net.UDPConn that is bound
// to the node's own address inside the data plane.
type Conn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	Close() error
}

// Config is what a Prober needs.
type Config struct {
	Conn   Conn   // the Prober closes it when Run ends
	Port   uint16 // at which others answer; default DefaultPort
	Budget int    // packets a second that are sent to ask; default 200
	Timing Timing
	// Allowed says whose probes are answered; nil: nobody's.
	Allowed func(netip.Addr) bool
	// Silent turns asking off. Others are still answered.
	Silent bool
	// Changed, if not nil, is called after Results has changed. It must not block.
	Changed func()
	Log     *slog.Logger
}

// Target is a node to probe.
type Target struct {
	Name   string
	Region string
	Addr   netip.Addr
	// Wait before the first probe. Two ends that begin at the same moment both send
	// a handshake, and each ignores the other's: five seconds are lost. So one of
	// them waits.
	Wait time.Duration
}

// Result is what is known of one target.
type Result struct {
	RTT          time.Duration // smoothed; 0: not measured
	Suspect      bool
	SuspectSince time.Time
}

// Results are by the target's name. They are never changed after they are given
// out.
type Results map[string]Result

// Sight is when a target was last looked at. It changes with every packet, so it is
// no part of Result, whose change is news.
type Sight struct {
	Asked    time.Time     // the last probe left; zero: never
	Answered time.Time     // the last answer came; zero: never
	Interval time.Duration // between two probes, as of now
}

// Prober probes targets and answers others.
type Prober struct {
	cfg     Config
	results atomic.Pointer[Results]
	wake    chan struct{}

	mu     sync.Mutex // guards what follows
	states map[string]*state
	byAddr map[netip.Addr]*state
}

type state struct {
	Target
	tracker  *Tracker
	due      time.Time
	interval time.Duration
}

// New returns a Prober that has no targets yet.
func New(cfg Config) *Prober {
	cfg.Timing = cfg.Timing.WithDefaults()
	cfg.Port = cmp.Or(cfg.Port, DefaultPort)
	cfg.Budget = cmp.Or(cfg.Budget, 200)
	if cfg.Allowed == nil {
		cfg.Allowed = func(netip.Addr) bool { return false }
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Prober{cfg: cfg, wake: make(chan struct{}, 1), states: map[string]*state{}, byAddr: map[netip.Addr]*state{}}
	p.results.Store(&Results{})
	return p
}

// Results returns what is known now.
func (p *Prober) Results() Results { return *p.results.Load() }

// Sights returns when each target was last looked at, by name.
func (p *Prober) Sights() map[string]Sight {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]Sight, len(p.states))
	for name, s := range p.states {
		out[name] = Sight{Asked: s.tracker.Asked(), Answered: s.tracker.Answered(), Interval: s.interval}
	}
	return out
}

// Set replaces the targets. What is known of those that stay is kept; a target
// whose address changed starts anew.
func (p *Prober) Set(targets []Target) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	states := make(map[string]*state, len(targets))
	byAddr := make(map[netip.Addr]*state, len(targets))
	for _, t := range targets {
		s := p.states[t.Name]
		if s == nil || s.Addr != t.Addr {
			s = &state{tracker: NewTracker(p.cfg.Timing), due: now.Add(t.Wait), interval: p.cfg.Timing.Interval}
		}
		s.Target = t
		states[t.Name], byAddr[t.Addr] = s, s
	}
	p.states, p.byAddr = states, byAddr
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run probes and answers until ctx ends. It returns an error only if the
// connection breaks.
func (p *Prober) Run(ctx context.Context) error {
	received := make(chan error, 1)
	go func() { received <- p.receive() }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			p.cfg.Conn.Close()
			<-received
			return nil
		case err := <-received:
			p.cfg.Conn.Close()
			if ctx.Err() != nil {
				return nil
			}
			return err
		case <-p.wake:
		case <-timer.C:
		}
		timer.Reset(p.pass(time.Now()))
	}
}

// pass sends what is due, lets time pass for everybody, publishes, and returns
// how long nothing is to be done.
func (p *Prober) pass(now time.Time) time.Duration {
	for _, packet := range p.due(now) {
		// An error is a lost probe: unreachable is what probes are there to find out.
		p.cfg.Conn.WriteToUDPAddrPort(packet.bytes, packet.to)
	}
	results, next := p.judge(now)
	if old := p.results.Load(); !maps.Equal(*old, results) {
		p.results.Store(&results)
		p.cfg.Changed()
	}
	return next
}

type outgoing struct {
	bytes []byte
	to    netip.AddrPort
}

func (p *Prober) due(now time.Time) []outgoing {
	if p.cfg.Silent {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []outgoing
	for _, s := range p.states {
		if now.Before(s.due) {
			continue
		}
		nonce := rand.Uint64()
		s.tracker.Sent(nonce, now)
		out = append(out, outgoing{
			Packet{Flags: FlagHoldsData, Nonce: nonce, Timestamp: uint64(now.UnixNano())}.Append(make([]byte, 0, Size)),
			netip.AddrPortFrom(s.Addr, p.cfg.Port),
		})
		s.due = now.Add(time.Duration(float64(s.interval) * (1 - jitter + 2*jitter*rand.Float64())))
	}
	return out
}

func (p *Prober) judge(now time.Time) (Results, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	results := make(Results, len(p.states))
	standings := make([]Standing, 0, len(p.states))
	names := slices.Sorted(maps.Keys(p.states))
	for _, name := range names {
		s := p.states[name]
		s.tracker.Tick(now)
		r := Result{RTT: s.tracker.RTT(), Suspect: s.tracker.Suspect()}
		if r.Suspect {
			r.SuspectSince = s.tracker.SuspectSince()
		}
		results[name] = r
		standings = append(standings, Standing{s.Region, r.RTT, s.tracker.Late(now), r.Suspect})
	}
	next := p.cfg.Timing.Interval / 3
	for i, d := range Intervals(standings, p.cfg.Budget, p.cfg.Timing.Interval) {
		s := p.states[names[i]]
		if s.interval = d; s.due.After(now.Add(longest(d))) && s.tracker.RTT() != 0 {
			s.due = now.Add(d) // promoted to the fast lane
		}
		next = min(next, max(s.due.Sub(now), time.Millisecond))
		if at, ok := s.tracker.Patience(); ok {
			next = min(next, max(at.Sub(now), time.Millisecond))
		}
	}
	if len(names) == 0 || p.cfg.Silent {
		return results, time.Minute // Set wakes
	}
	return results, next
}

// receive reads until the connection is closed. A read can fail for one packet's
// sake; only errors in a row are the connection's own.
func (p *Prober) receive() error {
	b := make([]byte, Size+1)
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
	if reply, ok := Answer(packet, FlagHoldsData); ok {
		if p.cfg.Allowed(from.Addr()) {
			p.cfg.Conn.WriteToUDPAddrPort(reply.Append(make([]byte, 0, Size)), from)
		}
		return
	}
	p.mu.Lock()
	s := p.byAddr[from.Addr()]
	news := s != nil && from.Port() == p.cfg.Port && s.tracker.Received(packet.Nonce, time.Now()) &&
		changed(p.Results()[s.Name], s.tracker)
	p.mu.Unlock()
	if news {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

func changed(r Result, t *Tracker) bool { return r.RTT != t.RTT() || r.Suspect != t.Suspect() }
