package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// sameAnswer compares answers; addresses have nothing to look into.
var sameAnswer = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// model is Data that deltas are applied to, by scanning.
type model struct {
	Data
	unlisted []Org // what belongs to orgs that are not there
}

func (m *model) apply(d Delta) {
	m.Regions = changed(m.Regions, d.Regions, d.RemovedRegions, func(r Region) string { return r.Name })
	m.Hosts = changed(m.Hosts, d.Hosts, d.RemovedHosts, func(h Host) string { return h.Name })
	for _, od := range d.Orgs {
		isIt := func(o Org) bool { return o.Name == od.Name }
		o, list := Org{Name: od.Name}, &m.unlisted
		if i := slices.IndexFunc(m.Orgs, isIt); i >= 0 {
			o, list = m.Orgs[i], &m.Orgs
			m.Orgs = slices.Delete(slices.Clone(m.Orgs), i, i+1)
		} else if i := slices.IndexFunc(m.unlisted, isIt); i >= 0 {
			o = m.unlisted[i]
			m.unlisted = slices.Delete(slices.Clone(m.unlisted), i, i+1)
		}
		if od.Removed {
			list = &m.unlisted
		}
		if od.Set != nil {
			list, o.Prefix, o.Resolver, o.Host = &m.Orgs, od.Set.Prefix, od.Set.Resolver, od.Set.Host
		}
		o.Apps = changed(o.Apps, od.Apps, od.RemovedApps, func(a App) string { return a.Name })
		o.Machines = changed(o.Machines, od.Machines, od.RemovedMachines, func(m Machine) string { return m.ID })
		o.Clients = changed(o.Clients, od.Clients, od.RemovedClients, func(c Client) string { return c.Name })
		for _, n := range od.Own {
			o.Own = slices.DeleteFunc(slices.Clone(o.Own), func(r OwnRecord) bool { return r.Name == n.Name })
			o.Own = append(o.Own, n.Records...)
		}
		*list = append(*list, o)
	}
}

func changed[T any](list, set []T, removed []string, key func(T) string) []T {
	out := slices.DeleteFunc(slices.Clone(list), func(x T) bool { return slices.Contains(removed, key(x)) })
	for _, x := range set {
		out = slices.DeleteFunc(out, func(y T) bool { return key(x) == key(y) })
		out = append(out, x)
	}
	return out
}

// sound returns d without what cannot be right and without who comes second, found
// by scanning: the rules of NewZone, in other words.
func sound(d Data) Data {
	d.Orgs = slices.Clone(d.Orgs)
	slices.SortFunc(d.Orgs, func(a, b Org) int { return strings.Compare(a.Name, b.Name) })
	var orgs []Org
	for _, o := range d.Orgs {
		if slices.ContainsFunc(orgs, func(x Org) bool { return x.Prefix == o.Prefix }) || o.Prefix.Bits() != 64 ||
			!d.Prefix.Contains(o.Prefix.Addr()) || o.Prefix.Addr() == d.Prefix.Addr() {
			continue
		}
		taken := map[netip.Addr]bool{o.Resolver: true}
		if slices.ContainsFunc(d.Hosts, func(h Host) bool { return h.Name == d.Self && h.Region != "vm" }) {
			taken[o.Host] = true
		}
		take := func(a netip.Addr) bool {
			ok := o.Prefix.Contains(a) && !taken[a]
			taken[a] = taken[a] || ok
			return ok
		}
		o.Machines, o.Clients = slices.Clone(o.Machines), slices.Clone(o.Clients)
		slices.SortFunc(o.Machines, func(a, b Machine) int { return strings.Compare(a.ID, b.ID) })
		slices.SortFunc(o.Clients, func(a, b Client) int { return strings.Compare(a.Name, b.Name) })
		o.Machines = slices.DeleteFunc(o.Machines, func(m Machine) bool {
			return strings.HasPrefix(m.ID, "-") || m.App == "google" || !take(m.Addr)
		})
		o.Clients = slices.DeleteFunc(o.Clients, func(c Client) bool { return !take(c.Addr) })
		orgs = append(orgs, o)
	}
	d.Orgs = orgs
	return d
}

