package probe

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// lookAt lets a Path look for a while at a way that carries packets up to what carries
// says, in steps of 10 ms, and calls each. Small packets are answered all the time.
func lookAt(p *Path, rtt, from, until time.Duration, carries func(at time.Duration) int, lost func() bool, each func(at time.Duration)) (packets int) {
	start := time.Unix(1_000_000, 0)
	answers := map[time.Duration][]uint64{}
	for at := from; at < until; at += 10 * ms {
		now := start.Add(at)
		for _, n := range answers[at] {
			p.Received(n, now)
		}
		for {
			size := p.Next(now, rtt, now, 3*time.Second)
			if size == 0 {
				break
			}
			packets++
			nonce := uint64(packets)<<32 | uint64(at)
			p.Sent(nonce, now)
			if size <= carries(at) && !lost() {
				answers[at+rtt] = append(answers[at+rtt], nonce)
			}
		}
		each(at)
	}
	return packets
}

func never() bool { return false }

// Whatever a path carries, it is found, soon, with a handful of packets; WireGuard
// pads to 16 bytes, so the answer is a multiple of that, or the top.
func TestPathFindsTheMTU(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		top := rapid.IntRange(MinMTU, 1500).Draw(t, "top")
		carries := rapid.IntRange(1200, 1520).Draw(t, "carries")
		rtt := time.Duration(rapid.IntRange(1, 30).Draw(t, "rtt")) * 10 * ms
		p := NewPath(top)
		var found time.Duration
		packets := lookAt(p, rtt, 0, 10*time.Second, func(time.Duration) int { return carries }, never, func(at time.Duration) {
			if mtu, _ := p.MTU(); mtu != 0 && found == 0 {
				found = at
			}
		})
		want, tiny := top, false
		if carries < top {
			want = max(carries/mtuStep*mtuStep, MinMTU)
			tiny = carries < MinMTU
		}
		if mtu, isTiny := p.MTU(); mtu != want || isTiny != tiny {
			t.Fatalf("a path of %d, top %d: found %d (tiny %v), want %d (%v)", carries, top, mtu, isTiny, want, tiny)
		}
		if most := 6 * (2*rtt + 500*ms); found > most {
			t.Fatalf("found after %s, want %s", found, most)
		}
		if packets > 100 {
			t.Fatalf("%d packets in ten seconds", packets)
		}
	})
}

// A path that gets narrow and wide again is followed both ways.
func TestPathFollows(t *testing.T) {
	p := NewPath(1420)
	var told []string
	lookAt(p, 20*ms, 0, 80*time.Second, func(at time.Duration) int {
		if at > 20*time.Second && at < 40*time.Second {
			return 1330
		}
		return 1420
	}, never, func(at time.Duration) {
		mtu, _ := p.MTU()
		if text := fmt.Sprint(mtu); len(told) == 0 || told[len(told)-1] != text {
			told = append(told, text)
			switch {
			case mtu == 1328 && at > 26*time.Second:
				t.Errorf("lowered %s after it got narrow", at-20*time.Second)
			case mtu == 1420 && at > 40*time.Second+2*raiseSoonest+4*time.Second:
				t.Errorf("raised %s after it got wide", at-40*time.Second)
			}
		}
	})
	if got := fmt.Sprint(told); got != "[0 1420 1328 1420]" {
		t.Errorf("MTUs %s", got)
	}
}

// Losses do not lower an MTU: a fifth of the packets each way.
func TestPathUnderLoss(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	wrong := 0
	p := NewPath(1420)
	for hour := range 3 {
		lookAt(p, 20*ms, time.Duration(hour)*time.Hour, time.Duration(hour)*time.Hour+10*time.Minute, func(time.Duration) int { return 1420 },
			func() bool { return rnd.Float64() < 0.36 }, func(time.Duration) {
				if mtu, _ := p.MTU(); mtu != 0 && mtu != 1420 {
					wrong++
				}
			})
	}
	if share := float64(wrong) / (3 * 60_000); share > 0.05 {
		t.Errorf("lowered %.1f%% of the time", share*100)
	}
}

// While small packets are not answered either, a large one that is lost says nothing.
func TestPathOfABrokenWay(t *testing.T) {
	p, now := NewPath(1420), time.Unix(1_000_000, 0)
	answered := now
	for i := range 6000 {
		now = now.Add(10 * ms)
		if p.Next(now, 20*ms, answered, 3*time.Second) != 0 {
			p.Sent(uint64(i), now)
		}
	}
	if mtu, tiny := p.MTU(); mtu != 0 || tiny {
		t.Errorf("MTU %d (tiny %v) of a way that carries nothing", mtu, tiny)
	}
}

