package probe

import (
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
	minSamples  = 4  // the window holds at least so many answers, however old
	maxSamples  = 16 // and at most so many
	maxInFlight = 64
	recoverWith = 2 // answers in a row make a suspect well again

	// jitter is the part of an interval by which it is longer or shorter: that keeps
	// the nodes of a mesh out of step.
	jitter = 0.1
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
// answered last. It is longer for a far host, whose answers are under way.
type Tracker struct {
	timing  Timing
	flight  []sent   // not answered, in the order of sending
	samples []sample // in the order of arrival
	rtt     time.Duration
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
	if t.suspect || len(t.flight) < minLost {
		return time.Time{}, false
	}
	return t.flight[0].at.Add(t.patience()), true
}

// patience is how long the first lost probe may be out. The longest time between two
// probes is taken off SuspectAfter because the way may have broken right after the
// probe before it.
func (t *Tracker) patience() time.Duration {
	if t.rtt == 0 {
		return t.timing.StartGrace
	}
	return max(t.timing.SuspectAfter-longest(t.timing.Interval), 2*t.rtt+2*t.timing.Interval)
}

// longest is the most that an interval can be drawn as.
func longest(interval time.Duration) time.Duration {
	return time.Duration(float64(interval) * (1 + jitter))
}

// RTT is the smoothed round trip; 0: never measured.
func (t *Tracker) RTT() time.Duration { return t.rtt }

// Suspect reports whether answers have stopped.
func (t *Tracker) Suspect() bool { return t.suspect }

// SuspectSince is when the answers were found to have stopped, if Suspect.
func (t *Tracker) SuspectSince() time.Time { return t.since }

// Asked and Answered are when the last probe left and the last answer came; zero:
// never.
func (t *Tracker) Asked() time.Time    { return t.asked }
func (t *Tracker) Answered() time.Time { return t.last }

// Late reports whether an answer is overdue: worth a closer look.
func (t *Tracker) Late(now time.Time) bool {
	return len(t.flight) > 0 && now.Sub(t.flight[0].at) > 2*t.rtt+t.timing.Interval
}
