package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
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
			continue // drawn in enter
		}
		if err := mesh.CheckName(f.kind, f.name); err != nil {
			return invalid("%s", err)
		}
	}
	if err := mesh.ValidateChecks(r.Checks); err != nil {
		return invalid("%s", err)
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

// enter gives a machine its record: the one that it had before, or a new one. With
// a record that says another host, it is prepared to come here.
func (m *machines) enter(ctx context.Context, r local.AttachRequest, ns uint64, view func() *mesh.View) (*stay, error) {
	if r.ID == "" {
		// Drawn here, so that a request whose answer was lost is the same request again.
		r.ID = drawID()
		if r.Stable == nil {
			r.Stable = new(bool) // nobody will ask for that name again
		}
	}
	s := &stay{
		key: r.Org + "/" + r.ID, link: attach.LinkName(r.Org, r.ID), ns: ns,
		ready: make(chan struct{}), lost: make(chan struct{}, 1), unlinked: make(chan struct{}, 1), over: make(chan struct{}),
	}
	if err := m.reserve(ctx, s); err != nil {
		return nil, err
	}
	v := view()
	record, seen, err := m.register(ctx, r, v)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		if m.stays[s.key] == s {
			delete(m.stays, s.key)
		}
		m.changed.fire()
		return nil, err
	}
	s.standing = standing{record: record, seen: seen, coming: record.Host != m.host}
	switch {
	case r.Held != nil && seen:
		// The view may have it only because its removal is held back.
		s.epoch = r.Held.Revision.Epoch
	case v != nil:
		s.epoch = v.Revision.Epoch
	}
	// Only a record that was to go and is used again; a request that is under way
	// for an older one ends in nothing.
	delete(m.leaving, s.key)
	delete(m.leaving, s.key+offSuffix)
	delete(m.removed, s.key)
	delete(m.swept, s.key)
	m.saveLocked()
	m.newsLocked(s.key)
	m.wake()
	return s, nil
}

// belongs notes which process a machine is of.
func (m *machines) belongs(s *stay, pid int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.pid = pid
}

// held is what the process of a machine is told that it holds, as of a view.
func (m *machines) held(s *stay, v *mesh.View) local.Held {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := local.Held{Endpoint: s.record.Endpoint, Generation: s.record.Generation, Revision: v.Revision}
	if s.epoch < v.Revision.Epoch {
		h.Revision = mesh.Revision{Epoch: s.epoch} // the view is newer than what is known of it
	}
	return h
}

// drawID returns a name that nobody else draws.
func drawID() string {
	b := make([]byte, 7)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
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
	if m.stays[s.key] != nil || m.leaving[s.key].busy || m.leaving[s.key+offSuffix].busy {
		return false, nil
	}
	m.stays[s.key] = s
	return true, nil
}

// register returns the machine's record, and whether a view has it. One that this
// host holds and nobody uses (the agent was restarted, or a controller could not be
// reached to remove it) is taken over if it says the same, so that a machine stays
// what it is without any controller.
func (m *machines) register(ctx context.Context, r local.AttachRequest, v *mesh.View) (record mesh.Machine, seen bool, err error) {
	if old, ok := m.unused(r, v); ok {
		if sameMachine(old, r) {
			return old, true, nil
		}
		err := m.request(ctx, http.MethodDelete, machinePath(r.Org, r.ID), nil, nil)
		if err != nil && !errors.Is(err, api.ErrNotFound) {
			return record, false, attachError(r, err)
		}
	} else if r.Held != nil {
		record, back, err := m.comeBack(ctx, r, v)
		if back || err != nil {
			return record, false, err
		}
	}
	record, err = m.create(ctx, r.Org, api.CreateMachine{ID: r.ID, App: r.App, Group: r.Group, Meta: r.Meta, Stable: r.Stable, Move: r.Move,
		Unlisted: r.Unlisted, Checks: r.Checks})
	if err != nil {
		return record, false, attachError(r, err)
	}
	return record, false, nil
}

// sameMachine reports whether a record is what a process asks for. One that had it
// before is not refused for what a controller of an earlier version did not keep.
func sameMachine(old mesh.Machine, r local.AttachRequest) bool {
	return old.App == r.App && old.Group == r.Group && maps.Equal(old.Meta, r.Meta) && (r.Stable == nil || old.Stable == *r.Stable) &&
		(r.Held != nil || old.Unlisted == r.Unlisted && slices.Equal(old.Checks, r.Checks))
}

func (m *machines) create(ctx context.Context, org string, c api.CreateMachine) (mesh.Machine, error) {
	var made api.MachineInfo
	err := m.request(ctx, http.MethodPost, machinePath(org, ""), c, &made)
	return made.Machine, err
}

