package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/mesh"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// crowd is a view with so many hosts, own clients and machines.
func crowd(hosts, clients, machines int) *mesh.View {
	v := &mesh.View{Self: mesh.Node{Kind: mesh.KindHost, Name: "self"}, Host: &mesh.Host{Name: "self", Number: 1000}}
	for i := range hosts {
		v.Hosts = append(v.Hosts, mesh.ViewHost{Name: fmt.Sprintf("h%03d", i), Number: uint32(i + 1), Key: mesh.Key(keyOf(byte(i + 1)))})
	}
	for i := range clients {
		k := mesh.Key(keyOf(byte(100 + i)))
		v.Clients = append(v.Clients, mesh.ViewClient{Org: "o", Name: fmt.Sprintf("c%03d", i), Key: &k})
	}
	for i := range machines {
		v.Machines = append(v.Machines, mesh.Machine{Org: "o", ID: fmt.Sprintf("m%03d", i), Endpoint: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 13: byte(i)}), 112)})
	}
	return v
}

func TestHeldBack(t *testing.T) {
	for _, tt := range []struct {
		name     string
		old, new *mesh.View
		held     bool
	}{
		{"the first view", nil, crowd(0, 0, 0), false},
		{"nothing changes", crowd(9, 0, 9), crowd(9, 0, 9), false},
		{"four of four hosts", crowd(4, 0, 0), crowd(0, 0, 0), false},
		{"five of nine hosts", crowd(9, 0, 0), crowd(4, 0, 0), true},
		{"five of ten hosts: not more than half", crowd(10, 0, 0), crowd(5, 0, 0), false},
		{"hosts and clients are peers", crowd(4, 4, 0), crowd(2, 1, 0), true},
		{"all machines, hosts stay", crowd(9, 0, 6), crowd(9, 0, 0), true},
		{"machines of a small mesh", crowd(2, 0, 4), crowd(2, 0, 0), false},
		{"an empty snapshot", crowd(20, 5, 50), crowd(0, 0, 0), true},
		{"growth", crowd(1, 0, 1), crowd(20, 5, 50), false},
	} {
		if why := heldBack(tt.old, tt.new); (why != "") != tt.held {
			t.Errorf("%s: %q, want held %v", tt.name, why, tt.held)
		}
	}
}

// Named after the outage: valid peers were removed because clean-up ran before the
// first complete list. Here a controller that knows half of the state sends it.
func TestCilium31985NothingRemovedOnPartialKnowledge(t *testing.T) {
	start := time.Unix(1000, 0)
	c := current{holdFor: 3 * time.Minute}
	if c.delta(mesh.Delta{Removed: []string{"hosts/h000"}}, start) {
		t.Fatal("a change was taken before the first snapshot")
	}
	c.snapshot(crowd(20, 0, 20), start)
	part := crowd(3, 0, 3)
	part.Revision.Revision = 5
	c.snapshot(part, start.Add(time.Minute))
	if len(c.effective.View().Hosts) != 20 || len(c.effective.View().Machines) != 20 || c.effective.View().Revision != part.Revision {
		t.Fatalf("half a snapshot took away: %d hosts, %d machines left", len(c.effective.View().Hosts), len(c.effective.View().Machines))
	}
	// What it adds counts at once.
	d := mesh.Delta{Revision: mesh.Revision{Revision: 6}, Machines: []mesh.Machine{{Org: "o", ID: "new", Endpoint: netip.MustParsePrefix("fd00::9:9:0/112")}}}
	c.delta(d, start.Add(2*time.Minute))
	if !slices.ContainsFunc(c.effective.View().Machines, func(m mesh.Machine) bool { return m.ID == "new" }) || len(c.effective.View().Machines) != 21 {
		t.Fatalf("a new machine while held: %d machines", len(c.effective.View().Machines))
	}
	c.heard(mesh.Revision{}, start.Add(3*time.Minute))
	if len(c.effective.View().Hosts) != 20 {
		t.Fatal("applied before its time")
	}
	c.heard(mesh.Revision{}, start.Add(4*time.Minute))
	if len(c.effective.View().Hosts) != 3 || len(c.effective.View().Machines) != 4 {
		t.Fatalf("confirmed, and not applied: %d hosts, %d machines", len(c.effective.View().Hosts), len(c.effective.View().Machines))
	}
}

