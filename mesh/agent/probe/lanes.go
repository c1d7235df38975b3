package probe

import (
	"cmp"
	"slices"
	"time"
)

// Standing is what is known of one target when the packets are shared out.
type Standing struct {
	Region  string
	RTT     time.Duration // 0: not measured
	Late    bool          // an answer is overdue
	Lossy   bool          // so many get lost that a few say little
	Suspect bool
	Back    bool // suspect, and heard all the same: it may be well again
}

// Intervals shares a budget of packets a second among targets and returns the
// time between two probes to each. While the budget lasts everybody is probed
// every fast, and what is left of it goes to those that need a closer look, see pace.
// Beyond it the fast lane holds those whose answer is overdue (to know
// within moments whether they are gone) and the nearest of every region, with at
// most half of the budget; the others share the rest evenly.
func Intervals(targets []Standing, budget int, fast time.Duration) []time.Duration {
	out := make([]time.Duration, len(targets))
	perTarget := float64(time.Second) / float64(fast)
	if left := float64(budget) - float64(len(targets))*perTarget; left >= 0 {
		for i := range out {
			out[i] = fast
		}
		for _, i := range fastLane(targets) {
			d := targets[i].pace(fast)
			more := float64(time.Second)/float64(d) - perTarget
			if more > left {
				break
			}
			out[i] = d
			left -= more
		}
		return out
	}
	seats := int(float64(budget) / 2 / perTarget)
	for _, i := range fastLane(targets) {
		if seats == 0 {
			break
		}
		out[i] = fast
		seats--
	}
	used, slow := 0.0, 0
	for _, d := range out {
		if d != 0 {
			used += perTarget
		} else {
			slow++
		}
	}
	each := time.Duration(float64(slow) / max(float64(budget)-used, 1) * float64(time.Second))
	for i, d := range out {
		if d == 0 {
			out[i] = max(each, fast)
		}
	}
	return out
}

// pace is the time between two probes that shows soonest whether a host has fallen
// silent: an overdue one is asked three times as often, so that many lost ones say it,
// not few; and one that is so far that not enough answers come back in time, or on
// whose way packets get lost, twice as often.
func (s Standing) pace(fast time.Duration) time.Duration {
	switch {
	case s.Suspect || s.RTT == 0:
		return fast
	case s.Late:
		return fast / 3
	case s.RTT > fast || s.Lossy:
		return fast / 2
	}
	return fast
}

// fastLane orders the targets by how much a fast look at them is worth: first the
// overdue that are not known to be gone and those that seem to come back, then the nearest of each region, then the
// second of each, and so on.
func fastLane(targets []Standing) []int {
	order := make([]int, len(targets))
	for i := range order {
		order[i] = i
	}
	distance := func(i int) time.Duration {
		if targets[i].RTT == 0 {
			return time.Hour
		}
		return targets[i].RTT
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(distance(a), distance(b)) })
	place := map[string]int{} // region: targets seen
	rank := make([]int, len(targets))
	for _, i := range order {
		switch {
		case targets[i].Suspect && !targets[i].Back:
			rank[i] = len(targets) + 1
		case targets[i].Late, targets[i].Back:
			rank[i] = 0
		default:
			place[targets[i].Region]++
			rank[i] = place[targets[i].Region]
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rank[a], rank[b]) })
	return order
}
