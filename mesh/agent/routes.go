package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/attach"
)

// routes is the local API of a host.
func (h *host) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		s, err := h.status(r.Context())
		answer(w, s, err)
	})
	mux.HandleFunc("GET /v1/dig", func(w http.ResponseWriter, r *http.Request) {
		v, err := h.view()
		if err != nil {
			refuse(w, err)
			return
		}
		q := r.URL.Query()
		d, err := dig(r.Context(), h.plane.ns, v, q.Get("org"), q.Get("name"), q.Get("type"))
		answer(w, d, err)
	})
	mux.HandleFunc("GET /v1/ping", func(w http.ResponseWriter, r *http.Request) {
		v, err := h.view()
		if err != nil {
			refuse(w, err)
			return
		}
		q := r.URL.Query()
		p, err := ping(r.Context(), h.plane.ns, v, q.Get("org"), q.Get("name"))
		answer(w, p, err)
	})
	mux.HandleFunc("POST /v1/attach", h.attach)
	return mux
}

// view returns the view in force.
func (h *host) view() (*mesh.View, error) {
	if r := h.ready.Load(); r != nil && r.follower.View() != nil {
		return r.follower.View(), nil
	}
	return nil, notYet(&h.problems)
}

// notFound is a name that leads nowhere.
type notFound struct{ text string }

func (e *notFound) Error() string { return e.text }
func (e *notFound) Unwrap() error { return api.ErrNotFound }

// attach is POST /v1/attach: it lasts as long as the machine.
func (h *host) attach(w http.ResponseWriter, r *http.Request) {
	var request local.AttachRequest
	if err := readBody(r, &request); err != nil {
		refuse(w, err)
		return
	}
	if err := checkAttach(request); err != nil {
		refuse(w, err)
		return
	}
	if err := h.awaitView(r.Context()); err != nil {
		refuse(w, err)
		return
	}
	if err := h.stay(w, r, request); err != nil {
		h.log.Warn("machine not attached", "machine", request.Org+"/"+request.ID, "app", request.App, "err", err)
		refuse(w, err)
	}
}

// awaitView waits for the first view to be in effect: a machine may be started
// together with the agent, as at a boot.
func (h *host) awaitView(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timing.Attach)
	defer cancel()
	for {
		effected := h.effected.C()
		if h.effect.Load() != nil {
			return nil
		}
		if !wait(ctx, h.cfg.Timing.Attach, effected) {
			return notYet(&h.problems)
		}
	}
}

// stay attaches a machine, tells its process, and waits for the end. An error is
// returned only as long as nothing was told.
func (h *host) stay(w http.ResponseWriter, r *http.Request, request local.AttachRequest) error {
	cred, ok := caller(r.Context())
	if !ok {
		return errors.New("the kernel does not say who asks")
	}
	ns, id, err := machineNamespace(cred.Pid, request.TID, h.plane.ns)
	if err != nil {
		return err
	}
	defer ns.Close()
	s, err := h.machines.enter(r.Context(), request, id, h.ready.Load().follower.View)
	if err != nil {
		return err
	}
	v, err := h.inEffect(r.Context(), s)
	if err == nil {
		// Whoever lives is known after a restart, even without a controller.
		h.ready.Load().follower.awaitKept(r.Context(), func(v *mesh.View) bool { return holds(v, s.record) })
	}
	var told local.Attached
	if err == nil {
		m := attach.Machine{Link: s.link, Alias: "weft machine " + s.key, Endpoint: s.record.Endpoint, MTU: h.mtu(v)}
		if err = attach.Attach(h.plane.ns, ns, m); err == nil {
			told = h.attached(v, s.record, m.MTU)
			h.log.Info("machine attached", "machine", s.key, "app", s.record.App, "addr", told.Address.String(), "link", s.link)
			err = tell(w, told)
		}
	}
	if err == nil {
		select {
		case <-r.Context().Done():
		case <-s.removed:
		}
	}
	if ending(r.Context()) {
		return nil // the machine lives on: its process comes back to the next agent
	}
	h.leave(s)
	if told != (local.Attached{}) {
		return nil
	}
	return err
}

// leave takes a machine out: first its link, so that nobody uses its address, then
// its record.
func (h *host) leave(s *stay) {
	if err := attach.Detach(h.plane.ns, s.link); err != nil {
		h.log.Warn("machine's link not removed", "machine", s.key, "link", s.link, "err", err)
	}
	h.machines.leaves(s)
	h.log.Info("machine detached", "machine", s.key)
}

// tell sends one line and keeps the response open.
func tell(w http.ResponseWriter, a local.Attached) error {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(a); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

// inEffect waits until the machine is in the agent's own view, and firewall and
// names know it.
func (h *host) inEffect(ctx context.Context, s *stay) (*mesh.View, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timing.Attach)
	defer cancel()
	for {
		changed := h.effected.C()
		if a := h.effect.Load(); a != nil && a.links[s.link] && holds(a.view, s.record) {
			return a.view, nil
		}
		if !wait(ctx, h.cfg.Timing.Attach, changed) {
			why := "its host's view does not show it"
			if a := h.effect.Load(); a != nil && a.problem != nil {
				why = a.problem.Error()
			}
			return nil, &api.Error{
				Status: api.ErrUnavailable.Status, Code: api.ErrUnavailable.Code,
				Message: fmt.Sprintf("machine %s: registered, but not in effect after %s: %s", s.key, h.cfg.Timing.Attach.Round(time.Second), why),
				Advice:  "weft status says how old the view is",
			}
		}
	}
}

// holds reports whether a view shows exactly this record.
func holds(v *mesh.View, r mesh.Machine) bool {
	for _, m := range v.Machines {
		if m.Org == r.Org && m.ID == r.ID {
			return m.Endpoint == r.Endpoint
		}
	}
	return false
}
