package dns

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/miekg/dns"
)

type message = *dns.Msg

// readSize holds every sensible query; a longer one is cut and then malformed.
const readSize = 4096

// ServePacket answers the UDP queries that arrive at conn, until ctx ends (nil) or
// conn fails. Answers leave from the address that conn is bound to, so bind it to
// one address, not to a wildcard. conn is closed on return.
func (s *Server) ServePacket(ctx context.Context, conn net.PacketConn, role Role) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Closing ends the reads of every loop at once.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()

	loops := min(4, runtime.GOMAXPROCS(0))
	errs := make(chan error, loops)
	var waiting sync.WaitGroup // forwarded queries
	for range loops {
		go func() { errs <- s.packetLoop(ctx, conn, role, &waiting) }()
	}
	var first error
	for range loops {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
		cancel()
	}
	waiting.Wait()
	if s.cfg.Forward != nil {
		s.cfg.Forward.settle()
	}
	return first
}

// addrPortOf is the invalid AddrPort for an address that is no IP address.
func addrPortOf(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort()
	case *net.TCPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

const (
	// maxQueries is how many queries one connection may bring.
	maxQueries = 256
	// maxWaiting is how many of them may wait for upstreams at one time; then no
	// more are read.
	maxWaiting = 16
)

// ServeStream answers the queries on the connections that ln accepts, until ctx
// ends (nil) or ln fails. ln and every connection are closed on return. Idle and
// slow connections are closed, and their number is bounded by source, by network
// and in all, so that one tenant cannot take TCP from the others.
func (s *Server) ServeStream(ctx context.Context, ln net.Listener, role Role) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer func() {
		conns.Wait()
		if s.cfg.Forward != nil {
			s.cfg.Forward.settle()
		}
	}()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()

	for failures := 0; ; {
		conn, err := ln.Accept()
		if err != nil {
			failures++
			if err := retry(ctx, failures, "accept DNS connections", ln.Addr(), err); err != nil || ctx.Err() != nil {
				return err
			}
			continue
		}
		failures = 0
		source := withoutPort(addrPortOf(conn.RemoteAddr()))
		if !s.conns.take(source) {
			s.overLimit.Add(1)
			conn.Close()
			continue
		}
		conns.Add(1)
		go func() {
			defer conns.Done()
			defer s.conns.give(source)
			s.serveConn(ctx, conn, source, role)
		}()
	}
}

// serveConn answers one connection's queries. What takes an upstream does not hold
// up the ones after it: answers come in any order (RFC 7766 section 7).
func (s *Server) serveConn(ctx context.Context, conn net.Conn, source netip.Addr, role Role) {
	ctx, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	slots := make(chan struct{}, maxWaiting)
	var writing sync.Mutex // one answer at a time
	answer := func(out []byte) bool {
		writing.Lock()
		defer writing.Unlock()
		if out == nil { // not a query: whoever speaks here does not speak DNS
			return false
		}
		if err := conn.SetWriteDeadline(time.Now().Add(s.cfg.IOTimeout)); err != nil {
			return false
		}
		if err := writeStream(conn, out); err != nil {
			s.unwritten.Add(1)
			return false
		}
		return true
	}
	for range maxQueries {
		packet, err := s.readStream(conn)
		if err != nil {
			break
		}
		s.tcp.Add(1)
		s.count(packet, 1)
		var out []byte
		var wait func(context.Context) []byte
		start := time.Now()
		s.guarded(func() { out, wait = s.handle(packet, source, role, true) })
		if wait == nil {
			if !answer(out) {
				return
			}
			s.tell(packet, out, Asked{Source: source, Stream: true, Took: time.Since(start)})
			continue
		}
		slots <- struct{}{} // those before it end in bounded time
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			defer func() { <-slots }()
			var out []byte
			s.guarded(func() { out = wait(ctx) })
			if !answer(out) {
				cancel()
			}
			s.tell(packet, out, Asked{Source: source, Stream: true, Forwarded: true, Took: time.Since(start)})
		}()
	}
	waiting.Wait() // what was asked before the last word is answered
}

// readStream reads one message: the length may take its time, the rest may not.
func (s *Server) readStream(conn net.Conn) ([]byte, error) {
	var length [2]byte
	if err := conn.SetReadDeadline(time.Now().Add(s.cfg.IdleTimeout)); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(s.cfg.IOTimeout)); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > readSize { // no query is that long; do not hold memory for it
		return nil, io.ErrShortBuffer
	}
	packet := make([]byte, n)
	_, err := io.ReadFull(conn, packet)
	return packet, err
}

// writeStream sends length and message in one write: some clients read only once.
func writeStream(conn io.Writer, packet []byte) error {
	out := make([]byte, 2+len(packet))
	binary.BigEndian.PutUint16(out, uint16(len(packet)))
	copy(out[2:], packet)
	_, err := conn.Write(out)
	return err
}
