package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
)

// What a view means for a machine that runs on host b with generation 3 and has
// been seen there in epoch 1.
func TestJudge(t *testing.T) {
	at := netip.MustParsePrefix("fd12:3456:789a:1:300:5:1:0/112")
	elsewhere := netip.MustParsePrefix("fd12:3456:789a:1:300:5:2:0/112")
	r := func(host string, generation uint64) *mesh.Machine {
		return &mesh.Machine{Host: host, Generation: generation, Endpoint: at}
	}
	next := func(host, next string) *mesh.Machine {
		m := r(host, 3)
		m.Next = next
		return m
	}
	other := func(host string) *mesh.Machine { return &mesh.Machine{Host: host, Endpoint: elsewhere, Generation: 3} }
	seen := standing{record: *r("b", 3), epoch: 1, seen: true}
	unseen, leaving := seen, seen
	unseen.seen, leaving.next = false, "c"
	coming := standing{record: *next("a", "b"), epoch: 1, coming: true, seen: true}
	fresh := coming
	fresh.seen = false
	for _, tt := range []struct {
		name         string
		s            standing
		effect, told *mesh.Machine
		epoch        uint32
		gone         bool // its org is not in the view
		cache        bool
		want         fate
		host         string
	}{
		{name: "it is ours", s: seen, effect: r("b", 3), told: r("b", 3), epoch: 1},
		{name: "it is about to move", s: seen, effect: next("b", "c"), told: next("b", "c"), epoch: 1},
		{name: "not in the view yet", s: unseen, epoch: 1},
		{name: "removed", s: seen, epoch: 1, want: fateRemoved},
		{name: "removed, says our own disk", s: seen, epoch: 1, cache: true},
		{name: "its removal is held back", s: seen, effect: r("b", 3), epoch: 1},
		{name: "registered anew with another address", s: seen, effect: other("b"), told: other("b"), epoch: 1, want: fateRemoved},
		{name: "a former one of that name", s: unseen, effect: other("b"), told: other("b"), epoch: 1},
		{name: "moved", s: seen, effect: r("c", 4), told: r("c", 4), epoch: 1, want: fateMoved, host: "c"},
		{name: "moved before we saw ourselves", s: unseen, effect: r("c", 4), told: r("c", 4), epoch: 1, want: fateMoved, host: "c"},
		{name: "moved, and the org with it", s: leaving, epoch: 1, gone: true, want: fateMoved, host: "c"},
		{name: "moved or removed, and the org with it", s: seen, epoch: 1, gone: true, want: fateGone},
		{name: "gone with its org, says our own disk", s: seen, epoch: 1, gone: true, cache: true},
		{name: "registered just now, and the org is not in the view yet", s: unseen, epoch: 1, gone: true},
		{name: "a restore: unknown, and its org", s: seen, epoch: 2, gone: true, want: fateLost},
		{name: "coming: its org is not in the view yet", s: fresh, epoch: 1, gone: true},
		{name: "a late word of where it was", s: seen, effect: r("a", 2), told: r("a", 2), epoch: 1},
		{name: "where it was, just after we registered", s: unseen, effect: r("a", 3), told: r("a", 3), epoch: 1},
		{name: "removed and registered elsewhere", s: seen, effect: other("c"), told: other("c"), epoch: 1, want: fateMoved, host: "c"},

		{name: "a restore: unknown", s: seen, epoch: 2, want: fateLost},
		{name: "a restore: unknown before we saw ourselves", s: unseen, epoch: 2, want: fateLost},
		{name: "a restore: unknown, and held back", s: seen, effect: r("b", 3), epoch: 2, want: fateLost},
		{name: "a restore: still where it was", s: seen, effect: r("a", 2), told: r("a", 2), epoch: 2, want: fateLost},
		{name: "a restore: with a former address", s: seen, effect: other("b"), told: other("b"), epoch: 2, want: fateLost},
		{name: "a restore: the same generation elsewhere", s: seen, effect: r("a", 3), told: r("a", 3), epoch: 2, want: fateLost},
		{name: "a restore: known", s: seen, effect: r("b", 3), told: r("b", 3), epoch: 2},
		{name: "a restore: moved on since", s: seen, effect: r("c", 4), told: r("c", 4), epoch: 2, want: fateMoved, host: "c"},
		{name: "a restore, says our own disk", s: seen, epoch: 2, cache: true},

		{name: "coming: prepared", s: coming, effect: next("a", "b"), told: next("a", "b"), epoch: 1},
		{name: "coming: not in the view yet", s: fresh, effect: r("a", 3), told: r("a", 3), epoch: 1},
		{name: "coming: called off", s: coming, effect: r("a", 3), told: r("a", 3), epoch: 1, want: fateOff},
		{name: "coming: to another host", s: coming, effect: next("a", "c"), told: next("a", "c"), epoch: 1, want: fateOff},
		{name: "coming: it ended there", s: coming, epoch: 1},
		{name: "coming: it is here", s: coming, effect: r("b", 4), told: r("b", 4), epoch: 1},
	} {
		got, host := judge(tt.s, sight{host: "b", effect: tt.effect, told: tt.told, epoch: tt.epoch, org: !tt.gone, current: !tt.cache})
		if got != tt.want || host != tt.host {
			t.Errorf("%s: fate %d on %q, want %d on %q", tt.name, got, host, tt.want, tt.host)
		}
	}
}

