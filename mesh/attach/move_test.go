package attach

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/peers/link"
	"github.com/weftmesh/weft/peers/netns"
)

// out is the link that the plane sends what is for the machine's address to.
func out(t *testing.T, plane *netns.Handle, endpoint netip.Prefix) string {
	t.Helper()
	nl := handle(t, plane)
	routes, err := nl.RouteGet(ipam.MainAddr(endpoint).AsSlice())
	if err != nil || len(routes) != 1 {
		return "" // unreachable
	}
	l, err := nl.LinkByIndex(routes[0].LinkIndex)
	check(t, err)
	return l.Attrs().Name
}

// A machine that is being moved gets nothing before its time; then its link goes
// before the way to where else the view has it, whichever of the two is set first,
// and when the link goes the other way is in force without anybody's doing.
func TestRouteGoesAheadOfTheTunnels(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	nl := handle(t, plane)
	check(t, nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "weft0", MTU: 1420, TxQLen: -1}, PeerName: "other"}))
	for _, name := range []string{"weft0", "other"} {
		l, err := nl.LinkByName(name)
		check(t, err)
		check(t, nl.LinkSetUp(l))
	}
	mesh := link.Config{
		Link: "weft0", AddressesOn: "lo", MTU: 1420, Up: true, Unreachable: netip.MustParsePrefix("fd12:3456:789a::/48"),
		Addresses: []link.Address{{Prefix: netip.PrefixFrom(hostAddr(), 128)}},
	}
	away := mesh
	away.Routes = []link.Route{{Prefix: endpoint(1)}}
	set := func(c link.Config) {
		t.Helper()
		_, err := link.Set(plane, c)
		check(t, err)
		if again, err := link.Set(plane, c); err != nil || len(again) > 0 {
			t.Errorf("set again: %v, %v", again, err)
		}
	}
	is := func(when, want string) {
		t.Helper()
		if got := out(t, plane, endpoint(1)); got != want {
			t.Errorf("%s: sent to %q, want %q", when, got, want)
		}
	}
	m := machine(1)
	m.Unrouted = true
	if err := Route(plane, m.Link, m.Endpoint); err == nil {
		t.Error("routed to a link that is not there")
	}
	set(away)
	ns := newNamespace(t)
	check(t, Attach(plane, ns, m))
	is("attached", "weft0")
	check(t, Route(plane, m.Link, m.Endpoint))
	is("routed", m.Link)
	mustPing(t, "the plane to the machine", plane, mainAddr(1))
	set(mesh)
	is("it is at home", m.Link)
	set(away)
	is("it is elsewhere now", m.Link)
	check(t, Detach(plane, m.Link))
	is("its link is gone", "weft0")
}

// Routes that older agents made, with the kernel's own metric or without a gateway, are
// replaced.
func TestRouteOfAnOlderAgent(t *testing.T) {
	t.Parallel()
	plane, ns := newPlane(t), newNamespace(t)
	m := machine(1)
	check(t, Attach(plane, ns, m))
	nl := handle(t, plane)
	l, err := nl.LinkByName(m.Link)
	check(t, err)
	old := netlink.Route{LinkIndex: l.Attrs().Index, Protocol: RouteProtocol, Dst: netns.IPNet(m.Endpoint)}
	check(t, nl.RouteAdd(&old))
	later := old
	later.Priority = routeMetric
	check(t, nl.RouteDel(routeTo(l, m.Endpoint)))
	check(t, nl.RouteAdd(&later)) // without a gateway
	check(t, Attach(plane, ns, m))
	routes, err := nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: RouteProtocol, LinkIndex: l.Attrs().Index}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF)
	check(t, err)
	if len(routes) != 1 || routes[0].Priority != routeMetric || !routes[0].Gw.Equal(machineLocal().AsSlice()) {
		t.Errorf("routes: %v", routes)
	}
}

func TestInState(t *testing.T) {
	t.Parallel()
	const tcp = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1
   1: 00000000000000000000000000000000:0007 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18 1
   2: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 19 1
`
	for _, tt := range []struct {
		table, state string
		want         int
	}{{tcp, tcpListen, 2}, {tcp, udpOpen, 0}, {"", tcpListen, 0}, {"  sl  local_address  0A\n", tcpListen, 0}} {
		if got := inState(tt.table, tt.state); got != tt.want {
			t.Errorf("%d in state %s, want %d of\n%s", got, tt.state, tt.want, tt.table)
		}
	}
}

// Listeners sees the sockets of the namespace that a thread holds, and no others.
func TestListeners(t *testing.T) {
	t.Parallel()
	needRoot(t)
	elsewhere, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer elsewhere.Close()
	ns := newNamespace(t)
	check(t, ns.Do(func() error {
		is := func(what string, want int) {
			t.Helper()
			if got, err := Listeners(unix.Gettid()); err != nil || got != want {
				t.Errorf("%s: %d, %v; want %d", what, got, err, want)
			}
		}
		is("nothing listens", 0)
		tcp, err := net.Listen("tcp6", "[::]:80")
		if err != nil {
			return err
		}
		is("one that listens", 1)
		udp, err := net.ListenPacket("udp6", "[::]:80")
		if err != nil {
			return err
		}
		is("and one of UDP", 2)
		tcp.Close()
		udp.Close()
		deadline := time.Now().Add(5 * time.Second)
		for n := 2; n != 0 && time.Now().Before(deadline); n, _ = Listeners(unix.Gettid()) {
		}
		is("both are closed", 0)
		return nil
	}))
}
