package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/peers/link"
	"github.com/weftmesh/weft/peers/netns"
)

const patience = 10 * time.Second

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not in %s: %s", patience, what)
		}
	}
}

func endpoint(n int) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("fd12:3456:789a:1:100:5:%x:0/112", n))
}

func mainAddr(n int) netip.Addr { return ipam.MainAddr(endpoint(n)) }

// hostAddr is the plane's own address in the machines' network.
func hostAddr() netip.Addr { return netip.MustParseAddr("fd12:3456:789a:1:100:5:0:1") }

// newPlane is a host's data plane without a firewall: who may talk to whom is not
// this package's business.
func newPlane(t testing.TB) *netns.Handle {
	t.Helper()
	needRoot(t)
	plane := newNamespace(t)
	check(t, link.Prepare(plane))
	_, err := link.Set(plane, link.Config{
		AddressesOn: "lo", Unreachable: netip.MustParsePrefix("fd12:3456:789a::/48"),
		Addresses: []link.Address{{Prefix: netip.PrefixFrom(hostAddr(), 128)}},
	})
	check(t, err)
	return plane
}

func newNamespace(t testing.TB) *netns.Handle {
	t.Helper()
	ns, err := netns.New()
	check(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

func handle(t testing.TB, ns *netns.Handle) *netlink.Handle {
	t.Helper()
	nl, err := ns.Netlink()
	check(t, err)
	t.Cleanup(nl.Close)
	return nl
}

func machine(n int) Machine {
	return Machine{Link: LinkName("acme", fmt.Sprint("web-", n)), Alias: fmt.Sprint("weft machine acme/web-", n), Endpoint: endpoint(n), MTU: 1420}
}

// ping sends one echo from a namespace and returns the time to the answer. An
// unreachable is an error.
func ping(ns *netns.Handle, to netip.Addr, size int, wait time.Duration) (time.Duration, error) {
	var conn *net.IPConn
	err := ns.Do(func() (err error) {
		conn, err = net.ListenIP("ip6:ipv6-icmp", nil)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	start := time.Now()
	if err := conn.SetDeadline(start.Add(wait)); err != nil {
		return 0, err
	}
	// The kernel fills in the checksum.
	if _, err := conn.WriteToIP(append([]byte{128, 0, 0, 0, 1, 2, 3, 4}, make([]byte, size)...), &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return 0, err
	}
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromIP(buf)
		switch {
		case err != nil:
			return 0, err
		case n > 0 && buf[0] == 129:
			return time.Since(start), nil
		case n > 0 && buf[0] < 128:
			return 0, fmt.Errorf("ICMPv6 type %d code %d from %s", buf[0], buf[1], from)
		}
	}
}

func mustPing(t *testing.T, what string, ns *netns.Handle, to netip.Addr) {
	t.Helper()
	if _, err := ping(ns, to, 0, patience); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// Two machines on a host reach each other, the host, and machines behind a tunnel;
// the first packet is not held up.
//
//	a --- plane ===tunnel=== far plane --- c
//	b ---'
func TestMachinesTalk(t *testing.T) {
	t.Parallel()
	plane, far := newPlane(t), newNamespace(t)
	check(t, link.Prepare(far))
	a, b, c := newNamespace(t), newNamespace(t), newNamespace(t)
	nl, farNL := handle(t, plane), handle(t, far)
	check(t, nl.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "weft0", MTU: 1420, TxQLen: -1},
		PeerName:  "weft0", PeerNamespace: netlink.NsFd(far.Fd()), PeerTxQLen: -1,
	}))
	// A veth pair stands for the tunnel; its ends need neighbours, which WireGuard
	// does not.
	tunnel := func(nl *netlink.Handle, own, other, to string) {
		l, err := nl.LinkByName("weft0")
		check(t, err)
		check(t, nl.AddrAdd(l, &netlink.Addr{IPNet: netns.IPNet(netip.MustParsePrefix(own + "/64")), Flags: unix.IFA_F_NODAD}))
		check(t, nl.LinkSetUp(l))
		check(t, nl.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: netip.MustParseAddr(other).AsSlice(), Dst: netns.IPNet(netip.MustParsePrefix(to))}))
	}
	tunnel(nl, "fe80::a", "fe80::b", "fd12:3456:789a:1:200:6::/96")
	tunnel(farNL, "fe80::b", "fe80::a", "fd12:3456:789a:1:100:5::/96")
	for own, s := range map[string]side{"fe80::a": {plane, nl}, "fe80::b": {far, farNL}} {
		l, err := s.nl.LinkByName("weft0")
		check(t, err)
		check(t, waitReady(func() (bool, error) { return s.ready(l, netip.MustParseAddr(own)) }))
	}

	check(t, Attach(plane, a, machine(1)))
	took, err := ping(a, hostAddr(), 0, patience)
	if err != nil {
		t.Fatalf("a to its host, at once: %v", err)
	}
	// Without nodad on either side this is over a second.
	if took > 900*time.Millisecond {
		t.Errorf("the first echo took %s", took)
	}
	check(t, Attach(plane, b, machine(2)))
	remote := machine(3)
	remote.Endpoint = netip.MustParsePrefix("fd12:3456:789a:1:200:6:1:0/112")
	check(t, Attach(far, c, remote))

	mustPing(t, "a to b", a, mainAddr(2))
	mustPing(t, "b to a", b, mainAddr(1))
	mustPing(t, "plane to a", plane, mainAddr(1))
	mustPing(t, "a to its gateway's host address", a, hostAddr())
	mustPing(t, "a to c, through the tunnel", a, ipam.MainAddr(remote.Endpoint))
	mustPing(t, "c to b, through the tunnel", c, mainAddr(2))
	// Nobody: an error, at once, from the host.
	if _, err := ping(a, netip.MustParseAddr("fd12:3456:789a:9::1"), 0, patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a to nowhere: %v, want an ICMPv6 error", err)
	}
}

