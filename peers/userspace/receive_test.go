package userspace

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// room is what wireguard-go gives to be filled: n buffers.
func room(n int) (bufs [][]byte, sizes []int, from []conn.Endpoint) {
	for range n {
		bufs = append(bufs, make([]byte, 1<<16))
	}
	return bufs, make([]int, n), make([]conn.Endpoint, n)
}

// A message of many packets is handed on by as many calls as it takes, whole, in order
// and with its sender.
func TestReceiveInParts(t *testing.T) {
	t.Parallel()
	for network, at := range loopback {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			sender, s := listening(t, network), listening(t, network)
			must(t, s.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
			to, err := newEndpoint(netip.AddrPortFrom(netip.MustParseAddr(at), s.port()))
			must(t, err)
			sent := packets(append(same(1000, 20), 300, 1400, 5)...)
			must(t, sender.send(sent, to))
			r := newReceiver(s, nil)
			defer r.wait.close()
			bufs, sizes, from := room(7)
			var got [][]byte
			for len(got) < len(sent) {
				n, err := r.receive(bufs, sizes, from)
				must(t, err)
				if len(got) == 0 && sender.segment.Load() && (n != 7 || r.next != 0 || r.at != 7000) {
					t.Errorf("the first call gives %d packets and leaves message %d at %d: are they not received as one?", n, r.next, r.at)
				}
				for i := range n {
					got = append(got, bytes.Clone(bufs[i][:sizes[i]]))
					if e := from[i].(*endpoint); e.to != netip.AddrPortFrom(netip.MustParseAddr(at), sender.port()) || e.SrcIP() != netip.MustParseAddr(at) {
						t.Errorf("packet %d is from %s to %s", len(got), e.to, e.SrcIP())
					}
				}
			}
			for i := range sent {
				if !bytes.Equal(got[i], sent[i]) {
					t.Errorf("packet %d has %d bytes, want %d", i, len(got[i]), len(sent[i]))
				}
			}
		})
	}
}

// Many senders at once: each packet comes with its own.
func TestReceiveFromMany(t *testing.T) {
	t.Parallel()
	s := listening(t, "udp4")
	must(t, s.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	want := map[netip.AddrPort]byte{}
	for i := range 100 {
		c, _ := stranger(t, "udp4")
		if _, err := c.WriteToUDPAddrPort([]byte{byte(i)}, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.port())); err != nil {
			t.Fatal(err)
		}
		want[c.LocalAddr().(*net.UDPAddr).AddrPort()] = byte(i)
	}
	r := newReceiver(s, nil)
	bufs, sizes, from := room(batchSize)
	for len(want) > 0 {
		n, err := r.receive(bufs, sizes, from)
		must(t, err)
		for i := range n {
			at := from[i].(*endpoint).to
			if number, ok := want[at]; !ok || sizes[i] != 1 || bufs[i][0] != number {
				t.Fatalf("%d bytes that begin with %d from %s, want %d", sizes[i], bufs[i][0], at, number)
			}
			delete(want, at)
		}
	}
}

// A peer is answered from the address of ours that it wrote to.
func TestAnswersFromWhereItWasAsked(t *testing.T) {
	t.Parallel()
	b := newBind()
	fns, port, err := b.Open(0)
	must(t, err)
	defer b.Close()
	c, _ := stranger(t, "udp4")
	asked := netip.AddrPortFrom(netip.MustParseAddr("127.9.8.7"), port)
	if _, err := c.WriteToUDPAddrPort([]byte("question"), asked); err != nil {
		t.Fatal(err)
	}
	bufs, sizes, from := room(1)
	n, err := fns[0](bufs, sizes, from)
	if err != nil || n != 1 || from[0].SrcIP() != asked.Addr() || from[0].SrcToString() != asked.Addr().String() {
		t.Fatalf("received %d, %v, to %s", n, err, from[0].SrcIP())
	}
	must(t, b.Send([][]byte{[]byte("answer")}, from[0]))
	if at := expect(t, c, [][]byte{[]byte("answer")}); at != asked {
		t.Errorf("the answer is from %s, want %s", at, asked)
	}
	from[0].ClearSrc()
	must(t, b.Send([][]byte{[]byte("answer")}, from[0]))
	if at := expect(t, c, [][]byte{[]byte("answer")}); at.Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("without an address of ours it is from %s", at)
	}
}

// Close ends those who wait; then the port is free, and the bind can be opened again.
func TestCloseEndsReceive(t *testing.T) {
	t.Parallel()
	b := newBind()
	b.load = newLoad(newGate(1), newGate(1))
	for range 2 {
		fns, port, err := b.Open(0)
		must(t, err)
		if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
			t.Errorf("opened twice: %v", err)
		}
		ended := make(chan error, len(fns))
		for _, receive := range fns {
			go func() {
				_, err := receive(room(1))
				ended <- err
			}()
		}
		eventually(t, "all wait", func() bool {
			b.load.mu.Lock()
			defer b.load.mu.Unlock()
			waiting := 0
			for _, w := range b.load.waiters {
				if w.forEver.Load() {
					waiting++
				}
			}
			return waiting == len(fns)
		})
		must(t, b.Close())
		for range fns {
			select {
			case err := <-ended:
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("receive = %v, want that it is closed", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it waits still")
			}
		}
		if n := len(b.load.waiters); n != 0 {
			t.Errorf("%d that waited are still known", n)
		}
		c, err := net.ListenPacket("udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String())
		if err != nil {
			t.Fatalf("the port is not free: %v", err)
		}
		c.Close()
		to, err := b.ParseEndpoint("127.0.0.1:9")
		must(t, err)
		if err := b.Send(packets(1), to); err == nil {
			t.Error("a closed one sends")
		}
	}
	must(t, b.Close())
}
