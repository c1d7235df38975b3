package check

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weftmesh/weft/mesh"
)

var usual = Rules{Rise: mesh.DefaultCheckRise, Fall: mesh.DefaultCheckFall}

var begin = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func TestJudgeByExamples(t *testing.T) {
	t.Parallel()
	flapping := "+" // one attempt every five seconds
	for range FlapAfter {
		flapping += "---++"
	}
	for _, tt := range []struct {
		name     string
		before   Verdict
		attempts string // + succeeds, - fails, one every five seconds
		want     Verdict
	}{
		{"nothing yet", Unknown, "", Unknown},
		{"the first success is enough", Unknown, "+", Passing},
		{"also after failures", Unknown, "-----+", Passing},
		{"two failures say nothing", Unknown, "--", Unknown},
		{"three do", Unknown, "---", Failing},
		{"two failures are forgiven", Passing, "--+--+--", Passing},
		{"three in a row are not", Passing, "--+---", Failing},
		{"one success does not make up for it", Passing, "---+", Failing},
		{"nor do two apart", Passing, "---+-+", Failing},
		{"two in a row do", Passing, "---++", Passing},
		{"what was failing before needs two", Failing, "+", Failing},
		{"what was failing before has two", Failing, "++", Passing},
		{"who flaps needs more", Unknown, flapping + "---++", Failing},
		{"twice as many", Unknown, flapping + "---++++", Passing},
		{"in a row", Unknown, flapping + "---+++-+++", Failing},
	} {
		j, now := NewJudge(usual, tt.before), begin
		for _, c := range tt.attempts {
			now = now.Add(5 * time.Second)
			j = j.Next(c == '+', now)
		}
		if j.Verdict() != tt.want {
			t.Errorf("%s: %s after %s, want %s", tt.name, j.Verdict(), tt.attempts, tt.want)
		}
	}
}

// Thresholds are each check's own.
func TestJudgeByItsRules(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		rules    Rules
		attempts string
		want     Verdict
	}{
		{Rules{Rise: 1, Fall: 1}, "+-", Failing},
		{Rules{Rise: 1, Fall: 1}, "+-+", Passing},
		{Rules{Rise: 4, Fall: 2}, "+-+-", Passing},
		{Rules{Rise: 4, Fall: 2}, "+--+++", Failing},
		{Rules{Rise: 4, Fall: 2}, "+--++++", Passing},
		{Rules{Rise: 2, Fall: 5}, "----", Unknown},
		{Rules{Rise: 2, Fall: 5}, "-----", Failing},
		{Rules{Rise: 1, Fall: 1}, "+-+-+-+", Failing}, // flapping: 2 by now
		{Rules{Rise: 1, Fall: 1}, "+-+-+-++", Passing},
	} {
		j, now := NewJudge(tt.rules, Unknown), begin
		for _, c := range tt.attempts {
			now = now.Add(5 * time.Second)
			j = j.Next(c == '+', now)
		}
		if j.Verdict() != tt.want {
			t.Errorf("%+v: %s after %s, want %s", tt.rules, j.Verdict(), tt.attempts, tt.want)
		}
	}
}

// What holds for every history: a verdict changes only on a run that is long enough,
// the runs that it takes are bounded, and nobody flaps faster than they allow.
func TestJudgeProperties(t *testing.T) {
	t.Parallel()
	changes := 0
	rapid.Check(t, func(t *rapid.T) {
		rules := Rules{Rise: rapid.IntRange(1, 20).Draw(t, "rise"), Fall: rapid.IntRange(1, 5).Draw(t, "fall")}
		most := max(MaxRise, rules.Rise)
		j := NewJudge(rules, rapid.SampledFrom([]Verdict{Unknown, Passing, Failing}).Draw(t, "before"))
		now, run, last := begin, 0, false
		var falls []time.Time
		for range rapid.IntRange(0, 300).Draw(t, "attempts") {
			now = now.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "pause")) * time.Second)
			ok := rapid.IntRange(0, 4).Draw(t, "ok") > 0 == (len(falls)%2 == 0) // long runs, both ways
			if ok != last {
				run, last = 0, ok
			}
			run++
			before, need := j, j.Successes(now)
			if need != 1 && need < rules.Rise || need > most || need == 1 && j.Passed() && rules.Rise > 1 {
				t.Fatalf("it takes %d successes", need)
			}
			shared := append([]time.Time(nil), j.falls...)
			j = j.Next(ok, now)
			for i := range shared {
				if !before.falls[i].Equal(shared[i]) {
					t.Fatal("an earlier judge has changed")
				}
			}
			if len(j.falls) > maxFalls {
				t.Fatalf("it remembers %d falls", len(j.falls))
			}
			switch was, is := before.Verdict(), j.Verdict(); {
			case is == Unknown && was != Unknown:
				t.Fatal("what was known is not known any more")
			case was != Passing && is == Passing:
				changes++
				if !ok || was == Failing && run < need {
					t.Fatalf("it passes after %d successes, and needs %d", run, need)
				}
			case was != Failing && is == Failing:
				changes++
				if ok || run < rules.Fall {
					t.Fatalf("it fails after %d failures", run)
				}
				falls = append(falls, now)
			case was == is && is == Passing && !ok && run >= rules.Fall:
				t.Fatalf("%d failures in a row, and it passes", run)
			case was == is && is == Failing && ok && run >= most:
				t.Fatalf("%d successes in a row, and it fails", run)
			}
		}
	})
	if changes == 0 {
		t.Error("no verdict changed: this proves nothing")
	}
}

// The worst that a machine can do: fail and recover as fast as it may. Within an hour
// that is a bounded number of changes, far from all that it could be.
func TestFlappingIsDamped(t *testing.T) {
	t.Parallel()
	const every = 5 * time.Second
	j, now, changes, attempts := NewJudge(usual, Passing), begin, 0, 0
	for now.Sub(begin) < time.Hour {
		now = now.Add(every)
		attempts++
		next := j.Next(j.Verdict() == Failing, now)
		if next.Verdict() != j.Verdict() {
			changes++
		}
		j = next
	}
	// Without damping each change takes usual.Fall or usual.Rise attempts.
	if plain := 2 * attempts / (usual.Fall + usual.Rise); changes > plain/2 {
		t.Errorf("%d changes in an hour, and %d without damping", changes, plain)
	}
	// Calm again, it is forgotten.
	now = now.Add(2 * FlapWindow)
	if need := j.Successes(now); need != usual.Rise {
		t.Errorf("long after, it takes %d successes", need)
	}
}
