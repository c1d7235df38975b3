package probe

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
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
	Conn Conn   // the Prober closes it when Run ends
	Port uint16 // at which others answer; default DefaultPort
	// Budget is how many packets a second are sent to ask; default 200. A quarter of it
	// is for large ones, see Path.
	Budget int
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
	Way          Way
	WaySince     time.Time // of a Way that is one-way
	// MTU is the size of the largest packets that arrive, up to what Tops said. 0: not
	// known. Tiny: not even these arrive.
	MTU  int
	Tiny bool
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
	Heard    time.Time     // anything of its agent came; zero: never
	// Hears is what it said, at HeardSaid, of how it hears this node. Through is the
	// address of the host that passed it on; not valid: it said it itself.
	Hears   Hearing
	Said    time.Time
	Through netip.Addr
}

// Prober probes targets and answers others.
type Prober struct {
	cfg     Config
	results atomic.Pointer[Results]
	wake    chan struct{}

	mu     sync.Mutex // guards what follows
	states map[string]*state
	byAddr map[netip.Addr]*state
	passed time.Time      // the last pass
	tops   map[string]int // see Tops
	search *limiter       // of large packets
	relay  *limiter       // of what is passed on for others
}

type state struct {
	Target
	tracker  *Tracker
	due      time.Time
	interval time.Duration
	path     *Path // nil: nobody asks
	talk     talk
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
	p := &Prober{
		cfg: cfg, wake: make(chan struct{}, 1), states: map[string]*state{}, byAddr: map[netip.Addr]*state{},
		search: newLimiter(cfg.Budget / largeShare), relay: newLimiter(cfg.Budget / largeShare),
	}
	p.results.Store(&Results{})
	return p
}

// largeShare is the part of the budget that large packets have.
const largeShare = 4

// Results returns what is known now. Changed tells of news in it; round trips that
// move by less than a tenth are none, but are here as they are now.
func (p *Prober) Results() Results {
	told := *p.results.Load()
	out := make(Results, len(told))
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, r := range told {
		if s := p.states[name]; s != nil && r.RTT > 0 {
			r.RTT = s.tracker.Least()
		}
		out[name] = r
	}
	return out
}

// Sights returns when each target was last looked at, by name.
func (p *Prober) Sights() map[string]Sight {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]Sight, len(p.states))
	for name, s := range p.states {
		out[name] = Sight{
			Asked: s.tracker.Asked(), Answered: s.tracker.Answered(), Interval: s.interval,
			Heard: s.talk.heard, Hears: s.talk.hears, Said: s.talk.said, Through: s.talk.through,
		}
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
		s.aim(p.tops[t.Name])
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
	for _, packet := range append(p.due(now), p.tells(now)...) {
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

// stoodStill is how long answers are read before others are judged by them.
const stoodStill = 50 * time.Millisecond

type outgoing struct {
	bytes []byte
	to    netip.AddrPort
}

func (p *Prober) outgoing(packet Packet, to netip.Addr) outgoing {
	return outgoing{packet.Append(make([]byte, 0, Size+packet.Padding)), netip.AddrPortFrom(to, p.cfg.Port)}
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
		out = append(out, p.outgoing(Packet{Flags: s.talk.flags(now), Nonce: nonce, Timestamp: uint64(now.UnixNano())}, s.Addr))
		s.due = now.Add(time.Duration(float64(s.interval) * (1 - jitter + 2*jitter*rand.Float64())))
	}
	return append(out, p.largeLocked(now)...)
}

func (p *Prober) judge(now time.Time) (Results, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	results := make(Results, len(p.states))
	standings := make([]Standing, 0, len(p.states))
	names := slices.Sorted(maps.Keys(p.states))
	// A process that stood still has not read the answers that came meanwhile: it judges
	// nobody before it has.
	stood := now.Sub(p.passed) > p.cfg.Timing.Interval && !p.passed.IsZero()
	p.passed = now
	for _, name := range names {
		s := p.states[name]
		if !stood {
			s.tracker.Tick(now)
		}
		s.judge(now, p.cfg.Timing.SuspectAfter)
		r := s.result()
		results[name] = r
		standings = append(standings, Standing{
			Region: s.Region, RTT: r.RTT, Late: s.tracker.Late(now), Lossy: s.tracker.Lossy(), Suspect: r.Suspect,
			Back: r.Suspect && !s.talk.heard.IsZero() && now.Sub(s.talk.heard) < p.cfg.Timing.SuspectAfter,
		})
	}
	next := p.cfg.Timing.Interval / 3
	for i, d := range Intervals(standings, p.cfg.Budget-p.cfg.Budget/largeShare, p.cfg.Timing.Interval) {
		s := p.states[names[i]]
		if s.interval = d; s.due.After(now.Add(longest(d))) && (s.tracker.RTT() != 0 || standings[i].Back) {
			s.due = now.Add(d) // promoted to the fast lane
		}
		next = min(next, max(s.due.Sub(now), time.Millisecond))
		if at, ok := s.tracker.Patience(); ok {
			next = min(next, max(at.Sub(now), time.Millisecond))
		}
		if s.looks(now) {
			next = min(next, max(s.path.Due(s.tracker.RTT()).Sub(now), mtuGap/2))
		}
	}
	if len(names) == 0 || p.cfg.Silent {
		p.passed = time.Time{}
		return results, time.Minute // Set wakes
	}
	if stood {
		next = min(next, stoodStill)
	}
	return results, next
}
