package agent

import (
	"strings"
	"testing"
	"time"
)

// The first alarms are answered at once, then less and less often; other parts and
// other reasons do not wait for that; and when it is over it is over.
func TestAlarms(t *testing.T) {
	t.Parallel()
	woken := 0
	a := &alarms{wake: func() { woken++ }}
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	now := start
	for i, step := range []struct {
		after   time.Duration
		raise   string // "-": nothing
		due     bool
		rest    time.Duration
		problem bool
	}{
		{0, "-", false, 0, false},
		{0, "", true, 0, false},
		{0, "routes", true, 0, false}, {0, "routes", true, 0, false}, {0, "routes", true, 0, false}, {0, "routes", true, 0, false},
		{0, "routes", true, 0, false}, // the fifth is the last free one
		{0, "routes", true, 0, true},  // and one more, after which it rests
		{0, "routes", false, time.Second, true},
		{400 * time.Millisecond, "-", false, 600 * time.Millisecond, true}, // it is not forgotten
		{0, "firewall", true, 0, true},                                     // a pass is due for something else, and does the routes, too
		{0, "routes", false, 2 * time.Second, true},
		{2 * time.Second, "-", true, 0, true},
		{0, "routes", false, 4 * time.Second, true},
		{4 * time.Second, "-", true, 0, true},
		{0, "routes", false, 8 * time.Second, true},
		{8 * time.Second, "-", true, 0, true},
		{0, "routes", false, 10 * time.Second, true}, // never longer
		{0, "", true, 0, true},
		{fightWindow + time.Second, "-", false, 0, false},
		{0, "routes", true, 0, false},
	} {
		now = now.Add(step.after)
		if step.raise != "-" {
			before := woken
			if a.raise(step.raise); woken != before+1 {
				t.Errorf("step %d: the loop is not woken", i)
			}
		}
		due, rest := a.take(now)
		sentence := a.sentence(now)
		if due != step.due || rest != step.rest || (sentence != "") != step.problem {
			t.Errorf("step %d, after %s, %q: due %t, rest %s, %q, want %+v", i, now.Sub(start), step.raise, due, rest, sentence, step)
		}
		if sentence != "" && !strings.HasPrefix(sentence, "routes: something else keeps changing it") {
			t.Errorf("step %d: %q", i, sentence)
		}
	}
}

func TestAlarmsRest(t *testing.T) {
	t.Parallel()
	a, now := &alarms{wake: func() {}}, time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for range fightFree + 1 {
		if rest := a.restFor("link a", now); rest != 0 {
			t.Fatalf("a free one waits %s", rest)
		}
		a.strike("link a", now)
	}
	if a, b := a.restFor("link a", now), a.restFor("link b", now); a != fightRest || b != 0 {
		t.Errorf("rests are %s and %s, want %s and 0", a, b, fightRest)
	}
	if rest := a.restFor("link a", now.Add(fightRest)); rest != 0 {
		t.Errorf("it rests %s more after its rest", rest)
	}
	for range fightFree + 1 {
		a.strike("link b", now)
	}
	if s := a.sentence(now); !strings.HasPrefix(s, "link a, link b: ") {
		t.Errorf("says %q", s)
	}
}
