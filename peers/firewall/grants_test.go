package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/peers"
)

// prefix completes a prefix of the test's mesh.
func prefix(s string) netip.Prefix { return netip.MustParsePrefix("fd12:3456:789a:" + s) }

// grant is "FROM TO PROTOCOL FIRST LAST", with 0 for all.
func grant(from, to string, protocol uint8, first, last uint16) peers.Grant {
	return peers.Grant{From: prefix(from), To: prefix(to), Protocol: protocol, FirstPort: first, LastPort: last}
}

const tcp, udp6, icmp6 = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6

func boxTexts(b boxes) (out []string) {
	for _, list := range [][]box{b.wide, b.narrow} {
		for _, x := range list {
			out = append(out, strings.ReplaceAll(x.String(), "fd12:3456:789a:", ""))
		}
	}
	return out
}

func TestNormalise(t *testing.T) {
	t.Parallel()
	const e, f = "1:100:5:1:0/112", "2:100:5:3:0/112"
	tests := []struct {
		name   string
		grants []peers.Grant
		want   []string
	}{
		{"nothing", nil, nil},
		{"one port", []peers.Grant{grant("1::/64", f, tcp, 80, 80)}, []string{"1::/64 . 2:100:5:3:0/112 . tcp . 80-80"}},
		{"all", []peers.Grant{grant(e, f, 0, 0, 0)}, []string{
			e + " . " + f + " . tcp . 0-65535", e + " . " + f + " . udp . 0-65535", e + " . " + f + " . icmpv6 . 32768-32768"}},
		{"ports say nothing of ICMPv6", []peers.Grant{grant(e, f, 0, 53, 53)}, []string{
			e + " . " + f + " . tcp . 53-53", e + " . " + f + " . udp . 53-53"}},
		{"ranges touch", []peers.Grant{grant(e, f, tcp, 80, 81), grant(e, f, tcp, 82, 90), grant(e, f, tcp, 92, 92)}, []string{
			e + " . " + f + " . tcp . 80-90", e + " . " + f + " . tcp . 92-92"}},
		{"ranges overlap to the last port", []peers.Grant{grant(e, f, tcp, 1000, 65535), grant(e, f, tcp, 900, 65535)}, []string{
			e + " . " + f + " . tcp . 900-65535"}},
		{"an endpoint in its network", []peers.Grant{grant("1::/64", "2::/64", tcp, 80, 80), grant(e, f, tcp, 79, 81)}, []string{
			"1::/64 . 2::/64 . tcp . 80-80", e + " . " + f + " . tcp . 79-79", e + " . " + f + " . tcp . 81-81"}},
		{"all of it in a wider one", []peers.Grant{grant(e, f, tcp, 80, 80), grant("1::/64", f, 0, 0, 0)}, []string{
			"1::/64 . " + f + " . tcp . 0-65535", "1::/64 . " + f + " . udp . 0-65535", "1::/64 . " + f + " . icmpv6 . 32768-32768"}},
		{"they cross", []peers.Grant{grant("1::/64", f, tcp, 80, 80), grant(e, "2::/64", tcp, 80, 80)}, []string{
			"1::/64 . " + f + " . tcp . 80-80", e + " . 2::/64 . tcp . 80-80"}},
		{"the other way is another", []peers.Grant{grant("1::/64", "2::/64", tcp, 80, 80), grant("2::/64", "1::/64", tcp, 80, 80)}, []string{
			"1::/64 . 2::/64 . tcp . 80-80", "2::/64 . 1::/64 . tcp . 80-80"}},
	}
	for _, tt := range tests {
		p := testPolicy()
		p.Grants = tt.grants
		got, refused := normalise(p)
		if diff := cmp.Diff(tt.want, boxTexts(got)); diff != "" || len(refused) != 0 {
			t.Errorf("%s: refused %v (-want +got):\n%s", tt.name, refused, diff)
		}
	}
}

