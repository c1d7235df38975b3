package agent

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// signal tells any number of waiters that something changed. A waiter takes the
// channel first and looks second, so that no change is missed.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu; closed by fire
}

// C returns a channel that is closed by the next fire.
func (s *signal) C() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// problems is what is wrong now, a sentence each, for Status.
type problems struct {
	mu sync.Mutex
	at map[string]string // guarded by mu
}

// set replaces the sentence of one cause ("": it is over) and reports whether
// that is news.
func (p *problems) set(cause, sentence string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at[cause] == sentence {
		return false
	}
	if p.at == nil {
		p.at = map[string]string{}
	}
	if sentence == "" {
		delete(p.at, cause)
	} else {
		p.at[cause] = sentence
	}
	return true
}

// err is set with the text of an error, or none.
func (p *problems) err(cause string, err error) bool {
	if err == nil {
		return p.set(cause, "")
	}
	return p.set(cause, err.Error())
}

func (p *problems) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, cause := range slices.Sorted(maps.Keys(p.at)) {
		out = append(out, p.at[cause])
	}
	return out
}

// wait waits for d, an end of ctx or a wake-up. It is false when ctx has ended.
func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

// backoff is a growing wait with jitter, so that a thousand agents do not come
// back in one moment.
type backoff struct {
	first, most time.Duration
	next        time.Duration
}

func (b *backoff) reset() { b.next = 0 }

// step returns the next wait: between half and all of the current step.
func (b *backoff) step() time.Duration {
	b.next = min(max(2*b.next, b.first), b.most)
	return b.next/2 + rand.N(b.next/2+1)
}
