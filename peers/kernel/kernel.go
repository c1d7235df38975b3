// Package kernel is a peers.Device on the Linux kernel's WireGuard: the link is made
// by rtnetlink, tunnels are configured by generic netlink. The kernel encrypts, so a
// link may outlive the program that made it, see Release. Addresses, routes, the
// firewall and bringing the link up are for others.
//
// # The port
//
// The kernel opens the UDP sockets when the link comes up. Until then a port is only
// noted, and one that another program has shows as "address already in use" when the
// link is brought up; afterwards Apply tells.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

const (
	// DefaultMTU leaves room for WireGuard over IPv6 on an underlay of 1500.
	DefaultMTU = 1420
	// maxMTU is what the kernel takes: the largest packet less what goes around it.
	maxMTU = 65535 - 80
)

// Config says where a device is.
type Config struct {
	Name string // of the link: 1 to 15 bytes
	MTU  int    // of the link, 1280 to 65455; 0: DefaultMTU
	// Plane is the namespace of the link, Underlay that of its UDP sockets; nil: the
	// process's. Both may be closed after New.
	Plane, Underlay *netns.Handle
	// Adopt takes a WireGuard link of that name as it is, with its tunnels, instead of
	// os.ErrExist. Its sockets stay where they are.
	Adopt bool
}

// Device is one link. See peers.Device, and New.
type Device struct {
	caller
	link link
	wg   *wgctrl.Client

	closed    atomic.Bool
	closeOnce sync.Once
	closeErr  error
}

var _ peers.Device = (*Device)(nil)

// New makes the link, down and without addresses, with neither key nor peers; or
// adopts it. The caller closes the device.
//
// errors.Is tells os.ErrExist (the name is taken), os.ErrPermission (not allowed to
// make links) and os.ErrNotExist (this kernel has no WireGuard).
func New(c Config) (*Device, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	d := &Device{caller: newCaller()}
	var settled atomic.Bool
	err := d.call(context.Background(), func() error {
		err := d.open(c)
		if err == nil && !settled.CompareAndSwap(false, true) {
			return d.leave(d.link.made) // given up: nobody will close it
		}
		return err
	})
	if err != nil {
		if !settled.CompareAndSwap(false, true) {
			d.end(d.link.made) // given up at the moment in which it succeeded
		}
		return nil, fmt.Errorf("make the kernel's WireGuard link %s: %w", c.Name, err)
	}
	return d, nil
}

