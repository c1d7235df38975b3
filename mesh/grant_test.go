package mesh

import (
	"maps"
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

func TestPartyText(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"acme", "acme/db", "acme/machine:db-1", "acme/client:laptop", "acme/machine", "a-b/client"} {
		if p, err := ParseParty(s); err != nil || p.String() != s {
			t.Errorf("ParseParty(%q) = %v %v", s, p, err)
		}
	}
	for _, s := range []string{"", "/", "acme/", "/db", "acme/db/1", "Acme", "acme/machine:", "acme/client:", "acme/client:a/b", "acme/host:h", "acme/client:machine:x", "all", "acme/google"} {
		if p, err := ParseParty(s); err == nil {
			t.Errorf("ParseParty(%q) = %+v", s, p)
		}
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"1", "65535", "5432-5433", "1-65535", "all"} {
		if first, last, err := ParsePorts(s); err != nil || FormatPorts(first, last) != s {
			t.Errorf("ParsePorts(%q) = %d %d %v", s, first, last, err)
		}
	}
	for _, s := range []string{"", "0", "65536", "2-1", "-", "1-", "-1", "x", "1-2-3", " 1", "+1"} {
		if first, last, err := ParsePorts(s); err == nil {
			t.Errorf("ParsePorts(%q) = %d %d", s, first, last)
		}
	}
}

func TestCanonicalGrants(t *testing.T) {
	t.Parallel()
	shop, db := Party{Org: "shop", App: "web"}, Party{Org: "acme", App: "db"}
	for _, tt := range []struct {
		grant      Grant
		want, hint string
	}{
		{Grant{From: shop, To: db, Protocol: "tcp", FirstPort: 5432}, "tcp 5432", ""},
		{Grant{From: shop, To: db, Protocol: "udp", FirstPort: 1, LastPort: 2}, "udp 1-2", ""},
		{Grant{From: shop, To: db, Protocol: "tcp"}, "tcp", ""},
		{Grant{From: shop, To: db, Protocol: "icmp"}, "icmp", ""},
		{Grant{From: Party{Org: "shop"}, To: Party{Org: "acme", Client: "c"}, Protocol: "all"}, "all", ""},
		{Grant{From: shop, To: Party{Org: "shop", App: "db"}, Protocol: "tcp"}, "grant: both sides are of org shop", "members of one org reach each other without"},
		{Grant{From: shop, To: Party{}, Protocol: "tcp"}, `grant, to: org name ""`, ""},
		{Grant{From: Party{Org: "all"}, To: db, Protocol: "tcp"}, `grant, from: org name "all"`, ""},
		{Grant{From: Party{Org: "shop", App: "web", Machine: "1"}, To: db, Protocol: "tcp"}, "not several", ""},
		{Grant{From: shop, To: db}, `grant: protocol ""`, ""},
		{Grant{From: shop, To: db, Protocol: "sctp"}, `grant: protocol "sctp"`, ""},
		{Grant{From: shop, To: db, Protocol: "icmp", FirstPort: 1}, "ports go with tcp or udp, not with icmp", ""},
		{Grant{From: shop, To: db, Protocol: "tcp", FirstPort: 2, LastPort: 1}, "grant: ports 2-1", ""},
		{Grant{From: shop, To: db, Protocol: "tcp", LastPort: 1}, "grant: ports 0-1", ""},
	} {
		g, err := tt.grant.Canonical()
		got := g.Traffic()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) || HintOf(err) != tt.hint {
			t.Errorf("%+v: %q (hint %q), want %q", tt.grant, got, HintOf(err), tt.want)
		}
	}
}

// standsByHand reports whether an endpoint of p is at a node, worked out from the
// tables.
func standsByHand(s State, node Node, p Party) bool {
	if node.Kind == KindClient {
		o, ok := s.Orgs.Get(p.Org)
		return ok && !o.Tombstone && p.Org == node.Org && p.App == "" && p.Machine == "" && (p.Client == "" || p.Client == node.Name)
	}
	hosts, _ := recomputed(s)["hosts at "+p.String()].([]string)
	return slices.Contains(hosts, node.Name)
}

func aliveByHand(s State, g Grant) bool {
	from, ok := s.Orgs.Get(g.From.Org)
	to, there := s.Orgs.Get(g.To.Org)
	return ok && there && !from.Tombstone && !to.Tombstone
}

