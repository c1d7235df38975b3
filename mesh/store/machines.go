package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftmesh/weft/ipam"
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
	Stable bool   // it keeps its endpoint on another host, and for a while after its end
	// Unlisted and Checks are described at mesh.Machine.
	Unlisted bool
	Checks   []mesh.Check
	// Move: if it is on another host, it is prepared to move to Host; see MoveMachine.
	Move bool
	// Endpoint, if valid, is the /112 that it holds already: controllers had given it,
	// and do not know it any more after a restore. It is given to it again, or nothing.
	Endpoint netip.Prefix
}

// MachineRef names a machine. Host, unless empty, is where it must be: otherwise
// the change is refused with ErrConflict.
type MachineRef struct{ Org, ID, Host string }

// Bounds of a machine's metadata: it goes to every host that carries the org. How
// many pairs there may be, the org's limits say, up to maxMeta.
const (
	maxMeta      = 256
	maxMetaKey   = 63
	maxMetaValue = 255
)

// CreateMachine creates a machine on a host that may carry its org, gives it an
// address there, and creates its app if it is the first of it. A stable one of a
// name that has a reservation gets the endpoint back that it had, wherever that is
// homed.
//
// The same request again returns the machine that is there and changes nothing: its
// answer may have been lost. (With other checks it sets those.) One that is on another host is ErrExists, or with
// spec.Move is prepared to come: then the machine returned is still there, and its
// Next is spec.Host.
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
	change := s.shared
	if spec.Move || spec.Endpoint.IsValid() {
		change = s.change
	}
	for again := true; again; {
		rev, err = change(ctx, actor, func(ctx context.Context, t *tx) error {
			var err error
			m, again, err = t.newMachine(ctx, plan, spec)
			return err
		})
		again = again && err == nil
	}
	return result(m, rev, err, "create machine %s/%s", spec.Org, spec.ID)
}

// newMachine writes a machine. more says that it only made room: it is to be
// called again.
func (t *tx) newMachine(ctx context.Context, plan ipam.Plan, spec MachineSpec) (m mesh.Machine, more bool, err error) {
	if err := t.alone(ctx, "slots/"+spec.Org+"/"+spec.Host); err != nil {
		return m, false, err
	}
	own, app := machineKey(spec.Org, spec.ID), appKey(spec.Org, spec.App)
	keys := []string{orgKey(spec.Org), hostKey(spec.Host), app, own}
	state := t.s.State()
	if !state.Machines.Has(spec.Org + "/" + spec.ID) {
		t.suppose(own)
	}
	if spec.Stable {
		kept := reservationKey(spec.Org, mesh.KindMachine, spec.ID)
		if !state.Reserved.Has(spec.Org + "/" + mesh.KindMachine + "/" + spec.ID) {
			t.suppose(kept)
		}
		keys = append(keys, kept)
	}
	if err := t.fetch(ctx, keys...); err != nil {
		return m, false, err
	}
	org, host, err := t.carrier(ctx, spec.Org, spec.Host)
	if err != nil {
		return m, false, err
	}
	old, there, err := get[mesh.Machine](ctx, t, own)
	switch {
	case err != nil:
		return m, false, err
	case there && old.Host == spec.Host:
		m, err = t.again(old, spec)
		return m, false, err
	case there:
		m, err = t.prepareMove(old, host, spec)
		return m, false, err
	}
	m = mesh.Machine{
		Org: spec.Org, ID: spec.ID, App: spec.App, Group: spec.Group, Meta: spec.Meta, Host: spec.Host,
		Stable: spec.Stable, Unlisted: spec.Unlisted, Checks: spec.Checks, State: mesh.StateStarted, Created: t.s.now(),
	}
	if len(m.Checks) > 0 {
		m.State = mesh.StateCreated
	}
	if state.Health.Has(spec.Org + "/" + spec.ID) {
		t.delete(healthKey(spec.Org, spec.ID)) // of an earlier one, which an older controller removed
	}
	if err := errors.Join(usable(host, spec), checkPairs(org, spec.Meta)); err != nil {
		return m, false, err
	}
	if err := t.room(ctx, org, kindMachines); err != nil {
		return m, false, err
	}
	note, more, err := t.place(ctx, plan, org, host, spec, &m)
	if more || err != nil {
		return m, more, err
	}
	if t.seen[app] == nil {
		err = t.put(app, mesh.App{Org: spec.Org, Name: spec.App})
	}
	return m, false, errors.Join(err, t.put(own, m), t.event("machine.create", m.Org+"/"+m.ID, note))
}

// place gives a machine its endpoint: the one that it holds, the one that is kept
// for its name, or a new one. more says that only room was made for it.
func (t *tx) place(ctx context.Context, plan ipam.Plan, org mesh.Org, host mesh.Host, spec MachineSpec, m *mesh.Machine) (note string, more bool, err error) {
	if spec.Endpoint.IsValid() {
		if more, err := t.adopt(ctx, plan, org, host, spec); more || err != nil {
			return "", more, err
		}
	}
	var kept mesh.Reservation
	if spec.Stable {
		if kept, err = t.takeBack(ctx, plan, org, mesh.KindMachine, spec.ID); err != nil {
			return "", false, err
		}
	}
	m.Generation = kept.Generation + 1
	switch {
	case spec.Endpoint.IsValid():
		m.Endpoint = spec.Endpoint
		if kept.Endpoint.IsValid() && kept.Endpoint != spec.Endpoint {
			err = t.rest(plan, kept)
		}
		return "it held " + spec.Endpoint.String(), false, err
	case kept.Endpoint.IsValid():
		m.Endpoint = kept.Endpoint
		return "it had " + kept.Endpoint.String(), false, nil
	}
	slot, err := t.take(ctx, slots(org.Network, host.Number))
	m.Endpoint = plan.Endpoint(org.Network, host.Position(), uint16(slot))
	return "", false, err
}

