package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// A move makes before it breaks:
//
//	on A -- CreateMachine with Move, by B --> on A, Next B -- MoveMachine, by B --> on B
//	  ^                                          |
//	  '-- CancelMove, B removed, given up -------'
//
// Generation tells the records apart: MoveMachine raises it, nothing else does.

// movePatience is how long a move may stay prepared.
const movePatience = 2 * time.Minute

// prepareMove makes host the next one of a machine that is on another one.
func (t *tx) prepareMove(m mesh.Machine, host mesh.Host, spec MachineSpec) (mesh.Machine, error) {
	name := m.Org + "/" + m.ID
	switch {
	case !spec.Move:
		return m, mesh.WithHint(fmt.Errorf("%w: it is on host %s", ErrExists, m.Host),
			"to take it over from there: weft run --move; else choose another name")
	case !m.Stable:
		return m, mesh.WithHint(fmt.Errorf("%w: it is on host %s and is not stable, so it cannot move", ErrConflict, m.Host),
			"end it there and start it here: it gets a new address; machines that are started with --name can move")
	case m.App != spec.App:
		return m, mesh.WithHint(fmt.Errorf("%w: it is on host %s, of app %s, not %s", ErrConflict, m.Host, m.App, spec.App),
			"what moves stays what it is; choose another name for a machine of another app")
	case spec.Endpoint.IsValid() && spec.Endpoint != m.Endpoint:
		return m, fmt.Errorf("%w: it is on host %s and has %s, not %s", ErrConflict, m.Host, m.Endpoint, spec.Endpoint)
	case m.Next == host.Name:
		return m, nil
	case m.Next != "":
		return m, mesh.WithHint(fmt.Errorf("%w: it is about to move from host %s to host %s", ErrConflict, m.Host, m.Next),
			"try again when it has moved, or in %s, when that is given up", movePatience)
	}
	if err := usable(host, spec); err != nil {
		return m, err
	}
	m.Next = host.Name
	m.Unlisted, m.Checks = spec.Unlisted, spec.Checks // as who takes it over says
	return m, errors.Join(t.put(machineKey(m.Org, m.ID), m), t.event("machine.prepare", name, "from "+m.Host+" to "+m.Next))
}

// MoveMachine completes the move of a machine to host, which CreateMachine with
// Move has prepared. generation is that of the prepared record; if it is not that any
// more, or another host is the next one, nothing happens and the error wraps
// ErrConflict. The same request again returns the machine as it is.
func (s *Store) MoveMachine(ctx context.Context, actor string, ref MachineRef, host string, generation uint64) (m mesh.Machine, rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, orgKey(ref.Org), hostKey(host), machineKey(ref.Org, ref.ID)); err != nil {
			return err
		}
		if m, err = t.machine(ctx, ref); err != nil {
			return err
		}
		if m.Host == host && m.Generation == generation+1 {
			return nil
		}
		if m.Next != host || m.Generation != generation {
			return notPrepared(m, host, generation)
		}
		if _, _, err := t.carrier(ctx, ref.Org, host); err != nil {
			return err
		}
		from := m.Host
		m.Host, m.Next, m.Generation = host, "", generation+1
		return errors.Join(t.put(machineKey(ref.Org, ref.ID), m), t.event("machine.move", ref.Org+"/"+ref.ID, "from "+from+" to "+host))
	})
	return result(m, rev, err, "move machine %s/%s to host %s", ref.Org, ref.ID, host)
}

func notPrepared(m mesh.Machine, host string, generation uint64) error {
	is := fmt.Sprintf("it is on host %s, generation %d", m.Host, m.Generation)
	if m.Next != "" {
		is += ", and about to move to host " + m.Next
	}
	return mesh.WithHint(fmt.Errorf("%w: a move of generation %d to it is not prepared: %s", ErrConflict, generation, is),
		"prepare it again: weft run --move on host %s", host)
}

// CancelMove undoes the preparation of a move to host. It wraps ErrNotFound if none
// is prepared.
func (s *Store) CancelMove(ctx context.Context, actor string, ref MachineRef, host string) (rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		m, err := t.machine(ctx, ref)
		if err == nil && m.Next != host {
			err = fmt.Errorf("a move to it: %w", ErrNotFound)
		}
		if err != nil {
			return err
		}
		return t.stays(m, "it does not go to "+host)
	})
	return removed(rev, err, "cancel the move of machine %s/%s to host %s", ref.Org, ref.ID, host)
}

// stays writes that a machine does not move.
func (t *tx) stays(m mesh.Machine, note string) error {
	m.Next = ""
	return errors.Join(t.put(machineKey(m.Org, m.ID), m), t.event("machine.stay", m.Org+"/"+m.ID, note))
}

// preparation is a move that stands prepared.
type preparation struct {
	next       string
	generation uint64
}

// waiting is what the job that gives up moves remembers. Times are this
// controller's own: clocks of two need not agree.
type waiting struct {
	mu    sync.Mutex
	moves map[string]waitingMove
}

type waitingMove struct {
	preparation
	since time.Time
}

// giveUpMoves undoes moves that have stood prepared for movePatience.
func (s *Store) giveUpMoves(ctx context.Context) error {
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	moves := map[string]waitingMove{}
	var errs []error
	for key, m := range s.State().Machines.All() {
		if m.Next == "" {
			continue
		}
		now := waitingMove{preparation{m.Next, m.Generation}, s.now()}
		if before, ok := w.moves[key]; ok && before.preparation == now.preparation {
			now = before
		}
		moves[key] = now
		if s.now().Sub(now.since) < movePatience {
			continue
		}
		if err := s.giveUpMove(ctx, m); err != nil {
			errs = append(errs, fmt.Errorf("give up the move of machine %s: %w", key, err))
		}
	}
	w.moves = moves
	return errors.Join(errs...)
}

func (s *Store) giveUpMove(ctx context.Context, was mesh.Machine) error {
	_, err := s.change(ctx, actorJobs, func(ctx context.Context, t *tx) error {
		m, there, err := get[mesh.Machine](ctx, t, machineKey(was.Org, was.ID))
		if err != nil || !there || m.Next != was.Next || m.Generation != was.Generation {
			return err
		}
		return t.stays(m, "the move to "+m.Next+" was given up")
	})
	return err
}