// drawDelta draws a change out of few names, addresses and networks, so that there is
// much to clash, to replace and to remove.
func drawDelta(t *rapid.T) (d Delta) {
	pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	some := func(label string) bool { return rapid.IntRange(0, 3).Draw(t, label) == 0 }
	host := func() string { return pick("host", "h0", "h1", "h2", "h3") }
	region := func() string { return pick("region", "fra", "ams", "nrt", "vm") }
	if some("regions") {
		r := Region{Name: region()}
		if rapid.Bool().Draw(t, "placed") {
			r.Place = &Place{float64(rapid.IntRange(-100, 90).Draw(t, "lat")), 10}
		}
		d.Regions = append(d.Regions, r)
	}
	if some("no region") {
		d.RemovedRegions = append(d.RemovedRegions, region())
	}
	for range rapid.IntRange(0, 2).Draw(t, "hosts") {
		h := Host{Name: host(), Region: region(), Cordoned: some("cordoned")}
		if !some("no address") {
			h.Addr = netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:0:100:%d:0:1", rapid.IntRange(1, 4).Draw(t, "number")))
		}
		d.Hosts = append(d.Hosts, h)
	}
	if some("no host") {
		d.RemovedHosts = append(d.RemovedHosts, host())
	}
	for range rapid.IntRange(0, 2).Draw(t, "orgs") {
		d.Orgs = append(d.Orgs, drawOrgDelta(t, pick, some, host))
	}
	return d
}

func drawOrgDelta(t *rapid.T, pick func(string, ...string) string, some func(string) bool, host func() string) (d OrgDelta) {
	d.Name = pick("org", "o1", "o2", "o3")
	own := d.Name[1:] // most of the time its own network
	network := func() string {
		if some("network") {
			own = pick("network", "0", "1", "2", "3")
		}
		return "fd12:3456:789a:" + own
	}
	addr := func() netip.Addr {
		return netip.MustParseAddr(fmt.Sprintf("%s:100:%d:%d:%d", network(), rapid.IntRange(1, 2).Draw(t, "on"), rapid.IntRange(0, 3).Draw(t, "slot"), rapid.IntRange(1, 2).Draw(t, "sub")))
	}
	switch rapid.IntRange(0, 4).Draw(t, "org") {
	case 0:
		d.Removed = true
	case 1, 2:
		p := network()
		d.Set = &Org{Name: d.Name, Prefix: netip.MustParsePrefix(p + "::/64"), Resolver: netip.MustParseAddr(p + "::3"), Host: netip.MustParseAddr(p + ":100:1:0:1")}
	}
	app := func() string { return pick("app", "web", "db", d.Name+"-app", "google") }
	id := func() string { return pick("id", d.Name+"-m0", d.Name+"-m1", d.Name+"-m2", d.Name+"-m3", "-"+d.Name) }
	client := func() string { return pick("client", d.Name+"-c0", d.Name+"-c1") }
	if some("apps") {
		d.Apps = append(d.Apps, App{Name: app(), Answer: pick("answer", "", "near", "all", "1"), TTL: rapid.IntRange(-1, 20).Draw(t, "ttl")})
	}
	if some("no app") {
		d.RemovedApps = append(d.RemovedApps, app())
	}
	for range rapid.IntRange(0, 3).Draw(t, "machines") {
		d.Machines = append(d.Machines, Machine{
			ID: id(), App: app(), Group: pick("group", "", "front"), Meta: map[string]string{"k": pick("value", "v", "w")},
			Host: host(), Addr: addr(), Started: !some("stopped"), Healthy: !some("sick"),
		})
	}
	if some("no machine") {
		d.RemovedMachines = append(d.RemovedMachines, id())
	}
	if some("clients") {
		d.Clients = append(d.Clients, Client{client(), addr()})
	}
	if some("no client") {
		d.RemovedClients = append(d.RemovedClients, client())
	}
	if some("own") {
		d.Own = append(d.Own, drawOwn(t, pick))
	}
	return d
}

