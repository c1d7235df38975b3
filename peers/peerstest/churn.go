package peerstest

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/peers"
)

// echoes is a stream of numbered packets, each of which is sent once, when the one
// before has come back. So all of them come back, or the first that does not is told.
type echoes struct {
	back  atomic.Uint64 // how many came back
	stop  context.CancelFunc
	ended chan error
}

func (n *node) echoes(to *node) *echoes {
	n.Helper()
	mirror := to.listenUDP(netip.AddrPortFrom(to.addr, 9998))
	out := n.listenUDP(netip.AddrPortFrom(n.addr, 0))
	ctx, cancel := context.WithCancel(n.Context())
	e := &echoes{stop: cancel, ended: make(chan error, 1)}
	go func() {
		buf := make([]byte, 8)
		for {
			size, from, err := mirror.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // it is closed with the test
			}
			mirror.WriteToUDPAddrPort(buf[:size], from)
		}
	}()
	go func() {
		buf := make([]byte, 8)
		for i := uint64(0); ctx.Err() == nil; i++ {
			_, err := out.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, i), netip.AddrPortFrom(to.addr, 9998))
			if err == nil {
				out.SetReadDeadline(time.Now().Add(20 * time.Second))
				_, err = out.Read(buf)
			}
			if got := binary.BigEndian.Uint64(buf); err != nil || got != i {
				e.ended <- fmt.Errorf("packet %d: %w (the last that came is %d)", i, err, got)
				return
			}
			e.back.Add(1)
		}
		e.ended <- nil
	}()
	return e
}

// some waits until some more packets came back.
func (e *echoes) some(t *testing.T) {
	t.Helper()
	before := e.back.Load()
	await(t, "some packets to come back", func() bool { return e.back.Load() >= before+5 || len(e.ended) > 0 })
}

// A thousand peers come, get new prefixes, and go, while another peer's traffic runs:
// none of its packets is lost, its session stays, its counters only grow.
func testChurn(t *testing.T, open Opener) {
	a, b := newPair(t, open)
	a.mustPing(b)
	before := a.stats(b)
	keeps := b.asPeer(b.at6)
	many := func(count, shift int) []peers.Peer {
		all := []peers.Peer{keeps}
		for n := range count {
			all = append(all, owns(n, prefix(1000+n, 0, 96), prefix(1000+(n+shift)%count, 1, 112)))
		}
		return all
	}
	stream := a.echoes(b)
	last := before
	for _, want := range [][]peers.Peer{many(1000, 1), many(500, 2), many(0, 0)} {
		began := time.Now()
		changes := a.become(want...)
		t.Logf("%d changes in %s, %d packets came back so far", len(changes), time.Since(began).Round(time.Millisecond), stream.back.Load())
		if left := a.diff(want...); len(left) > 0 {
			t.Fatalf("a second pass would do %d changes, the first of them %s", len(left), left[0])
		}
		stream.some(t)
		now := a.stats(b)
		if now.Rx < last.Rx || now.Tx < last.Tx || now.LastHandshake != before.LastHandshake || now.Endpoint != before.Endpoint {
			t.Errorf("%+v became %+v", last, now)
		}
		last = now
	}
	stream.stop()
	if err := <-stream.ended; err != nil {
		t.Error(err)
	}
}
