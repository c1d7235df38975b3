package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
}

// must returns v, or panics: for constants of tests and for set-up code.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// addr completes an address of the test's mesh, fd12:3456:789a::/48.
func addr(s string) netip.Addr { return netip.MustParseAddr("fd12:3456:789a:" + s) }

func endpoint(s string) netip.Prefix { return netip.PrefixFrom(addr(s), 112).Masked() }

// testPolicy is host 5 of region 1 with networks 1 and 2, machines a and b of
// network 1 and c of network 2.
func testPolicy() peers.Policy {
	network := func(n string) peers.Network {
		return peers.Network{
			Prefix: netip.PrefixFrom(addr(n+"::"), 64), Host: addr(n + ":100:5:0:1"), Resolver: addr(n + "::3"),
		}
	}
	return peers.Policy{
		Link: "weft0", Mesh: netip.MustParsePrefix("fd12:3456:789a::/48"),
		Resolver: addr(":3"), Self: addr("0:100:5:0:1"), ProbePort: 7447,
		Networks: []peers.Network{network("1"), network("2")},
		Attachments: []peers.Attachment{
			{Link: "m-a", Endpoint: endpoint("1:100:5:1:2")},
			{Link: "m-b", Endpoint: endpoint("1:100:5:2:2")},
			{Link: "m-c", Endpoint: endpoint("2:100:5:3:2")},
		},
		// Tests are not slowed down by what bounds machines: see TestRates.
		Rates: peers.Rates{Neighbour: 1 << 20, Echo: 1 << 20, Errors: 1 << 20, Queries: 1 << 20},
	}
}

func newFirewall(t testing.TB) (*Firewall, *netns.Handle) {
	t.Helper()
	needRoot(t)
	plane, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plane.Close() })
	f, err := New(plane, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Skipf("no nftables here: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	return f, plane
}

func set(t testing.TB, f *Firewall, p peers.Policy) (changed bool) {
	t.Helper()
	changed, err := f.Set(context.Background(), p)
	if err != nil {
		t.Fatalf("Set: %v", err)
	}
	return changed
}

// lab is a host's data plane between machines, each a namespace behind a veth
// pair, and a tunnel, which is a TUN held by the test:
//
//	a (network 1) --- m-a --.
//	b (network 1) --- m-b --- plane --- weft0 --- tunnel: other hosts, clients
//	c (network 2) --- m-c --'
//
// The test speaks for all of them, packet by packet, past their own stacks.
type lab struct {
	*Firewall
	plane *netns.Handle
	ports map[string]*port // a, b, c, tunnel
}

// port is a place where packets are sent and seen.
type port struct {
	name   string
	ns     *netns.Handle // of a machine
	file   *os.File
	header []byte // link layer of what is sent
	seen   chan []byte
}

func newLab(t testing.TB) *lab {
	t.Helper()
	return newLabOf(t, testPolicy(), true)
}

// newLabOf makes the lab of a policy. Machines that are mute have no addresses: they
// say nothing but what the test says for them.
func newLabOf(t testing.TB, p peers.Policy, speaking bool) *lab {
	t.Helper()
	f, plane := newFirewall(t)
	l := &lab{f, plane, map[string]*port{}}
	set(t, f, p)

	nl, err := plane.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	sysctl(t, plane, "net/ipv6/conf/all/forwarding", "1")
	// Every refusal is to be seen, not one a second.
	sysctl(t, plane, "net/ipv6/icmp/ratelimit", "0")
	sysctl(t, plane, "net/ipv6/icmp/ratemask", "\n")
	lo := must(nl.LinkByName("lo"))
	check(t, nl.LinkSetUp(lo))
	local := []netip.Addr{p.Self, p.Resolver}
	for _, n := range p.Networks {
		local = append(local, n.Host, n.Resolver)
	}
	for _, a := range local {
		addAddr(t, nl, lo, netip.PrefixFrom(a, 128), a.As16()[15] == 3)
	}
	for _, a := range p.Attachments {
		l.addMachine(t, nl, a, speaking)
	}
	var routes []string
	for _, n := range []string{"0", "1", "2", "3", "6"} {
		far := n + ":200:6::/96"
		if prefix(far).Contains(p.Self) || slices.ContainsFunc(p.Networks, func(n peers.Network) bool { return prefix(far).Contains(n.Host) }) {
			far = n + ":100:5::/96" // this is the other one
		}
		routes = append(routes, far)
	}
	l.addTunnel(t, nl, p.Link, 1300, routes...)
	return l
}

func (l *lab) addMachine(t testing.TB, nl *netlink.Handle, a peers.Attachment, speaking bool) {
	t.Helper()
	ns := must(netns.New())
	t.Cleanup(func() { ns.Close() })
	// A carrier that comes late would cost the first packets.
	check(t, nl.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: a.Link, MTU: 1420, TxQLen: -1},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(ns.Fd()), PeerTxQLen: -1,
	}))
	outer := must(nl.LinkByName(a.Link))
	inside := must(ns.Netlink())
	defer inside.Close()
	inner := must(inside.LinkByName("eth0"))

	check(t, inside.LinkSetIP6AddrGenMode(inner, 1))
	main, other := a.Endpoint.Addr().As16(), a.Endpoint.Addr().As16()
	main[15], other[15] = 2, 0x99
	own := []netip.Addr{netip.AddrFrom16(other), netip.AddrFrom16(main)}
	if !speaking {
		for _, x := range append(own, netip.MustParseAddr("fe80::2")) {
			check(t, nl.NeighAdd(&netlink.Neigh{LinkIndex: outer.Attrs().Index, IP: x.AsSlice(), HardwareAddr: inner.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT}))
		}
		own = []netip.Addr{netip.MustParseAddr("fe80::99")}
	}
	for _, x := range own {
		addAddr(t, inside, inner, netip.PrefixFrom(x, 128), false)
	}
	check(t, inside.LinkSetUp(inner))

	check(t, nl.LinkSetIP6AddrGenMode(outer, 1))
	addAddr(t, nl, outer, netip.MustParsePrefix("fe80::1/64"), false)
	check(t, nl.LinkSetUp(outer))
	check(t, nl.RouteAdd(&netlink.Route{LinkIndex: outer.Attrs().Index, Dst: netns.IPNet(a.Endpoint)}))

	// Both ends carry packets, and are heard: neighbour discovery that is lost before
	// that is tried again a second later.
	awaitLink(t, inside, inner, own[len(own)-1])
	awaitLink(t, nl, outer, netip.MustParseAddr("fe80::1"))

	name := strings.TrimPrefix(a.Link, "m-")
	header := append(append([]byte{}, outer.Attrs().HardwareAddr...), inner.Attrs().HardwareAddr...)
	p := &port{name: name, ns: ns, header: binary.BigEndian.AppendUint16(header, unix.ETH_P_IPV6)}
	check(t, ns.Do(func() (err error) {
		p.file, err = packetSocket("eth0")
		return err
	}))
	l.add(t, p)
}

