package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/metrics"
)

// listenMetrics binds the address of /metrics and /healthz; "" is none.
func listenMetrics(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, mesh.WithHint(fmt.Errorf("metrics: %w", err), "choose another address with --metrics, or none")
	}
	return l, nil
}

// serveMetrics answers until ctx ends.
func (h *host) serveMetrics(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics.Handler(h.stats))
	mux.HandleFunc("GET /healthz", h.health)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// health is good when a view is in effect, whoever can be reached: a host without
// a controller works.
func (h *host) health(w http.ResponseWriter, _ *http.Request) {
	if a := h.effect.Load(); a == nil || a.problem != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		for _, p := range h.problems.list() {
			fmt.Fprintln(w, p)
		}
		return
	}
	fmt.Fprintln(w, "ok")
}

// stats is what the agent says of itself to Prometheus.
func (h *host) stats() []metrics.Stat {
	var out []metrics.Stat
	gauge := func(name, help string, value float64, labels ...metrics.Label) {
		out = append(out, metrics.Stat{Name: "weft_agent_" + name, Help: help, Value: value, Labels: labels})
	}
	count := func(name, help string, value uint64, labels ...metrics.Label) {
		out = append(out, metrics.Stat{Name: "weft_agent_" + name, Help: help, Counter: true, Value: float64(value), Labels: labels})
	}
	gauge("problems", "Things that are wrong now; weft status names them.", float64(len(h.problems.list())))
	gauge("up_seconds", "Time since the start.", time.Since(h.started).Seconds())
	count("passes_total", "Passes of the loop.", h.passes.Load())
	gauge("pass_seconds", "Duration of the last pass.", time.Duration(h.passTime.Load()).Seconds())
	r := h.ready.Load()
	if r == nil {
		return out
	}
	c := r.follower.Reach()
	gauge("connected", "1 while a view stream is open.", flag(c.connected))
	if !c.last.IsZero() {
		gauge("view_age_seconds", "Time since the view was last known to be current.", time.Since(c.last).Seconds())
	}
	if a := h.effect.Load(); a != nil {
		gauge("view_revision", "Revision of the view in effect.", float64(a.view.Revision.Revision))
		gauge("orgs", "Orgs carried.", float64(a.orgs))
		gauge("machines", "Machines here whose link is there.", float64(a.links.len()))
	}
	facts := *h.plane.facts.Load()
	gauge("hosts", "Other hosts in the view.", float64(len(facts)))
	gauge("hosts_suspect", "Hosts that do not answer probes.", float64(len(suspects(facts))))
	for name, f := range facts {
		if f.RTT > 0 {
			gauge("host_rtt_seconds", "Round trip through the tunnel.", f.RTT.Seconds(), metrics.Label{Key: "host", Value: name})
		}
	}
	measured := h.plane.prober.results()
	gauge("tunnels_one_way", "Tunnels that carry one direction only; weft status names them.", float64(oneWayCount(measured)))
	for name, r := range measured {
		if r.Way.OneWay() {
			gauge("tunnel_one_way", "1: the tunnel loses what is sent (lost=out) or what the host sends (lost=in).", 1, metrics.Label{Key: "host", Value: name}, metrics.Label{Key: "lost", Value: lostText(r.Way)})
		}
	}
	if s := h.paths.known(); s != nil {
		gauge("mtu_bytes", "MTU of the WireGuard link.", float64(s.link))
		for name, x := range s.hosts {
			gauge("host_mtu_bytes", "Largest packet that arrives at a host through its tunnel, as far as is known.", float64(x.mtu), metrics.Label{Key: "host", Value: name})
		}
	}
	gauge("coordinate_error", "How unsure the own network coordinate is: 1.5 knows nothing.", h.surveyor.space.Own().Error)
	if server := h.plane.server.Load(); server != nil {
		out = append(out, dnsStats(server.Stats())...)
	}
	if forward := h.plane.forward.Load(); forward != nil {
		out = append(out, forwardStats(forward.Stats())...)
	}
	slices.SortStableFunc(out, func(a, b metrics.Stat) int {
		if a.Name < b.Name {
			return -1
		}
		if a.Name > b.Name {
			return 1
		}
		return 0
	})
	return out
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
