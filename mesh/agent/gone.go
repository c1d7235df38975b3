package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
)

// With the last machine of an org its host loses sight of the org. It has seen then
// where the machine was about to move, but not if it was started in the midst of that,
// or if one word of the controllers brought both the intent and the move. To the view
// that is the same as a removal, and to the machine's process it is not: so the
// controllers are asked.

// delivers reports whether what is under way to a machine is still let through.
func (f fate) delivers() bool { return f != fateRemoved && f != fateGone }

// hasOrg reports whether a view has an org: then it has all machines of it.
func hasOrg(v *mesh.View, org string) bool {
	return v != nil && slices.ContainsFunc(v.Orgs, func(o mesh.Org) bool { return o.Name == org })
}

// whereabouts asks the controllers which host has the machine now; "": none.
func (m *machines) whereabouts(ctx context.Context, ours mesh.Machine) (host string, err error) {
	var now api.MachineInfo
	err = m.request(ctx, http.MethodGet, machinePath(ours.Org, ours.ID), nil, &now)
	switch {
	case errors.Is(err, api.ErrNotFound):
		return "", nil
	case errors.Is(err, api.ErrForbidden):
		return "", nil // the org is none that this host may carry, or controllers tell no host
	case err != nil:
		return "", err
	case now.Host == m.host:
		return "", &api.Error{
			Status: api.ErrUnavailable.Status, Code: api.ErrUnavailable.Code,
			Message: fmt.Sprintf("machine %s/%s: the controller asked is behind, and says that it is on this host", ours.Org, ours.ID),
		}
	}
	return now.Host, nil
}

// gone goes on until the controllers have said what became of a machine that is not
// here any more; nil if its process ended meanwhile. Its link lets nothing through.
func (h *host) gone(ctx context.Context, s *stay) *local.Over {
	t, cause := h.cfg.Timing, "gone/"+s.key
	b := backoff{first: t.Backoff, most: t.MaxBackoff}
	defer h.problems.set(cause, "")
	for {
		host, err := h.machines.whereabouts(ctx, s.record)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && host == "":
			h.machines.settle(s, fateRemoved, "")
			return overRemoved(s.key)
		case err == nil:
			h.machines.settle(s, fateMoved, host)
			return overMoved(s.key, host)
		}
		if h.problems.err(cause, fmt.Errorf("machine %s is not here any more, and why is not known yet: %w", s.key, err)) {
			h.log.Warn("what became of a machine is not known yet", "machine", s.key, "err", err)
		}
		if !wait(ctx, b.step(), nil) {
			return nil
		}
	}
}

// settle notes what became of a machine that is gone.
func (m *machines) settle(s *stay, f fate, host string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stays[s.key] != s || s.fate != fateGone {
		return
	}
	if f == fateRemoved {
		m.log.Info("machine was removed by an operator", "machine", s.key)
		m.removed[s.key] = s.ns
	} else {
		m.log.Info("machine moved to another host", "machine", s.key, "host", host)
	}
	// Nothing is delivered any more: its org has gone.
	delete(m.stays, s.key)
	m.changed.fire()
	m.newsLocked(s.key)
	m.wake()
}

func overRemoved(key string) *local.Over {
	return &local.Over{Code: local.OverRemoved, Message: fmt.Sprintf("machine %s: it was removed by an operator", key), Hint: "start it anew to bring it back"}
}

func overMoved(key, host string) *local.Over {
	return &local.Over{Code: local.OverMoved, Message: fmt.Sprintf("machine %s moved to host %s", key, host)}
}