// An org that a host does not carry any more stays for what is still delivered to
// its machine; no other one does, and nothing stands against the new view.
func TestCarryOn(t *testing.T) {
	key := func(n byte) mesh.Key { return mesh.Key{0: n} }
	old := &mesh.View{
		Plan: testPlan(t), Host: &mesh.Host{Name: "a", Number: 1},
		Orgs:     []mesh.Org{{Name: "acme", Network: 1}, {Name: "both", Network: 3}, {Name: "gone", Network: 2}},
		Machines: []mesh.Machine{{Org: "acme", ID: "w", Host: "a", Next: "b"}, {Org: "gone", ID: "x", Host: "a"}},
		Hosts: []mesh.ViewHost{
			{Name: "b", Number: 2, Key: key(2), Orgs: []string{"acme", "both"}},
			{Name: "c", Number: 3, Key: key(3), Orgs: []string{"acme"}},
			{Name: "d", Number: 4, Key: key(4), Orgs: []string{"gone"}},
			{Name: "e", Number: 5, Key: key(5), Orgs: []string{"acme"}},
		},
	}
	now := &mesh.View{
		Plan: old.Plan, Host: old.Host, Orgs: []mesh.Org{{Name: "both", Network: 3}},
		Hosts: []mesh.ViewHost{{Name: "b", Number: 2, Key: key(2), Orgs: []string{"both"}}, {Name: "f", Number: 5, Key: key(6), Orgs: []string{"both"}}},
	}
	if got := carryOn(old, now, nil); got != now {
		t.Error("made anew although nobody needs anything")
	}
	if got := carryOn(nil, now, []string{"acme"}); got != now {
		t.Error("made anew out of nothing")
	}
	if got := carryOn(old, now, []string{"both"}); got != now {
		t.Error("made anew although the org is there")
	}
	got := carryOn(old, now, []string{"acme"})
	var said []string
	for _, o := range got.Orgs {
		said = append(said, o.Name)
	}
	said = append(said, ids(got))
	for _, h := range got.Hosts {
		said = append(said, h.Name)
		said = append(said, h.Orgs...)
	}
	// e's number is used again, by f.
	want := []string{"acme", "both", "w", "b", "acme", "both", "c", "acme", "f", "both"}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !slices.Equal(now.Hosts[0].Orgs, []string{"both"}) {
		t.Error("the view itself was changed")
	}
	if again := carryOn(got, now, []string{"acme"}); !cmp.Equal(ids(again), "w") || len(again.Hosts) != 3 {
		t.Error("forgotten by the second pass")
	}
}