// A bad grant is left out, with a reason, and the others are in force.
func TestBadGrantsAreLeftOut(t *testing.T) {
	t.Parallel()
	good := grant("1::/64", "2::/64", tcp, 80, 80)
	tests := []struct {
		bad  peers.Grant
		want string
	}{
		{peers.Grant{}, "want a /64 or a /112"},
		{peers.Grant{From: prefix("1::/64")}, "want a /64 or a /112"},
		{peers.Grant{From: netip.MustParsePrefix("10.0.0.0/8"), To: prefix("2::/64")}, "want a /64 or a /112"},
		{peers.Grant{From: netip.PrefixFrom(addr("1::1"), 64), To: prefix("2::/64")}, "want a /64 or a /112"},
		{grant("1::/96", "2::/64", tcp, 0, 0), "want a /64 or a /112"},
		{grant("1:100:5:1:2/128", "2::/64", tcp, 0, 0), "want a /64 or a /112"},
		{peers.Grant{From: netip.MustParsePrefix("2001:db8::/64"), To: prefix("2::/64")}, "outside the mesh"},
		{grant("0::/64", "2::/64", 0, 0, 0), "the hosts' own"},
		{grant("1::/64", "0:100:6:0:0/112", 0, 0, 0), "the hosts' own"},
		{grant("1::/64", "1::/64", 0, 0, 0), "one network"},
		{grant("1:100:5:1:0/112", "1:100:5:2:0/112", 0, 0, 0), "one network"},
		{grant("1::/64", "2::/64", tcp, 81, 80), "the first is above the last"},
		{grant("1::/64", "2::/64", tcp, 81, 0), "the first is above the last"},
		{grant("1::/64", "2::/64", icmp6, 1, 80), "no ports"},
		{grant("1::/64", "2::/64", 47, 0, 0), "want TCP, UDP or ICMPv6"},
	}
	for _, tt := range tests {
		p := testPolicy()
		p.Grants = []peers.Grant{tt.bad, good}
		table, err := Render(p)
		if err != nil {
			t.Errorf("%v: %v", tt.bad, err)
			continue
		}
		if len(table.Refused) != 1 || table.Refused[0].Grant != tt.bad || !strings.Contains(table.Refused[0].Reason, tt.want) {
			t.Errorf("%v: refused %v, want one: %q", tt.bad, table.Refused, tt.want)
		}
		if diff := cmp.Diff([]string{"1::/64 . 2::/64 . tcp . 80-80"}, boxTexts(table.grants)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.bad, diff)
		}
	}
}

// grants are few ends, protocols and ports, so that they meet; some are bad.
func grants() *rapid.Generator[[]peers.Grant] {
	ends := rapid.SampledFrom([]string{"1::/64", "1:100:5:1:0/112", "1:100:5:2:0/112", "2::/64", "2:100:5:3:0/112", "2:ffff:ffff:ffff:0/112", "4::/64", "0::/64", "4::/80"})
	port := rapid.OneOf(rapid.SampledFrom([]uint16{0, 1, 2, 80, 81, echoPort, 65534, 65535}), rapid.Uint16())
	one := rapid.Custom(func(t *rapid.T) peers.Grant {
		g := grant(ends.Draw(t, "from"), ends.Draw(t, "to"), rapid.SampledFrom([]uint8{0, tcp, tcp, udp6, icmp6, 47}).Draw(t, "protocol"), 0, 0)
		if rapid.Bool().Draw(t, "has ports") {
			g.FirstPort, g.LastPort = port.Draw(t, "first"), port.Draw(t, "last")
			if rapid.IntRange(0, 9).Draw(t, "order") > 0 && g.FirstPort > g.LastPort {
				g.FirstPort, g.LastPort = g.LastPort, g.FirstPort
			}
		}
		return g
	})
	return rapid.SliceOfN(one, 0, 12)
}

// someFlows lie at and beside the edges of grants.
func someFlows(in []peers.Grant) (out []flow) {
	var from, to []netip.Addr
	ports := []uint16{0, 80, echoPort, 65535}
	around := func(p netip.Prefix) []netip.Addr {
		return []netip.Addr{p.Addr().Prev(), p.Addr(), highest(p), highest(p).Next()}
	}
	for _, g := range in {
		from, to = append(from, around(g.From)...), append(to, around(g.To)...)
		ports = append(ports, g.FirstPort-1, g.FirstPort, g.LastPort, g.LastPort+1)
	}
	for _, f := range from {
		for _, t := range to {
			for _, proto := range []uint8{tcp, udp6, icmp6, 47} {
				for _, p := range ports {
					out = append(out, flow{f, t, proto, p})
				}
			}
		}
	}
	return out
}

// lets is what a grant says, in other words than the code's.
func lets(g peers.Grant, f flow) bool {
	if !g.From.Contains(f.from) || !g.To.Contains(f.to) || f.protocol != g.Protocol && g.Protocol != 0 {
		return false
	}
	all := g.FirstPort == 0 && g.LastPort == 0
	switch f.protocol {
	case tcp, udp6:
		return all || f.port >= g.FirstPort && f.port <= g.LastPort
	case icmp6:
		return all && f.port == 128<<8
	}
	return false
}

