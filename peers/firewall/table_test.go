package firewall

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

var update = flag.Bool("update", false, "write the golden files")

func TestRenderGolden(t *testing.T) {
	t.Parallel()
	for name, policy := range map[string]peers.Policy{"zero": {}, "host": testPolicy()} {
		table, err := Render(policy)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+".golden")
		if *update {
			check(t, os.WriteFile(file, []byte(table.String()), 0o644))
		}
		want := string(must(os.ReadFile(file)))
		if diff := cmp.Diff(want, table.String()); diff != "" {
			t.Errorf("%s (-want +got), -update writes it:\n%s", name, diff)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*peers.Policy)
		want   string
	}{
		{"link too long", func(p *peers.Policy) { p.Link = "weft567890123456" }, "at most 15 bytes"},
		{"lo as link", func(p *peers.Policy) { p.Link = "lo" }, "not lo"},
		{"network of another length", func(p *peers.Policy) { p.Networks[0].Prefix = netip.MustParsePrefix("fd12:3456:789a::/48") }, "want an IPv6 /64"},
		{"no network", func(p *peers.Policy) { p.Networks[0].Prefix = netip.Prefix{} }, "want an IPv6 /64"},
		{"host of another network", func(p *peers.Policy) { p.Networks[0].Host = p.Networks[1].Host }, "must lie in it"},
		{"the hosts' network as an org's", func(p *peers.Policy) {
			p.Networks[0] = peers.Network{Prefix: netip.PrefixFrom(addr("0::"), 64), Host: p.Self, Resolver: p.Resolver}
		}, "the hosts' own"},
		{"the tunnel as a machine's link", func(p *peers.Policy) { p.Attachments[0].Link = p.Link }, "a link of its own"},
		{"lo as a machine's link", func(p *peers.Policy) { p.Attachments[0].Link = "lo" }, "a link of its own"},
		{"endpoint with host bits", func(p *peers.Policy) {
			p.Attachments[0].Endpoint = netip.PrefixFrom(addr("1:100:5:1:2"), 112)
		}, "want an IPv6 /112"},
		{"endpoint too wide", func(p *peers.Policy) {
			p.Attachments[0].Endpoint = netip.PrefixFrom(addr("1:100:5::"), 96)
		}, "want an IPv6 /112"},
		{"IPv4", func(p *peers.Policy) { p.Attachments[0].Endpoint = netip.MustParsePrefix("10.0.0.0/8") }, "want an IPv6 /112"},
	}
	for _, tt := range tests {
		p := testPolicy()
		tt.change(&p)
		if _, err := Render(p); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// asFound is what the kernel would say if it held the table.
func asFound(t Table) found {
	f := found{exists: true, sets: map[string]foundSet{}, chains: map[string]foundChain{}}
	for _, s := range t.Sets {
		f.sets[s.Name] = foundSet{setShape(s.spec(nil)), slices.Clone(s.Elements)}
	}
	for _, c := range t.Chains {
		x := foundChain{shape: chainShape(c.spec(nil))}
		for _, r := range c.Rules {
			x.marks = append(x.marks, string(must(r.mark())))
		}
		f.chains[c.Name] = x
	}
	return f
}

func policies() *rapid.Generator[peers.Policy] {
	return rapid.Custom(func(t *rapid.T) peers.Policy {
		p := testPolicy()
		all := p
		p.Networks, p.Attachments = nil, nil
		for n := range rapid.IntRange(0, 3).Draw(t, "networks") {
			x := all.Networks[0]
			x.Prefix = netip.PrefixFrom(addr(fmt.Sprintf("%d::", n+1)), 64)
			x.Host, x.Resolver = addr(fmt.Sprintf("%d:100:5:0:1", n+1)), addr(fmt.Sprintf("%d::3", n+1))
			p.Networks = append(p.Networks, x)
		}
		for _, m := range rapid.SliceOfNDistinct(rapid.IntRange(1, 9), 0, 6, rapid.ID).Draw(t, "machines") {
			n := rapid.IntRange(1, 3).Draw(t, "network")
			p.Attachments = append(p.Attachments, peers.Attachment{Link: fmt.Sprintf("m-%d", m), Endpoint: endpoint(fmt.Sprintf("%d:100:5:%d:2", n, m))})
		}
		if rapid.IntRange(0, 4).Draw(t, "port") == 0 {
			p.ProbePort++
		}
		return p
	})
}

// What compare finds leads from the one table to the other, and from a table to
// itself there is nothing to do. Only elements differ unless a rule does.
func TestCompareLeadsThere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p, q := policies().Draw(t, "have"), policies().Draw(t, "want")
		from, to := must(Render(p)), must(Render(q))
		if d := compare(asFound(from), from); !d.empty() {
			t.Fatalf("a table differs from itself: %s", d)
		}
		have := asFound(from)
		d := compare(have, to)
		if (d.why != "") != (p.ProbePort != q.ProbePort) {
			t.Fatalf("ports %d and %d: %s", p.ProbePort, q.ProbePort, d)
		}
		if d.why != "" {
			return
		}
		for _, x := range d.deltas {
			s := have.sets[x.set.Name]
			s.elements = append(subtract(s.elements, x.minus), x.plus...)
			if n := len(s.elements); len(sortElements(slices.Clone(s.elements))) != n {
				t.Fatalf("set %s: an element twice", x.set.Name)
			}
			have.sets[x.set.Name] = s
		}
		if d := compare(have, to); !d.empty() {
			t.Fatalf("after the change: %s", d)
		}
	})
}