// comeBack decides what becomes of a machine that the process says it had and that
// is not in the view: nobody makes it anew against an operator who removed it, or
// beside another host that has it. back is false if it is to be registered anew.
func (m *machines) comeBack(ctx context.Context, r local.AttachRequest, v *mesh.View) (record mesh.Machine, back bool, err error) {
	key := r.Org + "/" + r.ID
	m.mu.Lock()
	swept := m.swept[key]
	m.mu.Unlock()
	if swept {
		return record, false, nil // nobody but this agent removed it
	}
	shown := find(v, r.Org, r.ID)
	record = mesh.Machine{
		Org: r.Org, ID: r.ID, App: r.App, Group: r.Group, Meta: r.Meta, Stable: r.Stable == nil || *r.Stable,
		Endpoint: r.Held.Endpoint, Generation: r.Held.Generation, Unlisted: r.Unlisted, Checks: r.Checks,
	}
	s := standing{record: record, epoch: r.Held.Revision.Epoch, seen: true}
	current := !m.contact().fromCache && !earlier(v.Revision, r.Held.Revision)
	switch f, host := judge(s, sight{m.host, shown, shown, v.Revision.Epoch, hasOrg(v, r.Org), current}); f {
	case fateMoved:
		return record, false, errOver(local.OverMoved, "machine %s moved to host %s", key, host)
	case fateRemoved:
		return record, false, errOver(local.OverRemoved, "machine %s: it was removed by an operator", key)
	case fateGone:
		host, err := m.whereabouts(ctx, record)
		switch {
		case err != nil:
			return record, false, fmt.Errorf("machine %s is not here any more, and why is not known yet: %w", key, err)
		case host == "":
			return record, false, errOver(local.OverRemoved, "machine %s: it was removed by an operator", key)
		}
		return record, false, errOver(local.OverMoved, "machine %s moved to host %s", key, host)
	case fateLost:
		record, err = m.adopt(ctx, record, shown)
		switch {
		case err == nil:
			return record, true, nil
		case refusedForGood(err):
			return record, false, errOver(local.OverFenced, "%s", fencedSentence(key, r.Held.Endpoint, err))
		}
		return record, false, attachError(r, err)
	}
	return record, false, &api.Error{
		Status: api.ErrUnavailable.Status, Code: api.ErrUnavailable.Code,
		Message: fmt.Sprintf("machine %s: no controller has said yet whether it is still this host's", key),
	}
}

// errOver says that a machine's stay is over for good.
func errOver(code, format string, args ...any) error {
	e := &api.Error{Status: http.StatusConflict, Code: code, Message: fmt.Sprintf(format, args...)}
	if code == local.OverRemoved {
		e.Advice = "start it anew to bring it back"
	}
	return e
}

// find returns what a view has of a machine, nil if nothing.
func find(v *mesh.View, org, id string) *mesh.Machine {
	if v == nil {
		return nil
	}
	i := slices.IndexFunc(v.Machines, func(x mesh.Machine) bool { return x.Org == org && x.ID == id })
	if i < 0 {
		return nil
	}
	return &v.Machines[i]
}

// unused returns this host's record of a name, unless it has been removed or is
// not the one that the process had.
func (m *machines) unused(r local.AttachRequest, v *mesh.View) (mesh.Machine, bool) {
	old := find(v, r.Org, r.ID)
	if old == nil || old.Host != m.host || r.Held != nil && old.Endpoint != r.Held.Endpoint {
		return mesh.Machine{}, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return *old, !(m.leavesLocked(*old) && m.leaving[machineKey(*old)].Gone)
}

// attachError says what to do when a machine cannot be registered.
func attachError(r local.AttachRequest, err error) error {
	err = fmt.Errorf("register machine %s of %s/%s: %w", r.ID, r.Org, r.App, err)
	if errors.Is(err, api.ErrUnreachable) {
		return mesh.WithHint(err, "a new machine needs a controller; those that run go on without one")
	}
	return err
}

// leaves ends a stay: the machine's process is gone. The record follows, if it is
// ours; a move to this host is called off.
func (m *machines) leaves(s *stay) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stays[s.key] != s {
		return // removed by an operator
	}
	delete(m.stays, s.key)
	if s.fate == fateStays || s.coming {
		m.leaveLocked(s.record, s.coming)
	}
	m.changed.fire()
	m.newsLocked(s.key)
	m.wake()
}

// drop ends a stay whose record is not ours.
func (m *machines) drop(s *stay) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stays[s.key] == s {
		delete(m.stays, s.key)
	}
	m.changed.fire()
	m.newsLocked(s.key)
	m.wake()
}

// list returns the machines with a process, sorted by key.
func (m *machines) list() []*stay {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*stay
	for _, key := range slices.Sorted(maps.Keys(m.stays)) {
		if s := m.stays[key]; s.registered() {
			out = append(out, s)
		}
	}
	return out
}
