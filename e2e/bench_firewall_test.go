package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/firewall"
	"github.com/weftmesh/weft/peers/netns"
)

// What the firewall costs a host with ten thousand machines, and with ten thousand
// grants besides, against one with three: TCP, and datagrams of 100 bytes, within a
// network and along a grant. The planes are measured one after another, in rounds.
func TestBenchFirewallThroughput(t *testing.T) {
	benchmark(t, "iperf3")
	const many = 10000
	hosts := []walledHost{
		{"1", newWalled(t, 0, 0)},
		{"10000", newWalled(t, many, 0)},
		{"10000_grants", newWalled(t, many, many)},
	}
	small := []string{"-u", "-b", "0", "-l", "100"}
	for _, k := range []walledTraffic{
		{"tcp", "1:100:5:2:2", nil}, {"small", "1:100:5:2:2", small},
		{"granted_tcp", "2:100:5:3:2", nil}, {"granted_small", "2:100:5:3:2", small},
	} {
		t.Run(k.name, func(t *testing.T) { compareWalled(t, hosts, k) })
	}
}

type walledHost struct {
	name string
	*walled
}

type walledTraffic struct {
	name, to string
	args     []string // of iperf3
}

// compareWalled tells the medians of what the hosts let through, how far the rounds lie
// apart, and the median of what a host is to the first one within a round: what befalls
// the machine for longer than a round befalls both.
func compareWalled(t *testing.T, hosts []walledHost, k walledTraffic) {
	const rounds = 15 // each host is first as often as the others
	got, ratios := map[string][]float64{}, map[string][]float64{}
	for round := range rounds {
		for i := range hosts {
			h := hosts[(round+i)%len(hosts)]
			gbits, err := h.throughput(t.Context(), k.to, k.args)
			if err != nil {
				t.Fatalf("round %d, %s machines: %v", round, h.name, err)
			}
			got[h.name] = append(got[h.name], gbits)
		}
		for _, h := range hosts {
			ratios[h.name] = append(ratios[h.name], got[h.name][round]/got[hosts[0].name][round])
		}
	}
	for i, h := range hosts {
		slices.Sort(got[h.name])
		slices.Sort(ratios[h.name])
		figure("firewall_"+k.name+"_"+h.name, middle(got[h.name]), "Gbit/s", "")
		t.Logf("%s, %s: %.3f Gbit/s, %d rounds from %.3f to %.3f; to the first %.3f, from %.3f to %.3f", k.name, h.name,
			middle(got[h.name]), rounds, got[h.name][0], got[h.name][rounds-1], middle(ratios[h.name]), ratios[h.name][0], ratios[h.name][rounds-1])
		if i == 0 {
			continue
		}
		name := "firewall_" + k.name + "_" + h.name + "_vs_1"
		if k.name == "tcp" {
			name = "firewall_throughput_" + h.name + "_vs_1"
		}
		figure(name, middle(ratios[h.name]), "x", ">= 0.97")
	}
}

// middle is the median of an odd number of sorted values.
func middle(sorted []float64) float64 { return sorted[len(sorted)/2] }

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
	w := &walled{map[string]*netns.Handle{}}
	for name, at := range map[string]string{"a": "1:100:5:1:2", "b": "1:100:5:2:2", "c": "2:100:5:3:2"} {
		ns, err := netns.New()
		must(err)
		t.Cleanup(func() { ns.Close() })
		w.machines[at] = ns
		must(attach.Attach(plane, ns, attach.Machine{Link: "m-" + name, Endpoint: netip.PrefixFrom(benchAddr(at), 112).Masked(), MTU: 1420}))
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

// throughput is what arrives from a within a second, in Gbit/s.
func (w *walled) throughput(ctx context.Context, to string, args []string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	server := exec.CommandContext(ctx, "iperf3", "-s", "-1", "--forceflush", "-B", benchAddr(to).String())
	said, err := server.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := w.machines[to].Do(server.Start); err != nil {
		return 0, err
	}
	defer server.Wait()
	defer server.Process.Signal(os.Interrupt)
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "Server listening") {
	}
	go io.Copy(io.Discard, said)
	args = append([]string{"-6", "-c", benchAddr(to).String(), "-t", "1", "-J"}, args...)
	if runtime.NumCPU() > 1 { // where the two ends run makes more of a difference than what is measured
		args = append(args, "-A", "0,1")
	}
	client := exec.CommandContext(ctx, "iperf3", args...)
	var out []byte
	if err := w.machines["1:100:5:1:2"].Do(func() (err error) { out, err = client.Output(); return err }); err != nil {
		return 0, fmt.Errorf("iperf3: %w", err)
	}
	return iperfGbits(out)
}
