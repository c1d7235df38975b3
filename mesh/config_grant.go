package mesh

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/peers"
)

// IP protocol numbers, see peers.Grant.
var protocolNumbers = map[string]uint8{ProtocolTCP: 6, ProtocolUDP: 17, ProtocolICMP: 58, ProtocolAll: 0}

// boxes are a host's grants as its firewall has them: from every endpoint of the one
// side to every one of the other, as far as one of the two is here. All of an org is
// its network.
func (v View) boxes() []peers.Grant {
	var out []peers.Grant
	for _, g := range v.Grants {
		number, known := protocolNumbers[g.Protocol]
		if !known {
			continue // a newer controller's
		}
		from, to := v.ends(g, g.From), v.ends(g, g.To)
		for _, f := range from {
			for _, t := range to {
				if f.here || t.here {
					out = append(out, peers.Grant{From: f.prefix, To: t.prefix, Protocol: number, FirstPort: g.FirstPort, LastPort: g.LastPort})
				}
			}
		}
	}
	slices.SortFunc(out, compareBoxes)
	return slices.Compact(out)
}

func compareBoxes(a, b peers.Grant) int {
	return cmp.Or(peers.ComparePrefix(a.From, b.From), peers.ComparePrefix(a.To, b.To),
		cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.FirstPort, b.FirstPort), cmp.Compare(a.LastPort, b.LastPort))
}

// end is what one side of a grant is to a firewall.
type end struct {
	prefix netip.Prefix
	here   bool // some of it is on this host
}

// ends are the endpoints of one side of a grant, as far as the view knows of them.
func (v View) ends(g Grant, p Party) []end {
	i := slices.IndexFunc(v.Orgs, func(o Org) bool { return o.Name == p.Org })
	if i < 0 {
		return v.endsBeyond(g, p)
	}
	if p.whole() {
		return []end{{v.Plan.Network(v.Orgs[i].Network), true}}
	}
	var out []end
	for _, m := range v.Machines {
		if p.namesMachine(m) {
			out = append(out, end{m.Endpoint, m.Host == v.Host.Name || m.Next == v.Host.Name})
		}
	}
	for _, c := range v.Clients {
		if p.namesClient(c.Org, c.Name) {
			out = append(out, end{c.Endpoint, c.Gateway == v.Host.Name})
		}
	}
	return out
}

func (v View) endsBeyond(g Grant, p Party) []end {
	var out []end
	for _, x := range v.Granted {
		if x.Org != p.Org || !slices.Contains(x.Grants, g.ID) {
			continue
		}
		if p.whole() {
			parts, _ := v.Plan.Parts(x.Endpoint.Addr())
			return []end{{v.Plan.Network(parts.Network), false}}
		}
		out = append(out, end{x.Endpoint, false})
	}
	return out
}

// hostBeyond is the own address, in the network of an endpoint beyond a grant, of the
// host where that is: what it has to say about a packet to the endpoint (that it is too
// large, or was passed on too often) comes from there.
func (v View) hostBeyond(g Granted, host ipam.Host) netip.Prefix {
	parts, _ := v.Plan.Parts(g.Endpoint.Addr())
	return netip.PrefixFrom(v.Plan.HostAddr(parts.Network, host), 128)
}

// Sources returns, by prefix, what a host has to send from where it has something to
// say itself to an endpoint beyond a grant: its own address in the org on this side,
// which the other host lets come from here and its firewall believes. By itself the
// kernel would take whichever of the host's addresses is most like the destination.
// Where the endpoint has grants with several orgs that are here it is that of the
// first.
func (v View) Sources() map[netip.Prefix]netip.Addr {
	if v.Host == nil || len(v.Granted) == 0 {
		return nil
	}
	networks, near := map[string]uint64{}, map[string]string{} // near: grant to the org on this side
	for _, o := range v.Orgs {
		networks[o.Name] = o.Network
	}
	out := make(map[netip.Prefix]netip.Addr, len(v.Granted))
	for _, g := range v.Grants {
		for _, org := range []string{g.From.Org, g.To.Org} {
			if _, carried := networks[org]; carried {
				near[g.ID] = org
			}
		}
	}
	for _, g := range v.Granted {
		for _, id := range g.Grants {
			if n, ok := networks[near[id]]; ok {
				out[g.Endpoint] = v.Plan.HostAddr(n, v.Host.Position())
				break
			}
		}
	}
	return out
}
