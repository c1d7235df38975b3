package dns

import (
	"net/netip"
	"testing"
	"time"
)

func checkAll(t *testing.T, s *Server, rows []row) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.ask, func(t *testing.T) { r.check(t, s) })
	}
}

// One test for each row of the table in the design.

func TestApp(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "web.internal. AAAA", from: d1, want: "web.internal. 5 IN AAAA " + w1},
		{ask: "web.internal. AAAA", from: l1, want: "web.internal. 5 IN AAAA " + w1},
		// of the same app: all of it
		{ask: "web.internal. AAAA", from: w3, want: `
			web.internal. 5 IN AAAA ` + w1 + `
			web.internal. 5 IN AAAA ` + w2 + `
			web.internal. 5 IN AAAA ` + w3},
		// the app's setting: one, and a TTL of its own
		{ask: "db.internal. AAAA", from: w1, want: "db.internal. 60 IN AAAA " + d1},
		{ask: "db.internal. AAAA", from: d1, want: `
			db.internal. 60 IN AAAA ` + d1 + `
			db.internal. 60 IN AAAA ` + d2},
		{ask: "WeB.InTeRnAl. AAAA", from: d1, want: "WeB.InTeRnAl. 5 IN AAAA " + w1},
		{ask: "idle.internal. AAAA"},
		{ask: "none.internal. AAAA"},
		{ask: "web.internal. A"},
		{ask: "web.internal. TXT"},
		{ask: "web.internal. SRV"},
		{ask: "nosuch.internal. AAAA", code: "NXDOMAIN"},
		{ask: "nosuch.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "fra.nosuch.internal. AAAA", code: "NXDOMAIN"},
	})
}

func TestAppAnswersAllWhenSet(t *testing.T) {
	all := with(func(d *Data) { d.Orgs[0].Apps[0].Answer = "all" })
	row{ask: "web.internal. AAAA", from: d1, want: `
		web.internal. 5 IN AAAA ` + w1 + `
		web.internal. 5 IN AAAA ` + w2 + `
		web.internal. 5 IN AAAA ` + w3}.check(t, testServer(all, fixtureFacts()))
}

func TestGlobal(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "global.web.internal. AAAA", from: d1, want: `
			global.web.internal. 5 IN AAAA ` + w1 + `
			global.web.internal. 5 IN AAAA ` + w2 + `
			global.web.internal. 5 IN AAAA ` + w3},
		{ask: "global.idle.internal. AAAA"},
	})
}

func TestRegion(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "nrt.web.internal. AAAA", from: d1, want: "nrt.web.internal. 5 IN AAAA " + w3},
		{ask: "AMS.web.internal. AAAA", from: d1, want: "AMS.web.internal. 5 IN AAAA " + w2},
		{ask: "syd.web.internal. AAAA"}, // a region of the mesh, without machines
		{ask: "nowhere.web.internal. AAAA"},
		{ask: "mars.web.internal. AAAA", code: "NXDOMAIN"},
	})
}

func TestTopNearest(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "top1.nearest.of.web.internal. AAAA", from: d1, want: "top1.nearest.of.web.internal. 5 IN AAAA " + w1},
		{ask: "top2.nearest.of.web.internal. AAAA", from: w3, want: `
			top2.nearest.of.web.internal. 5 IN AAAA ` + w1 + `
			top2.nearest.of.web.internal. 5 IN AAAA ` + w2},
		{ask: "top9.nearest.of.db.internal. AAAA", want: `
			top9.nearest.of.db.internal. 60 IN AAAA ` + d1 + `
			top9.nearest.of.db.internal. 60 IN AAAA ` + d2},
		{ask: "top0.nearest.of.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "top01.nearest.of.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "top.nearest.of.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "topless.nearest.of.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "top99999999999999999999.nearest.of.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "nearest.of.web.internal. AAAA"},
		{ask: "of.web.internal. AAAA"},
		{ask: "farthest.of.web.internal. AAAA", code: "NXDOMAIN"},
	})
}