// linkedByHand reports whether a grant leads from the one host to the other, or back.
func linkedByHand(s State, a, b string) bool {
	for _, g := range s.Grants.All() {
		from, to := func(h string) bool { return standsByHand(s, Node{Kind: KindHost, Name: h}, g.From) }, func(h string) bool { return standsByHand(s, Node{Kind: KindHost, Name: h}, g.To) }
		if aliveByHand(s, g) && (from(a) && to(b) || from(b) && to(a)) {
			return true
		}
	}
	return false
}

// checkGranted fails if a view, of a node that carries these orgs, has another grant
// or another endpoint beyond it than those that it must have.
func checkGranted(t *rapid.T, s State, node Node, carried []string, v View) {
	t.Helper()
	facts := recomputed(s)
	var grants []Grant
	granted := map[netip.Prefix][]string{}
	for _, id := range slices.Sorted(maps.Keys(maps.Collect(s.Grants.All()))) {
		g, _ := s.Grants.Get(id)
		if !aliveByHand(s, g) {
			continue
		}
		from, to := standsByHand(s, node, g.From), standsByHand(s, node, g.To)
		if from || to {
			grants = append(grants, g)
		}
		for _, beyond := range []struct {
			in bool
			p  Party
		}{{from, g.To}, {to, g.From}} {
			ends, _ := facts["endpoints of "+beyond.p.String()].([]netip.Prefix)
			for _, e := range ends {
				_, host, _, _ := s.whoIs(e)
				orgs, _ := facts["orgs of "+host].([]string)
				if beyond.in && slices.Contains(orgs, beyond.p.Org) && !slices.Contains(carried, beyond.p.Org) {
					granted[e] = append(granted[e], g.ID)
				}
			}
		}
	}
	if diff := cmp.Diff(text(t, grants), text(t, v.Grants)); diff != "" {
		t.Fatalf("grants in the view of %s (-want +got):\n%s", node, diff)
	}
	got := map[netip.Prefix][]string{}
	for _, x := range v.Granted {
		org, host, _, _ := s.whoIs(x.Endpoint)
		if node.Kind == KindClient {
			host = ""
		}
		if x.Org != org || x.Host != host {
			t.Fatalf("%s is told that %s of %s is at %q, and it is at %q", node, x.Endpoint, x.Org, x.Host, host)
		}
		got[x.Endpoint] = x.Grants
	}
	if diff := cmp.Diff(text(t, granted), text(t, got)); diff != "" {
		t.Fatalf("endpoints beyond grants in the view of %s (-want +got):\n%s", node, diff)
	}
}

// The two ends of each grant agree: the one routes to the other's host, which takes
// that source from there, and the other way round; and both firewalls let it through,
// that way only.
func TestBothEndsOfAGrantAgree(t *testing.T) {
	t.Parallel()
	pairs, errors := 0, 0
	agree := func(t *rapid.T) {
		s := drawState(t)
		views, tunnels := map[string]View{}, map[string]peers.Config{}
		for name := range s.Hosts.All() {
			v, _ := s.View(Node{Kind: KindHost, Name: name}, deployment)
			views[name], tunnels[name] = v, v.Config(wgtypes.Key{}, 0)
		}
		for _, g := range s.Grants.All() {
			if !aliveByHand(s, g) {
				continue
			}
			for a := range s.endpointsOf(g.From) {
				for b := range s.endpointsOf(g.To) {
					_, here, _, _ := s.whoIs(a)
					_, there, _, _ := s.whoIs(b)
					if !s.carriesOrg(here, g.From.Org) || !s.carriesOrg(there, g.To.Org) {
						continue
					}
					pairs++
					for _, host := range []string{here, there} {
						if !lets(views[host], a, b, g) {
							t.Fatalf("grant %s: the firewall of %s does not let %s reach %s", g.ID, host, a, b)
						}
						if lets(views[host], b, a, g) && !backByHand(s, g) {
							t.Fatalf("grant %s: the firewall of %s lets %s reach %s", g.ID, host, b, a)
						}
					}
					if here == there {
						continue
					}
					near, _ := s.Hosts.Get(here)
					far, _ := s.Hosts.Get(there)
					if got := owner(tunnels[here], b.Addr()); got != wgtypes.Key(far.Key) {
						t.Fatalf("grant %s: %s sends to %s by %s, and it is at %s", g.ID, here, b, got, there)
					}
					if got := owner(tunnels[there], a.Addr()); got != wgtypes.Key(near.Key) {
						t.Fatalf("grant %s: %s takes %s from %s, and it is at %s", g.ID, there, a, got, here)
					}
					// And what the one host has to say itself gets to the other.
					source, beyond := views[here].Sources()[b]
					if !beyond || testPlan().Network(network(g.From.Org)) != netip.PrefixFrom(source, 64).Masked() {
						continue // it carries both orgs, or the source is of another grant
					}
					errors++
					if got := owner(tunnels[there], source); got != wgtypes.Key(near.Key) {
						t.Fatalf("grant %s: %s takes %s from %s, and it is %s's own", g.ID, there, source, got, here)
					}
				}
			}
		}
	}
	// Of a hundred states one in fifteen times none has a grant whose hosts have something
	// to say themselves.
	for range 10 {
		if rapid.Check(t, agree); pairs > 0 && errors > 0 {
			return
		}
	}
	t.Error("no grant had two ends: this proves nothing")
}

