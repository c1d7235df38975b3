package agent

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// drawMesh draws the view of host "self", out of few names, so that two of them have
// much in common.
func drawMesh(t *rapid.T, plan ipam.Plan, revision int64) *mesh.View {
	pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	v := &mesh.View{
		Plan: plan, Format: mesh.ViewFormat, Self: mesh.Node{Kind: mesh.KindHost, Name: "self"}, Revision: mesh.Revision{Epoch: 1, Revision: revision},
		Host: &mesh.Host{Name: "self", Number: 9, Region: "fra", RegionNumber: 129, Cordoned: rapid.IntRange(0, 5).Draw(t, "cordoned") == 0},
	}
	v.Regions = []mesh.Region{{Name: "fra", At: &mesh.Point{Latitude: 50, Longitude: float64(rapid.IntRange(8, 9).Draw(t, "place"))}}}
	for i, name := range []string{"h0", "h1", "h2"} {
		if rapid.IntRange(0, 3).Draw(t, "host") > 0 {
			v.Hosts = append(v.Hosts, mesh.ViewHost{
				Name: name, Number: uint32(i + 1), Region: pick("region", "fra", "ams"), RegionNumber: 130, Key: mesh.Key(keyOf(byte(i + 1))),
				Cordoned: rapid.IntRange(0, 3).Draw(t, "cordoned") == 0, Present: rapid.Bool().Draw(t, "present"),
			})
		}
	}
	for n, org := range []string{"a", "a-b", "c"} {
		if rapid.IntRange(0, 3).Draw(t, "org") > 0 {
			drawMembers(t, v, org, uint64(n+1), pick)
		}
	}
	sortView(v)
	sortBy(v.Records, func(r mesh.Record) string { return r.Org + "/" + r.Name + "/" + r.Type })
	sortBy(v.Health, func(h mesh.Health) string { return h.Org + "/" + h.Machine })
	return v
}

func drawMembers(t *rapid.T, v *mesh.View, org string, network uint64, pick func(string, ...string) string) {
	v.Orgs = append(v.Orgs, mesh.Org{Name: org, Network: network})
	endpoint := func() netip.Prefix {
		return v.Plan.Endpoint(network, ipam.Host{Region: 130, Number: 1}, uint16(rapid.IntRange(1, 5).Draw(t, "slot")))
	}
	if rapid.Bool().Draw(t, "app") {
		v.Apps = append(v.Apps, mesh.App{Org: org, Name: "web", Answer: pick("answer", "", "all"), TTL: rapid.IntRange(0, 9).Draw(t, "ttl")})
	}
	for i := range 4 {
		m := mesh.Machine{
			Org: org, ID: fmt.Sprint("m", i), App: pick("app", "web", "db"), Host: pick("host", "h0", "h1", "self", "nosuch"), Endpoint: endpoint(),
			State: pick("state", mesh.StateStarted, mesh.StateStopped), Unlisted: rapid.IntRange(0, 4).Draw(t, "unlisted") == 0,
			Cordoned: rapid.IntRange(0, 4).Draw(t, "cordoned") == 0,
		}
		if rapid.Bool().Draw(t, "checked") {
			m.Checks = []mesh.Check{{}}
		}
		if rapid.Bool().Draw(t, "machine") {
			v.Machines = append(v.Machines, m)
		}
		if rapid.Bool().Draw(t, "health") {
			v.Health = append(v.Health, mesh.Health{Org: org, Machine: m.ID, Passing: rapid.Bool().Draw(t, "passing")})
		}
	}
	if rapid.Bool().Draw(t, "client") {
		v.Clients = append(v.Clients, mesh.ViewClient{Org: org, Name: "laptop", Endpoint: endpoint(), Home: "h0"})
	}
	for _, r := range []mesh.Record{
		{Name: "nas", Type: mesh.RecordAAAA, Values: []string{"2001:db8::1", "nonsense"}}, {Name: "nas", Type: mesh.RecordTXT, Values: []string{"a", "b"}},
		{Name: "nas", Type: mesh.RecordAlias, Values: []string{"web.internal"}}, {Name: "front", Type: mesh.RecordAlias, Values: []string{"web.internal"}},
		{Name: "_x._tcp", Type: mesh.RecordSRV, Values: []string{"0 1 80 web.internal"}},
	} {
		if r.Org = org; rapid.Bool().Draw(t, "record") {
			v.Records = append(v.Records, r)
		}
	}
}

