package link

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// plane is a namespace with a link that stands for WireGuard's.
func plane(t *testing.T) (*netns.Handle, *netlink.Handle) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	ns, err := netns.New()
	check(t, err)
	t.Cleanup(func() { ns.Close() })
	nl, err := ns.Netlink()
	check(t, err)
	t.Cleanup(nl.Close)
	return ns, nl
}

func addLink(t *testing.T, nl *netlink.Handle, name string) netlink.Link {
	t.Helper()
	check(t, nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500, TxQLen: -1}, PeerName: name + "p", PeerTxQLen: -1}))
	peer, err := nl.LinkByName(name + "p")
	check(t, err)
	check(t, nl.LinkSetIP6AddrGenMode(peer, 1))
	check(t, nl.LinkSetUp(peer))
	l, err := nl.LinkByName(name)
	check(t, err)
	return l
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func hostConfig() Config {
	return Config{
		Link: "weft0", AddressesOn: "lo", MTU: 1420, Unreachable: mesh(), Up: true,
		Addresses: []Address{{pfx("0:100:5:0:1/128"), false}, {pfx("1:100:5:0:1/128"), false}, {pfx("1::3/128"), true}, {pfx(":3/128"), true}},
		Routes:    []Route{{Prefix: pfx("0:200:6:0:1/128"), MTU: 0}, {Prefix: pfx("1:200:6::/96"), MTU: 0}, {Prefix: pfx("1:200:7::/96"), MTU: 1380}},
	}
}

func set(t *testing.T, ns *netns.Handle, c Config) []string {
	t.Helper()
	changes, err := Set(ns, c)
	if err != nil {
		t.Fatalf("Set: %v (after %q)", err, changes)
	}
	if again, err := Set(ns, c); err != nil || len(again) > 0 {
		t.Fatalf("Set again: %q, %v: want nothing to do", again, err)
	}
	return changes
}

