package link

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weftmesh/weft/peers/netns"
)

// A route's source is in the kernel what was asked for, is put right when somebody
// takes it away, and goes with its route.
func TestSourceOfARoute(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	check(t, Prepare(ns))
	link := addLink(t, nl, "weft0")
	c := hostConfig()
	const i = 1
	c.Routes[i].Source = c.Addresses[1].Prefix.Addr()
	set(t, ns, c)
	routes, err := nl.RouteGet(c.Routes[i].Prefix.Addr().Next().AsSlice())
	if err != nil || len(routes) != 1 || routes[0].Src.String() != c.Routes[i].Source.String() {
		t.Fatalf("the kernel's source there: %v %v, want %s", routes, err, c.Routes[i].Source)
	}
	check(t, nl.RouteReplace(&netlink.Route{Dst: netns.IPNet(c.Routes[i].Prefix), LinkIndex: link.Attrs().Index, Protocol: Protocol}))
	want := "change route fd12:3456:789a:1:200:6::/96 dev weft0 src fd12:3456:789a:1:100:5:0:1"
	if got := set(t, ns, c); len(got) != 1 || got[0] != want {
		t.Errorf("after somebody took it away: %q, want %q", got, want)
	}
	c.Routes[i].Source = c.Addresses[0].Prefix.Addr()
	c.Addresses = append(c.Addresses[:1], c.Addresses[2:]...)
	set(t, ns, c) // the address goes, the source is another one
	c.Routes = nil
	set(t, ns, c)
}
