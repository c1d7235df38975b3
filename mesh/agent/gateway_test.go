package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/mesh"
)

func TestChooseGateway(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	c := func(name string, rtt int) candidate { return candidate{name: name, rtt: ms(rtt), present: true} }
	absent := func(name string, rtt int) candidate { return candidate{name: name, rtt: ms(rtt)} }
	rests := func(name string, rtt int) candidate {
		return candidate{name: name, rtt: ms(rtt), present: true, rests: time.Unix(1, 0)}
	}
	for _, tt := range []struct {
		name    string
		current string
		out     bool
		all     []candidate
		want    string
	}{
		{"no host at all", "a", false, nil, "a"},
		{"none yet: the nearest", "", false, []candidate{c("a", 90), c("b", 10)}, "b"},
		{"the current one is no candidate any more", "x", false, []candidate{c("a", 90), c("b", 10)}, "b"},
		{"clearly better", "a", false, []candidate{c("a", 90), c("b", 10)}, "b"},
		{"better by 4 ms: stays", "a", false, []candidate{c("a", 14), c("b", 10)}, "a"},
		{"better by 6 ms but not by a fifth: stays", "a", false, []candidate{c("a", 96), c("b", 90)}, "a"},
		{"better by 25 of 100 ms", "a", false, []candidate{c("a", 100), c("b", 75)}, "b"},
		{"nobody answers echoes: stays", "a", false, []candidate{c("a", 0), c("b", 0)}, "a"},
		{"the current one is not measured: stays", "b", false, []candidate{c("a", 10), c("b", 0)}, "b"},
		{"out: the nearest other", "a", true, []candidate{c("a", 10), c("b", 90), c("c", 20)}, "c"},
		{"out, and nobody answers echoes: any other", "a", true, []candidate{c("a", 0), c("b", 0)}, "b"},
		{"out, and there is no other", "a", true, []candidate{c("a", 10)}, "a"},
		{"a nearer one that no controller sees: not taken", "a", false, []candidate{c("a", 90), absent("b", 10)}, "a"},
		{"out: present ones first", "a", true, []candidate{c("a", 9), absent("b", 10), c("c", 80)}, "c"},
		{"out: an absent one is better than none", "a", true, []candidate{c("a", 9), absent("b", 10)}, "b"},
		{"a nearer one that rests: not taken", "a", false, []candidate{c("a", 90), rests("b", 10)}, "a"},
		{"out: one that rests comes last", "a", true, []candidate{c("a", 9), rests("b", 10), c("c", 80)}, "c"},
		{"out: one that rests is better than none", "a", true, []candidate{c("a", 9), rests("b", 10)}, "b"},
		{"out: one that rests is better than an absent one", "a", true, []candidate{c("a", 9), rests("b", 80), absent("c", 10)}, "b"},
		{"none yet, and the nearest rests", "", false, []candidate{rests("a", 9), c("b", 10)}, "b"},
		{"the current one rests but works: stays", "a", false, []candidate{rests("a", 9), c("b", 9)}, "a"},
		{"the current one rests, and another is better", "a", false, []candidate{rests("a", 90), c("b", 9)}, "b"},
		{"the current one is absent but works: stays", "a", false, []candidate{absent("a", 10), c("b", 9)}, "a"},
	} {
		if got := chooseGateway(tt.current, tt.out, tt.all); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A choice is stable: with the same measurements the chosen one stays, so a laptop
// never goes to and fro; and one that is out is never chosen while there is another.
func TestChooseGatewaySettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []candidate
		for i := range rapid.IntRange(1, 6).Draw(t, "hosts") {
			all = append(all, candidate{
				name: string(rune('a' + i)), present: rapid.Bool().Draw(t, "present"),
				rtt: time.Duration(rapid.IntRange(0, 200).Draw(t, "ms")) * time.Millisecond,
			})
			if rapid.Bool().Draw(t, "rests") {
				all[i].rests = time.Unix(1, 0)
			}
		}
		current := rapid.SampledFrom(all).Draw(t, "current").name
		first := chooseGateway(current, false, all)
		if second := chooseGateway(first, false, all); second != first {
			t.Fatalf("%s, then %s, then %s", current, first, second)
		}
		if len(all) > 1 && chooseGateway(current, true, all) == current {
			t.Fatalf("%s is out and was chosen", current)
		}
	})
}

// Once a gateway may be out and is used again at once; who is out again and again rests
// longer and longer, and is forgiven after an hour.
func TestOutages(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	o := outages{}
	at := start
	for i, want := range []time.Duration{0, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 30 * time.Minute} {
		at = at.Add(time.Second)
		o.add("a", at)
		until := o.rests("a", at)
		if want == 0 && !until.IsZero() || want != 0 && until.Sub(at) != want {
			t.Errorf("after outage %d it rests until %s, want for %s", i+1, until, want)
		}
		if !until.IsZero() {
			at = until
		}
		if now := o.rests("a", at); want > 0 && !now.IsZero() {
			t.Errorf("after its rest it rests until %s", now)
		}
	}
	if !o.rests("b", at).IsZero() {
		t.Error("another one rests")
	}
	if o.add("a", at.Add(outageCounts)); !o.rests("a", at.Add(outageCounts)).IsZero() || len(o["a"]) != 1 {
		t.Errorf("an hour later: %v", o["a"])
	}
}

func TestCandidates(t *testing.T) {
	v := &mesh.View{Client: &mesh.Client{Gateway: "cordoned"}, Hosts: []mesh.ViewHost{
		{Name: "good", Region: "fra", Endpoints: []netip.AddrPort{addrPort("[::ffff:192.0.2.1]:1")}, Present: true},
		{Name: "nat", Endpoints: []netip.AddrPort{addrPort("192.0.2.2:1")}, NAT: true},
		{Name: "nowhere"},
		{Name: "cordoned", Endpoints: []netip.AddrPort{addrPort("192.0.2.3:1")}, Cordoned: true},
		{Name: "also-cordoned", Endpoints: []netip.AddrPort{addrPort("192.0.2.4:1")}, Cordoned: true},
	}}
	want := []candidate{
		{name: "good", region: "fra", addr: addr("192.0.2.1"), present: true},
		{name: "cordoned", addr: addr("192.0.2.3")}, // in use: it may stay
	}
	if diff := cmp.Diff(want, candidates(v), cmp.AllowUnexported(candidate{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Echo over loopback, the real thing, in both families.
func TestEchoUnderlay(t *testing.T) {
	needRoot(t)
	for _, a := range []string{"127.0.0.1", "::1"} {
		if rtt := echoUnderlay(t.Context(), addr(a)); rtt <= 0 || rtt > time.Second {
			t.Errorf("echo to %s: %s", a, rtt)
		}
	}
}
