package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/firewall"
	"github.com/weftmesh/weft/peers/link"
	"github.com/weftmesh/weft/peers/netns"
	"github.com/weftmesh/weft/peers/userspace"
)

// plane is a host's data plane: a network namespace with everything in it that the
// loop looks after. It is the system of the program.
type plane struct {
	cfg  HostConfig
	ns   *netns.Handle
	wall *firewall.Firewall
	mtu  func() int

	device    guardedDevice
	resolvers sockets
	prober    proberSlot
	server    atomic.Pointer[dns.Server]
	forward   atomic.Pointer[dns.Forwarder]
	queries   *queryLog // nil: queries are not logged; of the loop alone
	zone      *zones
	facts     atomic.Pointer[dns.Facts]
	wake      func() // the loop, for a whole pass: something of ours has ended
	log       *slog.Logger
}

// openPlane makes the namespace, or finds the one that an earlier agent left with
// its machines in it. In a new one nothing passes from the first moment on.
func openPlane(ctx context.Context, cfg HostConfig, mtu func() int, zone *zones, wake func()) (_ *plane, err error) {
	p := &plane{cfg: cfg, mtu: mtu, zone: zone, wake: wake, log: cfg.Log}
	p.facts.Store(&dns.Facts{})
	if cfg.Disable[DisableNamespace] {
		p.ns, err = netns.OpenPath("/proc/self/ns/net")
	} else {
		p.ns, err = netns.Open(cfg.Namespace)
	}
	fresh := errors.Is(err, os.ErrNotExist)
	if fresh {
		if p.ns, err = netns.Create(cfg.Namespace); err == nil {
			p.log.Info("data plane made", "namespace", cfg.Namespace)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("data plane: %w", err)
	}
	defer func() {
		if err != nil {
			p.ns.Close()
			if fresh {
				err = errors.Join(err, netns.Remove(cfg.Namespace))
			}
		}
	}()
	if p.wall, err = firewall.New(p.ns, cfg.Log); err != nil {
		return nil, err
	}
	// One that was here before has a table already, which lets its machines work
	// until the first pass; an empty policy would cut them off.
	if fresh && !cfg.Disable[DisableFirewall] {
		if _, err = p.wall.Set(ctx, peers.Policy{}); err != nil {
			return nil, fmt.Errorf("firewall: %w", err)
		}
	}
	if cfg.Disable[DisableFirewall] {
		if err = p.wall.Remove(); err != nil {
			return nil, err
		}
	}
	return p, link.Prepare(p.ns)
}

// Close ends what lives in this process: sockets, probes, a WireGuard link that
// neither the kernel nor another process holds. The namespace stays, with the firewall,
// the machines' links, the other WireGuard links and the unreachable route: a restart
// finds all of it, and until then
// nothing leaks.
func (p *plane) Close() error {
	p.resolvers.close()
	if p.queries != nil {
		p.queries.close()
	}
	p.prober.close()
	end := p.device.leave
	if p.cfg.Disable[DisableNamespace] {
		end = p.device.close // nobody would look for the link in the host's own namespace
	}
	err := end()
	p.wall.Close()
	return errors.Join(err, p.ns.Close())
}

// Attached implements system.
func (p *plane) Attached() ([]attach.Found, error) { return attach.List(p.ns) }

// Detach implements system.
func (p *plane) Detach(name string) error { return attach.Detach(p.ns, name) }

// Firewall implements system.
func (p *plane) Firewall(ctx context.Context, policy peers.Policy) error {
	_, err := p.wall.Set(ctx, policy)
	return err
}

// Device implements system.
func (p *plane) Device() (peers.Device, error) {
	return p.device.open(p.openDevice)
}

func deviceHint(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return mesh.WithHint(err, "run as root")
	case errors.Is(err, os.ErrNotExist):
		return mesh.WithHint(err, "load the driver: modprobe tun")
	case errors.Is(err, os.ErrExist):
		return mesh.WithHint(err, "is another weft running? choose another name with --link")
	}
	return err
}

// Link implements system.
func (p *plane) Link(c link.Config) ([]string, error) {
	changes, err := link.Sysctls(p.ns)
	if own := !p.cfg.Disable[DisableNamespace]; own {
		named, nameErr := p.ns.Name(p.cfg.Namespace)
		if named {
			changes = append(changes, "name namespace "+p.cfg.Namespace)
		}
		err = errors.Join(err, nameErr)
		c.OwnRules = true
	}
	more, linkErr := link.Set(p.ns, c)
	return append(changes, more...), errors.Join(err, linkErr)
}

