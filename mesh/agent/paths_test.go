package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/peers/netns"
)

func TestSizesOf(t *testing.T) {
	t.Parallel()
	hosts := []mesh.ViewHost{
		{Name: "b", Key: mesh.Key(keyOf(2)), Endpoints: []netip.AddrPort{addrPort("192.0.2.2:51820")}},
		{Name: "c", Key: mesh.Key(keyOf(3)), Endpoints: []netip.AddrPort{addrPort("192.0.2.3:51820")}},
		{Name: "nat", Key: mesh.Key(keyOf(4))},
	}
	b, c := addr("192.0.2.2"), addr("192.0.2.3")
	type ways = map[netip.Addr]int
	for _, tt := range []struct {
		name       string
		configured int
		ways       ways
		others     int
		measured   probe.Results
		link       int
		hosts      map[string]int // MTU by host, of those with another one than the link's
		narrow     string
	}{
		{name: "nothing is known", link: 1420},
		{name: "as usual", ways: ways{b: 1500, c: 1500}, link: 1420},
		{name: "jumbo frames", ways: ways{b: 9000, c: 9000}, link: 1420},
		{name: "jumbo frames, as configured", configured: 8900, ways: ways{b: 9000, c: 9000}, link: 8900},
		{name: "one way is narrower: its host's routes alone are", ways: ways{b: 1500, c: 1400}, link: 1420, hosts: map[string]int{"c": 1320}},
		{name: "all are narrower: so is the link", ways: ways{b: 1450, c: 1400}, link: 1370, hosts: map[string]int{"c": 1320}},
		{name: "narrower than IPv6 allows", ways: ways{b: 1500, c: 1300}, link: 1420, hosts: map[string]int{"c": 1280}},
		{name: "no way to a host", ways: ways{b: 1450, c: 0}, link: 1370},
		{name: "no ways, a default route", others: 1400, link: 1320},
		{name: "all arrives", ways: ways{b: 1500, c: 1500}, measured: probe.Results{"b": {MTU: 1420}}, link: 1420},
		{name: "less arrives", ways: ways{b: 1500, c: 1500}, measured: probe.Results{"b": {MTU: 1328}}, link: 1420, hosts: map[string]int{"b": 1328}, narrow: "b"},
		{name: "less than the route says arrives", ways: ways{b: 1400, c: 1500}, measured: probe.Results{"b": {MTU: 1296}}, link: 1420, hosts: map[string]int{"b": 1296}, narrow: "b"},
		{name: "what was measured is more than the route says now", ways: ways{b: 1400, c: 1500}, measured: probe.Results{"b": {MTU: 1420}}, link: 1420, hosts: map[string]int{"b": 1320}},
		{name: "not even the least arrives", ways: ways{b: 1500, c: 1500}, measured: probe.Results{"b": {MTU: 1280, Tiny: true}}, link: 1420, hosts: map[string]int{"b": 1280}, narrow: "b"},
		{name: "nor where the least is all that was asked for", ways: ways{b: 1500, c: 1300}, measured: probe.Results{"c": {MTU: 1280, Tiny: true}}, link: 1420, hosts: map[string]int{"c": 1280}, narrow: "c"},
		{name: "configured, and less arrives", configured: 1400, ways: ways{b: 1500, c: 1500}, measured: probe.Results{"b": {MTU: 1328}}, link: 1400, hosts: map[string]int{"b": 1328}, narrow: "b"},
	} {
		s := sizesOf(tt.configured, hosts, tt.ways, tt.others, tt.measured)
		if s.link != tt.link {
			t.Errorf("%s: link %d, want %d", tt.name, s.link, tt.link)
		}
		narrow := ""
		for _, h := range hosts {
			want := tt.link
			if other := tt.hosts[h.Name]; other != 0 {
				want = other
			}
			if got := s.hosts[h.Name]; got.mtu != want {
				t.Errorf("%s: %s has %d, want %d", tt.name, h.Name, got.mtu, want)
			} else if got.narrow() {
				narrow += h.Name
			}
			prefix := netip.MustParsePrefix("fd12:3456:789a:1:200:2::/96")
			if route := s.route(prefix, wgtypes.Key(h.Key)); route != tt.hosts[h.Name] {
				t.Errorf("%s: route to %s: %d, want %d", tt.name, h.Name, route, tt.hosts[h.Name])
			}
			if route := s.route(netip.PrefixFrom(prefix.Addr(), 128), wgtypes.Key(h.Key)); route != 0 {
				t.Errorf("%s: the way of the probes to %s is as narrow as their result", tt.name, h.Name)
			}
		}
		if narrow != tt.narrow {
			t.Errorf("%s: narrow are %q, want %q", tt.name, narrow, tt.narrow)
		}
	}
}

