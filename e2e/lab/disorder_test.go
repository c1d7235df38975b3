package lab

import (
	"errors"
	"math"
	"slices"
	"testing"
	"time"
)

// numbers sends count frames from a to b and returns those that came, in the order
// in which they did.
func (w *wire) numbers(count, want int) []int {
	w.t.Helper()
	for i := range count {
		w.send("a", "b", i)
	}
	got := w.receive("b", want, soon)
	return append(got, w.receive("b", 1, quiet)...)
}

// overtaken lists the frames that came after a later one.
func overtaken(got []int) (late []int) {
	most := -1
	for _, n := range got {
		if n < most {
			late = append(late, n)
		}
		most = max(most, n)
	}
	return late
}

func TestReorder(t *testing.T) {
	t.Parallel()
	const count = 400
	w := newWire(t, "a", "b")
	must(t, w.SetReorder("a", "b", 0.25))
	got := w.numbers(count, count)
	late := overtaken(got)
	c, err := w.Counters("a", "b")
	must(t, err)
	// 5 standard deviations of 8.7; the last ones have nobody to overtake them.
	if c.Reordered < 57 || c.Reordered > 143 || len(late) < int(c.Reordered)*3/4 || len(late) > int(c.Reordered) {
		t.Errorf("%d held back, %d overtaken, of %d", c.Reordered, len(late), count)
	}
	slices.Sort(got)
	for i, n := range got {
		if n != i {
			t.Fatalf("frame %d came where %d should have: one is lost or came twice", n, i)
		}
	}
}

func TestDuplicate(t *testing.T) {
	t.Parallel()
	const count = 150 // what comes twice too must fit the buffer of the socket
	for _, delay := range []time.Duration{0, 5 * time.Millisecond} {
		w := newWire(t, "a", "b")
		must(t, w.SetPath("a", "b", Path{Duplicate: 0.25, Delay: delay}))
		for i := range count {
			w.send("a", "b", i)
		}
		await(t, "all to be on their way", func() error {
			if c, err := w.Counters("a", "b"); err != nil || c.Packets != count {
				return errors.New("they are not")
			}
			return nil
		})
		c, err := w.Counters("a", "b")
		must(t, err)
		got := w.receive("b", count+int(c.Duplicated), soon)
		got = append(got, w.receive("b", 1, quiet)...)
		twice := 0
		for i := 1; i < len(got); i++ {
			if got[i] == got[i-1] {
				twice++
			} else if got[i] != got[i-1]+1 {
				t.Fatalf("delay %s: after frame %d came %d", delay, got[i-1], got[i])
			}
		}
		// 5 standard deviations of 5.3.
		if twice < 11 || twice > 64 || twice != int(c.Duplicated) || len(got) != count+twice {
			t.Errorf("delay %s: %d came, %d of them twice, %d counted", delay, len(got), twice, c.Duplicated)
		}
	}
}

// Jitter reorders, never delivers early, and adds no more than it may.
func TestJitter(t *testing.T) {
	t.Parallel()
	w := newWire(t, "a", "b")
	must(t, w.SetPath("a", "b", Path{Delay: 3 * time.Millisecond}))
	must(t, w.SetJitter("a", "b", 20*time.Millisecond))
	if p, err := w.Path("b", "a"); err != nil || p != (Path{Jitter: 20 * time.Millisecond}) {
		t.Errorf("the way back is %+v, %v", p, err)
	}
	l, err := w.link("a", "b")
	must(t, err)
	least, most := time.Hour, time.Duration(0)
	for range 2000 {
		before := w.now()
		due, _ := l.schedule(l.path.Load(), 100)
		least, most = min(least, due-w.now()), max(most, due-before)
	}
	if least > 4*time.Millisecond || most < 22*time.Millisecond || most > 23*time.Millisecond+time.Second {
		t.Errorf("packets take %s to %s, want 3ms to 23ms", least, most)
	}
	if late := overtaken(w.numbers(200, 200)); len(late) == 0 {
		t.Error("nobody was overtaken")
	}
}

// The same seed holds back and repeats the same packets.
func TestDisorderIsSeeded(t *testing.T) {
	t.Parallel()
	decide := func(from, to string) (out []bool) {
		w := newWire(t, "a", "b")
		must(t, w.SetReorder("a", "b", 0.5))
		must(t, w.SetDuplicate("a", "b", 0.5))
		l, err := w.link(from, to)
		must(t, err)
		for range 500 {
			before := l.reordered.Load()
			l.schedule(l.path.Load(), 100)
			out = append(out, l.reordered.Load() > before, l.twice(l.path.Load()))
		}
		return out
	}
	if !slices.Equal(decide("a", "b"), decide("a", "b")) {
		t.Error("the same seed decided otherwise the second time")
	}
	if slices.Equal(decide("a", "b"), decide("b", "a")) {
		t.Error("both directions decide the same")
	}
}

func TestDisorderErrors(t *testing.T) {
	t.Parallel()
	w := newWire(t, "a", "b")
	for _, share := range []float64{-0.1, 1.1, math.NaN()} {
		if w.SetReorder("a", "b", share) == nil || w.SetDuplicate("a", "b", share) == nil {
			t.Errorf("a share of %v is taken", share)
		}
	}
}
