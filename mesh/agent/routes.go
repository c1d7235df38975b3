package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers/netns"
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
	mux.HandleFunc("GET /v1/explain", h.explain)
	mux.HandleFunc("GET /v1/top", h.top)
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
	mux.HandleFunc("POST /v1/attach/ready", h.attachReady)
	mux.HandleFunc("POST /v1/attach/check", h.attachCheck)
	mux.HandleFunc("POST /v1/attach/drain", h.attachDrain)
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
	ctx := r.Context()
	cred, ok := caller(ctx)
	if !ok {
		return errors.New("the kernel does not say who asks")
	}
	ns, id, err := machineNamespace(cred.Pid, request.TID, h.plane.ns)
	if err != nil {
		return err
	}
	defer ns.Close()
	s, err := h.machines.enter(ctx, request, id, h.ready.Load().follower.View)
	if err != nil {
		return err
	}
	h.machines.belongs(s, cred.Pid)
	h.problems.set("fenced/"+s.key, "")
	told, err := h.attachLink(ctx, s, ns)
	if err == nil {
		err = tell(w, told)
	}
	var over *local.Over
	if err == nil {
		over = h.watchedLife(ctx, s, ns, w, request)
	}
	if ending(ctx) {
		return nil // the machine lives on: its process comes back to the next agent
	}
	if err != nil && told == (local.Attached{}) {
		if request.Held != nil && ctx.Err() == nil {
			h.machines.drop(s) // it stays what it was, and its process tries again
		} else {
			h.leave(s, nil)
		}
		return err
	}
	h.leave(s, over)
	if over != nil {
		h.log.Info("machine's stay is over", "machine", s.key, "why", over.Message)
		if err := tell(w, local.Notice{Over: over}); err != nil && ctx.Err() == nil {
			h.log.Warn("machine's process was not told", "machine", s.key, "err", err)
		}
	}
	return nil
}

// attachLink gives a machine its link, once the firewall knows it. One that is
// still on another host can send, and gets nothing yet.
func (h *host) attachLink(ctx context.Context, s *stay, ns *netns.Handle) (told local.Attached, err error) {
	v, mtu, err := h.inEffect(ctx, s)
	if err != nil {
		return told, err
	}
	// Whoever lives is known after a restart, even without a controller.
	h.ready.Load().follower.awaitKept(ctx, func(v *mesh.View) bool { return holds(v, s.record) })
	m := attach.Machine{Link: s.link, Alias: machineAlias + s.key, Endpoint: s.record.Endpoint, MTU: mtu, Unrouted: s.coming}
	if err := attach.Attach(h.plane.ns, ns, m); err != nil {
		return told, err
	}
	h.machines.linked(s, m)
	told = h.attached(v, s.record, m.MTU)
	told.Held = h.machines.held(s, v)
	if s.coming {
		told.From = s.record.Host
	}
	h.log.Info("machine attached", "machine", s.key, "app", s.record.App, "addr", told.Address.String(), "link", s.link, "from", told.From)
	return told, nil
}

// relink attaches a machine anew whose link somebody has removed.
func (h *host) relink(s *stay, ns *netns.Handle) {
	m := h.machines.linkMade(s)
	err := attach.Attach(h.plane.ns, ns, m)
	if err != nil {
		h.log.Error("machine's link is gone, and cannot be made anew", "machine", s.key, "link", s.link, "err", err)
		return
	}
	h.log.Info("machine's link put right", "machine", s.key, "change", "attach "+s.link)
}

// watchedLife is lives, and looks at the machine meanwhile.
func (h *host) watchedLife(ctx context.Context, s *stay, ns *netns.Handle, w http.ResponseWriter, request local.AttachRequest) *local.Over {
	looking, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { h.watch(looking, s, request) })
	defer watching.Wait()
	defer stop()
	return h.lives(ctx, s, ns, w)
}

// lives waits for the end of a machine's stay: nil if it is its process's, else why.
func (h *host) lives(ctx context.Context, s *stay, ns *netns.Handle, w http.ResponseWriter) *local.Over {
	if s.coming {
		if over := h.comes(ctx, s); over != nil || ctx.Err() != nil {
			return over
		}
		if !h.tellHeld(w, s) {
			return nil
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.over:
			switch s.fate {
			case fateMoved:
				return h.goes(ctx, s)
			case fateGone:
				return h.gone(ctx, s)
			default:
				return overRemoved(s.key)
			}
		case <-s.unlinked:
			h.relink(s, ns)
		case <-s.lost:
			if over := h.adopt(ctx, s); over != nil {
				h.problems.set("fenced/"+s.key, over.Message)
				h.log.Error("machine is fenced", "machine", s.key, "why", over.Message)
				return over
			}
			if ctx.Err() == nil && !h.tellHeld(w, s) {
				return nil
			}
		}
	}
}

// tellHeld tells a machine's process what it holds now. It is false if it has gone.
func (h *host) tellHeld(w http.ResponseWriter, s *stay) bool {
	now := h.machines.held(s, h.told())
	return tell(w, local.Notice{Holds: &now}) == nil
}

// leave takes a machine out: first its link, so that nobody uses its address, then
// its record, unless that is another's.
func (h *host) leave(s *stay, over *local.Over) {
	if err := attach.Detach(h.plane.ns, s.link); err != nil {
		h.log.Warn("machine's link not removed", "machine", s.key, "link", s.link, "err", err)
	}
	if over != nil && over.Code == local.OverFenced {
		h.machines.drop(s)
	} else {
		h.machines.leaves(s)
	}
	h.log.Info("machine detached", "machine", s.key)
}

// tell sends one line and keeps the response open.
func tell(w http.ResponseWriter, line any) error {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(line); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

// inEffect waits until the machine is in the agent's own view, and firewall and
// names know it. The view that it returns may be one without lists.
func (h *host) inEffect(ctx context.Context, s *stay) (v *mesh.View, mtu int, err error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timing.Attach)
	defer cancel()
	for {
		changed := h.effected.C()
		if a := h.effect.Load(); a != nil {
			if shown, in := a.links.get(s.link); in && sameRecord(shown, s.record) {
				return a.view, a.mtu, nil
			}
		}
		if !wait(ctx, h.cfg.Timing.Attach, changed) {
			why := "its host's view does not show it"
			if a := h.effect.Load(); a != nil && a.problem != nil {
				why = a.problem.Error()
			}
			return nil, 0, &api.Error{
				Status: api.ErrUnavailable.Status, Code: api.ErrUnavailable.Code,
				Message: fmt.Sprintf("machine %s: registered, but not in effect after %s: %s", s.key, h.cfg.Timing.Attach.Round(time.Second), why),
				Advice:  "weft status says how old the view is",
			}
		}
	}
}

// holds reports whether a view shows exactly this record.
func holds(v *mesh.View, r mesh.Machine) bool {
	shown := find(v, r.Org, r.ID)
	return shown != nil && sameRecord(*shown, r)
}

func sameRecord(shown, r mesh.Machine) bool {
	return shown.Endpoint == r.Endpoint && shown.Host == r.Host && (r.Next == "" || shown.Next == r.Next)
}
