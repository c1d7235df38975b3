// Package userspace is a peers.Device that needs no WireGuard in the kernel:
// wireguard-go on a TUN link. It is configured as a stranger would, by UAPI text
// over its unix socket, so `wg show` works and the device could live in another
// process. Addresses, routes, the firewall and bringing the link up are for others.
//
// # Memory
//
// wireguard-go takes a 64 KiB buffer per packet in flight, from pools whose size is
// a constant of its build (unbounded on Linux); they shrink at garbage collection.
// A process that must stay small sets debug.SetMemoryLimit.
package userspace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

const (
	// DefaultMTU leaves room for WireGuard over IPv6 on an underlay of 1500.
	DefaultMTU = 1420
	// DefaultSocketDir is where wg(8) looks for userspace devices.
	DefaultSocketDir = "/var/run/wireguard"
)

// Config says where a device is.
type Config struct {
	Name string // of the link: 1 to 15 bytes
	MTU  int    // of the link, 1280 to 65503; 0: DefaultMTU
	// Plane is the namespace of the link; nil: the process's. The UDP sockets are in
	// the process's. It may be closed after New.
	Plane     *netns.Handle
	SocketDir string       // of the UAPI socket NAME.sock; "": DefaultSocketDir
	Log       *slog.Logger // nil: silent
	Bind      conn.Bind    // the UDP sockets; nil: wireguard-go's
}

// Device is one link. See peers.Device, and New.
type Device struct {
	name string
	uapi *server
	link *link
	dev  *device.Device
	// fragment: the UDP sockets are ours to set options on.
	fragment bool

	closed    atomic.Bool
	closeOnce sync.Once
}

var _ peers.Device = (*Device)(nil)

// New makes the link, down and without addresses, and a device on it that has no
// key, no peers, and a port that the kernel chose. The caller closes it.
//
// errors.Is tells os.ErrExist (the name or its socket is taken), os.ErrPermission
// (not allowed to make links) and os.ErrNotExist (no tun driver).
func New(c Config) (*Device, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	d, err := c.open()
	if err != nil {
		return nil, fmt.Errorf("make the userspace device %s: %w", c.Name, err)
	}
	return d, nil
}