// The order of a policy's lists does not matter, nor that something stands twice.
func TestRenderIgnoresOrder(t *testing.T) {
	t.Parallel()
	p, q := testPolicy(), testPolicy()
	slices.Reverse(q.Networks)
	slices.Reverse(q.Attachments)
	q.Networks = append(q.Networks, p.Networks[0])
	q.Attachments = append(q.Attachments, p.Attachments[0])
	if diff := cmp.Diff(must(Render(p)).String(), must(Render(q)).String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzRender(f *testing.F) {
	f.Add("weft0", "m-a", []byte{0xfd, 1}, 112, 64)
	f.Fuzz(func(t *testing.T, link, machine string, raw []byte, bits, netBits int) {
		var b [16]byte
		copy(b[:], raw)
		a := netip.AddrFrom16(b)
		p := peers.Policy{
			Link: link, Self: a, Resolver: a,
			Networks:    []peers.Network{{Prefix: netip.PrefixFrom(a, netBits), Host: a, Resolver: a}},
			Attachments: []peers.Attachment{{Link: machine, Endpoint: netip.PrefixFrom(a, bits)}},
		}
		table, err := Render(p)
		if err != nil {
			return
		}
		for _, s := range table.Sets {
			for _, e := range s.Elements {
				if want := map[SetKind]int{LinkSet: 16, AddressSet: 16, PairSet: 16, SourceSet: 32}[s.Kind]; len(e) != want {
					t.Fatalf("set %s: a key of %d bytes, want %d", s.Name, len(e), want)
				}
			}
		}
		if d := compare(asFound(table), table); !d.empty() {
			t.Fatal(d)
		}
	})
}

// counters are a chain's, in the order of its rules.
func counters(t testing.TB, f *Firewall, chain string) (out []uint64) {
	t.Helper()
	k, err := f.open(context.Background())
	check(t, err)
	defer k.Close()
	rules, err := k.conn.GetRules(ourTable(), &nftables.Chain{Name: chain})
	check(t, err)
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				out = append(out, c.Packets)
			}
		}
	}
	return out
}

// handles are those of the table, its chains and its rules: what is replaced gets
// new ones.
func handles(t testing.TB, plane *netns.Handle) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(stateless(nft(t, plane, "-a list table inet weft"))) {
		if _, handle, ok := strings.Cut(line, "# handle "); ok && !strings.Contains(line, "elements") {
			fmt.Fprintf(&b, "%s ", strings.TrimSpace(handle))
		}
	}
	return b.String()
}

func nft(t testing.TB, ns *netns.Handle, command string) string {
	t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("the nft command is not installed; make deps installs it")
		}
		t.Skip("the nft command is not installed")
	}
	var out []byte
	// Through sh: arguments as a person would type them.
	check(t, ns.Do(func() (err error) {
		out, err = exec.Command(path, strings.Fields(command)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("nft %s: %w: %s", command, err, out)
		}
		return err
	}))
	return string(out)
}