func TestMachine(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "w3.vm.web.internal. AAAA", from: d1, want: "w3.vm.web.internal. 5 IN AAAA " + w3},
		{ask: "W3.vm.web.internal. AAAA", from: d1, want: "W3.vm.web.internal. 5 IN AAAA " + w3},
		{ask: "i1.vm.idle.internal. AAAA"}, // stopped
		{ask: "d1.vm.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "vm.web.internal. AAAA"},
		{ask: "vm.web.internal. TXT"},
		{ask: "x.w3.vm.web.internal. AAAA", code: "NXDOMAIN"},
	})
}

func TestProcessGroup(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "front.process.web.internal. AAAA", from: d1, want: `
			front.process.web.internal. 5 IN AAAA ` + w1 + `
			front.process.web.internal. 5 IN AAAA ` + w2},
		{ask: "worker.process.web.internal. AAAA", from: d1, want: "worker.process.web.internal. 5 IN AAAA " + w3},
		{ask: "cron.process.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "process.web.internal. AAAA"},
	})
}

func TestMetadata(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "primary.role.kv._metadata.web.internal. AAAA", from: d1, want: "primary.role.kv._metadata.web.internal. 5 IN AAAA " + w1},
		{ask: "replica.role.kv._metadata.web.internal. AAAA", from: d1, want: `
			replica.role.kv._metadata.web.internal. 5 IN AAAA ` + w2 + `
			replica.role.kv._metadata.web.internal. 5 IN AAAA ` + w3},
		{ask: "other.role.kv._metadata.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "x.nokey.kv._metadata.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "role.kv._metadata.web.internal. AAAA"},
		{ask: "kv._metadata.web.internal. AAAA"},
		{ask: "_metadata.web.internal. AAAA"},
		{ask: "x._metadata.web.internal. AAAA", code: "NXDOMAIN"},
	})
}

func TestClient(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "laptop1._peer.internal. AAAA", want: "laptop1._peer.internal. 5 IN AAAA " + l1},
		{ask: "laptop1._peer.internal. AAAA", from: g1, code: "NXDOMAIN"},
		{ask: "laptop2._peer.internal. AAAA", code: "NXDOMAIN"},
		{ask: "x.laptop1._peer.internal. AAAA", code: "NXDOMAIN"},
		{ask: "laptop1._peer.internal. TXT"},
	})
}

func TestAPI(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "_api.internal. AAAA", want: "_api.internal. 5 IN AAAA fd12:3456:789a:1::3"},
		{ask: "_api.internal. AAAA", from: g1, want: "_api.internal. 5 IN AAAA fd12:3456:789a:2::3"},
		{ask: "x._api.internal. AAAA", code: "NXDOMAIN"},
	})
}

func TestRegions(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "regions.web.internal. TXT", want: `regions.web.internal. 5 IN TXT "ams,fra,nrt"`},
		{ask: "regions.db.internal. TXT", want: `regions.db.internal. 5 IN TXT "ams,fra"`},
		{ask: "regions.idle.internal. TXT"},
		{ask: "all.regions.idle.internal. TXT", want: `all.regions.idle.internal. 5 IN TXT "fra"`},
		{ask: "regions.web.internal. AAAA"},
		{ask: "fra.regions.web.internal. TXT", code: "NXDOMAIN"},
		{ask: "regions.nosuch.internal. TXT", code: "NXDOMAIN"},
	})
}

func TestVMs(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "vms.web.internal. TXT", want: `vms.web.internal. 5 IN TXT "w1 fra,w2 ams,w3 nrt"`},
		{ask: "vms.idle.internal. TXT"},
		{ask: "all.vms.idle.internal. TXT", want: `all.vms.idle.internal. 5 IN TXT "i1 fra"`},
		{ask: "all.all.vms.web.internal. TXT", code: "NXDOMAIN"},
		{ask: "all.web.internal. TXT", code: "NXDOMAIN"},
	})
}

