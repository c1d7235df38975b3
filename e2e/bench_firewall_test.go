package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/firewall"
	"github.com/weftmesh/weft/peers/netns"
)

// What the firewall costs a host with ten thousand machines, and with ten thousand
// grants besides, against one with three: TCP, and datagrams of 100 bytes, within a
// network and along a grant. The planes are measured one after another, in rounds.
func TestBenchFirewallThroughput(t *testing.T) {
	benchmark(t, "iperf3")
	const rounds, many = 4, 10000
	hosts := []struct {
		name string
		*walled
	}{
		{"1", newWalled(t, 0, 0)},
		{"10000", newWalled(t, many, 0)},
		{"10000_grants", newWalled(t, many, many)},
	}
	kinds := []struct {
		name, to string
		args     []string
	}{
		{"tcp", "1:100:5:2:2", nil},
		{"small", "1:100:5:2:2", []string{"-u", "-b", "0", "-l", "100"}},
		{"granted_tcp", "2:100:5:3:2", nil},
		{"granted_small", "2:100:5:3:2", []string{"-u", "-b", "0", "-l", "100"}},
	}
	for _, k := range kinds {
		got := map[string][]float64{}
		for round := range rounds {
			for i := range hosts { // each is first once
				h := hosts[(round+i)%len(hosts)]
				got[h.name] = append(got[h.name], h.throughput(t, k.to, k.args))
			}
		}
		// The best of each: what else the machine does makes it slower, never faster.
		for _, h := range hosts {
			figure("firewall_"+k.name+"_"+h.name, slices.Max(got[h.name]), "Gbit/s", "")
		}
		one := slices.Max(got["1"])
		for _, h := range hosts[1:] {
			name := "firewall_" + k.name + "_" + h.name + "_vs_1"
			if k.name == "tcp" {
				name = "firewall_throughput_" + h.name + "_vs_1"
			}
			figure(name, slices.Max(got[h.name])/one, "x", ">= 0.97")
		}
	}
}

// walled is a data plane between machines a and b of network 1 and c of network 2, to
// which a has a grant.
type walled struct{ machines map[string]*netns.Handle }

func benchAddr(s string) netip.Addr { return netip.MustParseAddr("fd12:3456:789a:" + s) }

func newWalled(t *testing.T, attachments, grants int) *walled {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	plane, err := netns.New()
	must(err)
	t.Cleanup(func() { plane.Close() })
	wall, err := firewall.New(plane, slog.New(slog.DiscardHandler))
	must(err)
	t.Cleanup(func() { wall.Close() })
	_, err = wall.Set(t.Context(), benchPolicy(attachments, grants))
	must(err)
	must(plane.Do(func() error { return netns.SetSysctl("net/ipv6/conf/all/forwarding", "1") }))
	nl, err := plane.Netlink()
	must(err)
	defer nl.Close()
	w := &walled{map[string]*netns.Handle{}}
	for name, at := range map[string]string{"a": "1:100:5:1:2", "b": "1:100:5:2:2", "c": "2:100:5:3:2"} {
		ns, err := netns.New()
		must(err)
		t.Cleanup(func() { ns.Close() })
		w.machines[at] = ns
		must(nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "m-" + name, MTU: 1420}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}))
		outer, err := nl.LinkByName("m-" + name)
		must(err)
		inside, err := ns.Netlink()
		must(err)
		inner, err := inside.LinkByName("eth0")
		must(err)
		a := benchAddr(at)
		add := func(h *netlink.Handle, l netlink.Link, p netip.Prefix) {
			must(h.AddrAdd(l, &netlink.Addr{IPNet: netns.IPNet(p), Flags: unix.IFA_F_NODAD}))
			must(h.LinkSetUp(l))
		}
		add(nl, outer, netip.MustParsePrefix("fe80::1/64"))
		add(inside, inner, netip.PrefixFrom(a, 128))
		must(nl.RouteAdd(&netlink.Route{LinkIndex: outer.Attrs().Index, Dst: netns.IPNet(netip.PrefixFrom(a, 112).Masked())}))
		must(inside.RouteAdd(&netlink.Route{LinkIndex: inner.Attrs().Index, Gw: net.ParseIP("fe80::1"), Dst: netns.IPNet(netip.MustParsePrefix("::/0"))}))
		inside.Close()
	}
	return w
}

func benchPolicy(attachments, grants int) peers.Policy {
	network := func(n int) peers.Network {
		return peers.Network{
			Prefix: netip.PrefixFrom(benchAddr(fmt.Sprintf("%x::", n)), 64),
			Host:   benchAddr(fmt.Sprintf("%x:100:5:0:1", n)), Resolver: benchAddr(fmt.Sprintf("%x::3", n)),
		}
	}
	machine := func(name string, at string) peers.Attachment {
		return peers.Attachment{Link: "m-" + name, Endpoint: netip.PrefixFrom(benchAddr(at), 112).Masked()}
	}
	p := peers.Policy{
		Link: "weft0", Mesh: netip.MustParsePrefix("fd12:3456:789a::/48"), Resolver: benchAddr(":3"), Self: benchAddr("0:100:5:0:1"), ProbePort: 51821,
		Networks:    []peers.Network{network(1), network(2)},
		Attachments: []peers.Attachment{machine("a", "1:100:5:1:2"), machine("b", "1:100:5:2:2"), machine("c", "2:100:5:3:2")},
		Grants:      []peers.Grant{{From: netip.PrefixFrom(benchAddr("1::"), 64), To: netip.PrefixFrom(benchAddr("2:100:5:3:0"), 112)}},
	}
	for i := range attachments {
		n := 0x1000 + i
		p.Networks = append(p.Networks, network(n))
		p.Attachments = append(p.Attachments, machine(fmt.Sprintf("%x", n), fmt.Sprintf("%x:100:5:1:2", n)))
	}
	for i := range grants {
		p.Grants = append(p.Grants, peers.Grant{
			From: netip.PrefixFrom(benchAddr(fmt.Sprintf("%x::", 0x1000+i)), 64), To: netip.PrefixFrom(benchAddr(fmt.Sprintf("%x:100:7:1:0", 0x5000+i)), 112),
			Protocol: unix.IPPROTO_TCP, FirstPort: 80, LastPort: 89,
		})
	}
	return p
}

// throughput is what arrives from a, in Gbit/s.
func (w *walled) throughput(t *testing.T, to string, args []string) float64 {
	t.Helper()
	server := exec.Command("iperf3", "-s", "-1", "-B", benchAddr(to).String())
	if err := w.machines[to].Do(server.Start); err != nil {
		t.Fatal(err)
	}
	defer server.Wait()
	defer server.Process.Signal(os.Interrupt)
	var out []byte
	await(t, "iperf3", 10*time.Second, func(ctx context.Context) error {
		client := exec.CommandContext(ctx, "iperf3", append([]string{"-6", "-c", benchAddr(to).String(), "-t", "1", "-O", "0.2", "-J"}, args...)...)
		return w.machines["1:100:5:1:2"].Do(func() (err error) { out, err = client.Output(); return err })
	})
	var result struct {
		End struct {
			Sum struct {
				BitsPerSecond float64 `json:"bits_per_second"`
				Lost          float64 `json:"lost_percent"`
			} `json:"sum"`
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		t.Fatal(err)
	}
	if len(args) == 0 {
		return result.End.Received.BitsPerSecond / 1e9
	}
	return result.End.Sum.BitsPerSecond * (1 - result.End.Sum.Lost/100) / 1e9
}
