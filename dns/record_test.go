package dns

import (
	"net/netip"
	"testing"
)

func ownFixture() Data {
	addr := netip.MustParseAddr
	return with(func(d *Data) {
		d.Orgs[0].Own = []OwnRecord{
			{Name: "nas", Type: TypeAAAA, Addr: addr("2001:db8::1")},
			{Name: "nas", Type: TypeAAAA, Addr: addr("2001:db8::2"), TTL: 60},
			{Name: "nas", Type: TypeTXT, Text: "a box"},
			{Name: "nas", Type: TypeTXT, Text: "in the cellar"},
			{Name: "Deep.Down", Type: TypeAAAA, Addr: addr("2001:db8::3"), TTL: 100000},
			{Name: "_ldap._tcp", Type: TypeSRV, Priority: 10, Weight: 5, Port: 389, Target: "nas.internal."},
			{Name: "front", Type: TypeAlias, Target: "web.internal"},
			{Name: "far", Type: TypeAlias, Target: "nrt.web.internal."},
			{Name: "box", Type: TypeAlias, Target: "nas.internal."},
			{Name: "twice", Type: TypeAlias, Target: "front.internal."},
			{Name: "brief", Type: TypeAlias, Target: "web.internal.", TTL: 2},
			{Name: "briefer", Type: TypeAlias, Target: "brief.internal.", TTL: 60},
			{Name: "round", Type: TypeAlias, Target: "about.internal."},
			{Name: "about", Type: TypeAlias, Target: "round.internal."},
			{Name: "lost", Type: TypeAlias, Target: "nosuch.internal."},
			// what cannot be
			{Name: "web", Type: TypeAAAA, Addr: addr("2001:db8::66")},
			{Name: "x.web", Type: TypeAAAA, Addr: addr("2001:db8::66")},
			{Name: "_apps", Type: TypeAAAA, Addr: addr("2001:db8::66")},
			{Name: "x._peer", Type: TypeAAAA, Addr: addr("2001:db8::66")},
			{Name: "metadata.google", Type: TypeAAAA, Addr: addr("2001:db8::66")},
			{Name: "x.org", Type: TypeAAAA, Addr: addr("2001:db8::66")},
			{Name: "", Type: TypeAAAA, Addr: addr("2001:db8::66")},
			{Name: "a..b", Type: TypeAAAA, Addr: addr("2001:db8::66")},
			{Name: `a\.b`, Type: TypeAAAA, Addr: addr("2001:db8::66")},
			{Name: "four", Type: TypeAAAA, Addr: addr("192.0.2.1")},
			{Name: "out", Type: TypeAlias, Target: "example.com."},
			{Name: "nas", Type: TypeAlias, Target: "web.internal."},
			{Name: "front", Type: TypeAAAA, Addr: addr("2001:db8::66")},
		}
		d.Orgs[1].Own = []OwnRecord{{Name: "nas", Type: TypeAAAA, Addr: addr("2001:db8::ffff")}}
	})
}

func TestOwnRecords(t *testing.T) {
	checkAll(t, testServer(ownFixture(), fixtureFacts()), []row{
		{ask: "nas.internal. AAAA", want: "nas.internal. 5 IN AAAA 2001:db8::1\nnas.internal. 5 IN AAAA 2001:db8::2"},
		{ask: "NAS.internal. TXT", want: `NAS.internal. 5 IN TXT "a box"` + "\n" + `NAS.internal. 5 IN TXT "in the cellar"`},
		{ask: "nas.internal. SRV"},
		{ask: "nas.internal. CNAME"},
		{ask: "deep.down.internal. AAAA", want: "deep.down.internal. 3600 IN AAAA 2001:db8::3"},
		{ask: "down.internal. AAAA"},
		{ask: "deeper.down.internal. AAAA", code: "NXDOMAIN"},
		{ask: "_ldap._tcp.internal. SRV", want: "_ldap._tcp.internal. 5 IN SRV 10 5 389 nas.internal."},
		{ask: "_tcp.internal. SRV"},
		// each org has its own
		{ask: "nas.internal. AAAA", from: g1, want: "nas.internal. 5 IN AAAA 2001:db8::ffff"},
		{ask: "deep.down.internal. AAAA", from: g1, code: "NXDOMAIN"},
		// aliases: what is there, under the name that was asked for
		{ask: "front.internal. AAAA", from: d1, want: "front.internal. 5 IN AAAA " + w1},
		{ask: "front.internal. AAAA", from: w3, want: "front.internal. 5 IN AAAA " + w1 + "\nfront.internal. 5 IN AAAA " + w2 + "\nfront.internal. 5 IN AAAA " + w3},
		{ask: "far.internal. AAAA", from: d1, want: "far.internal. 5 IN AAAA " + w3},
		{ask: "box.internal. AAAA", want: "box.internal. 5 IN AAAA 2001:db8::1\nbox.internal. 5 IN AAAA 2001:db8::2"},
		{ask: "twice.internal. AAAA", from: d1, want: "twice.internal. 5 IN AAAA " + w1},
		{ask: "brief.internal. AAAA", from: d1, want: "brief.internal. 2 IN AAAA " + w1}, // for no longer than either
		{ask: "briefer.internal. AAAA", from: d1, want: "briefer.internal. 2 IN AAAA " + w1},
		{ask: "round.internal. AAAA"},
		{ask: "lost.internal. AAAA"},
		// the mesh's own names stay what they are
		{ask: "web.internal. AAAA", from: d1, want: "web.internal. 5 IN AAAA " + w1},
		{ask: "x.web.internal. AAAA", code: "NXDOMAIN"},
		{ask: "x._peer.internal. AAAA", code: "NXDOMAIN"},
		{ask: "x.org.internal. AAAA", code: "NXDOMAIN"},
		{ask: "four.internal. AAAA", code: "NXDOMAIN"},
		{ask: "out.internal. AAAA", code: "NXDOMAIN"},
		{ask: "b.internal. AAAA", code: "NXDOMAIN"},
		{ask: `a\.b.internal. AAAA`, code: "NXDOMAIN"},
		{ask: `deep\.down.internal. AAAA`, code: "NXDOMAIN"},
	})
}

func FuzzOwnRecord(f *testing.F) {
	f.Add("nas", uint16(28), 5, "text", uint16(1), "nas.internal.")
	f.Add("a.b", TypeAlias, -1, "", uint16(0), "web.internal.")
	f.Fuzz(func(t *testing.T, name string, rtype uint16, ttl int, text string, port uint16, target string) {
		d := with(func(d *Data) {
			d.Orgs[0].Own = []OwnRecord{{Name: name, Type: rtype, TTL: ttl, Addr: netip.MustParseAddr(w1), Text: text, Port: port, Target: target}}
		})
		s := testServer(d, fixtureFacts())
		row{ask: "web.internal. AAAA", from: d1, want: "web.internal. 5 IN AAAA " + w1}.check(t, s)
		if _, ok := splitName(name + ".internal."); !ok {
			return
		}
		for _, qtype := range []string{"AAAA", "TXT", "SRV"} {
			if m := ask(t, s, name+".internal.", qtype, w1, Role{}, true); len(m.Answer) > 1 && name != "web" {
				for _, rr := range m.Answer {
					if rr.Header().Rrtype == 5 {
						t.Fatalf("an alias came out: %v", rr)
					}
				}
			}
		}
	})
}
