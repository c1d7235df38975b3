package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/peers/netns"
)

const (
	maxMTU = 1420 // what fits everywhere, as WireGuard's own tools say
	minMTU = 1280 // IPv6's least
	// mtuRoutes bounds how many hosts' routes a laptop looks at in a pass.
	mtuRoutes = 16
)

// linkMTU is the MTU of a laptop's WireGuard link: the least on the underlay's ways to
// the view's hosts and of the default routes, less what WireGuard adds.
func linkMTU(configured int, v *mesh.View) int {
	if configured != 0 {
		return configured
	}
	var endpoints []netip.Addr
	if v != nil {
		for _, h := range v.Hosts {
			for _, e := range h.Endpoints {
				endpoints = append(endpoints, e.Addr())
			}
		}
	}
	ways, others, err := underlayWays(endpoints[:min(len(endpoints), mtuRoutes)], true)
	if err != nil {
		return maxMTU
	}
	least := others
	for _, mtu := range ways {
		if mtu != 0 && (least == 0 || mtu < least) {
			least = mtu
		}
	}
	return through(least)
}

// through is what fits into a tunnel over a way of this MTU; 0: not known.
func through(underlay int) int {
	if underlay == 0 {
		return maxMTU
	}
	return max(min(underlay-underlayRoom, maxMTU), minMTU)
}

// underlayWays are the MTUs of the underlay's routes to these addresses, in their
// order, and the least one of the default routes; 0: there is none. The default routes
// are looked for only if defaults says so or no other is known: a router has a million
// routes.
func underlayWays(to []netip.Addr, defaults bool) (ways []int, others int, err error) {
	var here *netns.Handle
	nl, err := here.Netlink()
	if err != nil {
		return nil, 0, err
	}
	defer nl.Close()
	links, known := map[int]int{}, false
	mtu := func(r netlink.Route) int {
		if r.MTU != 0 {
			return r.MTU
		}
		if _, known := links[r.LinkIndex]; !known {
			if l, err := nl.LinkByIndex(r.LinkIndex); err == nil {
				links[r.LinkIndex] = l.Attrs().MTU
			}
		}
		return links[r.LinkIndex]
	}
	for _, a := range to {
		way := 0
		if routes, err := nl.RouteGet(a.AsSlice()); err == nil && len(routes) > 0 {
			way = mtu(routes[0])
		}
		ways = append(ways, way)
		known = known || way != 0
	}
	if known && !defaults {
		return ways, 0, nil
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := nl.RouteList(nil, family)
		if err != nil {
			continue
		}
		for _, r := range all {
			if r.Dst != nil && !isDefault(r) {
				continue
			}
			if m := mtu(r); m != 0 && (others == 0 || m < others) {
				others = m
			}
		}
	}
	return ways, others, nil
}

func isDefault(r netlink.Route) bool {
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified()
}

// presenceSlot publishes the presence of hosts. The follower writes, anybody
// reads.
type presenceSlot struct {
	writer  presence
	current atomic.Pointer[presence]
}

func (s *presenceSlot) start(lease time.Duration, hold bool) {
	s.writer = presence{lease: lease, hold: hold}
}

// confirm takes a view that the controllers stand by at now.
func (s *presenceSlot) confirm(v *mesh.View, now time.Time) {
	s.writer.update(v.Hosts, now)
	s.current.Store(s.writer.clone())
}

// get returns what is known, nil before a controller has spoken.
func (s *presenceSlot) get() *presence { return s.current.Load() }

// hostState is a host's state as Status has it.
func hostState(f dns.Fact) string {
	switch {
	case f.Dead:
		return local.PeerDead
	case f.Suspect:
		return local.PeerSuspect
	case f.RTT == 0:
		return local.PeerUnmeasured
	}
	return local.PeerOK
}

// suspects lists the hosts that do not answer, sorted.
func suspects(f dns.Facts) []string {
	var out []string
	for name, x := range f {
		if x.Suspect {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// canceled reports an error that only says that the work was ended.
func canceled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