func drawOwn(t *rapid.T, pick func(string, ...string) string) OwnName {
	n := OwnName{Name: pick("own", "nas", "a.nas", "x.a.nas", "web", "b.web", "front")}
	for range rapid.IntRange(0, 2).Draw(t, "records") {
		n.Records = append(n.Records, OwnRecord{
			Name: n.Name, Type: rapid.SampledFrom([]uint16{TypeAAAA, TypeTXT, TypeAlias}).Draw(t, "type"),
			Addr: netip.MustParseAddr("2001:db8::1"), Text: pick("text", "a", "b"), Target: pick("target", "web.internal.", "nas.internal.", "front.internal."),
		})
	}
	return n
}

// askable are names of which most are there sometimes.
func askable() []string {
	out := []string{".", "internal.", "_apps.internal.", "_peer.internal.", "_api.internal.", "_instances.internal.", "all._instances.internal.", "host.internal."}
	add := func(format string, words ...string) {
		for _, w := range words {
			out = append(out, fmt.Sprintf(format, w)+".internal.")
		}
	}
	for _, app := range []string{"web", "db", "o1-app", "o2-app", "google"} {
		add("%s"+app, "", "fra.", "vm.", "ams.", "global.", "front.process.", "v.k.kv._metadata.", "top1.nearest.of.", "vms.", "all.vms.", "regions.", "_80._tcp.", "o1-m0.vm.", "o2-m1.vm.", "b.")
	}
	add("%s._peer", "o1-c0", "o1-c1", "o2-c0")
	add("%s.host", "h0", "h1", "h2")
	add("%s", "nas", "a.nas", "x.a.nas", "y.nas", "front")
	for _, a := range []string{"1::3", "2::3", "1:100:1:0:1", "1:100:2:0:1", "1:100:1:1:2", "1:100:1:1:1", "1:100:2:3:2", "2:100:1:1:2", "0:100:1:0:1", "0:100:2:0:1"} {
		name := ReverseName(netip.MustParseAddr("fd12:3456:789a:" + a))
		out = append(out, name, name[2*4:], name[2*9:])
	}
	return out
}

// everything asks every name, as everybody.
func everything(z *Zone, f Facts, seed uint64) map[string]Answer {
	out := map[string]Answer{}
	names := askable()
	for _, from := range []string{"1:100:1:1:2", "1:100:1:ff:2", "2:100:1:1:2", "3:100:1:ff:2"} {
		for _, name := range names {
			for _, qtype := range []uint16{TypeAAAA, TypeTXT, TypeSRV, TypePTR} {
				if strings.HasSuffix(name, "arpa.") != (qtype == TypePTR) {
					continue
				}
				q := Query{Name: name, Type: qtype, Source: netip.MustParseAddr("fd12:3456:789a:" + from)}
				out[fmt.Sprint(from, " ", name, qtype)] = z.Answer(f, q, rand.New(rand.NewPCG(seed, 0)))
			}
		}
	}
	return out
}

// The law: a zone that was changed answers as the zone made anew, whatever came
// before; and as the zone of the same data without what cannot be.
func lawOfWith(t *rapid.T) {
	m := model{Data: Data{Prefix: netip.MustParsePrefix("fd12:3456:789a::/48"), Self: "h0"}}
	f := Facts{"h1": {RTT: 3 * ms}, "h2": {RTT: 30 * ms, Suspect: true}, "h3": {RTT: 9 * ms, Suspect: true, Dead: true}}
	z := NewZone(m.Data)
	before, first := z, everything(z, f, 1)
	n := rapid.IntRange(1, 12).Draw(t, "deltas")
	for i := range n {
		d := drawDelta(t)
		m.apply(d)
		z = z.With(d)
		if i == n/2 {
			before, first = z, everything(z, f, 1)
		}
	}
	got := everything(z, f, 1)
	equal(t, "-made anew +changed", everything(NewZone(m.Data), f, 1), got)
	equal(t, "-without what cannot be +changed", everything(NewZone(sound(m.Data)), f, 1), got)
	equal(t, "an older zone has changed", first, everything(before, f, 1))
	for key, a := range got { // nothing of another org
		org := key[:1]
		for _, other := range []string{"1", "2", "3"} {
			text := fmt.Sprint(a.Addrs, a.Ports, a.Texts, a.Text, a.Target)
			if holder := strings.Contains(text, "fd12:3456:789a:"+other+":"); holder && other != org {
				t.Fatalf("%s: answer holds an address of network %s: %s", key, other, text)
			}
		}
	}
}