// What Attach makes, as the two sides see it.
func TestAttachMakes(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	ns := newNamespace(t)
	m := machine(1)
	check(t, Attach(plane, ns, m))
	want := strings.TrimSpace(`
lo up mtu 65536
  fd12:3456:789a:1:100:5:0:1/128
` + m.Link + ` up mtu 1420 alias "weft machine acme/web-1"
  fe80::1/64
fd12:3456:789a:1:100:5:1:0/112 via fe80::2 dev ` + m.Link + ` proto 120
unreachable fd12:3456:789a::/48
neighbour fe80::2 dev ` + m.Link)
	if diff := cmp.Diff(want, view(t, plane)); diff != "" {
		t.Errorf("plane (-want +got):\n%s", diff)
	}
	want = strings.TrimSpace(`
lo up mtu 65536
eth0 up mtu 1420
  fd12:3456:789a:1:100:5:1:2/128
  fe80::2/64
::/0 via fe80::1 dev eth0 proto 120
neighbour fe80::1 dev eth0`)
	if diff := cmp.Diff(want, view(t, ns)); diff != "" {
		t.Errorf("machine (-want +got):\n%s", diff)
	}
	check(t, ns.Do(func() error {
		got, err := os.ReadFile(netns.Sysctl("net/ipv6/conf/eth0/accept_ra"))
		if strings.TrimSpace(string(got)) != "0" {
			t.Errorf("accept_ra %s", got)
		}
		return err
	}))
}

// view is a namespace as text.
func view(t testing.TB, ns *netns.Handle) string {
	t.Helper()
	nl, err := ns.Netlink()
	check(t, err)
	defer nl.Close()
	var b strings.Builder
	links, err := nl.LinkList()
	check(t, err)
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		state := "down"
		if a.Flags&net.FlagUp != 0 {
			state = "up"
		}
		fmt.Fprintf(&b, "%s %s mtu %d", a.Name, state, a.MTU)
		if a.Alias != "" {
			fmt.Fprintf(&b, " alias %q", a.Alias)
		}
		b.WriteByte('\n')
		addrs, err := netns.List(func() ([]netlink.Addr, error) { return nl.AddrList(l, netlink.FAMILY_V6) })
		check(t, err)
		for _, x := range addrs {
			if x.Flags&unix.IFA_F_TENTATIVE != 0 {
				fmt.Fprintf(&b, "  %s tentative\n", x.IPNet)
			} else if !x.IP.IsLoopback() {
				fmt.Fprintf(&b, "  %s\n", x.IPNet)
			}
		}
	}
	routes, err := netns.List(func() ([]netlink.Route, error) { return nl.RouteList(nil, netlink.FAMILY_V6) })
	check(t, err)
	for _, r := range routes {
		switch {
		case r.Protocol == unix.RTPROT_KERNEL:
		case r.Type == unix.RTN_UNREACHABLE:
			fmt.Fprintf(&b, "unreachable %s\n", r.Dst)
		case r.Gw != nil:
			fmt.Fprintf(&b, "%s via %s dev %s proto %d\n", r.Dst, r.Gw, names[r.LinkIndex], r.Protocol)
		default:
			fmt.Fprintf(&b, "%s dev %s proto %d\n", r.Dst, names[r.LinkIndex], r.Protocol)
		}
	}
	for _, l := range links {
		neighbours, err := nl.NeighList(l.Attrs().Index, netlink.FAMILY_V6)
		check(t, err)
		for _, n := range neighbours {
			if n.State == netlink.NUD_PERMANENT {
				fmt.Fprintf(&b, "neighbour %s dev %s\n", n.IP, names[n.LinkIndex])
			}
		}
	}
	return strings.TrimSpace(b.String())
}

