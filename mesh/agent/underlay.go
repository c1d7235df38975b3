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
	// mtuRoutes bounds how many peers' routes are looked at in a pass.
	mtuRoutes = 16
)

// linkMTU is the MTU of the WireGuard link: that of the underlay's way to the
// view's hosts, less what WireGuard adds.
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
	under, err := underlayMTU(endpoints[:min(len(endpoints), mtuRoutes)])
	if err != nil || under == 0 {
		return maxMTU
	}
	return max(min(under-underlayRoom, maxMTU), minMTU)
}

// underlayMTU is the least MTU on the ways to these addresses and of the default
// routes; 0: not known.
func underlayMTU(to []netip.Addr) (int, error) {
	var here *netns.Handle
	nl, err := here.Netlink()
	if err != nil {
		return 0, err
	}
	defer nl.Close()
	var routes []netlink.Route
	for _, a := range to {
		if r, err := nl.RouteGet(a.AsSlice()); err == nil {
			routes = append(routes, r...)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := nl.RouteList(nil, family)
		if err != nil {
			continue
		}
		for _, r := range all {
			if r.Dst == nil || isDefault(r) {
				routes = append(routes, r)
			}
		}
	}
	least := 0
	for _, r := range routes {
		mtu := r.MTU
		if mtu == 0 {
			l, err := nl.LinkByIndex(r.LinkIndex)
			if err != nil {
				continue
			}
			mtu = l.Attrs().MTU
		}
		if least == 0 || mtu < least {
			least = mtu
		}
	}
	return least, nil
}

func isDefault(r netlink.Route) bool {
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified()
}

func (h *host) mtu(v *mesh.View) int { return linkMTU(h.cfg.MTU, v) }

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
