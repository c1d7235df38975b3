package probe

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPacketBytes(t *testing.T) {
	p := Packet{Kind: Reply, Flags: FlagHoldsData, Nonce: 0x0102030405060708, Timestamp: 0x1112131415161718}
	want := []byte("wftp\x01\x02\x00\x01\x01\x02\x03\x04\x05\x06\x07\x08\x11\x12\x13\x14\x15\x16\x17\x18")
	if got := p.Append(nil); !bytes.Equal(got, want) {
		t.Fatalf("got  %x\nwant %x", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	good := Packet{Nonce: 1}.Append(nil)
	for name, change := range map[string]func(b []byte) []byte{
		"short":          func(b []byte) []byte { return b[:Size-1] },
		"padded with 1":  func(b []byte) []byte { return append(b, 1) },
		"padded reply":   func(b []byte) []byte { b[5] = 2; return append(b, 0) },
		"empty":          func([]byte) []byte { return nil },
		"other magic":    func(b []byte) []byte { b[0]++; return b },
		"later version":  func(b []byte) []byte { b[4]++; return b },
		"type 0":         func(b []byte) []byte { b[5] = 0; return b },
		"type 5":         func(b []byte) []byte { b[5] = 5; return b },
		"handshake byte": func([]byte) []byte { return append([]byte{1, 0, 0, 0}, make([]byte, 144)...) },
	} {
		if p, err := Parse(change(bytes.Clone(good))); err == nil {
			t.Errorf("%s: accepted as %+v", name, p)
		}
	}
}

// A reply is never larger than its request, and never answered itself.
func TestAnswerNeverAmplifies(t *testing.T) {
	request := Packet{Nonce: 7, Timestamp: 9}
	reply, ok := Answer(request, 0)
	if !ok || reply.Kind != Reply || reply.Nonce != 7 || reply.Timestamp != 9 {
		t.Fatalf("Answer = %+v, %v", reply, ok)
	}
	if len(reply.Append(nil)) > len(request.Append(nil)) {
		t.Fatal("the reply is larger than the request")
	}
	if _, ok := Answer(reply, 0); ok {
		t.Fatal("a reply was answered")
	}
}

// FuzzParse: what is accepted is written back as the same bytes.
func FuzzParse(f *testing.F) {
	f.Add(Packet{Nonce: 1, Timestamp: 2}.Append(nil))
	f.Add(Packet{Kind: Reply, Flags: 0xffff}.Append(nil))
	f.Add(Packet{Padding: 1300}.Append(nil))
	f.Add(about(Tell, netip.MustParseAddr("fd00::b"), 7).Append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := Parse(b); err == nil && !bytes.Equal(p.Append(nil), b) {
			t.Fatalf("Parse(%x) = %+v, which is written as %x", b, p, p.Append(nil))
		}
	})
}

const ms = time.Millisecond

// way is the way to a host in a simulation: how long a probe sent at some moment
// takes to come back; 0: never.
type way func(at time.Duration) time.Duration

func steady(rtt time.Duration) way { return func(time.Duration) time.Duration { return rtt } }

// simulate probes every 300 ms over w until end and calls look every 10 ms.
func simulate(t *Tracker, w way, end time.Duration, look func(at time.Duration)) {
	start := time.Unix(1_000_000, 0)
	arrivals := map[time.Duration][]uint64{}
	nonce := uint64(0)
	for at := time.Duration(0); at <= end; at += 10 * ms {
		now := start.Add(at)
		for _, n := range arrivals[at] {
			t.Received(n, now)
		}
		if at%(300*ms) == 0 {
			nonce++
			t.Sent(nonce, now)
			if rtt := w(at); rtt > 0 {
				arrivals[at+rtt] = append(arrivals[at+rtt], nonce)
			}
		}
		t.Tick(now)
		look(at)
	}
}

func TestTracker(t *testing.T) {
	lost := func(from, to time.Duration, rtt time.Duration) way {
		return func(at time.Duration) time.Duration {
			if at >= from && at < to {
				return 0
			}
			return rtt
		}
	}
	for _, tt := range []struct {
		name string
		way  way
		// When it becomes suspect and well again, to 100 ms; -1: never.
		suspect, well time.Duration
		rtt           time.Duration // at the end
	}{
		{name: "near and well", way: steady(10 * ms), suspect: -1, well: -1, rtt: 10 * ms},
		{name: "far and well", way: steady(240 * ms), suspect: -1, well: -1, rtt: 240 * ms},
		{name: "farther than the probes' interval", way: steady(900 * ms), suspect: -1, well: -1, rtt: 900 * ms},
		// The last answered probe left at 9.9 s; the first lost one at 10.2 s.
		{name: "near, cut at 10 s", way: lost(10_000*ms, time.Hour, 10*ms), suspect: 11_200 * ms, well: -1, rtt: 10 * ms},
		{name: "far, cut at 10 s", way: lost(10_000*ms, time.Hour, 240*ms), suspect: 11_200 * ms, well: -1, rtt: 240 * ms},
		{name: "very far, cut at 10 s", way: lost(10_000*ms, time.Hour, 800*ms), suspect: 11_700 * ms, well: -1, rtt: 800 * ms},
		{name: "cut and mended", way: lost(10_000*ms, 15_000*ms, 10*ms), suspect: 11_200 * ms, well: 15_310 * ms, rtt: 10 * ms},
		{name: "two probes lost", way: lost(10_000*ms, 10_600*ms, 10*ms), suspect: -1, well: -1, rtt: 10 * ms},
		{name: "never answers", way: steady(0), suspect: 6_000 * ms, well: -1, rtt: 0},
		{name: "first handshake lost", way: lost(0, 5_000*ms, 20*ms), suspect: -1, well: -1, rtt: 20 * ms},
		{name: "every second one lost", way: func(at time.Duration) time.Duration {
			if at%(600*ms) == 0 {
				return 0
			}
			return 10 * ms
		}, suspect: -1, well: -1, rtt: 10 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tracker := NewTracker(Timing{})
			suspect, well := time.Duration(-1), time.Duration(-1)
			simulate(tracker, tt.way, 20*time.Second, func(at time.Duration) {
				switch {
				case tracker.Suspect() && suspect < 0:
					suspect = at
				case !tracker.Suspect() && suspect >= 0 && well < 0:
					well = at
				}
			})
			round := func(d time.Duration) time.Duration { return d.Round(100 * ms) }
			if suspect >= 0 && round(suspect) != round(tt.suspect) || (suspect < 0) != (tt.suspect < 0) {
				t.Errorf("suspect at %s, want %s", suspect, tt.suspect)
			}
			if well >= 0 && round(well) != round(tt.well) || (well < 0) != (tt.well < 0) {
				t.Errorf("well again at %s, want %s", well, tt.well)
			}
			if tracker.RTT().Round(ms) != tt.rtt {
				t.Errorf("RTT %s, want %s", tracker.RTT(), tt.rtt)
			}
		})
	}
}

