package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/peers"
)

// threeHosts is a mesh by hand:
//
//	fra1 (region 1, host 1)  acme: web-1; beta: db-1; client laptop of acme
//	ams1 (region 1, host 2)  acme: web-2, and roamer, which is homed at fra1
//	nrt1 (region 3, host 5)  beta: db-2; behind NAT
//
// Client phone of acme is homed at fra1 and has its gateway at ams1; org late is
// being removed.
func threeHosts() State {
	p := testPlan()
	fra, ams, nrt := ipam.Host{Region: 1, Number: 1}, ipam.Host{Region: 1, Number: 2}, ipam.Host{Region: 3, Number: 5}
	host := func(name string, at ipam.Host, region, endpoint string) Change {
		h := Host{
			Name: name, Number: at.Number, Region: region, RegionNumber: at.Region, Key: testKey(name), TLSKey: "tls-of-" + name, Orgs: []string{AllOrgs},
		}
		if h.NAT = endpoint == ""; !h.NAT {
			h.Endpoints = []netip.AddrPort{netip.MustParseAddrPort(endpoint)}
		}
		return Change{"hosts/" + name, h}
	}
	machine := func(org, id, app, on string, n uint64, home ipam.Host, slot uint16) Change {
		return Change{"machines/" + org + "/" + id, Machine{Org: org, ID: id, App: app, Host: on, Endpoint: p.Endpoint(n, home, slot), State: StateStarted}}
	}
	client := func(org, name, home, gateway string, n uint64, at ipam.Host, slot uint16) Change {
		return Change{"clients/" + org + "/" + name, Client{Org: org, Name: name, Key: testKey(name), TLSKey: "tls-of-" + name, Endpoint: p.Endpoint(n, at, slot), Home: home, Gateway: gateway}}
	}
	return State{}.With(
		Change{"mesh", Mesh{Plan: p, Epoch: 1}},
		Change{"regions/fra", Region{Name: "fra", Number: 1}},
		Change{"orgs/acme", Org{Name: "acme", Network: 1}}, Change{"orgs/beta", Org{Name: "beta", Network: 2}},
		Change{"orgs/late", Org{Name: "late", Network: 3, Tombstone: true}},
		host("fra1", fra, "fra", "192.0.2.1:51820"), host("ams1", ams, "fra", "192.0.2.2:51820"), host("nrt1", nrt, "nrt", ""),
		machine("acme", "web-1", "web", "fra1", 1, fra, 1), machine("acme", "web-2", "web", "ams1", 1, ams, 1),
		machine("acme", "roamer", "web", "ams1", 1, fra, 7),
		machine("beta", "db-1", "db", "fra1", 2, fra, 1), machine("beta", "db-2", "db", "nrt1", 2, nrt, 1),
		machine("late", "old", "old", "nrt1", 3, nrt, 1),
		client("acme", "laptop", "fra1", "fra1", 1, fra, 2), client("acme", "phone", "fra1", "ams1", 1, fra, 3),
		client("late", "phone", "fra1", "fra1", 3, fra, 1),
	)
}

