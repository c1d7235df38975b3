package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

// kind is what rtnetlink calls the kernel's WireGuard.
const kind = "wireguard"

var errGone = fmt.Errorf("its link is gone: %w", peers.ErrClosed)

// link is one WireGuard link, known by its number: a name can change hands.
type link struct {
	name  string
	index int
	made  bool            // by us; else adopted
	nl    *netlink.Handle // in its namespace
}

// openLink makes the link, or adopts the one that is there.
func openLink(c Config) (_ link, err error) {
	l := link{name: c.Name}
	if l.nl, err = c.Plane.Netlink(); err != nil {
		return l, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	found, err := l.nl.LinkByName(c.Name)
	switch {
	case err == nil && c.Adopt && found.Type() == kind:
		l.index = found.Attrs().Index
		return l, nil
	case err == nil:
		return l, fmt.Errorf("there is a link of that name, of kind %q: %w", found.Type(), os.ErrExist)
	case !errors.As(err, new(netlink.LinkNotFoundError)):
		return l, fmt.Errorf("look for a link of that name: %w", err)
	}
	if err := add(c); err != nil {
		return l, err
	}
	l.made = true
	if found, err = l.nl.LinkByName(c.Name); err == nil && found.Type() != kind {
		err = fmt.Errorf("its kind is %q: %w", found.Type(), os.ErrExist)
	}
	if err != nil {
		return l, fmt.Errorf("look for it: %w", err)
	}
	l.index = found.Attrs().Index
	const none = 1 // of IN6_ADDR_GEN_MODE: no link-local address
	if err = l.nl.LinkSetIP6AddrGenMode(found, none); err != nil {
		return l, errors.Join(fmt.Errorf("switch off its link-local address: %w", err), l.remove())
	}
	return l, nil
}

// add has the link born in the plane by a request from the underlay: its UDP sockets
// stay with who asked. So it is never seen in between, nor in the way of another one.
func add(c Config) error {
	nl, err := c.Underlay.Netlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = c.Name, c.MTU
	if c.Plane != nil {
		attrs.Namespace = netlink.NsFd(c.Plane.Fd())
	} else if c.Underlay != nil {
		own, err := netns.OpenPath("/proc/self/ns/net")
		if err != nil {
			return err
		}
		defer own.Close()
		attrs.Namespace = netlink.NsFd(own.Fd())
	}
	err = nl.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return fmt.Errorf("this kernel has no WireGuard: %w", errors.Join(err, os.ErrNotExist))
	}
	return err
}

// check reports whether the link is still there and has its name. One that somebody has
// given another name is not gone as long as no other link has taken its own: it may get
// it back, with its tunnels.
func (l link) check() error {
	found, err := l.nl.LinkByIndex(l.index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return errGone
	}
	if err != nil {
		return err
	}
	if found.Type() != kind {
		return errGone
	}
	if now := found.Attrs().Name; now != l.name {
		if _, err := l.nl.LinkByName(l.name); errors.As(err, new(netlink.LinkNotFoundError)) {
			return fmt.Errorf("its link is called %s now: give it its name back", now)
		}
		return errGone
	}
	return nil
}

// remove deletes the link, whatever it is called now. One that is gone is no error.
func (l link) remove() error {
	found, err := l.nl.LinkByIndex(l.index)
	if err == nil && found.Type() == kind {
		err = l.nl.LinkDel(found)
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}

func (l link) close() { l.nl.Close() }

// Available tells why this process cannot make a WireGuard link of the kernel's; nil
// if it can. It makes one, where nobody sees it, which also has the module loaded.
func Available() error {
	nowhere, err := netns.New()
	if err != nil {
		return err
	}
	defer nowhere.Close()
	d, err := New(Config{Name: "probe", Plane: nowhere})
	if err != nil {
		return err
	}
	return d.Close()
}

// Exists reports whether there is a WireGuard link of the kernel's of that name.
func Exists(plane *netns.Handle, name string) (bool, error) {
	found, err := find(plane, name)
	if err != nil {
		return false, fmt.Errorf("look for link %s: %w", name, err)
	}
	return found != nil && found.Type() == kind, nil
}

// find returns nil without an error if there is no such link.
func find(plane *netns.Handle, name string) (found netlink.Link, err error) {
	answer := make(chan netlink.Link, 1)
	err = newCaller().call(context.Background(), func() error {
		nl, err := plane.Netlink()
		if err != nil {
			return err
		}
		defer nl.Close()
		found, err := nl.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			found, err = nil, nil
		}
		answer <- found
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-answer, nil
}

// Remove deletes a WireGuard link of the kernel's that nobody has open. No link of
// that name is no error, and neither is one of another kind, which stays.
func Remove(plane *netns.Handle, name string) error {
	found, err := find(plane, name)
	if err == nil && found != nil {
		err = newCaller().call(context.Background(), func() error {
			nl, err := plane.Netlink()
			if err != nil {
				return err
			}
			defer nl.Close()
			return link{index: found.Attrs().Index, nl: nl}.remove()
		})
	}
	if err != nil {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}
