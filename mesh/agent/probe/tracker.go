package probe

import (
	"math"
	"slices"
	"time"
)

// Timing holds the durations of the protocol. The zero value means the defaults.
type Timing struct {
	Interval     time.Duration // between two probes to a host in the fast lane; default 300 ms
	SuspectAfter time.Duration // from the last moment the way can have worked; default 1.5 s
	StartGrace   time.Duration // before a host that never answered is suspect; default 6 s
	Window       time.Duration // the distance is the least of this long; default 3 s
}

// WithDefaults fills in what is zero.
func (t Timing) WithDefaults() Timing {
	for _, f := range []struct {
		d *time.Duration
		v time.Duration
	}{
		{&t.Interval, 300 * time.Millisecond},
		{&t.SuspectAfter, 1500 * time.Millisecond},
		// The first handshake can be lost because the other end does not know us yet;
		// WireGuard tries again after 5 s.
		{&t.StartGrace, 6 * time.Second},
		{&t.Window, 3 * time.Second},
	} {
		if *f.d <= 0 {
			*f.d = f.v
		}
	}
	return t
}

const (
	minLost     = 3  // that many probes must be lost before a host is suspect
	maxLost     = 8  // and so many on a way that loses many anyway, see needed
	minSamples  = 4  // the window holds at least so many answers, however old
	maxSamples  = 16 // and at most so many
	maxInFlight = 64
	recoverWith = 2 // answers in a row make a suspect well again

	// jitter is the part of an interval by which it is longer or shorter: that keeps
	// the nodes of a mesh out of step.
	jitter = 0.1

	// reserve is the part of SuspectAfter (200 ms of 1.5 s) that is left to what tells
	// others, on a busy machine.
	reserve = 2.0 / 15
	// lossWeight is the share of the newest probe in the measured loss.
	lossWeight = 1.0 / 32
	// byChance is how rarely losses alone, at the measured rate, may make a host suspect.
	byChance = 1e-4
)

// Tracker judges one host by what was sent to it and what came back. It does no
// I/O and reads no clock: it is a state machine.
//
//	               answer                    silence of SuspectAfter
//	unmeasured ----------------> measured ---------------------------> suspect
//	     |                           ^                                    |  ^
//	     | silence of StartGrace     '------- two answers in a row -------'  |
//	     '-------------------------------------------------------------------'
//
// Silence is counted from the first probe that was sent after the one that was
// answered last. It is longer for a very far host, whose answers are under way, and
// on a way that loses packets, where a few lost ones say little.
type Tracker struct {
	timing  Timing
	flight  []sent        // not answered, in the order of sending
	samples []sample      // in the order of arrival
	rtt     time.Duration // as told
	least   time.Duration // of the window
	loss    float64       // share of probes that were not answered before a younger one
	suspect bool
	since   time.Time // of suspect
	streak  int       // answers in a row while suspect
	last    time.Time // last answer
	asked   time.Time // last probe
}

type sent struct {
	nonce uint64
	at    time.Time
}

type sample struct {
	rtt time.Duration
	at  time.Time
}

// NewTracker returns a Tracker that knows nothing yet.
func NewTracker(t Timing) *Tracker { return &Tracker{timing: t.WithDefaults()} }

// Sent notes that a probe left.
func (t *Tracker) Sent(nonce uint64, now time.Time) {
	if len(t.flight) == maxInFlight {
		// Of a long silence the beginning matters, and what is newest can still be
		// answered.
		t.flight = slices.Delete(t.flight, 1, 2)
	}
	t.flight = append(t.flight, sent{nonce, now})
	t.asked = now
}

// Received notes an answer. It is false for one that nobody asked for, came twice,
// or came so late that a younger probe has been answered before it.
func (t *Tracker) Received(nonce uint64, now time.Time) bool {
	i := slices.IndexFunc(t.flight, func(s sent) bool { return s.nonce == nonce })
	if i < 0 {
		return false
	}
	rtt := max(now.Sub(t.flight[i].at), 0)
	t.flight = slices.Delete(t.flight, 0, i+1)
	t.lost(i)
	t.samples = append(t.samples, sample{rtt, now})
	if len(t.samples) > maxSamples {
		t.samples = slices.Delete(t.samples, 0, 1)
	}
	t.measure(now)
	if t.suspect {
		if now.Sub(t.last) > t.timing.SuspectAfter {
			t.streak = 0
		}
		if t.streak++; t.streak >= recoverWith {
			t.suspect = false
		}
	}
	t.last = now
	return true
}