// backByHand reports whether another grant lets through what g does, the other way.
func backByHand(s State, g Grant) bool {
	for _, x := range s.Grants.All() {
		if x.From.Org == g.To.Org && x.To.Org == g.From.Org {
			return true
		}
	}
	return false
}

// lets reports whether a host's firewall has a grant from a to b.
func lets(v View, a, b netip.Prefix, g Grant) bool {
	return slices.ContainsFunc(v.Policy("weft0", 1, nil).Grants, func(x peers.Grant) bool {
		return x.From.Contains(a.Addr()) && x.To.Contains(b.Addr()) && x.Protocol == 6 && x.FirstPort <= g.FirstPort && x.LastPort >= g.LastPort
	})
}

// grantedHosts is threeHosts with org gulf, which is on oslo alone, an app of which
// all of acme's web may reach; and with what its client may.
func grantedHosts() State {
	p, s := testPlan(), threeHosts()
	oslo := Host{Name: "oslo1", Number: 9, Region: "osl", RegionNumber: 4, Key: testKey("oslo1"), Orgs: []string{AllOrgs},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:51820")}}
	machine := func(id, app string, slot uint16) Change {
		return Change{"machines/gulf/" + id, Machine{Org: "gulf", ID: id, App: app, Host: "oslo1", State: StateStarted,
			Endpoint: p.Endpoint(4, oslo.Position(), slot), Meta: map[string]string{"color": "secret"}}}
	}
	return s.With(
		Change{"orgs/gulf", Org{Name: "gulf", Network: 4}}, Change{"hosts/oslo1", oslo},
		machine("db-1", "db", 1), machine("cache-1", "cache", 2),
		Change{"grants/g1", Grant{ID: "g1", From: Party{Org: "acme", App: "web"}, To: Party{Org: "gulf", App: "db"}, Protocol: ProtocolTCP, FirstPort: 5432, LastPort: 5433}},
		Change{"grants/g2", Grant{ID: "g2", From: Party{Org: "acme", Client: "laptop"}, To: Party{Org: "gulf"}, Protocol: ProtocolICMP}},
	)
}

func TestWhatAGrantIsToTheHosts(t *testing.T) {
	t.Parallel()
	s := grantedHosts()
	for _, tt := range []struct{ host, granted, routes, boxes string }{
		{"ams1", `
fd12:3456:789a:4:400:9:1:0/112 of gulf at oslo1 by g1
`, `
fd12:3456:789a:0:100:1:0:1/128
fd12:3456:789a:0:400:9:0:1/128
fd12:3456:789a:1:100:1::/96
fd12:3456:789a:1:100:1:3:0/112
fd12:3456:789a:4:400:9:0:1/128
fd12:3456:789a:4:400:9:1:0/112
`, `
fd12:3456:789a:1:100:1:7:0/112 -> fd12:3456:789a:4:400:9:1:0/112 6 5432-5433
fd12:3456:789a:1:100:2:1:0/112 -> fd12:3456:789a:4:400:9:1:0/112 6 5432-5433
`},
		{"oslo1", `
fd12:3456:789a:1:100:1:1:0/112 of acme at fra1 by g1
fd12:3456:789a:1:100:1:2:0/112 of acme at fra1 by g2
fd12:3456:789a:1:100:1:7:0/112 of acme at ams1 by g1
fd12:3456:789a:1:100:2:1:0/112 of acme at ams1 by g1
`, `
fd12:3456:789a:0:100:1:0:1/128
fd12:3456:789a:0:100:2:0:1/128
fd12:3456:789a:1:100:1:0:1/128
fd12:3456:789a:1:100:1:1:0/112
fd12:3456:789a:1:100:1:2:0/112
fd12:3456:789a:1:100:1:7:0/112
fd12:3456:789a:1:100:2:0:1/128
fd12:3456:789a:1:100:2:1:0/112
`, `
fd12:3456:789a:1:100:1:1:0/112 -> fd12:3456:789a:4:400:9:1:0/112 6 5432-5433
fd12:3456:789a:1:100:1:2:0/112 -> fd12:3456:789a:4::/64 58 0-0
fd12:3456:789a:1:100:1:7:0/112 -> fd12:3456:789a:4:400:9:1:0/112 6 5432-5433
fd12:3456:789a:1:100:2:1:0/112 -> fd12:3456:789a:4:400:9:1:0/112 6 5432-5433
`},
		{"nrt1", "\n", `
fd12:3456:789a:0:100:1:0:1/128
fd12:3456:789a:2:100:1::/96
`, "\n"},
	} {
		v, _ := s.View(Node{Kind: KindHost, Name: tt.host}, deployment)
		granted, routes, boxes := "\n", "\n", "\n"
		for _, g := range v.Granted {
			granted += g.Endpoint.String() + " of " + g.Org + " at " + g.Host + " by " + strings.Join(g.Grants, " ") + "\n"
		}
		for _, r := range v.Routes() {
			routes += r.String() + "\n"
		}
		for _, b := range v.Policy("weft0", 1, nil).Grants {
			boxes += strings.Join([]string{b.From.String(), "->", b.To.String(), text(t, b.Protocol), text(t, b.FirstPort) + "-" + text(t, b.LastPort)}, " ") + "\n"
		}
		if diff := cmp.Diff([]string{tt.granted, tt.routes, tt.boxes}, []string{granted, routes, boxes}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.host, diff)
		}
		if tt.host != "oslo1" && (strings.Contains(text(t, v), "secret") || strings.Contains(text(t, v.Machines), "gulf")) {
			t.Errorf("%s knows more of gulf than its endpoints:\n%s", tt.host, text(t, v))
		}
	}
}