// Routes with the MTUs of their peers, and otherwise those that the view says.
func TestPeerRoutes(t *testing.T) {
	t.Parallel()
	v := sampleView(t)
	var plain []netip.Prefix
	for _, r := range peerRoutes(v, nil) {
		if r.MTU != 0 {
			t.Errorf("route %v: nothing is known of sizes", r)
		}
		plain = append(plain, r.Prefix)
	}
	if diff := cmp.Diff(v.Routes(), plain, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s := sizesOf(0, v.Hosts, nil, 1500, probe.Results{"b": {MTU: 1328}})
	narrow := 0
	for _, r := range peerRoutes(v, s) {
		if r.MTU != 0 {
			narrow++
			if r.MTU != 1328 || r.Prefix.Bits() == 128 {
				t.Errorf("route %v", r)
			}
		}
	}
	if narrow == 0 {
		t.Error("no route to b is narrow")
	}
}

// What each state of a one-way tunnel is taken for. Fly.io 2026-04: tunnels went one-way
// although handshakes succeeded.
func TestOneWayCauses(t *testing.T) {
	t.Parallel()
	const out, in, never = probe.WayLostOut, probe.WayLostIn, probe.Never
	at := addrPort("192.0.2.2:51820")
	for _, tt := range []struct {
		name string
		x    oneWay
		want []string
	}{
		{"just begun: the underlay", oneWay{way: out, since: time.Second, handshake: 90 * time.Second, endpoint: at},
			[]string{"what is sent to it is lost", "likely a firewall", "from this host to host b", "on host b whether UDP packets of this host reach 192.0.2.2:51820"}},
		{"the other way round", oneWay{way: in, since: time.Second, handshake: 90 * time.Second, endpoint: at},
			[]string{"what it sends is lost", "likely a firewall", "from host b to this host", "whether UDP packets of 192.0.2.2:51820 reach port 51820 here"}},
		{"long since, and no handshake either", oneWay{way: out, since: time.Minute, handshake: 90 * time.Second, endpoint: at}, []string{"likely a firewall"}},
		{"no handshake ever", oneWay{way: out, since: time.Minute, handshake: never}, []string{"likely a firewall", "reach its endpoint"}},
		{"handshakes succeed all the same", oneWay{way: out, since: time.Minute, handshake: 5 * time.Second},
			[]string{"although handshakes succeed (the last one 5s ago)", "host b drops what it decrypts", "or something on the way lets handshakes pass"}},
		{"and the other way round", oneWay{way: in, since: time.Minute, handshake: 5 * time.Second},
			[]string{"although handshakes succeed", "this host drops what it decrypts"}},
		{"a handshake of before proves nothing", oneWay{way: out, since: 25 * time.Second, handshake: 24 * time.Second}, []string{"likely a firewall"}},
		{"they decrypt it", oneWay{way: out, since: time.Second, handshake: 90 * time.Second, theyDo: true},
			[]string{"host b decrypts it and then drops it", "allowed IPs", "look on host b"}},
		{"we decrypt it", oneWay{way: in, since: time.Second, handshake: 90 * time.Second, decrypts: true},
			[]string{"this host decrypts it and then drops it", "allowed IPs", "look on this host"}},
		{"what we decrypt says nothing of the other direction", oneWay{way: out, since: time.Second, handshake: never, decrypts: true}, []string{"likely a firewall"}},
	} {
		tt.x.host, tt.x.port = "b", 51820
		got := tt.x.sentence()
		for _, want := range append(tt.want, "tunnel to host b is one-way") {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in %q", tt.name, want, got)
			}
		}
	}
}

