package prober

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// again is the time between two datagrams of one question.
const again = 200 * time.Millisecond

// Try tries all questions at once, as who, and returns their answers in order. One
// that takes longer than within has failed.
func Try(ctx context.Context, who string, within time.Duration, questions []Question) []Answer {
	answers := make([]Answer, len(questions))
	places := make(chan struct{}, atOnce)
	var group sync.WaitGroup
	for i, q := range questions {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			ctx, cancel := context.WithTimeout(ctx, within)
			defer cancel()
			answers[i] = try(ctx, who, q)
		})
	}
	group.Wait()
	return answers
}

func try(ctx context.Context, who string, q Question) Answer {
	a := Answer{Began: time.Now()}
	text := []byte(line(who, strconv.FormatUint(rand.Uint64(), 36)))
	var err error
	switch q.Kind {
	case TCP:
		err = tryTCP(ctx, q.To, text)
	case UDP:
		err = tryUDP(ctx, q, text)
	case Echo:
		err = tryEcho(ctx, q)
	case Name:
		a.Addresses, err = lookUp(ctx, q.Name)
	default:
		err = fmt.Errorf("%q cannot be tried", q.Kind)
	}
	a.Took = time.Since(a.Began)
	if a.OK = err == nil; !a.OK {
		a.Error = err.Error()
	}
	return a
}

func tryTCP(ctx context.Context, to netip.AddrPort, text []byte) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write(text); err != nil {
		return err
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(conn, back); err != nil {
		return fmt.Errorf("connected, and nothing came back: %w", err)
	}
	return same(back, text)
}

func same(got, want []byte) error {
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%q came back, not %q", got, want)
	}
	return nil
}

// from lets a socket be bound to an address that is not the machine's.
func from(source netip.Addr) net.ListenConfig {
	return net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if !source.IsValid() {
			return nil
		}
		var err error
		if outer := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) }); outer != nil {
			return outer
		}
		return err
	}}
}

func tryUDP(ctx context.Context, q Question, text []byte) error {
	at := ":0"
	if q.Source.IsValid() {
		at = netip.AddrPortFrom(q.Source, 0).String()
	}
	lc := from(q.Source)
	c, err := lc.ListenPacket(ctx, "udp", at)
	if err != nil {
		return err
	}
	to := net.UDPAddrFromAddrPort(q.To)
	return exchange(ctx, c, func() error { _, err := c.WriteTo(text, to); return err }, func(b []byte, from net.Addr) bool {
		// From whoever else, it would be somebody's guess.
		return from.String() == to.String() && bytes.Equal(b, text)
	})
}

// exchange sends until what comes back is it, or ctx ends. It closes c.
func exchange(ctx context.Context, c net.PacketConn, send func() error, is func([]byte, net.Addr) bool) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer c.Close()
	defer stop()
	buf := make([]byte, 2048)
	var sending, refused error
	for ctx.Err() == nil {
		if err := send(); err != nil {
			sending = err // by the firewall's word, perhaps for now
		}
		c.SetReadDeadline(time.Now().Add(again))
		for {
			n, from, err := c.ReadFrom(buf)
			if err == nil && is(buf[:n], from) {
				return nil
			}
			if errors.Is(err, net.ErrClosed) || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				break
			}
			if err != nil {
				refused = err
			}
		}
	}
	return errors.Join(errors.New("nothing came back"), sending, refused)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// Types of ICMPv6 messages (RFC 4443).
const (
	echoRequest = 128
	echoReply   = 129
)

func tryEcho(ctx context.Context, q Question) error {
	at := "::"
	if q.Source.IsValid() {
		at = q.Source.String()
	}
	lc := from(q.Source)
	c, err := lc.ListenPacket(ctx, "ip6:ipv6-icmp", at)
	if err != nil {
		return err
	}
	// Type, code, checksum (the kernel's part), identifier and number, data.
	message := make([]byte, 16)
	message[0] = echoRequest
	binary.BigEndian.PutUint32(message[4:], rand.Uint32())
	binary.BigEndian.PutUint64(message[8:], rand.Uint64())
	to := &net.IPAddr{IP: q.To.Addr().AsSlice()}
	return exchange(ctx, c, func() error { _, err := c.WriteTo(message, to); return err }, func(b []byte, from net.Addr) bool {
		return len(b) == len(message) && b[0] == echoReply && bytes.Equal(b[4:], message[4:]) && from.String() == to.String()
	})
}

// lookUp asks the resolver for AAAA. That there is no such name is an answer.
func lookUp(ctx context.Context, name string) ([]netip.Addr, error) {
	got, err := (&net.Resolver{PreferGo: true}).LookupNetIP(ctx, "ip6", name+".")
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return nil, nil
	}
	return got, err
}
