package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
)

// inMachine runs programs in a machine, whose resolver is its host's agent. pid is that
// of its command: what programs leave behind in it are children of its init, too.
type inMachine struct {
	host *lab.Host
	pid  int
}

func (m inMachine) Run(ctx context.Context, path string, args ...string) (string, error) {
	return m.host.RunIn(ctx, m.pid, path, args...)
}

func (m inMachine) Exec(ctx context.Context, c lab.Command) (lab.Result, error) {
	return m.host.ExecIn(ctx, m.pid, c)
}

// The same clients ask agents the same questions, in the same mesh made by the
// product: from within a machine, as its C library and its programs find the resolver,
// and from a laptop, through its systemd-resolved and its gateway.
func TestConformanceOfAgents(t *testing.T) {
	need(t, "ip", "dig", "kdig", "getent", "python3", "musl-gcc", "node", "erl", "escript", "dbus-daemon", "nsenter")
	t.Parallel()
	shell, l, f := newConformanceWorld(t)
	pid, err := shell.Pid()
	if err != nil {
		t.Fatal(err)
	}
	direct := slices.DeleteFunc(slices.Clone(nameClients), func(c nameClient) bool { return c.name == "systemd-resolved" })
	for name, conform := range map[string]func(*testing.T){
		"machine": func(t *testing.T) {
			b := boxIn(t, inMachine{shell.Host.Host, pid}, f, t.TempDir())
			b.settled(t)
			b.conform(t, direct, directChecks)
		},
		"laptop": func(t *testing.T) {
			b := boxIn(t, l, f, t.TempDir())
			b.resolved = l.resolved
			b.settled(t)
			b.conform(t, nameClients, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conform(t)
		})
	}
}

// settled waits until distances are measured and all that was made is known.
func (b *box) settled(t *testing.T) {
	t.Helper()
	await(t, "the answers to be as they should", 20*time.Second, func(ctx context.Context) error {
		for _, q := range b.questions() {
			got, err := viaDig(ctx, b, "udp", q)
			if err == nil {
				err = nameClient{}.judge(q, got)
			}
			if err != nil {
				return fmt.Errorf("%s %s: %w", q.kind, q.name, err)
			}
		}
		return nil
	})
}

// newConformanceWorld is the mesh of confData, but for addresses, and app big, instead
// of which there are two records.
func newConformanceWorld(t *testing.T) (shell *world.Machine, l *laptop, f facts) {
	t.Helper()
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1", "syd1")
	l = placeLaptop(t, w, "laptop1", lab.HostConfig{PrivateEtc: true})
	prepareResolved(t, l, newOffice(t, w.Lab(), "office").Addr())
	far := []string{"ams1", "nrt1", "syd1"}
	for i, ms := range []time.Duration{20, 240, 300} { // as far from fra1 as from the laptop
		for _, near := range []string{"fra1", "home-of-laptop1"} {
			if err := w.Lab().Switch().SetRTT(near, far[i], ms*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
	}
	shell = start(t, w, "fra1", "acme", "shell", "shell")
	w1 := runWith(t, w, "fra1", "web", "w1", []string{"--group", "front", "--meta", "role=primary"}, w.Echo()...)
	w2 := runWith(t, w, "ams1", "web", "w2", []string{"--group", "front", "--meta", "role=replica"}, w.Echo()...)
	w3 := runWith(t, w, "nrt1", "web", "w3", []string{"--group", "worker"}, w.Echo()...)
	start(t, w, "syd1", "acme", "web", "old")
	weft(t, w, "machine", "stop", "--org", "acme", "old")
	l.start(t, w)

	var many []string
	for i := range confBig {
		many = append(many, fmt.Sprintf("2001:db8::%x", 0x100+i))
	}
	long := strings.Repeat("a long text, ", 200)
	long = long[:len(long)-2]
	weft(t, w, append([]string{"record", "create", "--org", "acme", "many", "AAAA"}, many...)...)
	weft(t, w, "record", "create", "--org", "acme", "many", "TXT", long)

	f = facts{
		self: shell.Address.String(), w1: w1.Address.String(), w2: w2.Address.String(), w3: w3.Address.String(),
		apps: "shell,web", host: "ams1",
		longAAAA: question{kind: "aaaa", name: "many.internal", want: strings.Join(many, "\n"), long: true},
		longTXT:  question{kind: "txt", name: "many.internal", want: long, long: true},
	}
	network, nobody := shell.Address.As16(), shell.Address.As16()
	clear(network[8:])
	network[15] = 3
	nobody[12], nobody[13] = 0, 0x77
	f.resolver, f.nobodyAt = netip.AddrFrom16(network).String(), netip.AddrFrom16(nobody).String()
	hosts, err := world.List[api.HostInfo](t.Context(), w, "host", "list")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if h.Name == f.host {
			f.hostAt = h.Address.String()
		}
	}
	await(t, "the laptop to be a client", 10*time.Second, func(ctx context.Context) error {
		clients, err := world.List[api.ClientInfo](ctx, w, "client", "list", "--org", "acme")
		if err != nil || len(clients) != 1 {
			return fmt.Errorf("%d clients, %v", len(clients), err)
		}
		f.laptop = clients[0].Address.String()
		return nil
	})
	return shell, l, f
}
