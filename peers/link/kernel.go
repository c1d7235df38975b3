package link

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// kernel reads and changes one namespace.
type kernel struct {
	plane *netns.Handle
	nl    *netlink.Handle
}

func openKernel(plane *netns.Handle) (*kernel, error) {
	nl, err := plane.Netlink()
	if err != nil {
		return nil, err
	}
	return &kernel{plane, nl}, nil
}

func (k *kernel) Close() { k.nl.Close() }

// find returns nil without an error if there is no such link.
func (k *kernel) find(name string) (netlink.Link, error) {
	if name == "" {
		return nil, nil
	}
	l, err := k.nl.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return l, nil
}

// missing is the error for a wanted link that is not there.
func (k *kernel) missing(c Config) error {
	for _, name := range []string{c.Link, c.addressesOn()} {
		if l, err := k.find(name); l == nil && name != "" {
			if err == nil {
				err = fmt.Errorf("find link %s: %w", name, os.ErrNotExist)
			}
			return err
		}
	}
	return nil
}

// read asks the kernel for the State that c is compared with.
func (k *kernel) read(c Config) (State, error) {
	s := State{Missing: true}
	link, err := k.find(c.Link)
	if err != nil {
		return s, err
	}
	if link != nil {
		s.Missing = false
		s.Alias = link.Attrs().Alias
		s.MTU = link.Attrs().MTU
		s.Up = link.Attrs().Flags&net.FlagUp != 0
		if s.LinkLocal, err = k.makesLinkLocal(c.Link); err != nil {
			return s, err
		}
		addrs, err := k.addresses(link)
		if err != nil {
			return s, err
		}
		for _, a := range addrs {
			if a.Prefix.Addr().IsLinkLocalUnicast() {
				s.Strays = append(s.Strays, a.Prefix)
			}
		}
	}
	holder, err := k.find(c.addressesOn())
	if err != nil {
		return s, err
	}
	if holder != nil {
		s.HolderDown = c.addressesOn() != c.Link && holder.Attrs().Flags&net.FlagUp == 0
		addrs, err := k.addresses(holder)
		if err != nil {
			return s, err
		}
		for _, a := range addrs {
			if c.Unreachable.Contains(a.Prefix.Addr()) {
				s.Addresses = append(s.Addresses, a)
			}
		}
	}
	if c.OwnRules {
		if s.Rules, err = readRules(k.plane); err != nil {
			return s, err
		}
	}
	return s, k.readRoutes(&s, link)
}

func (k *kernel) readRoutes(s *State, link netlink.Link) error {
	routes, err := netns.List(func() ([]netlink.Route, error) {
		return k.nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		prefix, ok := netns.Prefix(r.Dst)
		switch {
		case !ok:
		case r.Type == unix.RTN_UNREACHABLE:
			s.Unreachable = append(s.Unreachable, prefix)
		case link != nil && r.LinkIndex == link.Attrs().Index && len(r.MultiPath) == 0:
			source, _ := netip.AddrFromSlice(r.Src)
			s.Routes = append(s.Routes, Route{Prefix: prefix, MTU: r.MTU, Source: source})
		}
	}
	return nil
}

func (k *kernel) addresses(link netlink.Link) ([]Address, error) {
	addrs, err := netns.List(func() ([]netlink.Addr, error) { return k.nl.AddrList(link, netlink.FAMILY_V6) })
	if err != nil {
		return nil, fmt.Errorf("list addresses on %s: %w", link.Attrs().Name, err)
	}
	var out []Address
	for _, a := range addrs {
		// One with an end is not what Set put: it is set again.
		if prefix, ok := netns.Prefix(a.IPNet); ok && a.ValidLft >= math.MaxInt32 {
			out = append(out, Address{prefix, a.Flags&unix.IFA_F_DEPRECATED != 0})
		}
	}
	return out, nil
}

// makesLinkLocal reports whether addr_gen_mode is other than 1, none.
func (k *kernel) makesLinkLocal(link string) (bool, error) {
	var mode []byte
	err := k.plane.Do(func() (err error) {
		mode, err = os.ReadFile(netns.Sysctl("net/ipv6/conf/" + link + "/addr_gen_mode"))
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // IPv6 is off on the link, or it has just gone
	}
	if err != nil {
		return false, fmt.Errorf("read the address mode of %s: %w", link, err)
	}
	return strings.TrimSpace(string(mode)) != "1", nil
}

// apply carries out all changes and returns those that were made. It goes on
// after one that fails.
func (k *kernel) apply(changes []Change) (done []string, err error) {
	links := map[string]netlink.Link{}
	var errs []error
	for _, c := range changes {
		link, known := links[c.Link]
		if !known {
			if link, err = k.find(c.Link); err != nil {
				return done, err
			}
			links[c.Link] = link
		}
		if link == nil && c.Link != "" {
			continue // went away meanwhile: its addresses and routes with it
		}
		if err := k.change(link, c); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c, err))
			continue
		}
		done = append(done, c.String())
	}
	return done, errors.Join(errs...)
}

func (k *kernel) change(link netlink.Link, c Change) error {
	switch c.Op {
	case AddRule:
		return changeRule(k.plane, unix.RTM_NEWRULE, c.Rule)
	case DropRule:
		return gone(changeRule(k.plane, unix.RTM_DELRULE, c.Rule))
	case AddUnreachable:
		return k.nl.RouteAdd(unreachable(c.Prefix))
	case DropUnreachable:
		return gone(k.nl.RouteDel(unreachable(c.Prefix)))
	case NoLinkLocal:
		return k.plane.Do(func() error {
			return netns.SetSysctl("net/ipv6/conf/"+c.Link+"/addr_gen_mode", "1")
		})
	case SetAlias:
		return k.nl.LinkSetAlias(link, c.Alias)
	case SetMTU:
		return k.nl.LinkSetMTU(link, c.MTU)
	case SetUp:
		return k.nl.LinkSetUp(link)
	case SetAddress:
		a := &netlink.Addr{IPNet: netns.IPNet(c.Prefix), Flags: unix.IFA_F_NODAD, ValidLft: forever(), PreferedLft: forever()}
		if c.Deprecated {
			a.PreferedLft = 0
		}
		return k.nl.AddrReplace(link, a)
	case DropAddress:
		return gone(k.nl.AddrDel(link, &netlink.Addr{IPNet: netns.IPNet(c.Prefix)}))
	case AddRoute:
		return k.nl.RouteAdd(route(link, c))
	case ChangeRoute:
		return k.nl.RouteReplace(route(link, c))
	case DropRoute:
		return gone(k.nl.RouteDel(route(link, c)))
	}
	return fmt.Errorf("operation %d: %w", c.Op, errors.ErrUnsupported)
}

func route(link netlink.Link, c Change) *netlink.Route {
	return &netlink.Route{Dst: netns.IPNet(c.Prefix), LinkIndex: link.Attrs().Index, Protocol: Protocol, MTU: c.MTU, Src: c.Source.AsSlice()}
}

func unreachable(prefix netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: netns.IPNet(prefix), Type: unix.RTN_UNREACHABLE, Protocol: Protocol, Priority: unreachableMetric}
}

// gone takes "it is not there" for success.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// forever is an address's lifetime without end: 0xffffffff where an int holds it,
// and otherwise 68 years.
func forever() int { return int(min(uint64(math.MaxUint32), uint64(math.MaxInt))) }
