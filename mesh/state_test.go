package mesh

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/peers"
)

func testPlan() ipam.Plan {
	p, err := ipam.NewPlan(netip.MustParsePrefix("fd12:3456:789a::/48"))
	if err != nil {
		panic(err)
	}
	return p
}

func testKey(name string) Key { return sha256.Sum256([]byte(name)) }

var epoch = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// The names that random states are made of. Names that begin with another one's
// are where prefixes go wrong.
var (
	orgNames    = []string{"a", "a-b", "ab", "z"}
	hostNames   = []string{"h", "h-1", "h1", "x"}
	machineIDs  = []string{"1", "1-1", "2", "3", "4", "5"}
	clientNames = []string{"p", "q", "r"}
	appNames    = []string{"db", "web", "web-1"}
)

func position(host string) ipam.Host {
	i := slices.Index(hostNames, host)
	return ipam.Host{Region: uint8(i%2 + 1), Number: uint32(i + 1)}
}

func network(org string) uint64 { return uint64(slices.Index(orgNames, org) + 1) }

// drawChange is one change that a store could make: numbers, keys and addresses
// are unique, all else is random, also references to what is not there.
func drawChange(t *rapid.T) Change {
	org := rapid.SampledFrom(orgNames).Draw(t, "org")
	host := rapid.SampledFrom(hostNames).Draw(t, "host")
	gone := rapid.IntRange(0, 4).Draw(t, "gone") == 0
	pick := func(key string, object any) Change {
		if gone {
			object = nil
		}
		return Change{key, object}
	}
	secret := "secret-of-" + org + "."
	switch rapid.IntRange(0, 15).Draw(t, "kind") {
	case 10:
		return pick(drawRecord(t, org, secret))
	case 11:
		id := rapid.SampledFrom(machineIDs).Draw(t, "machine")
		return pick("health/"+org+"/"+id, Health{Org: org, Machine: id, Passing: rapid.Bool().Draw(t, "passing"), Since: epoch, Note: secret})
	case 12:
		return pick("coordinates/"+host, drawCoordinate(t))
	case 13, 14, 15:
		g := drawGrant(t)
		return pick("grants/"+g.ID, g)
	case 0, 1:
		return pick("orgs/"+org, Org{Name: org, Network: network(org), Created: epoch, Tombstone: rapid.IntRange(0, 3).Draw(t, "tombstone") == 0})
	case 2:
		app := rapid.SampledFrom([]string{"web", "db"}).Draw(t, "app")
		return pick("apps/"+org+"/"+app, App{Org: org, Name: app, Answer: secret})
	case 3, 4:
		return pick("hosts/"+host, drawHost(t, host))
	case 5, 6, 7:
		return pick(drawMachine(t, org, host, secret))
	case 8:
		return pick(drawClient(t, org, host, secret))
	}
	if rapid.Bool().Draw(t, "presence") {
		return pick("presence/"+host, Presence{Host: host, Controller: "c"})
	}
	return pick("regions/fra", Region{Name: "fra", Number: 1, At: &Point{50, rapid.Float64Range(0, 9).Draw(t, "longitude")}})
}

func drawHost(t *rapid.T, name string) Host {
	h := Host{
		Name: name, Number: position(name).Number, Region: "fra", RegionNumber: position(name).Region,
		Key: testKey(name), TLSKey: "tls-of-" + name + ".", Created: epoch,
		NAT:      rapid.IntRange(0, 3).Draw(t, "nat") == 0,
		Cordoned: rapid.Bool().Draw(t, "cordoned"),
		Orgs:     rapid.SliceOfNDistinct(rapid.SampledFrom(append(orgNames, AllOrgs)), 0, 3, rapid.ID).Draw(t, "orgs"),
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "endpoints") {
		h.Endpoints = append(h.Endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(h.Number)}), uint16(51820+i)))
	}
	return h
}

func drawMachine(t *rapid.T, org, host, secret string) (string, Machine) {
	i := rapid.IntRange(0, len(machineIDs)-1).Draw(t, "machine")
	home := rapid.SampledFrom(hostNames).Draw(t, "home")
	m := Machine{
		Org: org, ID: machineIDs[i], App: rapid.SampledFrom(appNames).Draw(t, "app of the machine"), Host: host, Meta: map[string]string{"k": secret},
		Endpoint: testPlan().Endpoint(network(org), position(home), uint16(i+1)),
		Stable:   true, State: rapid.SampledFrom([]string{StateCreated, StateStarted, StateDraining, StateStopped}).Draw(t, "state"), Created: epoch,
	}
	if rapid.IntRange(0, 4).Draw(t, "moves") == 0 {
		m.Next = rapid.SampledFrom(hostNames).Draw(t, "next host")
	}
	return "machines/" + org + "/" + m.ID, m
}

