package store

import (
	"context"
	"errors"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// cleanHost removes the machines of a host that is gone, keeps the addresses of the
// stable ones for them, calls off moves to it, and gives its clients another gateway.
func (s *Store) cleanHost(ctx context.Context, name string) (int64, error) {
	unlock, err := s.locks.lock(ctx, "clean/host/"+name)
	if err != nil {
		return 0, err
	}
	defer unlock()
	key := s.root + removingKey(name)
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(key)})
	if err != nil {
		return 0, err
	}
	kvs := r.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return r.Header.Revision, nil
	}
	state, err := s.at(ctx, r.Header.Revision)
	if err != nil {
		return 0, err
	}
	// Nothing can be put on the host any more, so what this state has on it is all.
	machines, clients := state.MachinesOn(name), state.ClientsAt(name)
	var last int64
	for chunk := range slices.Chunk(movingTo(state, name), page) {
		if last, err = s.change(ctx, "", func(ctx context.Context, t *tx) error { return t.callOff(ctx, name, chunk) }); err != nil {
			return last, err
		}
	}
	for chunk := range slices.Chunk(machines, page) {
		if last, err = s.change(ctx, "", func(ctx context.Context, t *tx) error { return t.dropMachines(ctx, name, chunk) }); err != nil {
			return last, err
		}
	}
	for chunk := range slices.Chunk(clients, page) {
		if last, err = s.change(ctx, "", func(ctx context.Context, t *tx) error { return t.moveClients(ctx, name, chunk) }); err != nil {
			return last, err
		}
	}
	done, err := s.commit(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", kvs[0].ModRevision)}, deletes(key))
	if err != nil {
		return last, err
	}
	if done.Succeeded {
		s.log.Info("host removed", "host", name, "machines", len(machines), "clients", len(clients), "rev", done.Header.Revision)
	}
	return done.Header.Revision, nil
}

func (t *tx) dropMachines(ctx context.Context, host string, machines []mesh.Machine) error {
	keys := []string{removingKey(host)}
	for _, m := range machines {
		keys = append(keys, machineKey(m.Org, m.ID), reservationKey(m.Org, mesh.KindMachine, m.ID))
	}
	if err := t.fetch(ctx, keys...); err != nil || t.seen[removingKey(host)] == nil {
		return err
	}
	plan, err := t.s.needPlan(ctx)
	if err != nil {
		return err
	}
	for _, m := range machines {
		now, there, err := get[mesh.Machine](ctx, t, machineKey(m.Org, m.ID))
		if err != nil {
			return err
		}
		if !there || now.Host != host {
			continue
		}
		if err := t.dropMachine(ctx, plan, now); err != nil {
			return err
		}
	}
	return nil
}

func movingTo(state mesh.State, host string) (machines []mesh.Machine) {
	for _, m := range state.Machines.All() {
		if m.Next == host {
			machines = append(machines, m)
		}
	}
	return machines
}

// callOff undoes the preparation of moves to a host that is gone.
func (t *tx) callOff(ctx context.Context, host string, machines []mesh.Machine) error {
	keys := []string{removingKey(host)}
	for _, m := range machines {
		keys = append(keys, machineKey(m.Org, m.ID))
	}
	if err := t.fetch(ctx, keys...); err != nil || t.seen[removingKey(host)] == nil {
		return err
	}
	for _, m := range machines {
		now, there, err := get[mesh.Machine](ctx, t, machineKey(m.Org, m.ID))
		if err != nil {
			return err
		}
		if !there || now.Next != host {
			continue
		}
		now.Next = ""
		if err := t.put(machineKey(m.Org, m.ID), now); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) moveClients(ctx context.Context, host string, clients []mesh.Client) error {
	keys := []string{removingKey(host)}
	for _, c := range clients {
		keys = append(keys, clientKey(c.Org, c.Name))
	}
	if err := t.fetch(ctx, keys...); err != nil || t.seen[removingKey(host)] == nil {
		return err
	}
	state, err := t.s.at(ctx, t.rev)
	if err != nil {
		return err
	}
	for _, c := range clients {
		now, there, err := get[mesh.Client](ctx, t, clientKey(c.Org, c.Name))
		if err != nil {
			return err
		}
		if !there || now.Gateway != host {
			continue
		}
		now.Gateway, err = chooseGateway(state, c.Org, c.Name)
		if err != nil && !errors.Is(err, ErrConflict) {
			return err
		}
		if now.Gateway != "" {
			if _, err := t.host(ctx, now.Gateway); errors.Is(err, ErrNotFound) {
				return errAgain
			} else if err != nil {
				return err
			}
		}
		now.Generation++
		if err := t.put(clientKey(c.Org, c.Name), now); err != nil {
			return err
		}
	}
	return nil
}