func TestAppsAndPeers(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "_apps.internal. TXT", want: `_apps.internal. 5 IN TXT "db,idle,none,web"`},
		{ask: "_apps.internal. TXT", from: g1, want: `_apps.internal. 5 IN TXT "secret,web"`},
		{ask: "_peer.internal. TXT", want: `_peer.internal. 5 IN TXT "laptop1"`},
		{ask: "_peer.internal. TXT", from: g1},
		{ask: "web._apps.internal. TXT", code: "NXDOMAIN"},
	})
}

func TestInstances(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "_instances.internal. TXT", from: g1, want: `_instances.internal. 5 IN TXT "instance=g1,app=web,ip=` + g1 + `,region=ams;instance=g2,app=secret,ip=` + g2 + `,region=nrt"`},
		{ask: "all._instances.internal. TXT", from: g1, want: `all._instances.internal. 5 IN TXT "instance=g1,app=web,ip=` + g1 + `,region=ams;instance=g2,app=secret,ip=` + g2 + `,region=nrt"`},
		{ask: "x._instances.internal. TXT", code: "NXDOMAIN"},
	})
}

func TestPTR(t *testing.T) {
	ptr := func(addr string) string { return ReverseName(netip.MustParseAddr(addr)) }
	soa := func(zone string) string {
		return zone + " 1 IN SOA _api.internal. hostmaster.internal. 1 3600 600 86400 1"
	}
	zone := "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: ptr(w2) + " PTR", want: ptr(w2) + " 5 IN PTR w2.vm.web.internal."},
		{ask: ptr(i1) + " PTR", want: ptr(i1) + " 5 IN PTR i1.vm.idle.internal."},
		{ask: ptr(l1) + " PTR", want: ptr(l1) + " 5 IN PTR laptop1._peer.internal."},
		{ask: ptr("fd12:3456:789a:1:100:1:0:1") + " PTR", want: ptr("fd12:3456:789a:1:100:1:0:1") + " 5 IN PTR fra-1.host.internal."},
		{ask: ptr("fd12:3456:789a:1:200:3:0:1") + " PTR", want: ptr("fd12:3456:789a:1:200:3:0:1") + " 5 IN PTR ams-1.host.internal."},
		{ask: ptr("fd12:3456:789a:0:200:3:0:1") + " PTR", want: ptr("fd12:3456:789a:0:200:3:0:1") + " 5 IN PTR ams-1.host.internal."},
		{ask: ptr("fd12:3456:789a:1::3") + " PTR", want: ptr("fd12:3456:789a:1::3") + " 5 IN PTR _api.internal."},
		{ask: ptr("fd12:3456:789a:0:400:5:0:1") + " PTR", code: "NXDOMAIN", ns: soa(zone)}, // syd-1 has nothing of acme
		{ask: ptr(g1) + " PTR", code: "NXDOMAIN", ns: soa(zone)},
		{ask: ptr(w2) + " AAAA", ns: soa(zone)},
		{ask: "1.0.0.0." + zone + " PTR", ns: soa(zone)},                     // acme's network: something below
		{ask: "2.0.0.0." + zone + " PTR", code: "NXDOMAIN", ns: soa(zone)},   // globex's
		{ask: "x.1.0.0.0." + zone + " PTR", code: "NXDOMAIN", ns: soa(zone)}, // no digit
		{ask: "0." + ptr(w2) + " PTR", code: "NXDOMAIN", ns: soa(zone)},      // too long
		{ask: zone + " SOA", want: zone + " 5 IN SOA _api.internal. hostmaster.internal. 1 3600 600 86400 1"},
		{ask: zone + " PTR", ns: soa(zone)},
		{ask: "9.8.7.6.5.4.3.2.1.d.f.ip6.arpa. PTR", code: "REFUSED"}, // above us: not ours
		{ask: "1.1.1.1.in-addr.arpa. PTR", code: "REFUSED"},
	})
}