// A flow lies in at most one box of each list, and in one at all if and only if a
// grant lets it begin that was not refused. Order and repetition do not matter, and
// no box can be left out or joined with another.
func TestBoxesAreTheGrants(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := testPolicy()
		p.Grants = grants().Draw(t, "grants")
		got, refused := normalise(p)
		bad := map[peers.Grant]bool{}
		for _, r := range refused {
			bad[r.Grant] = true
		}
		good := slices.DeleteFunc(slices.Clone(p.Grants), func(g peers.Grant) bool { return bad[g] })
		for i, f := range someFlows(good) {
			if i%7 != rapid.IntRange(0, 6).Draw(t, "some") && len(good) > 3 {
				continue
			}
			want := slices.ContainsFunc(good, func(g peers.Grant) bool { return lets(g, f) })
			wide, narrow := holds(got.wide, f), holds(got.narrow, f)
			if wide > 1 || narrow > 1 || (wide+narrow > 0) != want {
				t.Fatalf("%v lies in %d wide and %d narrow boxes; a grant lets it: %v\n%s", f, wide, narrow, want, strings.Join(boxTexts(got), "\n"))
			}
		}
		for _, list := range [][]box{got.wide, got.narrow} {
			for i := 1; i < len(list); i++ {
				a, b := list[i-1], list[i]
				if a.from == b.from && a.to == b.to && a.protocol == b.protocol && a.last+1 >= b.first {
					t.Fatalf("%s and %s are one", a, b)
				}
			}
		}
		p.Grants = append(p.Grants, p.Grants...)
		slices.Reverse(p.Grants)
		again, _ := normalise(p)
		if diff := cmp.Diff(boxTexts(got), boxTexts(again)); diff != "" {
			t.Fatalf("in another order (-want +got):\n%s", diff)
		}
	})
}

func holds(list []box, f flow) (n int) {
	for _, b := range list {
		if b.has(f) {
			n++
		}
	}
	return n
}

// Whatever grants there are, the kernel takes them, one after another as changes of
// elements, and finds flows in them as we do.
func TestKernelTakesAnyGrants(t *testing.T) {
	t.Parallel()
	f, plane := newFirewall(t)
	set(t, f, testPolicy())
	before := handles(t, plane)
	c := must(f.dial())
	defer c.Close()
	for seed := range 30 {
		p := testPolicy()
		p.Grants = grants().Example(seed)
		if _, err := f.Set(t.Context(), p); err != nil {
			t.Fatalf("seed %d, %v: the kernel refused: %v", seed, p.Grants, err)
		}
		got, _ := normalise(p)
		for i, x := range someFlows(p.Grants) {
			if i%607 != seed {
				continue
			}
			for name, list := range map[string][]box{wide: got.wide, narrow: got.narrow} {
				if in, want := inKernel(t, c, name, x), holds(list, x) > 0; in != want {
					t.Fatalf("seed %d: %v in set %s: the kernel says %v, we %v\n%s", seed, x, name, in, want, strings.Join(boxTexts(got), "\n"))
				}
			}
		}
	}
	if diff := cmp.Diff(before, handles(t, plane)); diff != "" {
		t.Errorf("grants replaced the table (-want +got):\n%s", diff)
	}
}

// inKernel asks the kernel for the element of a set that a packet would be found in
// that begins the flow.
func inKernel(t *testing.T, c *netlink.Conn, name string, x flow) bool {
	one := box{netip.PrefixFrom(x.from, 128), netip.PrefixFrom(x.to, 128), x.protocol, x.port, x.port}
	attributes := func(list ...netlink.Attribute) []byte { return must(netlink.MarshalAttributes(list)) }
	const nested = netlink.Nested
	key := attributes(netlink.Attribute{Type: nested | unix.NFTA_SET_ELEM_KEY, Data: attributes(
		netlink.Attribute{Type: unix.NFTA_DATA_VALUE, Data: []byte(one.element()[:boxKey])})})
	_, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, Flags: netlink.Request},
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attributes(
			netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(tableName + "\x00")},
			netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(name + "\x00")},
			netlink.Attribute{Type: nested | unix.NFTA_SET_ELEM_LIST_ELEMENTS, Data: attributes(netlink.Attribute{Type: nested | unix.NFTA_LIST_ELEM, Data: key})},
		)...),
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	return err == nil
}

// Of ten thousand grants the time to normalise stays a small part of a pass.
func BenchmarkNormalise(b *testing.B) {
	p := testPolicy()
	p.Grants = manyGrants(10000)
	for b.Loop() {
		normalise(p)
	}
}

// manyGrants are n, each between networks of its own.
func manyGrants(n int) (out []peers.Grant) {
	for i := range n {
		out = append(out, grant(fmt.Sprintf("%x:100:6:1:0/112", 0x2000+i), fmt.Sprintf("%x:100:7:1:0/112", 0x5000+i), tcp, 80, 89))
	}
	return out
}
