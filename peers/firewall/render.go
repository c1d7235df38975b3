package firewall

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

// Names of the sets and chains.
const (
	links     = "links"     // machines' links
	sources   = "sources"   // machines' links and the addresses they may use
	networks  = "networks"  // carried networks
	hosts     = "hosts"     // the host's own address in each
	resolvers = "resolvers" // the resolver of each

	track = "track"
)

const (
	rawPriority    = -300 // before connection tracking, after reassembly of fragments
	filterPriority = 0

	dnsPort = 53

	networkBits  = 64  // see peers.Network
	endpointBits = 112 // see peers.Attachment
)

// ICMPv6 types (RFC 4443, RFC 4861).
const (
	errorFirst, errorLast = 1, 4 // unreachable, too big, time exceeded, bad parameter
	echoRequest           = 128
	echoReply             = 129
	neighbourSolicitation = 135
	neighbourAdvert       = 136
)

// Render returns the table that a policy is. Everything that no rule names is
// dropped, so the table of the zero Policy refuses everything. It refuses a policy
// that the kernel would.
func Render(p peers.Policy) (Table, error) {
	if err := validate(p); err != nil {
		return Table{}, fmt.Errorf("firewall policy: %w", err)
	}
	return Table{
		Sets:   renderSets(p),
		Chains: []Chain{trackChain(p), prerouting(p), output(p), input(p), forward()},
	}, nil
}

func validate(p peers.Policy) error {
	if len(p.Link) >= unix.IFNAMSIZ || p.Link == "lo" {
		return fmt.Errorf("link %q: want a name of at most 15 bytes that is not lo", p.Link)
	}
	for _, n := range p.Networks {
		if n.Prefix.Bits() != networkBits || n.Prefix != n.Prefix.Masked() || !is6(n.Prefix.Addr()) {
			return fmt.Errorf("network %s: want an IPv6 /64", n.Prefix)
		}
		if !n.Prefix.Contains(n.Host) || !n.Prefix.Contains(n.Resolver) {
			return fmt.Errorf("network %s: host %s and resolver %s must lie in it", n.Prefix, n.Host, n.Resolver)
		}
		// Its hosts' rights (probes) must never be an org's.
		if p.Self.IsValid() && n.Prefix.Contains(p.Self) {
			return fmt.Errorf("network %s: it is the hosts' own", n.Prefix)
		}
	}
	for _, a := range p.Attachments {
		if a.Link == "" || len(a.Link) >= unix.IFNAMSIZ || a.Link == p.Link || a.Link == "lo" {
			return fmt.Errorf("attachment %q: want a link of its own with a name of at most 15 bytes", a.Link)
		}
		if a.Endpoint.Bits() != endpointBits || a.Endpoint != a.Endpoint.Masked() || !is6(a.Endpoint.Addr()) {
			return fmt.Errorf("attachment %s: endpoint %s: want an IPv6 /112", a.Link, a.Endpoint)
		}
	}
	return nil
}

func is6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" }

func renderSets(p peers.Policy) []Set {
	var pairs, hostAddrs, resolverAddrs, names, own []Element
	for _, n := range p.Networks {
		a := n.Prefix.Addr().As16()
		pairs = append(pairs, Element(string(a[:8])+string(a[:8])))
		hostAddrs = append(hostAddrs, Element(string(n.Host.AsSlice())))
		resolverAddrs = append(resolverAddrs, Element(string(n.Resolver.AsSlice())))
	}
	for _, a := range p.Attachments {
		name := string(linkName(a.Link))
		names = append(names, Element(name))
		own = append(own, Element(name+string(a.Endpoint.Addr().AsSlice())))
	}
	return []Set{
		{networks, PairSet, sortElements(pairs)},
		{hosts, AddressSet, sortElements(hostAddrs)},
		{resolvers, AddressSet, sortElements(resolverAddrs)},
		{links, LinkSet, sortElements(names)},
		{sources, SourceSet, sortElements(own)},
	}
}

// neighbourDiscovery matches what a neighbour says to find or be found. Hop limit
// 255 proves that no router passed it on (RFC 4861 section 7.1).
func neighbourDiscovery(more ...part) []part {
	return append([]part{icmpType(neighbourSolicitation, neighbourAdvert), hopLimit(255)}, more...)
}

// prerouting decides who may say anything at all: our links, IPv6, and a machine
// only with a source of its own.
func prerouting(p peers.Policy) Chain {
	c := Chain{Name: "prerouting", Hook: "prerouting", Priority: rawPriority}
	c.Rules = append(c.Rules,
		rule("ourselves", from("lo"), accept()),
		rule("no IPv4", notIPv6(), drop()))
	if p.Link != "" {
		// WireGuard has checked the source: it is one of the sending peer's prefixes.
		c.Rules = append(c.Rules, rule("tunnels", from(p.Link), goTo(track)))
	}
	unspecified := saddr(netip.IPv6Unspecified())
	linkLocal := saddrLike(netip.MustParseAddr("fe80::"), netip.MustParseAddr("ffc0::"))
	c.Rules = append(c.Rules,
		rule("neighbours, first words", append(neighbourDiscovery(fromAny(links)), unspecified, accept())...),
		rule("neighbours", append(neighbourDiscovery(fromAny(links)), linkLocal, accept())...),
		rule("machines by their own source", ownSource(sources), goTo(track)),
		rule("spoofed source or strange link", drop()))
	return c
}

