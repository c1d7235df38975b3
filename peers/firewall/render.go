package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

// Names of the sets and chains.
const (
	links      = "links"     // machines' links
	sources    = "sources"   // machines' links and the addresses they may use
	networks   = "networks"  // carried networks
	hosts      = "hosts"     // the host's own address in each
	resolvers  = "resolvers" // the resolver of each
	granted    = "granted"   // pairs of networks with a grant between them, each both ways
	ends       = "ends"      // the networks in these
	wide       = "wide"      // boxes of grants from whole networks
	narrow     = "narrow"    // boxes of grants from single endpoints
	flows      = "flows"     // how many granted flows each endpoint has begun
	discovery  = "discovery" // how much neighbour discovery each link has said
	echoes     = "echoes"    // how many echoes each endpoint has sent
	complaints = "errors"    // how many errors each endpoint was told
	questions  = "queries"   // how many queries each endpoint has sent

	track = "track"
	begin = "begin"
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
	grants, refused := normalise(p)
	return Table{
		Sets:    slices.Concat(renderSets(p), renderGrants(grants), renderRates()),
		Chains:  []Chain{trackChain(p), prerouting(p), output(p), input(p), beginChain(p), forward()},
		Refused: refused,
		grants:  grants,
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

// input decides what reaches the host itself. prerouting has made sure that
// whatever is not from the tunnels is from a machine with a source of its own.
func input(p peers.Policy) Chain {
	c := Chain{Name: "input", Hook: "input", Priority: filterPriority}
	add := func(name string, parts ...part) { c.Rules = append(c.Rules, rule(name, append(parts, accept())...)) }
	add("ourselves", from("lo"))
	add("flows of the host", established())
	rates := ratesOf(p)
	add("neighbours", append([]part{notFrom(p.Link)}, neighbourDiscovery(perLink(discovery, rates.Neighbour))...)...)
	// Before the resolver's sockets, which are everybody's: what waits in one of them
	// keeps others out.
	c.Rules = append(c.Rules, rule(tooMany, protocol(unix.IPPROTO_UDP), dport(dnsPort), tooManyFrom(questions, rates.Queries), drop()))
	if p.Resolver.IsValid() {
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			add("queries of machines", notFrom(p.Link), daddr(p.Resolver), protocol(proto), dport(dnsPort))
		}
	}
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		add("queries within a network", pair(networks), daddrIn(resolvers), protocol(proto), dport(dnsPort))
	}
	add("echo within a network", pair(networks), daddrIn(hosts), icmpType(echoRequest, echoReply), perSource(echoes, rates.Echo))
	// An error is believed about a packet to the network that it comes from: one of
	// another org's machines cannot lower the path MTU to this one's.
	add("errors", icmpType(errorFirst, errorLast), quoted(networks))
	if p.Link != "" && p.Self.IsValid() {
		for _, prober := range probers(p) {
			to := append([]part{from(p.Link)}, prober...)
			to = append(to, daddr(p.Self))
			add("probes", append(to[:len(to):len(to)], protocol(unix.IPPROTO_UDP), dport(p.ProbePort))...)
			add("echo of a prober", append(to[:len(to):len(to)], icmpType(echoRequest, echoReply))...)
		}
	}
	c.Rules = append(c.Rules, rule("not for the host", counted()))
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

// renderGrants returns the sets of what may pass between networks.
func renderGrants(b boxes) []Set {
	var pairs, same, fromNetworks, fromEndpoints []Element
	for _, list := range []struct {
		boxes []box
		to    *[]Element
	}{{b.wide, &fromNetworks}, {b.narrow, &fromEndpoints}} {
		for _, x := range list.boxes {
			*list.to = append(*list.to, x.element())
			from, to := x.from.Addr().As16(), x.to.Addr().As16()
			f, t := string(from[:8]), string(to[:8])
			pairs = append(pairs, Element(f+t), Element(t+f))
			same = append(same, Element(f+f), Element(t+t))
		}
	}
	return []Set{
		{granted, PairSet, sortElements(pairs)},
		{ends, PairSet, sortElements(same)},
		{wide, BoxSet, sortElements(fromNetworks)},
		{narrow, BoxSet, sortElements(fromEndpoints)},
		{flows, CountSet, nil},
	}
}

// forward lets a network talk to itself, ICMPv6 errors and all: their sources are
// addresses of that network too. Of the rest a flow passes that a grant lets begin,
// and an error about such a flow if it comes from where the packet was to go: another
// org's machine can neither end it nor lower its path MTU. Who cannot be helped by
// being told (a stray answer, an error) is not.
func forward() Chain {
	c := Chain{Name: "forward", Hook: "forward", Priority: filterPriority, Rules: []Rule{
		rule("MSS to the path", ipv6(), clampMSS()),
		rule("same network", pair(networks), accept()),
		// Of a grant: nothing else between networks is tracked. What is tracked and no
		// longer granted is forgotten, see Firewall.Set.
		rule("granted, under way", underWay(), accept()),
		rule("errors about it", related(), icmpType(errorFirst, errorLast), quoted(ends), accept()),
	}}
	for _, set := range []string{wide, narrow} {
		c.Rules = append(c.Rules,
			rule("granted", begins(), inBox(set), jump(begin)),
			rule("granted echo", begins(), echoInBox(set), jump(begin)))
	}
	c.Rules = append(c.Rules,
		rule("other networks", ipv6(), notICMP(), reject()),
		rule("other networks, echo", ipv6(), icmpType(echoRequest, echoRequest), reject()),
		rule("what nobody is told about", counted()))
	return c
}

// beginChain lets a granted flow begin as long as its endpoint has few.
func beginChain(p peers.Policy) Chain {
	limit := p.FlowsPerEndpoint
	if limit == 0 {
		limit = defaultFlows
	}
	return Chain{Name: begin, Rules: []Rule{
		rule("counted before", confirmed(), accept()),
		rule("few flows", fewFlows(flows, limit), accept()),
	}}
}

// defaultFlows is how many granted flows one endpoint may have at a time: a
// fraction of the kernel's table (262144 as a rule), which is there for all.
const defaultFlows = 1024
