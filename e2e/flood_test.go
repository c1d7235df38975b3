package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/peers/netns"
)

// A machine that asks the resolver as fast as it can, from one address or from many of
// its own, for names of the mesh or for others, takes the names from nobody: neither
// from its org's machines nor from another org's.
func TestFloodOfQueries(t *testing.T) {
	need(t, "ip", "nsenter")
	w := newWorld(t, world.Config{}, "fra1")
	weft(t, w, "org", "create", "globex")
	loud := newWatcher(t, start(t, w, "fra1", "acme", "loud", "loud"))
	calm := map[string]*watcher{
		"acme":   newWatcher(t, start(t, w, "fra1", "acme", "calm", "calm")),
		"globex": newWatcher(t, start(t, w, "fra1", "globex", "calm", "calm")),
	}
	endpoint := netip.MustParsePrefix(loud.machine.Endpoint())
	if _, err := loud.machine.In(t.Context(), "ip", "-6", "route", "add", "local", endpoint.String(), "dev", "lo"); err != nil {
		t.Fatal(err)
	}
	own := "loud.internal."
	for _, f := range []struct {
		name, asks string
		sources    int
	}{
		{"one address", own, 1},
		{"many addresses", own, 200},
		{"names of others", "a.name.of.others.example.", 200},
	} {
		t.Run(f.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var flood sync.WaitGroup
			var sent int
			flood.Go(func() {
				var err error
				if sent, err = pour(ctx, loud, f.asks, f.sources); err != nil {
					t.Error(err)
				}
			})
			defer flood.Wait()
			defer cancel()
			var asking sync.WaitGroup
			for org, m := range calm {
				asking.Go(func() {
					took, lost := m.steadily(t, "calm.internal.", 3*time.Second)
					slices.Sort(took)
					if len(took) == 0 {
						t.Errorf("%s: all %d questions were lost", org, lost)
						return
					}
					t.Logf("%s: %d answers, median %s, 99 %% within %s, %d lost", org, len(took), took[len(took)/2], took[len(took)*99/100], lost)
					if total := len(took) + lost; lost > total/50 { // the first of the flood are let through, at once
						t.Errorf("%s: %d of %d questions were lost", org, lost, total)
					}
					if slow := took[len(took)*95/100]; slow > floodPatience {
						t.Errorf("%s: 5 %% of the answers took longer than %s, want %s", org, slow, floodPatience)
					}
				})
			}
			asking.Wait()
			cancel()
			flood.Wait()
			t.Logf("%d queries were poured", sent)
		})
	}
}

// floodPatience is what an answer may take on a machine whose processors the flood has,
// too.
const floodPatience = 100 * time.Millisecond

// query is one for the addresses of name.
func query(id uint16, name string) ([]byte, error) {
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeAAAA, Class: dnsmessage.ClassINET}},
	}
	return m.Pack()
}

// pour sends a query without end, from the first addresses of the machine's /112 by
// turns, and reads no answer.
func pour(ctx context.Context, w *watcher, name string, sources int) (sent int, err error) {
	packet, err := query(1, name)
	if err != nil {
		return 0, err
	}
	var conns []*ipv6.PacketConn
	for i := range sources {
		at := w.machine.Address.As16()
		binary.BigEndian.PutUint16(at[14:], uint16(2+i))
		conn, err := listenAt(w.inside, netip.AddrFrom16(at))
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		conns = append(conns, ipv6.NewPacketConn(conn))
	}
	batch := make([]ipv6.Message, 64)
	for i := range batch {
		batch[i] = ipv6.Message{Buffers: [][]byte{packet}, Addr: net.UDPAddrFromAddrPort(w.resolver)}
	}
	for i := 0; ctx.Err() == nil; i++ {
		n, err := conns[i%len(conns)].WriteBatch(batch, 0)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EPERM) {
			return sent, fmt.Errorf("pour: %w", err)
		}
		sent += max(n, 0)
	}
	return sent, nil
}

// listenAt opens a socket at an address that is routed to the machine, and not set.
func listenAt(inside *netns.Handle, at netip.Addr) (conn *net.UDPConn, err error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		outer := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1) })
		return errors.Join(outer, err)
	}}
	err = inside.Do(func() error {
		c, err := config.ListenPacket(context.Background(), "udp6", netip.AddrPortFrom(at, 0).String())
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	})
	return conn, err
}

// steadily asks for a name each 10 ms, each time once, and returns how long the answers
// took, and how many questions had none within a second.
func (w *watcher) steadily(t *testing.T, name string, during time.Duration) (took []time.Duration, lost int) {
	t.Helper()
	conn, err := w.dial(t.Context(), "udp6", w.resolver)
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	defer conn.Close()
	var mu sync.Mutex // guards took and asked
	asked := map[uint16]time.Time{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			now := time.Now()
			mu.Lock()
			if n > 12 && buf[3]&0xf == 0 && buf[7] > 0 { // no error, and an answer
				id := binary.BigEndian.Uint16(buf)
				if began, ok := asked[id]; ok {
					took = append(took, now.Sub(began))
					delete(asked, id)
				}
			}
			mu.Unlock()
		}
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(during)
	for id := uint16(1); time.Now().Before(end); id++ {
		packet, err := query(id, name)
		if err == nil {
			mu.Lock()
			asked[id] = time.Now()
			mu.Unlock()
			_, err = conn.Write(packet)
		}
		if err != nil {
			t.Error(err)
			break
		}
		<-tick.C
	}
	last := time.Now().Add(time.Second)
	for ; time.Now().Before(last); <-tick.C {
		mu.Lock()
		left := len(asked)
		mu.Unlock()
		if left == 0 {
			break
		}
	}
	conn.Close()
	<-done
	return took, len(asked)
}
