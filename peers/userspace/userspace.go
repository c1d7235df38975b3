// Package userspace is a peers.Device that needs no WireGuard in the kernel:
// wireguard-go on a TUN link. It is configured as a stranger would, by UAPI text
// over its unix socket, so `wg show` works and the device can live in a process of
// its own, see Serve and Attach. Addresses, routes, the firewall and bringing the link up
// are for others.
//
// # Memory and speed
//
// wireguard-go takes a 64 KiB buffer per packet in flight, from pools whose size is
// a constant of its build (unbounded on Linux). So few packets are let in at a time
// (gate); the others wait where they are small, in turns (fairQueue), or in the kernel.
// A process that holds nothing but a device calls Tune.
package userspace

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

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
	Bind      conn.Bind    // the UDP sockets; nil: ours, see bind

	about *About
}

// Device is one link. See peers.Device, and New.
type Device struct {
	talker
	uapi  *server
	link  *link
	dev   *device.Device
	about *About // who answers on the socket, if it is a process for this device alone

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
	d := &Device{about: c.about}
	d.talker = talker{name: c.Name, path: filepath.Join(c.SocketDir, c.Name+".sock"), ready: d.ready}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if d.uapi, err = listen(d.path); err != nil {
		return nil, fmt.Errorf("its socket: %w", err)
	}
	if d.link, err = openLink(c.Plane, c.Name, c.MTU); err != nil {
		return nil, err
	}
	if c.Bind == nil {
		c.Bind = &bind{load: d.link.load}
	}
	d.dev = device.NewDevice(d.link, &gatedBind{Bind: c.Bind, out: d.link.out, in: d.link.in, silence: d.link.reader.silence}, logger(c.Log, c.Name))
	// On a goroutine of its own: the caller may be in another namespace, and the
	// sockets belong into the process's.
	up := make(chan error, 1)
	go func() { up <- d.dev.Up() }()
	if err = <-up; err != nil {
		return nil, fmt.Errorf("open its UDP sockets: %w", err)
	}
	d.uapi.serve(d.handle)
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