// everyAnswer asks a zone for what the meshes of drawMesh may hold.
func everyAnswer(z *dns.Zone, plan ipam.Plan) map[string]dns.Answer {
	out := map[string]dns.Answer{}
	if z == nil {
		return out
	}
	var names []string
	for _, app := range []string{"web", "db"} {
		for _, before := range []string{"", "m0.vm.", "m1.vm.", "fra.", "ams.", "vms.", "all.vms.", "regions.", "_80._tcp.", "vm."} {
			names = append(names, before+app+".internal.")
		}
	}
	names = append(names, "_apps.internal.", "_peer.internal.", "_instances.internal.", "all._instances.internal.", "laptop._peer.internal.", "h0.host.internal.", "self.host.internal.",
		"nas.internal.", "front.internal.", "_x._tcp.internal.", "_tcp.internal.")
	for slot := range 6 {
		names = append(names, dns.ReverseName(ipam.MainAddr(plan.Endpoint(1, ipam.Host{Region: 130, Number: 1}, uint16(slot)))))
	}
	for network := range uint64(3) {
		for _, from := range []netip.Addr{plan.Resolver(network + 1), ipam.MainAddr(plan.Endpoint(network+1, ipam.Host{Region: 130, Number: 1}, 2))} {
			for _, name := range names {
				for _, qtype := range []uint16{dns.TypeAAAA, dns.TypeTXT, dns.TypeSRV, dns.TypePTR} {
					a := z.Answer(nil, dns.Query{Name: name, Type: qtype, Source: from}, rand.New(rand.NewPCG(1, 1)))
					out[fmt.Sprint(from, " ", name, qtype)] = a
				}
			}
		}
	}
	return out
}

func sameZones(t *rapid.T, what string, want, got *dns.Zone, plan ipam.Plan) {
	a, b := everyAnswer(want, plan), everyAnswer(got, plan)
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("%s (-of the view +in force):\n%s", what, cmp.Diff(a, b, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })))
	}
}

// The zone is always that of the view in force, whatever the controllers say:
// snapshots, changes, a change that a stream begins with, what is held back, an epoch.
// And the loop's pass puts on top of it what it has put in effect.
func TestZoneFollowsTheView(t *testing.T) {
	plan := testPlan(t)
	steps := 0
	rapid.Check(t, func(t *rapid.T) {
		var problems problems
		log := slog.New(slog.DiscardHandler)
		f := newFollower(mesh.Node{Kind: mesh.KindHost, Name: "self"}, "", Timing{}.withDefaults(), &script{list: []string{"x"}}, &problems, log)
		z := newZones(nil)
		f.names = func(v *version, step *mesh.Delta) {
			if step != nil {
				steps++
			}
			z.follow(v, step)
		}
		now, revision, epoch := time.Unix(1000, 0), int64(1), uint32(1)
		var said *mesh.View
		for range rapid.IntRange(2, 10).Draw(t, "events") {
			revision++
			v := drawMesh(t, plan, revision)
			if rapid.IntRange(0, 3).Draw(t, "most goes") == 0 {
				v.Machines, v.Hosts = nil, nil
			}
			now = now.Add(time.Second)
			var err error
			kind := rapid.SampledFrom([]string{"delta", "delta", "delta", "snapshot", "resumed", "epoch", "later", "restart"}).Draw(t, "event")
			if said == nil {
				kind = "snapshot"
			}
			if kind == "epoch" {
				epoch++
			}
			v.Revision.Epoch = epoch
			switch kind {
			case "snapshot", "epoch":
				err = f.snapshot(v, now)
				said = v
			case "delta", "resumed":
				d := mesh.DiffViews(*said, *v)
				d.Format = mesh.ViewFormat
				err = f.delta(d, kind == "delta", said.Revision, now)
				said = v
			case "later": // what is held back is applied
				now = now.Add(time.Hour)
				f.current.heard(said.Revision, now)
			case "restart": // from the view on disk
				held := !f.current.heldSince.IsZero()
				f.current = current{holdFor: f.current.holdFor}
				f.current.restore(f.View(), !held)
				z = newZones(nil)
				f.names = z.follow
				z.follow(f.current.effective, nil)
				f.view.Store(f.current.effective)
				err = f.snapshot(v, now)
				said = v
			}
			if err != nil {
				t.Fatal(err)
			}
			f.publish("x", now, 0)
			is := f.View()
			if f.current.heldSince.IsZero() && viewText(*is) != viewText(*said) {
				t.Fatalf("%s: in force is another view than the controllers said", kind)
			}
			sameZones(t, kind, dns.NewZone(zoneData(is, nil)), z.base, plan)
			if rapid.Bool().Draw(t, "a pass") {
				want := drawMesh(t, plan, revision) // in effect
				if rapid.Bool().Draw(t, "nothing differs") {
					want = is
				}
				z.differ(is, want)
				sameZones(t, "after a pass", dns.NewZone(zoneData(want, nil)), z.Load(), plan)
				z.differ(is, is)
				sameZones(t, "after a pass with nothing to differ", dns.NewZone(zoneData(is, nil)), z.Load(), plan)
			}
		}
	})
	if steps < 50 {
		t.Errorf("only %d changes went straight into the zone", steps)
	}
}

