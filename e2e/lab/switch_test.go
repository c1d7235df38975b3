package lab

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// wire is a switch whose ports are sockets held by the test, not TAPs: no root, no
// kernel in between.
type wire struct {
	*Switch
	t    *testing.T
	ends map[string]*os.File
}

func newWire(t *testing.T, hosts ...string) *wire {
	w := &wire{newSwitch(7), t, map[string]*os.File{}}
	t.Cleanup(w.close)
	for _, name := range hosts {
		p, err := w.add(name)
		must(t, err)
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		p.attach(os.NewFile(uintptr(fds[0]), name))
		w.ends[name] = os.NewFile(uintptr(fds[1]), name)
		t.Cleanup(func() { w.ends[name].Close() })
	}
	return w
}

// frame is an IPv4 frame with a number in it.
func (w *wire) frame(from, to string, n, size int) []byte {
	f := make([]byte, max(size, netOff+28))
	if to == "all" {
		copy(f[vnetLen:], "\xff\xff\xff\xff\xff\xff")
	} else {
		copy(f[vnetLen:], w.names[to].mac[:])
	}
	copy(f[vnetLen+6:], w.names[from].mac[:])
	binary.BigEndian.PutUint16(f[vnetLen+12:], unix.ETH_P_IP)
	binary.BigEndian.PutUint32(f[netOff+20:], uint32(n))
	return f
}

func (w *wire) send(from, to string, n int) {
	w.t.Helper()
	if _, err := w.ends[from].Write(w.frame(from, to, n, 0)); err != nil {
		w.t.Fatal(err)
	}
}

// receive returns the numbers of the next frames, up to count of them or until
// none has come for a while.
func (w *wire) receive(at string, count int, patience time.Duration) (got []int) {
	w.t.Helper()
	buf := make([]byte, maxFrame)
	for len(got) < count {
		must(w.t, w.ends[at].SetReadDeadline(time.Now().Add(patience)))
		n, err := w.ends[at].Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		must(w.t, err)
		got = append(got, int(binary.BigEndian.Uint32(buf[netOff+20:n])))
	}
	return got
}

const soon, quiet = 5 * time.Second, 50 * time.Millisecond

func TestForward(t *testing.T) {
	t.Parallel()
	w := newWire(t, "a", "b", "c")
	w.send("a", "b", 1)
	w.send("a", "all", 2)
	stranger := w.frame("a", "b", 3, 0)
	stranger[vnetLen] = 0x06
	w.ends["a"].Write(stranger)
	w.send("a", "a", 4)
	got := map[string][]int{"b": w.receive("b", 2, soon), "c": w.receive("c", 1, soon)}
	for _, name := range []string{"a", "b", "c"} {
		got[name] = append(got[name], w.receive(name, 1, quiet)...)
	}
	want := map[string][]int{"a": nil, "b": {1, 2}, "c": {2}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A cut is silence, in the directions that were cut; address resolution passes.
func TestCuts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		cut  func(w *wire) error
		heal func(w *wire) error
		dead []string // pairs
	}{
		{"pair", func(w *wire) error { return w.Cut("a", "b") }, func(w *wire) error { return w.Restore("b", "a") }, []string{"ab", "ba"}},
		{"one way", func(w *wire) error { return w.CutOneWay("a", "b") }, func(w *wire) error { return w.Restore("a", "b") }, []string{"ab"}},
		{"host", func(w *wire) error { return w.CutHost("a") }, func(w *wire) error { return w.RestoreHost("a") }, []string{"ab", "ba", "ac", "ca"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, "a", "b", "c")
			w.alias("a2", w.names["a"])
			all := []string{"ab", "ba", "ac", "ca", "bc", "cb"}
			try := func() (dead []string) {
				for i, pair := range all {
					from, to := pair[:1], pair[1:]
					w.send(from, to, i)
					arp := w.frame(from, to, 100+i, 0)
					binary.BigEndian.PutUint16(arp[vnetLen+12:], unix.ETH_P_ARP)
					w.ends[from].Write(arp)
					if got := w.receive(to, 2, quiet); slices.Equal(got, []int{100 + i}) {
						dead = append(dead, pair)
					} else if !slices.Equal(got, []int{i, 100 + i}) {
						t.Errorf("%s: got %v", pair, got)
					}
				}
				return dead
			}
			must(t, tt.cut(w))
			if diff := cmp.Diff(tt.dead, try()); diff != "" {
				t.Errorf("cut (-want +got):\n%s", diff)
			}
			must(t, tt.heal(w))
			if diff := cmp.Diff([]string(nil), try()); diff != "" {
				t.Errorf("healed (-want +got):\n%s", diff)
			}
			if c, err := w.Counters("a", "b"); err != nil || c.Cut != 1 || c.Resolved != 2 || c.Packets != 1 {
				t.Errorf("counters %+v, %v", c, err)
			}
		})
	}
}