func drawRecord(t *rapid.T, org, secret string) (string, Record) {
	r := Record{Org: org, Name: rapid.SampledFrom([]string{"r", "r.s", "_x"}).Draw(t, "record"),
		Type: rapid.SampledFrom(recordTypes).Draw(t, "type"), Values: []string{secret}, TTL: rapid.IntRange(0, 2).Draw(t, "ttl")}
	return "records/" + org + "/" + r.Name + "/" + r.Type, r
}

// drawGrant names what is there, and what is not.
func drawGrant(t *rapid.T) Grant {
	pair := rapid.SliceOfNDistinct(rapid.SampledFrom(orgNames), 2, 2, rapid.ID).Draw(t, "sides")
	side := func(org string) Party {
		switch rapid.IntRange(0, 5).Draw(t, "side") {
		case 0:
			return Party{Org: org}
		case 1:
			return Party{Org: org, Machine: rapid.SampledFrom(machineIDs).Draw(t, "machine of a grant")}
		case 2:
			return Party{Org: org, Client: rapid.SampledFrom(clientNames).Draw(t, "client of a grant")}
		}
		return Party{Org: org, App: rapid.SampledFrom(appNames).Draw(t, "app of a grant")}
	}
	return Grant{
		ID: rapid.SampledFrom([]string{"g", "g-1", "g1", "k"}).Draw(t, "grant"), From: side(pair[0]), To: side(pair[1]),
		Protocol: ProtocolTCP, FirstPort: 1, LastPort: rapid.Uint16Range(1, 2).Draw(t, "port"), Created: epoch,
	}
}

func drawCoordinate(t *rapid.T) Coordinate {
	c := Coordinate{Vec: make([]float64, CoordinateDimensions), Error: 0.5, Height: 0.001}
	c.Vec[0] = rapid.Float64Range(-1, 1).Draw(t, "coordinate")
	return c
}

func drawClient(t *rapid.T, org, host, secret string) (string, Client) {
	i := rapid.IntRange(0, len(clientNames)-1).Draw(t, "client")
	home := rapid.SampledFrom(hostNames).Draw(t, "home")
	c := Client{
		Org: org, Name: clientNames[i], Key: testKey(org + "/" + clientNames[i]), Created: epoch,
		Endpoint: testPlan().Endpoint(network(org), position(home), uint16(i+101)),
		Home:     home, Gateway: rapid.SampledFrom([]string{host, host, ""}).Draw(t, "gateway"),
	}
	if rapid.Bool().Draw(t, "follows a view") {
		c.TLSKey = "tls-" + secret + c.Name
	}
	return "clients/" + org + "/" + c.Name, c
}

func drawState(t *rapid.T) State {
	s := State{}.With(Change{"mesh", Mesh{Plan: testPlan(), Epoch: 7, Created: epoch}})
	if rapid.Bool().Draw(t, "furnished") {
		s = furnish(t, s)
	}
	for range rapid.IntRange(0, 60).Draw(t, "changes") {
		s = s.With(drawChange(t))
	}
	s.Revision.Revision = rapid.Int64Range(1, 1000).Draw(t, "revision")
	return s
}

// furnish adds what chance alone seldom brings together: orgs and hosts that carry
// them, with machines, clients, and grants between those.
func furnish(t *rapid.T, s State) State {
	for _, org := range orgNames {
		s = s.With(Change{"orgs/" + org, Org{Name: org, Network: network(org), Created: epoch}})
	}
	for _, host := range hostNames {
		h := drawHost(t, host)
		h.Orgs = []string{AllOrgs}
		s = s.With(Change{"hosts/" + host, h})
	}
	draw := func(what string, most int, one func(org, host, secret string) (string, any)) {
		for range rapid.IntRange(0, most).Draw(t, what) {
			org := rapid.SampledFrom(orgNames).Draw(t, "org")
			key, object := one(org, rapid.SampledFrom(hostNames).Draw(t, "host"), "secret-of-"+org+".")
			s = s.With(Change{key, object})
		}
	}
	draw("machines", 12, func(org, host, secret string) (string, any) {
		key, m := drawMachine(t, org, host, secret)
		return key, m
	})
	draw("clients", 4, func(org, host, secret string) (string, any) {
		key, c := drawClient(t, org, host, secret)
		return key, c
	})
	draw("grants", 6, func(string, string, string) (string, any) { g := drawGrant(t); return "grants/" + g.ID, g })
	return s
}

