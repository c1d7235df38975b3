package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/peers"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestZoneData(t *testing.T) {
	v := sampleView(t)
	v.Apps = append(v.Apps, mesh.App{Org: "elsewhere", Name: "x"})
	v.Machines = append(v.Machines, mesh.Machine{Org: "elsewhere", ID: "x", Endpoint: v.Machines[0].Endpoint})
	const p = "fd12:3456:789a:"
	machine := func(id, host, at string) dns.Machine {
		return dns.Machine{ID: id, App: "web", Group: "g", Meta: map[string]string{"k": "v"}, Host: host, Addr: addr(p + at), Started: true, Healthy: true}
	}
	want := dns.Data{
		Prefix: netip.MustParsePrefix(p + ":/48"), Resolver: addr(p + ":3"), Self: "a",
		Regions: []dns.Region{{Name: "fra", Place: &dns.Place{Lat: 50.1, Lon: 8.7}}, {Name: "nrt"}},
		Hosts: []dns.Host{
			{Name: "a", Region: "fra", Addr: addr(p + "0:8100:1:0:1")},
			{Name: "b", Region: "fra", Addr: addr(p + "0:8100:2:0:1")},
			{Name: "c", Region: "nrt", Addr: addr(p + "0:c100:3:0:1"), Cordoned: true},
		},
		Orgs: []dns.Org{
			{
				Name: "acme", Prefix: netip.MustParsePrefix(p + "1::/64"), Resolver: addr(p + "1::3"), Host: addr(p + "1:8100:1:0:1"),
				Apps:     []dns.App{{Name: "web", Answer: "all", TTL: 9}},
				Machines: []dns.Machine{machine("web-a", "a", "1:8100:1:1:2"), machine("web-b", "b", "1:8100:2:1:2"), machine("web-c", "c", "1:c100:3:1:2")},
				Clients:  []dns.Client{{Name: "anna", Addr: addr(p + "1:8100:2:9:2")}},
			},
			{
				Name: "other", Prefix: netip.MustParsePrefix(p + "2::/64"), Resolver: addr(p + "2::3"), Host: addr(p + "2:8100:1:0:1"),
				Machines: []dns.Machine{{ID: "db", App: "db", Host: "a", Addr: addr(p + "2:8100:1:2:2"), Healthy: true}},
			},
		},
	}
	if diff := cmp.Diff(want, zoneData(v, nil), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFacts(t *testing.T) {
	start := time.Unix(1000, 0)
	hosts := []mesh.ViewHost{{Name: "a", Present: true}, {Name: "b"}, {Name: "c", Present: true}, {Name: "d"}}
	p := &presence{lease: 30 * time.Second, hold: true}
	p.update(hosts, start)
	measured := probe.Results{
		"a": {RTT: 5 * time.Millisecond}, "b": {RTT: time.Millisecond, Suspect: true}, "c": {Suspect: true}, "gone": {Suspect: true},
	}
	for _, tt := range []struct {
		name  string
		p     *presence
		after time.Duration
		dead  bool // b
	}{
		{"suspect, presence gone for less than a minute", p, 59 * time.Second, false},
		{"suspect, presence gone for a minute", p, time.Minute, true},
		{"nobody has spoken since", p, 0, false},
		{"nobody has spoken at all", nil, time.Hour, false},
	} {
		want := dns.Facts{
			"a": {RTT: 5 * time.Millisecond}, "b": {RTT: time.Millisecond, Suspect: true, Dead: tt.dead},
			"c": {Suspect: true}, // present: suspect is all it can be
			"d": {},              // not present, but it answers or was never asked
		}
		if diff := cmp.Diff(want, facts(hosts, measured, tt.p, start.Add(tt.after), time.Minute)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestProbeTargetsAndSources(t *testing.T) {
	s := sampleState(t)
	b, _ := s.View(mesh.Node{Kind: mesh.KindHost, Name: "b"}, mesh.Deployment{})
	const p = "fd12:3456:789a:"
	want := []probe.Target{
		// The lower number speaks first.
		{Name: "a", Region: "fra", Addr: addr(p + "0:8100:1:0:1"), Wait: 500 * time.Millisecond},
		{Name: "c", Region: "nrt", Addr: addr(p + "0:c100:3:0:1"), Wait: 200 * time.Millisecond},
	}
	same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, probeTargets(&b), same); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
	got := probeSources(&b)
	for a, allowed := range map[string]bool{
		p + "0:8100:1:0:1": true, p + "0:c100:3:0:1": true, // hosts
		p + "1:8100:2:9:1": true,  // anna's probe address
		p + "1:8100:2:9:2": false, // her main one
		p + "1:8100:1:1:2": false, // a machine
		p + "0:8100:9:0:1": false, // a host that is not in the view
	} {
		if got[addr(a)] != allowed {
			t.Errorf("probes from %s: allowed %v, want %v", a, got[addr(a)], allowed)
		}
	}
}

func TestStatusOf(t *testing.T) {
	v := sampleView(t)
	now := time.Unix(2000, 0)
	stats := []peers.Stats{
		{Key: keyOf(2), Endpoint: addrPort("198.51.100.7:9"), LastHandshake: now, Rx: 1, Tx: 2}, // roamed
		{Key: keyOf(3)}, {Key: keyOf(50)}, {Key: keyOf(99)},
	}
	f := dns.Facts{"b": {RTT: time.Millisecond}, "c": {Suspect: true, Dead: true}}
	got := statusOf(v, contact{connected: true, controller: "https://x", last: now.Add(-time.Second)}, stats, f, now)
	want := local.Status{
		Node: "host/a", Address: addr("fd12:3456:789a:0:8100:1:0:1"), Prefix: netip.MustParsePrefix("fd12:3456:789a::/48"),
		Connected: true, Controller: "https://x", Revision: "1.7", ViewAge: time.Second, Orgs: []string{"acme", "other"},
		Peers: []local.Peer{
			{Name: "client/acme/anna", Key: keyOf(50).String(), State: local.PeerUnmeasured},
			{Name: "host/b", Region: "fra", Key: keyOf(2).String(), Endpoint: addrPort("198.51.100.7:9"), LastHandshake: now, Rx: 1, Tx: 2, RTT: time.Millisecond, State: local.PeerOK},
			{Name: "host/c", Region: "nrt", Key: keyOf(3).String(), Endpoint: addrPort("192.0.2.3:51820"), State: local.PeerDead},
			{Name: "unknown", Key: keyOf(99).String(), State: local.PeerUnmeasured},
		},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
