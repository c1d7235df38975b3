package dns

import (
	"fmt"
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Limits of what is remembered of failures (RFC 9520 section 3.2 allows 1 s to
// 5 min). Most people would rather wait a second too long for a name that works
// again, so the most is short.
const (
	failureEntries = 8192
	failureFirst   = time.Second
	failureMost    = 10 * time.Second
)

// failures remembers which server could not answer which question: it is not asked
// that again for a while, which doubles as long as it goes on. It is safe for
// concurrent use.
type failures struct {
	entries *lru.Cache[failedQuestion, failure]
	now     func() time.Time
}

type failedQuestion struct {
	key    string
	server netip.AddrPort
}

type failure struct {
	noted, until time.Time
}

func newFailures(entries int, now func() time.Time) (*failures, error) {
	c, err := lru.New[failedQuestion, failure](entries)
	if err != nil {
		return nil, fmt.Errorf("cache of failures: %w", err)
	}
	return &failures{c, now}, nil
}

// known reports whether a server is not to be asked a question now.
func (f *failures) known(key string, server netip.AddrPort) bool {
	e, ok := f.entries.Get(failedQuestion{key, server})
	if !ok {
		return false
	}
	now := f.now()
	return !now.Before(e.noted) && now.Before(e.until) // a clock that went back forgets
}

// note remembers a failure, for most at the longest. One that is remembered already
// is the same one: of attempts at one time, one counts.
func (f *failures) note(key string, server netip.AddrPort, most time.Duration) {
	q, now, pause := failedQuestion{key, server}, f.now(), failureFirst
	if e, ok := f.entries.Get(q); ok && !now.Before(e.noted) {
		switch over := now.Sub(e.until); {
		case over < 0:
			return
		case over < failureMost:
			pause = min(2*e.until.Sub(e.noted), most)
		}
	}
	f.entries.Add(q, failure{now, now.Add(pause)})
}

// forget is for a server that answered.
func (f *failures) forget(key string, server netip.AddrPort) {
	f.entries.Remove(failedQuestion{key, server})
}
