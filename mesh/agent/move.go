package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/attach"
)

// A machine moves from host A to host B without a gap, because everything is made
// before anything is taken away:
//
//	B  prepared: next is B, which carries the org now; tunnels come up
//	B  link and firewall; nothing is sent to the link yet; the process starts
//	B  the process can serve, the other hosts answer probes
//	B  route to the link                  what B itself sends comes here
//	B  commit: host is B                  others send here when they hear of it
//	A  delivers what is still under way to its own link, for a while (grace)
//	A  link away, and with it its route: the one into the tunnel to B is in force
//
// Until the commit a failure leaves the machine on A as it was.

// comes completes the move of a machine to this host. It returns why not, nil if it
// did or its process has gone.
func (h *host) comes(ctx context.Context, s *stay) *local.Over {
	began := time.Now()
	from := s.record.Host
	fail := func(err error) *local.Over {
		if ctx.Err() != nil {
			return nil
		}
		return &local.Over{
			Code: local.OverFailed, Message: fmt.Sprintf("machine %s stays on host %s: %s", s.key, from, err), Hint: mesh.HintOf(err),
		}
	}
	select {
	case <-s.ready:
	case <-s.over:
		return fail(errOff)
	case <-ctx.Done():
		return nil
	}
	h.awaitTunnels(ctx, s.record.Org, time.Until(began.Add(h.cfg.Timing.MoveWait)))
	if err := attach.Route(h.plane.ns, s.link, s.record.Endpoint); err != nil {
		return fail(err)
	}
	if err := h.complete(ctx, s); err != nil {
		return fail(err)
	}
	h.log.Info("machine moved here", "machine", s.key, "from", from, "addr", s.record.Address().String(), "took", time.Since(began).Round(time.Millisecond))
	return nil
}

var errOff = errors.New("the move was called off")

// complete tells the controllers that the machine is here. Whether a request whose
// answer is lost was carried out is not known: so it is sent again, and the view is
// looked at, for as long as the process is there.
func (h *host) complete(ctx context.Context, s *stay) error {
	t, cause := h.cfg.Timing, "move/"+s.key
	b := backoff{first: t.Backoff, most: t.MaxBackoff}
	defer h.problems.set(cause, "")
	for {
		changed := h.ready.Load().follower.changed.C()
		record, err := h.machines.arrive(ctx, s.record)
		if now := find(h.ready.Load().follower.View(), s.record.Org, s.record.ID); err != nil && shows(now, h.machines.host, s.record) {
			record, err = *now, nil
		}
		switch {
		case err == nil && record.Host == h.machines.host:
			h.machines.arrived(s, record)
			return nil
		case err == nil && record.Next == h.machines.host:
			h.machines.prepared(s, record) // another host has it now
			continue
		case err == nil:
			return fmt.Errorf("it is on host %s now", record.Host)
		case ctx.Err() != nil, refusedForGood(err):
			return err
		}
		if h.problems.err(cause, fmt.Errorf("the move of machine %s is not complete: %w", s.key, err)) {
			h.log.Warn("move is not complete yet", "machine", s.key, "err", err)
		}
		select {
		case <-s.over:
			return errOff
		default:
		}
		if !wait(ctx, b.step(), changed) {
			return ctx.Err()
		}
	}
}

// arrive completes a prepared move. When the machine has ended on the other host
// meanwhile, there is nothing to move any more: it is registered here.
func (m *machines) arrive(ctx context.Context, prepared mesh.Machine) (mesh.Machine, error) {
	record, err := m.commit(ctx, prepared)
	if !errors.Is(err, api.ErrNotFound) {
		return record, err
	}
	stable := prepared.Stable
	record, err = m.create(ctx, prepared.Org, api.CreateMachine{
		ID: prepared.ID, App: prepared.App, Group: prepared.Group, Meta: prepared.Meta, Stable: &stable, Move: true,
	})
	if err == nil && record.Endpoint != prepared.Endpoint {
		err = &api.Error{Status: http.StatusConflict, Code: api.ErrConflict.Code, Message: fmt.Sprintf("it ended there, and has the address %s now", record.Address())}
	}
	return record, err
}

func (m *machines) arrived(s *stay, record mesh.Machine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.record, s.coming, s.seen = record, false, false
	m.newsLocked(s.key)
	m.wake()
}

func (m *machines) prepared(s *stay, record mesh.Machine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.record, s.seen = record, false
}

// awaitTunnels waits until the hosts of an org answer through their tunnels, but
// not longer than limit: one that is down must not keep a machine where it is.
func (h *host) awaitTunnels(ctx context.Context, org string, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		probed := h.plane.prober.changed.C()
		if v := h.ready.Load().follower.View(); allAnswer(v, org, func(host string) bool { return h.plane.prober.results()[host].RTT > 0 }) {
			return
		}
		if !wait(ctx, limit, probed) {
			return
		}
	}
}

// allAnswer reports whether all hosts of an org that can answer do.
func allAnswer(v *mesh.View, org string, answers func(host string) bool) bool {
	for _, other := range v.Hosts {
		if slices.Contains(other.Orgs, org) && other.Present && !answers(other.Name) {
			return false
		}
	}
	return true
}

// attachReady is POST /v1/attach/ready.
func (h *host) attachReady(w http.ResponseWriter, r *http.Request) {
	var q local.Ready
	if err := readBody(r, &q); err != nil {
		refuse(w, err)
		return
	}
	if h.ready.Load() == nil {
		refuse(w, notYet(&h.problems))
		return
	}
	cred, ok := caller(r.Context())
	if !ok || !h.machines.canServe(q.Org+"/"+q.ID, cred.Pid) {
		refuse(w, &notFound{fmt.Sprintf("machine %s/%s: this process has not attached it", q.Org, q.ID)})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// canServe notes that the process of a machine can serve. It is false if the
// machine is not that process's.
func (m *machines) canServe(key string, pid int32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stays[key]
	if s == nil || s.pid != pid {
		return false
	}
	if !s.can {
		s.can = true
		close(s.ready)
	}
	return true
}

// goes waits until what is under way to a machine that has moved away has been
// delivered to it.
func (h *host) goes(ctx context.Context, s *stay) *local.Over {
	wait(ctx, h.cfg.Timing.MoveGrace, nil)
	return overMoved(s.key, s.host)
}