// Frames keep their order while the delay stays or grows, and each waits at least
// its delay. When it shrinks, what is sent later may be there earlier.
func TestDelayOrder(t *testing.T) {
	t.Parallel()
	w := newWire(t, "a", "b")
	must(t, w.SetDelay("a", "b", 20*time.Millisecond))
	const count = 200
	want := make([]int, count)
	began := time.Now()
	for i := range count {
		if i == count/2 {
			must(t, w.SetDelay("a", "b", 30*time.Millisecond))
		}
		w.send("a", "b", i)
		want[i] = i
	}
	got := w.receive("b", count, soon)
	if d := time.Since(began); d < 30*time.Millisecond {
		t.Errorf("all arrived after %s", d)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	must(t, w.SetDelay("a", "b", time.Minute))
	w.send("a", "b", 1)
	await(t, "the frame to be on its way", func() error {
		if c, err := w.Counters("a", "b"); err != nil || c.Packets != count+1 {
			return errors.New("it is not")
		}
		return nil
	})
	must(t, w.SetDelay("a", "b", 10*time.Millisecond))
	w.send("a", "b", 2)
	if got := w.receive("b", 1, soon); !slices.Equal(got, []int{2}) {
		t.Errorf("after the delay shrank: %v, want the frame that was sent last", got)
	}
}

// The same seed loses the same packets, and about as many as it was told to.
func TestLoss(t *testing.T) {
	t.Parallel()
	const count = 4000
	losses := func() (survivors []int) {
		w := newWire(t, "a", "b")
		must(t, w.SetLoss("a", "b", 0.25))
		l, err := w.link("a", "b")
		must(t, err)
		for i := range count {
			if _, lost := l.schedule(l.path.Load(), 100); lost == nil {
				survivors = append(survivors, i)
			}
		}
		return survivors
	}
	first, second := losses(), losses()
	if !slices.Equal(first, second) {
		t.Error("the same seed lost other packets the second time")
	}
	// 4 standard deviations of 27.
	if lost := count - len(first); lost < 890 || lost > 1110 {
		t.Errorf("%d of %d lost, want about 1000", lost, count)
	}
}

// On a capped path each packet waits for those before it; what would wait for
// longer than the queue is dropped.
func TestRateQueue(t *testing.T) {
	t.Parallel()
	w := newWire(t, "a", "b")
	must(t, w.SetPath("a", "b", Path{Rate: 8_000_000, Delay: 7 * time.Millisecond})) // a byte takes 1 µs
	l, err := w.link("a", "b")
	must(t, err)
	began := w.now()
	var dues []time.Duration
	for range 300 {
		due, lost := l.schedule(l.path.Load(), 1000)
		if lost == nil {
			dues = append(dues, due)
		} else if lost != &l.full {
			t.Fatal("lost by chance on a path without loss")
		}
	}
	took := w.now() - began
	for i := 1; i < len(dues); i++ {
		if d := dues[i] - dues[i-1]; d != time.Millisecond {
			t.Fatalf("packet %d comes %s after the one before, want 1ms", i, d)
		}
	}
	// 100 ms of queue hold 100 packets and the one being sent, and as many more as
	// were sent while this test was.
	if most := 102 + int(took/time.Millisecond); len(dues) < 101 || len(dues) > most {
		t.Errorf("%d packets accepted, want 101 to %d", len(dues), most)
	}
	if first := dues[0] - began; first < 8*time.Millisecond {
		t.Errorf("the first arrives after %s, want at least 8ms", first)
	}
}

// A path that holds too much drops, and what it holds is given back.
func TestQueueLimit(t *testing.T) {
	t.Parallel()
	w := newWire(t, "a", "b")
	must(t, w.SetDelay("a", "b", time.Hour))
	l, err := w.link("a", "b")
	must(t, err)
	frame := w.frame("a", "b", 1, 60000)
	for range 2000 { // 120 MB
		l.send(frame, nil)
	}
	c := l.counters()
	if held := l.queued.Load(); held > linkQueueMax+maxFrame || c.Full == 0 || c.Packets+c.Full != 2000 {
		t.Errorf("%d bytes held, counters %+v", held, c)
	}
	must(t, w.SetDelay("a", "b", time.Millisecond))
	l.queued.Store(0)
	l.send(frame, nil)
	if got := w.receive("b", 1, soon); !slices.Equal(got, []int{1}) {
		t.Fatalf("got %v", got)
	}
	await(t, "the buffer to be given back", func() error {
		if n := l.queued.Load(); n != 0 {
			return errors.New("it is not")
		}
		return nil
	})
}

func TestPathErrors(t *testing.T) {
	t.Parallel()
	w := newWire(t, "a", "b")
	w.alias("laptop", w.names["a"])
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"no such host", w.SetRTT("a", "x", 0), "path a to x: no host x on the switch"},
		{"no such host", w.CutHost("x"), "cut or restore x: no such host on the switch"},
		{"one place", w.SetLoss("a", "laptop", 0), "path a to laptop: they have one place on the switch"},
		{"negative delay", w.SetDelay("a", "b", -1), "delay, jitter, rate and MTU are at least 0"},
		{"loss of more than all", w.SetLoss("a", "b", 1.1), "loss is 0 to 1"},
	} {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", tt.name, tt.err, tt.want)
		}
	}
	must(t, w.SetRTT("laptop", "b", 8*time.Millisecond))
	if p, err := w.Path("b", "a"); err != nil || p != (Path{Delay: 4 * time.Millisecond}) {
		t.Errorf("Path = %+v, %v", p, err)
	}
}
