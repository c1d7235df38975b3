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

// maxQueries is how many queries one connection may bring.
const maxQueries = 256

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

func (s *Server) serveConn(ctx context.Context, conn net.Conn, source netip.Addr, role Role) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	for range maxQueries {
		packet, err := s.readStream(conn)
		if err != nil {
			return
		}
		s.tcp.Add(1)
		var out []byte
		s.guarded(func() {
			var wait func(context.Context) []byte
			if out, wait = s.handle(packet, source, role, true); wait != nil {
				out = wait(ctx)
			}
		})
		if out == nil { // not a query: whoever speaks here does not speak DNS
			return
		}
		if err := conn.SetWriteDeadline(time.Now().Add(s.cfg.IOTimeout)); err != nil {
			return
		}
		if err := writeStream(conn, out); err != nil {
			s.unwritten.Add(1)
			return
		}
	}
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
