package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/kernel"
	"github.com/weftmesh/weft/peers/netns"
	"github.com/weftmesh/weft/peers/userspace"
)

// Backends of a host's WireGuard link: who encrypts.
const (
	BackendAuto      = "auto"      // the kernel if it can, else userspace
	BackendKernel    = "kernel"    // its tunnels outlive the agent
	BackendUserspace = "userspace" // needs a TUN driver only
)

// chooseBackend says which of the two it is. The kernel is asked once.
func (c HostConfig) chooseBackend() (string, error) {
	switch c.Backend {
	case BackendUserspace:
		return BackendUserspace, nil
	case "", BackendAuto, BackendKernel:
	default:
		return "", fmt.Errorf("backend %q: want %s, %s or %s", c.Backend, BackendAuto, BackendKernel, BackendUserspace)
	}
	err := kernel.Available()
	switch {
	case err == nil:
		return BackendKernel, nil
	case c.Backend == BackendKernel:
		return "", kernelHint(err)
	}
	c.Log.Info("WireGuard runs in userspace", "why", err)
	return BackendUserspace, nil
}

// openDevice makes the WireGuard link, or finds the one that an earlier agent left: in
// the kernel, or with the process that holds it.
func (p *plane) openDevice() (peers.Device, error) {
	open := p.openUserspace
	switch {
	case p.cfg.Backend == BackendKernel:
		open = p.openKernel
	case p.cfg.deviceProcess():
		open = p.openProcess
	}
	return open()
}

func (p *plane) openKernel() (peers.Device, error) {
	// An earlier agent may have had the other backend.
	if _, err := userspace.End(context.Background(), p.cfg.remote(p.ns, p.mtu())); err != nil {
		return nil, err
	}
	k, err := kernel.New(kernel.Config{Name: p.cfg.Link, MTU: p.mtu(), Plane: p.ns, Adopt: true})
	if err != nil {
		return nil, kernelHint(err)
	}
	p.opened(k.Adopted())
	return k, nil
}

func (p *plane) openUserspace() (peers.Device, error) {
	if err := kernel.Remove(p.ns, p.cfg.Link); err != nil {
		return nil, err
	}
	d, err := userspace.New(userspace.Config{Name: p.cfg.Link, MTU: p.mtu(), Plane: p.ns, SocketDir: p.cfg.SocketDir, Log: p.log})
	if err != nil {
		return nil, deviceHint(err)
	}
	p.opened(false)
	return d, nil
}

func (p *plane) openProcess() (peers.Device, error) {
	if err := kernel.Remove(p.ns, p.cfg.Link); err != nil {
		return nil, err
	}
	c, began := p.cfg.remote(p.ns, p.mtu()), time.Now()
	c.Ended = func(why error) {
		p.log.Error("the device's process is lost, and another one is started", "link", p.cfg.Link, "why", why)
		// One that ends as soon as it is there is not started as fast as that.
		time.AfterFunc(max(0, deviceRest-time.Since(began)), func() {
			p.device.gone.Store(true)
			p.wake()
		})
	}
	d, err := userspace.Attach(context.Background(), c)
	if err != nil {
		return nil, deviceHint(err)
	}
	p.opened(d.Found(), "pid", d.About().Pid, "version", d.About().Version)
	return d, nil
}

// deviceRest is the least time between two starts of a device's process.
const deviceRest = time.Second

func (p *plane) opened(found bool, more ...any) {
	what := "WireGuard link made"
	if found {
		what = "WireGuard link found"
	}
	p.log.Info(what, append([]any{"link", p.cfg.Link, "backend", p.cfg.Backend, "namespace", p.cfg.Namespace, "mtu", p.mtu()}, more...)...)
}

// deviceProcess reports whether a userspace device has a process of its own.
func (c HostConfig) deviceProcess() bool {
	// Nobody would look for a link in the host's own namespace.
	return c.Backend == BackendUserspace && c.Device != nil && !c.Disable[DisableNamespace]
}

// remote says which process holds, or is to hold, the userspace device.
func (c HostConfig) remote(ns *netns.Handle, mtu int) userspace.RemoteConfig {
	r := userspace.RemoteConfig{Name: c.Link, Plane: ns, Namespace: c.Namespace, SocketDir: c.SocketDir, Log: c.Log}
	if c.Device != nil {
		r.Command = func() *exec.Cmd {
			return c.Device(userspace.ProcessConfig{Name: c.Link, MTU: mtu, Namespace: c.Namespace, SocketDir: c.SocketDir})
		}
	}
	return r
}

// processText names the process that holds the device, "" if it is this one, or the
// kernel.
func (g *guardedDevice) processText() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r, ok := g.device.(*userspace.Remote); ok {
		return fmt.Sprintf("%s, process %d", r.About().Version, r.About().Pid)
	}
	return ""
}

func kernelHint(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return mesh.WithHint(err, "load the module: modprobe wireguard; or use --backend userspace")
	}
	return deviceHint(err)
}

// keptPort is the UDP port that must be free: none if an earlier agent left its link
// in the kernel or with a process, which holds it.
func (c HostConfig) keptPort() uint16 {
	ns, err := netns.Open(c.Namespace)
	if err != nil {
		return c.Port
	}
	defer ns.Close()
	kept, err := kernel.Exists(ns, c.Link)
	if !kept && c.Device != nil {
		kept = userspace.Held(context.Background(), c.remote(ns, 0))
	}
	if err != nil || !kept {
		return c.Port
	}
	return 0
}

// leave ends the device, or lets it go if it can do without this process.
func (g *guardedDevice) leave() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if kept, ok := g.device.(interface{ Release() error }); ok {
		return kept.Release()
	}
	if g.device == nil {
		return nil
	}
	return g.device.Close()
}
