package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// presence is what this controller says about hosts: their streams are open
// here. It hangs on one lease, which Run keeps alive, so that it ends with the
// controller. When Run ends, the lease is left to expire: hosts that reconnect
// within its time, here or elsewhere, were never away.
type presence struct {
	mu      sync.Mutex // guards the fields below, not the requests
	lease   clientv3.LeaseID
	hosts   map[string]*present
	leaving bool // other controllers take the hosts over: nothing is withdrawn

	wake chan struct{} // something is left to do
}

type present struct {
	controller string
	streams    int  // 0: to be withdrawn
	written    bool // under the current lease
	turn       int  // counts what made it unwritten: a write that began before does not count
	renewed    bool // the lease was lost meanwhile: if another controller has the host now, it stays there
}

func (e *present) unwrite() {
	e.written = false
	e.turn++
}

// Present says that a stream of host is open at controller. Calls are counted:
// each needs one Absent, so a host that reconnects before its old stream has ended
// stays present. On an error it is not known to others yet, and Run goes on trying.
func (s *Store) Present(ctx context.Context, host, controller string) error {
	p := &s.presence
	p.mu.Lock()
	e := p.hosts[host]
	if e == nil {
		e = &present{}
		p.hosts[host] = e
	}
	e.streams++
	// Back from another controller, whose end must not take it away from here.
	if now, _ := s.State().Presence.Get(host); e.controller != controller || now.Controller != controller {
		e.controller = controller
		e.unwrite()
	}
	e.renewed = false
	p.mu.Unlock()
	if err := s.settle(ctx, host); err != nil {
		s.wakePresence()
		return fmt.Errorf("announce host %s: %w", host, err)
	}
	return nil
}

// Absent ends what one Present began. The presence of a host that has meanwhile
// connected to another controller is left alone. On an error Run goes on trying.
func (s *Store) Absent(ctx context.Context, host, controller string) error {
	p := &s.presence
	p.mu.Lock()
	e := p.hosts[host]
	if e != nil && e.streams > 0 {
		e.streams--
	}
	p.mu.Unlock()
	if err := s.settle(ctx, host); err != nil {
		s.wakePresence()
		return fmt.Errorf("withdraw host %s from %s: %w", host, controller, err)
	}
	return nil
}

// current is the lease, 0 if there is none.
func (p *presence) current() clientv3.LeaseID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lease
}

// handOver leaves presence to others, if there are any, from now on.
func (p *presence) handOver(others bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaving = others
}

func (s *Store) wakePresence() {
	select {
	case s.presence.wake <- struct{}{}:
	default:
	}
}

// settle makes what is written about host what is wanted.
func (s *Store) settle(ctx context.Context, host string) error {
	unlock, err := s.locks.lock(ctx, presenceKey(host))
	if err != nil {
		return err
	}
	defer unlock()
	p := &s.presence
	p.mu.Lock()
	var want present
	e := p.hosts[host]
	if e != nil {
		want = *e
	}
	lease, leaving := p.lease, p.leaving
	p.mu.Unlock()
	switch {
	case e == nil || want.streams > 0 && want.written:
		return nil
	case lease == 0 && want.streams > 0:
		return errNoLease
	case want.streams > 0:
		err = s.announce(ctx, host, want, lease)
	case lease != 0 && !leaving:
		err = s.withdraw(ctx, host, lease)
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case want.streams > 0:
		e.written = e.turn == want.turn
	case e.streams == 0:
		delete(p.hosts, host)
	default:
		e.unwrite() // a new stream came while the old one was withdrawn
		s.wakePresence()
	}
	return nil
}

