package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// exchange asks one server: over UDP from a port of its own with a random id and
// the name's letters in random case, over TCP if the answer was cut. A server that
// does not know EDNS0 is asked without.
func (f *Forwarder) exchange(ctx context.Context, server netip.AddrPort, q dns.Question, do, cd bool) (*dns.Msg, error) {
	query := new(dns.Msg)
	query.Id = dns.Id()
	query.RecursionDesired, query.CheckingDisabled = true, cd
	q.Name = lower(q.Name)
	if _, folds := f.lower.Load(server); !folds {
		q.Name = mixCase(q.Name)
	}
	query.Question = []dns.Question{q}
	query.SetEdns0(udpSize, do)
	if a := server.Addr(); a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() { // near enough to send it back
		opt := query.IsEdns0()
		opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: loopOption, Data: f.nonce})
	}
	m, err := f.checked(ctx, server, query)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented || m.Rcode == dns.RcodeBadVers) {
		query.Extra, query.Id = nil, dns.Id()
		m, err = f.checked(ctx, server, query)
	}
	if err == nil {
		restoreCase(m, q.Name)
	}
	return m, err
}

// checked is exchange, with an answer that gives the question's case back if the
// server is one that does.
func (f *Forwarder) checked(ctx context.Context, server netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	m, err := exchange(ctx, f.cfg.Dial, server, query)
	if _, folds := f.lower.Load(server); err == nil && !folds && !sameCase(m, query.Question[0].Name) {
		return f.again(ctx, server, query)
	}
	return m, err
}

// again asks anew where a question's case did not come back: somebody guessed the
// id and the port, or the server is one of those that change it. Over TCP nobody
// can guess; where there is no TCP, a second guess must be right as well.
func (f *Forwarder) again(ctx context.Context, server netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	m, err := exchangeOver(ctx, f.cfg.Dial, "tcp", server, query)
	if err != nil && ctx.Err() == nil {
		query.Id = dns.Id()
		m, err = exchange(ctx, f.cfg.Dial, server, query)
	}
	if err == nil && !sameCase(m, query.Question[0].Name) {
		f.lower.Store(server, true)
	}
	return m, err
}

// exchange sends query and returns the answer to it, TCP included if it is needed.
func exchange(ctx context.Context, dial Dial, server netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	m, err := exchangeOver(ctx, dial, "udp", server, query)
	if err == nil && m.Truncated {
		return exchangeOver(ctx, dial, "tcp", server, query)
	}
	return m, err
}

func exchangeOver(ctx context.Context, dial Dial, network string, server netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	packet, err := query.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack query for %s: %w", query.Question[0].Name, err)
	}
	conn, err := dial(ctx, network, server)
	if err != nil {
		return nil, fmt.Errorf("ask %s over %s: %w", server, network, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		err = writeStream(conn, packet)
	} else {
		_, err = conn.Write(packet)
	}
	for err == nil {
		var m *dns.Msg
		if m, err = readAnswer(conn, network); err == nil && m != nil && answers(m, query) {
			return m, nil
		}
		if network == "tcp" && err == nil {
			err = errors.New("it answered something else")
		}
	}
	return nil, fmt.Errorf("ask %s over %s: %w", server, network, err)
}

// readAnswer reads one message. What is no DNS message is nil: over UDP anybody
// can send that, so it is not an error.
func readAnswer(conn net.Conn, network string) (*dns.Msg, error) {
	size := readSize // more than we announce
	if network == "tcp" {
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return nil, err
		}
		size = int(binary.BigEndian.Uint16(length[:]))
	}
	buf := make([]byte, size)
	var err error
	n := size
	if network == "tcp" {
		_, err = io.ReadFull(conn, buf)
	} else {
		n, err = conn.Read(buf)
	}
	if err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	if m.Unpack(buf[:n]) != nil && !m.Truncated {
		return nil, nil
	}
	return m, nil
}

// answers reports whether m is an answer to query (RFC 5452 section 9). Some
// servers send errors without the question.
func answers(m, query *dns.Msg) bool {
	if m.Id != query.Id || !m.Response || m.Opcode != query.Opcode {
		return false
	}
	if len(m.Question) == 0 {
		return m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
	}
	a, b := m.Question[0], query.Question[0]
	return len(m.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && sameName(a.Name, b.Name)
}
