package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// CreateOrg creates an org and gives it a network that no org ever had.
func (s *Store) CreateOrg(ctx context.Context, actor, name string) (org mesh.Org, rev int64, err error) {
	if err := mesh.CheckName("org", name); err != nil {
		return org, 0, invalid(err)
	}
	plan, err := s.needPlan(ctx)
	if err != nil {
		return org, 0, fmt.Errorf("create org %s: %w", name, err)
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if err := t.alone(ctx, "networks"); err != nil {
			return err
		}
		old, there, err := get[mesh.Org](ctx, t, orgKey(name))
		switch {
		case err != nil:
			return err
		case there && old.Tombstone:
			return fmt.Errorf("%w: an org of this name is still being removed; try again in a moment", ErrConflict)
		case there:
			return ErrExists
		}
		network, err := t.take(ctx, s.networks(plan))
		if err != nil {
			return err
		}
		org = mesh.Org{Name: name, Network: network, Created: s.now()}
		return errors.Join(t.put(orgKey(name), org), t.event("org.create", name, ""))
	})
	return result(org, rev, err, "create org %s", name)
}

// RemoveOrg removes an org and everything in it. It is cut off in one
// transaction, by a tombstone; then the rest is cleaned up, and if that is
// interrupted, Run goes on with it.
func (s *Store) RemoveOrg(ctx context.Context, actor, name string) (rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		org, there, err := get[mesh.Org](ctx, t, orgKey(name))
		switch {
		case err != nil:
			return err
		case !there:
			return ErrNotFound
		case org.Tombstone:
			return nil
		}
		org.Tombstone = true
		return errors.Join(t.put(orgKey(name), org), t.event("org.remove", name, ""))
	})
	if err != nil {
		return 0, fmt.Errorf("remove org %s: %w", name, err)
	}
	return s.finish(ctx, rev, "org", name, s.cleanOrg), nil
}

// liveOrg returns the org, which must be there and not be being removed.
func (t *tx) liveOrg(ctx context.Context, name string) (mesh.Org, error) {
	org, there, err := get[mesh.Org](ctx, t, orgKey(name))
	switch {
	case err != nil:
		return org, err
	case !there:
		return org, fmt.Errorf("org %s: %w", name, ErrNotFound)
	case org.Tombstone:
		return org, fmt.Errorf("org %s: %w: it is being removed", name, ErrConflict)
	}
	return org, nil
}

// CreateRegion creates a region; at, where known, places its number.
func (s *Store) CreateRegion(ctx context.Context, actor, name string, at *mesh.Point) (region mesh.Region, rev int64, err error) {
	if err := mesh.CheckName("region", name); err != nil {
		return region, 0, invalid(err)
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if err := t.alone(ctx, "regions"); err != nil {
			return err
		}
		r, err := t.read(ctx, clientv3.OpGet(s.root+keyRegions, clientv3.WithPrefix()))
		if err != nil {
			return err
		}
		t.unchanged(keyRegions, r[0].Header.Revision)
		used := map[uint8]bool{}
		for _, kv := range r[0].Kvs {
			object, err := decode(string(kv.Key)[len(s.root):], kv.Value, s.plan())
			if err != nil {
				return fmt.Errorf("stored value of %s: %w", kv.Key, err)
			}
			used[object.(mesh.Region).Number] = true
		}
		if _, there, err := get[mesh.Region](ctx, t, regionKey(name)); err != nil || there {
			return errors.Join(err, only(there, ErrExists))
		}
		var continent ipam.Continent
		if at != nil {
			continent = ipam.ContinentOf(at.Latitude, at.Longitude)
		}
		number, err := ipam.NextRegion(continent, func(n uint8) bool { return used[n] })
		if err != nil {
			return mesh.WithHint(fmt.Errorf("%w: %w", ErrFull, err), "remove one that has no hosts any more: weft region remove NAME")
		}
		region = mesh.Region{Name: name, Number: number, At: at}
		return errors.Join(t.put(regionKey(name), region), t.event("region.create", name, ""))
	})
	return result(region, rev, err, "create region %s", name)
}

// RemoveRegion removes a region that has no hosts.
func (s *Store) RemoveRegion(ctx context.Context, actor, name string) (rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if _, there, err := get[mesh.Region](ctx, t, regionKey(name)); err != nil || !there {
			return errors.Join(err, only(!there, ErrNotFound))
		}
		state, err := s.at(ctx, t.rev)
		if err != nil {
			return err
		}
		hosts := 0
		for _, h := range state.Hosts.All() {
			if h.Region == name {
				hosts++
			}
		}
		if hosts > 0 {
			return fmt.Errorf("%w: it has %s; remove those first", ErrConflict, count(hosts, "host"))
		}
		t.unchanged(keyHosts, state.Revision.Revision)
		t.delete(regionKey(name))
		return t.event("region.remove", name, "")
	})
	return removed(rev, err, "remove region %s", name)
}

