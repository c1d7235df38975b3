package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/e2e/lab"
)

// The mesh of the conformance run, as host fra-1 sees it, and what a machine of acme
// there asks: ams-1 is 8 ms away, nrt-1 240 ms. Of app big there are 60 machines.
const (
	confMesh = "fd12:3456:789a::"
	confAt   = "fd12:3456:789a::3" // the machines' resolver
	confSelf = "fd12:3456:789a:1:100:1:9:2"
	confW1   = "fd12:3456:789a:1:100:1:1:2"
	confW2   = "fd12:3456:789a:1:200:3:1:2"
	confW3   = "fd12:3456:789a:1:300:4:1:2"
	confL1   = "fd12:3456:789a:1:100:1:3:2"
	confBig  = 60
)

func confData() dns.Data {
	addr := netip.MustParseAddr
	up := func(m dns.Machine) dns.Machine { m.Started, m.Healthy = true, true; return m }
	acme := dns.Org{
		Name: "acme", Prefix: netip.MustParsePrefix("fd12:3456:789a:1::/64"), Resolver: addr("fd12:3456:789a:1::3"), Host: addr("fd12:3456:789a:1:100:1:0:1"),
		Machines: []dns.Machine{
			up(dns.Machine{ID: "shell", App: "shell", Host: "fra-1", Addr: addr(confSelf)}),
			up(dns.Machine{ID: "w1", App: "web", Host: "fra-1", Addr: addr(confW1), Group: "front", Meta: map[string]string{"role": "primary"}}),
			up(dns.Machine{ID: "w2", App: "web", Host: "ams-1", Addr: addr(confW2), Group: "front", Meta: map[string]string{"role": "replica"}}),
			up(dns.Machine{ID: "w3", App: "web", Host: "nrt-1", Addr: addr(confW3), Group: "worker"}),
			{ID: "old", App: "web", Host: "syd-1", Addr: addr("fd12:3456:789a:1:400:5:1:2"), Healthy: true},
		},
		Clients: []dns.Client{{Name: "laptop1", Addr: addr(confL1)}},
	}
	for i := range confBig {
		acme.Machines = append(acme.Machines, up(dns.Machine{ID: fmt.Sprintf("big-machine-%02d", i), App: "big", Host: "ams-1", Addr: addr(confBigAddr(i))}))
	}
	return dns.Data{
		Prefix: netip.MustParsePrefix(confMesh + "/48"), Resolver: addr(confAt), Self: "fra-1",
		Regions: []dns.Region{{Name: "fra"}, {Name: "ams"}, {Name: "nrt"}, {Name: "syd"}},
		Hosts: []dns.Host{
			{Name: "fra-1", Region: "fra", Addr: addr("fd12:3456:789a:0:100:1:0:1")}, {Name: "ams-1", Region: "ams", Addr: addr("fd12:3456:789a:0:200:3:0:1")},
			{Name: "nrt-1", Region: "nrt", Addr: addr("fd12:3456:789a:0:300:4:0:1")}, {Name: "syd-1", Region: "syd", Addr: addr("fd12:3456:789a:0:400:5:0:1")},
		},
		Orgs: []dns.Org{acme},
	}
}

func confBigAddr(i int) string { return fmt.Sprintf("fd12:3456:789a:1:200:3:%x:2", 0x100+i) }

// question is one fact: what a name has. Values are separated by newlines, in any
// order. NXDOMAIN: no such name. NODATA: nothing of that type.
type question struct {
	kind, name, want string
	long             bool // its answer does not fit a UDP packet
}

