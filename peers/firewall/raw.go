package firewall

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

// neighbourDiscovery matches what a neighbour says to find or be found. Hop limit
// 255 proves that no router passed it on (RFC 4861 section 7.1).
func neighbourDiscovery(more ...part) []part {
	return append([]part{icmpType(neighbourSolicitation, neighbourAdvert), hopLimit(255)}, more...)
}

// prerouting decides who may say anything at all: our links, IPv6, and a machine
// only with a source of its own.
func prerouting(p peers.Policy) Chain {
	c := Chain{Name: "prerouting", Hook: "prerouting", Priority: rawPriority}
	c.Rules = append(c.Rules, rule("ourselves", from("lo"), accept()))
	if p.Link != "" {
		// WireGuard has checked the source: it is one of the sending peer's prefixes.
		c.Rules = append(c.Rules, rule("tunnels", ipv6(), from(p.Link), goTo(track)))
	}
	linkLocal := saddrLike(netip.MustParseAddr("fe80::"), netip.MustParseAddr("ffc0::"))
	unspecified := saddr(netip.IPv6Unspecified())
	c.Rules = append(c.Rules,
		rule("neighbours, first words", append(neighbourDiscovery(fromAny(links)), unspecified, accept())...),
		rule("neighbours", append(neighbourDiscovery(fromAny(links)), linkLocal, accept())...),
		rule("machines by their own source", ownSource(sources), goTo(track)),
		rule("spoofed source or strange link", counted()))
	return c
}

// trackChain keeps connection tracking to the flows that the host itself begins
// and to those that a grant may be about. All else is matched without state, both
// ways, and can fill no table.
func trackChain(p peers.Policy) Chain {
	c := Chain{Name: track}
	if p.Link != "" && p.Self.IsValid() {
		c.Rules = append(c.Rules,
			rule("probes", daddr(p.Self), protocol(unix.IPPROTO_UDP), dport(p.ProbePort), notrack(), accept()))
	}
	c.Rules = append(c.Rules, rule("answers to the host", notICMP(), daddrIn(hosts), accept()))
	if p.Self.IsValid() {
		c.Rules = append(c.Rules, rule("answers to the host", notICMP(), daddr(p.Self), accept()))
	}
	c.Rules = append(c.Rules,
		rule("granted networks", pair(granted), accept()),
		rule("the rest", notrack(), accept()))
	return c
}

// output is the other direction of trackChain. The host may say what it likes, but for
// errors to one who asks for too many: the rest is for the others.
func output(p peers.Policy) Chain {
	c := Chain{Name: "output", Hook: "output", Priority: rawPriority, Accept: true, Rules: []Rule{
		rule(tooMany, icmpType(errorFirst, errorLast), tooManyFor(complaints, ratesOf(p).Errors), drop()),
	}}
	if p.Link != "" && p.Self.IsValid() {
		c.Rules = append(c.Rules,
			rule("answers to probes", saddr(p.Self), protocol(unix.IPPROTO_UDP), sport(p.ProbePort), notrack(), accept()))
	}
	c.Rules = append(c.Rules, rule("the host's own flows", notICMP(), saddrIn(hosts), accept()))
	if p.Self.IsValid() {
		c.Rules = append(c.Rules, rule("the host's own flows", notICMP(), saddr(p.Self), accept()))
	}
	c.Rules = append(c.Rules, rule("the rest", notrack()))
	return c
}