// A laptop sends to the network of what is granted to it through its one tunnel, and
// hears from there also what the hosts have to say; it is told no host of the other org.
func TestWhatAGrantIsToAClient(t *testing.T) {
	t.Parallel()
	s := grantedHosts()
	laptop := Node{Kind: KindClient, Org: "acme", Name: "laptop"}
	v, _ := s.View(laptop, deployment)
	want := []netip.Prefix{
		netip.MustParsePrefix("fd12:3456:789a:0:100:1:0:1/128"), netip.MustParsePrefix("fd12:3456:789a:1::/64"),
		netip.MustParsePrefix("fd12:3456:789a:4::/64"), // of two endpoints
	}
	if c := v.Config(wgtypes.Key{}, 0); len(c.Peers) != 1 || !slices.Equal(c.Peers[0].AllowedIPs, want) || !slices.Equal(v.Routes(), want) {
		t.Errorf("tunnels %+v, routes %v, want %v", c.Peers, v.Routes(), want)
	}
	for _, g := range v.Granted {
		if g.Host != "" {
			t.Errorf("it is told where %s is: %s", g.Endpoint, g.Host)
		}
	}
	other, _ := s.View(Node{Kind: KindClient, Org: "acme", Name: "phone"}, deployment)
	if len(other.Grants)+len(other.Granted) > 0 {
		t.Errorf("the org's other client is told of %s", text(t, other.Grants))
	}
}