// state is what there is, as text: addresses of the mesh and all routes of the
// main table that are not the kernel's.
func state(t *testing.T, nl *netlink.Handle) string {
	t.Helper()
	var out []string
	links, err := nl.LinkList()
	check(t, err)
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		addrs, err := nl.AddrList(l, netlink.FAMILY_V6)
		check(t, err)
		for _, a := range addrs {
			line := "address " + a.IPNet.String() + " " + l.Attrs().Name
			if a.Flags&unix.IFA_F_DEPRECATED != 0 {
				line += " deprecated"
			}
			if a.Flags&unix.IFA_F_NODAD != 0 {
				line += " nodad"
			}
			if a.Flags&unix.IFA_F_PERMANENT == 0 {
				line += " ends"
			}
			if !a.IP.IsLoopback() {
				out = append(out, line)
			}
		}
	}
	routes, err := nl.RouteList(nil, netlink.FAMILY_V6)
	check(t, err)
	for _, r := range routes {
		switch {
		case r.Protocol == unix.RTPROT_KERNEL:
		case r.Type == unix.RTN_UNREACHABLE:
			out = append(out, "unreachable "+r.Dst.String())
		default:
			line := "route " + r.Dst.String() + " " + names[r.LinkIndex]
			if r.MTU != 0 {
				line += " mtu " + string(rune('0'+r.MTU/1000)) + "..."
			}
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func TestHost(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	check(t, Prepare(ns))
	check(t, Prepare(ns))
	addLink(t, nl, "weft0")
	c := hostConfig()
	set(t, ns, c)
	want := strings.TrimSpace(`
address fd12:3456:789a:0:100:5:0:1/128 lo nodad
address fd12:3456:789a:1:100:5:0:1/128 lo nodad
address fd12:3456:789a:1::3/128 lo deprecated nodad
address fd12:3456:789a::3/128 lo deprecated nodad
route fd12:3456:789a:0:200:6:0:1/128 weft0
route fd12:3456:789a:1:200:6::/96 weft0
route fd12:3456:789a:1:200:7::/96 weft0 mtu 1...
unreachable fd12:3456:789a::/48`)
	if diff := cmp.Diff(want, state(t, nl)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	l, err := nl.LinkByName("weft0")
	check(t, err)
	if l.Attrs().MTU != 1420 {
		t.Errorf("MTU %d", l.Attrs().MTU)
	}
	// A destination that no peer has is an error and not a packet elsewhere.
	if routes, err := nl.RouteGet(pfx("9::1/128").Addr().AsSlice()); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("route to nowhere in the mesh: %v, %v", routes, err)
	}
	// The resolver's address, which all hosts have, is no source of ours.
	routes, err := nl.RouteGet(pfx("1:200:6:1:2/128").Addr().AsSlice())
	check(t, err)
	if src, _ := netip.AddrFromSlice(routes[0].Src); src != pfx("1:100:5:0:1/128").Addr() {
		t.Errorf("source %s", src)
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	check(t, Prepare(ns))
	addLink(t, nl, "late") // links that come later are the same
	err := ns.Do(func() error {
		for _, s := range [][2]string{
			{"net/ipv6/conf/all/forwarding", "1"}, {"net/ipv6/conf/late/forwarding", "1"}, {"net/ipv4/ip_forward", "0"},
			{"net/ipv6/conf/late/accept_ra", "0"}, {"net/ipv6/conf/late/accept_redirects", "0"}, {"net/ipv6/conf/late/accept_source_route", "-1"},
		} {
			got, err := os.ReadFile(netns.Sysctl(s[0]))
			if err != nil || strings.TrimSpace(string(got)) != s[1] {
				t.Errorf("%s = %s, %v; want %s", s[0], got, err, s[1])
			}
		}
		return nil
	})
	check(t, err)
	lo, err := nl.LinkByName("lo")
	check(t, err)
	if lo.Attrs().Flags&1 == 0 {
		t.Error("lo is down")
	}
}

// What somebody does to the link is put right, and no more than that.
func TestDriftIsPutRight(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	check(t, Prepare(ns))
	link := addLink(t, nl, "weft0")
	lo, err := nl.LinkByName("lo")
	check(t, err)
	c := hostConfig()
	set(t, ns, c)
	want := state(t, nl)
	tests := []struct {
		name string
		do   func() error
		want []string
	}{
		{"a route is deleted", func() error {
			return nl.RouteDel(&netlink.Route{Dst: netns.IPNet(c.Routes[1].Prefix), LinkIndex: link.Attrs().Index})
		}, []string{"add route fd12:3456:789a:1:200:6::/96 dev weft0"}},
		{"the unreachable route is deleted", func() error { return nl.RouteDel(unreachable(mesh())) }, []string{"add unreachable fd12:3456:789a::/48"}},
		{"an address is deleted", func() error {
			return nl.AddrDel(lo, &netlink.Addr{IPNet: netns.IPNet(c.Addresses[2].Prefix)})
		}, []string{"set address fd12:3456:789a:1::3/128 deprecated on lo"}},
		{"a resolver's address becomes a source", func() error {
			return nl.AddrReplace(lo, &netlink.Addr{IPNet: netns.IPNet(c.Addresses[2].Prefix), Flags: unix.IFA_F_NODAD})
		}, []string{"set address fd12:3456:789a:1::3/128 deprecated on lo"}},
		{"an address gets an end", func() error {
			return nl.AddrReplace(lo, &netlink.Addr{IPNet: netns.IPNet(c.Addresses[0].Prefix), Flags: unix.IFA_F_NODAD, ValidLft: 600, PreferedLft: 600})
		}, []string{"set address fd12:3456:789a:0:100:5:0:1/128 on lo"}},
		{"an address too many", func() error {
			return nl.AddrAdd(lo, &netlink.Addr{IPNet: netns.IPNet(pfx("7::1/128"))})
		}, []string{"drop address fd12:3456:789a:7::1/128 on lo"}},
		{"a route of ours too many", func() error {
			return nl.RouteAdd(&netlink.Route{Dst: netns.IPNet(pfx("7::/96")), LinkIndex: link.Attrs().Index, Protocol: Protocol})
		}, []string{"drop route fd12:3456:789a:7::/96 dev weft0"}},
		// Setting an MTU rewrites the routes' too: 1420 on the way back.
		{"another MTU", func() error { return nl.LinkSetMTU(link, 1300) }, []string{
			"set mtu 1420 on weft0", "change route fd12:3456:789a:1:200:7::/96 dev weft0 mtu 1380",
		}},
		{"the link is taken down", func() error { return nl.LinkSetDown(link) }, []string{
			"set weft0 up", "add route fd12:3456:789a:0:200:6:0:1/128 dev weft0",
			"add route fd12:3456:789a:1:200:6::/96 dev weft0", "add route fd12:3456:789a:1:200:7::/96 dev weft0 mtu 1380",
		}},
		{"a link-local address", func() error {
			return nl.AddrAdd(link, &netlink.Addr{IPNet: netns.IPNet(netip.MustParsePrefix("fe80::7/64")), Flags: unix.IFA_F_NODAD})
		}, []string{"drop address fe80::7/64 on weft0"}},
		{"the kernel may give a link-local address", func() error { return nl.LinkSetIP6AddrGenMode(link, 0) }, []string{
			"set no link-local address on weft0",
		}},
	}
	for _, tt := range tests {
		check(t, tt.do())
		got := set(t, ns, c)
		// A mode of the kernel's own making may have given an address by now.
		got = slices.DeleteFunc(got, func(s string) bool {
			return tt.name == "the kernel may give a link-local address" && strings.HasPrefix(s, "drop address fe80:")
		})
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if diff := cmp.Diff(want, state(t, nl)); diff != "" {
			t.Errorf("%s: not put right (-want +got):\n%s", tt.name, diff)
		}
	}
}

// On a laptop the addresses are on the link, and the rest of the machine is
// somebody else's: Set and Remove touch none of it.
func TestLaptopKeepsItsOwn(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	addLink(t, nl, "weft0")
	eth := addLink(t, nl, "eth0")
	check(t, nl.LinkSetIP6AddrGenMode(eth, 1))
	check(t, nl.LinkSetUp(eth))
	check(t, nl.AddrAdd(eth, &netlink.Addr{IPNet: netns.IPNet(netip.MustParsePrefix("2001:db8::5/64")), Flags: unix.IFA_F_NODAD}))
	for _, r := range []*netlink.Route{
		{Dst: netns.IPNet(netip.MustParsePrefix("::/0")), Gw: netip.MustParseAddr("2001:db8::1").AsSlice(), LinkIndex: eth.Attrs().Index},
		// Somebody's inside our prefix, and somebody's unreachable one.
		{Dst: netns.IPNet(pfx("9::/64")), LinkIndex: eth.Attrs().Index, Protocol: unix.RTPROT_STATIC},
		{Dst: netns.IPNet(netip.MustParsePrefix("fd00::/8")), Type: unix.RTN_UNREACHABLE, Protocol: unix.RTPROT_STATIC},
	} {
		check(t, nl.RouteAdd(r))
	}
	before := state(t, nl)
	c := Config{
		Link: "weft0", MTU: 1420, Unreachable: mesh(), Up: true,
		Addresses: []Address{{pfx("1:100:5:9:2/128"), false}, {pfx("1:100:5:9:1/128"), true}},
		Routes:    []Route{{Prefix: pfx("1::/64"), MTU: 0}, {Prefix: pfx("0:100:5:0:1/128"), MTU: 0}},
	}
	set(t, ns, c)
	got := state(t, nl)
	for line := range strings.Lines(before) {
		if !strings.Contains(got, strings.TrimSpace(line)) {
			t.Errorf("gone: %s", line)
		}
	}
	if !strings.Contains(got, "address fd12:3456:789a:1:100:5:9:1/128 weft0 deprecated nodad") {
		t.Errorf("no address on the link:\n%s", got)
	}
	changes, err := Remove(ns, c)
	check(t, err)
	if len(changes) != 5 {
		t.Errorf("Remove: %q, want 5 changes", changes)
	}
	if diff := cmp.Diff(before, state(t, nl)); diff != "" {
		t.Errorf("after Remove (-want +got):\n%s", diff)
	}
	if changes, err := Remove(ns, c); err != nil || len(changes) > 0 {
		t.Errorf("second Remove: %q, %v", changes, err)
	}
}

// After a crash the link is gone with its process, and the unreachable route is
// not: Remove does what is left to do.
func TestRemoveWithoutALink(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	l := addLink(t, nl, "weft0")
	before := state(t, nl)
	c := hostConfig()
	c.AddressesOn = ""
	set(t, ns, c)
	check(t, nl.LinkDel(l))
	changes, err := Remove(ns, c)
	check(t, err)
	if diff := cmp.Diff([]string{"drop unreachable fd12:3456:789a::/48"}, changes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, state(t, nl)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Without the link, what does not need it is done all the same (CVE-2024-25631:
// clear text while the store lagged): what refuses comes first.
func TestCVE202425631UnreachableBeforeTheLink(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	check(t, Prepare(ns))
	c := hostConfig()
	_, err := Set(ns, c)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Set without the link: %v, want ErrNotExist", err)
	}
	got := state(t, nl)
	if !strings.Contains(got, "unreachable fd12:3456:789a::/48") || strings.Count(got, "address") != 4 {
		t.Errorf("without the link:\n%s", got)
	}
	c.Link, c.Routes = "", nil
	set(t, ns, c)
}

// A route that the kernel refuses holds up none of the others.
func TestOneBadRoute(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	addLink(t, nl, "weft0")
	eth := addLink(t, nl, "eth0")
	check(t, nl.LinkSetUp(eth))
	c := hostConfig()
	check(t, nl.RouteAdd(&netlink.Route{Dst: netns.IPNet(c.Routes[1].Prefix), LinkIndex: eth.Attrs().Index, Protocol: unix.RTPROT_STATIC}))
	c.AddressesOn = ""
	_, err := Set(ns, c)
	if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "add route fd12:3456:789a:1:200:6::/96 dev weft0") {
		t.Errorf("Set: %v", err)
	}
	got := state(t, nl)
	for _, line := range []string{
		"route fd12:3456:789a:1:200:6::/96 eth0", "route fd12:3456:789a:0:200:6:0:1/128 weft0", "route fd12:3456:789a:1:200:7::/96 weft0",
	} {
		if !strings.Contains(got, line) {
			t.Errorf("no %s:\n%s", line, got)
		}
	}
}
