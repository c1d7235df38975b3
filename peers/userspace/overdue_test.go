package userspace

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

// Of a message of full packets that is late all of those go, and nothing of any other.
func TestOverdue(t *testing.T) {
	t.Parallel()
	const full = 1420 + 32
	for _, tt := range []struct {
		name          string
		message, size int
		waited        time.Duration
		skip          int
	}{
		{"in time", 45 * full, full, overdueAfter - 1, 0},
		{"late", 45 * full, full, overdueAfter, 45 * full},
		{"late, of the least number", 9 * full, full, time.Second, 9 * full},
		{"late, of fewer", 8*full + 100, full, time.Second, 0},
		{"late, with a ping behind it", 45*full + 144, full, time.Second, 45 * full},
		{"late, of the narrowest link", 45 * 1312, 1312, time.Second, 45 * 1312},
		{"late, QUIC's first or UDP of 1,200 bytes", 45 * 1280, 1280, time.Second, 0},
		{"late, pings", 64 * 144, 144, time.Second, 0},
		{"late, a large packet alone", 65000, 65000, time.Second, 0},
		{"late, a ping alone", 144, 144, time.Second, 0},
		{"late, nothing", 0, 0, time.Second, 0},
		{"before the clock was set back", 45 * full, full, -time.Hour, 0},
	} {
		if got := new(overdue).skip(tt.message, tt.size, tt.waited); got != tt.skip {
			t.Errorf("%s: %d of %d bytes are dropped, want %d", tt.name, got, tt.message, tt.skip)
		}
	}
}

// A late receiver drops half of the bulk messages, however many there are, and what is
// in time or small in between changes nothing.
func TestOverdueHalf(t *testing.T) {
	t.Parallel()
	var o overdue
	dropped := 0
	for range 100 {
		o.skip(144, 144, time.Second)
		o.skip(64000, 1400, 0)
		if o.skip(64000, 1400, time.Second) > 0 {
			dropped++
		}
	}
	if dropped != 50 {
		t.Errorf("%d of 100 are dropped, want 50", dropped)
	}
}

// The kernel says when a message came. Of one that is late the small packet at its end
// is handed on, and the next message whole.
func TestReceiveOverdue(t *testing.T) {
	t.Parallel()
	for network, at := range loopback {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			sender, s := listening(t, network), listening(t, network)
			if !sender.segment.Load() {
				t.Skip("this kernel sends packet by packet")
			}
			must(t, s.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
			to, err := newEndpoint(netip.AddrPortFrom(netip.MustParseAddr(at), s.port()))
			must(t, err)
			sent := packets(append(same(1452, 20), 144)...)
			r := newReceiver(s, nil)
			defer r.wait.close()
			bufs, sizes, from := room(batchSize)
			for _, tt := range []struct {
				name   string
				waited time.Duration
				want   [][]byte
			}{
				{"late", overdueAfter, sent[20:]},
				{"late, the second", overdueAfter, sent},
				{"late, the third", overdueAfter, sent[20:]},
				{"from before the clock was set back", -time.Hour, sent},
			} {
				must(t, sender.send(sent, to))
				must(t, r.read())
				if _, _, arrived := r.control[0].parse(); arrived.IsZero() || arrived.After(r.now) || r.now.Sub(arrived) > 10*time.Second {
					t.Fatalf("%s: it came at %s, and now it is %s", tt.name, arrived, r.now)
				}
				r.now = r.now.Add(tt.waited)
				n, err := r.receive(bufs, sizes, from)
				must(t, err)
				if n != len(tt.want) {
					t.Fatalf("%s: %d packets are handed on, want %d", tt.name, n, len(tt.want))
				}
				for i := range n {
					if !bytes.Equal(bufs[i][:sizes[i]], tt.want[i]) {
						t.Errorf("%s: packet %d has %d bytes, want %d", tt.name, i, sizes[i], len(tt.want[i]))
					}
				}
			}
		})
	}
}