// After a restart of the agent the same machine is attached again: the pair stays,
// and what somebody took away is put back.
func TestAttachAgainKeepsThePair(t *testing.T) {
	t.Parallel()
	plane, ns := newPlane(t), newNamespace(t)
	m := machine(1)
	check(t, Attach(plane, ns, m))
	out, in := handle(t, plane), handle(t, ns)
	outer, err := out.LinkByName(m.Link)
	check(t, err)
	inner, err := in.LinkByName("eth0")
	check(t, err)
	wantPlane, wantMachine := view(t, plane), view(t, ns)
	other := netlink.Route{Dst: netns.IPNet(endpoint(7)), LinkIndex: outer.Attrs().Index, Protocol: RouteProtocol}
	tests := []struct {
		name string
		do   func() error
	}{
		{"nothing happened", func() error { return nil }},
		{"the plane's route is gone", func() error {
			return out.RouteDel(&netlink.Route{Dst: netns.IPNet(m.Endpoint), LinkIndex: outer.Attrs().Index})
		}},
		{"a former endpoint's route is left over", func() error { return out.RouteAdd(&other) }},
		{"the gateway's address is gone", func() error {
			return out.AddrDel(outer, &netlink.Addr{IPNet: netns.IPNet(netip.PrefixFrom(Gateway(), 64))})
		}},
		{"the machine's address is gone", func() error {
			return in.AddrDel(inner, &netlink.Addr{IPNet: netns.IPNet(netip.PrefixFrom(mainAddr(1), 128))})
		}},
		{"the machine's default route is gone", func() error {
			return in.RouteDel(&netlink.Route{Dst: netns.IPNet(netip.MustParsePrefix("::/0")), LinkIndex: inner.Attrs().Index})
		}},
		{"the plane's end is down", func() error { return out.LinkSetDown(outer) }},
		{"the machine's end is down", func() error { return in.LinkSetDown(inner) }},
		{"another MTU", func() error { return errors.Join(out.LinkSetMTU(outer, 1500), in.LinkSetMTU(inner, 1300)) }},
		{"the plane's end has forgotten its neighbour", func() error {
			return out.NeighDel(&netlink.Neigh{LinkIndex: outer.Attrs().Index, IP: machineLocal().AsSlice()})
		}},
		{"the machine's end has another address", func() error { return in.LinkSetHardwareAddr(inner, net.HardwareAddr{2, 0, 0, 0, 0, 9}) }},
		{"another alias", func() error { return out.LinkSetAlias(outer, "mine") }},
	}
	for _, tt := range tests {
		check(t, tt.do())
		check(t, Attach(plane, ns, m))
		if diff := cmp.Diff(wantPlane, view(t, plane)); diff != "" {
			t.Errorf("%s: plane (-want +got):\n%s", tt.name, diff)
		}
		if diff := cmp.Diff(wantMachine, view(t, ns)); diff != "" {
			t.Errorf("%s: machine (-want +got):\n%s", tt.name, diff)
		}
		if l, err := out.LinkByName(m.Link); err != nil || l.Attrs().Index != outer.Attrs().Index {
			t.Errorf("%s: the pair was made anew (%v)", tt.name, err)
		}
		mustPing(t, tt.name, ns, hostAddr())
	}
}

// A pair that leads to another namespace is left over: a machine that ended a
// moment ago, or one that was started twice.
func TestAttachReplacesALeftover(t *testing.T) {
	t.Parallel()
	plane, before, after := newPlane(t), newNamespace(t), newNamespace(t)
	m := machine(1)
	check(t, Attach(plane, before, m))
	check(t, Attach(plane, after, m))
	mustPing(t, "the new one", after, hostAddr())
	if got := view(t, before); strings.Contains(got, "eth0") {
		t.Errorf("the former machine still has a link:\n%s", got)
	}
	// The same endpoint on another link: the route follows.
	third := newNamespace(t)
	moved := m
	moved.Link = LinkName("acme", "other")
	check(t, Attach(plane, third, moved))
	mustPing(t, "the same endpoint elsewhere", third, hostAddr())

	// A machine that has another eth0 is not ours to change.
	taken := newNamespace(t)
	check(t, handle(t, taken).LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: "x", PeerTxQLen: -1}))
	if err := Attach(plane, taken, machine(4)); err == nil || !strings.Contains(err.Error(), "another eth0") {
		t.Errorf("Attach: %v", err)
	}
}

