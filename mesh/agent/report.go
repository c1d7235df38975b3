package agent

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/mesh/api"
)

// report tells the controllers what this node sees: slowly, and soon after the
// hosts that do not answer have changed. It is for people to look at; nothing
// waits for it, so a controller that cannot be reached is no problem of its own.
func (h *host) report(ctx context.Context, m *member, f *follower) {
	var told said
	pause := reportPause
	for {
		if f.Reach().connected {
			now := *h.plane.facts.Load()
			r := h.reportOf(now)
			r.Health = h.machines.unreported(f.Contact().told)
			reach, own := h.reach(f.ToldOfHosts())
			r.Reach = reach
			err := m.do(ctx, http.MethodPost, "/v1/nodes/self/report", r, nil)
			if h.problems.err("report", notCanceled(err)) && err != nil && ctx.Err() == nil {
				h.log.Warn("report not taken", "err", err)
			}
			if told, pause = (said{r.Suspect, r.Health, r.Coordinate, own}), reportPause; err != nil {
				told, pause = said{suspect: r.Suspect}, min(2*pause, max(h.cfg.Timing.Report, reportPause))
			}
		}
		if !h.untilReport(ctx, f, pause, told) {
			return
		}
	}
}

// reportPause is the least time between two reports, whatever flaps.
const reportPause = time.Second

// said is what a report brought to the controllers of what does not wait.
type said struct {
	suspect    []string
	health     []mesh.Health
	coordinate *mesh.Coordinate
	own        []netip.Addr // addresses of the host, with Reach
}

// news reports whether there is something that a report should not wait with. What
// was said once, and the view does not say yet, is on its way.
func (h *host) news(told said, f *follower) bool {
	if !slices.Equal(suspects(*h.plane.facts.Load()), told.suspect) {
		return true
	}
	if !f.Reach().connected {
		return false
	}
	if h.placed(f.ToldOfHosts(), told) {
		return true
	}
	if reach, own := h.reach(f.ToldOfHosts()); reach != nil && !slices.Equal(own, told.own) {
		return true
	}
	if !h.machines.looksAtAny() {
		return false // a view is not made for nothing
	}
	passing := make(map[string]bool, len(told.health))
	for _, x := range told.health {
		passing[x.Org+"/"+x.Machine] = x.Passing
	}
	return slices.ContainsFunc(h.machines.unreported(f.Contact().told), func(x mesh.Health) bool {
		was, ok := passing[x.Org+"/"+x.Machine]
		return !ok || was != x.Passing
	})
}

// untilReport waits until the next report is due: at once, but for a pause, when
// there is news.
func (h *host) untilReport(ctx context.Context, f *follower, pause time.Duration, told said) bool {
	// A quarter to and fro: hosts that were started together do not stay in step.
	due := time.NewTimer(time.Duration(float64(h.cfg.Timing.Report) * (0.75 + 0.5*rand.Float64())))
	defer due.Stop()
	if !wait(ctx, pause, nil) {
		return false
	}
	for {
		probed, beats, followed, renumbered := h.plane.prober.changed.C(), h.machines.beats.C(), f.changed.C(), h.renumbered.C()
		if h.news(told, f) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-due.C:
			return true
		case <-probed:
		case <-beats:
		case <-followed:
		case <-renumbered:
		}
		if !wait(ctx, reportLook, nil) {
			return false
		}
	}
}

// reportLook is how often it is looked whether there is news, at most: views may
// change many times a second.
const reportLook = 100 * time.Millisecond

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
	if !h.cfg.Disable[DisableProbes] {
		own := h.surveyor.space.Own()
		r.Coordinate = &own
	}
	return r
}

// placed reports whether this host knows where it is among round trips, and the others
// cannot know yet.
func (h *host) placed(v *mesh.View, told said) bool {
	if v == nil || v.Coordinate == nil || told.coordinate == nil || h.cfg.Disable[DisableProbes] {
		return false
	}
	return !probe.Believable(*v.Coordinate) && !probe.Believable(*told.coordinate) && h.surveyor.space.Placed()
}

func notCanceled(err error) error {
	if canceled(err) {
		return nil
	}
	return err
}
