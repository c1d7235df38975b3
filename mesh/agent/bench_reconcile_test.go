package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/attach"
)

// large is a host's loop on a real data plane, with a view of many machines on some
// hundred hosts.
type large struct {
	*testing.T
	loop  *loop
	v     *version
	hosts int
}

const (
	largeHosts = 300
	largeOrgs  = 20
)

// largeView has n machines on the other hosts and here on this one.
func largeView(t testing.TB, n, here int) *mesh.View {
	v := &mesh.View{
		Revision: mesh.Revision{Epoch: 1, Revision: 1}, Plan: testPlan(t), Self: mesh.Node{Kind: mesh.KindHost, Name: "a"},
		Host: &mesh.Host{Name: "a", Number: 1, RegionNumber: 1}, Controllers: []string{"https://c"}, Roots: []string{"r"},
	}
	for i := range largeOrgs {
		v.Orgs = append(v.Orgs, mesh.Org{Name: fmt.Sprintf("o%02d", i), Network: uint64(i + 1)})
	}
	for i := range largeHosts {
		v.Hosts = append(v.Hosts, largeHost(i))
	}
	for i := range n {
		v.Machines = append(v.Machines, largeMachine(t, i, largeHost(i%largeHosts)))
	}
	self := mesh.ViewHost{Name: "a", Number: 1, RegionNumber: 1}
	for i := range here {
		v.Machines = append(v.Machines, largeMachine(t, 1_000_000+i, self))
	}
	sortView(v)
	return v
}

func largeHost(i int) mesh.ViewHost {
	h := mesh.ViewHost{
		Name: fmt.Sprintf("h%04d", i), Number: uint32(i + 2), RegionNumber: 1, Present: true,
		Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), 9)},
	}
	h.Key[0], h.Key[1], h.Key[2] = byte(i), byte(i>>8), 1
	for o := range 5 {
		h.Orgs = append(h.Orgs, fmt.Sprintf("o%02d", (i+o)%largeOrgs))
	}
	slices.Sort(h.Orgs)
	return h
}

func largeMachine(t testing.TB, i int, at mesh.ViewHost) mesh.Machine {
	org := i % largeOrgs
	return mesh.Machine{
		Org: fmt.Sprintf("o%02d", org), ID: fmt.Sprintf("m%07d", i), App: "web", Host: at.Name, State: mesh.StateStarted,
		Endpoint: testPlan(t).Endpoint(uint64(org+1), at.Position(), uint16(i/largeHosts%60000+1)),
	}
}

// newLarge brings up a data plane. It is for a namespace of the test's own.
func newLarge(t *testing.T, n, here int) *large {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	cfg, err := HostConfig{
		Join: Join{StateDir: filepath.Join(dir, "state")}, Port: freePort(t), Namespace: fmt.Sprintf("weft-%d-%d", n, here), Link: "weft0",
		SocketDir: filepath.Join(dir, "wg"), Socket: filepath.Join(dir, "agent.sock"), Backend: BackendUserspace, Log: log,
		Disable: map[string]bool{DisableProbes: true}, Upstreams: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")},
	}.withDefaults()
	mustDo(t, err)
	mustDo(t, os.MkdirAll(cfg.StateDir, 0o700))
	zone := newZones(cfg.Disable)
	p, err := openPlane(t.Context(), cfg, func() int { return 1420 }, zone, func() {})
	mustDo(t, err)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := Clean(context.Background(), cfg); err != nil {
			t.Error(err)
		}
	})
	connected := func() contact { return contact{connected: true} }
	m, err := openMachines(&machines{host: "a", dir: cfg.StateDir, reclaim: time.Hour, wake: func() {}, log: log})
	mustDo(t, err)
	l := &large{T: t, hosts: largeHosts, loop: &loop{
		system: p, machines: m, tunnels: tunnels{key: privateKey(), port: cfg.Port, log: log}, link: cfg.Link, probe: 51821,
		mtu: func(*mesh.View) int { return 1420 }, contact: connected, reach: connected, differ: zone.differ, correct: zone.correct,
		feed: &feed{}, alarms: &alarms{wake: func() {}}, events: &events{wake: func() {}}, timing: Timing{Tick: time.Hour, Look: time.Hour}.withDefaults(), log: log,
	}}
	view := largeView(t, n, here)
	for _, r := range view.Machines {
		if r.Host == "a" {
			l.enter(r)
		}
	}
	l.v = versionOf(view)
	zone.follow(l.v, nil)
	l.loop.feed.add(l.v, nil)
	l.next(true)
	return l
}

