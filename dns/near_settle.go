package dns

import "time"

// settleAfter is how long a small difference must last to be taken.
const settleAfter = 5 * time.Second

// Settler gives out facts that differ from those before only where what is measured
// really does. The near set is a threshold over round trips; fed with settled facts,
// its membership does not flap with their jitter. So this is where its hysteresis
// lives: Answer itself remembers nothing.
//
//   - A round trip, or an estimate of one, that has moved by more than an eighth and by
//     more than 1 ms is taken at once.
//   - One that moved less is taken when it has been different, to the same side, for
//     five seconds; and only so much of it as it was all that time. So a first value
//     that was too long does not stay, and jitter still moves nothing.
//   - Everything else of a fact is taken at once.
//
// The zero value is ready. It is for one goroutine.
type Settler struct {
	hosts map[string]*settling
}

type settling struct{ rtt, estimate drift }

// drift is a value that was given out, and how far the measured one has been from it
// at least.
type drift struct {
	value time.Duration
	least time.Duration // the measured one that was nearest to value since
	since time.Time     // measured is to one side of value; zero: it is not
}

// Settle returns what is to be given out of what is known now. Hosts that are not in
// it are forgotten.
func (s *Settler) Settle(known Facts, now time.Time) Facts {
	out, hosts := make(Facts, len(known)), make(map[string]*settling, len(known))
	for name, f := range known {
		h := s.hosts[name]
		if h == nil {
			h = &settling{}
		}
		f.RTT, f.Estimate = h.rtt.settle(f.RTT, now), h.estimate.settle(f.Estimate, now)
		out[name], hosts[name] = f, h
	}
	s.hosts = hosts
	return out
}

func (d *drift) settle(measured time.Duration, now time.Time) time.Duration {
	switch off := measured - d.value; {
	case d.value <= 0 || measured <= 0 || off.Abs() > max(d.value/8, time.Millisecond):
		*d = drift{value: measured}
	case off == 0:
		d.since = time.Time{}
	case d.since.IsZero() || (d.least > d.value) != (off > 0):
		d.since, d.least = now, measured
	default:
		if off.Abs() < (d.least - d.value).Abs() {
			d.least = measured
		}
		if now.Sub(d.since) >= settleAfter {
			*d = drift{value: d.least}
		}
	}
	return d.value
}
