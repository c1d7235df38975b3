package world

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
)

// Controller is a controller, and the host that it runs on.
type Controller struct {
	*lab.Host
	URL     string
	DataDir string
	Flags   []string // after those that the world gives; changed before a start
	Process *lab.Process
}

// AddController makes a host, ctl for the first controller, then ctl2, ctl3, ...,
// and starts a controller on it. What a controller after the first needs to serve
// the same mesh, the seal key, is copied from the first one.
func (w *World) AddController(ctx context.Context) (*Controller, error) {
	c, err := w.PlaceController()
	if err != nil {
		return nil, err
	}
	if first := w.Controllers[0]; c != first {
		if w.cfg.Etcd == nil {
			return nil, errors.New("several controllers need a cluster of etcd")
		}
		if err := w.CopySealKey(first, c); err != nil {
			return nil, err
		}
	}
	return c, w.Run(ctx, c)
}

// PlaceController is AddController without the seal key and without the start.
func (w *World) PlaceController() (*Controller, error) {
	name, dir := "ctl", "controller"
	if n := len(w.Controllers); n > 0 {
		name, dir = fmt.Sprintf("ctl%d", n+1), fmt.Sprintf("controller%d", n+1)
	}
	host, err := w.cfg.Lab.Host(name, lab.HostConfig{})
	if err != nil {
		return nil, err
	}
	c := &Controller{
		Host: host, DataDir: filepath.Join(w.cfg.Lab.Dir(), dir), Flags: slices.Clone(w.cfg.ControllerFlags),
		URL: "https://" + netip.AddrPortFrom(host.Addr(), 7443).String(),
	}
	if w.cfg.Etcd != nil {
		c.Flags = append(w.cfg.Etcd.Flags(), c.Flags...)
	}
	if len(w.Controllers) == 0 {
		w.Controller, w.URL = host, c.URL
	}
	w.Controllers = append(w.Controllers, c)
	return c, nil
}

// CopySealKey does what the operator does with scp.
func (w *World) CopySealKey(from, to *Controller) error {
	key, err := os.ReadFile(filepath.Join(from.DataDir, "seal.key"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to.DataDir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to.DataDir, "seal.key"), key, 0o600)
}

// Migrate has a controller, which has ended, move the mesh in it to a cluster, which
// all controllers are on from their next start.
func (w *World) Migrate(ctx context.Context, c *Controller, to *Etcd) (string, error) {
	out, err := c.Host.Run(ctx, w.bin("weft-controller"), append([]string{"migrate", "--data-dir", c.DataDir}, to.Flags()...)...)
	if err != nil {
		return out, err
	}
	w.cfg.Etcd = to
	for _, c := range w.Controllers {
		c.Flags = append(to.Flags(), w.cfg.ControllerFlags...)
	}
	return out, nil
}

// Launch starts a controller, for the first time or again.
func (w *World) Launch(c *Controller) (err error) {
	args := append([]string{"run", "--data-dir", c.DataDir, "--listen", "[::]:7443", "--advertise", c.URL}, c.Flags...)
	c.Process, err = c.Start("controller", w.bin("weft-controller"), args, nil)
	return err
}

// Run is Launch, and returns when the controller is ready.
func (w *World) Run(ctx context.Context, c *Controller) error {
	if err := w.Launch(c); err != nil {
		return err
	}
	return w.AwaitReady(ctx, c)
}

// AwaitReady waits until a controller says that it is ready.
func (w *World) AwaitReady(ctx context.Context, c *Controller) error {
	return lab.Await(ctx, "controller "+c.Name()+" to be ready", 20*time.Second, func(ctx context.Context) error {
		if c.Process.Exited() {
			return lab.Hopeless(fmt.Errorf("it has ended: %s", c.Process.LastLine()))
		}
		_, err := c.Host.Run(ctx, "curl", "-sSkf", "--max-time", "2", c.URL+"/readyz")
		return err
	})
}

// StartController starts the first controller and returns when it is ready.
func (w *World) StartController(ctx context.Context) error { return w.Run(ctx, w.Controllers[0]) }

// ControllerProcess is the first controller as it runs.
func (w *World) ControllerProcess() *lab.Process { return w.Controllers[0].Process }

// KillController ends the first controller, and etcd if it is in it, at once.
func (w *World) KillController() error { return w.Controllers[0].Process.Kill() }

// URLs are where the controllers are.
func (w *World) URLs() []string {
	var out []string
	for _, c := range w.Controllers {
		out = append(out, c.URL)
	}
	return out
}
