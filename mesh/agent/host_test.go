package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/peers/netns"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and TUN links need root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN driver here: %v", err)
	}
}

// eventually waits for a condition. It asks again every few milliseconds.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// logs collects what is logged; a test that fails shows it.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) contains(s string) bool { return strings.Contains(l.String(), s) }

func newLog(t *testing.T) (*slog.Logger, *logs) {
	l := &logs{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", l)
		}
	})
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo})), l
}

// node is an agent under test.
type node struct {
	t      *testing.T
	cfg    HostConfig
	cancel context.CancelFunc
	done   chan error
}

// quick shortens the times of a test's agent.
func quick() Timing {
	return Timing{
		Tick: 500 * time.Millisecond, Backoff: 20 * time.Millisecond, MaxBackoff: 200 * time.Millisecond, Silence: 2 * time.Second,
		Reclaim: 400 * time.Millisecond, CacheWrite: 10 * time.Millisecond, Report: 200 * time.Millisecond, Attach: 5 * time.Second,
		Probe: probe.Timing{Interval: 100 * time.Millisecond, SuspectAfter: 500 * time.Millisecond, StartGrace: 6 * time.Second, Window: time.Second},
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}

// newNode prepares an agent; several fit on one machine.
func newNode(t *testing.T, c *control, name string) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, cfg: HostConfig{
		Join: Join{
			StateDir: filepath.Join(dir, "state"), Token: enroll.NewSecret(c.token.Text()), Controllers: []string{c.url()}, Name: name, Version: "test",
		},
		Port: freePort(t), Namespace: "weft-" + name, Link: "weft-" + name, SocketDir: filepath.Join(dir, "wg"),
		Socket: filepath.Join(dir, "run", "agent.sock"), Upstreams: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")},
		Timing: quick(), Log: c.log.With("node", name),
	}}
	t.Cleanup(func() {
		n.stop()
		if err := Clean(context.Background(), n.cfg); err != nil {
			t.Errorf("clean: %v", err)
		}
	})
	return n
}

func (n *node) start() *node {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan error, 1)
	go func() { n.done <- RunHost(ctx, n.cfg) }()
	return n
}

func (n *node) stop() {
	n.t.Helper()
	if n.cancel == nil {
		return
	}
	n.cancel()
	if err := <-n.done; err != nil {
		n.t.Errorf("agent %s: %v", n.cfg.Name, err)
	}
	n.cancel = nil
}

func (n *node) client() local.Client { return local.Client{Socket: n.cfg.Socket} }

func (n *node) status() local.Status {
	s, _ := n.client().Status(context.Background())
	return s
}

func (n *node) peer(name string) local.Peer {
	for _, p := range n.status().Peers {
		if p.Name == "host/"+name {
			return p
		}
	}
	return local.Peer{}
}

func (n *node) digs(org, name string) []string {
	d, err := n.client().Dig(context.Background(), org, name, "AAAA")
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, line := range d.Answer {
		fields := strings.Split(line, "\t")
		out = append(out, fields[len(fields)-1])
	}
	return out
}

// workload is a machine under test: a namespace that a thread holds, as `weft run`
// has one.
type workload struct {
	t    *testing.T
	ns   *netns.Handle
	tid  int
	end  func()
	stay *local.Attachment
}

func newWorkload(t *testing.T) *workload {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	w := &workload{t: t, ns: ns}
	tid, end, done := make(chan int), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ns.Do(func() error {
			tid <- unix.Gettid()
			<-end
			return nil
		})
	}()
	w.tid = <-tid
	var once sync.Once
	w.end = func() {
		once.Do(func() {
			if w.stay != nil {
				w.stay.Close()
			}
			close(end)
			<-done
			ns.Close()
		})
	}
	t.Cleanup(w.end)
	return w
}

func (w *workload) attach(n *node, r local.AttachRequest) *workload {
	w.t.Helper()
	if err := w.tryAttach(n, r); err != nil {
		w.t.Fatal(err)
	}
	return w
}

