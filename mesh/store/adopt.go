package store

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// After a restore, a host tells of the machines that it has had since the backup.
// Each gets the endpoint that it holds, if nobody else has it.
//
// That nobody else has it is seen in one state, and holds until the commit without
// looking at all others: an endpoint that is free comes into use only from the
// counter of its space or by another adoption, and both write the counter; or from
// those that rest, and then its key there goes; or from a reservation, and that of
// another name is refused here. So the counter and the key are compared.

// raiseStep is how many numbers that the counter jumps over rest by one transaction,
// raiseMost by all of one adoption.
const (
	raiseStep = 64
	raiseMost = 512
)

// adopt claims the endpoint that a machine holds. more says that the counter was
// only brought closer to it.
func (t *tx) adopt(ctx context.Context, plan ipam.Plan, org mesh.Org, host mesh.Host, spec MachineSpec) (more bool, err error) {
	parts, err := checkHeld(plan, org, host, spec)
	if err != nil {
		return false, err
	}
	state, err := t.s.at(ctx, t.rev)
	if err != nil {
		return false, err
	}
	if err := free(state, spec); err != nil {
		return false, err
	}
	space, slot := slots(parts.Network, parts.Host.Number), uint64(parts.Slot)
	next, err := t.spaceAt(ctx, space, slot, state.Revision.Revision)
	switch {
	case err != nil:
		return false, err
	case slot < next:
		return false, t.put(space.counter, next) // written, so that two adoptions meet
	case slot-next > raiseMost:
		return false, fmt.Errorf("%w: endpoint %s: its number is %d beyond those that were given there", ErrConflict, spec.Endpoint, slot-next)
	case slot-next > raiseStep:
		return true, t.raise(space, next, next+raiseStep)
	}
	return false, errors.Join(t.rests(space, next, slot), t.put(space.counter, slot+1))
}

// checkHeld refuses an endpoint that a host cannot have had for a machine.
func checkHeld(plan ipam.Plan, org mesh.Org, host mesh.Host, spec MachineSpec) (ipam.Parts, error) {
	parts, ok := plan.Parts(spec.Endpoint.Addr())
	switch {
	case !ok || parts.Network != org.Network:
		return parts, fmt.Errorf("%w: endpoint %s is not of org %s's network %s", ErrConflict, spec.Endpoint, org.Name, plan.Network(org.Network))
	case parts.Slot == 0 || parts.Host.Number == 0 || parts.Host.Region == 0:
		return parts, fmt.Errorf("%w: endpoint %s is no machine's", ErrInvalid, spec.Endpoint)
	case !spec.Stable && parts.Host != host.Position():
		return parts, fmt.Errorf("%w: endpoint %s is not homed at host %s, and the machine is not stable", ErrConflict, spec.Endpoint, host.Name)
	}
	return parts, nil
}

// free refuses an endpoint that somebody else has in state.
func free(state mesh.State, spec MachineSpec) error {
	if key, held := state.AtEndpoint(spec.Endpoint); held {
		return fmt.Errorf("%w: endpoint %s belongs to %s", ErrConflict, spec.Endpoint, key)
	}
	for _, r := range state.Reserved.Prefix(spec.Org + "/") {
		if own := spec.Stable && r.Kind == mesh.KindMachine && r.Name == spec.ID; r.Endpoint == spec.Endpoint && !own {
			return fmt.Errorf("%w: endpoint %s is kept for %s %s", ErrConflict, spec.Endpoint, r.Kind, r.Name)
		}
	}
	return nil
}

// spaceAt reads a space of numbers as it was at revision rev: the next number that
// was never given. If number rests, it does not any more with this change.
func (t *tx) spaceAt(ctx context.Context, n numbers, number uint64, rev int64) (next uint64, err error) {
	r, err := t.read(ctx,
		clientv3.OpGet(t.s.root+n.counter, clientv3.WithRev(rev)),
		clientv3.OpGet(t.s.root+n.resting, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithRev(rev)))
	if compacted(err) {
		return 0, errAgain // the mirror has a newer state by now
	}
	if err != nil {
		return 0, err
	}
	for _, kv := range r[1].Kvs {
		if key, x := t.resting(n, kv); x == number {
			t.seen[key] = kv
			t.delete(key)
		}
	}
	return t.next(ctx, n, r[0].Kvs)
}

// raise gives up numbers that were never given, up to but without to.
func (t *tx) raise(n numbers, from, to uint64) error {
	return errors.Join(t.rests(n, from, to), t.put(n.counter, to))
}

// rests lets the numbers from from to to-1 rest: others that were lost in the same
// restore have the time to be told of.
func (t *tx) rests(n numbers, from, to uint64) (err error) {
	due := t.s.now().Add(t.s.config.SlotRest)
	for x := from; x < to && err == nil; x++ {
		err = t.put(restingKey(n.resting, due, x), struct{}{})
	}
	return err
}

// compacted reports that a revision is not there any more.
func compacted(err error) bool { return errors.Is(err, rpctypes.ErrCompacted) }
