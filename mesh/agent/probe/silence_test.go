package probe

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Whenever a host falls silent, and wherever its probes stand then, others are told
// within a second and a half, also of one so far that few answers fit in that time; of
// the others with a fifth of a second to spare, for a busy machine.
func TestSilenceIsToldInTime(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	synctest.Test(t, func(t *testing.T) { // all of them in one: time is cheap there, and bubbles are not
		var all sync.WaitGroup
		for i := range 200 {
			delay, within := 2*ms, 1305*ms // the nearest fall silent the soonest after an answer
			switch i % 4 {
			case 0:
				delay = time.Duration(1+rnd.IntN(300)) * ms
			case 1:
				delay, within = time.Duration(300+rnd.IntN(600))*ms, 1500*ms
			}
			after := 5*time.Second + time.Duration(rnd.IntN(1000))*ms
			all.Go(func() { silence(t, delay, after, within) })
		}
		all.Wait()
	})
}

// silence cuts a host off after a while, and waits until it is told.
func silence(t *testing.T, delay, after, within time.Duration) {
	w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: delay, cut: map[netip.Addr]bool{}}
	b := netip.MustParseAddr("fd00::b")
	told := make(chan time.Time, 1)
	a := watched(t, Config{Conn: w.listen("fd00::a")}, func(p *Prober) {
		if p.Results()["b"].Suspect {
			select {
			case told <- time.Now():
			default:
			}
		}
	})
	start(t, Config{Conn: w.listen("fd00::b"), Allowed: everybody})
	a.Set([]Target{{Name: "b", Addr: b}})
	<-time.After(after)
	cut := time.Now()
	w.set(func(w *wire) { w.cut[b] = true })
	select {
	case at := <-told:
		if d := at.Sub(cut); d > within {
			t.Errorf("at %s: told %s after the silence began, want %s", delay, d, within)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("at %s: nobody was told", delay)
	}
}

// watched is start with a prober that Changed is told of.
func watched(t *testing.T, cfg Config, changed func(*Prober)) *Prober {
	var p atomic.Pointer[Prober]
	cfg.Changed = func() {
		if p := p.Load(); p != nil {
			changed(p)
		}
	}
	started := start(t, cfg)
	p.Store(started)
	return started
}

// Lost packets are no silence: on ways that lose up to a fifth in each direction, near
// and far, a host is held to be silent once in a long while at most; and when it is
// gone, that is told in time on the near ones still.
func TestLossIsNoSilence(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, tt := range []struct {
		rtt    time.Duration
		loss   float64 // in each direction
		within time.Duration
	}{
		{10 * ms, 0.05, 1350 * ms},
		{10 * ms, 0.2, 1750 * ms},
		{240 * ms, 0.05, 1400 * ms},
		{240 * ms, 0.1, 1900 * ms},
		{600 * ms, 0.05, 2500 * ms},
	} {
		rnd := rand.New(rand.NewPCG(seed, 1))
		synctest.Test(t, func(t *testing.T) {
			w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: tt.rtt, cut: map[netip.Addr]bool{}, lost: func() bool { return rnd.Float64() < tt.loss }}
			alarms := 0
			told := make(chan time.Time, 1)
			was := false
			b := netip.MustParseAddr("fd00::b")
			a := watched(t, Config{Conn: w.listen("fd00::a")}, func(p *Prober) {
				is := p.Results()["b"].Suspect
				if is && !was {
					alarms++
					select {
					case told <- time.Now():
					default:
					}
				}
				was = is
			})
			start(t, Config{Conn: w.listen("fd00::b"), Allowed: everybody})
			a.Set([]Target{{Name: "b", Addr: b}})
			pass(20 * time.Second) // the loss is learnt
			alarms = 0
			pass(lossFor)
			t.Logf("%s, losing %.0f%%: %d false alarms in %s", tt.rtt, tt.loss*100, alarms, lossFor)
			if alarms > 4 { // the median is 0
				t.Errorf("%s, losing %.0f%%: %d false alarms in %s", tt.rtt, tt.loss*100, alarms, lossFor)
			}
			for len(told) > 0 {
				<-told
			}
			for was {
				pass(100 * ms)
			}
			cut := time.Now()
			w.set(func(w *wire) { w.cut[b] = true })
			if d := (<-told).Sub(cut); d > tt.within {
				t.Errorf("%s, losing %.0f%%: told %s after the silence began, want %s", tt.rtt, tt.loss*100, d, tt.within)
			}
		})
	}
}

const lossFor = 15 * time.Minute
