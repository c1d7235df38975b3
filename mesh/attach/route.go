package attach

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// routeMetric is that of a machine's route: ahead of the one into the tunnels, for
// an endpoint that another host has too, according to the view. Where both are, as
// during a move, the machine that is here gets the packets; and when its link goes,
// the other route is in force at once.
const routeMetric = 512

// routeTo is the route of an endpoint to a link: by the machine's link-local address,
// so that the endpoint's 65,536 addresses are one neighbour.
func routeTo(l netlink.Link, endpoint netip.Prefix) *netlink.Route {
	return &netlink.Route{
		LinkIndex: l.Attrs().Index, Protocol: RouteProtocol, Priority: routeMetric, Dst: netns.IPNet(endpoint),
		Gw: machineLocal().AsSlice(), Flags: unix.RTNH_F_ONLINK, // whatever has become of fe80::/64
	}
}

// Route sends what is for the endpoint to a link that was attached Unrouted.
func Route(plane *netns.Handle, link string, endpoint netip.Prefix) error {
	s, err := openSide(plane)
	if err != nil {
		return err
	}
	defer s.nl.Close()
	l, err := s.find(link)
	switch {
	case err != nil:
	case l == nil:
		err = errors.New("there is no such link")
	default:
		err = s.onlyRoute(l, endpoint)
	}
	if err != nil {
		return fmt.Errorf("route %s to %s: %w", endpoint, link, err)
	}
	return nil
}

// onlyRoute routes the endpoint to the link, and takes away what else of ours
// leads there.
func (s side) onlyRoute(l netlink.Link, endpoint netip.Prefix) error {
	routes, err := netns.List(func() ([]netlink.Route, error) {
		return s.nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: RouteProtocol, LinkIndex: l.Attrs().Index},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF)
	})
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", l.Attrs().Name, err)
	}
	there := func(r netlink.Route) bool {
		p, _ := netns.Prefix(r.Dst)
		return p == endpoint && r.Priority == routeMetric && r.Gw.Equal(machineLocal().AsSlice())
	}
	if !slices.ContainsFunc(routes, there) {
		// Replace: another link may still hold it (the machine was attached anew).
		if err = s.nl.RouteReplace(routeTo(l, endpoint)); err != nil {
			return fmt.Errorf("add route %s: %w", endpoint, err)
		}
	}
	for _, r := range routes {
		if p, _ := netns.Prefix(r.Dst); p == endpoint && r.Priority == routeMetric {
			continue // it is there, or was replaced
		}
		if err := s.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route %s: %w", r.Dst, err)
		}
	}
	return nil
}
