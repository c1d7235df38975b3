package agent

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh/api"
)

// report tells the controllers what this node sees: slowly, and soon after the
// hosts that do not answer have changed. It is for people to look at; nothing
// waits for it, so a controller that cannot be reached is no problem of its own.
func (h *host) report(ctx context.Context, m *member, f *follower) {
	var told []string
	for {
		changed := h.plane.prober.changed.C()
		now := *h.plane.facts.Load()
		if f.Contact().connected {
			told = suspects(now)
			err := m.do(ctx, http.MethodPost, "/v1/nodes/self/report", h.reportOf(now), nil)
			if h.problems.err("report", notCanceled(err)) && err != nil && ctx.Err() == nil {
				h.log.Warn("report not taken", "err", err)
			}
		}
		if !h.untilReport(ctx, changed, told) {
			return
		}
	}
}

// untilReport waits until the next report is due: some of it at once when the
// suspects differ from those told.
func (h *host) untilReport(ctx context.Context, changed <-chan struct{}, told []string) bool {
	due := time.NewTimer(h.cfg.Timing.Report)
	defer due.Stop()
	pause := time.Second // a report a second at most, whatever flaps
	for {
		if !wait(ctx, pause, nil) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-due.C:
			return true
		case <-changed:
			if !slices.Equal(suspects(*h.plane.facts.Load()), told) {
				return true
			}
			changed = h.plane.prober.changed.C()
		}
	}
}

func (h *host) reportOf(now dns.Facts) api.Report {
	r := api.Report{Version: h.cfg.Version, RTT: map[string]time.Duration{}, Suspect: suspects(now)}
	if a := h.effect.Load(); a != nil {
		r.Revision = a.view.Revision.String()
	}
	for name, f := range now {
		if f.RTT > 0 {
			r.RTT[name] = f.RTT
		}
	}
	return r
}

func notCanceled(err error) error {
	if canceled(err) {
		return nil
	}
	return err
}