// Names implements system: resolvers' sockets come and go with the networks. The zone
// that they answer from follows the view by itself, see zones.
func (p *plane) Names(v *mesh.View) error {
	if p.cfg.Disable[DisableDNS] {
		return nil
	}
	want := map[netip.Addr]dns.Role{v.Plan.Resolver(0): {}}
	for _, o := range v.Orgs {
		want[v.Plan.Resolver(o.Network)] = dns.Role{Network: v.Plan.Network(o.Network)}
	}
	if p.resolvers.server == nil {
		server, err := p.resolver(v.Plan.Prefix())
		if err != nil {
			return err
		}
		p.resolvers.server = server
		p.server.Store(server)
	}
	return p.resolvers.set(want, p.listenDNS, p.log, p.wake)
}

// listenDNS binds both sockets of one resolver inside the plane.
func (p *plane) listenDNS(at netip.Addr) (udp net.PacketConn, tcp net.Listener, err error) {
	to := netip.AddrPortFrom(at, dnsPort)
	err = p.ns.Do(func() (err error) {
		if udp, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(to)); err != nil {
			return err
		}
		if tcp, err = net.ListenTCP("tcp6", net.TCPAddrFromAddrPort(to)); err != nil {
			udp.Close()
		}
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("resolver %s: %w", at, err)
	}
	return udp, tcp, nil
}

const dnsPort = 53

// Probes implements system.
func (p *plane) Probes(v *mesh.View) error {
	self := v.Plan.HostAddr(0, v.Host.Position())
	p.prober.allowed.set(probeSources(v))
	return p.prober.set(self, probeTargets(v), probe.Config{
		Port: p.cfg.ProbePort, Timing: p.cfg.Timing.Probe, Silent: p.cfg.Disable[DisableProbes], Log: p.log,
	}, func() (conn *net.UDPConn, err error) {
		err = p.ns.Do(func() (err error) {
			conn, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(self, p.cfg.ProbePort)))
			return err
		})
		return conn, err
	})
}

// guardedDevice is the device with its lock: the loop works on it, and Status asks
// it, but it takes one goroutine at a time.
type guardedDevice struct {
	mu     sync.Mutex // held while a method of device runs
	device peers.Device
	gone   atomic.Bool // the device said that it is closed
}

// open returns the device, made by create if there is none or it has ended.
func (g *guardedDevice) open(create func() (peers.Device, error)) (peers.Device, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.device != nil && g.gone.Swap(false) {
		g.device.Close()
		g.device = nil
	}
	if g.device == nil {
		device, err := create()
		if err != nil {
			return nil, err
		}
		g.device = device
	}
	return lockedDevice{g, g.device}, nil
}

func (g *guardedDevice) stats(ctx context.Context) ([]peers.Stats, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.device == nil {
		return nil, nil
	}
	return g.device.Stats(ctx)
}

func (g *guardedDevice) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.device == nil {
		return nil
	}
	return g.device.Close()
}

// lockedDevice is a peers.Device that takes the lock for each call.
type lockedDevice struct {
	guard  *guardedDevice
	device peers.Device
}

func (d lockedDevice) noted(err error) error {
	if errors.Is(err, peers.ErrClosed) {
		d.guard.gone.Store(true)
	}
	return err
}

func (d lockedDevice) Config(ctx context.Context) (peers.Config, error) {
	d.guard.mu.Lock()
	defer d.guard.mu.Unlock()
	c, err := d.device.Config(ctx)
	return c, d.noted(err)
}

func (d lockedDevice) Apply(ctx context.Context, changes []peers.Change) error {
	d.guard.mu.Lock()
	defer d.guard.mu.Unlock()
	return d.noted(d.device.Apply(ctx, changes))
}

func (d lockedDevice) Stats(ctx context.Context) ([]peers.Stats, error) {
	d.guard.mu.Lock()
	defer d.guard.mu.Unlock()
	s, err := d.device.Stats(ctx)
	return s, d.noted(err)
}

func (d lockedDevice) Close() error { return d.guard.close() }

// Clean takes away everything that agents with this configuration left in the
// system: the userspace device's process, the machines' links, the data plane's
// namespace, the local socket. State
// on disk stays. It is for uninstalling, with no agent running; nothing there is
// not an error.
func Clean(ctx context.Context, c HostConfig) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	ns, err := netns.Open(c.Namespace)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	_, endErr := userspace.End(ctx, c.remote(ns, 0))
	found, err := attach.List(ns)
	errs := []error{endErr, err}
	for _, f := range found {
		errs = append(errs, attach.Detach(ns, f.Link))
	}
	if err := os.Remove(c.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, netns.Remove(c.Namespace))...)
}

// underlayRoom is what a WireGuard packet adds to the packet in it, over IPv6:
// 40 (IPv6) + 8 (UDP) + 32 (WireGuard).
const underlayRoom = 80

var _ system = (*plane)(nil)
