package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// actorJobs is the actor of what nobody asked for: something's time was over.
const actorJobs = "controller"

// jobs are what one controller does now and then for all. Each is exact by what its
// transactions compare, and can be done twice.
func (s *Store) jobs() []job {
	return []job{
		{"remove clients that have expired", 10 * time.Second, s.ExpireClients},
		{"give up moves", 10 * time.Second, s.giveUpMoves},
		{"free addresses that were kept", time.Minute, s.FreeReservations},
		{"remove tokens that have expired", trimEvery, s.ExpireTokens},
		{"trim the audit log", trimEvery, s.trim},
	}
}

// Housekeep does all the periodic jobs once.
func (s *Store) Housekeep(ctx context.Context) error {
	var errs []error
	for _, j := range s.jobs() {
		if err := j.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", j.name, err))
		}
	}
	return errors.Join(errs...)
}

// ExpireClients removes the clients whose time is over.
func (s *Store) ExpireClients(ctx context.Context) error {
	var errs []error
	for _, c := range s.State().Clients.All() {
		if c.Expires.IsZero() || s.now().Before(c.Expires) {
			continue
		}
		if err := s.expireClient(ctx, c.Org, c.Name); err != nil {
			errs = append(errs, fmt.Errorf("remove expired client %s/%s: %w", c.Org, c.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) expireClient(ctx context.Context, org, name string) error {
	plan, err := s.needPlan(ctx)
	if err != nil {
		return err
	}
	_, err = s.change(ctx, actorJobs, func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, orgKey(org), clientKey(org, name), reservationKey(org, mesh.KindClient, name)); err != nil {
			return err
		}
		c, there, err := get[mesh.Client](ctx, t, clientKey(org, name))
		if err != nil || !there || c.Expires.IsZero() || s.now().Before(c.Expires) {
			return err
		}
		if _, err := t.liveOrg(ctx, org); err != nil {
			return nil // its removal does it
		}
		return errors.Join(t.dropClient(ctx, plan, c), t.event("client.expire", org+"/"+name, ""))
	})
	return err
}
