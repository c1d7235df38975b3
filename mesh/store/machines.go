package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/weftmesh/weft/mesh"
)

// MachineSpec describes a new machine.
type MachineSpec struct {
	Org    string
	App    string // created if it is not there
	ID     string // "": drawn, 14 hexadecimal digits
	Group  string
	Meta   map[string]string
	Host   string // where it is
	Stable bool
}

// MachineRef names a machine. Host, unless empty, is where it must be: otherwise
// the change is refused with ErrConflict.
type MachineRef struct{ Org, ID, Host string }

// Limits of a machine's metadata: it goes to every host that carries the org.
const (
	maxMeta      = 32
	maxMetaKey   = 63
	maxMetaValue = 255
)

// CreateMachine creates a machine on a host that may carry its org, gives it an
// address there, and creates its app if it is the first of it.
func (s *Store) CreateMachine(ctx context.Context, actor string, spec MachineSpec) (m mesh.Machine, rev int64, err error) {
	if spec.ID == "" {
		if spec.ID, err = s.draw(7); err != nil {
			return m, 0, err
		}
	}
	if err := checkMachine(spec); err != nil {
		return m, 0, invalid(err)
	}
	plan, err := s.needPlan(ctx)
	if err != nil {
		return m, 0, fmt.Errorf("create machine %s/%s: %w", spec.Org, spec.ID, err)
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if err := t.alone(ctx, "slots/"+spec.Org+"/"+spec.Host); err != nil {
			return err
		}
		app := appKey(spec.Org, spec.App)
		if err := t.fetch(ctx, orgKey(spec.Org), hostKey(spec.Host), app, machineKey(spec.Org, spec.ID)); err != nil {
			return err
		}
		org, host, err := t.carrier(ctx, spec.Org, spec.Host)
		if err != nil {
			return err
		}
		if host.Cordoned {
			return fmt.Errorf("host %s: %w: it is cordoned", host.Name, ErrConflict)
		}
		if _, there, err := get[mesh.Machine](ctx, t, machineKey(spec.Org, spec.ID)); err != nil || there {
			return errors.Join(err, only(there, ErrExists))
		}
		slot, err := t.take(ctx, slots(org.Network, host.Number))
		if err != nil {
			return err
		}
		m = mesh.Machine{
			Org: spec.Org, ID: spec.ID, App: spec.App, Group: spec.Group, Meta: spec.Meta, Host: spec.Host,
			Endpoint: plan.Endpoint(org.Network, host.Position(), uint16(slot)),
			Stable:   spec.Stable, State: mesh.StateStarted, Created: s.now(),
		}
		if t.seen[app] == nil {
			err = t.put(app, mesh.App{Org: spec.Org, Name: spec.App})
		}
		return errors.Join(err, t.put(machineKey(m.Org, m.ID), m), t.event("machine.create", m.Org+"/"+m.ID, ""))
	})
	return result(m, rev, err, "create machine %s/%s", spec.Org, spec.ID)
}

// carrier returns an org that lives and a host that may carry it.
func (t *tx) carrier(ctx context.Context, org, host string) (mesh.Org, mesh.Host, error) {
	o, err := t.liveOrg(ctx, org)
	if err != nil {
		return o, mesh.Host{}, err
	}
	h, err := t.host(ctx, host)
	if err == nil && !h.MayCarry(org) {
		err = fmt.Errorf("host %s: %w: it may not carry org %s", host, ErrConflict, org)
	}
	return o, h, err
}

func checkMachine(spec MachineSpec) error {
	if err := mesh.CheckName("machine", spec.ID); err != nil {
		return err
	}
	if err := mesh.CheckName("app", spec.App); err != nil {
		return err
	}
	if spec.Group != "" {
		if err := mesh.CheckName("group", spec.Group); err != nil {
			return err
		}
	}
	if len(spec.Meta) > maxMeta {
		return fmt.Errorf("machine %s: it has more than %d pairs of metadata", spec.ID, maxMeta)
	}
	for k, v := range spec.Meta {
		if k == "" || len(k) > maxMetaKey || len(v) > maxMetaValue {
			return fmt.Errorf("machine %s: metadata %q: a key has 1 to %d bytes, a value up to %d", spec.ID, k, maxMetaKey, maxMetaValue)
		}
	}
	return nil
}

// machine returns the machine that ref names.
func (t *tx) machine(ctx context.Context, ref MachineRef) (mesh.Machine, error) {
	m, there, err := get[mesh.Machine](ctx, t, machineKey(ref.Org, ref.ID))
	switch {
	case err != nil:
		return m, err
	case !there:
		return m, ErrNotFound
	case ref.Host != "" && m.Host != ref.Host:
		return m, fmt.Errorf("%w: it is not on host %s", ErrConflict, ref.Host)
	}
	return m, nil
}

// SetMachineState sets whether the machine runs: mesh.StateStarted or
// mesh.StateStopped.
func (s *Store) SetMachineState(ctx context.Context, actor string, ref MachineRef, state string) (m mesh.Machine, rev int64, err error) {
	if state != mesh.StateStarted && state != mesh.StateStopped {
		return m, 0, invalid(fmt.Errorf("machine %s/%s: there is no state %q", ref.Org, ref.ID, state))
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if m, err = t.machine(ctx, ref); err != nil || m.State == state {
			return err
		}
		m.State = state
		return errors.Join(t.put(machineKey(ref.Org, ref.ID), m), t.event("machine."+state, ref.Org+"/"+ref.ID, ""))
	})
	return result(m, rev, err, "set machine %s/%s", ref.Org, ref.ID)
}

// RemoveMachine removes a machine. Its address rests before it is given again.
func (s *Store) RemoveMachine(ctx context.Context, actor string, ref MachineRef) (rev int64, err error) {
	plan, err := s.needPlan(ctx)
	if err != nil {
		return 0, fmt.Errorf("remove machine %s/%s: %w", ref.Org, ref.ID, err)
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		m, err := t.machine(ctx, ref)
		if err != nil {
			return err
		}
		parts, _ := plan.Parts(m.Endpoint.Addr())
		t.delete(machineKey(ref.Org, ref.ID))
		return errors.Join(t.giveSlot(parts), t.event("machine.remove", ref.Org+"/"+ref.ID, ""))
	})
	return removed(rev, err, "remove machine %s/%s", ref.Org, ref.ID)
}
