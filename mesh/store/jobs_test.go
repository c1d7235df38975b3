package store

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// elected waits until one of the stores does the jobs, and returns it.
func elected(t testing.TB, stores ...*Store) *Store {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for time.Now().Before(deadline) {
		for _, s := range stores {
			if s.Elected() {
				return s
			}
		}
		wait(t.Context(), 5*time.Millisecond)
	}
	t.Fatal("nobody is elected")
	return nil
}

func without(stores []*Store, one *Store) (out []*Store) {
	for _, s := range stores {
		if s != one {
			out = append(out, s)
		}
	}
	return out
}

// candidacies are the keys of those who stand for election.
func candidacies(t testing.TB, s *Store) (keys []string) {
	t.Helper()
	r, err := s.client.Get(t.Context(), s.root+keyElected+"/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range r.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

// One of three controllers does the jobs. When it ends, the next one is elected at
// once; when its lease is lost, it stops and another one goes on.
func TestOneDoesTheJobs(t *testing.T) {
	t.Parallel()
	first := newMesh(t, Config{PresenceTTL: 10 * time.Second})
	all := []*Store{first, again(t, first), again(t, first)}
	stops := map[*Store]func() error{}
	for _, s := range all {
		stops[s] = runFor(t, s)
	}
	now := elected(t, all...)
	eventuallyTrue(t, "three stand", func() bool { return len(candidacies(t, first)) == 3 })
	for _, s := range without(all, now) {
		if s.Elected() {
			t.Fatal("two are elected")
		}
	}

	// A graceful end resigns: nobody waits for the lease.
	began := time.Now()
	stops[now]()
	if took := time.Since(began); took > resignWithin+time.Second {
		t.Errorf("ending took %s", took)
	}
	if now.Elected() {
		t.Error("it has ended, and is elected")
	}
	left := without(all, now)
	then := elected(t, left...)
	if took := time.Since(began); took > 6*time.Second {
		t.Errorf("the next one was elected after %s: it waited for the lease", took)
	}

	// The lease is lost, as it is while the process is paused.
	eventuallyTrue(t, "two stand", func() bool { return len(candidacies(t, then)) == 2 })
	if _, err := then.client.Revoke(t.Context(), candidateLease(t, then, candidacies(t, then)[0])); err != nil {
		t.Fatal(err)
	}
	last := elected(t, without(left, then)...)
	eventuallyTrue(t, "the one without a lease stops", func() bool { return !then.Elected() })
	if !last.Elected() {
		t.Error("nobody does the jobs")
	}
	eventuallyTrue(t, "it stands again", func() bool { return len(candidacies(t, last)) == 2 })
}

// candidateLease is the lease of a candidacy, which its key is named after.
func candidateLease(t testing.TB, s *Store, key string) clientv3.LeaseID {
	t.Helper()
	return leaseOf(t, s, strings.TrimPrefix(key, s.root))
}

func eventuallyTrue(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
		wait(t.Context(), 5*time.Millisecond)
	}
}

// scriptedLease answers requests to keep a lease alive as a test says.
type scriptedLease struct {
	clientv3.Lease
	answer func(ctx context.Context) (*clientv3.LeaseKeepAliveResponse, error)
}

func (l scriptedLease) KeepAliveOnce(ctx context.Context, _ clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	return l.answer(ctx)
}

// A lease is taken for lost as soon as it may be: never later than etcd gives it
// to another.
func TestKeptLease(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	alive := &clientv3.LeaseKeepAliveResponse{TTL: 1}
	for _, tt := range []struct {
		name   string
		answer func(ctx context.Context, call int) (*clientv3.LeaseKeepAliveResponse, error)
		calls  int // that are answered well before
		within time.Duration
	}{
		{"etcd says that it is gone", func(context.Context, int) (*clientv3.LeaseKeepAliveResponse, error) {
			return nil, rpctypes.ErrLeaseNotFound
		}, 0, ttl / 2},
		{"etcd says so at the third request", func(_ context.Context, call int) (*clientv3.LeaseKeepAliveResponse, error) {
			if call < 2 {
				return alive, nil
			}
			return nil, rpctypes.ErrLeaseNotFound
		}, 2, ttl * 5 / 4},
		{"no answer", func(ctx context.Context, _ int) (*clientv3.LeaseKeepAliveResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, 0, ttl},
		{"errors", func(context.Context, int) (*clientv3.LeaseKeepAliveResponse, error) {
			return nil, rpctypes.ErrNoLeader
		}, 0, ttl},
		{"no answer after two", func(ctx context.Context, call int) (*clientv3.LeaseKeepAliveResponse, error) {
			if call < 2 {
				return alive, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}, 2, 2*ttl/3 + ttl},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			lease := keptLease{scriptedLease{answer: func(ctx context.Context) (*clientv3.LeaseKeepAliveResponse, error) {
				return tt.answer(ctx, int(calls.Add(1)-1))
			}}, ttl}
			began := time.Now()
			kept, err := lease.KeepAlive(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-kept:
			case <-time.After(10 * time.Second):
				t.Fatal("it is held for ever")
			}
			// Half a time-to-live of grace for a busy machine: with an error in the
			// reckoning it is a whole one or more.
			if took := time.Since(began); took > tt.within+ttl/2 {
				t.Errorf("held for %s, want at most %s", took, tt.within)
			}
			if n := int(calls.Load()); n < tt.calls {
				t.Errorf("%d requests, want more than %d", n, tt.calls)
			}
		})
	}
	t.Run("the caller ends it", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		kept, _ := keptLease{scriptedLease{answer: func(context.Context) (*clientv3.LeaseKeepAliveResponse, error) { return alive, nil }}, ttl}.KeepAlive(ctx, 1)
		cancel()
		<-kept
	})
}