// Whatever the moment of a cut, a host at up to 240 ms is suspect within a second
// and a half (and the resolution of the simulation).
func TestSuspectWithinASecondAndAHalf(t *testing.T) {
	for _, rtt := range []time.Duration{10 * ms, 90 * ms, 240 * ms} {
		for cut := 10_000 * ms; cut < 10_600*ms; cut += 50 * ms {
			tracker := NewTracker(Timing{})
			found := time.Duration(-1)
			simulate(tracker, func(at time.Duration) time.Duration {
				if at+rtt/2 >= cut { // lost under way
					return 0
				}
				return rtt
			}, 13*time.Second, func(at time.Duration) {
				if tracker.Suspect() && found < 0 {
					found = at
				}
			})
			if found < 0 || found-cut > 1500*ms+20*ms {
				t.Errorf("rtt %s, cut at %s: suspect %s later", rtt, cut, found-cut)
			}
		}
	}
}

// Two delays that are swapped show within five seconds, in both directions.
func TestSwappedDelaysShow(t *testing.T) {
	for _, tt := range []struct{ before, after time.Duration }{{10 * ms, 240 * ms}, {240 * ms, 10 * ms}} {
		tracker := NewTracker(Timing{})
		var shown time.Duration
		simulate(tracker, func(at time.Duration) time.Duration {
			if at < 10*time.Second {
				return tt.before
			}
			return tt.after
		}, 20*time.Second, func(at time.Duration) {
			if at > 10*time.Second && shown == 0 && tracker.RTT() == tt.after {
				shown = at - 10*time.Second
			}
			if tracker.Suspect() {
				t.Errorf("%s to %s: suspect at %s", tt.before, tt.after, at)
			}
		})
		if shown == 0 || shown > 5*time.Second {
			t.Errorf("%s to %s: shown after %s", tt.before, tt.after, shown)
		}
	}
}