func TestListAndDetach(t *testing.T) {
	t.Parallel()
	plane, a, b := newPlane(t), newNamespace(t), newNamespace(t)
	check(t, Attach(plane, a, machine(1)))
	check(t, Attach(plane, b, machine(2)))
	nl := handle(t, plane)
	// Not machines: a stranger's link, and the tunnel.
	for _, name := range []string{"veth7", "weft0"} {
		check(t, nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, PeerName: name + "p", PeerTxQLen: -1}))
	}
	in := handle(t, b)
	eth0, err := in.LinkByName("eth0")
	check(t, err)
	check(t, in.LinkSetDown(eth0))
	found := func(n int, alive bool) Found {
		m := machine(n)
		return Found{Link: m.Link, Alias: m.Alias, Endpoint: m.Endpoint, MTU: m.MTU, PeerAlive: alive}
	}
	byLink := cmpopts.SortSlices(func(a, b Found) bool { return a.Link < b.Link })
	list := func() []Found {
		got, err := List(plane)
		check(t, err)
		return got
	}
	if diff := cmp.Diff([]Found{found(1, true), found(2, false)}, list(), byLink, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for range 2 {
		check(t, Detach(plane, machine(1).Link))
	}
	if got := list(); len(got) != 1 || got[0].Link != machine(2).Link {
		t.Errorf("after Detach: %v", got)
	}
	if got := view(t, a); strings.Contains(got, "eth0") {
		t.Errorf("the detached machine still has a link:\n%s", got)
	}
	for _, name := range []string{"weft0", "lo", ""} {
		if err := Detach(plane, name); err == nil {
			t.Errorf("Detach %q: no error", name)
		}
	}
	// When a namespace ends, the kernel takes the pair away.
	in.Close()
	check(t, b.Close())
	eventually(t, "the pair of a namespace that ended is gone", func() bool { return len(list()) == 0 })
}

func TestAttachRefuses(t *testing.T) {
	t.Parallel()
	plane, ns := newPlane(t), newNamespace(t)
	tests := []struct {
		name   string
		change func(*Machine)
		want   string
	}{
		{"no link", func(m *Machine) { m.Link = "" }, "1 to 15 bytes"},
		{"long link", func(m *Machine) { m.Link = "m-12345678901234" }, "1 to 15 bytes"},
		{"endpoint of another length", func(m *Machine) { m.Endpoint = netip.PrefixFrom(mainAddr(1), 128) }, "want a /112"},
		{"no endpoint", func(m *Machine) { m.Endpoint = netip.Prefix{} }, "want a /112"},
		{"host bits", func(m *Machine) { m.Endpoint = netip.PrefixFrom(mainAddr(1), 112) }, "want a /112"},
		{"no MTU", func(m *Machine) { m.MTU = 0 }, "1280 to 65535"},
		{"long alias", func(m *Machine) { m.Alias = strings.Repeat("x", 256) }, "255"},
	}
	before := view(t, plane)
	for _, tt := range tests {
		m := machine(1)
		tt.change(&m)
		if err := Attach(plane, ns, m); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if err := Attach(plane, nil, machine(1)); err == nil {
		t.Error("the host's own namespace: no error")
	}
	if diff := cmp.Diff(before, view(t, plane)); diff != "" {
		t.Errorf("plane (-want +got):\n%s", diff)
	}
}

// Names are fixed: an agent of another version finds its machines.
func TestLinkName(t *testing.T) {
	t.Parallel()
	for _, tt := range [][3]string{{"acme", "web-1", "m-luypzuchng4ss"}, {"acme", "web-2", "m-p7yaynl4afem4"}, {"acm", "eweb-1", "m-ah3cdfuzaz4ua"}} {
		if got := LinkName(tt[0], tt[1]); got != tt[2] || len(got) != 15 {
			t.Errorf("LinkName(%q, %q) = %q, want %q", tt[0], tt[1], got, tt[2])
		}
	}
}

func FuzzLinkName(f *testing.F) {
	f.Add("acme", "web", "acme", "db")
	f.Fuzz(func(t *testing.T, org, id, org2, id2 string) {
		a, b := LinkName(org, id), LinkName(org2, id2)
		if len(a) != 15 || strings.ContainsAny(a, "/ \n") {
			t.Fatalf("%q cannot name a link", a)
		}
		// Orgs and ids are labels: no slash in them.
		if (a == b) != (org == org2 && id == id2) && !strings.Contains(org+id+org2+id2, "/") {
			t.Fatalf("%q/%q and %q/%q: %q and %q", org, id, org2, id2, a, b)
		}
	})
}
