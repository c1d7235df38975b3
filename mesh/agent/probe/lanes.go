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
	Suspect bool
}

// Intervals shares a budget of packets a second among targets and returns the
// time between two probes to each. While the budget lasts everybody is probed
// every fast. Beyond it the fast lane holds those whose answer is overdue (to know
// within moments whether they are gone) and the nearest of every region, with at
// most half of the budget; the others share the rest evenly.
func Intervals(targets []Standing, budget int, fast time.Duration) []time.Duration {
	out := make([]time.Duration, len(targets))
	perTarget := float64(time.Second) / float64(fast)
	if float64(len(targets))*perTarget <= float64(budget) {
		for i := range out {
			out[i] = fast
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

// fastLane orders the targets by how much a fast look at them is worth: first the
// overdue that are not known to be gone, then the nearest of each region, then the
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
		case targets[i].Suspect:
			rank[i] = len(targets) + 1
		case targets[i].Late:
			rank[i] = 0
		default:
			place[targets[i].Region]++
			rank[i] = place[targets[i].Region]
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rank[a], rank[b]) })
	return order
}
