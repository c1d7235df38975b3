package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/link"
	"github.com/weftmesh/weft/peers/userspace"
)

// laptop is a running `weft up`.
type laptop struct {
	cfg      LaptopConfig
	log      *slog.Logger
	problems problems

	member   atomic.Pointer[member]
	follower atomic.Pointer[follower]
	device   guardedDevice
	prober   proberSlot
	names    *laptopNames
	gateways atomic.Pointer[[]candidate]
	woken    signal
	down     context.CancelFunc

	linked  netip.Prefix // the mesh whose routes are in force; of the loop, then of RunLaptop
	knock   knock        // of the loop
	outages outages      // of chooseGateways
}

// RunLaptop joins a client to its org, if it has not joined yet, and keeps it
// connected through the nearest gateway until ctx ends, or somebody asks for it on
// the local socket (nil). Everything that it changed is put back: link, routes,
// resolver. What a crash left behind is put back at the start; see RecoverLaptop.
func RunLaptop(ctx context.Context, cfg LaptopConfig) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if err := checkSystem(true, cfg.Port, cfg.Socket); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &laptop{cfg: cfg, log: cfg.Log, down: cancel, names: newLaptopNames(cfg), outages: outages{}, knock: knock{first: gatewayWord}}
	state, err := openState(cfg.Join, mesh.KindClient)
	if err != nil {
		return err
	}
	defer state.close()
	if err := recoverLaptop(ctx, cfg); err != nil {
		l.log.Warn("what an earlier one left is not all put back", "err", err)
	}
	server, err := listenLocal(cfg.Socket, l.routes(), l.log)
	if err != nil {
		state.undo()
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.run(ctx) })
	group.Go(func() error { return l.run(ctx, state, group) })
	err = group.Wait()
	err = errors.Join(err, l.putBack())
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (l *laptop) run(ctx context.Context, state *state, group *errgroup.Group) error {
	m, err := state.join(ctx, l.cfg.Timing, &l.problems, l.log, api.EnrollRequest{})
	if err != nil {
		return err
	}
	l.member.Store(m)
	dir := l.cfg.StateDir
	if l.cfg.Disable[DisableCache] {
		dir = ""
	}
	f := newFollower(m.node(), dir, l.cfg.Timing, m, &l.problems, l.log)
	f.wake = l.woken.fire
	f.load()
	l.follower.Store(f)
	group.Go(func() error { return f.Run(ctx) })
	if !l.cfg.Disable[DisableRenewal] {
		group.Go(func() error { m.renew(ctx); return nil })
	}
	group.Go(func() error { l.chooseGateways(ctx, m, f); return nil })
	t := tunnels{key: m.wireguard(), port: l.cfg.Port, log: l.log}
	passes{l.cfg.Timing, &l.problems, l.log}.run(ctx, l.woken.C, func() error {
		v := f.View()
		if v == nil {
			return nil
		}
		return l.pass(ctx, &t, v)
	})
	return nil
}

// pass brings the laptop from what it is to what v says. The unreachable route
// comes first, with the link: what has no tunnel is refused, and never leaves in
// clear text.
func (l *laptop) pass(ctx context.Context, t *tunnels, v *mesh.View) error {
	mtu := linkMTU(l.cfg.MTU, v)
	open := func() (peers.Device, error) {
		return l.device.open(func() (peers.Device, error) { return l.makeLink(mtu) })
	}
	err := t.set(ctx, v, open)
	if err == nil {
		err = l.knocks(ctx, t, v)
	}
	c := link.Config{Link: l.cfg.Link, MTU: mtu, Unreachable: v.Plan.Prefix(), Up: true}
	for _, a := range v.Addresses() {
		c.Addresses = append(c.Addresses, link.Address{Prefix: a.Prefix, Deprecated: a.Anycast})
	}
	for _, p := range v.Routes() {
		c.Routes = append(c.Routes, link.Route{Prefix: p})
	}
	l.linked = c.Unreachable
	changes, linkErr := link.Set(nil, c)
	for _, change := range changes {
		l.log.Info("link", "change", change)
	}
	if linkErr != nil {
		return errors.Join(err, linkErr) // no resolver before there is a way to it
	}
	return errors.Join(err, l.names.set(ctx, v), l.probe(v))
}