func questions() []question {
	var bigAddrs, bigVMs []string
	for i := range confBig {
		bigAddrs = append(bigAddrs, confBigAddr(i))
		bigVMs = append(bigVMs, fmt.Sprintf("big-machine-%02d ams", i))
	}
	const web = confW1 + "\n" + confW2 + "\n" + confW3
	return []question{
		{kind: "aaaa", name: "web.internal", want: confW1},
		{kind: "aaaa", name: "WeB.iNtErNaL", want: confW1},
		{kind: "aaaa", name: "global.web.internal", want: web},
		{kind: "aaaa", name: "nrt.web.internal", want: confW3},
		{kind: "aaaa", name: "top2.nearest.of.web.internal", want: confW1 + "\n" + confW2},
		{kind: "aaaa", name: "w3.vm.web.internal", want: confW3},
		{kind: "aaaa", name: "worker.process.web.internal", want: confW3},
		{kind: "aaaa", name: "replica.role.kv._metadata.web.internal", want: confW2},
		{kind: "aaaa", name: "laptop1._peer.internal", want: confL1},
		{kind: "aaaa", name: "_api.internal", want: "fd12:3456:789a:1::3"},
		{kind: "aaaa", name: "global.big.internal", want: strings.Join(bigAddrs, "\n"), long: true},
		{kind: "aaaa", name: "nobody.internal", want: "NXDOMAIN"},
		{kind: "aaaa", name: "vm.web.internal", want: "NODATA"},
		{kind: "a", name: "web.internal", want: "NODATA"},
		{kind: "a", name: "nobody.internal", want: "NXDOMAIN"},
		{kind: "srv", name: "_80._tcp.web.internal", want: "0 1 80 w1.vm.web.internal"},
		{kind: "srv", name: "_53._udp.global.web.internal", want: "0 1 53 w1.vm.web.internal\n1 1 53 w2.vm.web.internal\n2 1 53 w3.vm.web.internal"},
		{kind: "srv", name: "_80._tcp.nobody.internal", want: "NXDOMAIN"},
		{kind: "txt", name: "regions.web.internal", want: "ams,fra,nrt"},
		{kind: "txt", name: "all.regions.web.internal", want: "ams,fra,nrt,syd"},
		{kind: "txt", name: "vms.web.internal", want: "w1 fra,w2 ams,w3 nrt"},
		{kind: "txt", name: "all.vms.web.internal", want: "old syd,w1 fra,w2 ams,w3 nrt"},
		{kind: "txt", name: "vms.big.internal", want: strings.Join(bigVMs, ","), long: true},
		{kind: "txt", name: "_apps.internal", want: "big,shell,web"},
		{kind: "txt", name: "_peer.internal", want: "laptop1"},
		{kind: "txt", name: "web.internal", want: "NODATA"},
		{kind: "ptr", name: confW2, want: "w2.vm.web.internal"},
		{kind: "ptr", name: confL1, want: "laptop1._peer.internal"},
		{kind: "ptr", name: "fd12:3456:789a:0:200:3:0:1", want: "ams-1.host.internal"},
		{kind: "ptr", name: "fd12:3456:789a:1:100:1:77:2", want: "NXDOMAIN"},
	}
}

// box is a host of the lab whose only resolver is ours, and the programs on it.
type box struct {
	*lab.Host
	bin, static, clients string
	resolved             *resolved
}

// newBox serves the zone on one host of a lab, and returns another one, which has the
// address of a machine.
func newBox(t *testing.T) *box {
	t.Helper()
	l := newLab(t)
	server, err := l.Host("resolver", lab.HostConfig{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := l.Host("machine", lab.HostConfig{PrivateEtc: true, Resolvers: []netip.Addr{netip.MustParseAddr(confAt)}})
	if err != nil {
		t.Fatal(err)
	}
	for host, addr := range map[*lab.Host]string{server: confAt, h: confSelf} {
		for _, args := range [][]string{{"addr", "add", addr + "/128", "dev", "eth0", "nodad"}, {"-6", "route", "add", confMesh + "/48", "dev", "eth0"}} {
			if _, err := host.Run(t.Context(), "ip", args...); err != nil {
				t.Fatal(err)
			}
		}
	}
	zone := dns.NewZone(confData())
	facts := dns.Facts{"ams-1": {RTT: 8 * time.Millisecond}, "nrt-1": {RTT: 240 * time.Millisecond}}
	s := dns.NewServer(dns.Config{Zone: func() *dns.Zone { return zone }, Facts: func() dns.Facts { return facts }})
	at := "[" + confAt + "]:53"
	udp, err := server.ListenPacket("udp6", at)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := server.Listen("tcp6", at)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	group := new(errgroup.Group)
	group.Go(func() error { return s.ServePacket(ctx, udp, dns.Role{}) })
	group.Go(func() error { return s.ServeStream(ctx, tcp, dns.Role{}) })
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("server: %v", err)
		}
	})
	b := &box{Host: h, bin: bin(t), static: staticClient(t, l.Dir())}
	if b.clients, err = filepath.Abs("testdata/clients"); err != nil {
		t.Fatal(err)
	}
	return b
}

// nameClient is a real program that asks for names.
type nameClient struct {
	name  string
	kinds string // of what it can ask for
	// tcp: it can be told to use TCP, and is asked everything twice.
	tcp bool
	// vague: it does not tell a name that is not there from one that has nothing.
	vague bool
	// short: it does not ask again over TCP, and uses what came.
	short bool
	// ask returns the values for each question, or NXDOMAIN or NODATA; "none" if vague.
	ask func(ctx context.Context, b *box, via string, qs []question) ([][]string, error)
}