// lost notes that so many probes were lost, and that the next one was answered.
func (t *Tracker) lost(n int) {
	if t.suspect {
		return // a host that was away is not a way that loses
	}
	for range n {
		t.loss += (1 - t.loss) * lossWeight
	}
	t.loss -= t.loss * lossWeight
}

// needed is how many probes in a row must be lost to say more than chance.
func (t *Tracker) needed() int {
	if t.loss <= 0 {
		return minLost
	}
	return min(max(int(math.Ceil(math.Log(byChance)/math.Log(t.loss))), minLost), maxLost)
}

// Lossy reports whether so many probes get lost that minLost in a row say little.
func (t *Tracker) Lossy() bool { return t.needed() > minLost }

// measure sets the distance to the least of the window: queues and busy
// processors only ever add. A small change is not a change.
func (t *Tracker) measure(now time.Time) {
	for len(t.samples) > minSamples && now.Sub(t.samples[0].at) > t.timing.Window {
		t.samples = slices.Delete(t.samples, 0, 1)
	}
	least := t.samples[0].rtt
	for _, s := range t.samples {
		least = min(least, s.rtt)
	}
	// At least a nanosecond: 0 says that nothing was measured.
	least = max(least, 1)
	t.least = least
	if delta := (least - t.rtt).Abs(); t.rtt == 0 || delta > max(t.rtt/10, 200*time.Microsecond) {
		t.rtt = least
	}
}

// Tick lets time pass: a host becomes suspect by silence.
func (t *Tracker) Tick(now time.Time) {
	if at, ok := t.Patience(); ok && !now.Before(at) {
		t.suspect, t.since, t.streak = true, now, 0
	}
}

// Patience is when the host becomes suspect, if nothing is heard of it until then;
// ok is false while too few probes are out to say.
func (t *Tracker) Patience() (at time.Time, ok bool) {
	needed := t.needed()
	if t.suspect || len(t.flight) < needed {
		return time.Time{}, false
	}
	at = t.flight[0].at.Add(t.patience())
	// The last one that counts must have had the time to come back.
	if enough := t.flight[needed-1].at.Add(t.overdue()); enough.After(at) {
		at = enough
	}
	return at, true
}

// patience is how long the first lost probe may be out. The longest time between two
// probes is taken off SuspectAfter because the way may have broken right after the
// probe before it.
func (t *Tracker) patience() time.Duration {
	if t.rtt == 0 {
		return t.timing.StartGrace
	}
	told := time.Duration(float64(t.timing.SuspectAfter) * (1 - reserve))
	return max(told-longest(t.timing.Interval), t.overdue())
}

// overdue is how long after it was sent a probe's answer is not expected any more.
func (t *Tracker) overdue() time.Duration {
	if t.rtt == 0 {
		return t.timing.Interval
	}
	return t.rtt + max(t.rtt/8, t.timing.Interval/3)
}

// longest is the most that an interval can be drawn as.
func longest(interval time.Duration) time.Duration {
	return time.Duration(float64(interval) * (1 + jitter))
}

// RTT is the smoothed round trip; 0: never measured. It moves by a tenth at least,
// and so seldom; Least is the same without that.
func (t *Tracker) RTT() time.Duration { return t.rtt }

// Least is the least round trip of the window; 0: never measured.
func (t *Tracker) Least() time.Duration { return t.least }

// Suspect reports whether answers have stopped.
func (t *Tracker) Suspect() bool { return t.suspect }

// SuspectSince is when the answers were found to have stopped, if Suspect.
func (t *Tracker) SuspectSince() time.Time { return t.since }

// Asked and Answered are when the last probe left and the last answer came; zero:
// never.
func (t *Tracker) Asked() time.Time    { return t.asked }
func (t *Tracker) Answered() time.Time { return t.last }

// Unanswered is how many probes that left since some moment are overdue.
func (t *Tracker) Unanswered(since, now time.Time) (n int) {
	for _, s := range t.flight {
		if !s.at.Before(since) && now.Sub(s.at) > t.overdue() {
			n++
		}
	}
	return n
}

// Late reports whether an answer is overdue: worth a closer look.
func (t *Tracker) Late(now time.Time) bool {
	return len(t.flight) > 0 && now.Sub(t.flight[0].at) > t.overdue()
}
