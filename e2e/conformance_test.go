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

// facts are what differs between meshes in which the questions are asked: addresses,
// and names whose answers are long.
type facts struct {
	self, w1, w2, w3, laptop, resolver string
	apps, host                         string // host: its name
	hostAt, nobodyAt                   string
	longAAAA, longTXT                  question
}

func confFacts() facts {
	var addrs, vms []string
	for i := range confBig {
		addrs = append(addrs, confBigAddr(i))
		vms = append(vms, fmt.Sprintf("big-machine-%02d ams", i))
	}
	return facts{
		self: confSelf, w1: confW1, w2: confW2, w3: confW3, laptop: confL1, resolver: "fd12:3456:789a:1::3",
		apps: "big,shell,web", host: "ams-1", hostAt: "fd12:3456:789a:0:200:3:0:1", nobodyAt: "fd12:3456:789a:1:100:1:77:2",
		longAAAA: question{kind: "aaaa", name: "global.big.internal", want: strings.Join(addrs, "\n"), long: true},
		longTXT:  question{kind: "txt", name: "vms.big.internal", want: strings.Join(vms, ","), long: true},
	}
}

func (f facts) questions() []question {
	web := f.w1 + "\n" + f.w2 + "\n" + f.w3
	return []question{
		{kind: "aaaa", name: "web.internal", want: f.w1},
		{kind: "aaaa", name: "WeB.iNtErNaL", want: f.w1},
		{kind: "aaaa", name: "global.web.internal", want: web},
		{kind: "aaaa", name: "nrt.web.internal", want: f.w3},
		{kind: "aaaa", name: "top2.nearest.of.web.internal", want: f.w1 + "\n" + f.w2},
		{kind: "aaaa", name: "w3.vm.web.internal", want: f.w3},
		{kind: "aaaa", name: "worker.process.web.internal", want: f.w3},
		{kind: "aaaa", name: "replica.role.kv._metadata.web.internal", want: f.w2},
		{kind: "aaaa", name: "laptop1._peer.internal", want: f.laptop},
		{kind: "aaaa", name: "_api.internal", want: f.resolver},
		f.longAAAA,
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
		f.longTXT,
		{kind: "txt", name: "_apps.internal", want: f.apps},
		{kind: "txt", name: "_peer.internal", want: "laptop1"},
		{kind: "txt", name: "web.internal", want: "NODATA"},
		{kind: "ptr", name: f.w2, want: "w2.vm.web.internal"},
		{kind: "ptr", name: f.laptop, want: "laptop1._peer.internal"},
		{kind: "ptr", name: f.hostAt, want: f.host + ".host.internal"},
		{kind: "ptr", name: f.nobodyAt, want: "NXDOMAIN"},
	}
}

// box is a place whose only resolver is ours, a host of the lab or a machine, and the
// programs on it.
type box struct {
	runner
	facts
	bin, static, clients string
	resolved             *resolved
}

// runner runs programs in a place, as a lab.Host does.
type runner interface {
	Run(ctx context.Context, path string, args ...string) (string, error)
	Exec(ctx context.Context, c lab.Command) (lab.Result, error)
}

func boxIn(t *testing.T, in runner, f facts, dir string) *box {
	t.Helper()
	clients, err := filepath.Abs("testdata/clients")
	if err != nil {
		t.Fatal(err)
	}
	return &box{runner: in, facts: f, bin: bin(t), static: staticClient(t, dir), clients: clients}
}

// newBox serves the zone on one host of a lab, and returns another one, which has the
// address of a machine and systemd-resolved. What is said passes spoil, unless that is
// nil.
func newBox(t *testing.T, spoil *spoiler) *box {
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
	if spoil != nil {
		udp, tcp = spoil.packets(udp), spoil.streams(tcp)
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
	b := boxIn(t, h, confFacts(), l.Dir())
	b.resolved = startResolved(t, h)
	for _, args := range [][]string{{"dns", "eth0", confAt}, {"domain", "eth0", "~."}} {
		if _, err := b.resolved.ctl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
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
	b := newBox(t, nil)
	b.conform(t, nameClients, directChecks)
}

// directChecks are for what a client must be told by our server itself, and not by a
// resolver in between.
var directChecks = map[string]check{"EDNS": checkEDNS, "truncation": checkTruncation, "0x20": checkCase, "NSS": checkSorted}

// check is one that a box passes.
type check func(reporter, *box)

// reporter is what checks need of a testing.T.
type reporter interface {
	Context() context.Context
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// conform asks everything with all clients, four at a time, and runs the checks.
func (b *box) conform(t reporter, clients []nameClient, checks map[string]check) {
	var group errgroup.Group
	group.SetLimit(4)
	for _, c := range clients {
		for _, via := range []string{"udp", "tcp"} {
			if via == "udp" || c.tcp {
				group.Go(func() error { c.check(t, b, via); return nil })
			}
		}
	}
	for name, check := range checks {
		group.Go(func() error {
			check(t, b)
			t.Logf("%s: checked", name)
			return nil
		})
	}
	_ = group.Wait() // they report by t
}

func (c nameClient) check(t reporter, b *box, via string) {
	var qs []question
	for _, q := range b.questions() {
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
func checkEDNS(t reporter, b *box) {
	for _, tt := range []struct {
		command string
		want    []string
	}{
		{"dig +noedns web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"dig +bufsize=4096 web.internal AAAA", []string{"status: NOERROR", "EDNS: version: 0", b.w1}},
		{"dig +ednsopt=65001:c0ffee web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"dig +ednsflags=0x4000 web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"dig +edns=1 +noednsnegotiation web.internal AAAA", []string{"status: BADVERS"}},
		{"dig +cookie web.internal AAAA", []string{"status: NOERROR", "(good)", b.w1}},
		{"dig +dnssec web.internal AAAA", []string{"status: NOERROR", "flags: do", b.w1}},
		{"dig +nsid +subnet=192.0.2.0/24 web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"kdig +edns=1 web.internal AAAA", []string{"BADVERS"}},
		{"kdig +noedns web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"kdig +nsid +padding=64 web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"kdig +tcp +keepopen +bufsize=512 web.internal AAAA _apps.internal TXT", []string{b.w1, b.apps}},
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
func checkTruncation(t reporter, b *box) {
	for _, tt := range []struct {
		command string
		tc      bool
		answers string
	}{
		{"dig +notcp +ignore +noedns " + b.longTXT.name + " TXT", true, ""},
		{"dig +notcp +ignore " + b.longAAAA.name + " AAAA", true, ""},
		{"dig +tcp " + b.longTXT.name + " TXT", false, "ANSWER: 1,"},
		{"dig +tcp " + b.longAAAA.name + " AAAA", false, fmt.Sprintf("ANSWER: %d,", confBig)},
		{"dig +noedns " + b.longAAAA.name + " AAAA", false, fmt.Sprintf("ANSWER: %d,", confBig)},
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
func checkCase(t reporter, b *box) {
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
func checkSorted(t reporter, b *box) {
	out, err := b.Run(t.Context(), "getent", "ahostsv6", "global.web.internal")
	for _, a := range []string{b.w1, b.w2, b.w3} {
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
