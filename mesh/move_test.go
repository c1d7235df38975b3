package mesh

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/peers"
)

// holder is the peer that a device with c sends what is for addr to, and believes
// to send from it: the longest match. "": none.
func holder(c peers.Config, addr netip.Addr) string {
	names := map[wgtypes.Key]string{}
	for _, n := range []string{"fra1", "ams1", "nrt1", "laptop", "phone"} {
		names[wgtypes.Key(testKey(n))] = n
	}
	best, bits := "", -1
	for _, p := range c.Peers {
		for _, ip := range p.AllowedIPs {
			if ip.Contains(addr) && ip.Bits() > bits {
				best, bits = names[p.Key], ip.Bits()
			}
		}
	}
	return best
}

// roaming is threeHosts with the org of the roamer on all hosts, the roamer and the
// phone somewhere, and as often moved as generation says.
func roaming(host, next, gateway string, generation uint64) State {
	s := threeHosts()
	r, _ := s.Machines.Get("acme/roamer")
	r.Host, r.Next, r.Generation = host, next, generation
	phone, _ := s.Clients.Get("acme/phone")
	phone.Gateway, phone.Generation = gateway, generation
	observer := Machine{Org: "acme", ID: "observer", App: "web", Host: "nrt1", Endpoint: testPlan().Endpoint(1, ipam.Host{Region: 3, Number: 5}, 1)}
	s = s.With(Change{"machines/acme/roamer", r}, Change{"clients/acme/phone", phone}, Change{"machines/acme/observer", observer})
	s.Revision = Revision{1, int64(100 + generation)}
	return s
}

// While a machine and a client go from host to host, away from home, on, and home
// again, every other host holds their addresses at each moment, also between the
// single changes of one pass and when it missed some steps: at the host where they
// are, or were.
func TestMovesWithoutAGap(t *testing.T) {
	t.Parallel()
	roamer, phone := testPlan().Endpoint(1, ipam.Host{Region: 1, Number: 1}, 7), testPlan().Endpoint(1, ipam.Host{Region: 1, Number: 1}, 3)
	at := []struct{ host, next, gateway string }{
		{"fra1", "", "fra1"}, {"fra1", "ams1", "fra1"}, {"ams1", "", "ams1"}, {"ams1", "nrt1", "ams1"}, {"nrt1", "", "nrt1"},
		{"nrt1", "fra1", "nrt1"}, {"fra1", "", "fra1"}, {"fra1", "", "fra1"},
	}
	config := func(step int, node string) peers.Config {
		v, ok := roaming(at[step].host, at[step].next, at[step].gateway, uint64(step)).View(Node{Kind: KindHost, Name: node}, Deployment{})
		if !ok {
			t.Fatalf("no view of %s", node)
		}
		return v.Config(wgtypes.Key{}, 0)
	}
	for _, node := range []string{"fra1", "ams1", "nrt1"} {
		for from := range at {
			for to := from + 1; to < len(at); to++ {
				have, want := config(from, node), config(to, node)
				changes := peers.Diff(have, want)
				for i := range len(changes) + 1 {
					now := peers.Apply(have, changes[:i])
					what := fmt.Sprintf("%s, step %d to %d, after %d of %v", node, from, to, i, changes)
					check := func(what string, endpoint netip.Prefix, was, is string) {
						got := holder(now, ipam.MainAddr(endpoint))
						switch {
						case was == node || is == node: // it is on the host itself
						case got != was && got != is, i == len(changes) && got != is:
							t.Errorf("%s: its address is held by %q, want %q or %q", what, got, was, is)
						}
					}
					check(what+": the machine", roamer, at[from].host, at[to].host)
					check(what+": the client", phone, at[from].gateway, at[to].gateway)
				}
			}
		}
	}
}

// The host that an endpoint is homed at sends it to where it is, against its own
// share of the network; the host where it is has a way for it nowhere else.
func TestHomePointsAway(t *testing.T) {
	t.Parallel()
	roamer := testPlan().Endpoint(1, ipam.Host{Region: 1, Number: 1}, 7)
	for _, tt := range []struct {
		node string
		want bool
	}{{"fra1", true}, {"nrt1", true}, {"ams1", false}} {
		v, _ := roaming("ams1", "", "fra1", 1).View(Node{Kind: KindHost, Name: tt.node}, Deployment{})
		routed := false
		for _, r := range v.Routes() {
			routed = routed || r == roamer
		}
		if routed != tt.want {
			t.Errorf("%s: a route of its own for the machine's endpoint: %v, want %v", tt.node, routed, tt.want)
		}
	}
}

// Whatever revisions a node hears of, in one delta or in many: what it knows of an
// endpoint never goes back to where it was before.
func TestGenerationsNeverGoBack(t *testing.T) {
	t.Parallel()
	hosts := []string{"fra1", "ams1", "nrt1"}
	rapid.Check(t, func(t *rapid.T) {
		places := rapid.SliceOfN(rapid.IntRange(0, 2), 2, 12).Draw(t, "places")
		heard := rapid.SliceOfN(rapid.Bool(), len(places), len(places)).Draw(t, "heard")
		node := Node{Kind: KindHost, Name: rapid.SampledFrom(hosts).Draw(t, "node")}
		view := func(i int) View {
			v, _ := roaming(hosts[places[i]], "", hosts[places[i]], uint64(i)).View(node, Deployment{})
			return v
		}
		known := view(0)
		for i := 1; i < len(places); i++ {
			if !heard[i] && i < len(places)-1 {
				continue
			}
			before := known
			known = known.Apply(DiffViews(known, view(i)))
			for _, m := range known.Machines {
				for _, old := range before.Machines {
					if m.Endpoint == old.Endpoint && m.Generation < old.Generation {
						t.Fatalf("revision %s: generation %d on %s after %d on %s", known.Revision, m.Generation, m.Host, old.Generation, old.Host)
					}
				}
				if m.ID == "roamer" && m.Host != hosts[places[i]] {
					t.Fatalf("revision %s: it is on %s, want %s", known.Revision, m.Host, hosts[places[i]])
				}
			}
		}
	})
}
