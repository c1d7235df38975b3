package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what a Server needs. The zero value of each field works.
type Config struct {
	// Zone returns the zone to answer from. It may return nil: nothing is known
	// yet, and every query fails. If Zone itself is nil there is no zone: the
	// server is a stub that forwards everything, for whoever can reach it.
	Zone func() *Zone
	// Facts returns what was measured; nil: nothing was. The map must not be
	// changed afterwards.
	Facts func() Facts
	// Forward takes the other names; nil: they are refused.
	Forward *Forwarder
	// Log gets what goes wrong with sockets, never queries. nil: nothing is logged.
	Log *slog.Logger
	// QueryLog is told every query that was answered, from many goroutines; it must
	// not block. nil: queries are not logged.
	QueryLog func(Asked)

	// Caps on what others can make this server hold. 0: the default.
	Conns           int // TCP connections in all: 1024
	ConnsPerNetwork int // of one network, a /64: 128
	ConnsPerSource  int // of one endpoint, a /112: 16
	Forwards        int // queries that wait for upstreams, in all: 1024
	ForwardsPerNet  int // of one network: 256; of one endpoint half of them, if there is a zone
	QueriesPerSec   int // UDP queries of one endpoint in a second: 10000; more are dropped

	// Times of TCP connections. 0: the default.
	IdleTimeout time.Duration // between queries: 10 s
	IOTimeout   time.Duration // for the rest of one query, and for writing: 3 s
}

// Stats counts since the start.
type Stats struct {
	UDP, TCP  uint64            // messages read
	Rcodes    map[string]uint64 // answers by outcome, such as NXDOMAIN
	Forwarded uint64            // queries passed on
	Dropped   uint64            // messages not answered: no queries
	OverLimit uint64            // connections and forwards turned away by a cap
	Limited   uint64            // queries dropped because their source asked too many
	Panics    uint64            // queries whose handling panicked: a defect
	Unwritten uint64            // answers that could not be sent
	Own       Latency           // of answers from memory, over UDP
	Passed    Latency           // of forwarded answers
}

// Server answers on sockets that are handed to it.
type Server struct {
	cfg      Config
	log      *slog.Logger
	rnd      *rand.Rand // stateless, for all goroutines
	conns    quota
	forwards quota
	rates    *rates
	cookies  *cookies
	top      topNames

	ownTime, passedTime latency

	udp, tcp, forwarded, dropped, overLimit, limited, panics, unwritten atomic.Uint64
	rcodes                                                              [len(rcodeNames)]atomic.Uint64
}

var rcodeNames = [...]string{
	"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE",
	"", "", "", "", "", "BADVERS",
}

