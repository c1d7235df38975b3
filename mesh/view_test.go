package mesh

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/ipam"
)

var deployment = Deployment{Controllers: []string{"https://192.0.2.9:7443"}, Roots: []string{"PEM"}}

// nodes are all that can have a view in s.
func nodes(s State) []Node {
	var out []Node
	for name := range s.Hosts.All() {
		out = append(out, Node{Kind: KindHost, Name: name})
	}
	for _, c := range s.Clients.All() {
		if o, ok := s.Orgs.Get(c.Org); ok && !o.Tombstone {
			out = append(out, Node{Kind: KindClient, Org: c.Org, Name: c.Name})
		}
	}
	return out
}

// A node's view holds nothing of an org that it does not carry, and of other
// nodes no key that is not a tunnel's of its own. Every object of an org has the
// org's mark in it; every TLS key is marked.
func TestViewHoldsNothingOfAnOrgNotCarried(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		for _, node := range nodes(s) {
			v, ok := s.View(node, deployment)
			if !ok {
				t.Fatalf("%s has no view", node)
			}
			carried := []string{node.Org}
			if node.Kind == KindHost {
				carried, _ = recomputed(s)["orgs of "+node.Name].([]string)
			}
			v.Host, v.Client = nil, nil // its own record
			checkGranted(t, s, node, carried, v)
			v.Grants, v.Granted = nil, nil
			wire := text(t, v)
			if strings.Contains(wire, "tls-") {
				t.Fatalf("the view of %s holds a TLS key:\n%s", node, wire)
			}
			for _, org := range orgNames {
				if slices.Contains(carried, org) {
					continue
				}
				if strings.Contains(wire, "secret-of-"+org+".") || strings.Contains(wire, `"`+org+`"`) {
					t.Fatalf("the view of %s, which carries %v, holds something of %s:\n%s", node, carried, org, wire)
				}
			}
			for _, c := range v.Clients {
				if c.Key != nil && c.Gateway != node.Name {
					t.Fatalf("%s knows the key of client %s, whose gateway is %s", node, c.key(), c.Gateway)
				}
			}
			for _, h := range v.Hosts {
				if node.Kind == KindHost && len(h.Orgs) == 0 && !linkedByHand(s, node.Name, h.Name) {
					t.Fatalf("%s sees host %s, with which it shares no org and no grant", node, h.Name)
				}
			}
		}
	})
}

// And it holds all of what it does carry.
func TestViewHoldsAllOfAnOrgCarried(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		for name := range s.Hosts.All() {
			v, _ := s.View(Node{Kind: KindHost, Name: name}, deployment)
			apps, machines, clients := 0, 0, 0
			for _, org := range s.OrgsOf(name) {
				apps += count(s.Apps, org)
				machines += count(s.Machines, org)
				clients += count(s.Clients, org)
				for _, other := range s.HostsOf(org) {
					i := slices.IndexFunc(v.Hosts, func(h ViewHost) bool { return h.Name == other })
					if other != name && (i < 0 || !slices.Contains(v.Hosts[i].Orgs, org)) {
						t.Fatalf("host %s does not see host %s, which carries %s too", name, other, org)
					}
				}
			}
			records, health := 0, 0
			for _, org := range s.OrgsOf(name) {
				records += count(s.Records, org)
				health += count(s.Health, org)
			}
			if len(v.Records) != records || len(v.Health) != health {
				t.Fatalf("host %s sees %d records and the health of %d machines, of %d and %d", name, len(v.Records), len(v.Health), records, health)
			}
			if len(v.Apps) != apps || len(v.Machines) != machines || len(v.Clients) != clients {
				t.Fatalf("host %s sees %d apps, %d machines, %d clients of %d, %d, %d", name, len(v.Apps), len(v.Machines), len(v.Clients), apps, machines, clients)
			}
		}
	})
}

func count[T any](t Table[T], org string) (n int) {
	for range t.Prefix(org + "/") {
		n++
	}
	return n
}