const allKinds = "aaaa a srv txt ptr"

var nameClients = []nameClient{
	{name: "dig", kinds: allKinds, tcp: true, ask: each(viaDig)},
	{name: "kdig", kinds: allKinds, tcp: true, ask: each(viaKdig)},
	{name: "getent", kinds: "aaaa a ptr", vague: true, ask: each(viaGetentHosts)},
	{name: "python3", kinds: "aaaa a ptr", vague: true, ask: viaPython},
	{name: "musl", kinds: "aaaa ptr", vague: true, short: true, ask: each(viaMusl)},
	{name: "Go", kinds: allKinds, vague: true, ask: each(viaGo("go"))},
	{name: "Go with C", kinds: "aaaa a ptr", vague: true, ask: each(viaGo("cgo"))},
	{name: "Node", kinds: allKinds, ask: each(viaNode)},
	{name: "Node lookup", kinds: "aaaa", vague: true, ask: each(viaNodeLookup)},
	{name: "Erlang", kinds: allKinds, tcp: true, ask: viaErlang},
	{name: "systemd-resolved", kinds: allKinds, ask: each(viaResolved)},
}

// Debian's real clients ask a real server for every kind of name that they can ask
// for, over UDP and TCP.
func TestConformance(t *testing.T) {
	need(t, "ip", "dig", "kdig", "getent", "python3", "musl-gcc", "node", "erl", "escript", "dbus-daemon")
	t.Parallel()
	b := newBox(t)
	b.resolved = startResolved(t, b.Host)
	if _, err := b.resolved.ctl(t.Context(), "dns", "eth0", confAt); err != nil {
		t.Fatal(err)
	}
	if _, err := b.resolved.ctl(t.Context(), "domain", "eth0", "~."); err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.SetLimit(4)
	for _, c := range nameClients {
		for _, via := range []string{"udp", "tcp"} {
			if via == "udp" || c.tcp {
				group.Go(func() error { c.check(t, b, via); return nil })
			}
		}
	}
	for name, check := range map[string]func(*testing.T, *box){"EDNS": checkEDNS, "truncation": checkTruncation, "0x20": checkCase, "NSS": checkSorted} {
		group.Go(func() error {
			check(t, b)
			t.Logf("%s: checked", name)
			return nil
		})
	}
	_ = group.Wait() // they report by t
}

func (c nameClient) check(t *testing.T, b *box, via string) {
	var qs []question
	for _, q := range questions() {
		if slices.Contains(strings.Fields(c.kinds), q.kind) {
			qs = append(qs, q)
		}
	}
	began := time.Now()
	got, err := c.ask(t.Context(), b, via, qs)
	if err != nil || len(got) != len(qs) {
		t.Errorf("%s over %s: %d answers to %d questions: %v", c.name, via, len(got), len(qs), err)
		return
	}
	for i, q := range qs {
		if err := c.judge(q, got[i]); err != nil {
			t.Errorf("%s over %s: %s %s: %v", c.name, via, q.kind, q.name, err)
		}
	}
	t.Logf("%s over %s: %d questions in %s", c.name, via, len(qs), time.Since(began).Round(time.Millisecond))
}

