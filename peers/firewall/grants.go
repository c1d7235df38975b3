package firewall

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

// Refused is a grant that is not in force, and why.
type Refused struct {
	Grant  peers.Grant
	Reason string
}

// complain logs grants that are not in force, once.
func (f *Firewall) complain(refused []Refused) {
	if slices.Equal(f.refused, refused) {
		return
	}
	f.refused = refused
	for _, r := range refused {
		f.log.Warn("firewall: a grant is not in force", "from", r.Grant.From, "to", r.Grant.To, "err", r.Reason)
	}
}

// box is a set of flows: those that begin at a source in From, go to a destination
// in To, and have the protocol and a port in the range. The port of an ICMPv6 echo
// is its type and code, as connection tracking has it.
type box struct {
	from, to    netip.Prefix
	protocol    uint8
	first, last uint16
}

// echoPort is type 128, code 0.
const echoPort = echoRequest << 8

const lastPort = 0xffff

// boxes are a policy's grants in two lists. Inside each no two boxes have a flow in
// common, and no box of narrow lies in one of wide. There are two because a box
// from a whole network to one endpoint and a box from one endpoint to a whole
// network can cross: without the crossing a list is at most as long as the grants
// have protocols and ends of ranges.
type boxes struct {
	own    netip.Prefix // the hosts' own network
	wide   []box        // from whole networks
	narrow []box        // from single endpoints
}

// normalise returns the boxes that the grants are, in an order of their own, and the
// grants that are none. A flow lies in a box if and only if it lies in a grant that
// was not refused.
func normalise(p peers.Policy) (out boxes, refused []Refused) {
	if p.Self.IsValid() {
		out.own = networkOf(p.Self)
	}
	// By both prefixes and the protocol: the ranges of ports, as they came.
	at := map[box][]ports{}
	for _, g := range p.Grants {
		if reason := refuse(p, g); reason != "" {
			refused = append(refused, Refused{g, reason})
			continue
		}
		for _, b := range split(g) {
			key := box{from: b.from, to: b.to, protocol: b.protocol}
			at[key] = append(at[key], ports{b.first, b.last})
		}
	}
	for key := range at {
		at[key] = merge(at[key])
	}
	for key, have := range at {
		for _, r := range without(have, wider(at, key)) {
			b := key
			b.first, b.last = r.first, r.last
			if b.from.Bits() == networkBits {
				out.wide = append(out.wide, b)
			} else {
				out.narrow = append(out.narrow, b)
			}
		}
	}
	slices.SortFunc(out.wide, compareBoxes)
	slices.SortFunc(out.narrow, compareBoxes)
	slices.SortFunc(refused, func(a, b Refused) int { return cmp.Compare(fmt.Sprint(a.Grant), fmt.Sprint(b.Grant)) })
	return out, refused
}

// refuse says why a grant cannot be in force, or "".
func refuse(p peers.Policy, g peers.Grant) string {
	for _, end := range []netip.Prefix{g.From, g.To} {
		switch {
		case !end.IsValid() || !is6(end.Addr()) || end.Bits() != networkBits && end.Bits() != endpointBits || end != end.Masked():
			return fmt.Sprintf("%s: want a /64 or a /112", end)
		case !p.Mesh.IsValid() || !p.Mesh.Contains(end.Addr()):
			return fmt.Sprintf("%s is outside the mesh", end)
		case networkOf(end.Addr()) == networkOf(p.Self) || networkOf(end.Addr()) == networkOf(p.Resolver):
			return fmt.Sprintf("%s is the hosts' own", end)
		}
	}
	hasPorts := g.FirstPort != 0 || g.LastPort != 0
	switch {
	case networkOf(g.From.Addr()) == networkOf(g.To.Addr()):
		return "both ends are of one network, which needs no grant"
	case g.FirstPort > g.LastPort:
		return fmt.Sprintf("ports %d-%d: the first is above the last", g.FirstPort, g.LastPort)
	case g.Protocol == unix.IPPROTO_ICMPV6 && hasPorts:
		return "ICMPv6 has no ports"
	}
	switch g.Protocol {
	case 0, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6:
		return ""
	}
	return fmt.Sprintf("protocol %d: want TCP, UDP or ICMPv6", g.Protocol)
}