// again is what becomes of a machine that its host registers once more. Its checks,
// and whether it is listed, are as was said last.
func (t *tx) again(m mesh.Machine, spec MachineSpec) (mesh.Machine, error) {
	if !same(m, spec) {
		return m, existsHere(spec)
	}
	if m.Unlisted == spec.Unlisted && slices.Equal(m.Checks, spec.Checks) {
		return m, nil
	}
	m.Unlisted, m.Checks = spec.Unlisted, spec.Checks
	return m, errors.Join(t.put(machineKey(m.Org, m.ID), m), t.event("machine.set", m.Org+"/"+m.ID, ""))
}

// same reports whether a machine is what spec asks for.
func same(m mesh.Machine, spec MachineSpec) bool {
	return m.App == spec.App && m.Group == spec.Group && maps.Equal(m.Meta, spec.Meta) && m.Stable == spec.Stable &&
		(!spec.Endpoint.IsValid() || m.Endpoint == spec.Endpoint)
}

func existsHere(spec MachineSpec) error {
	return mesh.WithHint(fmt.Errorf("%w: it is on host %s, with another app, group, metadata or address", ErrExists, spec.Host),
		"choose another name, or remove that one first: weft machine remove --org %s %s", spec.Org, spec.ID)
}

// usable reports a host that takes no new machines. One that holds its endpoint
// already runs there.
func usable(host mesh.Host, spec MachineSpec) error {
	if !host.Cordoned || spec.Endpoint.IsValid() {
		return nil
	}
	return mesh.WithHint(fmt.Errorf("host %s: %w: it is cordoned", host.Name, ErrConflict),
		"choose another host, or take it back into service: weft host uncordon %s", host.Name)
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
	if err := mesh.ValidateChecks(spec.Checks); err != nil {
		return fmt.Errorf("machine %s: %w", spec.ID, err)
	}
	if len(spec.Meta) > maxMeta {
		return fmt.Errorf("machine %s: it has more than %d pairs of metadata", spec.ID, maxMeta)
	}
	if e := spec.Endpoint; e.IsValid() && (e.Bits() != ipam.EndpointBits || e.Masked() != e) {
		return fmt.Errorf("machine %s: endpoint %s is not a /%d", spec.ID, e, ipam.EndpointBits)
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

// MachineChange is what SetMachine sets; nil fields stay.
type MachineChange struct {
	State    *string // mesh.StateStarted, mesh.StateDraining or mesh.StateStopped
	Cordoned *bool
}

// SetMachine sets what somebody wants of a machine. It changes what its names
// answer, not what runs.
func (s *Store) SetMachine(ctx context.Context, actor string, ref MachineRef, change MachineChange) (m mesh.Machine, rev int64, err error) {
	wanted := []string{mesh.StateStarted, mesh.StateDraining, mesh.StateStopped}
	if change.State != nil && !slices.Contains(wanted, *change.State) {
		return m, 0, invalid(fmt.Errorf("machine %s/%s: state %q: want %s", ref.Org, ref.ID, *change.State, strings.Join(wanted, ", ")))
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if m, err = t.machine(ctx, ref); err != nil {
			return err
		}
		var events []string
		if c := change.State; c != nil && *c != m.State && !(*c == mesh.StateStarted && m.State == mesh.StateCreated) {
			m.State = *c
			events = append(events, "machine."+m.State)
		}
		if c := change.Cordoned; c != nil && *c != m.Cordoned {
			m.Cordoned = *c
			events = append(events, map[bool]string{true: "machine.cordon", false: "machine.uncordon"}[*c])
		}
		if len(events) == 0 {
			return nil
		}
		err := t.put(machineKey(ref.Org, ref.ID), m)
		for _, e := range events {
			err = errors.Join(err, t.event(e, ref.Org+"/"+ref.ID, ""))
		}
		return err
	})
	return result(m, rev, err, "set machine %s/%s", ref.Org, ref.ID)
}

// RemoveMachine removes a machine. The address of a stable one is kept for its
// name for a while (Config.AddressRest); any other rests before it is given again.
func (s *Store) RemoveMachine(ctx context.Context, actor string, ref MachineRef) (rev int64, err error) {
	plan, err := s.needPlan(ctx)
	if err != nil {
		return 0, fmt.Errorf("remove machine %s/%s: %w", ref.Org, ref.ID, err)
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, machineKey(ref.Org, ref.ID), reservationKey(ref.Org, mesh.KindMachine, ref.ID)); err != nil {
			return err
		}
		m, err := t.machine(ctx, ref)
		if err != nil {
			return err
		}
		return errors.Join(t.dropMachine(ctx, plan, m), t.event("machine.remove", ref.Org+"/"+ref.ID, ""))
	})
	return removed(rev, err, "remove machine %s/%s", ref.Org, ref.ID)
}

// dropMachine deletes a machine's record and says what becomes of its address.
func (t *tx) dropMachine(ctx context.Context, plan ipam.Plan, m mesh.Machine) error {
	t.delete(machineKey(m.Org, m.ID))
	t.delete(healthKey(m.Org, m.ID))
	if !m.Stable {
		parts, _ := plan.Parts(m.Endpoint.Addr())
		return t.giveSlot(parts)
	}
	return t.keep(ctx, plan, mesh.Reservation{
		Org: m.Org, Kind: mesh.KindMachine, Name: m.ID, Endpoint: m.Endpoint, Generation: m.Generation,
		Until: t.s.now().Add(t.s.config.AddressRest),
	})
}
