package agent

import (
	"errors"
	"fmt"
	"os"

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

// openDevice makes the WireGuard link, or finds the kernel's that an earlier agent
// left.
func (p *plane) openDevice() (d peers.Device, err error) {
	made := "WireGuard link made"
	if p.cfg.Backend == BackendKernel {
		k, err := kernel.New(kernel.Config{Name: p.cfg.Link, MTU: p.mtu(), Plane: p.ns, Adopt: true})
		if err != nil {
			return nil, kernelHint(err)
		}
		if k.Adopted() {
			made = "WireGuard link found"
		}
		d = k
	} else {
		// An earlier agent may have had the other backend.
		if err := kernel.Remove(p.ns, p.cfg.Link); err != nil {
			return nil, err
		}
		d, err = userspace.New(userspace.Config{Name: p.cfg.Link, MTU: p.mtu(), Plane: p.ns, SocketDir: p.cfg.SocketDir, Log: p.log})
		if err != nil {
			return nil, deviceHint(err)
		}
	}
	p.log.Info(made, "link", p.cfg.Link, "backend", p.cfg.Backend, "namespace", p.cfg.Namespace, "mtu", p.mtu())
	return d, nil
}

func kernelHint(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return mesh.WithHint(err, "load the module: modprobe wireguard; or use --backend userspace")
	}
	return deviceHint(err)
}

// keptPort is the UDP port that must be free: none if an earlier agent left its link
// in the kernel, which holds it.
func (c HostConfig) keptPort() uint16 {
	ns, err := netns.Open(c.Namespace)
	if err != nil {
		return c.Port
	}
	defer ns.Close()
	if kept, err := kernel.Exists(ns, c.Link); err != nil || !kept {
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