func networkOf(a netip.Addr) netip.Prefix {
	p, _ := a.Prefix(networkBits)
	return p
}

// split is a good grant, by protocols.
func split(g peers.Grant) (out []box) {
	r := ports{g.FirstPort, g.LastPort}
	all := r == ports{}
	if all {
		r.last = lastPort
	}
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		if g.Protocol == 0 || g.Protocol == proto {
			out = append(out, box{g.From, g.To, proto, r.first, r.last})
		}
	}
	if all && (g.Protocol == 0 || g.Protocol == unix.IPPROTO_ICMPV6) {
		out = append(out, box{g.From, g.To, unix.IPPROTO_ICMPV6, echoPort, echoPort})
	}
	return out
}

// wider are the ports of the boxes that hold key's. The boxes that cross with it
// are in the other list, and stay: see boxes.
func wider(at map[box][]ports, key box) (out []ports) {
	from, to := key, key
	from.from, to.to = networkOf(key.from.Addr()), networkOf(key.to.Addr())
	both := from
	both.to = to.to
	for _, w := range []box{from, to, both} {
		if w != key {
			out = append(out, at[w]...)
		}
	}
	return merge(out)
}

// ports is a range, both ends included.
type ports struct{ first, last uint16 }

// merge returns the same ports in ranges that neither overlap nor touch, sorted.
func merge(in []ports) (out []ports) {
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b ports) int { return cmp.Compare(a.first, b.first) })
	for _, r := range in {
		if n := len(out); n > 0 && (out[n-1].last == lastPort || r.first <= out[n-1].last+1) {
			out[n-1].last = max(out[n-1].last, r.last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// without returns what of in is not in not. Both are as merge returns them.
func without(in, not []ports) (out []ports) {
	for _, r := range in {
		for _, n := range not {
			if n.last < r.first || n.first > r.last {
				continue
			}
			if n.first > r.first {
				out = append(out, ports{r.first, n.first - 1})
			}
			if n.last >= r.last {
				r.first, r.last = 1, 0
				break
			}
			r.first = n.last + 1
		}
		if r.first <= r.last {
			out = append(out, r)
		}
	}
	return out
}

func compareBoxes(a, b box) int {
	return cmp.Or(peers.ComparePrefix(a.from, b.from), peers.ComparePrefix(a.to, b.to),
		cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.first, b.first))
}

// has reports whether a flow lies in the box.
func (b box) has(f flow) bool {
	return b.protocol == f.protocol && b.first <= f.port && f.port <= b.last && b.from.Contains(f.from) && b.to.Contains(f.to)
}

// flow is what begins a flow, as connection tracking remembers it.
type flow struct {
	from, to netip.Addr
	protocol uint8
	port     uint16 // of the destination; echoPort for an echo
}

// element is the box as an element of a BoxSet: its lowest and its highest key.
func (b box) element() Element {
	key := func(from, to netip.Addr, port uint16) string {
		k := append(from.AsSlice(), to.AsSlice()...)
		k = append(k, b.protocol, 0, 0, 0)
		return string(append(binary.BigEndian.AppendUint16(k, port), 0, 0))
	}
	return Element(key(b.from.Addr(), b.to.Addr(), b.first) + key(highest(b.from), highest(b.to), b.last))
}

func highest(p netip.Prefix) netip.Addr {
	a := p.Addr().As16()
	for i := p.Bits() / 8; i < len(a); i++ {
		a[i] = 0xff
	}
	return netip.AddrFrom16(a)
}

func (b box) String() string {
	return fmt.Sprintf("%s . %s . %s . %d-%d", b.from, b.to, protocolName(b.protocol), b.first, b.last)
}
