package agent

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// alarms are reasons for a whole pass before its time: something has drifted, or may
// have. Anybody raises one; the loop takes them.
//
// The first ones are answered at once. If they keep coming for one part of the system,
// somebody else keeps changing what the loop puts right: then it is put right less and
// less often, so that the fight costs little, and told as a problem until it is over.
type alarms struct {
	wake func()

	mu     sync.Mutex // guards what follows
	raised map[string]bool
	fights map[string]*fight
}

// fight is how often one part was put right.
type fight struct {
	strikes []time.Time // oldest first
	rests   time.Time   // not before
}

const (
	fightWindow = 30 * time.Second // in which strikes count
	fightFree   = 5                // so many are answered at once
	fightRest   = time.Second      // after one more; doubles with each
	fightMost   = 10 * time.Second // at most
)

// raise asks for a whole pass. what is the part of the system that may have drifted;
// "": none, it is for something else.
func (a *alarms) raise(what string) {
	a.mu.Lock()
	if a.raised == nil {
		a.raised = map[string]bool{}
	}
	a.raised[what] = true
	a.mu.Unlock()
	a.wake()
}

// take returns whether a whole pass is due, and if not, how long to wait before there
// may be one; 0: there is no reason for one.
func (a *alarms) take(now time.Time) (due bool, rest time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for what := range a.raised {
		wait := a.restsLocked(what, now)
		if due = due || wait <= 0; rest == 0 || wait < rest {
			rest = wait
		}
	}
	if !due {
		return false, rest
	}
	for what := range a.raised {
		if what != "" {
			a.strikeLocked(what, now)
		}
	}
	clear(a.raised)
	return true, 0
}

// restFor returns how long a part is not to be put right again.
func (a *alarms) restFor(what string, now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.restsLocked(what, now)
}

func (a *alarms) restsLocked(what string, now time.Time) time.Duration {
	if f := a.fights[what]; f != nil {
		return max(f.rests.Sub(now), 0)
	}
	return 0
}

// strike notes that a part was put right.
func (a *alarms) strike(what string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.strikeLocked(what, now)
}

func (a *alarms) strikeLocked(what string, now time.Time) {
	if a.fights == nil {
		a.fights = map[string]*fight{}
	}
	f := a.fights[what]
	if f == nil {
		f = &fight{}
		a.fights[what] = f
	}
	f.strikes = append(recent(f.strikes, now), now)
	if more := len(f.strikes) - fightFree; more > 0 {
		f.rests = now.Add(min(fightRest<<min(more-1, 10), fightMost))
	}
}

func recent(strikes []time.Time, now time.Time) []time.Time {
	return slices.DeleteFunc(strikes, func(t time.Time) bool { return now.Sub(t) > fightWindow })
}

// sentence tells of somebody who keeps changing what the loop puts right; "": there is
// nobody.
func (a *alarms) sentence(now time.Time) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var parts []string
	for what, f := range a.fights {
		if f.strikes = recent(f.strikes, now); len(f.strikes) == 0 {
			delete(a.fights, what)
		}
		if len(f.strikes) > fightFree {
			parts = append(parts, what)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	slices.Sort(parts)
	return fmt.Sprintf("%s: something else keeps changing it; it is put right less often meanwhile", strings.Join(parts, ", "))
}
