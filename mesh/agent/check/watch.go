package check

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// Health is what all checks of a machine say together.
type Health struct {
	Verdict Verdict
	Since   time.Time // of the verdict
	Note    string    // why it fails: the first check that does
}

// Config is what a Watch needs.
type Config struct {
	Checks  []mesh.Check
	Addr    netip.Addr // of the machine
	Dial    Dial
	Start   time.Time // of the machine: grace counts from there
	Before  Verdict   // what was said of the machine before, if it was
	Changed func()    // Health is another one; called without a lock
}

// Watch looks after one machine. Run makes the attempts of kind tcp and http; what
// commands say comes by Told.
type Watch struct {
	cfg Config

	mu     sync.Mutex // guards what follows
	judges []Judge
	notes  []string // of the last attempt of each check; "": it succeeded
	told   []time.Time
	health Health
}

// New returns a Watch of valid checks, of which there is at least one.
func New(c Config) *Watch {
	w := &Watch{cfg: c, health: Health{Verdict: c.Before, Since: c.Start}}
	for _, check := range c.Checks {
		full := check.WithDefaults()
		w.judges = append(w.judges, NewJudge(Rules{Rise: full.Rise, Fall: full.Fall}, c.Before))
	}
	w.notes, w.told = make([]string, len(c.Checks)), slices.Repeat([]time.Time{time.Now()}, len(c.Checks))
	return w
}

// Health returns what the checks say now.
func (w *Watch) Health() Health {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.health
}

// Run makes attempts until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	var checks sync.WaitGroup
	for i, c := range w.cfg.Checks {
		checks.Go(func() { w.look(ctx, i, c.WithDefaults()) })
	}
	checks.Wait()
}

// look makes the attempts of one check. Machines that were started together are not
// looked at together.
func (w *Watch) look(ctx context.Context, i int, c mesh.Check) {
	interval, timeout := time.Duration(c.Interval), time.Duration(c.Timeout)
	first := interval
	if c.Kind == mesh.CheckExec {
		first += timeout // its result comes from elsewhere
	} else if first = rand.N(min(interval, firstWithin)); w.cfg.Before == Unknown {
		first = 0 // it is waited for
	}
	timer := time.NewTimer(first)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if c.Kind == mesh.CheckExec {
			w.missed(i, c)
		} else if err := w.attempt(ctx, timeout, c); ctx.Err() == nil {
			w.noted(i, c, err, time.Now())
		}
		next := interval
		if w.eager(i) {
			next = min(interval, eagerly)
		}
		timer.Reset(next)
	}
}

// How attempts are spread: the first one within this, and those of a machine that has
// not passed yet so often, for its names wait.
const (
	firstWithin = time.Second
	eagerly     = 500 * time.Millisecond
	eagerFor    = time.Minute
)

// eager reports whether somebody waits for the check's first success.
func (w *Watch) eager(i int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.judges[i].Passed() && time.Since(w.cfg.Start) < eagerFor
}

func (w *Watch) attempt(ctx context.Context, timeout time.Duration, c mesh.Check) error {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := Attempt(bounded, w.cfg.Dial, c, w.cfg.Addr)
	if err != nil && errors.Is(bounded.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s", timeout)
	}
	return err
}

// Told takes what a command said: check i, and why it failed, nil if it did not. It
// is false if there is no such check.
func (w *Watch) Told(i int, failure error, now time.Time) bool {
	if i < 0 || i >= len(w.cfg.Checks) || w.cfg.Checks[i].Kind != mesh.CheckExec {
		return false
	}
	w.mu.Lock()
	w.told[i] = now
	w.mu.Unlock()
	w.noted(i, w.cfg.Checks[i].WithDefaults(), failure, now)
	return true
}

// missed counts a command of which nothing was heard for longer than it may take.
func (w *Watch) missed(i int, c mesh.Check) {
	now := time.Now()
	w.mu.Lock()
	last := w.told[i]
	w.mu.Unlock()
	if silent := now.Sub(last); silent > 2*time.Duration(c.Interval)+time.Duration(c.Timeout) {
		w.noted(i, c, errors.New("the command did not end in time, or nobody runs it"), now)
	}
}

// noted takes the outcome of one attempt. In its grace a machine cannot fail.
func (w *Watch) noted(i int, c mesh.Check, failure error, now time.Time) {
	if failure != nil && now.Sub(w.cfg.Start) < time.Duration(c.Grace) {
		return
	}
	w.mu.Lock()
	w.notes[i] = ""
	if failure != nil {
		w.notes[i] = fmt.Sprintf("%s: %v", c, failure)
	}
	w.judges[i] = w.judges[i].Next(failure == nil, now)
	is := w.together(now)
	changed := is.Verdict != w.health.Verdict
	if changed {
		w.health = is
	}
	w.mu.Unlock()
	if changed && w.cfg.Changed != nil {
		w.cfg.Changed()
	}
}

// together is what all checks say; w.mu is held. One that fails is enough, and all
// have to pass.
func (w *Watch) together(now time.Time) Health {
	h := Health{Verdict: Passing, Since: now}
	for i, j := range w.judges {
		switch {
		case j.Verdict() == Failing:
			return Health{Verdict: Failing, Since: now, Note: w.notes[i]}
		case j.Verdict() == Unknown:
			h.Verdict = Unknown
		}
	}
	return h
}
