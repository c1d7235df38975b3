package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// An endpoint is in exactly one of these places, and every step is one
// transaction:
//
//	never given -- take --> machine, client -- stable: keep --> reservation
//	(the counter)             ^    ^   |                          |     |
//	                    take  |    '---|------- takeBack ---------'     | due
//	                          |        v                                v
//	                          '----- rests <----------------------------'

// keep writes a reservation in place of the record that goes.
func (t *tx) keep(ctx context.Context, plan ipam.Plan, r mesh.Reservation) error {
	key := reservationKey(r.Org, r.Kind, r.Name)
	old, there, err := get[mesh.Reservation](ctx, t, key)
	if err != nil {
		return err
	}
	if there && old.Endpoint != r.Endpoint {
		// That of an earlier one of this name, which this one did not take back.
		err = t.rest(plan, old)
	}
	return errors.Join(err, t.put(key, r))
}

// rest lets the slot of a reservation's endpoint rest.
func (t *tx) rest(plan ipam.Plan, r mesh.Reservation) error {
	parts, _ := plan.Parts(r.Endpoint.Addr())
	return t.giveSlot(parts)
}

// takeBack returns what is kept for a name, and deletes it: the transaction gives
// the endpoint to the name.
func (t *tx) takeBack(ctx context.Context, plan ipam.Plan, org mesh.Org, kind, name string) (r mesh.Reservation, err error) {
	key := reservationKey(org.Name, kind, name)
	r, there, err := get[mesh.Reservation](ctx, t, key)
	if err != nil || !there {
		return mesh.Reservation{}, err
	}
	t.delete(key)
	if parts, _ := plan.Parts(r.Endpoint.Addr()); parts.Network != org.Network {
		return mesh.Reservation{}, nil // of an org of that name that is gone
	}
	return r, nil
}

// FreeReservations lets the addresses rest that were kept for long enough.
func (s *Store) FreeReservations(ctx context.Context) error {
	plan, err := s.needPlan(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range s.State().Reserved.All() {
		if s.now().Before(r.Until) {
			continue
		}
		if err := s.freeReservation(ctx, plan, r); err != nil {
			errs = append(errs, fmt.Errorf("free the address of %s %s/%s: %w", r.Kind, r.Org, r.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) freeReservation(ctx context.Context, plan ipam.Plan, r mesh.Reservation) error {
	key := reservationKey(r.Org, r.Kind, r.Name)
	_, err := s.change(ctx, actorJobs, func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, key, orgKey(r.Org)); err != nil {
			return err
		}
		now, there, err := get[mesh.Reservation](ctx, t, key)
		if err != nil || !there || s.now().Before(now.Until) {
			return err
		}
		if _, err := t.liveOrg(ctx, r.Org); err != nil {
			return nil // its removal does it
		}
		t.delete(key)
		return errors.Join(t.rest(plan, now), t.event("address.free", r.Org+"/"+r.Name, now.Endpoint.String()))
	})
	return err
}
