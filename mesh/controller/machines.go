package controller

import (
	"context"
	"errors"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/store"
)

// Apps and machines.

func (s *server) machineRoutes(r *router) {
	type inApp struct {
		Org string `path:"org"`
		App string `path:"app"`
	}
	same := func(a mesh.App) (mesh.App, bool) { return a, true }
	route(r, "app-list", func(_ context.Context, _ caller, in *inOrg) (*answer[[]mesh.App], error) {
		st := s.store.State()
		if err := liveOrg(st, in.Org); err != nil {
			return nil, err
		}
		return collect(st.Apps.Prefix(in.Org+"/"), same), nil
	})
	route(r, "app-show", func(_ context.Context, _ caller, in *inApp) (*answer[mesh.App], error) {
		return find(s.store.State().Apps, "app", in.Org+"/"+in.App, same)
	})
	route(r, "app-create", func(ctx context.Context, c caller, in *struct {
		Org  string `path:"org"`
		Body api.CreateApp
	}) (*answer[mesh.App], error) {
		app, rev, err := s.store.CreateApp(ctx, c.actor(), mesh.App{Org: in.Org, Name: in.Body.Name, Answer: in.Body.Answer, TTL: in.Body.TTL})
		if err != nil {
			return nil, err
		}
		s.done(ctx, c, rev, "app created", "app", app.Org+"/"+app.Name)
		return &answer[mesh.App]{app}, nil
	})
	route(r, "app-update", func(ctx context.Context, c caller, in *struct {
		Org  string `path:"org"`
		App  string `path:"app"`
		Body api.UpdateApp
	}) (*answer[mesh.App], error) {
		app, rev, err := s.store.SetApp(ctx, c.actor(), in.Org, in.App, store.AppChange{Answer: in.Body.Answer, TTL: in.Body.TTL})
		if err != nil {
			return nil, err
		}
		s.done(ctx, c, rev, "app changed", "app", app.Org+"/"+app.Name)
		return &answer[mesh.App]{app}, nil
	})
	route(r, "app-remove", func(ctx context.Context, c caller, in *inApp) (*none, error) {
		rev, err := s.store.RemoveApp(ctx, c.actor(), in.Org, in.App)
		return s.removed(ctx, c, rev, err, "app removed", "app", in.Org+"/"+in.App)
	})

	type inMachine struct {
		Org     string `path:"org"`
		Machine string `path:"machine"`
	}
	show := func(st mesh.State) func(mesh.Machine) (api.MachineInfo, bool) {
		return func(m mesh.Machine) (api.MachineInfo, bool) { return machineInfo(st, m), true }
	}
	route(r, "machine-list", func(_ context.Context, _ caller, in *inOrg) (*answer[[]api.MachineInfo], error) {
		st := s.store.State()
		if err := liveOrg(st, in.Org); err != nil {
			return nil, err
		}
		return collect(st.Machines.Prefix(in.Org+"/"), show(st)), nil
	})
	route(r, "machine-show", func(_ context.Context, _ caller, in *inMachine) (*answer[api.MachineInfo], error) {
		st := s.store.State()
		return find(st.Machines, "machine", in.Org+"/"+in.Machine, show(st))
	})
	route(r, "machine-create", s.machineCreate)
	route(r, "machine-update", s.machineUpdate)
	route(r, "machine-move", s.machineMove)
	route(r, "machine-unmove", func(ctx context.Context, c caller, in *inMachine) (*none, error) {
		rev, err := s.store.CancelMove(ctx, c.actor(), store.MachineRef{Org: in.Org, ID: in.Machine}, c.node.Name)
		return s.removed(ctx, c, rev, err, "move called off", "machine", in.Org+"/"+in.Machine)
	})
	route(r, "machine-remove", func(ctx context.Context, c caller, in *inMachine) (*none, error) {
		ref := store.MachineRef{Org: in.Org, ID: in.Machine}
		if c.role == host {
			ref.Host = c.node.Name
		}
		rev, err := s.store.RemoveMachine(ctx, c.actor(), ref)
		if c.role == host && errors.Is(err, store.ErrConflict) {
			return nil, notFound("machine " + in.Org + "/" + in.Machine) // it is on another host
		}
		return s.removed(ctx, c, rev, err, "machine removed", "machine", in.Org+"/"+in.Machine)
	})
}

// machineUpdate sets what somebody wants of a machine.
func (s *server) machineUpdate(ctx context.Context, c caller, in *struct {
	Org     string `path:"org"`
	Machine string `path:"machine"`
	Body    api.UpdateMachine
}) (*answer[api.MachineInfo], error) {
	ref := store.MachineRef{Org: in.Org, ID: in.Machine}
	if c.role == host {
		ref.Host = c.node.Name
		if in.Body.Cordoned != nil || in.Body.State == nil || *in.Body.State != mesh.StateDraining {
			return nil, refuse(api.ErrForbidden, "it takes "+admins.String(), "%s may only drain machines", c.actor())
		}
	}
	m, rev, err := s.store.SetMachine(ctx, c.actor(), ref, store.MachineChange{State: in.Body.State, Cordoned: in.Body.Cordoned})
	if err != nil {
		return nil, err
	}
	s.done(ctx, c, rev, "machine changed", "machine", m.Org+"/"+m.ID)
	return &answer[api.MachineInfo]{machineInfo(s.store.State(), m)}, nil
}

// machineMove completes a move to the host that asks.
func (s *server) machineMove(ctx context.Context, c caller, in *struct {
	Org     string `path:"org"`
	Machine string `path:"machine"`
	Body    api.MoveMachine
}) (*answer[api.MachineInfo], error) {
	m, rev, err := s.store.MoveMachine(ctx, c.actor(), store.MachineRef{Org: in.Org, ID: in.Machine}, c.node.Name, in.Body.Generation)
	if err != nil {
		return nil, err
	}
	s.done(ctx, c, rev, "machine moved", "machine", m.Org+"/"+m.ID)
	return &answer[api.MachineInfo]{machineInfo(s.store.State(), m)}, nil
}

// machineCreate registers a machine on the host that asks, or prepares it to move
// there. One that was given a name keeps its address when it comes back elsewhere,
// unless the request says otherwise.
func (s *server) machineCreate(ctx context.Context, c caller, in *struct {
	Org  string `path:"org"`
	Body api.CreateMachine
}) (*answer[api.MachineInfo], error) {
	stable := in.Body.ID != ""
	if in.Body.Stable != nil {
		stable = *in.Body.Stable
	}
	m, rev, err := s.store.CreateMachine(ctx, c.actor(), store.MachineSpec{
		Org: in.Org, App: in.Body.App, ID: in.Body.ID, Group: in.Body.Group, Meta: in.Body.Meta,
		Host: c.node.Name, Stable: stable, Move: in.Body.Move, Endpoint: in.Body.Endpoint,
		Unlisted: in.Body.Unlisted, Checks: in.Body.Checks,
	})
	if err != nil {
		return nil, err
	}
	what := "machine created"
	if m.Host != c.node.Name {
		what = "machine is about to move"
	}
	s.done(ctx, c, rev, what, "machine", m.Org+"/"+m.ID)
	return &answer[api.MachineInfo]{machineInfo(s.store.State(), m)}, nil
}

func machineInfo(st mesh.State, m mesh.Machine) api.MachineInfo {
	h, _ := st.Hosts.Get(m.Host)
	info := api.MachineInfo{Machine: m, Address: m.Address(), Region: h.Region}
	if seen, ok := st.Health.Get(m.Org + "/" + m.ID); ok {
		info.Health = &seen
	}
	return info
}
