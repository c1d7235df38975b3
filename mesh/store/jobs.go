package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// job is done now and then by one controller of all. It must be exact by itself, by
// what its transactions compare: a controller that was stopped may not know for a
// moment that another has taken over.
type job struct {
	name  string
	every time.Duration
	run   func(context.Context) error
}

const (
	keyElected   = keyElection + "jobs" // below it the candidates, in the order of their coming
	electRetry   = time.Second          // after trouble with etcd
	resignWithin = 2 * time.Second      // once told to end
)

// keepJobs stands for election until ctx ends, and does the periodic jobs while it
// is elected:
//
//	candidate -- all before it are gone --> elected: jobs
//	    ^                                       |
//	    '------------ lease lost ---------------'
func (s *Store) keepJobs(ctx context.Context) {
	select {
	case <-s.Ready():
	case <-ctx.Done():
		return
	}
	trouble := false
	for ctx.Err() == nil {
		err := s.serveTerm(ctx)
		if ctx.Err() != nil {
			return
		}
		if (err != nil) != trouble {
			if trouble = err != nil; trouble {
				s.log.Warn("no part in the election for the periodic jobs", "err", err)
			}
		}
		if wait(ctx, electRetry) != nil {
			return
		}
	}
}

// serveTerm stands once, and returns when ctx or the lease has ended. The
// candidacy ends with it.
func (s *Store) serveTerm(ctx context.Context) error {
	// The session's own context outlives ctx by a moment, to resign in.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(resignWithin, cancel) })()

	ttl := max(s.config.PresenceTTL, time.Second)
	client := clientv3.NewCtxClient(base)
	client.KV, client.Watcher, client.Lease = s.client.KV, s.client.Watcher, keptLease{s.client.Lease, ttl}
	session, err := concurrency.NewSession(client, concurrency.WithTTL(int(ttl/time.Second)), concurrency.WithContext(base))
	if err != nil {
		return unavailable(ctx, err)
	}
	defer session.Close() // revokes the lease: the next one need not wait for its end

	term, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(session.Ctx(), end)()
	election := concurrency.NewElection(session, s.root+keyElected)
	if err := election.Campaign(term, s.candidate()); err != nil {
		return unavailable(ctx, err)
	}
	if term.Err() != nil { // it waited for longer than its own candidacy lasted
		return nil
	}
	s.elected.Store(true)
	defer s.elected.Store(false)
	s.log.Info("elected: this controller does the periodic jobs")
	s.work(term)
	if ctx.Err() == nil {
		s.log.Info("the lease was lost: another controller does the periodic jobs")
	}
	return nil
}

// candidate is what others can read about this one.
func (s *Store) candidate() string {
	r := &s.registration
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.record == nil {
		return ""
	}
	return r.record.Name
}

// Elected reports whether this controller does the periodic jobs.
func (s *Store) Elected() bool { return s.elected.Load() }

// work does the jobs, each at once and then at its interval, until ctx ends.
func (s *Store) work(ctx context.Context) {
	var all sync.WaitGroup
	for _, j := range s.allJobs() {
		all.Go(func() { s.repeat(ctx, j) })
	}
	all.Wait()
}

func (s *Store) allJobs() []job {
	return append(s.jobs(),
		job{"forget controllers that are gone", 10 * time.Minute, s.forgetControllers},
		job{"raise the stored format", 20 * time.Second, s.raiseSchema},
	)
}

func (s *Store) repeat(ctx context.Context, j job) {
	tick := time.NewTicker(j.every)
	defer tick.Stop()
	for {
		if err := j.run(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("periodic job", "job", j.name, "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// keptLease keeps leases alive by one request at a time: the goroutines of a
// client's own KeepAlive live as long as the client.
type keptLease struct {
	clientv3.Lease
	ttl time.Duration
}

// KeepAlive implements clientv3.Lease. The channel is closed when the lease is
// lost, or when it may be: nothing confirmed it for as long as it lives.
func (l keptLease) KeepAlive(ctx context.Context, id clientv3.LeaseID) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
	kept := make(chan *clientv3.LeaseKeepAliveResponse)
	go func() {
		defer close(kept)
		tick := time.NewTicker(l.ttl / 3)
		defer tick.Stop()
		until := time.Now().Add(l.ttl)
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			asked := time.Now()
			bounded, cancel := context.WithDeadline(ctx, until)
			r, err := l.KeepAliveOnce(bounded, id)
			cancel()
			switch {
			case err == nil && r.TTL > 0:
				until = asked.Add(l.ttl)
			case err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) || !time.Now().Before(until):
				return
			}
		}
	}()
	return kept, nil
}