func (l *laptop) makeLink(mtu int) (peers.Device, error) {
	d, err := userspace.New(userspace.Config{Name: l.cfg.Link, MTU: mtu, SocketDir: l.cfg.SocketDir, Log: l.log})
	if err != nil {
		return nil, deviceHint(err)
	}
	l.log.Info("WireGuard link made", "link", l.cfg.Link, "mtu", mtu)
	return d, nil
}

// probe asks the gateway, through the tunnel, from the client's probe address.
func (l *laptop) probe(v *mesh.View) error {
	self := ipam.ProbeAddr(v.Client.Endpoint)
	var targets []probe.Target
	for _, h := range v.Hosts {
		if h.Name == v.Client.Gateway {
			targets = append(targets, probe.Target{Name: h.Name, Region: h.Region, Addr: v.Plan.HostAddr(0, h.Position())})
		}
	}
	l.prober.allowed.set(nil)
	return l.prober.set(self, targets, probe.Config{
		Port: l.cfg.ProbePort, Timing: l.cfg.Timing.Probe, Silent: l.cfg.Disable[DisableProbes], Log: l.log,
	}, func() (*net.UDPConn, error) {
		return net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(self, l.cfg.ProbePort)))
	})
}

// putBack takes away what the laptop holds: the resolver first, so that nobody
// waits for one that is not there any more.
func (l *laptop) putBack() error {
	l.prober.close()
	errs := []error{l.names.close(l.cfg.Disable[DisableResolvconf])}
	if l.linked.IsValid() {
		_, err := link.Remove(nil, link.Config{Link: l.cfg.Link, Unreachable: l.linked})
		errs = append(errs, err)
	}
	return errors.Join(append(errs, l.device.close())...)
}

// chooseGateways measures the candidates now and then, and when the gateway stops
// answering, and asks the controllers for a better one. The view follows.
func (l *laptop) chooseGateways(ctx context.Context, m *member, f *follower) {
	for {
		followed, probed := f.changed.C(), l.prober.changed.C()
		next := l.cfg.Timing.Measure
		if v := f.View(); v != nil {
			if err := l.chooseOnce(ctx, m, v); err != nil {
				next = min(next, 2*time.Second)
			}
		}
		if !l.untilMeasure(ctx, f, next, followed, probed) {
			return
		}
	}
}

func (l *laptop) chooseOnce(ctx context.Context, m *member, v *mesh.View) error {
	current, want, out := v.Client.Gateway, l.cfg.Gateway, false
	if want == "" {
		measured := measureGateways(ctx, candidates(v))
		through := l.prober.results()[current]
		for i, c := range measured {
			measured[i].rests = l.outages.rests(c.name, time.Now())
			// A host that answers no echo is still as far as its tunnel says.
			if c.name == current && c.rtt == 0 && !through.Suspect {
				measured[i].rtt = through.RTT
			}
		}
		l.gateways.Store(&measured)
		out = l.gatewayOut(current)
		want = chooseGateway(current, out, measured)
	}
	if want == current || want == "" || ctx.Err() != nil {
		l.problems.set("gateway", "")
		return nil
	}
	err := m.do(ctx, http.MethodPut, "/v1/nodes/self/gateway", api.GatewayRequest{Gateway: want}, nil)
	if err == nil {
		l.log.Info("gateway", "host", want, "before", current)
		if out {
			l.outages.add(current, time.Now())
		}
	} else {
		err = fmt.Errorf("change the gateway from %s to %s: %w", current, want, err)
	}
	if ctx.Err() == nil && l.problems.err("gateway", err) && err != nil {
		l.log.Warn("gateway not changed", "err", err)
	}
	return err
}

