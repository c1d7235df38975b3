package userspace

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func (s *silence) send(f frame, first bool, now time.Time) (admission, []byte) {
	a := s.admit(f, first, now)
	if a == admitNone || a == admitLater {
		return a, nil
	}
	buf := make([]byte, 1)
	s.enter(f, [][]byte{buf}, now)
	return a, buf
}

// An address of whose packets none comes out gets few, one by one, until one does.
func TestSilence(t *testing.T) {
	t.Parallel()
	s, now := newSilence(), time.Unix(1000, 0)
	mute, other := numbered(1, 0, 100), numbered(1, 0, 100)
	other.packet()[39] = 9
	var last []byte
	for i := range 1000 {
		var a admission
		if a, last = s.send(mute, i == 0, now); a != admitAll {
			t.Fatalf("packet %d of a burst: %d", i, a)
		}
	}
	now = now.Add(silentAfter)
	if a, _ := s.send(mute, false, now); a != admitLater {
		t.Errorf("behind others: %d, want later", a)
	}
	count := func(d time.Duration) (n int) {
		for end := now.Add(d); now.Before(end); now = now.Add(100 * time.Microsecond) {
			if a, _ := s.send(mute, true, now); a == admitOne {
				n++
			} else if a != admitNone {
				t.Fatalf("a silent one: %d", a)
			}
			if a, out := s.send(other, false, now); a != admitAll {
				t.Fatalf("another one: %d", a)
			} else {
				s.leave([][]byte{out})
			}
		}
		return n
	}
	if n, most := count(time.Second), int((time.Second+silentBurst)/silentPace)+1; n > most || n < most-3 {
		t.Errorf("%d packets in a second, want about %d", n, most)
	}
	s.leave([][]byte{make([]byte, 1), last}) // late, but it lives
	for range 1000 {
		if a, _ := s.send(mute, false, now); a != admitAll {
			t.Fatalf("when one came out: %d", a)
		}
	}
}

// Who sends little is never refused, however long nobody answers.
func TestSilenceIsNotForLonePackets(t *testing.T) {
	t.Parallel()
	s, now := newSilence(), time.Unix(1000, 0)
	for i := range 10_000 {
		if a, _ := s.send(numbered(1, 0, 100), true, now); a == admitNone {
			t.Fatalf("packet %d: it is refused", i)
		}
		now = now.Add(2 * silentPace)
	}
	for i := range 40 {
		if a, _ := s.send(numbered(1, 0, 100), true, now); a == admitNone {
			t.Fatalf("packet %d of a small burst: it is refused", i)
		}
	}
}

// The buffer of a packet that was dropped is used again: what comes out of it is not a
// packet of the silent one.
func TestSilenceOfUsedBuffers(t *testing.T) {
	t.Parallel()
	s, now := newSilence(), time.Unix(1000, 0)
	mute, other := numbered(1, 0, 100), numbered(1, 0, 100)
	other.packet()[39] = 9
	bufs := packets(same(10, silentCount)...)
	s.enter(mute, bufs, now)
	s.enter(other, bufs, now)
	s.leave(bufs)
	if a := s.admit(mute, true, now.Add(silentAfter)); a != admitOne {
		t.Errorf("it is not silent: %d", a)
	}
	for i := range 3 * addressesMax {
		f := numbered(1, 0, 100)
		f.packet()[24], f.packet()[25] = byte(i), byte(i>>8)
		s.send(f, true, now)
	}
	if len(s.addresses) > addressesMax || len(s.inside) > addressesMax {
		t.Errorf("%d addresses and %d buffers are kept in mind", len(s.addresses), len(s.inside))
	}
}

// A large frame for a silent address is handed out in its order by one packet a read,
// and others do not wait for it.
func TestReaderAndSilence(t *testing.T) {
	t.Parallel()
	r := &reader{queue: newFairQueue(waitingMax), silence: newSilence()}
	mute := append(frame(nil), numbered(1, 0, frameHeader+ip6Header+udpHeader+5*100)...)
	mute[1] = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	mute[4], mute[6], mute[8] = 100, ip6Header, udpChecksumAt
	if !mute.valid() || mute.segments() != 5 {
		t.Fatal("the test's frame is wrong")
	}
	r.silence.enter(mute, packets(same(1, silentCount)...), time.Now().Add(-time.Hour))
	other := numbered(2, 0, 1000)
	other.packet()[39] = 9
	r.queue.push(mute)
	for range 3 {
		r.queue.push(append(frame(nil), other...))
	}
	bufs, sizes, _ := room(10)
	var got []int
	for {
		n := r.fill(bufs, sizes, 16)
		if n == 0 {
			break
		}
		got = append(got, n)
	}
	total := 0
	for _, n := range got {
		total += n
	}
	if len(got) != 6 || total != 8 {
		t.Errorf("reads of %v packets, want five of one and one of three", got)
	}
}

// What nobody takes has a bound.
func TestWaitingIsBounded(t *testing.T) {
	t.Parallel()
	r := &reader{queue: newFairQueue(waitingMax), silence: newSilence()}
	for i := range 1000 {
		r.next = r.queue.buffer(largeFrame)
		r.take(copy(r.next, numbered(byte(i%7), uint32(i), 60_000)))
		if r.queue.bytes > waitingMax {
			t.Fatalf("%d bytes wait", r.queue.bytes)
		}
	}
	if held := len(r.queue.large) * largeFrame; r.queue.bytes < waitingMax*9/10 || held > waitingMax/2 {
		t.Errorf("%d bytes wait, and %d are kept to use again", r.queue.bytes, held)
	}
}