func TestHostName(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "ams-1.host.internal. AAAA", want: "ams-1.host.internal. 5 IN AAAA fd12:3456:789a:1:200:3:0:1"},
		{ask: "ams-1.host.internal. AAAA", from: g1, want: "ams-1.host.internal. 5 IN AAAA fd12:3456:789a:2:200:3:0:1"},
		{ask: "fra-2.host.internal. AAAA", from: g1, code: "NXDOMAIN"}, // nothing of globex there
		{ask: "host.internal. AAAA"},
	})
}

func TestQualifiersNest(t *testing.T) {
	d := with(func(d *Data) {
		for _, x := range []struct{ id, addr string }{{"w4", "fd12:3456:789a:1:200:3:4:2"}, {"w5", "fd12:3456:789a:1:200:3:5:2"}} {
			d.Orgs[0].Machines = append(d.Orgs[0].Machines, Machine{
				ID: x.id, App: "web", Host: "ams-1", Addr: netip.MustParseAddr(x.addr), Started: true, Healthy: true, Group: "worker",
			})
		}
	})
	s := testServer(d, fixtureFacts())
	for _, name := range []string{"ams.top2.nearest.of.web.internal.", "top2.nearest.of.ams.web.internal."} {
		m := ask(t, s, name, "AAAA", d1, Role{}, false)
		if len(m.Answer) != 2 {
			t.Errorf("%s: %v, want two of ams", name, records(t, m.Answer))
		}
	}
	checkAll(t, s, []row{
		{ask: "ams.front.process.web.internal. AAAA", from: d1, want: "ams.front.process.web.internal. 5 IN AAAA " + w2},
		{ask: "nrt.replica.role.kv._metadata.web.internal. AAAA", from: d1, want: "nrt.replica.role.kv._metadata.web.internal. 5 IN AAAA " + w3},
		{ask: "w2.vm.ams.web.internal. AAAA", from: d1, want: "w2.vm.ams.web.internal. 5 IN AAAA " + w2},
		{ask: "w2.vm.fra.web.internal. AAAA", from: d1, code: "NXDOMAIN"},
		{ask: "fra.ams.web.internal. AAAA"},
		{ask: "top1.nearest.of.top2.nearest.of.web.internal. AAAA", from: d1, want: "top1.nearest.of.top2.nearest.of.web.internal. 5 IN AAAA " + w1},
		{ask: "top2.nearest.of.top1.nearest.of.web.internal. AAAA", from: d1, want: "top2.nearest.of.top1.nearest.of.web.internal. 5 IN AAAA " + w1},
		{ask: "vm.ams.web.internal. AAAA"},
		{ask: "global.ams.web.internal. AAAA", from: d1, any: true, want: `
			global.ams.web.internal. 5 IN AAAA ` + w2 + `
			global.ams.web.internal. 5 IN AAAA fd12:3456:789a:1:200:3:4:2
			global.ams.web.internal. 5 IN AAAA fd12:3456:789a:1:200:3:5:2`},
	})
}