// gatewayOut reports whether the gateway has not answered through the tunnel for
// long.
func (l *laptop) gatewayOut(name string) bool {
	r := l.prober.results()[name]
	more := l.cfg.Timing.GatewayOut - l.cfg.Timing.Probe.SuspectAfter
	return r.Suspect && time.Since(r.SuspectSince) >= max(more, 0)
}

// untilMeasure waits until it is time to measure again: after d; when other hosts
// can be gateways; when the gateway is out.
func (l *laptop) untilMeasure(ctx context.Context, f *follower, d time.Duration, followed, probed <-chan struct{}) bool {
	due := time.NewTimer(d)
	defer due.Stop()
	before := gatewayNames(f.View())
	for {
		v := f.View()
		if before == "" && v != nil {
			return true
		}
		if gatewayNames(v) != before || v != nil && d == l.cfg.Timing.Measure && l.gatewayOut(v.Client.Gateway) && l.cfg.Gateway == "" {
			// Not more often than this, whatever happens.
			return wait(ctx, time.Second, nil)
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-due.C:
			timer.Stop()
			return true
		case <-followed:
			followed = f.changed.C()
		case <-probed:
			probed = l.prober.changed.C()
		case <-timer.C:
		}
		timer.Stop()
	}
}

func gatewayNames(v *mesh.View) string {
	if v == nil {
		return ""
	}
	var names []string
	for _, c := range candidates(v) {
		names = append(names, c.name)
	}
	return v.Client.Gateway + ": " + strings.Join(names, " ")
}

// routes is the local API of a laptop.
func (l *laptop) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		s, err := l.status(r.Context())
		answer(w, s, err)
	})
	mux.HandleFunc("GET /v1/dig", func(w http.ResponseWriter, r *http.Request) {
		v, err := l.view()
		if err != nil {
			refuse(w, err)
			return
		}
		q := r.URL.Query()
		d, err := dig(r.Context(), nil, v, q.Get("org"), q.Get("name"), q.Get("type"))
		answer(w, d, err)
	})
	mux.HandleFunc("GET /v1/explain", l.answerExplain)
	mux.HandleFunc("GET /v1/top", l.answerTop)
	mux.HandleFunc("GET /v1/ping", func(w http.ResponseWriter, r *http.Request) {
		v, err := l.view()
		if err != nil {
			refuse(w, err)
			return
		}
		q := r.URL.Query()
		p, err := ping(r.Context(), nil, v, q.Get("org"), q.Get("name"))
		answer(w, p, err)
	})
	mux.HandleFunc("POST /v1/down", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		http.NewResponseController(w).Flush()
		l.log.Info("asked to go down")
		l.down()
	})
	return mux
}

func (l *laptop) view() (*mesh.View, error) {
	if f := l.follower.Load(); f != nil && f.View() != nil {
		return f.View(), nil
	}
	return nil, notYet(&l.problems)
}

func (l *laptop) status(ctx context.Context) (local.Status, error) {
	base := local.Status{Version: l.cfg.Version, Backend: "userspace", Link: l.cfg.Link, Problems: l.problems.list()}
	if m := l.member.Load(); m != nil {
		base.Node, base.Controllers = m.node().String(), m.servers()
	}
	v, err := l.view()
	if err != nil {
		return base, nil
	}
	stats, err := l.device.stats(ctx)
	if err != nil {
		return base, err
	}
	measured := facts(v.Hosts, l.prober.results(), nil, time.Time{}, 0)
	s := statusOf(v, l.follower.Load().Contact(), stats, measured, time.Now())
	s.Version, s.Backend, s.Link, s.Problems = base.Version, base.Backend, base.Link, base.Problems
	s.Controllers = base.Controllers
	s.MTU, s.DNS = linkMTU(l.cfg.MTU, v), l.names.how()
	if g := l.gateways.Load(); g != nil {
		s.Gateways = gatewayStates(*g)
	}
	return s, nil
}