// What somebody does to the table is noticed, and put right in one step.
func TestDriftIsHealed(t *testing.T) {
	t.Parallel()
	f, plane := newFirewall(t)
	p := withGrants(grant("1::/64", "2:100:5:3:0/112", tcp, 80, 89), grant("1:100:5:1:0/112", "2::/64", udp6, 53, 53))
	set(t, f, p)
	want := stateless(nft(t, plane, "list table inet weft"))
	const (
		wholeNetwork = "fd12:3456:789a:1::-fd12:3456:789a:1:ffff:ffff:ffff:ffff . fd12:3456:789a:2:100:5:3:0-fd12:3456:789a:2:100:5:3:ffff"
		oneEndpoint  = "fd12:3456:789a:1:100:5:1:0-fd12:3456:789a:1:100:5:1:ffff . fd12:3456:789a:2::-fd12:3456:789a:2:ffff:ffff:ffff:ffff"
	)
	tests := []struct {
		name, command string
		replaced      bool
	}{
		{"everything is flushed", "flush ruleset", true},
		{"the table is deleted", "delete table inet weft", true},
		{"its rules are flushed", "flush table inet weft", true},
		{"a chain is flushed", "flush chain inet weft forward", true},
		{"a rule is appended", "add rule inet weft forward accept", true},
		{"a rule is put first", "insert rule inet weft input tcp dport 22 accept", true},
		{"a rule is replaced", "replace rule inet weft forward handle %d accept", true},
		{"a rule is deleted", "delete rule inet weft forward handle %d", true},
		{"a policy is changed", "add chain inet weft forward { policy accept ; }", true},
		{"a chain is added", "add chain inet weft mine { type filter hook input priority -5 ; }", true},
		{"a set is added", "add set inet weft mine { type ipv6_addr ; }", true},
		{"the table is switched off", "add table inet weft { flags dormant ; }", true},
		{"an element is added", "add element inet weft hosts { fd12:3456:789a:9::1 }", false},
		{"an element is deleted", "delete element inet weft networks { fd12:3456:789a:1:fd12:3456:789a:1 }", false},
		{"a set is flushed", "flush set inet weft sources", false},
		{"a grant is deleted", "delete element inet weft wide { " + wholeNetwork + " . tcp . 80-89 }", false},
		{"a grant is added", "add element inet weft wide { " + wholeNetwork + " . tcp . 90-99 }", false},
		{"an endpoint's grant is deleted", "delete element inet weft narrow { " + oneEndpoint + " . udp . 53 }", false},
		{"an endpoint's grant is added", "add element inet weft narrow { " + oneEndpoint + " . udp . 54 }", false},
		{"all grants are flushed", "flush set inet weft wide", false},
		{"networks with grants are flushed", "flush set inet weft granted", false},
		{"a grant's network is added", "add element inet weft ends { fd12:3456:789a:9:fd12:3456:789a:9 }", false},
		{"flows are counted no more", "flush chain inet weft begin", true},
		{"another source is allowed", "add element inet weft sources { \"m-a\" . fd12:3456:789a:1:100:5:2:0 }", false},
	}
	for _, tt := range tests {
		before := handles(t, plane)
		command := tt.command
		if strings.Contains(command, "%d") {
			// The last rule is the last of forward.
			fields := strings.Fields(before)
			command = strings.Replace(command, "%d", fields[len(fields)-1], 1)
		}
		nft(t, plane, command)
		if !set(t, f, p) {
			t.Errorf("%s: not noticed", tt.name)
		}
		if diff := cmp.Diff(want, stateless(nft(t, plane, "list table inet weft"))); diff != "" {
			t.Errorf("%s: not healed (-want +got):\n%s", tt.name, diff)
		}
		if replaced := handles(t, plane) != before; replaced != tt.replaced {
			t.Errorf("%s: the table was replaced: %v, want %v", tt.name, replaced, tt.replaced)
		}
		if set(t, f, p) {
			t.Errorf("%s: healed twice", tt.name)
		}
	}
}

// stateless leaves the counters out of a listing, and the rates of single endpoints.
func stateless(listing string) string {
	var out []string
	for line := range strings.Lines(listing) {
		if strings.Contains(line, " limit rate ") && !strings.Contains(line, "update @") {
			continue
		}
		words := strings.Fields(line)
		for i := 0; i+1 < len(words); i++ {
			if words[i] == "packets" || words[i] == "bytes" {
				words[i+1] = "N"
			}
		}
		out = append(out, strings.Join(words, " "))
	}
	return strings.Join(out, "\n")
}

// Setting what is in force writes nothing; what is counted goes on.
func TestSetAgainWritesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var s tags
	_, src := who("a")
	_, dst := who("c")
	g := s.next()
	next, payload := build("udp 9", src, dst, g)
	if got := l.fate(t, l.ports["a"], l.ports["c"], [][]byte{packet(src, dst, 64, next, payload)}, g, &s, rejected); got != rejected {
		t.Fatal(got)
	}
	before, count := handles(t, l.plane), counters(t, l.Firewall, "forward")
	generation := nft(t, l.plane, "-a list ruleset")
	for range 3 {
		if set(t, l.Firewall, testPolicy()) {
			t.Error("Set changed something")
		}
	}
	if diff := cmp.Diff(before, handles(t, l.plane)); diff != "" {
		t.Errorf("handles (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(count, counters(t, l.Firewall, "forward")); diff != "" || count[0] != 1 {
		t.Errorf("counted %d (-want +got):\n%s", count, diff)
	}
	if diff := cmp.Diff(stateless(generation), stateless(nft(t, l.plane, "-a list ruleset"))); diff != "" {
		t.Errorf("ruleset (-want +got):\n%s", diff)
	}
}

