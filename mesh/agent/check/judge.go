// Package check looks whether machines work: it connects to a port, asks for a page,
// or is told what a command said, again and again, and judges from that whether a
// machine passes. What follows for names is decided elsewhere; so is how a command
// comes into a machine.
package check

import "time"

// Verdict is what attempts so far say.
type Verdict uint8

// Verdicts. The first success is enough to pass.
const (
	Unknown Verdict = iota
	Passing
	Failing
)

func (v Verdict) String() string { return [...]string{"unknown", "passing", "failing"}[v] }

// Rules are how many attempts in a row turn a verdict: Rise successes, once it has
// failed, and Fall failures. Both are at least 1.
type Rules struct{ Rise, Fall int }

// When a machine counts as flapping: with each FlapAfter falls within FlapWindow it
// takes twice as many successes to recover, up to MaxRise, or Rules.Rise if that is more.
const (
	FlapAfter  = 3
	FlapWindow = 10 * time.Minute
	MaxRise    = 16
)

// Judge turns attempts into a verdict. It does not change: Next returns the judge
// after an attempt.
//
//	            one success              Rules.Fall failures
//	unknown ------------------> passing ---------------------> failing
//	   '-------------------------- ^ ---------------------------> ^
//	       Rules.Fall failures     '-------------------------------'
//	                     Successes(): Rules.Rise, more while it flaps; the first time one
type Judge struct {
	rules   Rules
	verdict Verdict
	passed  bool        // once
	run     int         // attempts in a row that speak against the verdict
	falls   []time.Time // the last ones, oldest first; not changed once shared
}

// NewJudge returns a judge that goes on from what an earlier one said.
func NewJudge(r Rules, v Verdict) Judge { return Judge{rules: r, verdict: v, passed: v != Unknown} }

// Verdict is what it says now.
func (j Judge) Verdict() Verdict { return j.verdict }

// Passed reports whether it has ever passed.
func (j Judge) Passed() bool { return j.passed }

// Successes is how many in a row it takes to pass, at a time.
func (j Judge) Successes(now time.Time) int {
	if !j.passed {
		return 1
	}
	need := j.rules.Rise
	for range len(j.recent(now)) / FlapAfter {
		need = min(2*need, max(MaxRise, j.rules.Rise))
	}
	return need
}

// recent are the falls within the window.
func (j Judge) recent(now time.Time) []time.Time {
	falls := j.falls
	for len(falls) > 0 && now.Sub(falls[0]) > FlapWindow {
		falls = falls[1:]
	}
	return falls
}

// Next returns the judge after an attempt. Times do not go back.
func (j Judge) Next(ok bool, now time.Time) Judge {
	if j.verdict == Passing && ok || j.verdict == Failing && !ok {
		j.run = 0
		return j
	}
	j.run++
	switch {
	case ok && (j.verdict == Unknown || j.run >= j.Successes(now)):
		return Judge{rules: j.rules, verdict: Passing, passed: true, falls: j.falls}
	case !ok && j.run >= j.rules.Fall && j.passed:
		return Judge{rules: j.rules, verdict: Failing, passed: true, falls: j.fell(now)}
	case !ok && j.run >= j.rules.Fall:
		return Judge{rules: j.rules, verdict: Failing}
	}
	return j
}

// maxFalls is how many falls make a difference.
const maxFalls = FlapAfter * 4 // a Rise of 1 doubles four times up to MaxRise

// fell are the falls with one more.
func (j Judge) fell(now time.Time) []time.Time {
	recent := j.recent(now)
	if len(recent) >= maxFalls {
		recent = recent[len(recent)-maxFalls+1:]
	}
	out := make([]time.Time, 0, len(recent)+1)
	return append(append(out, recent...), now)
}