// objects is everything in the tables, by key.
func objects(s State) map[string]any {
	out := map[string]any{"mesh": s.Mesh}
	add(out, "orgs/", s.Orgs)
	add(out, "apps/", s.Apps)
	add(out, "regions/", s.Regions)
	add(out, "hosts/", s.Hosts)
	add(out, "machines/", s.Machines)
	add(out, "clients/", s.Clients)
	add(out, "tokens/", s.Tokens)
	add(out, "operators/", s.Operators)
	add(out, "presence/", s.Presence)
	add(out, "records/", s.Records)
	add(out, "health/", s.Health)
	add(out, "coordinates/", s.Coordinates)
	add(out, "grants/", s.Grants)
	return out
}

func add[T any](out map[string]any, kind string, t Table[T]) {
	for k, v := range t.All() {
		out[kind+k] = v
	}
}

// text is v as indented JSON, for comparison and for differences that can be read.
func text(t interface{ Fatal(...any) }, v any) string {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// answers is what a state's indexes say, for every name there is.
func answers(s State) map[string]any {
	out := map[string]any{}
	for _, h := range hostNames {
		out["orgs of "+h] = s.OrgsOf(h)
		out["machines on "+h] = s.MachinesOn(h)
		out["clients at "+h] = s.ClientsAt(h)
		node, ok := s.NodeByTLSKey("tls-of-" + h + ".")
		out["node with the TLS key of "+h] = fmt.Sprint(node, ok)
	}
	for _, o := range orgNames {
		out["hosts of "+o] = s.HostsOf(o)
		out["counts of "+o] = [4]int{s.Count("machines", o), s.Count("clients", o), s.Count("records", o), s.Count("grants", o)}
		for _, p := range allParties(o) {
			out["hosts at "+p.String()] = slices.Sorted(s.hostsAt(p))
			out["endpoints of "+p.String()] = slices.SortedFunc(s.endpointsOf(p), peers.ComparePrefix)
		}
	}
	return out
}

// recomputed is answers, worked out from the tables alone.
func recomputed(s State) map[string]any {
	out := map[string]any{}
	carry := func(host, org string) bool {
		o, ok := s.Orgs.Get(org)
		h, there := s.Hosts.Get(host)
		if !ok || o.Tombstone || !there || !h.MayCarry(org) {
			return false
		}
		for _, m := range s.Machines.All() {
			if m.Org == org && (m.Host == host || m.Next == host) {
				return true
			}
		}
		for _, c := range s.Clients.All() {
			if c.Org == org && (c.Home == host || c.Gateway == host) {
				return true
			}
		}
		return false
	}
	for _, host := range hostNames {
		var orgs []string
		for _, org := range orgNames {
			if carry(host, org) {
				orgs = append(orgs, org)
			}
		}
		var machines []Machine
		for _, m := range s.Machines.All() {
			if m.Host == host {
				machines = append(machines, m)
			}
		}
		var clients []Client
		for _, c := range s.Clients.All() {
			if c.Gateway == host {
				clients = append(clients, c)
			}
		}
		_, there := s.Hosts.Get(host)
		node := Node{}
		if there {
			node = Node{Kind: KindHost, Name: host}
		}
		out["orgs of "+host], out["machines on "+host], out["clients at "+host] = orgs, machines, clients
		out["node with the TLS key of "+host] = fmt.Sprint(node, there)
	}
	for _, org := range orgNames {
		var hosts []string
		for _, host := range hostNames {
			if carry(host, org) {
				hosts = append(hosts, host)
			}
		}
		out["hosts of "+org] = hosts
		for _, p := range allParties(org) {
			out["hosts at "+p.String()], out["endpoints of "+p.String()] = partyByHand(s, p, carry)
		}
		n := [4]int{}
		for _, g := range s.Grants.All() {
			if g.From.Org == org || g.To.Org == org {
				n[3]++
			}
		}
		for _, m := range s.Machines.All() {
			if m.Org == org {
				n[0]++
			}
		}
		for _, c := range s.Clients.All() {
			if c.Org == org {
				n[1]++
			}
		}
		for _, r := range s.Records.All() {
			if r.Org == org {
				n[2]++
			}
		}
		out["counts of "+org] = n
	}
	return out
}

// allParties are all sides that a grant could have in an org.
func allParties(org string) []Party {
	out := []Party{{Org: org}}
	for _, app := range appNames {
		out = append(out, Party{Org: org, App: app})
	}
	for _, id := range machineIDs {
		out = append(out, Party{Org: org, Machine: id})
	}
	for _, name := range clientNames {
		out = append(out, Party{Org: org, Client: name})
	}
	return out
}

// partyByHand is where a party's endpoints are, and which, worked out from the tables.
func partyByHand(s State, p Party, carry func(host, org string) bool) (hosts []string, endpoints []netip.Prefix) {
	at := map[string]bool{}
	for _, m := range s.Machines.All() {
		if m.Org == p.Org && p.Client == "" && (p.App == "" || p.App == m.App) && (p.Machine == "" || p.Machine == m.ID) {
			endpoints = append(endpoints, m.Endpoint)
			at[m.Host], at[m.Next] = true, true
		}
	}
	for _, c := range s.Clients.All() {
		if c.Org == p.Org && p.App == "" && p.Machine == "" && (p.Client == "" || p.Client == c.Name) {
			endpoints = append(endpoints, c.Endpoint)
			at[c.Gateway] = true
		}
	}
	for _, host := range hostNames {
		if at[host] && carry(host, p.Org) {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	slices.SortFunc(endpoints, peers.ComparePrefix)
	return slices.Compact(hosts), endpoints
}

// The indexes that With keeps are what the tables say, whatever came before.
func TestIndexesEqualRecomputation(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		if diff := cmp.Diff(text(t, recomputed(s)), text(t, answers(s))); diff != "" {
			t.Fatalf("indexes (-recomputed +kept):\n%s", diff)
		}
		// And when everything is taken away, nothing is left in them.
		empty := s
		for _, key := range slices.Sorted(maps.Keys(objects(s))) {
			if key != "mesh" {
				empty = empty.With(Change{Key: key})
			}
		}
		if n := empty.byHost.Len() + empty.carries.Len() + empty.carried.Len() + empty.byTLS.Len() + empty.grantsOf.Len() + empty.byApp.Len() + empty.stands.Len() + empty.counts.Len(); n != 0 {
			t.Fatalf("%d index entries of an empty state", n)
		}
	})
}

// A state depends on what is in it, not on the order in which it came: what a
// mirror that lists again relies on.
func TestWithInAnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		from, to := drawState(t), drawState(t)
		old, want := objects(from), objects(to)
		var changes []Change
		for key, object := range want {
			changes = append(changes, Change{key, object})
		}
		for key := range old {
			if _, stays := want[key]; !stays {
				changes = append(changes, Change{Key: key})
			}
		}
		slices.SortFunc(changes, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
		changes = rapid.Permutation(changes).Draw(t, "order")
		got := from.With(changes...)
		if diff := cmp.Diff(text(t, objects(to)), text(t, objects(got))); diff != "" {
			t.Fatalf("tables (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(text(t, answers(to)), text(t, answers(got))); diff != "" {
			t.Fatalf("indexes (-want +got):\n%s", diff)
		}
	})
}

