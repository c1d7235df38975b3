package store

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// coordinateEvery is how often a host's coordinate, and its endpoint, is written at most: every host
// that shares an org with it is told. One that is much surer than what is stored does
// not wait: what a host tells when it joins is good for nothing, and it becomes surer
// a few times only.
const coordinateEvery = time.Minute

// placed remembers when this Store last wrote a host's coordinate, or endpoint.
type placed struct {
	mu sync.Mutex
	at map[string]time.Time
}

// due reports whether that of a host may be written now, and takes note.
func (p *placed) due(host string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, ok := p.at[host]; ok && now.Sub(last).Abs() < coordinateEvery {
		return false
	}
	maps.DeleteFunc(p.at, func(_ string, at time.Time) bool { return now.Sub(at).Abs() >= coordinateEvery })
	if p.at == nil {
		p.at = map[string]time.Time{}
	}
	p.at[host] = now
	return true
}

// forget takes a note back: nothing was written.
func (p *placed) forget(host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.at, host)
}

// SetCoordinate stores where a host is among round trips, if that is worth telling:
// it has Moved, and it is Surer or this Store has not stored one within the last
// minute.
func (s *Store) SetCoordinate(ctx context.Context, host string, c mesh.Coordinate) (rev int64, err error) {
	if err := c.Validate(); err != nil {
		return 0, invalid(fmt.Errorf("host %s: %w", host, err))
	}
	was, ok := s.State().Coordinates.Get(host)
	if ok && !was.Moved(c) || !s.placed.due(host, s.now()) && !(ok && was.Surer(c)) {
		return 0, nil
	}
	rev, err = s.change(ctx, "", func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, hostKey(host), coordinateKey(host)); err != nil {
			return err
		}
		if _, err := t.host(ctx, host); err != nil {
			return err
		}
		if was, ok, err := get[mesh.Coordinate](ctx, t, coordinateKey(host)); err != nil || ok && !was.Moved(c) {
			return err
		}
		return t.put(coordinateKey(host), c)
	})
	if err != nil {
		s.placed.forget(host)
		return 0, fmt.Errorf("coordinate of host %s: %w", host, err)
	}
	return rev, nil
}