// NewServer returns a server that serves nothing yet.
func NewServer(cfg Config) *Server {
	or := func(n, otherwise int) int {
		if n > 0 {
			return n
		}
		return otherwise
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = 10 * time.Second
	}
	if cfg.IOTimeout <= 0 {
		cfg.IOTimeout = 3 * time.Second
	}
	s := &Server{cfg: cfg, log: cfg.Log, rnd: rand.New(runtimeSource{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.conns = quota{total: or(cfg.Conns, 1024), network: or(cfg.ConnsPerNetwork, 128), source: or(cfg.ConnsPerSource, 16)}
	s.rates, s.cookies = newRates(or(cfg.QueriesPerSec, 10000)), newCookies()
	perNet := or(cfg.ForwardsPerNet, 256)
	s.forwards = quota{total: or(cfg.Forwards, 1024), network: perNet, source: perNet}
	if cfg.Zone != nil { // a stub has one source
		s.forwards.source = (perNet + 1) / 2
	}
	return s
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	st := Stats{
		UDP: s.udp.Load(), TCP: s.tcp.Load(), Forwarded: s.forwarded.Load(), Dropped: s.dropped.Load(),
		OverLimit: s.overLimit.Load(), Limited: s.limited.Load(), Panics: s.panics.Load(), Unwritten: s.unwritten.Load(),
		Rcodes: map[string]uint64{}, Own: s.ownTime.read(), Passed: s.passedTime.read(),
	}
	for i := range s.rcodes {
		if n := s.rcodes[i].Load(); n > 0 && rcodeNames[i] != "" {
			st.Rcodes[rcodeNames[i]] = n
		}
	}
	return st
}

// handle answers one message. If wait is not nil the answer takes an upstream: wait
// asks it and may block. Both nil: no answer.
func (s *Server) handle(packet []byte, source netip.Addr, role Role, stream bool) (out []byte, wait func(context.Context) []byte) {
	r, code, drop := parseRequest(packet, stream)
	if drop {
		s.dropped.Add(1)
		return nil, nil
	}
	if r.edns != nil && code == NoError {
		var ok bool
		if r.cookie, ok = s.cookies.answer(r.edns, source, time.Now()); !ok {
			code = FormatError
		}
	}
	if code != NoError || len(r.msg.Question) == 0 {
		return s.finish(&r, r.reply(code, s.cfg.Forward != nil)), nil
	}
	a := s.decide(&r, source, role)
	if !a.Forward {
		return s.finish(&r, r.answerMessage(a, s.cfg.Forward != nil)), nil
	}
	if s.cfg.Forward == nil {
		return s.finish(&r, r.reply(Refused, false)), nil
	}
	if !s.forwards.take(source) {
		s.overLimit.Add(1)
		return s.finish(&r, r.reply(ServerFailure, true)), nil
	}
	start := time.Now()
	return nil, func(ctx context.Context) []byte {
		defer s.forwards.give(source)
		defer func() { s.passedTime.add(time.Since(start), 1) }()
		s.forwarded.Add(1)
		return s.finish(&r, s.cfg.Forward.forward(ctx, &r))
	}
}

func (s *Server) decide(r *request, source netip.Addr, role Role) Answer {
	if s.cfg.Zone == nil {
		return Answer{Forward: true}
	}
	zone := s.cfg.Zone()
	if zone == nil {
		return Answer{Rcode: ServerFailure}
	}
	var facts Facts
	if s.cfg.Facts != nil {
		facts = s.cfg.Facts()
	}
	q := r.question()
	return zone.Answer(facts, Query{Name: q.Name, Type: q.Qtype, Source: source, Role: role}, s.rnd)
}

func (s *Server) finish(r *request, m message) []byte {
	if m.Rcode < len(s.rcodes) {
		s.rcodes[m.Rcode].Add(1)
	}
	return r.pack(m)
}

// guarded calls f. A panic in it costs one query, not the machine's names.
func (s *Server) guarded(f func()) {
	defer func() {
		if p := recover(); p != nil {
			s.panics.Add(1)
			s.log.Error("query handling panicked", "err", fmt.Sprint(p))
		}
	}()
	f()
}

// runtimeSource draws from the runtime's generator, which any goroutine may use.
type runtimeSource struct{}

func (runtimeSource) Uint64() uint64 { return rand.Uint64() }

// quota bounds what is held at one time: by one endpoint, by one /64, in all.
type quota struct {
	total, network, source int

	mu    sync.Mutex // guards what follows
	all   int
	held  map[netip.Addr]int
	byNet map[netip.Prefix]int
}

// take reserves one for source, which give returns. ok is false if a cap is reached.
func (q *quota) take(source netip.Addr) (ok bool) {
	n, source := networkOf(source), endpointOf(source)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.held == nil {
		q.held, q.byNet = map[netip.Addr]int{}, map[netip.Prefix]int{}
	}
	if q.all >= q.total || q.held[source] >= q.source || n.IsValid() && q.byNet[n] >= q.network {
		return false
	}
	q.all++
	q.held[source]++
	q.byNet[n]++
	return true
}

func (q *quota) give(source netip.Addr) {
	n, source := networkOf(source), endpointOf(source)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	if q.held[source]--; q.held[source] == 0 {
		delete(q.held, source)
	}
	if q.byNet[n]--; q.byNet[n] == 0 {
		delete(q.byNet, n)
	}
}

// networkOf returns the /64 of an IPv6 address, else the zero Prefix.
func networkOf(a netip.Addr) netip.Prefix {
	if !a.Is6() {
		return netip.Prefix{}
	}
	p, _ := a.WithZone("").Prefix(networkBits)
	return p
}

// maxFailures in a row end a loop: its socket does nothing but fail.
const maxFailures = 10

// retry says what to do after the nth failure in a row of reading or accepting:
// nil after a pause, or the error to return.
func retry(ctx context.Context, n int, what string, at net.Addr, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	if errors.Is(err, net.ErrClosed) || n >= maxFailures {
		return fmt.Errorf("%s on %s: %w", what, at, err)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	pause := time.NewTimer(time.Millisecond << n)
	defer pause.Stop()
	select {
	case <-ctx.Done():
	case <-pause.C:
	}
	return nil
}