func (c nameClient) judge(q question, got []string) error {
	want := strings.Split(q.want, "\n")
	if none := q.want == "NXDOMAIN" || q.want == "NODATA"; none && c.vague {
		want = []string{"none"}
	}
	slices.Sort(got)
	slices.Sort(want)
	if c.short && q.long {
		strange := slices.DeleteFunc(slices.Clone(got), func(v string) bool { return slices.Contains(want, v) })
		if len(got) == 0 || len(strange) > 0 {
			return fmt.Errorf("%d values, of which none of the name's: %q", len(got), strange)
		}
		return nil
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// checkEDNS: unknown options are passed over, an unknown version is refused with
// BADVERS, a cookie is given back, and who has no EDNS at all is answered as well.
func checkEDNS(t *testing.T, b *box) {
	for _, tt := range []struct {
		command string
		want    []string
	}{
		{"dig +noedns web.internal AAAA", []string{"status: NOERROR", confW1}},
		{"dig +bufsize=4096 web.internal AAAA", []string{"status: NOERROR", "EDNS: version: 0", confW1}},
		{"dig +ednsopt=65001:c0ffee web.internal AAAA", []string{"status: NOERROR", confW1}},
		{"dig +ednsflags=0x4000 web.internal AAAA", []string{"status: NOERROR", confW1}},
		{"dig +edns=1 +noednsnegotiation web.internal AAAA", []string{"status: BADVERS"}},
		{"dig +cookie web.internal AAAA", []string{"status: NOERROR", "(good)", confW1}},
		{"dig +dnssec web.internal AAAA", []string{"status: NOERROR", "flags: do", confW1}},
		{"dig +nsid +subnet=192.0.2.0/24 web.internal AAAA", []string{"status: NOERROR", confW1}},
		{"kdig +edns=1 web.internal AAAA", []string{"BADVERS"}},
		{"kdig +noedns web.internal AAAA", []string{"status: NOERROR", confW1}},
		{"kdig +nsid +padding=64 web.internal AAAA", []string{"status: NOERROR", confW1}},
		{"kdig +tcp +keepopen +bufsize=512 web.internal AAAA _apps.internal TXT", []string{confW1, "big,shell,web"}},
		{"dig web.internal ANY +notcp", []string{"status: NOERROR"}},
		{"dig web.internal TYPE65", []string{"status: NOERROR", "ANSWER: 0", "SOA"}},
		{"dig nobody.internal AAAA", []string{"status: NXDOMAIN", "ANSWER: 0", "SOA"}},
	} {
		f := strings.Fields(tt.command)
		out, err := b.Run(t.Context(), f[0], f[1:]...)
		for _, want := range tt.want {
			if err != nil || !strings.Contains(out, want) {
				t.Errorf("%s: %v, no %q in\n%s", tt.command, err, want, out)
			}
		}
	}
}

// checkTruncation: a long answer is cut over UDP, with TC, and whole over TCP.
func checkTruncation(t *testing.T, b *box) {
	for _, tt := range []struct {
		command string
		tc      bool
		answers string
	}{
		{"dig +notcp +ignore +noedns vms.big.internal TXT", true, ""},
		{"dig +notcp +ignore global.big.internal AAAA", true, ""},
		{"dig +tcp vms.big.internal TXT", false, "ANSWER: 1,"},
		{"dig +tcp global.big.internal AAAA", false, fmt.Sprintf("ANSWER: %d,", confBig)},
		{"dig +noedns global.big.internal AAAA", false, fmt.Sprintf("ANSWER: %d,", confBig)},
	} {
		f := strings.Fields(tt.command)
		out, err := b.Run(t.Context(), f[0], f[1:]...)
		flags := ""
		for line := range strings.Lines(out) {
			if rest, ok := strings.CutPrefix(line, ";; flags:"); ok {
				flags, _, _ = strings.Cut(rest, ";")
			}
		}
		if err != nil || slices.Contains(strings.Fields(flags), "tc") != tt.tc || !strings.Contains(out, tt.answers) {
			t.Errorf("%s: %v, flags %q, want tc %v and %q:\n%s", tt.command, err, flags, tt.tc, tt.answers, out)
		}
	}
}

// checkCase: the question comes back in the letters in which it was asked (clients
// check that: draft-vixie-dnsext-dns0x20), and so does the record's name.
func checkCase(t *testing.T, b *box) {
	for _, name := range []string{"WeB.iNtErNaL", "wEB.INTERNAL", "REGIONS.weB.inTernal"} {
		for _, kind := range []string{"AAAA", "TXT"} {
			out, err := b.Run(t.Context(), "dig", "+noall", "+question", "+comments", name, kind)
			if err != nil || !strings.Contains(out, name+".") || !strings.Contains(out, "NOERROR") {
				t.Errorf("dig %s %s: %v\n%s", name, kind, err, out)
			}
		}
	}
}

// checkSorted: what a C library makes of many addresses is still the ones there are.
func checkSorted(t *testing.T, b *box) {
	out, err := b.Run(t.Context(), "getent", "ahostsv6", "global.web.internal")
	for _, a := range []string{confW1, confW2, confW3} {
		if err != nil || strings.Count(out, a) != 3 { // stream, datagram, raw
			t.Errorf("getent ahostsv6: %v, not three times %s in\n%s", err, a, out)
		}
	}
}

// requireProgram skips, or fails under CI=true, where a program that `make deps`
// unpacks is not there.
func requireProgram(t *testing.T, path, what string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = exec.LookPath(path)
	}
	if err != nil {
		missing(t, fmt.Sprintf("%s is not here (%v); make deps unpacks it", what, err))
	}
	return path
}