func TestOtherTypesAndNames(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "internal. SOA", want: "internal. 5 IN SOA _api.internal. hostmaster.internal. 1 3600 600 86400 1"},
		{ask: "internal. AAAA"},
		{ask: "internal. DS"},
		{ask: "web.internal. ANY", want: `web.internal. 5 IN HINFO "RFC8482" ""`},
		{ask: "vms.web.internal. ANY", want: `vms.web.internal. 5 IN HINFO "RFC8482" ""`},
		{ask: "vm.web.internal. ANY"},
		{ask: "nosuch.internal. ANY", code: "NXDOMAIN"},
		{ask: "internal. AXFR", code: "REFUSED"},
		{ask: "web.internal. IXFR", code: "REFUSED"},
		{ask: "org.internal. AAAA", code: "NXDOMAIN"},
		{ask: "web.acme.org.internal. AAAA", code: "NXDOMAIN"},
		// other names, without a forwarder
		{ask: "example.com. AAAA", code: "REFUSED"},
		{ask: "google.internal. AAAA", code: "REFUSED"},
		{ask: "metadata.google.internal. AAAA", code: "REFUSED"},
		{ask: "vm1.zone.c.project.internal. AAAA", code: "REFUSED"},
		{ask: "c.web.internal. AAAA", code: "NXDOMAIN"}, // web is an app of ours
		{ask: "c.secret.internal. AAAA", code: "REFUSED"},
		{ask: "c.internal. AAAA", code: "NXDOMAIN"},
		{ask: "c.org.internal. AAAA", code: "NXDOMAIN"},
		{ask: "host.docker.internal. A", code: "REFUSED"},
		{ask: "i-0.ec2.internal. A", code: "REFUSED"},
		{ask: ". NS", code: "REFUSED"},
		{ask: "notinternal. AAAA", code: "REFUSED"},
	})
}

func TestSources(t *testing.T) {
	acme := Role{Network: netip.MustParsePrefix("fd12:3456:789a:1::/64")}
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		{ask: "web.internal. AAAA", from: g1, want: "web.internal. 5 IN AAAA " + g1},
		{ask: "web.internal. AAAA", from: l1, role: acme, want: "web.internal. 5 IN AAAA " + w1},
		{ask: "web.internal. AAAA", from: g1, role: acme, code: "REFUSED"},
		{ask: "nosuch.internal. AAAA", from: g1, role: acme, code: "REFUSED"},
		{ask: "web.internal. AAAA", from: "fd12:3456:789a:3::2", code: "REFUSED"},        // a network that is not carried
		{ask: "web.internal. AAAA", from: "fd12:3456:789a:0:100:2:0:1", code: "REFUSED"}, // a host is in no org
		{ask: "web.internal. AAAA", from: "fd12:3456:789b:1::2", code: "REFUSED"},
		{ask: "web.internal. AAAA", from: "::1", code: "REFUSED"},
		{ask: "web.internal. AAAA", from: "127.0.0.1", code: "REFUSED"},
		{ask: "web.internal. AAAA", from: "::ffff:127.0.0.1", code: "REFUSED"},
		{ask: "example.com. AAAA", from: "127.0.0.1", code: "REFUSED"},
		// a member that no view has named yet
		{ask: "web.internal. AAAA", from: "fd12:3456:789a:1:100:1:9:2", want: "web.internal. 5 IN AAAA " + w1},
	})
}