// Jitter on top of a distance does not make it move.
func TestJitterIsSmoothed(t *testing.T) {
	tracker := NewTracker(Timing{})
	changes, last := 0, time.Duration(0)
	i := 0
	simulate(tracker, func(time.Duration) time.Duration { i++; return 20*ms + time.Duration(i*7%13)*2*ms }, 60*time.Second, func(time.Duration) {
		if tracker.RTT() != last {
			changes, last = changes+1, tracker.RTT()
		}
	})
	if last < 20*ms || last > 26*ms {
		t.Errorf("RTT %s of ways of 20 to 44 ms", last)
	}
	if changes > 10 {
		t.Errorf("%d changes in a minute of jitter", changes)
	}
}

// Outliers are no distance: an answer that was held up, even one in ten, changes
// nothing; and one that came late does not make a near host a far one.
func TestOutliersAreRemoved(t *testing.T) {
	for range 20 {
		seed := rand.Uint64()
		rnd := rand.New(rand.NewPCG(seed, 0))
		base := time.Duration(1+rnd.IntN(20)) * 10 * ms
		tracker := NewTracker(Timing{})
		simulate(tracker, func(time.Duration) time.Duration {
			if rnd.IntN(10) == 0 {
				return base + time.Duration(5+rnd.IntN(50))*10*ms
			}
			return base
		}, 60*time.Second, func(at time.Duration) {
			if d := tracker.RTT() - base; at > 3*time.Second && (d < 0 || d > base/10) {
				t.Fatalf("seed %d: %s at %s on a way of %s", seed, tracker.RTT(), at, base)
			}
			if tracker.Suspect() {
				t.Fatalf("seed %d: suspect at %s", seed, at)
			}
		})
	}
}

// Hysteresis: a distance that creeps by less than a tenth stays what it was told as,
// and is told anew when it has crept farther, in either direction.
func TestHysteresis(t *testing.T) {
	for _, tt := range []struct {
		name    string
		from    time.Duration
		to      time.Duration
		changes int // after the first measurement
	}{
		{"within a tenth", 100 * ms, 110 * ms, 0},
		{"beyond it", 100 * ms, 120 * ms, 1},
		{"nearer", 120 * ms, 100 * ms, 1},
		{"twice as far, slowly", 100 * ms, 200 * ms, 7}, // 1.1 to the 7th power is 1.95
	} {
		tracker := NewTracker(Timing{})
		var told []time.Duration
		const end = 200 * time.Second
		simulate(tracker, func(at time.Duration) time.Duration {
			return (tt.from + time.Duration(float64(tt.to-tt.from)*float64(at)/float64(end))).Truncate(10 * time.Microsecond).Round(10 * ms)
		}, end, func(time.Duration) {
			if rtt := tracker.RTT(); rtt > 0 && (len(told) == 0 || told[len(told)-1] != rtt) {
				told = append(told, rtt)
			}
		})
		if len(told)-1 > tt.changes || tt.changes == 0 && len(told) != 1 || tt.changes > 0 && len(told) == 1 {
			t.Errorf("%s: told %v, want at most %d changes", tt.name, told, tt.changes)
		}
		if last := told[len(told)-1]; (last - tt.to).Abs() > tt.to/10+ms {
			t.Errorf("%s: told %s at the end, is %s", tt.name, last, tt.to)
		}
	}
}

func TestReceivedRefuses(t *testing.T) {
	tracker, now := NewTracker(Timing{}), time.Unix(0, 0)
	tracker.Sent(1, now)
	tracker.Sent(2, now)
	for _, tt := range []struct {
		nonce uint64
		want  bool
	}{{3, false}, {2, true}, {2, false}, {1, false}} {
		if got := tracker.Received(tt.nonce, now.Add(ms)); got != tt.want {
			t.Errorf("Received(%d) = %v, want %v", tt.nonce, got, tt.want)
		}
	}
}