// A view is made when somebody asks, by however many at once, and is what it would be
// had it been made at each change.
func TestVersion(t *testing.T) {
	plan := testPlan(t)
	rapid.Check(t, func(t *rapid.T) {
		at := drawMesh(t, plan, 1)
		v := versionOf(at)
		want := *at
		var all []*version
		var texts []string
		for i := range rapid.IntRange(1, 8).Draw(t, "changes") {
			next := drawMesh(t, plan, int64(i+2))
			d := mesh.DiffViews(want, *next)
			want = want.Apply(d)
			v = v.with(d)
			all, texts = append(all, v), append(texts, viewText(want))
			if v.head.Revision != want.Revision || v.head.Plan != want.Plan || v.head.Self != want.Self || v.head.Format != want.Format {
				t.Fatalf("head %v of %v", v.head, want)
			}
			if rapid.IntRange(0, 3).Draw(t, "asked") == 0 {
				v.View()
			}
		}
		var group sync.WaitGroup
		got := make([]string, 2*len(all))
		for i := range got {
			group.Go(func() { got[i] = viewText(*all[i%len(all)].View()) })
		}
		group.Wait()
		if !slices.Equal(got, slices.Concat(texts, texts)) {
			t.Fatal("another view than by changes one by one")
		}
		for _, v := range all {
			if v.View() != v.View() || v.from != nil {
				t.Fatal("made twice, or what it is made of is kept")
			}
		}
	})
}

// However many changes nobody asks for: what waits is bounded.
func TestVersionsDoNotPileUp(t *testing.T) {
	v := versionOf(crowd(1, 0, 1))
	for i := range 5 * mostSteps {
		v = v.with(mesh.Delta{Revision: mesh.Revision{Revision: int64(i)}, Machines: []mesh.Machine{{Org: "o", ID: fmt.Sprint("new", i%7)}}})
	}
	n := 0
	for at := v; at.made.Load() == nil; at = at.from {
		n++
	}
	if n > mostSteps || len(v.View().Machines) != 8 {
		t.Errorf("%d changes wait; %d machines", n, len(v.View().Machines))
	}
}

// Numbers that the mesh has no room for end the stream: names are made of a change at
// once.
func TestChangeThatCannotBe(t *testing.T) {
	for name, d := range map[string]mesh.Delta{
		"network": {Orgs: []mesh.Org{{Name: "o"}}},
		"host":    {Hosts: []mesh.ViewHost{{Name: "h", Number: ipam.MaxHost + 1}}},
	} {
		f := newFollower(mesh.Node{Kind: mesh.KindHost, Name: "self"}, "", Timing{}.withDefaults(), nil, &problems{}, slog.New(slog.DiscardHandler))
		v := soundView(t, 1, 0)
		if err := f.snapshot(v, time.Now()); err != nil {
			t.Fatal(err)
		}
		d.Revision = v.Revision
		d.Revision.Revision++
		if err := f.delta(d, true, mesh.Revision{}, time.Now()); err == nil || !strings.Contains(err.Error(), "makes no sense") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