func awaitLink(t testing.TB, nl *netlink.Handle, link netlink.Link, a netip.Addr) {
	t.Helper()
	eventually(t, link.Attrs().Name+" is ready", func() bool {
		now, err := nl.LinkByIndex(link.Attrs().Index)
		check(t, err)
		routes, err := nl.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{IifIndex: link.Attrs().Index})
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL && now.Attrs().OperState == netlink.OperUp
	})
}

func (l *lab) addTunnel(t testing.TB, nl *netlink.Handle, name string, mtu int, routes ...string) {
	t.Helper()
	p := &port{name: "tunnel"}
	check(t, l.plane.Do(func() (err error) {
		p.file, err = openTUN(name)
		return err
	}))
	link := must(nl.LinkByName(name))
	check(t, nl.LinkSetIP6AddrGenMode(link, 1))
	check(t, nl.LinkSetMTU(link, mtu))
	check(t, nl.LinkSetTxQLen(link, 8192))
	check(t, nl.LinkSetUp(link))
	for _, r := range routes {
		check(t, nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netns.IPNet(netip.MustParsePrefix("fd12:3456:789a:" + r))}))
	}
	l.add(t, p)
}

// add starts the port's reader. It ends with the file.
func (l *lab) add(t testing.TB, p *port) {
	p.seen = make(chan []byte, 8192)
	done, skip := make(chan struct{}), len(p.header)
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, err := p.file.Read(buf)
			if err != nil {
				return
			}
			if n < skip {
				continue
			}
			select {
			case p.seen <- append([]byte{}, buf[skip:n]...):
			default: // nobody looks
			}
		}
	}()
	t.Cleanup(func() { p.file.Close(); <-done })
	l.ports[p.name] = p
}

func (p *port) send(t testing.TB, packet []byte) {
	t.Helper()
	if _, err := p.file.Write(append(append([]byte{}, p.header...), packet...)); err != nil {
		t.Fatalf("send from %s: %v", p.name, err)
	}
}

// wait returns the first packet that is seen and that match likes, nil if there is
// none in time.
func (p *port) wait(d time.Duration, match func(packet []byte) bool) []byte {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case packet := <-p.seen:
			if match(packet) {
				return packet
			}
		case <-timer.C:
			return nil
		}
	}
}

// packetSocket sees and sends the frames of one link.
func packetSocket(link string) (*os.File, error) {
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	proto := int(binary.NativeEndian.Uint16([]byte{unix.ETH_P_IPV6 >> 8, unix.ETH_P_IPV6 & 0xff}))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(proto), Ifindex: ifi.Index}),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20))
	return os.NewFile(uintptr(fd), link), err
}

func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func addAddr(t testing.TB, nl *netlink.Handle, l netlink.Link, a netip.Prefix, deprecated bool) {
	t.Helper()
	x := &netlink.Addr{IPNet: netns.IPNet(a), Flags: unix.IFA_F_NODAD}
	if deprecated {
		x.ValidLft = 0xffffffff
	}
	check(t, nl.AddrAdd(l, x))
}

func sysctl(t testing.TB, ns *netns.Handle, name, value string) {
	t.Helper()
	check(t, ns.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