// Any course of events: no panic, bounded memory, and a suspect host has at least
// three probes without an answer behind it.
func TestTrackerProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tracker, now := NewTracker(Timing{}), time.Unix(0, 0)
		silent := 0
		for i := range rapid.IntRange(1, 300).Draw(t, "steps") {
			was := tracker.Suspect()
			switch rapid.SampledFrom([]string{"send", "answer", "stray", "tick"}).Draw(t, "event") {
			case "send":
				tracker.Sent(uint64(i), now)
				silent++
			case "answer":
				if len(tracker.flight) > 0 {
					n := rapid.SampledFrom(tracker.flight).Draw(t, "which").nonce
					if !tracker.Received(n, now) {
						t.Fatalf("answer to %d refused", n)
					}
					silent = len(tracker.flight)
				}
			case "stray":
				if tracker.Received(1<<40, now) {
					t.Fatal("stray answer accepted")
				}
			case "tick":
				tracker.Tick(now)
			}
			if tracker.Suspect() && !was && silent < minLost {
				t.Fatalf("suspect after %d probes without an answer", silent)
			}
			if len(tracker.flight) > maxInFlight || len(tracker.samples) > maxSamples || tracker.RTT() < 0 {
				t.Fatalf("grown: %d %d %s", len(tracker.flight), len(tracker.samples), tracker.RTT())
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 2000).Draw(t, "ms")) * ms)
		}
	})
}

func TestIntervals(t *testing.T) {
	fast := 300 * ms
	few := []Standing{{Region: "fra"}, {Region: "ams"}, {Region: "nrt"}}
	if diff := cmp.Diff([]time.Duration{fast, fast, fast}, Intervals(few, 200, fast)); diff != "" {
		t.Errorf("few targets (-want +got):\n%s", diff)
	}
	// A budget of 20 a second: three fast seats (10 a second), the others share 10.
	many := []Standing{
		{Region: "fra", RTT: 9 * ms}, {Region: "fra", RTT: 8 * ms}, {Region: "nrt", RTT: 240 * ms},
		{Region: "nrt", RTT: 241 * ms, Late: true}, {Region: "fra", RTT: 7 * ms, Suspect: true, Late: true},
		{Region: "ams"}, {Region: "ams", RTT: 90 * ms}, {Region: "fra", RTT: 10 * ms},
	}
	// What is left of a larger budget goes to who needs a closer look.
	closer := []Standing{{RTT: 10 * ms, Late: true}, {RTT: 500 * ms}, {RTT: 20 * ms, Lossy: true}, {RTT: 5 * ms, Late: true, Suspect: true}, {RTT: 5 * ms}}
	if diff := cmp.Diff([]time.Duration{100 * ms, 150 * ms, 150 * ms, fast, fast}, Intervals(closer, 200, fast)); diff != "" {
		t.Errorf("closer looks (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]time.Duration{100 * ms, fast, fast, fast, fast}, Intervals(closer, 24, fast)); diff != "" {
		t.Errorf("closer looks of a small budget (-want +got):\n%s", diff)
	}
	slow := 500 * ms
	want := []time.Duration{slow, fast, slow, fast, slow, slow, fast, slow}
	if diff := cmp.Diff(want, Intervals(many, 20, fast)); diff != "" {
		t.Errorf("many targets (-want +got):\n%s", diff)
	}
}

// The budget is kept whatever the targets, and everybody gets a turn.
func TestIntervalsKeepTheBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		targets := make([]Standing, rapid.IntRange(1, 400).Draw(t, "targets"))
		for i := range targets {
			targets[i] = Standing{
				Region:  rapid.SampledFrom([]string{"fra", "ams", "nrt"}).Draw(t, "region"),
				RTT:     time.Duration(rapid.IntRange(0, 300).Draw(t, "rtt")) * ms,
				Late:    rapid.Bool().Draw(t, "late"),
				Suspect: rapid.Bool().Draw(t, "suspect"),
			}
		}
		budget := rapid.IntRange(10, 500).Draw(t, "budget")
		rate := 0.0
		for _, d := range Intervals(targets, budget, 300*ms) {
			if d < 100*ms {
				t.Fatalf("interval %s", d)
			}
			rate += float64(time.Second) / float64(d)
		}
		if rate > float64(budget)*1.01 {
			t.Fatalf("%.1f packets a second, budget %d", rate, budget)
		}
	})
}