func equal(t *rapid.T, what string, a, b map[string]Answer) {
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("%s\n%s", what, cmp.Diff(a, b, sameAnswer))
	}
}

func TestWith(t *testing.T) { rapid.Check(t, lawOfWith) }

func FuzzWith(f *testing.F) { f.Fuzz(rapid.MakeFuzz(lawOfWith)) }

// The zone is made in the very same way whatever the order of the data.
func TestZoneOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := model{Data: Data{Prefix: netip.MustParsePrefix("fd12:3456:789a::/48"), Self: "h0"}}
		for range 6 {
			m.apply(drawDelta(t))
		}
		mixed := m.Data
		mixed.Hosts = rapid.Permutation(m.Hosts).Draw(t, "hosts")
		mixed.Orgs = rapid.Permutation(m.Orgs).Draw(t, "orgs")
		for i := range mixed.Orgs {
			mixed.Orgs[i].Machines = rapid.Permutation(mixed.Orgs[i].Machines).Draw(t, "machines")
			mixed.Orgs[i].Clients = rapid.Permutation(mixed.Orgs[i].Clients).Draw(t, "clients")
		}
		equal(t, "in another order", everything(NewZone(m.Data), nil, 1), everything(NewZone(mixed), nil, 1))
	})
}

// inPieces makes the zone of d by With, in several steps, with things on the way that
// are not in d.
func inPieces(t *rapid.T, d Data) *Zone {
	z := NewZone(Data{Prefix: d.Prefix, Resolver: d.Resolver, Self: d.Self, Strangers: d.Strangers})
	for range rapid.IntRange(0, 2).Draw(t, "before") {
		z = z.With(drawDelta(t))
	}
	gone := Delta{RemovedRegions: []string{"fra", "ams", "nrt", "vm"}, RemovedHosts: []string{"h0", "h1", "h2", "h3"}}
	for i := 1; i <= 3; i++ {
		o := fmt.Sprintf("o%d", i)
		gone.Orgs = append(gone.Orgs, OrgDelta{
			Name: o, Removed: true, RemovedApps: []string{"web", "db", o + "-app", "google"}, RemovedClients: []string{o + "-c0", o + "-c1"},
			RemovedMachines: []string{o + "-m0", o + "-m1", o + "-m2", o + "-m3", "-" + o},
			Own:             []OwnName{{Name: "nas"}, {Name: "a.nas"}, {Name: "x.a.nas"}, {Name: "web"}, {Name: "b.web"}, {Name: "front"}},
		})
	}
	z = z.With(gone)
	var steps []Delta
	for _, r := range d.Regions {
		steps = append(steps, Delta{Regions: []Region{r}})
	}
	for _, h := range d.Hosts {
		steps = append(steps, Delta{Hosts: []Host{h}})
	}
	for _, o := range d.Orgs {
		steps = append(steps, Delta{Orgs: []OrgDelta{{Name: o.Name, Set: &o, Apps: o.Apps, Clients: o.Clients, Own: ownNames(o.Own)}}})
		for _, m := range o.Machines {
			steps = append(steps, Delta{Orgs: []OrgDelta{{Name: o.Name, Machines: []Machine{m}}}})
		}
	}
	for _, s := range rapid.Permutation(steps).Draw(t, "steps") {
		z = z.With(s)
	}
	return z
}

// A change that says nothing new is none.
func TestWithNothingNew(t *testing.T) {
	d := ownFixture()
	z := NewZone(d)
	same := Delta{Regions: d.Regions, Hosts: d.Hosts, RemovedHosts: []string{"nosuch"}}
	for _, o := range d.Orgs {
		same.Orgs = append(same.Orgs, OrgDelta{
			Name: o.Name, Set: &o, Apps: o.Apps, Machines: o.Machines, Clients: o.Clients, Own: ownNames(o.Own),
			RemovedApps: []string{"nosuch"}, RemovedMachines: []string{"nosuch"}, RemovedClients: []string{"nosuch"},
		})
	}
	if z.With(same) != z || z.With(Delta{}) != z || z.With(Delta{Orgs: []OrgDelta{{Name: "nosuch", Removed: true}}}) != z {
		t.Error("a new zone for nothing new")
	}
}
