package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// Stub is a small resolver on a laptop's loopback: the mesh's names go to the
// mesh's resolver, all others where they went before. It is for systems whose own
// resolver cannot be told to split.
type Stub struct {
	server *Server
	udp    net.PacketConn
	tcp    net.Listener
	addr   netip.AddrPort
}

// StubConfig is what a Stub needs.
type StubConfig struct {
	// Listen are the addresses to try, in order; the first that is free is taken.
	// Empty: 127.0.0.153 to 127.0.0.156, port 53 (a resolv.conf cannot name a port).
	Listen []netip.AddrPort
	// Forward is the forwarder's configuration: Rules for the mesh's domains and
	// Upstreams for the rest. The stub adds its own address to Self.
	Forward ForwarderConfig
}

// NewStub binds the stub's sockets, so that it can be named in a resolv.conf
// before Run answers.
func NewStub(cfg StubConfig) (*Stub, error) {
	listen := cfg.Listen
	if len(listen) == 0 {
		for last := byte(153); last <= 156; last++ {
			listen = append(listen, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, last}), 53))
		}
	}
	var s Stub
	var err error
	for _, at := range listen {
		if s.udp, s.tcp, err = bindBoth(at); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bind a local resolver: %w", err)
	}
	s.addr = addrPortOf(s.udp.LocalAddr())
	cfg.Forward.Self = append(cfg.Forward.Self[:len(cfg.Forward.Self):len(cfg.Forward.Self)], s.addr)
	forward, err := NewForwarder(cfg.Forward)
	if err != nil {
		s.Close()
		return nil, err
	}
	// All queries come from one address, this machine's: no cap by source.
	s.server = NewServer(Config{Forward: forward, Log: cfg.Forward.Log, ConnsPerSource: 256, ForwardsPerNet: 1024})
	return &s, nil
}

// bindTries is how many ports of the system's choice are tried.
const bindTries = 20

// bindBoth binds one address and port for UDP and TCP. Port 0: the system chooses
// one for UDP, and another if that one is taken for TCP.
func bindBoth(at netip.AddrPort) (udp net.PacketConn, tcp net.Listener, err error) {
	for range bindTries {
		if udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
			return nil, nil, err
		}
		tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addrPortOf(udp.LocalAddr())))
		if err == nil {
			return udp, tcp, nil
		}
		udp.Close()
		if at.Port() != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return nil, nil, err
}

// Addr is where the stub listens.
func (s *Stub) Addr() netip.AddrPort { return s.addr }

// Stats returns the counters of its server.
func (s *Stub) Stats() Stats { return s.server.Stats() }

// Run answers until ctx ends (nil) or a socket fails. It closes the sockets.
func (s *Stub) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- s.server.ServeStream(ctx, s.tcp, Role{})
		cancel()
	}()
	err := s.server.ServePacket(ctx, s.udp, Role{})
	cancel()
	return errors.Join(err, <-done)
}

// Close closes the sockets of a stub that was never run. It is idempotent.
func (s *Stub) Close() {
	s.udp.Close()
	s.tcp.Close()
}
