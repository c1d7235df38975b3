package userspace

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

// Of a message of full packets that is late, behind much, all of those go, and nothing
// of any other.
func TestOverdue(t *testing.T) {
	t.Parallel()
	const full, much = 1420 + 32, overdueBytes
	for _, tt := range []struct {
		name          string
		message, size int
		waited        time.Duration
		ahead         int
		skip          int
	}{
		{"in time", 45 * full, full, overdueAfter - 1, much, 0},
		{"late", 45 * full, full, overdueAfter, much, 45 * full},
		{"late, behind less", 45 * full, full, time.Second, much - 1, 0},
		{"late, of the least number", 9 * full, full, time.Second, much, 9 * full},
		{"late, of fewer", 8*full + 100, full, time.Second, much, 0},
		{"late, with a ping behind it", 45*full + 144, full, time.Second, much, 45 * full},
		{"late, of the narrowest link", 45 * 1312, 1312, time.Second, much, 45 * 1312},
		{"late, QUIC's first or UDP of 1,200 bytes", 45 * 1280, 1280, time.Second, much, 0},
		{"late, pings", 64 * 144, 144, time.Second, much, 0},
		{"late, a large packet alone", 65000, 65000, time.Second, much, 0},
		{"late, a ping alone", 144, 144, time.Second, much, 0},
		{"late, nothing", 0, 0, time.Second, much, 0},
		{"before the clock was set back", 45 * full, full, -time.Hour, much, 0},
	} {
		var o overdue
		now := time.Now()
		o.read(now, tt.ahead)
		if got := o.skip(tt.message, tt.size, now.Add(-tt.waited), now); got != tt.skip {
			t.Errorf("%s: %d of %d bytes are dropped, want %d", tt.name, got, tt.message, tt.skip)
		}
	}
}

// What was before a message is what has been read since it came.
func TestOverdueAhead(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	at := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Millisecond) }
	var o overdue
	if got := o.ahead(begin); got != 0 {
		t.Errorf("%d bytes before there was any, want 0", got)
	}
	o.read(at(10), 100)
	o.read(at(20), 30)
	o.read(at(30), 5)
	for _, tt := range []struct {
		came int
		want int64
	}{{9, 135}, {10, 135}, {11, 35}, {20, 35}, {29, 5}, {30, 5}, {31, 0}} {
		if got := o.ahead(at(tt.came)); got != tt.want {
			t.Errorf("came at %d ms: %d bytes, want %d", tt.came, got, tt.want)
		}
	}
	for i := range 3 * overdueReads {
		o.read(at(40+i), 1)
	}
	if got := o.ahead(at(0)); got != overdueReads {
		t.Errorf("%d bytes since longer ago than is remembered, want %d", got, overdueReads)
	}
}

// Bulk traffic that is slower than we are is left alone, also when we stop for a while;
// what fills the buffer faster loses half of what is late.
func TestOverdueStop(t *testing.T) {
	t.Parallel()
	const message = 45 * 1452
	for _, tt := range []struct {
		name string
		rate float64 // bit/s
		stop time.Duration
		want func(late, dropped int) bool
	}{
		{"1 Gbit/s, 3 ms", 1e9, 3 * time.Millisecond, func(late, dropped int) bool { return late > 0 && dropped == 0 }},
		{"1 Gbit/s, 7 ms", 1e9, 7 * time.Millisecond, func(late, dropped int) bool { return late > 0 && dropped == 0 }},
		{"5 Gbit/s, 4 ms", 5e9, 4 * time.Millisecond, func(late, dropped int) bool { return dropped > 0 && dropped <= late/2+1 }},
	} {
		var o overdue
		begin := time.Now()
		gap := time.Duration(message * 8 / tt.rate * float64(time.Second))
		late, dropped := 0, 0
		// What came during the stop is read at its end, eight messages at a time.
		var came []time.Time
		for at := time.Duration(0); at < tt.stop; at += gap {
			came = append(came, begin.Add(at))
		}
		now := begin.Add(tt.stop)
		for len(came) > 0 {
			n := min(messagesMax, len(came))
			o.read(now, n*message)
			for _, c := range came[:n] {
				if now.Sub(c) >= overdueAfter {
					late++
				}
				if o.skip(message, 1452, c, now) > 0 {
					dropped++
				}
			}
			came = came[n:]
			now = now.Add(100 * time.Microsecond)
		}
		if !tt.want(late, dropped) {
			t.Errorf("%s: %d are late, %d of them dropped", tt.name, late, dropped)
		}
	}
}

// A late receiver drops half of the bulk messages, however many there are, and what is
// in time or small in between changes nothing.
func TestOverdueHalf(t *testing.T) {
	t.Parallel()
	var o overdue
	now := time.Now()
	o.read(now, overdueBytes)
	long := now.Add(-time.Second)
	dropped := 0
	for range 100 {
		o.skip(144, 144, long, now)
		o.skip(64000, 1400, now, now)
		if o.skip(64000, 1400, long, now) > 0 {
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
				r.overdue.read(r.now, overdueBytes)
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
