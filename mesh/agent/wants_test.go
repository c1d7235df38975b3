package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/link"
)

// drawView draws a view of host a, sorted as views are: few names and few numbers, so
// that much of it meets.
func drawView(t *rapid.T, plan mesh.View) *mesh.View {
	v := mesh.View{Revision: mesh.Revision{Epoch: 1, Revision: 1}, Plan: plan.Plan, Self: plan.Self, Host: plan.Host, Controllers: []string{"https://c"}, Roots: []string{"r"}}
	pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
	yes := func(label string) bool { return rapid.Bool().Draw(t, label) }
	orgs := []string{"o1", "o2", "o3"}
	for i, o := range orgs {
		if yes("carried " + o) {
			v.Orgs = append(v.Orgs, mesh.Org{Name: o, Network: uint64(i + 1)})
		}
	}
	for i, name := range []string{"b", "c", "d"} {
		if !yes("host " + name) {
			continue
		}
		h := mesh.ViewHost{Name: name, Number: uint32(i + 2), RegionNumber: 1, Region: pick("region", "fra", "ams"), Key: mesh.Key(keyOf(byte(rapid.IntRange(2, 5).Draw(t, "key")))), NAT: yes("NAT")}
		if yes("endpoint") {
			h.Endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(1, 3).Draw(t, "at"))}), 51820)}
		}
		for _, o := range orgs {
			if yes("carries " + o) {
				h.Orgs = append(h.Orgs, o)
			}
		}
		v.Hosts = append(v.Hosts, h)
	}
	at := func(label string) string { return pick(label, "a", "b", "c", "d", "x") }
	endpoint := func(slot int) netip.Prefix {
		home := mesh.ViewHost{Number: uint32(rapid.IntRange(1, 4).Draw(t, "home")), RegionNumber: 1}
		return plan.Plan.Endpoint(uint64(rapid.IntRange(1, 3).Draw(t, "network")), home.Position(), uint16(slot))
	}
	for i := range 4 {
		if !yes("machine") {
			continue
		}
		m := mesh.Machine{Org: "o1", ID: fmt.Sprintf("m%d", i), App: "web", Host: at("machine at"), Endpoint: endpoint(rapid.IntRange(1, 3).Draw(t, "slot")), State: mesh.StateStarted}
		if yes("moves") {
			m.Next = at("next")
		}
		v.Machines = append(v.Machines, m)
	}
	for i := range 3 {
		if !yes("client") {
			continue
		}
		c := mesh.ViewClient{Org: "o1", Name: fmt.Sprintf("c%d", i), Gateway: at("gateway"), Endpoint: endpoint(10 + i)}
		if c.Gateway == "a" {
			k := mesh.Key(keyOf(byte(rapid.IntRange(4, 7).Draw(t, "client's key"))))
			c.Key = &k
		}
		v.Clients = append(v.Clients, c)
	}
	parties := []mesh.Party{{Org: "o1"}, {Org: "o1", App: "web"}, {Org: "o1", Machine: "m1"}, {Org: "o1", Client: "c1"}, {Org: "o2"}, {Org: "o3", App: "db"}}
	for i := range 2 {
		if !yes("grant") {
			continue
		}
		g := mesh.Grant{ID: fmt.Sprintf("g%d", i), From: rapid.SampledFrom(parties).Draw(t, "from"), To: rapid.SampledFrom(parties).Draw(t, "to"), Protocol: "tcp"}
		v.Grants = append(v.Grants, g)
		if yes("beyond") {
			beyond := plan.Plan.Endpoint(9, mesh.ViewHost{Number: 3, RegionNumber: 1}.Position(), uint16(i+1))
			v.Granted = append(v.Granted, mesh.Granted{Endpoint: beyond, Org: g.To.Org, Host: at("beyond at"), Grants: []string{g.ID}})
		}
	}
	return &v
}

func startView() mesh.View {
	v := mesh.View{Self: mesh.Node{Kind: mesh.KindHost, Name: "a"}, Host: &mesh.Host{Name: "a", Number: 1, RegionNumber: 1, Region: "fra"}}
	return v
}

// What follows a view change by change is what is made of the whole view: the same
// tunnels as a device would be given, the same routes, addresses and sources. And what
// it says is touched is all that differs, and no more.
func TestWantsFollowTheView(t *testing.T) {
	t.Parallel()
	start := startView()
	start.Plan = testPlan(t)
	rapid.Check(t, func(t *rapid.T) {
		v := drawView(t, start)
		w := wantsOf(v, privateKey().PublicKey())
		sameWants(t, w, v)
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			next := drawView(t, start)
			d := mesh.DiffViews(*v, *next)
			before := w.config(privateKey(), 51820)
			touched, ok := w.follow([]mesh.Delta{d})
			v = next
			if !ok && (len(d.Granted) > 0 || len(v.Granted) > 0 || slices.ContainsFunc(d.Removed, func(key string) bool { return strings.HasPrefix(key, "granted/") })) {
				w = wantsOf(v, privateKey().PublicKey())
				continue
			}
			if !ok {
				t.Fatalf("it has to be made anew after %+v", d)
			}
			sameWants(t, w, v)
			changes, retired := w.tunnels(touched)
			for _, key := range retired {
				changes = append(changes, peers.Change{Op: peers.RemovePeer, Peer: peers.Peer{Key: key}})
			}
			after := peers.Retarget(before, w.config(privateKey(), 51820))
			if left := peers.Diff(peers.Apply(before, changes), after); len(left) > 0 {
				t.Fatalf("%s lead elsewhere: %s is left to do", changes, left)
			}
			if needed := peers.Diff(before, after); len(changes) > len(needed)+len(retired) {
				t.Fatalf("more changes than needed:\n%s\nneeded:\n%s", changes, needed)
			}
		}
	})
}