func TestStates(t *testing.T) {
	facts := func(change func(Facts)) Facts {
		f := fixtureFacts()
		change(f)
		return f
	}
	both := "global.web.internal. 5 IN AAAA " + w1 + "\nglobal.web.internal. 5 IN AAAA " + w3
	for _, tt := range []struct {
		name  string
		data  Data
		facts Facts
		rows  []row
	}{{
		name: "stopped", data: with(func(d *Data) { d.Orgs[0].Machines[1].Started = false }), facts: fixtureFacts(),
		rows: []row{
			{ask: "global.web.internal. AAAA", from: d1, want: both},
			{ask: "vms.web.internal. TXT", want: `vms.web.internal. 5 IN TXT "w1 fra,w3 nrt"`},
			{ask: "all.vms.web.internal. TXT", want: `all.vms.web.internal. 5 IN TXT "w1 fra,w2 ams,w3 nrt"`},
			{ask: "w2.vm.web.internal. AAAA"},
			{ask: "web.internal. AAAA", from: w1, want: "web.internal. 5 IN AAAA " + w1 + "\nweb.internal. 5 IN AAAA " + w3},
		},
	}, {
		name: "unhealthy", data: with(func(d *Data) { d.Orgs[0].Machines[1].Healthy = false }), facts: fixtureFacts(),
		rows: []row{
			{ask: "global.web.internal. AAAA", from: d1, want: both},
			{ask: "regions.web.internal. TXT", want: `regions.web.internal. 5 IN TXT "fra,nrt"`},
			{ask: "all.regions.web.internal. TXT", want: `all.regions.web.internal. 5 IN TXT "ams,fra,nrt"`},
		},
	}, {
		name: "cordoned", data: with(func(d *Data) { d.Hosts[2].Cordoned = true }), facts: fixtureFacts(),
		rows: []row{
			{ask: "global.web.internal. AAAA", from: d1, want: both},
			{ask: "ams.web.internal. AAAA"},
			{ask: "vms.web.internal. TXT", want: `vms.web.internal. 5 IN TXT "w1 fra,w3 nrt"`},
			{ask: "all.vms.web.internal. TXT", want: `all.vms.web.internal. 5 IN TXT "w1 fra,w2 ams,w3 nrt"`},
		},
	}, {
		name: "suspect", data: fixture(), facts: facts(func(f Facts) { f["ams-1"] = Fact{RTT: 8 * time.Millisecond, Suspect: true} }),
		rows: []row{
			{ask: "global.web.internal. AAAA", from: d1, want: both},
			{ask: "web.internal. AAAA", from: w1, want: "web.internal. 5 IN AAAA " + w1 + "\nweb.internal. 5 IN AAAA " + w2 + "\nweb.internal. 5 IN AAAA " + w3},
			{ask: "ams.web.internal. AAAA", from: d1, want: "ams.web.internal. 5 IN AAAA " + w2}, // nothing else is left
			{ask: "top2.nearest.of.web.internal. AAAA", from: w1, want: "top2.nearest.of.web.internal. 5 IN AAAA " + w1 + "\ntop2.nearest.of.web.internal. 5 IN AAAA " + w3},
			{ask: "vms.web.internal. TXT", want: `vms.web.internal. 5 IN TXT "w1 fra,w2 ams,w3 nrt"`},
		},
	}, {
		name: "dead", data: fixture(), facts: facts(func(f Facts) { f["ams-1"] = Fact{Suspect: true, Dead: true} }),
		rows: []row{
			{ask: "global.web.internal. AAAA", from: d1, want: both},
			{ask: "web.internal. AAAA", from: w1, want: "web.internal. 5 IN AAAA " + w1 + "\nweb.internal. 5 IN AAAA " + w3},
			{ask: "vms.web.internal. TXT", want: `vms.web.internal. 5 IN TXT "w1 fra,w3 nrt"`},
			{ask: "all.vms.web.internal. TXT", want: `all.vms.web.internal. 5 IN TXT "w1 fra,w2 ams,w3 nrt"`},
			{ask: "w2.vm.web.internal. AAAA", want: "w2.vm.web.internal. 5 IN AAAA " + w2}, // nothing else is left
		},
	}, {
		name: "everything suspect or dead", data: with(func(d *Data) { d.Self = "fra-2" }),
		facts: Facts{"fra-1": {Suspect: true, Dead: true}, "ams-1": {RTT: 8, Suspect: true}, "nrt-1": {RTT: 240, Suspect: true, Dead: true}},
		rows: []row{
			{ask: "web.internal. AAAA", from: d1, want: "web.internal. 5 IN AAAA " + w2}, // suspect before dead
			{ask: "w1.vm.web.internal. AAAA", from: d1, want: "w1.vm.web.internal. 5 IN AAAA " + w1},
		},
	}, {
		name: "the own host is never suspect", data: fixture(), facts: Facts{"fra-1": {RTT: time.Hour, Suspect: true, Dead: true}},
		rows: []row{{ask: "web.internal. AAAA", from: d1, want: "web.internal. 5 IN AAAA " + w1}},
	}} {
		t.Run(tt.name, func(t *testing.T) { checkAll(t, testServer(tt.data, tt.facts), tt.rows) })
	}
}
