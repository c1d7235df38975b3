package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers/netns"
)

// handOver is how long a machine waits for the one of the same name that is just
// ending.
const handOver = 5 * time.Second

// checkAttach reports a request that cannot be right.
func checkAttach(r local.AttachRequest) error {
	for _, f := range []struct{ kind, name string }{{"org", r.Org}, {"app", r.App}, {"machine", r.ID}} {
		if f.kind == "machine" && f.name == "" {
			continue // drawn by the controller
		}
		if err := mesh.CheckName(f.kind, f.name); err != nil {
			return invalid("%s", err)
		}
	}
	return nil
}

func invalid(format string, args ...any) *api.Error {
	return &api.Error{Status: api.ErrInvalid.Status, Code: api.ErrInvalid.Code, Message: fmt.Sprintf(format, args...)}
}

// machineNamespace opens the network namespace that a thread of a process holds.
// It must be one of its own: neither the host's nor the data plane's.
func machineNamespace(pid int32, tid int, plane *netns.Handle) (ns *netns.Handle, id uint64, err error) {
	if tid <= 0 {
		return nil, 0, invalid("thread %d of process %d: want the thread that holds the machine's namespace", tid, pid)
	}
	ns, err = netns.OpenPath(fmt.Sprintf("/proc/%d/task/%d/ns/net", pid, tid))
	if err != nil {
		return nil, 0, invalid("namespace of thread %d of process %d: %s", tid, pid, err)
	}
	var own *netns.Handle
	for what, other := range map[string]*netns.Handle{"the host's": own, "the data plane's": plane} {
		same, err := ns.Same(other)
		if err == nil && same {
			err = invalid("namespace of thread %d of process %d: it is %s; a machine needs one of its own", tid, pid, what)
		}
		if err != nil {
			ns.Close()
			return nil, 0, err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(ns.Fd(), &st); err != nil {
		ns.Close()
		return nil, 0, err
	}
	return ns, st.Ino, nil
}

// enter gives a machine its record: the one that it had before, or a new one.
func (m *machines) enter(ctx context.Context, r local.AttachRequest, ns uint64, view func() *mesh.View) (*stay, error) {
	s := &stay{removed: make(chan struct{}), ns: ns}
	if r.ID != "" {
		s.key = r.Org + "/" + r.ID
		if err := m.reserve(ctx, s); err != nil {
			return nil, err
		}
	}
	record, err := m.register(ctx, r, view())
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		if m.stays[s.key] == s {
			delete(m.stays, s.key)
		}
		m.changed.fire()
		return nil, err
	}
	s.record, s.key, s.link = record, machineKey(record), attach.LinkName(record.Org, record.ID)
	m.stays[s.key] = s
	// Only a record that was to go and is used again; a request that is under way
	// for an older one ends in nothing.
	delete(m.leaving, s.key)
	delete(m.removed, s.key)
	m.saveLocked()
	m.wake()
	return s, nil
}

// reserve keeps a name for s: while the machine that had it is just ending, it
// waits.
func (m *machines) reserve(ctx context.Context, s *stay) error {
	ctx, cancel := context.WithTimeout(ctx, handOver)
	defer cancel()
	for {
		changed := m.changed.C()
		ok, err := m.tryReserve(s)
		if ok || err != nil {
			return err
		}
		if !wait(ctx, handOver, changed) {
			return errBusy(s.key)
		}
	}
}

func (m *machines) tryReserve(s *stay) (ok bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ns, removed := m.removed[s.key]; removed && ns == s.ns {
		return false, &api.Error{
			Status: api.ErrNotFound.Status, Code: api.ErrNotFound.Code,
			Message: fmt.Sprintf("machine %s: it was removed by an operator", s.key), Advice: "start it anew to bring it back",
		}
	}
	if m.stays[s.key] != nil || m.leaving[s.key].busy {
		return false, nil
	}
	m.stays[s.key] = s
	return true, nil
}

// register returns the machine's record. One that this host holds and nobody uses
// (the agent was restarted, or a controller could not be reached to remove it) is
// taken over if it says the same, so that a machine stays what it is without any
// controller.
func (m *machines) register(ctx context.Context, r local.AttachRequest, v *mesh.View) (mesh.Machine, error) {
	if old, ok := m.unused(r, v); ok {
		if old.App == r.App && old.Group == r.Group && maps.Equal(old.Meta, r.Meta) {
			return old, nil
		}
		err := m.request(ctx, http.MethodDelete, machinePath(r.Org, r.ID), nil, nil)
		if err != nil && !errors.Is(err, api.ErrNotFound) {
			return mesh.Machine{}, attachError(r, err)
		}
	}
	var made api.MachineInfo
	err := m.request(ctx, http.MethodPost, machinePath(r.Org, ""), api.CreateMachine{ID: r.ID, App: r.App, Group: r.Group, Meta: r.Meta}, &made)
	if err != nil {
		return mesh.Machine{}, attachError(r, err)
	}
	return made.Machine, nil
}

// unused returns this host's record of a name, unless it has been removed.
func (m *machines) unused(r local.AttachRequest, v *mesh.View) (mesh.Machine, bool) {
	if v == nil || r.ID == "" {
		return mesh.Machine{}, false
	}
	i := slices.IndexFunc(v.Machines, func(x mesh.Machine) bool { return x.Org == r.Org && x.ID == r.ID && x.Host == m.host })
	if i < 0 {
		return mesh.Machine{}, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := v.Machines[i]
	return old, !(m.leavesLocked(old) && m.leaving[machineKey(old)].Gone)
}

// attachError says what to do when a machine cannot be registered.
func attachError(r local.AttachRequest, err error) error {
	err = fmt.Errorf("register machine %s of %s/%s: %w", orDrawn(r.ID), r.Org, r.App, err)
	if errors.Is(err, api.ErrUnreachable) {
		return mesh.WithHint(err, "a new machine needs a controller; those that run go on without one")
	}
	return err
}

func orDrawn(id string) string {
	if id == "" {
		return "(unnamed)"
	}
	return id
}

// leaves ends a stay: the machine's process is gone. The record follows.
func (m *machines) leaves(s *stay) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stays[s.key] != s {
		return // removed by an operator
	}
	delete(m.stays, s.key)
	m.leaveLocked(s.record)
	m.changed.fire()
	m.wake()
}

// list returns the machines with a process, sorted by key.
func (m *machines) list() []*stay {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*stay
	for _, key := range slices.Sorted(maps.Keys(m.stays)) {
		if s := m.stays[key]; s.record.Endpoint.IsValid() {
			out = append(out, s)
		}
	}
	return out
}
