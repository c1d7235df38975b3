package e2e

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftmesh/weft/dns"
)

// The mesh of the conformance run, as host fra-1 sees it, and what a machine of acme
// there asks: ams-1 is 8 ms away, nrt-1 240 ms. Of app big there are 60 machines.
const (
	confMesh = "fd12:3456:789a::"
	confAt   = "fd12:3456:789a::3" // the machines' resolver
	confSelf = "fd12:3456:789a:1:100:1:9:2"
	confW1   = "fd12:3456:789a:1:100:1:1:2"
	confW2   = "fd12:3456:789a:1:200:3:1:2"
	confW3   = "fd12:3456:789a:1:300:4:1:2"
	confL1   = "fd12:3456:789a:1:100:1:3:2"
	confBig  = 60
)

func confData() dns.Data {
	addr := netip.MustParseAddr
	up := func(m dns.Machine) dns.Machine { m.Started, m.Healthy = true, true; return m }
	acme := dns.Org{
		Name: "acme", Prefix: netip.MustParsePrefix("fd12:3456:789a:1::/64"), Resolver: addr("fd12:3456:789a:1::3"), Host: addr("fd12:3456:789a:1:100:1:0:1"),
		Machines: []dns.Machine{
			up(dns.Machine{ID: "shell", App: "shell", Host: "fra-1", Addr: addr(confSelf)}),
			up(dns.Machine{ID: "w1", App: "web", Host: "fra-1", Addr: addr(confW1), Group: "front", Meta: map[string]string{"role": "primary"}}),
			up(dns.Machine{ID: "w2", App: "web", Host: "ams-1", Addr: addr(confW2), Group: "front", Meta: map[string]string{"role": "replica"}}),
			up(dns.Machine{ID: "w3", App: "web", Host: "nrt-1", Addr: addr(confW3), Group: "worker"}),
			{ID: "old", App: "web", Host: "syd-1", Addr: addr("fd12:3456:789a:1:400:5:1:2"), Healthy: true},
		},
		Clients: []dns.Client{{Name: "laptop1", Addr: addr(confL1)}},
	}
	for i := range confBig {
		acme.Machines = append(acme.Machines, up(dns.Machine{ID: fmt.Sprintf("big-machine-%02d", i), App: "big", Host: "ams-1", Addr: addr(confBigAddr(i))}))
	}
	return dns.Data{
		Prefix: netip.MustParsePrefix(confMesh + "/48"), Resolver: addr(confAt), Self: "fra-1",
		Regions: []dns.Region{{Name: "fra"}, {Name: "ams"}, {Name: "nrt"}, {Name: "syd"}},
		Hosts: []dns.Host{
			{Name: "fra-1", Region: "fra", Addr: addr("fd12:3456:789a:0:100:1:0:1")}, {Name: "ams-1", Region: "ams", Addr: addr("fd12:3456:789a:0:200:3:0:1")},
			{Name: "nrt-1", Region: "nrt", Addr: addr("fd12:3456:789a:0:300:4:0:1")}, {Name: "syd-1", Region: "syd", Addr: addr("fd12:3456:789a:0:400:5:0:1")},
		},
		Orgs: []dns.Org{acme},
	}
}

func confBigAddr(i int) string { return fmt.Sprintf("fd12:3456:789a:1:200:3:%x:2", 0x100+i) }

// question is one fact: what a name has. Values are separated by newlines, in any
// order. NXDOMAIN: no such name. NODATA: nothing of that type.
type question struct {
	kind, name, want string
	long             bool // its answer does not fit a UDP packet
}

// facts are what differs between meshes in which the questions are asked: addresses,
// and names whose answers are long.
type facts struct {
	self, w1, w2, w3, laptop, resolver string
	apps, host                         string // host: its name
	hostAt, nobodyAt                   string
	longAAAA, longTXT                  question
}

func confFacts() facts {
	var addrs, vms []string
	for i := range confBig {
		addrs = append(addrs, confBigAddr(i))
		vms = append(vms, fmt.Sprintf("big-machine-%02d ams", i))
	}
	return facts{
		self: confSelf, w1: confW1, w2: confW2, w3: confW3, laptop: confL1, resolver: "fd12:3456:789a:1::3",
		apps: "big,shell,web", host: "ams-1", hostAt: "fd12:3456:789a:0:200:3:0:1", nobodyAt: "fd12:3456:789a:1:100:1:77:2",
		longAAAA: question{kind: "aaaa", name: "global.big.internal", want: strings.Join(addrs, "\n"), long: true},
		longTXT:  question{kind: "txt", name: "vms.big.internal", want: strings.Join(vms, ","), long: true},
	}
}

func (f facts) questions() []question {
	web := f.w1 + "\n" + f.w2 + "\n" + f.w3
	return []question{
		{kind: "aaaa", name: "web.internal", want: f.w1},
		{kind: "aaaa", name: "WeB.iNtErNaL", want: f.w1},
		{kind: "aaaa", name: "global.web.internal", want: web},
		{kind: "aaaa", name: "nrt.web.internal", want: f.w3},
		{kind: "aaaa", name: "top2.nearest.of.web.internal", want: f.w1 + "\n" + f.w2},
		{kind: "aaaa", name: "w3.vm.web.internal", want: f.w3},
		{kind: "aaaa", name: "worker.process.web.internal", want: f.w3},
		{kind: "aaaa", name: "replica.role.kv._metadata.web.internal", want: f.w2},
		{kind: "aaaa", name: "laptop1._peer.internal", want: f.laptop},
		{kind: "aaaa", name: "_api.internal", want: f.resolver},
		f.longAAAA,
		{kind: "aaaa", name: "nobody.internal", want: "NXDOMAIN"},
		{kind: "aaaa", name: "vm.web.internal", want: "NODATA"},
		{kind: "a", name: "web.internal", want: "NODATA"},
		{kind: "a", name: "nobody.internal", want: "NXDOMAIN"},
		{kind: "srv", name: "_80._tcp.web.internal", want: "0 1 80 w1.vm.web.internal"},
		{kind: "srv", name: "_53._udp.global.web.internal", want: "0 1 53 w1.vm.web.internal\n1 1 53 w2.vm.web.internal\n2 1 53 w3.vm.web.internal"},
		{kind: "srv", name: "_80._tcp.nobody.internal", want: "NXDOMAIN"},
		{kind: "txt", name: "regions.web.internal", want: "ams,fra,nrt"},
		{kind: "txt", name: "all.regions.web.internal", want: "ams,fra,nrt,syd"},
		{kind: "txt", name: "vms.web.internal", want: "w1 fra,w2 ams,w3 nrt"},
		{kind: "txt", name: "all.vms.web.internal", want: "old syd,w1 fra,w2 ams,w3 nrt"},
		f.longTXT,
		{kind: "txt", name: "_apps.internal", want: f.apps},
		{kind: "txt", name: "_peer.internal", want: "laptop1"},
		{kind: "txt", name: "web.internal", want: "NODATA"},
		{kind: "ptr", name: f.w2, want: "w2.vm.web.internal"},
		{kind: "ptr", name: f.laptop, want: "laptop1._peer.internal"},
		{kind: "ptr", name: f.hostAt, want: f.host + ".host.internal"},
		{kind: "ptr", name: f.nobodyAt, want: "NXDOMAIN"},
	}
}
