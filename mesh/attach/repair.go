package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// Repair puts the plane's end of a machine's link right where somebody has changed it,
// and returns what it did, one line each. It asks about this link alone, whatever the
// number of machines. A link that is gone has to be attached anew: the error wraps
// os.ErrNotExist.
func Repair(plane *netns.Handle, m Machine) (changes []string, err error) {
	s, err := openSide(plane)
	if err != nil {
		return nil, err
	}
	defer s.nl.Close()
	l, err := s.find(m.Link)
	if err == nil && l == nil {
		err = os.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("repair %s: %w", m.Link, err)
	}
	did := func(what string, err error) {
		if err == nil {
			changes = append(changes, what)
		}
	}
	if l.Attrs().Alias != m.Alias {
		err = s.nl.LinkSetAlias(l, m.Alias)
		did(fmt.Sprintf("set alias %q on %s", m.Alias, m.Link), err)
	}
	if err == nil && l.Attrs().MTU != m.MTU {
		err = s.nl.LinkSetMTU(l, m.MTU)
		did(fmt.Sprintf("set mtu %d on %s", m.MTU, m.Link), err)
	}
	if err == nil && l.Attrs().Flags&net.FlagUp == 0 {
		err = s.nl.LinkSetUp(l)
		did(fmt.Sprintf("set %s up", m.Link), err)
	}
	if err == nil {
		gateway := netip.PrefixFrom(Gateway(), 64)
		err = s.nl.AddrAdd(l, &netlink.Addr{IPNet: netns.IPNet(gateway), Flags: unix.IFA_F_NODAD})
		did(fmt.Sprintf("set address %s on %s", gateway, m.Link), err)
		err = there(err)
	}
	if err == nil {
		err = s.know(l, machineLocal(), machineMAC(m.Link))
	}
	if err == nil && !m.Unrouted {
		err = s.nl.RouteAdd(routeTo(l, m.Endpoint))
		did(fmt.Sprintf("add route %s dev %s", m.Endpoint, m.Link), err)
		err = there(err)
	}
	if err != nil {
		return changes, fmt.Errorf("repair %s: %w", m.Link, err)
	}
	return changes, nil
}

// there takes "it is there already" for success.
func there(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
