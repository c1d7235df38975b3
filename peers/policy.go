package peers

import "net/netip"

// Policy is what the data plane lets through: input to package firewall.
// Everything it does not name is refused.
type Policy struct {
	Link      string       // the WireGuard link
	Mesh      netip.Prefix // the whole mesh
	Resolver  netip.Addr   // the machines' resolver, <mesh>::3
	Self      netip.Addr   // the host's own address, (0, host)::1
	ProbePort uint16       // UDP port of tunnel probes, on Self
	Networks  []Network    // the carried networks, sorted by Prefix
	// Attachments are the machines' links, sorted by Link.
	Attachments []Attachment
	// Grants let flows begin between networks. They may overlap, in any order.
	Grants []Grant
	// FlowsPerEndpoint is how many granted flows one endpoint may have begun at a
	// time; 0: 1024. Within a network there is no limit.
	FlowsPerEndpoint uint32
	Rates            Rates
}

// Rates bound what one machine, or one endpoint elsewhere, makes the host itself do, in
// packets a second, and twice as many at once; of queries a tenth. 0 is the default.
type Rates struct {
	Neighbour uint32 // neighbour discovery by one machine's link; default 20
	Echo      uint32 // echo by one endpoint to the host's address in its network; default 200
	Errors    uint32 // the host's ICMPv6 errors to one endpoint; default 1000
	Queries   uint32 // queries over UDP by one endpoint to the resolver; default 10000
}

// Network is one carried org's network as the firewall sees it.
type Network struct {
	Prefix   netip.Prefix // its /64
	Host     netip.Addr   // the host's own address in it, (network, host)::1
	Resolver netip.Addr   // <network>::3
}

// Attachment is one machine's link in the data plane's namespace.
type Attachment struct {
	Link     string       // name of the host's end, at most 15 bytes
	Endpoint netip.Prefix // its /112: the only sources it may use
}

// Grant lets endpoints of one network begin flows to endpoints of another. Answers
// come back; nothing begins the other way.
type Grant struct {
	From, To netip.Prefix // of two networks, masked: a whole /64, or one endpoint's /112
	Protocol uint8        // IP protocol number: 6 TCP, 17 UDP, 58 ICMPv6 (echo only); 0: these three
	// Ports are the destination's, of TCP and UDP, both ends included; both zero: all.
	// A grant for ports says nothing of ICMPv6.
	FirstPort, LastPort uint16
}
