package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
	"github.com/weftmesh/weft/peers/userspace"
)

// The benchmarks are `make bench`: they print figures, and the aim of each where
// there is one. They assert nothing about time.

func benchmark(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("WEFT_BENCH") == "" {
		t.Skip("a benchmark: make bench runs it")
	}
	need(t, programs...)
}

// figure prints one line that a program can read. aim is "" or, for example,
// "<= 50".
func figure(name string, value float64, unit, aim string) {
	text := fmt.Sprintf("figure: %s %.4g %s", name, value, unit)
	if aim != "" {
		text += " (aim " + aim + ")"
	}
	fmt.Println(text)
}

func percentile(sorted []time.Duration, p float64) float64 {
	i := min(int(float64(len(sorted))*p), len(sorted)-1)
	return float64(sorted[i].Microseconds()) / 1000
}

// From the 201 of a new machine to its name on every host, without delays.
func TestBenchChangeToEffect(t *testing.T) {
	benchmark(t, "nsenter")
	const changes = 250
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	var watchers []*watcher
	for _, h := range []string{"fra1", "ams1", "nrt1"} {
		watchers = append(watchers, newWatcher(t, start(t, w, h, "acme", "shell", "shell-"+h)))
	}
	api := nodeClient(t, w, "fra1")
	var took []time.Duration
	for i := range changes {
		id := fmt.Sprintf("m%d", i)
		addr, err := api.register(t.Context(), "acme", "app"+id, id)
		if err != nil {
			t.Fatal(err)
		}
		created := time.Now() // the 201 has been read
		var wait sync.WaitGroup
		errs := make([]error, len(watchers))
		for j, x := range watchers {
			wait.Go(func() { errs[j] = x.await(t.Context(), "app"+id+".internal.", addr, 5*time.Second) })
		}
		wait.Wait()
		took = append(took, time.Since(created))
		for j, err := range errs {
			if err != nil {
				t.Fatalf("%s on %s: %v", id, watchers[j].machine.Host.Name(), err)
			}
		}
		if err := api.remove(t.Context(), "acme", id); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(took)
	figure("change_to_effect_p50", percentile(took, 0.50), "ms", "")
	figure("change_to_effect_p99", percentile(took, 0.99), "ms", "< 50")
}

// TCP through our device against the plain wireguard-go program of the same
// version, alternated.
func TestBenchThroughput(t *testing.T) {
	benchmark(t, "iperf3", "wg")
	const rounds = 4
	var ours, plain []float64
	for range rounds {
		plain = append(plain, throughput(t, startPlain))
		ours = append(ours, throughput(t, startOurs))
	}
	slices.Sort(ours)
	slices.Sort(plain)
	figure("device_tcp_plain", plain[rounds/2], "Gbit/s", "")
	figure("device_tcp", ours[rounds/2], "Gbit/s", "")
	figure("device_tcp_ratio", ours[rounds/2]/plain[rounds/2], "x", ">= 0.97")
}

// throughput joins two hosts by a veth, starts a device on each and measures one
// TCP stream between them.
func throughput(t *testing.T, startDevice func(t *testing.T, h *lab.Host, number int, other netip.Addr)) float64 {
	t.Helper()
	l := newLab(t)
	defer l.Close()
	var hosts []*lab.Host
	for _, name := range []string{"a", "b"} {
		h, err := l.Host(name, lab.HostConfig{})
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	a, b, err := l.Veth(hosts[0], hosts[1])
	if err != nil {
		t.Fatal(err)
	}
	startDevice(t, hosts[0], 1, b)
	startDevice(t, hosts[1], 2, a)
	server, err := hosts[1].Start("iperf3", "iperf3", []string{"-s", "-1", "-B", "fd00::2"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Kill()
	var gbits float64
	await(t, "iperf3", 30*time.Second, func(ctx context.Context) error {
		out, err := hosts[0].Run(ctx, "iperf3", "-6", "-c", "fd00::2", "-t", "4", "-O", "1", "-J")
		if err == nil {
			gbits, err = iperfGbits([]byte(out))
		}
		return err
	})
	return gbits
}

// From the controller's start on an empty directory to ready; from an agent's
// start to the first ping of its first machine; memory of the idle programs; sizes
// of the binaries.
func TestBenchStartAndSize(t *testing.T) {
	benchmark(t, "ping", "nsenter")
	var ready, joined []time.Duration
	for i := range 5 {
		l := newLab(t)
		began := time.Now()
		w, err := world.New(t.Context(), world.Config{Lab: l, Bin: bin(t)})
		if err != nil {
			t.Fatal(err)
		}
		ready = append(ready, time.Since(began))
		weft(t, w, "org", "create", "acme")
		weft(t, w, "region", "create", "fra")
		first, err := w.AddHost(t.Context(), "fra1", "fra")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.AwaitHosts(t.Context()); err != nil {
			t.Fatal(err)
		}
		a := start(t, w, "fra1", "acme", "web", "a")
		began = time.Now()
		second, err := w.AddHost(t.Context(), "fra2", "fra")
		if err != nil {
			t.Fatal(err)
		}
		await(t, "the second host's agent", 10*time.Second, func(ctx context.Context) error { _, err := w.Status(ctx, second); return err })
		b := start(t, w, "fra2", "acme", "web", "b")
		await(t, "a ping", 10*time.Second, func(ctx context.Context) error {
			_, err := b.In(ctx, "ping", "-c1", "-W1", a.Address.String())
			return err
		})
		joined = append(joined, time.Since(began))
		if i == 4 {
			figure("controller_memory", resident(t, w.ControllerProcess().Pid()), "MB", "")
			figure("agent_memory", resident(t, first.Agent.Pid()), "MB", "")
			figure("run_memory", resident(t, a.Process.Pid()), "MB", "")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(ready)
	slices.Sort(joined)
	figure("controller_start_to_ready", percentile(ready, 0.5), "ms", "")
	figure("enrolment_to_first_ping", percentile(joined, 0.5), "ms", "")
	for _, name := range []string{"weft", "weft-agent", "weft-controller"} {
		info, err := os.Stat(filepath.Join(bin(t), name))
		if err != nil {
			t.Fatal(err)
		}
		figure("size_"+name, float64(info.Size())/1e6, "MB", "")
	}
}

// resident is the memory of a process, in MB.
func resident(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb / 1000
		}
	}
	t.Fatalf("process %d tells no memory", pid)
	return 0
}

// startPlain runs the plain wireguard-go program, set up with wg.
func startPlain(t *testing.T, h *lab.Host, number int, other netip.Addr) {
	t.Helper()
	p, err := h.Start("wireguard-go", filepath.Join(bin(t), "wireguard-go"), []string{"-f", "wgb"}, []string{"LOG_LEVEL=error"})
	if err != nil {
		t.Fatal(err)
	}
	_ = p
	conf := filepath.Join(t.TempDir(), "wg.conf")
	text := fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = 51820\n[Peer]\nPublicKey = %s\nAllowedIPs = fd00::/64\nEndpoint = %s\n",
		benchKeys[number-1], benchKeys[2-number].PublicKey(), netip.AddrPortFrom(other, 51820))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("wg setconf wgb %s && ip addr add fd00::%d/64 dev wgb nodad && ip link set wgb mtu 1420 up", conf, number)
	await(t, "wireguard-go", 5*time.Second, func(ctx context.Context) error {
		_, err := h.Run(ctx, "sh", "-c", script)
		return err
	})
}

// startOurs runs this test program again as a process that holds our device.
func startOurs(t *testing.T, h *lab.Host, number int, other netip.Addr) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"WEFT_BENCH_DEVICE=" + fmt.Sprintf("%d %s", number, netip.AddrPortFrom(other, 51820))}
	if _, err := h.Start("device", self, []string{"-test.run=^$"}, env); err != nil {
		t.Fatal(err)
	}
	await(t, "our device", 5*time.Second, func(ctx context.Context) error {
		_, err := h.Run(ctx, "sh", "-c", fmt.Sprintf("ip addr replace fd00::%d/64 dev wgb nodad && ip link set wgb up", number))
		return err
	})
}

// benchKeys are those of the two ends. They protect nothing.
var benchKeys = [2]wgtypes.Key{{0: 8, 31: 0x40}, {0: 16, 31: 0x40}}

// TestMain is also the process that holds our device, and nothing else, in the
// throughput benchmark.
func TestMain(m *testing.M) {
	if spec := os.Getenv("WEFT_BENCH_DEVICE"); spec != "" {
		if err := holdDevice(spec); err != nil {
			fmt.Fprintln(os.Stderr, "hold the device:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func holdDevice(spec string) error {
	var number int
	var other string
	if _, err := fmt.Sscan(spec, &number, &other); err != nil {
		return err
	}
	endpoint, err := netip.ParseAddrPort(other)
	if err != nil {
		return err
	}
	userspace.Tune()
	dev, err := userspace.New(userspace.Config{Name: "wgb", SocketDir: "/run"})
	if err != nil {
		return err
	}
	defer dev.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	want := peers.Config{PrivateKey: benchKeys[number-1], ListenPort: 51820, Peers: []peers.Peer{{
		Key: benchKeys[2-number].PublicKey(), Endpoint: endpoint, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("fd00::/64")},
	}}}
	have, err := dev.Config(ctx)
	if err != nil {
		return err
	}
	if err := dev.Apply(ctx, peers.Diff(have, want)); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// watcher asks the resolver as a machine does, from a socket in its namespace.
type watcher struct {
	machine  *world.Machine
	inside   *netns.Handle
	resolver netip.AddrPort
}

func newWatcher(t *testing.T, m *world.Machine) *watcher {
	t.Helper()
	pid, err := m.Pid()
	if err != nil {
		t.Fatal(err)
	}
	inside, err := netns.OpenPath(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inside.Close() })
	a := m.Address.As16() // a /48 mesh: <mesh>::3
	clear(a[6:])
	a[15] = 3
	return &watcher{m, inside, netip.AddrPortFrom(netip.AddrFrom16(a), 53)}
}

func (w *watcher) dial(ctx context.Context, network string, to netip.AddrPort) (conn net.Conn, err error) {
	err = w.inside.Do(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, to.String())
		return err
	})
	return conn, err
}

// await asks until name is addr, without a pause.
func (w *watcher) await(ctx context.Context, name string, addr netip.Addr, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		reply, err := dns.Lookup(ctx, w.dial, w.resolver, name, "AAAA")
		if err != nil {
			return err
		}
		if strings.TrimSpace(reply.Short()) == addr.String() {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s is not %s after %s:\n%s", name, addr, within, reply)
		}
	}
}

// node speaks to the controllers, those given or the first one, as a host does.
type node struct{ *api.Client }

func nodeClient(t *testing.T, w *world.World, host string, servers ...string) node {
	t.Helper()
	if len(servers) == 0 {
		servers = []string{w.URL}
	}
	id := enroll.Identity{Dir: w.StateDir(host)}
	keys, err := id.Keys()
	if err != nil {
		t.Fatal(err)
	}
	member, err := id.Load()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := keys.Certificate(member.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	c, err := api.New(api.Config{
		Servers: servers,
		TLS:     enroll.ClientTLS(enroll.ClientConfig{Roots: member.Roots, Certificate: func() *tls.Certificate { return cert }}),
		Dial:    w.Hosts[host].DialContext,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return node{c}
}

func (n node) register(ctx context.Context, org, app, id string) (netip.Addr, error) {
	var m api.MachineInfo
	err := n.Do(ctx, http.MethodPost, "/v1/orgs/"+org+"/machines", api.CreateMachine{ID: id, App: app}, &m)
	return m.Address, err
}

func (n node) remove(ctx context.Context, org, id string) error {
	return n.Do(ctx, http.MethodDelete, "/v1/orgs/"+org+"/machines/"+id, nil, nil)
}