// The controller that had half of it finds the rest: nothing ever happened.
func TestHoldEndsWithAWholeSnapshot(t *testing.T) {
	start := time.Unix(1000, 0)
	c := current{holdFor: time.Minute}
	c.snapshot(crowd(20, 0, 0), start)
	c.snapshot(crowd(0, 0, 0), start.Add(time.Second))
	whole := crowd(20, 0, 0)
	c.snapshot(whole, start.Add(2*time.Second))
	if c.effective.View() != whole || !c.heldSince.IsZero() {
		t.Fatal("still held")
	}
	// A later one is held anew, for the whole time.
	c.snapshot(crowd(0, 0, 0), start.Add(59*time.Second))
	c.heard(mesh.Revision{}, start.Add(62*time.Second))
	if len(c.effective.View().Hosts) != 20 {
		t.Fatal("the old hold counted for the new one")
	}
	// One confirmed by a reconnect keeps its clock.
	c.snapshot(crowd(0, 0, 0), start.Add(119*time.Second))
	if len(c.effective.View().Hosts) != 0 {
		t.Fatal("a reconnect after the hold did not count as confirmation")
	}
}

// Removals that come as changes are meant: they are applied at once.
func TestDeltaIsNotHeld(t *testing.T) {
	c := current{holdFor: time.Hour}
	c.snapshot(crowd(20, 0, 0), time.Unix(0, 0))
	d := mesh.Delta{Revision: mesh.Revision{Revision: 1}}
	for _, h := range c.told.View().Hosts {
		d.Removed = append(d.Removed, "hosts/"+h.Name)
	}
	c.delta(d, time.Unix(1, 0))
	if len(c.effective.View().Hosts) != 0 {
		t.Fatalf("%d hosts left", len(c.effective.View().Hosts))
	}
}

// What is kept never collides with what is new, and the result is ordered as a
// view is.
func TestRetain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) *mesh.View {
			v := crowd(0, 0, 0)
			for i := range rapid.IntRange(0, 8).Draw(t, label+" hosts") {
				v.Hosts = append(v.Hosts, mesh.ViewHost{
					Name: fmt.Sprintf("%s%d", rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name"), i), Number: rapid.Uint32Range(1, 9).Draw(t, "number"), Key: mesh.Key(keyOf(byte(rapid.IntRange(1, 9).Draw(t, "key")))),
				})
			}
			for i := range rapid.IntRange(0, 8).Draw(t, label+" machines") {
				v.Machines = append(v.Machines, mesh.Machine{Org: "o", ID: fmt.Sprintf("%s%d", label, i), Endpoint: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 13: byte(rapid.IntRange(1, 20).Draw(t, "slot"))}), 112)})
				v.Health = append(v.Health, mesh.Health{Org: "o", Machine: v.Machines[i].ID, Passing: true})
				v.Records = append(v.Records, mesh.Record{Org: "o", Name: v.Machines[i].ID, Type: "TXT"})
			}
			sortView(v)
			return v
		}
		old, new := draw("old"), draw("new")
		got := retain(old, new)
		for _, h := range new.Hosts {
			if !slices.ContainsFunc(got.Hosts, func(x mesh.ViewHost) bool { return cmp.Equal(x, h) }) {
				t.Fatalf("host %s of the new view is lost", h.Name)
			}
		}
		for _, h := range got.Hosts[:] {
			fromNew := slices.ContainsFunc(new.Hosts, func(x mesh.ViewHost) bool { return x.Name == h.Name })
			clash := slices.ContainsFunc(new.Hosts, func(x mesh.ViewHost) bool { return x.Name != h.Name && (x.Number == h.Number || x.Key == h.Key) })
			if !fromNew && clash {
				t.Fatalf("host %s was kept beside one with its number or key", h.Name)
			}
		}
		for _, m := range got.Machines {
			if !slices.ContainsFunc(new.Machines, func(x mesh.Machine) bool { return x.ID == m.ID }) &&
				slices.ContainsFunc(new.Machines, func(x mesh.Machine) bool { return x.Endpoint == m.Endpoint }) {
				t.Fatalf("machine %s was kept beside one with its endpoint", m.ID)
			}
			if !slices.ContainsFunc(got.Health, func(h mesh.Health) bool { return h.Machine == m.ID }) {
				t.Fatalf("machine %s was kept, and its health was not: it is in no name", m.ID)
			}
		}
		if len(got.Health) != len(got.Machines) || len(got.Records) != len(old.Records)+len(new.Records) {
			t.Fatalf("%d machines, %d healths, %d records", len(got.Machines), len(got.Health), len(got.Records))
		}
		if !slices.IsSortedFunc(got.Hosts, func(a, b mesh.ViewHost) int { return strings.Compare(a.Name, b.Name) }) {
			t.Fatal("hosts are not sorted")
		}
	})
}