// The law of deltas, and that both views and deltas survive the wire.
func TestDeltaLeadsFromOneViewToTheNext(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawState(t), State{}
		if rapid.Bool().Draw(t, "near") { // a few changes later
			after = before
			for range rapid.IntRange(0, 5).Draw(t, "steps") {
				after = after.With(drawChange(t))
			}
		} else {
			after = drawState(t)
		}
		after.Revision.Revision = before.Revision.Revision + 1
		d2 := deployment
		if rapid.Bool().Draw(t, "controller moved") {
			d2.Controllers = []string{"https://192.0.2.10:7443", "https://192.0.2.11:7443"}
		}
		for _, node := range nodes(before) {
			old, _ := before.View(node, deployment)
			new, ok := after.View(node, d2)
			if !ok {
				continue // it was removed: its stream ends
			}
			d := DiffViews(old, new)
			if got := old.Apply(d); !reflect.DeepEqual(got, new) {
				t.Fatalf("apply (-want +got):\n%s", cmp.Diff(text(t, new), text(t, got)))
			}
			if got := wire(t, old).Apply(wire(t, d)); !reflect.DeepEqual(got, wire(t, new)) || text(t, got) != text(t, new) {
				t.Fatalf("apply over the wire (-want +got):\n%s", cmp.Diff(text(t, new), text(t, got)))
			}
			if same := DiffViews(new, new); !same.Empty() {
				t.Fatalf("a difference of a view to itself: %s", text(t, same))
			}
			if d.Empty() != reflect.DeepEqual(withRevision(old, new.Revision), new) {
				t.Fatalf("Empty() = %v of %s", d.Empty(), text(t, d))
			}
		}
	})
}

func withRevision(v View, r Revision) View { v.Revision = r; return v }

// wire is v as a node that receives it has it.
func wire[T any](t *rapid.T, v T) (out T) {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// A view goes over the wire and comes back as it was.
func TestViewSurvivesTheWire(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		for _, node := range nodes(s) {
			v, _ := s.View(node, deployment)
			got := wire(t, v)
			if v.Host != nil && len(v.Host.Orgs) == 0 {
				v.Host.Orgs, got.Host.Orgs = nil, nil // none is none
			}
			if !reflect.DeepEqual(got, v) {
				t.Fatalf("(-sent +received):\n%s", cmp.Diff(text(t, v), text(t, got)))
			}
		}
	})
}

// Lists come in the order of their keys: what streams and caches compare by.
func TestViewIsSorted(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		for _, node := range nodes(s) {
			v, _ := s.View(node, deployment)
			sorted(t, "hosts", v.Hosts, ViewHost.key)
			sorted(t, "orgs", v.Orgs, Org.key)
			sorted(t, "apps", v.Apps, App.key)
			sorted(t, "machines", v.Machines, Machine.key)
			sorted(t, "clients", v.Clients, ViewClient.key)
			sorted(t, "records", v.Records, Record.key)
			sorted(t, "health", v.Health, Health.key)
			sorted(t, "grants", v.Grants, Grant.key)
			sorted(t, "granted", v.Granted, Granted.key)
		}
	})
}

func sorted[T any](t *rapid.T, what string, list []T, key func(T) string) {
	if !slices.IsSortedFunc(list, func(a, b T) int { return strings.Compare(key(a), key(b)) }) {
		t.Fatalf("%s are not in order: %s", what, text(t, list))
	}
}

func TestWhoHasAView(t *testing.T) {
	t.Parallel()
	s := threeHosts()
	for _, tt := range []struct {
		node string
		ok   bool
	}{
		{"host/fra1", true}, {"host/gone", false},
		{"client/acme/laptop", true}, {"client/acme/gone", false}, {"client/gone/laptop", false}, {"client/late/phone", false},
	} {
		node, _ := ParseNode(tt.node)
		if v, ok := s.View(node, deployment); ok != tt.ok || ok && v.Self != node {
			t.Errorf("view of %s: %v, want %v", tt.node, ok, tt.ok)
		}
	}
	if _, ok := s.View(Node{Kind: "token", Name: "fra1"}, deployment); ok {
		t.Error("a view of something that is no node")
	}
}