// trackChain keeps connection tracking to the flows that the host itself begins:
// nobody else can fill its table. What is tracked no further is matched without
// state, both ways.
func trackChain(p peers.Policy) Chain {
	c := Chain{Name: track}
	if p.Resolver.IsValid() {
		c.Rules = append(c.Rules, rule("queries", daddr(p.Resolver), notrack(), accept()))
	}
	if p.Link != "" && p.Self.IsValid() {
		c.Rules = append(c.Rules,
			rule("probes", daddr(p.Self), protocol(unix.IPPROTO_UDP), dport(p.ProbePort), notrack(), accept()),
			rule("echo", daddr(p.Self), icmpType(echoRequest, echoReply), notrack(), accept()))
	}
	c.Rules = append(c.Rules,
		rule("answers to the host", notProtocol(unix.IPPROTO_ICMPV6), daddrIn(hosts), accept()),
		rule("same network", sameNetwork(networks), notrack(), accept()),
		rule("the rest", accept()))
	return c
}

// output is the other direction of trackChain. The host may say what it likes.
func output(p peers.Policy) Chain {
	c := Chain{Name: "output", Hook: "output", Priority: rawPriority, Accept: true}
	if p.Resolver.IsValid() {
		c.Rules = append(c.Rules, rule("answers to queries", saddr(p.Resolver), notrack(), accept()))
	}
	if p.Link != "" && p.Self.IsValid() {
		c.Rules = append(c.Rules,
			rule("answers to probes", saddr(p.Self), protocol(unix.IPPROTO_UDP), sport(p.ProbePort), notrack(), accept()),
			rule("echo", saddr(p.Self), icmpType(echoRequest, echoReply), notrack(), accept()))
	}
	c.Rules = append(c.Rules,
		rule("the host's own flows", notProtocol(unix.IPPROTO_ICMPV6), saddrIn(hosts), accept()),
		rule("same network", sameNetwork(networks), notrack(), accept()))
	return c
}

// input decides what reaches the host itself. prerouting has made sure that
// whatever is not from the tunnels is from a machine with a source of its own.
func input(p peers.Policy) Chain {
	c := Chain{Name: "input", Hook: "input", Priority: filterPriority}
	add := func(name string, parts ...part) { c.Rules = append(c.Rules, rule(name, append(parts, accept())...)) }
	add("ourselves", from("lo"))
	add("flows of the host", established())
	add("neighbours", append([]part{notFrom(p.Link)}, neighbourDiscovery()...)...)
	if p.Resolver.IsValid() {
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			add("queries of machines", notFrom(p.Link), daddr(p.Resolver), protocol(proto), dport(dnsPort))
		}
	}
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		add("queries within a network", sameNetwork(networks), daddrIn(resolvers), protocol(proto), dport(dnsPort))
	}
	add("echo within a network", sameNetwork(networks), daddrIn(hosts), icmpType(echoRequest, echoReply))
	// An error is believed about a packet to the network that it comes from: one of
	// another org's machines cannot lower the path MTU to this one's.
	add("errors", icmpType(errorFirst, errorLast), sameNetworkInside(networks))
	if p.Link != "" && p.Self.IsValid() {
		for _, prober := range probers(p) {
			to := append([]part{from(p.Link)}, prober...)
			to = append(to, daddr(p.Self))
			add("probes", append(to[:len(to):len(to)], protocol(unix.IPPROTO_UDP), dport(p.ProbePort))...)
			add("echo of a prober", append(to[:len(to):len(to)], icmpType(echoRequest, echoReply))...)
		}
	}
	c.Rules = append(c.Rules, rule("not for the host", drop()))
	return c
}

// probers matches who may probe the host: hosts, whose addresses differ from its
// own only in bits 64 to 95, and clients of carried networks by their probe
// address, which ends in the same 16 bits as a host's.
func probers(p peers.Policy) [][]part {
	return [][]part{
		{saddrLike(p.Self, netip.MustParseAddr("ffff:ffff:ffff:ffff:0:0:ffff:ffff"))},
		{saddrLike(p.Self, netip.MustParseAddr("::ffff")), carriedSource(networks)},
	}
}

// forward lets a network talk to itself, ICMPv6 errors and all: their sources are
// addresses of that network too.
func forward() Chain {
	return Chain{Name: "forward", Hook: "forward", Priority: filterPriority, Rules: []Rule{
		rule("MSS to the path", ipv6(), clampMSS()),
		rule("same network", sameNetwork(networks), accept()),
		rule("other networks", ipv6(), reject()),
	}}
}