// With returns the next state and leaves the one it was called on as it was.
func TestStatesAreImmutable(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		before := text(t, []any{objects(s), answers(s)})
		for range 10 {
			s.With(drawChange(t))
		}
		if diff := cmp.Diff(before, text(t, []any{objects(s), answers(s)})); diff != "" {
			t.Fatalf("the state changed (-before +after):\n%s", diff)
		}
	})
}

// A host is enrolled anew under another name with the same key: in a difference
// of two lists the new one is set before the old one is removed.
func TestATLSKeyThatChangesItsOwner(t *testing.T) {
	t.Parallel()
	s := State{}.With(Change{"hosts/old", Host{Name: "old", TLSKey: "k"}})
	s = s.With(Change{"hosts/new", Host{Name: "new", TLSKey: "k"}}, Change{Key: "hosts/old"})
	if node, ok := s.NodeByTLSKey("k"); !ok || node.Name != "new" {
		t.Errorf("the key is of %v %v, want host new", node, ok)
	}
	if _, ok := s.NodeByTLSKey(""); ok {
		t.Error("no key is somebody's key")
	}
}

func TestUnknownKindsAreIgnored(t *testing.T) {
	t.Parallel()
	s := State{}.With(Change{"wonders/acme", 1}, Change{Key: "wonders"}, Change{Key: ""}, Change{"orgs/acme", "not an org"})
	if n := len(objects(s)); n != 1 {
		t.Errorf("%d objects, want only the mesh record", n)
	}
}