func sameWants(t *rapid.T, w *wants, v *mesh.View) {
	t.Helper()
	want, _ := sound(v.Config(privateKey(), 51820))
	if diff := cmp.Diff(want.String(), w.config(privateKey(), 51820).String()); diff != "" {
		t.Fatalf("tunnels (-whole +followed):\n%s", diff)
	}
	fresh := wantsOf(v, privateKey().PublicKey())
	if boxes := v.Policy("", 0, nil).Grants; fmt.Sprint(boxes) != fmt.Sprint(w.boxes()) {
		t.Fatalf("grants: whole %v, followed %v", boxes, w.boxes())
	}
	prefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	address := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(fresh.networks, w.networks); diff != "" {
		t.Fatalf("networks (-whole +followed):\n%s", diff)
	}
	if diff := cmp.Diff(slices.Collect(maps.Keys(probeSources(v))), slices.Collect(maps.Keys(w.sources)), address,
		cmp.Transformer("sorted", func(in []netip.Addr) []string {
			var out []string
			for _, a := range in {
				out = append(out, a.String())
			}
			slices.Sort(out)
			return out
		})); diff != "" {
		t.Fatalf("sources (-whole +followed):\n%s", diff)
	}
	if diff := cmp.Diff(fresh.here, w.here, prefix); diff != "" {
		t.Fatalf("machines here (-whole +followed):\n%s", diff)
	}
}

// A loop that follows the view change by change leaves the system as one that makes a
// whole pass for each view, and a whole pass after it finds nothing to do.
func TestFollowingIsAsGoodAsAPass(t *testing.T) {
	t.Parallel()
	start := startView()
	start.Plan = testPlan(t)
	rapid.Check(t, func(rt *rapid.T) {
		v := versionOf(drawView(rt, start))
		a, b := &fakeSystem{}, &fakeSystem{}
		// Machines whose process has not come back: their links are there.
		for i := range 2 {
			if rapid.Bool().Draw(rt, "link") {
				a.found = append(a.found, attach.Found{Link: attach.LinkName("o1", fmt.Sprintf("m%d", i))})
			}
		}
		b.found = a.found
		quick, slow := rapidLoop(rt, t, a), rapidLoop(rt, t, b)
		quick.feed.add(v, nil)
		followed := 0
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			if _, _, err := quick.next(context.Background()); err != nil {
				rt.Fatal(err)
			}
			a.found = slices.DeleteFunc(slices.Clone(a.found), func(f attach.Found) bool { return slices.Contains(a.lines, "detach: "+f.Link) })
			for range 2 { // peers that go do so in two steps
				if _, err := slow.pass(context.Background(), v.View()); err != nil {
					rt.Fatal(err)
				}
				b.found = slices.DeleteFunc(slices.Clone(b.found), func(f attach.Found) bool { return slices.Contains(b.lines, "detach: "+f.Link) })
			}
			if quick.progress == nil {
				rt.Fatal("a pass left nothing to follow")
			}
			for key := range quick.progress.retired {
				quick.progress.retired[key] = time.Time{}
			}
			if len(quick.progress.retired) > 0 {
				if _, _, err := quick.next(context.Background()); err != nil {
					rt.Fatal(err)
				}
			}
			sameSystem(rt, b, a)
			d := mesh.DiffViews(*v.View(), *drawView(rt, start))
			d.Revision.Revision = v.head.Revision.Revision + 1
			v = v.with(d)
			if rapid.IntRange(0, 9).Draw(rt, "whole") > 0 {
				quick.feed.add(v, &d)
				followed++
			} else {
				quick.feed.add(v, nil)
			}
		}
	})
}

func sameSystem(t *rapid.T, want, got *fakeSystem) {
	t.Helper()
	text := func(f *fakeSystem) string {
		c, err := f.device.Config(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for i := range c.Peers {
			c.Peers[i].Endpoint = netip.AddrPort{}
		}
		resolvers, sources := fmt.Sprint(f.resolvers), fmt.Sprint(f.sources)
		targets := fmt.Sprint(slices.SortedFunc(slices.Values(f.targets), func(a, b probe.Target) int { return a.Addr.Compare(b.Addr) }))
		routes := slices.SortedFunc(slices.Values(f.links.Routes), func(a, b link.Route) int { return peers.ComparePrefix(a.Prefix, b.Prefix) })
		return fmt.Sprintf("%s\n%v\n%v\n%v\n%v\n%s\n%s\n%s", c, f.policy.Networks, fmt.Sprint(f.policy.Attachments, f.policy.Grants), f.links.Addresses, routes, resolvers, sources, targets)
	}
	if diff := cmp.Diff(text(want), text(got)); diff != "" {
		t.Fatalf("the system differs (-by whole passes +followed):\n%s", diff)
	}
}

func rapidLoop(rt *rapid.T, t *testing.T, s system) *loop {
	log := slog.New(slog.DiscardHandler)
	m, err := openMachines(&machines{host: "a", dir: t.TempDir(), reclaim: time.Hour, wake: func() {}, log: log})
	if err != nil {
		rt.Fatal(err)
	}
	connected := func() contact { return contact{connected: true} }
	return &loop{
		system: s, machines: m, tunnels: tunnels{key: privateKey(), port: 51820, log: log}, link: "weft0", probe: 51821,
		mtu: func(*mesh.View) int { return 1420 }, contact: connected, reach: connected,
		feed: &feed{}, alarms: &alarms{wake: func() {}}, events: &events{wake: func() {}}, timing: Timing{}.withDefaults(), log: log,
	}
}