func mustDo(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// enter is a machine's process.
func (l *large) enter(r mesh.Machine) {
	m := l.loop.machines
	m.mu.Lock()
	defer m.mu.Unlock()
	key := machineKey(r)
	m.stays[key] = &stay{
		key: key, link: attach.LinkName(r.Org, r.ID), standing: standing{record: r, epoch: 1},
		ready: make(chan struct{}), lost: make(chan struct{}, 1), over: make(chan struct{}), unlinked: make(chan struct{}, 1),
	}
	m.newsLocked(key)
}

func (l *large) next(whole bool) {
	l.Helper()
	passed := l.loop.due
	a, _, err := l.loop.next(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	if l.loop.progress == nil || a == nil || (l.loop.due != passed) != whole {
		l.Fatalf("a whole pass: %v, want %v", l.loop.due != passed, whole)
	}
}

// change puts a change of the view in effect.
func (l *large) change(d mesh.Delta) {
	l.Helper()
	d.Revision = mesh.Revision{Epoch: 1, Revision: l.v.head.Revision.Revision + 1}
	l.v = l.v.with(d)
	l.loop.feed.add(l.v, &d)
	l.next(false)
}

// changes are the kinds of change: each is made, and taken back.
func (l *large) changes() map[string][2]func() {
	there := largeMachine(l, 2_000_000, largeHost(7))
	away := largeMachine(l, 3_000_000, largeHost(7))
	away.Host = largeHost(8).Name
	here := largeMachine(l, 4_000_000, mesh.ViewHost{Name: "a", Number: 1, RegionNumber: 1})
	host := largeHost(largeHosts)
	machine := func(r mesh.Machine) [2]func() {
		return [2]func(){
			func() { l.change(mesh.Delta{Machines: []mesh.Machine{r}}) },
			func() { l.change(mesh.Delta{Removed: []string{"machines/" + machineKey(r)}}) },
		}
	}
	local := machine(here)
	return map[string][2]func(){
		"machine_elsewhere": machine(there),
		"machine_away":      machine(away),
		"machine_here": {
			func() { l.enter(here); local[0]() },
			func() {
				m := l.loop.machines
				m.mu.Lock()
				delete(m.stays, machineKey(here))
				m.mu.Unlock()
				local[1]()
			},
		},
		"host": {
			func() { l.change(mesh.Delta{Hosts: []mesh.ViewHost{host}}) },
			func() {
				l.change(mesh.Delta{Removed: []string{"hosts/" + host.Name}})
				for key := range l.loop.progress.retired {
					l.loop.progress.retired[key] = time.Time{}
				}
				l.next(false)
			},
		},
		"grant": {
			func() {
				l.change(mesh.Delta{Grants: []mesh.Grant{{ID: "g", From: mesh.Party{Org: "o00"}, To: mesh.Party{Org: "o01"}, Protocol: "tcp", FirstPort: 1, LastPort: 2}}})
			},
			func() { l.change(mesh.Delta{Removed: []string{"grants/g"}}) },
		},
	}
}

// messages counts the requests that this process sends to the kernel by netlink and
// to the device by its socket while f runs, by where they go.
func messages(t *testing.T, f func()) map[string]int {
	t.Helper()
	out := filepath.Join(t.TempDir(), "strace")
	trace := exec.Command("strace", "-f", "-yy", "-s", "16", "-e", "trace=sendto,sendmsg,write", "-o", out, "-p", strconv.Itoa(os.Getpid()))
	said, err := trace.StderrPipe()
	mustDo(t, err)
	mustDo(t, trace.Start())
	first := bufio.NewReader(said)
	if line, err := first.ReadString('\n'); err != nil || !strings.Contains(line, "attached") {
		t.Skipf("strace may not trace here: %s %v", line, err)
	}
	go io.Copy(io.Discard, first)
	f()
	mustDo(t, trace.Process.Signal(syscall.SIGINT))
	trace.Wait()
	text, err := os.ReadFile(out)
	mustDo(t, err)
	text = joined(text)
	counts := map[string]int{}
	for _, x := range []struct{ name, pattern string }{
		// The library for routes sends in the one way, that for rules in the other.
		{"routes", `(?m)^.*sendto\(\d+<NETLINK.* = (\d+)$`}, {"rules", `(?m)^.*sendmsg\(\d+<NETLINK.* = (\d+)$`},
		{"device", `(?m)^.*write\(\d+<UNIX-STREAM[^)]*"set=1.* = (\d+)$`},
	} {
		for _, m := range regexp.MustCompile(x.pattern).FindAllSubmatch(text, -1) {
			n, err := strconv.Atoi(string(m[1]))
			mustDo(t, err)
			counts[x.name]++
			counts[x.name+" bytes"] += n
		}
	}
	return counts
}

// joined puts together the lines of calls during which another thread's were written.
func joined(trace []byte) []byte {
	begun := map[string]string{} // by thread
	var out strings.Builder
	for line := range strings.Lines(string(trace)) {
		thread, call, _ := strings.Cut(line, " ")
		if before, cut := strings.CutSuffix(strings.TrimSpace(call), "<unfinished ...>"); cut {
			begun[thread] = before
			continue
		}
		if call = strings.TrimSpace(call); strings.HasPrefix(call, "<... ") {
			_, after, _ := strings.Cut(call, " resumed>")
			call = begun[thread] + after
		}
		fmt.Fprintln(&out, thread, call)
	}
	return []byte(out.String())
}

// What a change of one thing sends to the kernel and to the device is the same
// whatever the size of the mesh, and of the host.
func TestOneChangeCostsOneChange(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is not installed: it counts the messages")
	}
	if !inNamespace(t) {
		return
	}
	var want map[string]map[string]int
	for _, size := range []struct{ machines, here int }{{10, 1}, {5000, 1}, {10, 1000}} {
		l := newLarge(t, size.machines, size.here)
		got := map[string]map[string]int{}
		for kind, x := range l.changes() {
			got[kind] = messages(t, func() { x[0](); x[1]() })
		}
		for _, kind := range slices.Sorted(maps.Keys(got)) {
			t.Logf("%d machines, %d here: %-18s %v", size.machines, size.here, kind, got[kind])
		}
		if n := got["host"]; n["routes"] == 0 || n["device"] == 0 || got["machine_here"]["rules"] == 0 || got["grant"]["rules"] == 0 {
			t.Fatalf("what is sent is not seen: %v", got)
		}
		if want == nil {
			want = got
			continue
		}
		for kind, n := range want {
			if !maps.Equal(n, got[kind]) {
				t.Errorf("%s: with %d machines and %d here %v, with few %v", kind, size.machines, size.here, got[kind], n)
			}
		}
	}
}

// How long one change takes, and a whole pass, at several sizes of the mesh.
func TestBenchReconcile(t *testing.T) {
	if os.Getenv("WEFT_BENCH") == "" {
		t.Skip("a benchmark: make bench runs it")
	}
	if !inNamespace(t) {
		return
	}
	const rounds = 60
	base := map[string]float64{}
	for _, size := range []struct {
		name           string
		machines, here int
	}{{"10", 10, 1}, {"1000", 1000, 1}, {"100000", 100000, 1}, {"10000_here", 10, 10000}} {
		l := newLarge(t, size.machines, size.here)
		l.loop.alarms.raise("")
		began := time.Now()
		l.next(true)
		report("reconcile_whole_ms_"+size.name, float64(time.Since(began).Microseconds())/1000, "ms", "")
		changes := l.changes()
		var all, cpu float64
		for _, kind := range slices.Sorted(maps.Keys(changes)) {
			var took []time.Duration
			before := cpuTime()
			for range rounds {
				for _, step := range changes[kind] {
					began := time.Now()
					step()
					took = append(took, time.Since(began))
				}
			}
			used := float64((cpuTime() - before).Microseconds()) / float64(len(took))
			slices.Sort(took)
			median := float64(took[len(took)/2].Nanoseconds()) / 1000
			report("reconcile_"+kind+"_us_"+size.name, median, "us", "")
			all, cpu = all+median, cpu+used
		}
		n := float64(len(changes))
		report("reconcile_one_change_us_"+size.name, all/n, "us", "")
		report("reconcile_one_change_cpu_us_"+size.name, cpu/n, "us", "")
		base[size.name] = all / n
	}
	report("reconcile_ratio_100000", base["100000"]/base["10"], "x", "<= 1.5")
	report("reconcile_ratio_10000_here", base["10000_here"]/base["10"], "x", "<= 1.5")
}

func report(name string, value float64, unit, aim string) {
	text := fmt.Sprintf("figure: %s %.4g %s", name, value, unit)
	if aim != "" {
		text += " (aim " + aim + ")"
	}
	fmt.Println(text)
}

// cpuTime is the processor time of this process.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