func TestNodeText(t *testing.T) {
	t.Parallel()
	for _, n := range []Node{{Kind: KindHost, Name: "fra1"}, {Kind: KindClient, Org: "acme", Name: "laptop"}} {
		if got, ok := ParseNode(n.String()); !ok || got != n {
			t.Errorf("ParseNode(%q) = %v %v", n.String(), got, ok)
		}
	}
	for _, s := range []string{"", "host", "host/", "host/a/b", "client/a", "client//b", "client/a/", "token/a"} {
		if n, ok := ParseNode(s); ok {
			t.Errorf("ParseNode(%q) = %v", s, n)
		}
	}
}

func TestRevisionText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := Revision{rapid.Uint32().Draw(t, "epoch"), rapid.Int64Range(0, 1<<62).Draw(t, "revision")}
		b, err := want.MarshalText()
		var got Revision
		if err != nil || got.UnmarshalText(b) != nil || got != want {
			t.Fatalf("%v became %s became %v", want, b, got)
		}
	})
	for _, s := range []string{"", "1", "1.", ".1", "1.-1", "-1.1", "4294967296.1", "1.1.1", "a.b"} {
		if err := new(Revision).UnmarshalText([]byte(s)); err == nil {
			t.Errorf("revision %q was read", s)
		}
	}
}

func TestParsePoint(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"50.1,8.7", "-33.9,151.2", "90,-180", "0,0"} {
		if p, err := ParsePoint(s); err != nil || p.String() != s {
			t.Errorf("ParsePoint(%q) = %v %v", s, p, err)
		}
	}
	if p, err := ParsePoint(" 1 , 2 "); err != nil || *p != (Point{1, 2}) {
		t.Errorf("with spaces: %v %v", p, err)
	}
	for _, s := range []string{"", "1", "1,", "91,0", "0,181", "NaN,0", "0,Inf", "1,2,3"} {
		if p, err := ParsePoint(s); err == nil {
			t.Errorf("ParsePoint(%q) = %v", s, p)
		}
	}
	if (*Point)(nil).String() != "" {
		t.Error("no point has a text")
	}
}

func TestCheckName(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	for _, tt := range []struct {
		kind, name string
		ok         bool
	}{
		{"org", "acme", true}, {"org", "a", true}, {"org", "0", true}, {"org", long, true}, {"machine", "148e21dad76789", true},
		{"org", "", false}, {"org", long + "a", false}, {"org", "Acme", false}, {"org", "a_b", false}, {"org", "-a", false},
		{"org", "a-", false}, {"org", "a.b", false}, {"org", "a/b", false}, {"org", "ä", false}, {"org", "a\n", false},
		{"org", "all", false}, {"app", "all", true}, {"app", "google", false}, {"app", "org", false}, {"host", "google", true},
		{"region", "fra", true}, {"region", "nearest", false}, {"region", "top3", false}, {"region", "top", true},
	} {
		if err := CheckName(tt.kind, tt.name); (err == nil) != tt.ok {
			t.Errorf("%s name %q: %v, want ok %v", tt.kind, tt.name, err, tt.ok)
		}
	}
}

func TestHints(t *testing.T) {
	t.Parallel()
	if WithHint(nil, "x") != nil {
		t.Error("a hint made an error of nothing")
	}
	base := fmt.Errorf("base")
	inner := WithHint(base, "use %s", "this")
	outer := fmt.Errorf("outer: %w", inner)
	if inner.Error() != "base" || HintOf(outer) != "use this" || HintOf(base) != "" || HintOf(nil) != "" {
		t.Errorf("error %q, hints %q %q", inner, HintOf(outer), HintOf(base))
	}
	if got := HintOf(WithHint(outer, "no, that")); got != "no, that" {
		t.Errorf("the hint nearest to the surface is %q", got)
	}
}
