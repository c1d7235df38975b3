package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// Veth joins two hosts by a link of the kernel's, past the switch, as fast as the
// machine can: for throughput. It returns their addresses on it, of 203.0.113.0/24.
// The link is named veth0, veth1, … on each. It does not come back after a reboot.
func (l *Lab) Veth(a, b *Host) (addrA, addrB netip.Addr, err error) {
	l.mu.Lock()
	n := l.veths
	l.veths++
	l.mu.Unlock()
	if n >= 64 {
		return addrA, addrB, errors.New("join two hosts by a veth: all 64 networks are taken")
	}
	base := netip.AddrFrom4([4]byte{203, 0, 113, 0})
	addrA, addrB = nth(base, 4*n+1), nth(base, 4*n+2)
	if err := joinVeth(a, b, addrA, addrB); err != nil {
		return addrA, addrB, fmt.Errorf("join %s and %s by a veth: %w", a.name, b.name, err)
	}
	l.log.Info("veth up", "host", a.name, "peer", b.name, "addr", addrA)
	return addrA, addrB, nil
}

func joinVeth(a, b *Host, addrA, addrB netip.Addr) error {
	nameA, nameB := a.nextVeth(), b.nextVeth()
	ns, err := b.Netns()
	if err != nil {
		return err
	}
	defer ns.Close()
	link := netlink.NewVeth(netlink.LinkAttrs{Name: nameA, TxQLen: 1000})
	link.PeerName, link.PeerNamespace = nameB, netlink.NsFd(ns.Fd())
	err = a.netlink(func(nl *netlink.Handle) error { return nl.LinkAdd(link) })
	if err := errors.Join(err, a.linkUp(nameA, addrA), b.linkUp(nameB, addrB)); err != nil {
		return err
	}
	return errors.Join(a.awaitLink(nameA), b.awaitLink(nameB))
}

// awaitLink waits until a link carries packets. The kernel notices that the other
// end is up in its own time, and drops until then.
func (h *Host) awaitLink(name string) error {
	return Await(context.Background(), name+" of "+h.name+" to be up", 10*time.Second, func(context.Context) error {
		return h.netlink(func(nl *netlink.Handle) error {
			link, err := nl.LinkByName(name)
			if err == nil && link.Attrs().OperState != netlink.OperUp {
				err = fmt.Errorf("it is %s", link.Attrs().OperState)
			}
			return err
		})
	})
}

func (h *Host) nextVeth() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.veths++
	return fmt.Sprintf("veth%d", h.veths-1)
}

func (h *Host) linkUp(name string, addr netip.Addr) error {
	return h.netlink(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		if err := nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, 30))}); err != nil {
			return err
		}
		return nl.LinkSetUp(link)
	})
}

// netlink calls fn with a handle in the host's network namespace.
func (h *Host) netlink(fn func(nl *netlink.Handle) error, families ...int) error {
	b, err := h.running()
	if err != nil {
		return err
	}
	nl, err := b.netns.Netlink(families...)
	if err != nil {
		return err
	}
	defer nl.Close()
	return fn(nl)
}
