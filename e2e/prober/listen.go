package prober

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// greeting is a line that says who speaks. The rest of it makes it one of a kind.
const greeting = "weft-prober "

// line is what a speaker says.
func line(who, nonce string) string { return greeting + who + " " + nonce + "\n" }

// speaker is the who of a line; "" if it is none.
func speaker(text string) string {
	rest, ok := strings.CutPrefix(text, greeting)
	if fields := strings.Fields(rest); ok && len(fields) == 2 {
		return fields[0]
	}
	return ""
}

// ears are the echoes, and what they have heard.
type ears struct {
	mu    sync.Mutex // guards heard
	heard map[Heard]*Heard
}

// note counts one line. All but the key of what is noted is zero in the map's key.
func (e *ears) note(kind string, port uint16, from netip.Addr, text string) {
	key := Heard{Kind: kind, Port: port, From: from.WithZone("").Unmap(), Who: speaker(text)}
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.heard[key]
	if h == nil {
		if len(e.heard) == maxHeard {
			return
		}
		first := key
		first.First = time.Now()
		h = &first
		e.heard[key] = h
	}
	h.Count++
	h.Last = time.Now()
}

// take returns what was heard since the last time.
func (e *ears) take() []Heard {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]Heard, 0, len(e.heard))
	for _, h := range e.heard {
		out = append(out, *h)
	}
	clear(e.heard)
	slices.SortFunc(out, func(a, b Heard) int {
		return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Who, b.Who), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Port, b.Port))
	})
	return out
}

// listen opens the echoes of one port, 0 for any, in both protocols, and serves them
// until ctx ends.
func (e *ears) listen(ctx context.Context, group *sync.WaitGroup, at netip.AddrPort) (netip.AddrPort, error) {
	tcp, err := net.Listen("tcp", at.String())
	if err != nil {
		return at, err
	}
	got, err := netip.ParseAddrPort(tcp.Addr().String())
	if err != nil {
		return at, errors.Join(err, tcp.Close())
	}
	udp, err := net.ListenPacket("udp", got.String())
	if err != nil {
		return at, errors.Join(fmt.Errorf("listen on %s: %w", got, err), tcp.Close())
	}
	context.AfterFunc(ctx, func() { tcp.Close(); udp.Close() })
	group.Go(func() { e.serveTCP(ctx, group, tcp, got.Port()) })
	group.Go(func() { e.serveUDP(udp, got.Port()) })
	return got, nil
}

func (e *ears) serveTCP(ctx context.Context, group *sync.WaitGroup, l net.Listener, port uint16) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		group.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
			if err != nil {
				return
			}
			// A connection is something heard already.
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			text, err := bufio.NewReaderSize(io.LimitReader(conn, maxText), maxText).ReadString('\n')
			e.note(TCP, port, from.Addr(), text)
			if err == nil {
				_, _ = io.WriteString(conn, text) // the speaker may have gone
			}
		})
	}
}

func (e *ears) serveUDP(c net.PacketConn, port uint16) {
	buf := make([]byte, maxText)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // of an earlier answer that came to nobody
		}
		if at, err := netip.ParseAddrPort(from.String()); err == nil {
			e.note(UDP, port, at.Addr(), string(buf[:n]))
		}
		_, _ = c.WriteTo(buf[:n], from) // it may come to nobody
	}
}