func TestPathSetTop(t *testing.T) {
	for _, tt := range []struct{ top, found, to, want int }{
		{1420, 1420, 1380, 0},    // looked at anew
		{1420, 1328, 1380, 1328}, // still so
		{1420, 1328, 1300, 0},
		{1420, 1328, 1420, 1328},
		{1420, 1328, 1500, 1328},
		{1420, 0, 1500, 0},
	} {
		p := NewPath(tt.top)
		p.mtu = tt.found
		p.SetTop(tt.to)
		if mtu, _ := p.MTU(); mtu != tt.want {
			t.Errorf("%+v: %d", tt, mtu)
		}
	}
}

// Two probers and a wire that drops large packets in one direction: the end that sends
// that way lowers, the other one does not. An older agent is not asked.
func TestProberMTU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, old := netip.MustParseAddr("fd00::a"), netip.MustParseAddr("fd00::b"), netip.MustParseAddr("fd00::c")
		w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: 20 * ms, cut: map[netip.Addr]bool{},
			mtu: map[netip.Addr]int{b: 1340}, old: map[netip.Addr]bool{old: true}}
		large := 0
		w.seen = func(to netip.Addr, bytes []byte) {
			if to == old && len(bytes) > Size {
				t.Errorf("%d bytes to an older agent", len(bytes))
			}
			if len(bytes) > Size {
				large++
			}
		}
		pa := start(t, Config{Conn: w.listen("fd00::a"), Allowed: everybody})
		pb := start(t, Config{Conn: w.listen("fd00::b"), Allowed: everybody})
		start(t, Config{Conn: w.listen("fd00::c"), Allowed: everybody})
		pa.Tops(map[string]int{"b": 1420, "old": 1420})
		pa.Set([]Target{{Name: "b", Addr: b}, {Name: "old", Addr: old}})
		pb.Set([]Target{{Name: "a", Addr: a}})
		pb.Tops(map[string]int{"a": 1420})
		pass(8 * time.Second)
		if got := pa.Results()["b"].MTU; got != 1328 {
			t.Errorf("to b: MTU %d, want 1328", got)
		}
		if got := pb.Results()["a"].MTU; got != 1420 {
			t.Errorf("to a: MTU %d, want 1420", got)
		}
		if got := pa.Results()["old"]; got.MTU != 0 || got.RTT == 0 || got.Way != WayBoth {
			t.Errorf("to an older agent: %+v", got)
		}
		w.set(func(w *wire) { w.mtu[b] = 0; large = 0 })
		pass(time.Minute)
		if got := pa.Results()["b"].MTU; got != 1420 {
			t.Errorf("to b, wide again: MTU %d", got)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if large > 100 {
			t.Errorf("%d large packets in a minute at rest", large)
		}
	})
}

// However many paths get narrow at once, large packets stay within their part of the
// budget, and in the end all are found.
func TestLargePacketsKeepTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: 2 * ms, cut: map[netip.Addr]bool{}, mtu: map[netip.Addr]int{}}
		var mu sync.Mutex
		large := 0
		w.seen = func(_ netip.Addr, b []byte) {
			if mu.Lock(); len(b) > Size {
				large++
			}
			mu.Unlock()
		}
		a := netip.MustParseAddr("fd00::a")
		p := start(t, Config{Conn: w.listen("fd00::a"), Allowed: everybody})
		var targets []Target
		tops := map[string]int{}
		for i := range 30 {
			addr := netip.AddrFrom16([16]byte{0xfd, 15: byte(i), 14: 1})
			w.set(func(w *wire) { w.mtu[addr] = 1340 })
			targets = append(targets, Target{Name: fmt.Sprint(i), Addr: addr})
			tops[fmt.Sprint(i)] = 1420
			start(t, Config{Conn: w.listen(addr.String()), Allowed: everybody}).Set([]Target{{Name: "a", Addr: a}})
		}
		p.Set(targets)
		p.Tops(tops)
		const seconds = 40
		pass(seconds * time.Second)
		for name, r := range p.Results() {
			if r.MTU != 1328 {
				t.Errorf("%s: MTU %d", name, r.MTU)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if large > 51*seconds {
			t.Errorf("%d large packets in %d s, with 50 a second", large, seconds)
		}
		t.Logf("%d large packets in %d s", large, seconds)
	})
}