func TestNarrowSentence(t *testing.T) {
	t.Parallel()
	at := addrPort("192.0.2.2:51820")
	for _, tt := range []struct {
		size hostSize
		want string
	}{
		{hostSize{underlay: 1500, top: 1420, mtu: 1376}, `packets over 1376 bytes to host fra2 do not arrive; MTU lowered to 1376; the underlay's route says 1500; look at the MTUs on the underlay's path to 192.0.2.2, and whether ICMP "too big" is filtered there`},
		{hostSize{underlay: 1500, top: 1420, mtu: 1280, tiny: true}, `packets of 1280 bytes to host fra2 do not arrive, and IPv6 allows no smaller MTU; the underlay's route says 1500; look at the MTUs on the underlay's path to 192.0.2.2, and whether ICMP "too big" is filtered there`},
	} {
		if got := narrowSentence("fra2", tt.size, at); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

func TestAnnotate(t *testing.T) {
	t.Parallel()
	v := sampleView(t)
	var list []local.Peer
	for _, h := range v.Hosts {
		list = append(list, local.Peer{Name: "host/" + h.Name, Key: h.Key.String(), State: local.PeerSuspect})
	}
	list = append(list, local.Peer{Name: "client/acme/anna", Key: keyOf(50).String(), State: local.PeerUnmeasured})
	measured := probe.Results{"b": {Suspect: true, Way: probe.WayLostIn, MTU: 1328}, "c": {Suspect: true}}
	annotate(list, v, measured, sizesOf(0, v.Hosts, nil, 1500, measured))
	for _, p := range list {
		want := local.Peer{Name: p.Name, Key: p.Key, State: local.PeerSuspect, MTU: 1420}
		switch p.Name {
		case "host/b":
			want.State, want.Lost, want.MTU = local.PeerOneWay, local.LostIn, 1328
		case "client/acme/anna":
			want.State, want.MTU = local.PeerUnmeasured, 0
		}
		if p != want {
			t.Errorf("got %+v, want %+v", p, want)
		}
	}
}

// The underlay's ways as the kernel says them; and its changes are seen when they happen,
// one look for many at once.
func TestUnderlay(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	nl, err := ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "under0", MTU: 1450}, PeerName: "peer0"}))
	peer, err := nl.LinkByName("peer0")
	must(err)
	under, err := nl.LinkByName("under0")
	must(err)
	must(nl.LinkSetUp(peer))
	must(nl.LinkSetUp(under))
	route := func(to string, mtu int) *netlink.Route {
		_, dst, err := net.ParseCIDR(to)
		must(err)
		return &netlink.Route{Dst: dst, LinkIndex: under.Attrs().Index, MTU: mtu, Scope: netlink.SCOPE_LINK}
	}
	must(nl.AddrAdd(under, &netlink.Addr{IPNet: netns.IPNet(netip.MustParsePrefix("192.0.2.1/24"))}))
	must(nl.RouteAdd(route("192.0.2.7/32", 1400)))

	looks := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ns.Do(func() error {
			watchUnderlay(ctx, func() {
				ways, others, err := underlayWays([]netip.Addr{addr("192.0.2.2"), addr("192.0.2.7"), addr("198.51.100.1")}, true)
				looks <- fmt.Sprint(ways, others, err)
			})
			return nil
		})
	}()
	sees := func(want string) {
		t.Helper()
		deadline := time.After(5 * time.Second)
		for got := ""; ; {
			select {
			case got = <-looks:
				if got == want {
					return
				}
			case <-deadline:
				t.Fatalf("seen %s, want %s", got, want)
			}
		}
	}
	sees("[1450 1400 0] 0 <nil>")
	must(nl.RouteAdd(route("0.0.0.0/0", 1300)))
	sees("[1450 1400 1300] 1300 <nil>")
	must(nl.LinkSetMTU(under, 1440))
	sees("[1440 1400 1300] 1300 <nil>")
	for i := range 200 {
		must(nl.RouteAdd(route(fmt.Sprintf("198.51.100.%d/32", i+2), 0)))
	}
	must(nl.RouteDel(route("192.0.2.7/32", 1400)))
	sees("[1440 1440 1300] 1300 <nil>")
	if n := len(looks); n > 5 {
		t.Errorf("%d looks more for 200 routes", n)
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("it did not end with its context")
	}
}
