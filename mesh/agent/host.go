package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// host is a running agent.
type host struct {
	cfg      HostConfig
	log      *slog.Logger
	problems problems
	started  time.Time

	member   atomic.Pointer[member] // nil until it is known who this is
	ready    atomic.Pointer[ready]  // nil until plane and machines are set
	plane    *plane
	machines *machines
	effect   atomic.Pointer[applied]
	effected signal
	woken    signal // the loop
	passes   atomic.Uint64
	passTime atomic.Int64 // of the last pass
	presence presenceSlot
	surveyor *surveyor
	settler  dns.Settler // of facts alone
	paths    paths

	own        atomic.Pointer[[]netip.Addr] // the host's addresses; nil: not known yet
	renumbered signal                       // they have changed
}

// ready is what the local API needs besides what host holds.
type ready struct{ follower *follower }

// RunHost is the agent of a host: it joins the mesh if it has not yet, and makes
// the host what its view says, until ctx ends (nil). What then stays, so that
// machines and a restart find it: the data plane's namespace with the firewall and
// the machines' links, and the tunnels if they are the kernel's. See Clean.
//
// It retries everything that may get better. An error ends it only if the
// configuration cannot be right, something it needs is missing on this system, the
// mesh refuses it (a wrong pin, a refused token), or another node has its key.
func RunHost(ctx context.Context, cfg HostConfig) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if cfg.Backend, err = cfg.chooseBackend(); err != nil {
		return err
	}
	cfg.recall()
	if err := checkSystem(cfg.Backend == BackendUserspace, cfg.keptPort(), cfg.Socket); err != nil {
		return err
	}
	h := &host{cfg: cfg, log: cfg.Log, started: time.Now(), paths: paths{configured: cfg.MTU}}
	if h.surveyor, err = newSurveyor(); err != nil {
		return err
	}
	state, err := openState(cfg.Join, mesh.KindHost)
	if err != nil {
		return err
	}
	defer state.close()
	server, err := listenLocal(cfg.Socket, h.routes(), h.log)
	if err != nil {
		state.undo()
		return err
	}
	stats, err := listenMetrics(cfg.Metrics)
	if err != nil {
		server.close()
		state.undo()
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.run(ctx) })
	if stats != nil {
		group.Go(func() error { return h.serveMetrics(ctx, stats) })
	}
	group.Go(func() error { return h.run(ctx, state, group) })
	err = group.Wait()
	if h.plane != nil {
		err = errors.Join(err, h.plane.Close())
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// run joins and then starts the parts, in the order in which they need each other.
func (h *host) run(ctx context.Context, state *state, group *errgroup.Group) error {
	m, err := state.join(ctx, h.cfg.Timing, &h.problems, h.log, api.EnrollRequest{
		Endpoint: endpointText(h.cfg.Endpoint), Port: h.cfg.Port, NAT: h.cfg.NAT, Region: h.cfg.Region,
	})
	if err != nil {
		return err
	}
	h.member.Store(m)
	dir := h.cfg.StateDir
	if h.cfg.Disable[DisableCache] {
		dir = ""
	}
	f := newFollower(m.node(), dir, h.cfg.Timing, m, &h.problems, h.log)
	if h.cfg.Disable[DisableSnapshotHold] {
		f.current.holdFor = 0
	}
	h.presence.start(h.cfg.Timing.Lease, !h.cfg.Disable[DisablePresenceHold])
	zone := newZones(h.cfg.Disable)
	feed, alarms := &feed{}, &alarms{wake: h.woken.fire}
	recheck := func() { alarms.raise("") }
	heard := &events{wake: h.woken.fire}
	h.paths.changed = recheck
	f.confirm, f.wake = h.presence.confirm, h.woken.fire
	f.names = func(v *version, step *mesh.Delta) {
		zone.follow(v, step)
		feed.add(v, step)
	}
	f.once = h.cfg.Disable[DisableReconnect]
	if dir != "" {
		f.tail = newTail(strings.TrimSuffix(h.cfg.Socket, ".sock")+tailSuffix, dir, m.node())
	}
	f.load()

	h.machines, err = openMachines(&machines{
		host: m.node().Name, dir: h.cfg.StateDir, request: m.do, reclaim: h.cfg.Timing.Reclaim,
		keep: h.cfg.Disable[DisableLeave], contact: f.Contact, wake: h.woken.fire, recheck: recheck, log: h.log,
	})
	if err != nil {
		return err
	}
	if h.plane, err = openPlane(ctx, h.cfg, func() int { return h.mtu(f.View()) }, zone, recheck); err != nil {
		return err
	}
	h.ready.Store(&ready{f})
	l := &loop{
		system: h.plane, machines: h.machines, tunnels: tunnels{key: m.wireguard(), port: h.cfg.Port, later: func() { time.AfterFunc(retire, h.woken.fire) }, log: h.log}, link: h.cfg.Link,
		alias: h.cfg.alias(), probe: h.cfg.ProbePort, mtu: h.mtu, sizes: h.paths.known, contact: f.Contact, reach: f.Reach, differ: zone.differ, correct: zone.correct, feed: feed, alarms: alarms, events: heard, timing: h.cfg.Timing, log: h.log, noWall: h.cfg.Disable[DisableFirewall],
		noClients: h.cfg.Disable[DisableClients],
	}
	group.Go(func() error { return f.Run(ctx) })
	if !h.cfg.Disable[DisableRenewal] {
		group.Go(func() error { m.renew(ctx); return nil })
	}
	group.Go(func() error { h.plane.watch(ctx, heard); return nil })
	group.Go(func() error { h.machines.run(ctx, h.cfg.Timing); return nil })
	group.Go(func() error { h.facts(ctx, f); return nil })
	group.Go(func() error { watchUnderlay(ctx, func() { h.lookUnder(f) }); return nil })
	group.Go(func() error { h.report(ctx, m, f); return nil })
	passes{h.cfg.Timing, &h.problems, h.log}.runPaced(ctx, h.woken.C, func() (time.Duration, error) {
		start := time.Now()
		a, pause, err := l.next(ctx)
		if a != nil {
			h.passes.Add(1)
			h.passTime.Store(int64(time.Since(start)))
			h.problems.set("endpoint", h.endpointProblem(a.view))
			h.effect.Store(a)
			h.effected.fire()
		}
		h.fight(alarms.sentence(time.Now()))
		return pause, err
	})
	return nil
}

// fight tells of somebody who keeps changing what the loop puts right.
func (h *host) fight(sentence string) {
	if h.problems.set("drift", sentence) && sentence != "" {
		h.log.Warn("something else keeps changing the data plane", "what", sentence)
	}
}

// endpointProblem tells of an endpoint that was configured after the host joined:
// others are told the one that it joined with.
func (h *host) endpointProblem(v *mesh.View) string {
	switch e := h.cfg.Endpoint; {
	case e.IsValid() && !slices.Contains(v.Host.Endpoints, e):
		return fmt.Sprintf("the mesh tells others to reach this host at %v, not at %s as configured", v.Host.Endpoints, e)
	case !e.IsValid() && !v.Host.NAT && len(v.Host.Endpoints) > 0 && v.Host.Endpoints[0].Port() != h.cfg.Port:
		return fmt.Sprintf("the mesh tells others to reach this host at %v, and its WireGuard port is %d", v.Host.Endpoints, h.cfg.Port)
	}
	return ""
}

func endpointText(e netip.AddrPort) string {
	if !e.IsValid() {
		return ""
	}
	return e.String()
}

// facts tells the resolver what is known of the hosts, as soon as it is known.
func (h *host) facts(ctx context.Context, f *follower) {
	ways := newWays(h)
	for {
		probed, followed := h.plane.prober.changed.C(), f.hosts.C()
		if v := f.Hosts(); v != nil {
			measured := h.plane.prober.results()
			now := facts(v.Hosts, measured, h.presence.get(), f.Reach().last, h.cfg.Timing.Dead)
			h.surveyor.observe(v, measured, time.Now())
			h.surveyor.estimate(now, v.Hosts)
			h.publish(now)
			ways.look(ctx, v, measured, time.Now())
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-probed:
		case <-followed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (h *host) publish(now dns.Facts) {
	for name, f := range now {
		if h.cfg.Disable[DisableSuspect] {
			f.Suspect, f.Dead = false, false
		}
		if h.cfg.Disable[DisableNear] {
			f.RTT, f.Estimate = 0, 0
		}
		if h.cfg.Disable[DisableProbes] {
			f.Estimate = 0
		}
		now[name] = f
	}
	before := *h.plane.facts.Load()
	settled := h.settler.Settle(now, time.Now())
	for name, f := range settled {
		if was := before[name]; was.Suspect != f.Suspect || was.Dead != f.Dead {
			h.log.Info("host", "host", name, "state", hostState(f), "rtt", f.RTT.Round(time.Microsecond))
		}
	}
	h.plane.facts.Store(&settled)
}
