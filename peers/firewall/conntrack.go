package firewall

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forget ends the flows between networks that no grant lets any more: what is under
// way passes without a look at the grants. The host's own flows and those that another
// grant lets too are left alone. It returns how
// many it ended.
//
// It is for after the grants are in force: what it ends cannot begin again then.
func (f *Firewall) forget(grants boxes) (uint, error) {
	nl, err := f.conntrack()
	if err != nil {
		return 0, fmt.Errorf("open connection tracking: %w", err)
	}
	defer nl.Close()
	n, err := nl.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET6, forgotten{grants.own, grants.byNetworks()})
	if err != nil {
		return n, fmt.Errorf("end flows that are granted no more: %w", err)
	}
	return n, nil
}

func (f *Firewall) conntrack() (*netlink.Handle, error) {
	if f.plane == nil {
		return netlink.NewHandle(unix.NETLINK_NETFILTER)
	}
	return f.plane.Netlink(unix.NETLINK_NETFILTER)
}

// forgotten chooses the flows to end.
type forgotten struct {
	own     netip.Prefix              // the hosts' network, whose flows are theirs
	granted map[[2]netip.Prefix][]box // by the networks of source and destination
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (g forgotten) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	f, ok := begun(c)
	if !ok {
		return false
	}
	key := [2]netip.Prefix{networkOf(f.from), networkOf(f.to)}
	if key[0] == key[1] || key[0] == g.own {
		return false
	}
	for _, b := range g.granted[key] {
		if b.has(f) {
			return false
		}
	}
	return true
}

// begun is how a flow of IPv6 began.
func begun(c *netlink.ConntrackFlow) (f flow, ok bool) {
	from, ok1 := netip.AddrFromSlice(c.Forward.SrcIP)
	to, ok2 := netip.AddrFromSlice(c.Forward.DstIP)
	f = flow{from, to, c.Forward.Protocol, c.Forward.DstPort}
	if f.protocol == unix.IPPROTO_ICMPV6 {
		f.port = echoPort // nothing else of ICMPv6 begins a flow
	}
	return f, ok1 && ok2 && is6(from) && is6(to)
}

// byNetworks puts the boxes under the networks of their ends.
func (b boxes) byNetworks() map[[2]netip.Prefix][]box {
	out := map[[2]netip.Prefix][]box{}
	for _, list := range [][]box{b.wide, b.narrow} {
		for _, x := range list {
			key := [2]netip.Prefix{networkOf(x.from.Addr()), networkOf(x.to.Addr())}
			out[key] = append(out[key], x)
		}
	}
	return out
}

// endFlows is forget after a change by which a flow may have lost its grant.
func (f *Firewall) endFlows(d difference, grants boxes) error {
	if !d.revokes() {
		return nil
	}
	n, err := f.forget(grants)
	if n > 0 {
		f.log.Info("firewall: flows ended", "count", n)
	}
	return err
}

// revokes reports whether the difference takes a box away. Of a table that is
// replaced nobody knows what it let pass.
func (d difference) revokes() bool {
	if d.why != "" {
		return true
	}
	for _, x := range d.deltas {
		if x.set.Kind == BoxSet && len(x.minus) > 0 {
			return true
		}
	}
	return false
}