// tunnels is a Config as text, with keys by the names they were made from.
func tunnels(c peers.Config) string {
	names := map[wgtypes.Key]string{}
	for _, n := range []string{"fra1", "ams1", "nrt1", "laptop", "phone"} {
		names[wgtypes.Key(testKey(n))] = n
	}
	var lines []string
	for _, p := range c.Peers {
		line := names[p.Key]
		if p.Endpoint.IsValid() {
			line += " at " + p.Endpoint.String()
		}
		if p.Keepalive > 0 {
			line += " keepalive " + p.Keepalive.String()
		}
		for _, ip := range p.AllowedIPs {
			line += "\n  " + ip.String()
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func TestConfig(t *testing.T) {
	t.Parallel()
	s := threeHosts()
	for _, tt := range []struct{ node, want string }{
		{"host/fra1", `
ams1 at 192.0.2.2:51820
  fd12:3456:789a:0:100:2:0:1/128
  fd12:3456:789a:1:100:1:3:0/112
  fd12:3456:789a:1:100:1:7:0/112
  fd12:3456:789a:1:100:2::/96
laptop
  fd12:3456:789a:1:100:1:2:0/112
nrt1
  fd12:3456:789a:0:300:5:0:1/128
  fd12:3456:789a:2:300:5::/96
`},
		{"host/ams1", `
fra1 at 192.0.2.1:51820
  fd12:3456:789a:0:100:1:0:1/128
  fd12:3456:789a:1:100:1::/96
phone
  fd12:3456:789a:1:100:1:3:0/112
`},
		{"host/nrt1", `
fra1 at 192.0.2.1:51820 keepalive 25s
  fd12:3456:789a:0:100:1:0:1/128
  fd12:3456:789a:2:100:1::/96
`},
		{"client/acme/laptop", `
fra1 at 192.0.2.1:51820 keepalive 25s
  fd12:3456:789a:0:100:1:0:1/128
  fd12:3456:789a:1::/64
`},
		{"client/acme/phone", `
ams1 at 192.0.2.2:51820 keepalive 25s
  fd12:3456:789a:0:100:2:0:1/128
  fd12:3456:789a:1::/64
`},
	} {
		node, _ := ParseNode(tt.node)
		v, _ := s.View(node, deployment)
		private := wgtypes.Key(testKey("private"))
		c := v.Config(private, 51820)
		if c.PrivateKey != private || c.ListenPort != 51820 {
			t.Errorf("%s: private key or port is not what was given", tt.node)
		}
		if diff := cmp.Diff(tt.want, "\n"+tunnels(c)); diff != "" {
			t.Errorf("tunnels of %s (-want +got):\n%s", tt.node, diff)
		}
	}
}

// A machine that moves takes its /112 along, and gives it back when it comes
// home: each time one change at the others.
func TestAMachineMoves(t *testing.T) {
	t.Parallel()
	s := threeHosts()
	config := func(s State, host string) peers.Config {
		v, _ := s.View(Node{Kind: KindHost, Name: host}, deployment)
		return v.Config(wgtypes.Key{}, 0)
	}
	home, _ := s.Machines.Get("acme/roamer")
	home.Host = "fra1"
	back := s.With(Change{"machines/acme/roamer", home})
	steps := func(from, to State, host string) string {
		var lines []string
		for _, c := range peers.Diff(config(from, host), config(to, host)) {
			lines = append(lines, strings.ReplaceAll(c.String(), testKey("ams1").String(), "ams1"))
		}
		return strings.Join(lines, "\n")
	}
	if got, want := steps(s, back, "fra1"), "drop ams1 -fd12:3456:789a:1:100:1:7:0/112"; got != want {
		t.Errorf("at its home, coming back: %q, want %q", got, want)
	}
	if got, want := steps(back, s, "fra1"), "move ams1 +fd12:3456:789a:1:100:1:7:0/112"; got != want {
		t.Errorf("at its home, leaving: %q, want %q", got, want)
	}
	if got := steps(s, back, "ams1"); got != "" {
		t.Errorf("where it was, the home's /96 has it again: %q", got)
	}
}

// Whatever the state, the tunnels it asks for are such that a device can hold.
func TestConfigIsValid(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		for _, node := range nodes(s) {
			v, _ := s.View(node, deployment)
			c := v.Config(wgtypes.Key(testKey("private")), 51820)
			if err := c.Validate(); err != nil {
				t.Fatalf("tunnels of %s: %v", node, err)
			}
			mesh := s.Mesh.Plan.Prefix()
			for _, p := range c.Peers {
				for _, ip := range p.AllowedIPs {
					if !mesh.Contains(ip.Addr()) || ip.Bits() < ipam.NetworkBits {
						t.Fatalf("tunnels of %s: peer %s gets %s, outside of the mesh or more than a network", node, p.Key, ip)
					}
				}
			}
			// A host gives others no prefix of a network that it does not carry, but an
			// endpoint that is granted, and its host's own address; a client its gateway
			// the network of one.
			carried := map[uint64]bool{0: true}
			for _, o := range v.Orgs {
				carried[o.Network] = true
			}
			granted := map[netip.Prefix]bool{}
			for _, g := range v.Granted {
				granted[g.Endpoint] = true
				if i := slices.IndexFunc(v.Hosts, func(h ViewHost) bool { return h.Name == g.Host }); i >= 0 {
					granted[v.hostBeyond(g, v.Hosts[i].Position())] = true
				}
				if v.Client != nil {
					parts, _ := s.Mesh.Plan.Parts(g.Endpoint.Addr())
					granted[s.Mesh.Plan.Network(parts.Network)] = true
				}
			}
			for _, r := range v.Routes() {
				if parts, _ := s.Mesh.Plan.Parts(r.Addr()); !carried[parts.Network] && !granted[r] {
					t.Fatalf("%s routes %s, a network that it does not carry", node, r)
				}
			}
		}
	})
}

// Every machine is behind exactly the tunnel of the host that it is on, for every
// host that carries its org.
func TestLongestMatchFindsTheHost(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		for name := range s.Hosts.All() {
			v, _ := s.View(Node{Kind: KindHost, Name: name}, deployment)
			c := v.Config(wgtypes.Key{}, 0)
			for _, m := range v.Machines {
				on, ok := s.Hosts.Get(m.Host)
				if !ok || !on.MayCarry(m.Org) || m.Host == name {
					continue
				}
				if got := owner(c, m.Address()); got != wgtypes.Key(on.Key) {
					t.Fatalf("%s sends to machine %s by %s, and it is on %s (%s)", name, m.key(), got, m.Host, on.Key)
				}
			}
		}
	})
}