// A machine or a network more or less changes elements; the rules stay.
func TestOneMoreDoesNotReplaceTheTable(t *testing.T) {
	t.Parallel()
	f, plane := newFirewall(t)
	p := testPolicy()
	set(t, f, p)
	before := handles(t, plane)
	steps := []struct {
		name   string
		change func(*peers.Policy)
	}{
		{"a machine comes", func(p *peers.Policy) {
			p.Attachments = append(p.Attachments, peers.Attachment{Link: "m-d", Endpoint: endpoint("2:100:5:4:2")})
		}},
		{"a machine gets another address", func(p *peers.Policy) { p.Attachments[0].Endpoint = endpoint("1:100:5:9:2") }},
		{"two machines swap addresses", func(p *peers.Policy) {
			a := p.Attachments
			a[0].Endpoint, a[1].Endpoint = a[1].Endpoint, a[0].Endpoint
		}},
		{"a network comes", func(p *peers.Policy) {
			p.Networks = append(p.Networks, peers.Network{Prefix: netip.PrefixFrom(addr("3::"), 64), Host: addr("3:100:5:0:1"), Resolver: addr("3::3")})
		}},
		{"all machines go", func(p *peers.Policy) { p.Attachments = nil }},
		{"all networks go", func(p *peers.Policy) { p.Networks = nil }},
	}
	for _, s := range steps {
		p.Networks, p.Attachments = slices.Clone(p.Networks), slices.Clone(p.Attachments)
		s.change(&p)
		if !set(t, f, p) {
			t.Errorf("%s: nothing changed", s.name)
		}
		if diff := cmp.Diff(before, handles(t, plane)); diff != "" {
			t.Errorf("%s: the table was replaced (-want +got):\n%s", s.name, diff)
		}
	}
}

// A large host: elements go in chunks, in one transaction.
func TestThousandsOfElements(t *testing.T) {
	t.Parallel()
	f, _ := newFirewall(t)
	p := testPolicy()
	p.Networks, p.Attachments = nil, nil
	for i := range 1700 {
		n := fmt.Sprintf("%x", i+1)
		p.Networks = append(p.Networks, peers.Network{Prefix: netip.PrefixFrom(addr(n+"::"), 64), Host: addr(n + ":100:5:0:1"), Resolver: addr(n + "::3")})
		p.Attachments = append(p.Attachments, peers.Attachment{Link: "m-" + n, Endpoint: endpoint(n + ":100:5:1:2")})
	}
	half := p
	half.Networks, half.Attachments = p.Networks[:600], p.Attachments[:600]
	for _, q := range []peers.Policy{half, p, half, {}} {
		if !set(t, f, q) {
			t.Error("nothing changed")
		}
		if set(t, f, q) {
			t.Error("changed twice")
		}
	}
}

// The table outlives the Firewall; Remove takes it away, and nobody else's.
func TestRemove(t *testing.T) {
	t.Parallel()
	f, plane := newFirewall(t)
	nft(t, plane, "add table inet somebody")
	set(t, f, testPolicy())
	check(t, f.Close())
	check(t, f.Close())
	if got := nft(t, plane, "list tables"); !strings.Contains(got, "inet weft") {
		t.Errorf("after Close: %q", got)
	}
	f = must(New(plane, f.log))
	if set(t, f, testPolicy()) {
		t.Error("a new Firewall replaced what was right")
	}
	for range 2 {
		check(t, f.Remove())
		if got := nft(t, plane, "list tables"); got != "table inet somebody\n" {
			t.Errorf("after Remove: %q", got)
		}
	}
}

// A Set that cannot be sent leaves the former table in force.
func TestFailedSetKeepsTheTable(t *testing.T) {
	t.Parallel()
	f, plane := newFirewall(t)
	set(t, f, testPolicy())
	before := handles(t, plane)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := f.Set(ctx, peers.Policy{}); err == nil {
		t.Error("no error with a context that has ended")
	}
	bad := testPolicy()
	bad.Attachments[0].Endpoint = netip.Prefix{}
	if _, err := f.Set(context.Background(), bad); err == nil {
		t.Error("no error for a bad policy")
	}
	if diff := cmp.Diff(before, handles(t, plane)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
