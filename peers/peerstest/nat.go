package peerstest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// A node behind NAT can be reached as long as it keeps the way open, and not when it
// does not:
//
//	a [u0] --- [r0 router r1] --- [u0] b       a is masqueraded, and forgotten in 3 s
func testNAT(t *testing.T, open Opener) {
	if _, err := exec.LookPath("nft"); err != nil {
		if os.Getenv("CI") == "true" || os.Getenv("WEFT_VM") != "" {
			t.Fatal("nft (of nftables) is not installed; make deps installs it")
		}
		t.Skip("nft (of nftables) is not installed")
	}
	ua, ub, router := newSpace(t), newSpace(t), newSpace(t)
	cable(t, ua, "u0", router, "r0")
	must(t, ub.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "u0", Index: 20}, PeerName: "r1", PeerNamespace: netlink.NsFd(router.Fd())})
	}))
	setUp(t, router, "r0", netip.MustParsePrefix("192.0.2.1/24"))
	setUp(t, router, "r1", netip.MustParsePrefix("10.0.0.1/24"))
	must(t, router.Do(func() error {
		if err := masquerade("40000-40009"); err != nil {
			return err
		}
		for name, value := range map[string]string{
			"net/ipv4/ip_forward": "1", "net/netfilter/nf_conntrack_udp_timeout": "3", "net/netfilter/nf_conntrack_udp_timeout_stream": "3",
		} {
			if err := netns.SetSysctl(name, value); err != nil {
				return err
			}
		}
		return nil
	}))
	a, b := newNode(t, open, ua, 0xa), newNode(t, open, ub, 0xb)
	setUp(t, ua, "u0", netip.MustParsePrefix("192.0.2.2/24"))
	within(t, ua, "u0", func(nl *netlink.Handle, l netlink.Link) {
		must(t, nl.AddrDel(l, &netlink.Addr{IPNet: netns.IPNet(netip.PrefixFrom(a.at4.Addr(), 24))}))
		must(t, nl.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: netip.MustParseAddr("192.0.2.1").AsSlice()}))
	})
	known := func() bool {
		nl, err := router.Netlink(unix.NETLINK_NETFILTER)
		must(t, err)
		defer nl.Close()
		flows, err := nl.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		must(t, err)
		for _, f := range flows {
			if f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.DstPort == b.at4.Port() {
				return true
			}
		}
		return false
	}

	keeps := b.asPeer(b.at4)
	a.become(keeps)
	b.become(a.asPeer(netip.AddrPort{}))
	a.mustPing(b)
	if got := b.config().Peers[0].Endpoint.Addr(); got != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("b sends to %s, want the router", got)
	}
	await(t, "the router forgets a silent node", func() bool { return !known() })
	b.cutOff(a, "it is reached all the same: this is no NAT")

	keeps.Keepalive = time.Second
	a.become(keeps)
	a.mustPing(b)
	for range 4 { // so many seconds, in which nobody sends anything else
		before := b.stats(a).Rx
		await(t, "a keepalive", func() bool { return b.stats(a).Rx > before })
	}
	if !known() {
		t.Error("the router has forgotten a node with a keepalive")
	}
	b.mustPing(a)

	// The router starts anew and gives the node another port: its next keepalive tells.
	before := b.stats(a)
	must(t, router.Do(func() error {
		if err := masquerade("50000-50009"); err != nil {
			return err
		}
		return netlink.ConntrackTableFlush(netlink.ConntrackTable)
	}))
	await(t, "the node's new port is learnt", func() bool { return b.stats(a).Endpoint.Port() >= 50000 })
	b.mustPing(a)
	if s := b.stats(a); s.LastHandshake != before.LastHandshake || before.Endpoint.Port() >= 50000 {
		t.Errorf("from %s to %s; the same session: %t", before.Endpoint, s.Endpoint, s.LastHandshake == before.LastHandshake)
	}
}

// masquerade makes the calling thread's namespace a router that gives UDP flows out of
// its link r1 one of some ports.
func masquerade(ports string) error {
	nft := exec.Command("nft", "add table ip nat; delete table ip nat; table ip nat { chain post { type nat hook postrouting priority 100; oifname r1 meta l4proto udp masquerade to :"+ports+"; }; }")
	if out, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}
