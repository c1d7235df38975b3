package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
)

// After controllers were restored from a backup, the machines that were registered
// or moved since are unknown to them, and run all the same. Their hosts tell of
// them. Nothing is overwritten: who finds that another one has the address by now
// gives way (is fenced).

// adoptions is how many machines are told of at a time: a restore loses those of
// all hosts at once.
const adoptions = 8

// adopt registers a machine that runs here with the endpoint that it holds. told
// is what the controllers say of its name, nil if nothing.
func (m *machines) adopt(ctx context.Context, ours mesh.Machine, told *mesh.Machine) (mesh.Machine, error) {
	select {
	case m.adopting <- struct{}{}:
		defer func() { <-m.adopting }()
	case <-ctx.Done():
		return mesh.Machine{}, ctx.Err()
	}
	stable := ours.Stable
	ask := api.CreateMachine{ID: ours.ID, App: ours.App, Group: ours.Group, Meta: ours.Meta, Stable: &stable, Endpoint: ours.Endpoint,
		Unlisted: ours.Unlisted, Checks: ours.Checks}
	switch {
	case told == nil:
	case told.Host == m.host:
		// A former one of that name, on this host: it is ours to remove.
		err := m.request(ctx, http.MethodDelete, machinePath(ours.Org, ours.ID), nil, nil)
		if err != nil && !errors.Is(err, api.ErrNotFound) {
			return mesh.Machine{}, err
		}
	case told.Endpoint == ours.Endpoint && told.Generation < ours.Generation:
		// It moved here later than the controllers remember.
		ask.Move = true
	}
	made, err := m.create(ctx, ours.Org, ask)
	if err == nil && made.Host != m.host && made.Next == m.host {
		made, err = m.commit(ctx, made)
	}
	if err == nil && (made.Endpoint != ours.Endpoint || made.Host != m.host) {
		err = &api.Error{
			Status: api.ErrConflict.Status, Code: api.ErrConflict.Code,
			Message: fmt.Sprintf("it holds %s, and the controllers say %s on host %s", ours.Endpoint, made.Endpoint, made.Host),
		}
	}
	return made, err
}

// commit completes a move to this host.
func (m *machines) commit(ctx context.Context, prepared mesh.Machine) (mesh.Machine, error) {
	var moved api.MachineInfo
	path := machinePath(prepared.Org, prepared.ID) + "/host"
	err := m.request(ctx, http.MethodPut, path, api.MoveMachine{Generation: prepared.Generation}, &moved)
	return moved.Machine, err
}

// refusedForGood reports an answer of controllers that asking again will not change.
func refusedForGood(err error) bool {
	for _, e := range []error{api.ErrConflict, api.ErrExists, api.ErrInvalid, api.ErrForbidden, api.ErrNotFound, api.ErrFull} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// adopted notes the record that adopt brought.
func (m *machines) adopted(s *stay, record mesh.Machine, epoch uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.record, s.seen, s.next = record, false, ""
	s.epoch = max(s.epoch, epoch)
	m.newsLocked(s.key)
	m.wake()
}

// adopt goes on until the controllers have answered for a machine that they do not
// know: nil, or why it is fenced. Its link stays meanwhile.
func (h *host) adopt(ctx context.Context, s *stay) *local.Over {
	t, cause := h.cfg.Timing, "adopt/"+s.key
	b := backoff{first: t.Backoff, most: t.MaxBackoff}
	defer h.problems.set(cause, "")
	for {
		told := h.told()
		record, err := h.machines.adopt(ctx, s.record, find(told, s.record.Org, s.record.ID))
		switch {
		case err == nil:
			h.machines.adopted(s, record, told.Revision.Epoch)
			h.log.Info("machine registered again", "machine", s.key, "addr", record.Address().String())
			return nil
		case ctx.Err() != nil:
			return nil
		case refusedForGood(err):
			return &local.Over{Code: local.OverFenced, Message: fencedSentence(s.key, s.record.Endpoint, err)}
		}
		if h.problems.err(cause, fmt.Errorf("machine %s is not registered again yet: %w", s.key, err)) {
			h.log.Warn("machine is not registered again yet", "machine", s.key, "err", err)
		}
		select {
		case <-s.over:
			return nil
		default:
		}
		if !wait(ctx, b.step(), s.over) {
			return nil
		}
	}
}

func fencedSentence(key string, endpoint netip.Prefix, why error) string {
	return fmt.Sprintf("machine %s lost its address %s: the controllers were restored from a backup and do not give it back: %s", key, ipam.MainAddr(endpoint), why)
}

// told is what the controllers said last.
func (h *host) told() *mesh.View {
	f := h.ready.Load().follower
	if c := f.Contact(); c.told != nil {
		return c.told
	}
	return f.View()
}
