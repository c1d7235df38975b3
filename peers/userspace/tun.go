package userspace

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/weftmesh/weft/peers/netns"
)

const tunPath = "/dev/net/tun"

// link is a TUN link that lives in a namespace of its own. It differs from
// wireguard-go's in this. Packets are read by reader, and only while there is room in
// wireguard-go. MTU is asked inside that namespace: outside there is
// no such link, or somebody else's of the same name. And the link going up or down
// does not open and close the UDP sockets: the device is up as long as it exists,
// so that an error of opening them reaches whoever asked for the port.
type link struct {
	tun.Device
	reader  *reader
	out, in *gate
	load    *load
	events  chan tun.Event
	ended   chan struct{} // closed when the inner device's goroutines are gone

	mu    sync.Mutex
	plane *netns.Handle // guarded by mu, as is mtu
	gone  bool          // plane is closed: a late question for the MTU must not use it
	mtu   int           // the last one that was seen
}

// openLink makes the link name in plane, down, without a link-local address to be.
// The link keeps a handle of its own on plane.
func openLink(plane *netns.Handle, name string, mtu int) (*link, error) {
	if plane != nil {
		own, err := netns.OpenPath(fmt.Sprintf("/proc/self/fd/%d", plane.Fd()))
		if err != nil {
			return nil, err
		}
		plane = own
	}
	l, err := makeLink(plane, name, mtu)
	if err != nil {
		plane.Close()
		return nil, err
	}
	return l, nil
}

func makeLink(plane *netns.Handle, name string, mtu int) (*link, error) {
	nl, err := plane.Netlink()
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	// TUNSETIFF would attach to a link that somebody left behind.
	if _, err := nl.LinkByName(name); err == nil {
		return nil, fmt.Errorf("there is a link of that name: %w", os.ErrExist)
	} else if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("look for a link of that name: %w", err)
	}
	l := &link{plane: plane, mtu: mtu, out: newGate(inFlight), in: newGate(inFlight), events: make(chan tun.Event), ended: make(chan struct{})}
	l.load = newLoad(l.out, l.in)
	err = plane.Do(func() (err error) {
		l.Device, err = openTUN(name, mtu)
		return err
	})
	if err == nil {
		if l.reader, err = newReader(l.File(), l.load); err != nil {
			l.Device.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	go l.filter()
	if err := withoutLinkLocal(nl, name); err != nil {
		l.Close()
		go drain(l.events)
		<-l.ended
		return nil, fmt.Errorf("switch off its link-local address: %w", err)
	}
	return l, nil
}

// openTUN does what tun.CreateTUN does, but closes what it opened when it fails, and
// keeps the cause: errors.Is tells os.ErrPermission and os.ErrNotExist.
func openTUN(name string, mtu int) (tun.Device, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, tunError(err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, tunError(err)
	}
	file := os.NewFile(uintptr(fd), tunPath)
	dev, err := tun.CreateTUNFromFile(file, mtu)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("set it up: %w", err)
	}
	return dev, nil
}

func tunError(err error) error {
	err = &os.PathError{Op: "open", Path: tunPath, Err: err}
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("the kernel has no tun driver loaded: %w", errors.Join(err, os.ErrNotExist))
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("there is a link of that name: %w", errors.Join(err, os.ErrExist))
	}
	return err
}

// withoutLinkLocal: peers know each other by AllowedIPs; a link-local address would
// only be a source that no peer accepts. It must be said before the link is up.
func withoutLinkLocal(nl *netlink.Handle, name string) error {
	l, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	const none = 1 // IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
	return nl.LinkSetIP6AddrGenMode(l, none)
}

// filter hands on news of the MTU only.
func (l *link) filter() {
	for e := range l.Device.Events() {
		if e&tun.EventMTUUpdate != 0 {
			l.events <- tun.EventMTUUpdate
		}
	}
	close(l.events)
	close(l.ended)
}

func drain(events <-chan tun.Event) {
	for range events {
	}
}

// BatchSize implements tun.Device.
func (l *link) BatchSize() int { return batchSize }

// Read implements tun.Device.
func (l *link) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	l.out.wait()
	n, err := l.reader.read(bufs, sizes, offset)
	l.out.enter(n)
	return n, err
}

// Write implements tun.Device.
func (l *link) Write(bufs [][]byte, offset int) (int, error) {
	n, err := l.Device.Write(bufs, offset)
	l.in.leave(len(bufs))
	return n, err
}

func (l *link) Events() <-chan tun.Event { return l.events }

func (l *link) MTU() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return l.mtu, nil
	}
	// An error means that the link is about to go, or was renamed.
	_ = l.plane.Do(func() error {
		mtu, err := l.Device.MTU()
		if err == nil {
			l.mtu = mtu
		}
		return err
	})
	return l.mtu, nil
}

// end waits until a link that was closed is gone, and lets go of its namespace.
func (l *link) end() {
	<-l.ended
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = true
	l.plane.Close()
}
