package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

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
	presence presenceSlot
}

// ready is what the local API needs besides what host holds.
type ready struct{ follower *follower }

// RunHost is the agent of a host: it joins the mesh if it has not yet, and makes
// the host what its view says, until ctx ends (nil). What then stays, so that
// machines and a restart find it: the data plane's namespace with the firewall and
// the machines' links; the tunnels end with the process. See Clean.
//
// It retries everything that may get better. An error ends it only if the
// configuration cannot be right, something it needs is missing on this system, the
// mesh refuses it (a wrong pin, a refused token), or another node has its key.
func RunHost(ctx context.Context, cfg HostConfig) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if err := checkSystem(cfg.Port, cfg.Socket); err != nil {
		return err
	}
	h := &host{cfg: cfg, log: cfg.Log, started: time.Now()}
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
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.run(ctx) })
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
	f.confirm, f.wake = h.presence.confirm, h.woken.fire
	f.load()

	h.machines, err = openMachines(&machines{
		host: m.node().Name, dir: h.cfg.StateDir, request: m.do, reclaim: h.cfg.Timing.Reclaim,
		keep: h.cfg.Disable[DisableLeave], wake: h.woken.fire, log: h.log,
	})
	if err != nil {
		return err
	}
	if h.plane, err = openPlane(ctx, h.cfg, func() int { return h.mtu(f.View()) }, h.woken.fire); err != nil {
		return err
	}
	h.ready.Store(&ready{f})
	l := &loop{
		system: h.plane, machines: h.machines, tunnels: tunnels{key: m.wireguard(), port: h.cfg.Port, log: h.log}, link: h.cfg.Link,
		probe: h.cfg.ProbePort, mtu: h.mtu, contact: f.Contact, log: h.log, noWall: h.cfg.Disable[DisableFirewall],
	}
	group.Go(func() error { return f.Run(ctx) })
	if !h.cfg.Disable[DisableRenewal] {
		group.Go(func() error { m.renew(ctx); return nil })
	}
	group.Go(func() error { h.machines.run(ctx, h.cfg.Timing); return nil })
	group.Go(func() error { h.facts(ctx, f); return nil })
	group.Go(func() error { h.report(ctx, m, f); return nil })
	passes{h.cfg.Timing, &h.problems, h.log}.run(ctx, h.woken.C, func() error {
		v := f.View()
		if v == nil {
			return nil
		}
		a, err := l.pass(ctx, v)
		h.effect.Store(&a)
		h.effected.fire()
		return err
	})
	return nil
}

func endpointText(e netip.AddrPort) string {
	if !e.IsValid() {
		return ""
	}
	return e.String()
}

// facts tells the resolver what is known of the hosts, as soon as it is known.
func (h *host) facts(ctx context.Context, f *follower) {
	for {
		probed, followed := h.plane.prober.changed.C(), f.changed.C()
		if v := f.View(); v != nil {
			now := facts(v.Hosts, h.plane.prober.results(), h.presence.get(), f.Contact().last, h.cfg.Timing.Dead)
			h.publish(now)
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
			f.RTT = 0
		}
		now[name] = f
	}
	before := *h.plane.facts.Load()
	settled := before.Settle(now)
	for name, f := range settled {
		if was := before[name]; was.Suspect != f.Suspect || was.Dead != f.Dead {
			h.log.Info("host", "host", name, "state", hostState(f), "rtt", f.RTT.Round(time.Microsecond))
		}
	}
	h.plane.facts.Store(&settled)
}

// checkSystem looks, before anything is changed, for what a node cannot do without.
func checkSystem(port uint16, socket string) error {
	if os.Geteuid() != 0 {
		return mesh.WithHint(fmt.Errorf("make links and namespaces: %w", os.ErrPermission), "run as root")
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return mesh.WithHint(fmt.Errorf("make a tunnel: %w", err), "load the driver: modprobe tun")
	}
	if err != nil {
		return mesh.WithHint(fmt.Errorf("make a tunnel: %w", err), "may this program use TUN devices here? in a container it needs --device /dev/net/tun and NET_ADMIN")
	}
	tun.Close()
	if answers(socket) {
		return mesh.WithHint(fmt.Errorf("local socket %s: another one answers on it", socket), "only one can run here; end it, or give another --socket and --namespace")
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
	if err != nil {
		return mesh.WithHint(fmt.Errorf("WireGuard's UDP port %d: %w", port, err), "find who has it with: ss -lunp sport = :%d, or choose another one with --listen-port", port)
	}
	return udp.Close()
}

// state is a node's state directory in use by this process.
type state struct {
	cfg    Join
	kind   string
	lock   *os.File
	member *member // nil: it has to join
	made   []string
}

// openState locks the state directory. It makes nothing that would be left over if
// the join token cannot be right.
func openState(j Join, kind string) (*state, error) {
	s := &state{cfg: j, kind: kind}
	_, err := os.Stat(filepath.Join(j.StateDir, "node.json"))
	if errors.Is(err, os.ErrNotExist) {
		token, err := j.token()
		if err != nil {
			return nil, err
		}
		if token.Kind != kind {
			return nil, mesh.WithHint(fmt.Errorf("join token %s: it lets a %s join, and this is a %s", token.ID, token.Kind, kind), "make one with: weft token create --kind %s", kind)
		}
		if len(j.Controllers) == 0 {
			return nil, mesh.WithHint(errors.New("no controller is known"), "say where one is with --controller https://HOST:7443")
		}
		s.noteMissing()
	}
	if err := os.MkdirAll(j.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	path := filepath.Join(j.StateDir, "lock")
	if s.lock, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		s.lock.Close()
		return nil, mesh.WithHint(fmt.Errorf("state directory %s: another process uses it", j.StateDir), "end that one, or give another --state-dir")
	}
	return s, nil
}

// noteMissing remembers what is not there yet, deepest first, for undo.
func (s *state) noteMissing() {
	for _, name := range []string{"lock", "resolver.lock", "wireguard.key", "tls.key"} {
		s.made = append(s.made, filepath.Join(s.cfg.StateDir, name))
	}
	for dir := filepath.Clean(s.cfg.StateDir); ; dir = filepath.Dir(dir) {
		s.made = append(s.made, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	missing := s.made[:0]
	for _, path := range s.made {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			missing = append(missing, path)
		}
	}
	s.made = missing
}

// undo takes away what a node that was refused has made.
func (s *state) undo() {
	for _, path := range s.made {
		os.Remove(path) // a directory that somebody has put something into stays
	}
}

func (s *state) close() { s.lock.Close() }

// join returns the node's membership, and joins the mesh for it if need be.
func (s *state) join(ctx context.Context, t Timing, p *problems, log *slog.Logger, request api.EnrollRequest) (*member, error) {
	m, err := openMember(s.cfg, s.kind, t, p, log)
	if errors.Is(err, os.ErrNotExist) && m != nil {
		if err = m.enroll(ctx, s.cfg, request); err != nil && ctx.Err() == nil {
			s.undo()
		}
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}