// Coordinates are for hosts: a client's view does not change with them.
func TestCoordinatesAreForHosts(t *testing.T) {
	t.Parallel()
	c := Coordinate{Vec: make([]float64, CoordinateDimensions), Error: 0.3}
	s := threeHosts().With(Change{"coordinates/ams1", c}, Change{"coordinates/fra1", c})
	v, _ := s.View(Node{Kind: KindHost, Name: "fra1"}, deployment)
	i := slices.IndexFunc(v.Hosts, func(h ViewHost) bool { return h.Name == "ams1" })
	if v.Coordinate == nil || i < 0 || v.Hosts[i].Coordinate == nil {
		t.Errorf("host fra1 does not know where it and ams1 are: %s", text(t, v))
	}
	client := Node{Kind: KindClient, Org: "acme", Name: "laptop"}
	w, _ := s.View(client, deployment)
	if strings.Contains(text(t, w), "coordinate") {
		t.Errorf("a client is told coordinates: %s", text(t, w))
	}
	a := NewAdvance(Step{Before: threeHosts(), After: s, Keys: []string{"coordinates/ams1", "coordinates/fra1"}}, deployment)
	if x := a.Audience(); x.All || x.AllClients || len(x.Clients) > 0 || slices.Contains(x.Nodes, client) {
		t.Errorf("clients are concerned by coordinates: %+v", x)
	}
}

// What a client sees of hosts: its gateway, and those that could be one.
func TestClientSeesGateways(t *testing.T) {
	t.Parallel()
	s := threeHosts()
	v, _ := s.View(Node{Kind: KindClient, Org: "acme", Name: "laptop"}, deployment)
	var got []string
	for _, h := range v.Hosts {
		got = append(got, h.Name)
	}
	if want := []string{"ams1", "fra1"}; !slices.Equal(got, want) { // nrt1 is behind NAT
		t.Errorf("hosts %v, want %v", got, want)
	}
	if len(v.Machines)+len(v.Clients)+len(v.Apps) != 0 {
		t.Error("a client needs no names: hosts answer")
	}
}

// FuzzView: whatever a node receives or has on its disk, applying it does not
// panic, a delta that comes twice changes nothing the second time, and a view that
// is valid can be used.
func FuzzView(f *testing.F) {
	s := threeHosts()
	for _, node := range nodes(s) {
		v, _ := s.View(node, deployment)
		old, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		d, err := json.Marshal(DiffViews(View{}, v))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(old, d)
	}
	f.Fuzz(func(t *testing.T, view, delta []byte) {
		var v View
		var d Delta
		if json.Unmarshal(view, &v) != nil || json.Unmarshal(delta, &d) != nil {
			return
		}
		got := v.Apply(d)
		if again := got.Apply(d); len(d.Machines) <= 1 && !reflect.DeepEqual(again.Machines, got.Machines) {
			t.Fatal("a delta that comes twice changes the view twice")
		}
		DiffViews(v, got)
		for _, v := range []View{v, got} {
			if v.Validate() != nil {
				continue
			}
			v.Config(wgtypes.Key{1}, 1)
			v.Addresses()
			v.Routes()
			v.Policy("weft0", 1, nil)
		}
	})
}

func TestValidateViews(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		for _, node := range nodes(s) {
			if v, _ := s.View(node, deployment); v.Validate() != nil {
				t.Fatalf("the view of %s: %v", node, v.Validate())
			}
		}
	})
	for name, spoil := range map[string]func(*View){
		"no plan":        func(v *View) { v.Plan = ipam.Plan{} },
		"network 0":      func(v *View) { v.Orgs = []Org{{Name: "x"}} },
		"large network":  func(v *View) { v.Orgs = []Org{{Name: "x", Network: 1 << 16}} },
		"large host":     func(v *View) { v.Hosts = []ViewHost{{Name: "x", Number: 1 << 24}} },
		"host 0":         func(v *View) { v.Hosts = []ViewHost{{Name: "x"}} },
		"granted /96":    func(v *View) { v.Granted = []Granted{{Endpoint: netip.MustParsePrefix("fd12:3456:789a:1::/96")}} },
		"granted beyond": func(v *View) { v.Granted = []Granted{{Endpoint: netip.MustParsePrefix("fd99::1:0/112")}} },
		"itself without": func(v *View) { v.Host = &Host{} },
	} {
		v, _ := threeHosts().View(Node{Kind: KindHost, Name: "fra1"}, deployment)
		if spoil(&v); v.Validate() == nil {
			t.Errorf("%s: valid", name)
		}
	}
}