func (w *workload) tryAttach(n *node, r local.AttachRequest) (err error) {
	r.TID = w.tid
	w.stay, err = n.client().Attach(context.Background(), r)
	return err
}

// lookup asks the machines' resolver from inside the machine.
func (w *workload) lookup(name string) []string {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	reply, err := dns.Lookup(ctx, dialFrom(w.ns, w.stay.Address), netip.AddrPortFrom(w.stay.Resolver, 53), name, "AAAA")
	if err != nil {
		return []string{err.Error()}
	}
	if len(reply.Answers) == 0 {
		return []string{reply.Rcode}
	}
	return strings.Fields(reply.Short())
}

// serve answers TCP connections at port 80 of the machine with its id.
func (w *workload) serve() {
	w.t.Helper()
	var l net.Listener
	err := w.ns.Do(func() (err error) {
		l, err = net.Listen("tcp6", netip.AddrPortFrom(w.stay.Address, 80).String())
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	id := w.stay.ID
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(id))
			c.Close()
		}
	}()
}

// get fetches from a machine's port 80.
func (w *workload) get(to netip.Addr) (string, error) {
	var c net.Conn
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := w.ns.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp6", netip.AddrPortFrom(to, 80).String())
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// inNamespace runs the calling test again in a process of its own, in network and
// mount namespaces of its own, and reports whether this is that process. Whatever
// the test makes is gone with it.
func inNamespace(t *testing.T) bool {
	t.Helper()
	needRoot(t)
	const marker = "WEFT_TEST_NAMESPACE"
	if os.Getenv(marker) == t.Name() {
		privateSystem(t)
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v="+fmt.Sprint(testing.Verbose()), "-test.timeout=100s")
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// privateSystem gives the process a /run and a resolv.conf of its own, and a
// loopback that is up.
func privateSystem(t *testing.T) {
	t.Helper()
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo"}}
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"),
		os.WriteFile(resolv, []byte("nameserver 127.0.0.1\n"), 0o644),
		unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""),
		netlink.LinkSetUp(lo),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Two hosts, machines of two orgs, and what becomes of them: the whole loop with
// the real device, firewall, links and resolver.
func TestHosts(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c := newControl(t)
	a := newNode(t, c, "a").start()
	eventually(t, 10*time.Second, "a works", func() bool { return a.status().Address.IsValid() && a.status().Connected })
	b := newNode(t, c, "b").start()
	eventually(t, 10*time.Second, "b works", func() bool { return b.status().Connected })

	web1 := newWorkload(t).attach(a, local.AttachRequest{Org: "acme", App: "web", ID: "web1"})
	web2 := newWorkload(t).attach(b, local.AttachRequest{Org: "acme", App: "web", ID: "web2"})
	db := newWorkload(t).attach(a, local.AttachRequest{Org: "acme", App: "db"})
	spy := newWorkload(t).attach(a, local.AttachRequest{Org: "other", App: "spy", ID: "spy"})
	web1.serve()
	web2.serve()
	eventually(t, 5*time.Second, "a names both", func() bool { return len(db.lookup("all.web.internal")) == 1 && len(web1.lookup("web.internal")) == 2 })
	if got, err := web1.get(web2.stay.Address); got != "web2" {
		t.Errorf("web1 to web2: %q, %v", got, err)
	}
	if got := db.lookup("top1.nearest.of.web.internal"); len(got) != 1 || got[0] != web1.stay.Address.String() {
		t.Errorf("the nearest web for db is %v, want %s", got, web1.stay.Address)
	}
	if got := spy.lookup("web.internal"); got[0] != "NXDOMAIN" {
		t.Errorf("another org sees %v", got)
	}
	if got, err := spy.get(web1.stay.Address); err == nil {
		t.Errorf("another org reached web1: %q", got)
	}
	eventually(t, 10*time.Second, "b is measured by a", func() bool { return a.peer("b").State == local.PeerOK })
	if p, err := a.client().Ping(context.Background(), "acme", "web2.vm.web.internal"); err != nil || p.Error != "" {
		t.Errorf("ping: %+v, %v", p, err)
	}

	t.Run("gone when it ends", func(t *testing.T) {
		w := newWorkload(t).attach(b, local.AttachRequest{Org: "acme", App: "tmp", ID: "tmp"})
		eventually(t, 5*time.Second, "tmp is named on a", func() bool { return len(a.digs("acme", "tmp.internal")) == 1 })
		w.end()
		eventually(t, 5*time.Second, "the record is gone", func() bool { return !c.now().Machines.Has("acme/tmp") })
		eventually(t, 5*time.Second, "its name is gone on a", func() bool { return len(a.digs("acme", "tmp.internal")) == 0 })
		if len(b.status().Machines) != 1 {
			t.Errorf("machines on b: %+v", b.status().Machines)
		}
	})

	t.Run("removed by an operator", func(t *testing.T) {
		w := newWorkload(t).attach(b, local.AttachRequest{Org: "acme", App: "tmp", ID: "cut"})
		c.change(mesh.Change{Key: "machines/acme/cut"})
		select {
		case <-w.stay.Gone():
		case <-time.After(5 * time.Second):
			t.Fatal("the machine was not told")
		}
		if err := w.tryAttach(b, local.AttachRequest{Org: "acme", App: "tmp", ID: "cut"}); err == nil {
			t.Error("it came back although it was removed")
		}
	})

	t.Run("without any controller, and restarted", func(t *testing.T) {
		c.stop()
		eventually(t, 5*time.Second, "a notices", func() bool { return !a.status().Connected })
		a.stop()
		select {
		case <-web1.stay.Gone():
		case <-time.After(5 * time.Second):
			t.Fatal("the connection to the agent did not end")
		}
		a.start()
		eventually(t, 5*time.Second, "a works from its cache", func() bool { return a.status().FromCache && a.peer("b").Key != "" })
		if err := web1.tryAttach(a, local.AttachRequest{Org: "acme", App: "web", ID: "web1"}); err != nil {
			t.Fatalf("web1 comes back: %v", err)
		}
		eventually(t, 10*time.Second, "web1 reaches web2", func() bool { got, _ := web1.get(web2.stay.Address); return got == "web2" })
		if got := web1.lookup("web.internal"); len(got) != 2 {
			t.Errorf("names from the cache: %v", got)
		}
		err := newWorkload(t).tryAttach(a, local.AttachRequest{Org: "acme", App: "web", ID: "web3"})
		if err == nil || !strings.Contains(err.Error(), "no controller can be reached") {
			t.Errorf("a new machine without a controller: %v", err)
		}
		// What has no process any more is not named any more, whoever can be told.
		db.end()
		c.start(c.address)
		eventually(t, 10*time.Second, "a is connected", func() bool { return a.status().Connected && !a.status().FromCache })
		eventually(t, 5*time.Second, "db left", func() bool { return !c.now().Machines.Has("acme/" + db.stay.ID) })
		if !c.now().Machines.Has("acme/web1") {
			t.Error("web1 was lost")
		}
		newWorkload(t).attach(a, local.AttachRequest{Org: "acme", App: "web", ID: "web4"})
		eventually(t, 5*time.Second, "a new machine is named on b", func() bool { return len(b.digs("acme", "web4.vm.web.internal")) == 1 })
	})

	t.Run("a host that dies is left out", func(t *testing.T) {
		eventually(t, 10*time.Second, "b is measured", func() bool { return a.peer("b").State == local.PeerOK })
		b.stop()
		eventually(t, 5*time.Second, "b is suspect", func() bool { return a.peer("b").State == local.PeerSuspect })
		eventually(t, time.Second, "its machine is left out", func() bool {
			got := a.digs("acme", "global.web.internal")
			for _, addr := range got {
				if addr == web2.stay.Address.String() {
					return false
				}
			}
			return len(got) > 0
		})
		b.start()
		eventually(t, 10*time.Second, "b is well again", func() bool { return a.peer("b").State == local.PeerOK })
	})
}