// announce writes presence for a host that is there. Whose stream came last has it.
func (s *Store) announce(ctx context.Context, host string, want present, lease clientv3.LeaseID) error {
	text, err := json.Marshal(mesh.Presence{Host: host, Controller: want.controller})
	if err != nil {
		return err
	}
	key := s.root + presenceKey(host)
	compares := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(s.root+hostKey(host)), ">", 0)}
	if want.renewed {
		rev, taken, err := s.presentElsewhere(ctx, host, want.controller)
		if err != nil || taken {
			return err
		}
		compares = append(compares, clientv3.Compare(clientv3.ModRevision(key), "=", rev))
	}
	_, err = s.commit(ctx, compares, []clientv3.Op{clientv3.OpPut(key, string(text), clientv3.WithLease(lease))})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		s.wakePresence()
		return fmt.Errorf("%w: the lease of this controller has expired", ErrUnavailable)
	}
	return err
}

// presentElsewhere reports whether a host is present at another controller, and the
// revision of what says so.
func (s *Store) presentElsewhere(ctx context.Context, host, controller string) (rev int64, taken bool, err error) {
	found, err := s.list(ctx, presenceKey(host), 1)
	if err != nil || len(found) == 0 || string(found[0].Key) != s.root+presenceKey(host) {
		return 0, false, err
	}
	var p mesh.Presence
	taken = json.Unmarshal(found[0].Value, &p) == nil && p.Controller != controller
	return found[0].ModRevision, taken, nil
}

// withdraw deletes presence if it is still this controller's.
func (s *Store) withdraw(ctx context.Context, host string, lease clientv3.LeaseID) error {
	key := s.root + presenceKey(host)
	ours := clientv3.Compare(clientv3.LeaseValue(key), "=", lease)
	_, err := s.commit(ctx, []clientv3.Cmp{ours}, deletes(key))
	return err
}

// keepPresence keeps the lease alive and everything written, until ctx ends or the
// controller may not go on, which it says why.
func (s *Store) keepPresence(ctx context.Context) error {
	ttl := max(s.config.PresenceTTL, time.Second)
	tick := time.NewTicker(ttl / 3)
	defer tick.Stop()
	trouble := false
	for {
		err := s.renew(ctx, ttl)
		if err == nil {
			err = s.settleRegistration(ctx)
		}
		if errors.Is(err, ErrFormat) {
			return err
		}
		if err == nil {
			err = s.settleAll(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if (err != nil) != trouble {
			if trouble = err != nil; trouble {
				s.log.Warn("presence of hosts cannot be kept", "err", err)
			} else {
				s.log.Info("presence of hosts is kept again")
			}
		}
		select {
		case <-tick.C:
		case <-s.presence.wake:
			// Not at once: what failed a moment ago would fail again.
			if wait(ctx, min(ttl/10, 200*time.Millisecond)) != nil {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// renew keeps the lease, or takes a new one if it has expired. One request each
// time, and no KeepAlive channel, whose goroutines would outlive Run.
func (s *Store) renew(ctx context.Context, ttl time.Duration) error {
	p := &s.presence
	p.mu.Lock()
	lease := p.lease
	p.mu.Unlock()
	bounded, cancel := context.WithTimeout(ctx, min(s.config.Timeout, ttl))
	defer cancel()
	if lease != 0 {
		_, err := s.client.KeepAliveOnce(bounded, lease)
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return unavailable(ctx, err)
		}
	}
	granted, err := s.client.Grant(bounded, int64(ttl/time.Second))
	if err != nil {
		return unavailable(ctx, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lease = granted.ID
	for _, e := range p.hosts {
		e.unwrite()
		e.renewed = true
	}
	return nil
}

// settleAll writes what is not written yet, or is gone.
func (s *Store) settleAll(ctx context.Context) error {
	p := &s.presence
	state, current := s.State(), s.Age() < max(s.config.PresenceTTL, time.Second)/3
	p.mu.Lock()
	for host, e := range p.hosts {
		// Another controller had the host, and has it no more; here its stream is open.
		if current && e.streams > 0 && !state.Presence.Has(host) {
			e.unwrite()
		}
	}
	hosts := slices.Sorted(maps.Keys(p.hosts))
	p.mu.Unlock()
	var errs []error
	for _, host := range hosts {
		if err := s.settle(ctx, host); err != nil {
			errs = append(errs, fmt.Errorf("host %s: %w", host, err))
		}
		if len(errs) >= 3 {
			break
		}
	}
	return errors.Join(errs...)
}
