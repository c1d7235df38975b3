package controller

import (
	"context"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// leaveTimeout bounds what is asked of etcd when a controller ends: without etcd it
// ends as well.
const leaveTimeout = 2 * time.Second

// nameOf makes a controller's name of a base URL: https://192.0.2.1:7443 is
// 192-0-2-1-7443.
func nameOf(base string) string {
	if u, err := url.Parse(base); err == nil && u.Host != "" {
		base = u.Host
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(base))
	// The end tells controllers apart: it has the port.
	name = strings.Trim(name[max(0, len(name)-63):], "-")
	if name == "" {
		return "controller"
	}
	return name
}

// register tells the nodes and the other controllers of this one. It fails if this
// controller must not run beside the others. If etcd takes no changes, as when it is
// full, the controller serves what it has after a while all the same; should it turn
// out then that it must not run, it is stopped.
func (s *server) register(ctx context.Context, tasks *sync.WaitGroup, stop context.CancelCauseFunc) error {
	ended := make(chan error, 1)
	tasks.Go(func() {
		ended <- s.store.Register(ctx, mesh.Controller{Name: s.cfg.Name, URLs: s.cfg.Advertise, Version: s.cfg.Version})
	})
	slow := time.NewTimer(startGrace)
	defer slow.Stop()
	select {
	case err := <-ended:
		return err
	case <-slow.C:
	}
	s.log.Warn("etcd does not take this controller's registration; it serves all the same")
	tasks.Go(func() {
		if err := <-ended; err != nil && ctx.Err() == nil {
			stop(err)
		}
	})
	return nil
}

// deregister is the opposite. Should it fail, the others find out by themselves.
func (s *server) deregister(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	if err := s.store.Leave(ctx); err != nil {
		s.log.Warn("tell the others that this controller ends", "err", err)
	}
}
