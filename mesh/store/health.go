package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weftmesh/weft/mesh"
)

// SetHealth stores what host has observed of its machines. What is not so any more
// is passed over: a machine that is not on the host, that is gone, or of which the
// same is known. The first time that a machine passes starts it. Many are one
// transaction, as far as etcd takes that.
func (s *Store) SetHealth(ctx context.Context, actor, host string, seen []mesh.Health) (rev int64, err error) {
	for _, h := range seen {
		if err := errors.Join(mesh.CheckName("org", h.Org), mesh.CheckName("machine", h.Machine)); err != nil {
			return 0, invalid(err)
		}
	}
	for chunk := range slices.Chunk(seen, healthPage) {
		last, err := s.change(ctx, actor, func(ctx context.Context, t *tx) error { return t.setHealth(ctx, host, chunk) })
		if err != nil {
			return rev, fmt.Errorf("health of machines on host %s: %w", host, err)
		}
		rev = max(rev, last)
	}
	return rev, nil
}

// healthPage is how many machines share a transaction: three operations each, and
// two keys that are compared.
const healthPage = maxOps / 3

func (t *tx) setHealth(ctx context.Context, host string, seen []mesh.Health) error {
	var keys []string
	for _, h := range seen {
		keys = append(keys, machineKey(h.Org, h.Machine), healthKey(h.Org, h.Machine))
	}
	if err := t.fetch(ctx, keys...); err != nil {
		return err
	}
	done := map[string]bool{}
	for _, h := range slices.Backward(seen) { // the last word counts
		key := healthKey(h.Org, h.Machine)
		m, there, err := get[mesh.Machine](ctx, t, machineKey(h.Org, h.Machine))
		if err != nil {
			return err
		}
		if !there || m.Host != host || len(m.Checks) == 0 || done[key] {
			continue
		}
		done[key] = true
		was, known, err := get[mesh.Health](ctx, t, key)
		if err != nil {
			return err
		}
		if h.Passing && m.State == mesh.StateCreated {
			m.State = mesh.StateStarted
			if err := errors.Join(t.put(machineKey(m.Org, m.ID), m), t.event("machine.started", m.Org+"/"+m.ID, "its checks passed")); err != nil {
				return err
			}
		}
		if known && was.Passing == h.Passing {
			continue
		}
		h.Since, h.Note = h.Since.UTC(), cut(h.Note, mesh.MaxHealthNote)
		if err := t.put(key, h); err != nil {
			return err
		}
	}
	return nil
}

// cut is the first n bytes of a text, at a whole character.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	end := 0
	for i := range text {
		if i > n {
			break
		}
		end = i
	}
	return text[:end]
}
