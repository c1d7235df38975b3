package attach

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// The two ends of a pair know each other's link addresses for good, and all of a
// machine's /112 is behind the one neighbour fe80::2. So nobody waits for neighbour
// discovery; no packet waits for an address that nobody answers for (the kernel sends
// all ICMPv6 errors through one socket, which is full when some hundred of them wait);
// and no number of addresses fills the kernel's table of neighbours, which all
// namespaces share.

// machineMAC is the link address of a machine's end: the same for the same link, so
// that the plane's end can be put right without a look at the machine's.
func machineMAC(link string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(link))
	return append(net.HardwareAddr{0x02}, sum[:5]...) // locally administered, unicast
}

// setMAC gives a link its address.
func (s side) setMAC(l netlink.Link, mac net.HardwareAddr) error {
	if bytes.Equal(l.Attrs().HardwareAddr, mac) {
		return nil
	}
	if err := s.nl.LinkSetHardwareAddr(l, mac); err != nil {
		return fmt.Errorf("set address %s of %s: %w", mac, l.Attrs().Name, err)
	}
	return nil
}

// know makes a neighbour's link address known for good. It is for after the link is
// up: what goes down forgets its neighbours.
func (s side) know(l netlink.Link, neighbour netip.Addr, mac net.HardwareAddr) error {
	err := s.nl.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, IP: neighbour.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
	})
	if err != nil {
		return fmt.Errorf("set neighbour %s on %s: %w", neighbour, l.Attrs().Name, err)
	}
	return nil
}