func (c *Config) validate() error {
	// "%" would have the kernel choose a number, "/" and dots are no file names.
	if n := len(c.Name); n < 1 || n > 15 || strings.ContainsAny(c.Name, "/:% \t\r\n\x00") || c.Name == "." || c.Name == ".." {
		return fmt.Errorf("link name %q: want 1 to 15 bytes without space, slash, colon, percent", c.Name)
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.MTU < 1280 || c.MTU > device.MaxContentSize {
		return fmt.Errorf("MTU %d of %s: want 1280 (the least for IPv6) to %d", c.MTU, c.Name, device.MaxContentSize)
	}
	if c.SocketDir == "" {
		c.SocketDir = DefaultSocketDir
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (c *Config) open() (_ *Device, err error) {
	d := &Device{name: c.Name, fragment: c.Bind == nil}
	if c.Bind == nil {
		c.Bind = conn.NewDefaultBind()
	}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if d.uapi, err = listen(filepath.Join(c.SocketDir, c.Name+".sock")); err != nil {
		return nil, fmt.Errorf("its socket: %w", err)
	}
	if d.link, err = openLink(c.Plane, c.Name, c.MTU); err != nil {
		return nil, err
	}
	d.dev = device.NewDevice(d.link, c.Bind, logger(c.Log, c.Name))
	// On a goroutine of its own: the caller may be in another namespace, and the
	// sockets belong into the process's.
	up := make(chan error, 1)
	go func() { up <- d.dev.Up() }()
	if err = <-up; err != nil {
		return nil, fmt.Errorf("open its UDP sockets: %w", err)
	}
	d.uapi.serve(d.dev.IpcHandle)
	if d.fragment {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		now, err := d.Config(ctx)
		if err == nil {
			err = allowFragments(now.ListenPort)
		}
		return d, err
	}
	return d, nil
}

// logger hands wireguard-go's lines on. Its errors are warnings here: none of them
// ends the device, and most are about one packet.
func logger(log *slog.Logger, name string) *device.Logger {
	log = log.With("link", name)
	out := &device.Logger{Verbosef: device.DiscardLogf, Errorf: func(format string, args ...any) {
		log.Warn("wireguard-go: " + fmt.Sprintf(format, args...))
	}}
	if log.Enabled(context.Background(), slog.LevelDebug) {
		out.Verbosef = func(format string, args ...any) {
			log.Debug("wireguard-go: " + fmt.Sprintf(format, args...))
		}
	}
	return out
}

// Config implements peers.Device.
func (d *Device) Config(ctx context.Context) (peers.Config, error) {
	c, _, err := d.get(ctx)
	return c, err
}

// Stats implements peers.Device.
func (d *Device) Stats(ctx context.Context) ([]peers.Stats, error) {
	_, stats, err := d.get(ctx)
	return stats, err
}

func (d *Device) get(ctx context.Context) (config peers.Config, stats []peers.Stats, err error) {
	err = d.talk(ctx, []byte("get=1\n\n"), func(answer io.Reader) (err error) {
		config, stats, err = Parse(answer)
		return err
	})
	if err != nil {
		return peers.Config{}, nil, fmt.Errorf("ask %s: %w", d.name, err)
	}
	return config, stats, nil
}

// Apply implements peers.Device. A change that the device refuses does not keep the
// later ones from being made: a port that is taken must not stop a revocation. The
// error names each one that was refused.
func (d *Device) Apply(ctx context.Context, changes []peers.Change) error {
	if err := d.ready(ctx); err != nil {
		return fmt.Errorf("configure %s: %w", d.name, err)
	}
	var refused []error
	for batch := range batches(changes) {
		err := d.set(ctx, batch)
		var no syscall.Errno
		if errors.As(err, &no) {
			err = d.oneByOne(ctx, batch, &refused)
		}
		if err != nil {
			return errors.Join(append(refused, fmt.Errorf("configure %s: %w", d.name, err))...)
		}
	}
	return errors.Join(refused...)
}

// oneByOne finds out which changes of a batch the device refuses: it only says that
// it refused one, and left the rest. Each may be made twice.
func (d *Device) oneByOne(ctx context.Context, batch []peers.Change, refused *[]error) error {
	for i, c := range batch {
		err := d.set(ctx, batch[i:i+1])
		var no syscall.Errno
		if errors.As(err, &no) {
			*refused = append(*refused, d.refusal(c, no))
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (d *Device) refusal(c peers.Change, no syscall.Errno) error {
	switch {
	case c.Op == peers.SetDevice && c.Device.ListenPort != 0:
		return fmt.Errorf("listen on UDP port %d for %s: %w", c.Device.ListenPort, d.name, no)
	case c.Op == peers.SetDevice:
		return fmt.Errorf("set the private key of %s: %w", d.name, no)
	}
	return fmt.Errorf("%s peer %s of %s: %w", c.Op, c.Peer.Key, d.name, no)
}

func (d *Device) set(ctx context.Context, batch []peers.Change) error {
	text := append([]byte("set=1\n"), Encode(batch)...)
	err := d.talk(ctx, append(text, '\n'), func(answer io.Reader) error {
		_, _, err := Parse(answer)
		return err
	})
	if err != nil || !d.fragment {
		return err
	}
	for _, c := range batch {
		if opensSockets(c) {
			if err := allowFragments(c.Device.ListenPort); err != nil {
				return err
			}
		}
	}
	return nil
}

// talk sends one operation and reads the answer. A connection serves one: when an
// operation fails, wireguard-go does not find the start of the next.
func (d *Device) talk(ctx context.Context, request []byte, read func(io.Reader) error) error {
	if err := d.ready(ctx); err != nil {
		return err
	}
	conn, err := dial(ctx, d.uapi.path)
	if err == nil {
		defer conn.Close()
		if _, err = conn.Write(request); err == nil {
			err = read(conn)
		}
	}
	if err != nil {
		// Why the connection ended says more than that it did.
		return cmp.Or(d.ready(ctx), err)
	}
	return nil
}

// ready tells why nothing can be asked of the device, if so.
func (d *Device) ready(ctx context.Context) error {
	if d.closed.Load() {
		return peers.ErrClosed
	}
	select {
	case <-d.dev.Wait():
		return fmt.Errorf("its link is gone: %w", peers.ErrClosed)
	default:
		return ctx.Err()
	}
}

// Close implements peers.Device: the socket first, so that nobody asks a device that
// is going, then the tunnels and the link. When it returns all of them are gone. It
// may be called while another method runs, which then fails.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		d.closed.Store(true)
		if d.uapi != nil {
			d.uapi.close()
		}
		if d.dev != nil {
			d.dev.Close()
			d.link.end()
		}
	})
	return nil
}
