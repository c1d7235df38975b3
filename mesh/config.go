package mesh

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/peers"
)

// keepaliveInterval is what a node behind NAT sends to keep its mapping.
const keepaliveInterval = 25 * time.Second

// Config returns the tunnels that the view asks of its node: peers with their
// AllowedIPs.
//
// A host's peer is another host, with its own address (0, h)::1, a /96 for each
// org that both carry, and a /112 for each endpoint that is there but homed
// elsewhere, or granted; or a client whose gateway the host is, with its /112. A
// client's only peer is its gateway, with the org's whole /64 and those that grants
// lead to.
func (v View) Config(private wgtypes.Key, port uint16) peers.Config {
	c := peers.Config{PrivateKey: private, ListenPort: port}
	switch {
	case v.Host != nil:
		c.Peers = v.hostPeers()
	case v.Client != nil:
		c.Peers = v.clientPeers()
	}
	c.Sort()
	return c
}

func (v View) hostPeers() []peers.Peer {
	networks := map[string]uint64{}
	for _, o := range v.Orgs {
		networks[o.Name] = o.Network
	}
	var out []peers.Peer
	at := map[string]int{} // host: index in out
	for _, h := range v.Hosts {
		p := peers.Peer{Key: wgtypes.Key(h.Key), AllowedIPs: []netip.Prefix{netip.PrefixFrom(v.Plan.HostAddr(0, h.Position()), 128)}}
		if len(h.Endpoints) > 0 && !h.NAT {
			p.Endpoint = h.Endpoints[0]
		}
		if v.Host.NAT {
			p.Keepalive = keepaliveInterval
		}
		for _, org := range h.Orgs {
			if n, ok := networks[org]; ok {
				p.AllowedIPs = append(p.AllowedIPs, v.Plan.Home(n, h.Position()))
			}
		}
		at[h.Name] = len(out)
		out = append(out, p)
	}
	// Endpoints away from home: the longest match wins over the home's /96.
	away := func(endpoint netip.Prefix, host string) {
		if i, ok := at[host]; ok && v.homeNumber(endpoint) != v.Hosts[i].Number {
			out[i].AllowedIPs = append(out[i].AllowedIPs, endpoint)
		}
	}
	for _, m := range v.Machines {
		away(m.Endpoint, m.Host)
	}
	for _, c := range v.Clients {
		if c.Gateway == v.Host.Name && c.Key != nil {
			out = append(out, peers.Peer{Key: wgtypes.Key(*c.Key), AllowedIPs: []netip.Prefix{c.Endpoint}})
			continue
		}
		away(c.Endpoint, c.Gateway)
	}
	for _, g := range v.Granted {
		if i, ok := at[g.Host]; ok {
			out[i].AllowedIPs = append(out[i].AllowedIPs, g.Endpoint, v.hostBeyond(g, v.Hosts[i].Position()))
		}
	}
	for i := range out {
		slices.SortFunc(out[i].AllowedIPs, peers.ComparePrefix) // a host beyond has one address for all its endpoints
		out[i].AllowedIPs = slices.Compact(out[i].AllowedIPs)
	}
	return out
}

func (v View) clientPeers() []peers.Peer {
	if len(v.Orgs) == 0 {
		return nil
	}
	for _, h := range v.Hosts {
		if h.Name != v.Client.Gateway || len(h.Endpoints) == 0 {
			continue
		}
		p := peers.Peer{
			Key: wgtypes.Key(h.Key), Endpoint: h.Endpoints[0], Keepalive: keepaliveInterval,
			AllowedIPs: []netip.Prefix{
				v.Plan.Network(v.Orgs[0].Network),
				netip.PrefixFrom(v.Plan.HostAddr(0, h.Position()), 128),
			},
		}
		// The networks of what is granted, not the endpoints alone: what the hosts there
		// have to say about a packet comes from addresses of their own. The gateway sees
		// to it that no more is used than is granted.
		for _, g := range v.Granted {
			parts, _ := v.Plan.Parts(g.Endpoint.Addr())
			if n := v.Plan.Network(parts.Network); !slices.Contains(p.AllowedIPs, n) {
				p.AllowedIPs = append(p.AllowedIPs, n)
			}
		}
		return []peers.Peer{p}
	}
	return nil
}

func (v View) homeNumber(endpoint netip.Prefix) uint32 {
	parts, _ := v.Plan.Parts(endpoint.Addr())
	return parts.Host.Number
}

// Address is one address that a node holds on its data plane.
type Address struct {
	Prefix netip.Prefix
	// Anycast addresses are on every host: they are added deprecated
	// (preferred_lft 0), so that no packet of the host's own gets them as a source.
	Anycast bool
}

// Addresses returns what a node's data plane answers to, sorted: for a host its
// own address in network 0 and in each network that it carries, and the resolvers;
// for a client its address and its probe address.
func (v View) Addresses() []Address {
	var out []Address
	add := func(a netip.Addr, anycast bool) {
		out = append(out, Address{netip.PrefixFrom(a, 128), anycast})
	}
	switch {
	case v.Host != nil:
		add(v.Plan.HostAddr(0, v.Host.Position()), false)
		add(v.Plan.Resolver(0), true)
		for _, o := range v.Orgs {
			add(v.Plan.HostAddr(o.Network, v.Host.Position()), false)
			add(v.Plan.Resolver(o.Network), true)
		}
	case v.Client != nil:
		add(ipam.MainAddr(v.Client.Endpoint), false)
		add(ipam.ProbeAddr(v.Client.Endpoint), true)
	}
	slices.SortFunc(out, func(a, b Address) int { return peers.ComparePrefix(a.Prefix, b.Prefix) })
	return out
}

// Routes returns the prefixes that a node sends into the tunnels, sorted. All of
// the mesh's prefix beyond them is unreachable.
func (v View) Routes() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range v.Config(wgtypes.Key{}, 0).Peers {
		out = append(out, p.AllowedIPs...)
	}
	slices.SortFunc(out, peers.ComparePrefix)
	return slices.Compact(out)
}

// Policy returns what a host's data plane lets through. link is the WireGuard
// link; attachments are the links of the machines that are here.
func (v View) Policy(link string, probePort uint16, attachments []peers.Attachment) peers.Policy {
	if v.Host == nil {
		return peers.Policy{}
	}
	p := peers.Policy{
		Link: link, Mesh: v.Plan.Prefix(), Resolver: v.Plan.Resolver(0),
		Self: v.Plan.HostAddr(0, v.Host.Position()), ProbePort: probePort,
		Attachments: slices.Clone(attachments),
	}
	for _, o := range v.Orgs {
		p.Networks = append(p.Networks, peers.Network{
			Prefix: v.Plan.Network(o.Network), Host: v.Plan.HostAddr(o.Network, v.Host.Position()), Resolver: v.Plan.Resolver(o.Network),
		})
	}
	slices.SortFunc(p.Networks, func(a, b peers.Network) int { return peers.ComparePrefix(a.Prefix, b.Prefix) })
	slices.SortFunc(p.Attachments, func(a, b peers.Attachment) int { return strings.Compare(a.Link, b.Link) })
	p.Grants = v.boxes()
	return p
}
