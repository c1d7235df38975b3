package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// plug connects eth0, to the switch or to the router.
func (h *Host) plug(b *boot) error {
	nl, err := b.netns.Netlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	if h.behind() {
		err = h.router.plugInside(h, b)
	} else {
		err = h.plugSwitch(b)
	}
	if err != nil {
		return err
	}
	link, err := nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	return h.configure(nl, link)
}

// plugSwitch makes eth0 a TAP whose other end is the switch.
func (h *Host) plugSwitch(b *boot) error {
	var tap *os.File
	err := b.netns.Do(func() (err error) {
		tap, err = openTAP("eth0")
		return err
	})
	if err != nil {
		return err
	}
	h.port.attach(tap)
	return nil
}

// configure sets eth0's addresses and routes and takes it up.
func (h *Host) configure(nl *netlink.Handle, link netlink.Link) error {
	if !h.behind() {
		if err := nl.LinkSetHardwareAddr(link, net.HardwareAddr(h.port.mac[:])); err != nil {
			return fmt.Errorf("set the address of eth0: %w", err)
		}
		// Room for what is sent while a busy machine does not let the switch run: it
		// should lose what it was told to, and nothing else.
		if err := nl.LinkSetTxQLen(link, 10_000); err != nil {
			return fmt.Errorf("set the queue of eth0: %w", err)
		}
	}
	if h.cfg.MTU != 0 {
		if err := nl.LinkSetMTU(link, h.cfg.MTU); err != nil {
			return fmt.Errorf("set the MTU of eth0 to %d: %w", h.cfg.MTU, err)
		}
	}
	if err := nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set eth0 up: %w", err)
	}
	for _, p := range []netip.Prefix{netip.PrefixFrom(h.addr, 24), netip.PrefixFrom(h.addr6, 64)} {
		if !p.IsValid() {
			continue
		}
		if err := nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	if err := h.awaitAddr6(nl); err != nil {
		return err
	}
	for _, gw := range h.gateways() {
		if err := nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("add default route via %s: %w", gw, err)
		}
	}
	return nil
}

// awaitAddr6 waits until the IPv6 address is the host's own: the kernel takes it
// into use in the background, also without duplicate detection.
func (h *Host) awaitAddr6(nl *netlink.Handle) error {
	if !h.addr6.IsValid() {
		return nil
	}
	return Await(context.Background(), "address "+h.addr6.String()+" to be in use", 10*time.Second, func(context.Context) error {
		routes, err := nl.RouteGet(h.addr6.AsSlice())
		if err == nil && (len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL) {
			err = errors.New("its route is not a local one")
		}
		return err
	})
}

func (h *Host) gateways() []netip.Addr {
	switch {
	case h.behind():
		return []netip.Addr{insideRouter}
	case h.cfg.Gateway == nil:
		return nil
	case h.addr6.IsValid() && h.cfg.Gateway.addr6.IsValid():
		return []netip.Addr{h.cfg.Gateway.addr, h.cfg.Gateway.addr6}
	}
	return []netip.Addr{h.cfg.Gateway.addr}
}

// behind reports whether the host is behind a router (and is not one).
func (h *Host) behind() bool { return h.router != nil && h.router.self != h }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// openTAP makes a TAP in the calling thread's network namespace. It goes away when
// it is closed, or when the process ends. Frames come and go with a virtio header
// and unsegmented: fourteen gigabits per second instead of two.
func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TAP %s: %w", name, err)
	}
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	const uso = unix.TUN_F_USO4 | unix.TUN_F_USO6 // since Linux 6.2
	err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso|uso)
	if errors.Is(err, unix.EINVAL) {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set offloads of TAP %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "tap "+name), nil
}