func (c *Config) validate() error {
	// "%" would have the kernel choose a number; the rest it refuses, without a reason.
	if n := len(c.Name); n < 1 || n > 15 || strings.ContainsAny(c.Name, "/:% \t\r\n\x00") || c.Name == "." || c.Name == ".." {
		return fmt.Errorf("link name %q: want 1 to 15 bytes without space, slash, colon, percent", c.Name)
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.MTU < 1280 || c.MTU > maxMTU {
		return fmt.Errorf("MTU %d of %s: want 1280 (the least for IPv6) to %d", c.MTU, c.Name, maxMTU)
	}
	return nil
}

// open runs on a goroutine of its own, and so in the process's namespace wherever
// the caller is.
func (d *Device) open(c Config) (err error) {
	if d.link, err = openLink(c); err != nil {
		return err
	}
	// The client belongs to the namespace in which it is made.
	err = c.Plane.Do(func() (err error) {
		d.wg, err = wgctrl.New()
		return err
	})
	if err == nil {
		_, err = d.dump()
	}
	if err != nil {
		if d.wg != nil {
			d.wg.Close()
		}
		if d.link.made {
			err = errors.Join(err, d.link.remove())
		}
		d.link.close()
	}
	return err
}

// Config implements peers.Device. While somebody else changes the device the kernel
// may leave out peers; those are added again in place, which changes nothing.
func (d *Device) Config(ctx context.Context) (peers.Config, error) {
	found, err := d.ask(ctx)
	if err != nil {
		return peers.Config{}, err
	}
	return config(found), nil
}

// Stats implements peers.Device.
func (d *Device) Stats(ctx context.Context) ([]peers.Stats, error) {
	found, err := d.ask(ctx)
	if err != nil {
		return nil, err
	}
	return stats(found), nil
}

func (d *Device) ask(ctx context.Context) (found *wgtypes.Device, err error) {
	if err = d.ready(ctx); err == nil {
		var answer *wgtypes.Device // written by a call that may be given up
		err = d.call(ctx, func() (err error) {
			answer, err = d.dump()
			return err
		})
		if err == nil {
			return answer, nil
		}
	}
	return nil, fmt.Errorf("ask %s: %w", d.link.name, err)
}

func (d *Device) dump() (*wgtypes.Device, error) {
	if err := d.link.check(); err != nil {
		return nil, err
	}
	found, err := d.wg.Device(d.link.name)
	// wgctrl looks for a userspace device of that name when the kernel has none.
	if errors.Is(err, os.ErrNotExist) || err == nil && found.Type != wgtypes.LinuxKernel {
		return nil, errGone
	}
	return found, err
}

// Apply implements peers.Device. A change that the kernel refuses does not keep the
// later ones from being made: a port that is taken must not stop a revocation. The
// error names each one that was refused.
func (d *Device) Apply(ctx context.Context, changes []peers.Change) error {
	if err := d.ready(ctx); err != nil {
		return fmt.Errorf("configure %s: %w", d.link.name, err)
	}
	var refused []error
	for run := range runs(changes) {
		if run[0].Op == peers.Drop {
			have, err := d.Config(ctx)
			if err != nil {
				return errors.Join(append(refused, err)...)
			}
			run = owned(run, have)
		}
		for b := range batches(run) {
			if err := d.set(ctx, b, &refused); err != nil {
				return errors.Join(append(refused, fmt.Errorf("configure %s: %w", d.link.name, err))...)
			}
		}
	}
	return errors.Join(refused...)
}

// set sends one batch, and if the kernel refuses it each change by itself: it only
// says that it refused one, and left the rest. Each may be made twice.
func (d *Device) set(ctx context.Context, batch []peers.Change, refused *[]error) error {
	err := d.send(ctx, batch)
	var no syscall.Errno
	if !errors.As(err, &no) {
		return err
	}
	if len(batch) == 1 {
		*refused = append(*refused, d.refusal(batch[0], no))
		return nil
	}
	for i := range batch {
		if err := d.set(ctx, batch[i:i+1], refused); err != nil {
			return err
		}
	}
	return nil
}

func (d *Device) send(ctx context.Context, batch []peers.Change) error {
	message, err := encode(batch)
	if err != nil {
		return err
	}
	if err := d.ready(ctx); err != nil {
		return err
	}
	return d.call(ctx, func() error {
		// Also lest wgctrl, which finds no link, tell a userspace device of that name.
		if err := d.link.check(); err != nil {
			return err
		}
		err := d.wg.ConfigureDevice(d.link.name, message)
		if errors.Is(err, os.ErrNotExist) {
			return errGone
		}
		return err
	})
}

func (d *Device) refusal(c peers.Change, no syscall.Errno) error {
	switch {
	case c.Op == peers.SetDevice && c.Device.ListenPort != 0:
		return fmt.Errorf("listen on UDP port %d for %s: %w", c.Device.ListenPort, d.link.name, no)
	case c.Op == peers.SetDevice:
		return fmt.Errorf("set the private key of %s: %w", d.link.name, no)
	}
	return fmt.Errorf("%s peer %s of %s: %w", c.Op, c.Peer.Key, d.link.name, no)
}

// ready tells why nothing can be asked of the device, if so.
func (d *Device) ready(ctx context.Context) error {
	if d.closed.Load() {
		return peers.ErrClosed
	}
	return ctx.Err()
}

// Close implements peers.Device: the tunnels end with the link. It may be called
// while another method runs, which then fails.
func (d *Device) Close() error { return d.end(true) }

// Adopted reports whether the link was there before.
func (d *Device) Adopted() bool { return !d.link.made }

// Release closes the device and leaves the link with its tunnels as they are, for
// New with Adopt.
func (d *Device) Release() error { return d.end(false) }

func (d *Device) end(remove bool) error {
	d.closeOnce.Do(func() {
		d.closed.Store(true)
		if err := d.call(context.Background(), func() error { return d.leave(remove) }); err != nil {
			d.closeErr = fmt.Errorf("close %s: %w", d.link.name, err)
		}
	})
	return d.closeErr
}

func (d *Device) leave(remove bool) (err error) {
	if remove {
		err = d.link.remove()
	}
	d.link.close()
	return errors.Join(err, d.wg.Close())
}
