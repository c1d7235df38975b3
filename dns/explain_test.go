package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestExplain(t *testing.T) {
	d := with(func(d *Data) {
		host := func(name string, cordoned bool) {
			d.Hosts = append(d.Hosts, Host{Name: name, Region: "ams", Addr: netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:0:200:%x:0:1", 10+len(d.Hosts))), Cordoned: cordoned})
		}
		host("ams-2", true)
		host("ams-3", false)
		host("ams-4", false)
		for i, m := range []Machine{
			{ID: "w4", Host: "ams-2", Started: true, Healthy: true},
			{ID: "w5", Host: "ams-3", Started: true, Healthy: true},
			{ID: "w6", Host: "fra-1", Healthy: true},
			{ID: "w7", Host: "fra-1", Started: true},
			{ID: "w8", Host: "syd-1", Started: true, Healthy: true},
			{ID: "w9", Host: "ams-4", Started: true, Healthy: true},
		} {
			m.App, m.Addr = "web", netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:1:200:3:%x:2", 100+i))
			d.Orgs[0].Machines = append(d.Orgs[0].Machines, m)
		}
	})
	f := fixtureFacts()
	f["syd-1"] = Fact{Estimate: 90 * time.Millisecond} // and not 330, as the map has it
	f["ams-3"] = Fact{RTT: 7 * time.Millisecond, Suspect: true}
	f["ams-4"] = Fact{RTT: 7 * time.Millisecond, Suspect: true, Dead: true}
	z := NewZone(d)
	for _, tt := range []struct{ name, from, want string }{
		{"web.internal.", d1, `
			1 w1 fra-1 0s here: it is within 5 ms or half again of the nearest
			- w6 fra-1 0s here: it is not started
			- w7 fra-1 0s here: it fails its checks
			- w4 ams-2 8.4ms geography: its host is cordoned
			- w5 ams-3 7ms measured: its host does not answer probes
			- w9 ams-4 7ms measured: its host is dead: it answers no probes and no controller has heard of it
			- w2 ams-1 8ms measured: it is farther than 5 ms and half again beyond the nearest
			- w3 nrt-1 240ms measured: it is farther than 5 ms and half again beyond the nearest
			- w8 syd-1 90ms coordinates: it is farther than 5 ms and half again beyond the nearest`},
		{"top2.nearest.of.web.internal.", d1, `
			1 w1 fra-1 0s here: the name asks for the nearest 2
			2 w2 ams-1 8ms measured: the name asks for the nearest 2
			- w3 nrt-1 240ms measured: others are nearer: the name asks for fewer`},
		{"db.internal.", w1, `
			1 d1 fra-2 600us measured: the app is set to answer the nearest 1
			- d2 ams-1 8ms measured: others are nearer: the app is set to answer fewer`},
		{"vm.web.internal.", d1, ""},
		{"global.web.internal.", d1, `
			1 w1 fra-1 0s here: the name means all of them
			3 w8 syd-1 90ms coordinates: the name means all of them
			- w5 ams-3 7ms measured: its host does not answer probes`},
		{"global.web.internal.", w1, `
			1 w1 fra-1 0s here: the asker is of the same app, and gets all of it
			2 w5 ams-3 7ms measured: the asker is of the same app, and gets all of it`},
		{"w5.vm.web.internal.", d1, `
			1 w5 ams-3 7ms measured: its host does not answer probes, but no better one is left`},
		{"_apps.internal.", w1, ""},
		{"nosuch.internal.", w1, ""},
		{"laptop1._peer.internal.", w1, ""},
	} {
		_, list := z.Explain(f, Query{Name: tt.name, Type: TypeAAAA, Source: netip.MustParseAddr(tt.from)}, rand.New(rand.NewPCG(1, 1)))
		var lines []string
		for _, c := range list {
			line := fmt.Sprintf("%d %s %s %s %s: %s", c.Position, c.Machine, c.Host, strings.ReplaceAll(c.Distance.Round(100*time.Microsecond).String(), "\u00b5", "u"), c.Basis, c.Reason)
			if c.Position == 0 {
				line = "-" + line[1:]
			}
			lines = append(lines, line)
		}
		var want []string
		for _, line := range strings.Split(tt.want, "\n") {
			if line = strings.TrimSpace(line); line != "" {
				want = append(want, line)
			}
		}
		for _, w := range want {
			if !slices.Contains(lines, w) {
				t.Errorf("%s: not there: %s", tt.name, w)
			}
		}
		if len(want) == 0 && len(lines) > 0 || t.Failed() {
			t.Logf("%s:\n%s", tt.name, strings.Join(lines, "\n"))
		}
	}
}

// The explanation is of the answer: same machines, same order, and every machine of
// the name once.
func TestExplainAgreesWithAnswer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, f := drawData(t)
		z := NewZone(d)
		source := netip.MustParseAddr("fd12:3456:789a:1:100:1:ff:2")
		if ms := d.Orgs[0].Machines; len(ms) > 0 && rapid.Bool().Draw(t, "machine asks") {
			source = ms[0].Addr
		}
		q := Query{Name: drawName(t), Type: TypeAAAA, Source: source}
		if rapid.Bool().Draw(t, "service") {
			q.Name, q.Type = "_80._tcp."+q.Name, TypeSRV
		}
		seed := rapid.Uint64().Draw(t, "seed")
		want := z.Answer(f, q, rand.New(rand.NewPCG(seed, 0)))
		got, list := z.Explain(f, q, rand.New(rand.NewPCG(seed, 0)))
		if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); diff != "" {
			t.Fatalf("%s (-answer +explained):\n%s", q.Name, diff)
		}
		var addrs []netip.Addr
		seen := map[string]bool{}
		for _, c := range list {
			if c.Position > 0 {
				addrs = append(addrs, c.Addr)
			}
			if seen[c.Machine] || c.Reason == "" || c.Basis == "" || c.Distance < 0 {
				t.Fatalf("%s: %+v", q.Name, list)
			}
			seen[c.Machine] = true
		}
		answered := slices.Clone(want.Addrs)
		for _, s := range want.Ports {
			answered = append(answered, s.Addr)
		}
		if len(list) > 0 && !slices.Equal(addrs, answered) {
			t.Fatalf("%s: explained %v, answered %v", q.Name, addrs, answered)
		}
		if data := got.Data(); len(list) > 0 && len(data) != len(answered) {
			t.Fatalf("%s: data %v of %v", q.Name, data, answered)
		}
	})
}