// CreateApp creates an app before its first machine, with its settings.
func (s *Store) CreateApp(ctx context.Context, actor string, app mesh.App) (created mesh.App, rev int64, err error) {
	if err := app.Validate(); err != nil {
		return created, 0, invalid(err)
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, orgKey(app.Org), appKey(app.Org, app.Name)); err != nil {
			return err
		}
		if _, err := t.liveOrg(ctx, app.Org); err != nil {
			return err
		}
		if _, there, err := get[mesh.App](ctx, t, appKey(app.Org, app.Name)); err != nil || there {
			return errors.Join(err, only(there, ErrExists))
		}
		if err := t.unrecorded(ctx, app.Org, app.Name); err != nil {
			return err
		}
		return errors.Join(t.put(appKey(app.Org, app.Name), app), t.event("app.create", app.Org+"/"+app.Name, ""))
	})
	return result(app, rev, err, "create app %s/%s", app.Org, app.Name)
}

// unrecorded refuses an app of whose name the org has records: they would not be
// answered any more.
func (t *tx) unrecorded(ctx context.Context, org, app string) error {
	state, err := t.s.at(ctx, t.rev)
	if err != nil {
		return err
	}
	for _, r := range state.Records.Prefix(org + "/") {
		if r.App() == app {
			return mesh.WithHint(fmt.Errorf("%w: the org has its own record %s", ErrConflict, r.Name),
				"choose another name, or remove the record first: weft record remove --org %s %s", org, r.Name)
		}
	}
	return nil
}

// AppChange is what SetApp sets; nil fields stay.
type AppChange struct {
	Answer *string
	TTL    *int // seconds; 0: the default
}

// SetApp changes an app's settings. An app that exists only through its machines
// gets a record.
func (s *Store) SetApp(ctx context.Context, actor, org, name string, change AppChange) (app mesh.App, rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, orgKey(org), appKey(org, name)); err != nil {
			return err
		}
		if _, err := t.liveOrg(ctx, org); err != nil {
			return err
		}
		var there bool
		if app, there, err = get[mesh.App](ctx, t, appKey(org, name)); err != nil {
			return err
		}
		if !there {
			if there, err = t.hasMachines(ctx, org, name); err != nil || !there {
				return errors.Join(err, only(!there, ErrNotFound))
			}
			app = mesh.App{Org: org, Name: name}
		}
		was := app
		if change.Answer != nil {
			app.Answer = *change.Answer
		}
		if change.TTL != nil {
			app.TTL = *change.TTL
		}
		if err := app.Validate(); err != nil || app == was && t.seen[appKey(org, name)] != nil {
			return invalid(err)
		}
		return errors.Join(t.put(appKey(org, name), app), t.event("app.set", org+"/"+name, fmt.Sprintf("answer %s, ttl %d s",
			cmp.Or(app.Answer, mesh.AnswerNear), cmp.Or(app.TTL, mesh.DefaultTTL))))
	})
	return result(app, rev, err, "set app %s/%s", org, name)
}

// hasMachines reports whether there is a machine of an app.
func (t *tx) hasMachines(ctx context.Context, org, app string) (bool, error) {
	state, err := t.s.at(ctx, t.rev)
	if err != nil {
		return false, err
	}
	for _, m := range state.Machines.Prefix(org + "/") {
		if m.App == app {
			return true, nil
		}
	}
	return false, nil
}

// RemoveApp removes an app that has no machines.
func (s *Store) RemoveApp(ctx context.Context, actor, org, name string) (rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if _, there, err := get[mesh.App](ctx, t, appKey(org, name)); err != nil || !there {
			return errors.Join(err, only(!there, ErrNotFound))
		}
		state, err := s.at(ctx, t.rev)
		if err != nil {
			return err
		}
		machines := 0
		for _, m := range state.Machines.Prefix(org + "/") {
			if m.App == name {
				machines++
			}
		}
		if machines > 0 {
			return fmt.Errorf("%w: it has %s; remove those first", ErrConflict, count(machines, "machine"))
		}
		t.unchanged(machineKey(org, ""), state.Revision.Revision)
		t.delete(appKey(org, name))
		return t.event("app.remove", org+"/"+name, "")
	})
	return removed(rev, err, "remove app %s/%s", org, name)
}

// only returns err if on holds.
func only(on bool, err error) error {
	if on {
		return err
	}
	return nil
}

// result says on an error what failed and on what; what was created then is nothing.
func result[T any](v T, rev int64, err error, format string, args ...any) (T, int64, error) {
	if err != nil {
		var none T
		return none, 0, fmt.Errorf(format+": %w", append(args, err)...)
	}
	return v, rev, nil
}

func removed(rev int64, err error, format string, args ...any) (int64, error) {
	_, rev, err = result(struct{}{}, rev, err, format, args...)
	return rev, err
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