// owner is WireGuard's rule: the longest prefix.
func owner(c peers.Config, a netip.Addr) (key wgtypes.Key) {
	best := -1
	for _, p := range c.Peers {
		for _, ip := range p.AllowedIPs {
			if ip.Contains(a) && ip.Bits() > best {
				best, key = ip.Bits(), p.Key
			}
		}
	}
	return key
}

func TestAddressesAndRoutes(t *testing.T) {
	t.Parallel()
	s := threeHosts()
	for _, tt := range []struct{ node, addresses, routes string }{
		{
			"host/fra1", `
fd12:3456:789a::3/128 anycast
fd12:3456:789a:0:100:1:0:1/128
fd12:3456:789a:1::3/128 anycast
fd12:3456:789a:1:100:1:0:1/128
fd12:3456:789a:2::3/128 anycast
fd12:3456:789a:2:100:1:0:1/128
`, `
fd12:3456:789a:0:100:2:0:1/128
fd12:3456:789a:0:300:5:0:1/128
fd12:3456:789a:1:100:1:2:0/112
fd12:3456:789a:1:100:1:3:0/112
fd12:3456:789a:1:100:1:7:0/112
fd12:3456:789a:1:100:2::/96
fd12:3456:789a:2:300:5::/96
`,
		},
		{
			"client/acme/laptop", `
fd12:3456:789a:1:100:1:2:1/128 anycast
fd12:3456:789a:1:100:1:2:2/128
`, `
fd12:3456:789a:0:100:1:0:1/128
fd12:3456:789a:1::/64
`,
		},
	} {
		node, _ := ParseNode(tt.node)
		v, _ := s.View(node, deployment)
		addresses, routes := "\n", "\n"
		for _, a := range v.Addresses() {
			addresses += a.Prefix.String() + map[bool]string{true: " anycast"}[a.Anycast] + "\n"
		}
		for _, r := range v.Routes() {
			routes += r.String() + "\n"
		}
		if diff := cmp.Diff(tt.addresses, addresses); diff != "" {
			t.Errorf("addresses of %s (-want +got):\n%s", tt.node, diff)
		}
		if diff := cmp.Diff(tt.routes, routes); diff != "" {
			t.Errorf("routes of %s (-want +got):\n%s", tt.node, diff)
		}
	}
	if v := (View{}); v.Addresses() != nil || v.Routes() != nil || len(v.Config(wgtypes.Key{}, 0).Peers) > 0 {
		t.Error("an empty view asks for something")
	}
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	v, _ := threeHosts().View(Node{Kind: KindHost, Name: "fra1"}, deployment)
	here := []peers.Attachment{
		{Link: "w2", Endpoint: netip.MustParsePrefix("fd12:3456:789a:2:100:1:1:0/112")},
		{Link: "w1", Endpoint: netip.MustParsePrefix("fd12:3456:789a:1:100:1:1:0/112")},
	}
	got := fmt.Sprintf("%+v", v.Policy("weft0", 51830, here))
	want := "{Link:weft0 Mesh:fd12:3456:789a::/48 Resolver:fd12:3456:789a::3 Self:fd12:3456:789a:0:100:1:0:1 ProbePort:51830 " +
		"Networks:[{Prefix:fd12:3456:789a:1::/64 Host:fd12:3456:789a:1:100:1:0:1 Resolver:fd12:3456:789a:1::3} " +
		"{Prefix:fd12:3456:789a:2::/64 Host:fd12:3456:789a:2:100:1:0:1 Resolver:fd12:3456:789a:2::3}] " +
		"Attachments:[{Link:w1 Endpoint:fd12:3456:789a:1:100:1:1:0/112} {Link:w2 Endpoint:fd12:3456:789a:2:100:1:1:0/112}] Grants:[]"
	got, _, _ = strings.Cut(got, " FlowsPer") // the firewall's own figures
	if diff := cmp.Diff(want, strings.TrimSuffix(got, "}")); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
	if here[0].Link != "w2" {
		t.Error("the caller's slice was sorted")
	}
	client, _ := threeHosts().View(Node{Kind: KindClient, Org: "acme", Name: "laptop"}, deployment)
	if p := client.Policy("weft0", 1, nil); p.Link != "" {
		t.Errorf("a client has no policy: %+v", p)
	}
}