func TestPresence(t *testing.T) {
	start := time.Unix(1000, 0)
	hosts := func(n int, gone ...int) []mesh.ViewHost {
		var out []mesh.ViewHost
		for i := range n {
			out = append(out, mesh.ViewHost{Name: fmt.Sprint(i), Present: !slices.Contains(gone, i)})
		}
		return out
	}
	type step struct {
		at    time.Duration
		hosts []mesh.ViewHost
	}
	for _, tt := range []struct {
		name  string
		steps []step
		at    time.Duration
		gone  []string // gone in earnest for at least a minute
	}{
		{"all there", []step{{0, hosts(10)}}, time.Hour, nil},
		{"one goes", []step{{0, hosts(10)}, {time.Second, hosts(10, 3)}}, 62 * time.Second, []string{"3"}},
		{"one goes and comes back", []step{{0, hosts(10)}, {time.Second, hosts(10, 3)}, {2 * time.Second, hosts(10)}}, time.Hour, nil},
		{"two of five are few", []step{{0, hosts(5)}, {time.Second, hosts(5, 1, 2)}}, 62 * time.Second, []string{"1", "2"}},
		{"three of fifteen are not over a fifth", []step{{0, hosts(15)}, {time.Second, hosts(15, 1, 2, 3)}}, 62 * time.Second, []string{"1", "2", "3"}},
		{"three of ten at once: the control plane", []step{{0, hosts(10)}, {time.Second, hosts(10, 1, 2, 3)}}, 62 * time.Second, nil},
		{"three of ten one after the other within a lease", []step{{0, hosts(10)}, {time.Second, hosts(10, 1)}, {9 * time.Second, hosts(10, 1, 2)}, {20 * time.Second, hosts(10, 1, 2, 3)}}, 90 * time.Second, nil},
		{"three of ten, far apart", []step{{0, hosts(10)}, {time.Second, hosts(10, 1)}, {40 * time.Second, hosts(10, 1, 2)}, {80 * time.Second, hosts(10, 1, 2, 3)}}, 200 * time.Second, []string{"1", "2", "3"}},
		{"all at the first sight after a restart of the controllers", []step{{0, hosts(4, 0, 1, 2, 3)}}, 90 * time.Second, nil},
		{"held, then back, then one goes in earnest", []step{{0, hosts(10)}, {1, hosts(10, 1, 2, 3)}, {time.Minute, hosts(10)}, {2 * time.Minute, hosts(10, 2)}}, 190 * time.Second, []string{"2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := presence{lease: 30 * time.Second, hold: true}
			for _, s := range tt.steps {
				p.update(s.hosts, start.Add(s.at))
			}
			var got []string
			for i := range 15 {
				if p.goneFor(fmt.Sprint(i), start.Add(tt.at)) >= time.Minute {
					got = append(got, fmt.Sprint(i))
				}
			}
			if diff := cmp.Diff(tt.gone, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	// Without the rule the wave counts: that is what the test above would miss.
	p := presence{lease: 30 * time.Second}
	p.update(hosts(10), start)
	p.update(hosts(10, 1, 2, 3), start.Add(time.Second))
	if p.goneFor("1", start.Add(time.Hour)) == 0 {
		t.Error("switched off, and held all the same")
	}
}
