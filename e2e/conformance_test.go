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