// A machine beyond a grant moves as one of the own org does: its new host's tunnel is
// there before, and the move is one prefix that goes from the one peer to the other.
func TestAGrantedMachineMoves(t *testing.T) {
	t.Parallel()
	s := grantedHosts()
	tunnels := func(s State) peers.Config {
		v, _ := s.View(Node{Kind: KindHost, Name: "ams1"}, deployment)
		return v.Config(wgtypes.Key{}, 0)
	}
	steps := func(from, to State) []string {
		var out []string
		for _, c := range peers.Diff(tunnels(from), tunnels(to)) {
			line := c.String()
			for _, name := range []string{"nrt1", "oslo1"} {
				line = strings.ReplaceAll(line, testKey(name).String(), name)
			}
			out = append(out, line)
		}
		return out
	}
	m, _ := s.Machines.Get("gulf/db-1")
	m.Next = "nrt1"
	ready := s.With(Change{"machines/gulf/db-1", m})
	m.Host, m.Next, m.Generation = "nrt1", "", m.Generation+1
	moved := ready.With(Change{"machines/gulf/db-1", m})
	if got := steps(s, ready); len(got) != 1 || !strings.Contains(got[0], "nrt1") || !strings.HasPrefix(got[0], "add") {
		t.Errorf("before the move: %q, want one tunnel more", got)
	}
	got := steps(ready, moved)
	want := "move nrt1 +fd12:3456:789a:4:300:5:0:1/128 +fd12:3456:789a:4:400:9:1:0/112"
	if len(got) == 0 || got[0] != want || len(got) > 2 {
		t.Errorf("the move: %q", got)
	}
	// And the new host knows the sources before it has the machine.
	v, _ := ready.View(Node{Kind: KindHost, Name: "nrt1"}, deployment)
	if len(v.Granted) != 4 || len(v.Policy("weft0", 1, nil).Grants) != 4 {
		t.Errorf("the next host is told of %s", text(t, v.Granted))
	}
}

// What is of no grant costs the far host nothing, and a machine more in an app that
// is granted is one endpoint more there.
func TestOneMachineMoreBeyondAGrant(t *testing.T) {
	t.Parallel()
	s := grantedHosts()
	ams := Node{Kind: KindHost, Name: "ams1"}
	add := func(id, app string) (a *Advance, key string) {
		m, _ := s.Machines.Get("gulf/db-1")
		m.ID, m.App, m.Endpoint = id, app, testPlan().Endpoint(4, mustParts(m.Endpoint).Host, 7)
		key = "machines/gulf/" + id
		return NewAdvance(Step{Before: s, After: s.With(Change{key, m}), Keys: []string{key}}, deployment), key
	}
	a, _ := add("db-2", "db")
	if d, _ := a.Delta(ams); len(d.Granted) != 1 || len(d.Hosts)+len(d.Grants)+len(d.Machines)+len(d.Removed) != 0 || d.Granted[0].Host != "oslo1" {
		t.Errorf("one more of the app: %s", text(t, d))
	}
	if c, ok := a.Common(); !ok || slices.Contains(c.Except, "nrt1") || !a.Audience().concerned(ams, s, s) {
		t.Errorf("common %v %+v, audience %+v", ok, c, a.Audience())
	}
	// On a host that had none of it, that host comes with it; what it can be seen by is
	// told to it, too.
	m, _ := s.Machines.Get("gulf/db-1")
	m.ID, m.Host, m.Endpoint = "db-3", "nrt1", testPlan().Endpoint(4, ipam.Host{Region: 3, Number: 5}, 1)
	a = NewAdvance(Step{Before: s, After: s.With(Change{"machines/gulf/db-3", m}), Keys: []string{"machines/gulf/db-3"}}, deployment)
	if d, _ := a.Delta(ams); len(d.Granted) != 1 || len(d.Hosts) != 1 || d.Hosts[0].Name != "nrt1" || len(d.Hosts[0].Orgs) != 0 {
		t.Errorf("one more of the app on another host: %s", text(t, d))
	}
	if d, _ := a.Delta(Node{Kind: KindHost, Name: "nrt1"}); len(d.Grants) != 2 || len(d.Granted) != 4 || len(d.Hosts) != 2 {
		t.Errorf("the host that has it: %s", text(t, d))
	}
	a, _ = add("cache-2", "cache")
	if d, _ := a.Delta(ams); !d.Empty() || a.Audience().concerned(ams, s, s) {
		t.Errorf("one more of another app: %s", text(t, d))
	}
}

func mustParts(p netip.Prefix) ipam.Parts { parts, _ := testPlan().Parts(p.Addr()); return parts }
