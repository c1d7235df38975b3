package userspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
	"github.com/weftmesh/weft/peers/peerstest"
)

func TestMain(m *testing.M) {
	serveIfAsked()
	goleak.VerifyTestMain(m)
}

func needTUN(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("TUN links and network namespaces need root")
	}
	if _, err := os.Stat(tunPath); err != nil {
		t.Skipf("this machine has no TUN driver: %v", err)
	}
}

// newPlane returns a namespace of the test's own.
func newPlane(t *testing.T) *netns.Handle {
	t.Helper()
	needTUN(t)
	h, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// open makes a device wg0 in a namespace of its own, unless c says otherwise.
func open(t *testing.T, c Config) *Device {
	t.Helper()
	if c.Plane == nil {
		c.Plane = newPlane(t)
	}
	if c.Name == "" {
		c.Name = "wg0"
	}
	if c.SocketDir == "" {
		c.SocketDir = t.TempDir()
	}
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// eventually waits for ok, at most ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after ten seconds still not: %s", what)
		}
	}
}

func linkIn(t *testing.T, plane *netns.Handle, name string) netlink.Link {
	t.Helper()
	nl, err := plane.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	l, err := nl.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestConformance(t *testing.T) {
	needTUN(t)
	t.Parallel()
	peerstest.Run(t, func(t *testing.T) peers.Device { return open(t, Config{}) })
}

func TestLink(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	d := open(t, Config{Plane: plane, MTU: 1380})
	l := linkIn(t, plane, "wg0")
	if l == nil {
		t.Fatal("there is no link in the plane")
	}
	if linkIn(t, nil, "wg0") != nil {
		t.Fatal("the link is in the process's namespace")
	}
	if l.Attrs().MTU != 1380 || l.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("link has MTU %d and flags %v, want 1380 and down", l.Attrs().MTU, l.Attrs().Flags)
	}

	// Up, it has no address, link-local or other.
	nl, err := plane.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	if err := nl.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	if addrs, err := nl.AddrList(l, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
		t.Errorf("addresses of the link: %v, %v", addrs, err)
	}

	// wireguard-go learns of a new MTU, asked where the link is.
	if err := nl.LinkSetMTU(l, 1300); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the MTU is learnt", func() bool {
		d.link.mu.Lock()
		defer d.link.mu.Unlock()
		return d.link.mtu == 1300
	})
}

// The UDP sockets are in the process's namespace, also for a caller who is not.
func TestSocketsAreInTheProcessNamespace(t *testing.T) {
	t.Parallel()
	elsewhere := newPlane(t)
	dir := t.TempDir()
	var d *Device
	err := elsewhere.Do(func() (err error) {
		d, err = New(Config{Name: "wg0", Plane: elsewhere, SocketDir: dir})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c, err := d.Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(c.ListenPort)}); err == nil {
		conn.Close()
		t.Errorf("nobody here holds the device's port %d", c.ListenPort)
	} else if !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
}

// Packets of the IPv4 socket may be cut on their way, whatever port it is on.
func TestFragmentsAreAllowed(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	check := func() {
		t.Helper()
		c, err := d.Config(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for fd := range len(files) + 100 {
			if !isUDP4(fd, c.ListenPort) {
				continue
			}
			found++
			got, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
			if err != nil || got != unix.IP_PMTUDISC_OMIT {
				t.Errorf("port %d: IP_MTU_DISCOVER = %d, %v", c.ListenPort, got, err)
			}
		}
		if found != 1 {
			t.Errorf("%d IPv4 sockets on port %d, want 1", found, c.ListenPort)
		}
	}
	check()
	free, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	port := free.LocalAddr().(*net.UDPAddr).Port
	free.Close()
	if err := d.Apply(t.Context(), []peers.Change{{Op: peers.SetDevice, Device: peers.Config{ListenPort: uint16(port)}}}); err != nil {
		t.Fatal(err)
	}
	check()
}

// A port that is taken is told by its number, does not stop what comes after it,
// and is had once it is free.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	holder, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(holder.LocalAddr().(*net.UDPAddr).Port)
	want := peers.Config{PrivateKey: wgtypes.Key{8}, ListenPort: port, Peers: []peers.Peer{owns(1, "fd12::/96")}}
	pass := func() error {
		have, err := d.Config(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return d.Apply(t.Context(), peers.Diff(have, want))
	}
	err = pass()
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "listen on UDP port") || strings.Contains(err.Error(), "peer") {
		t.Errorf("Apply = %v, want the port and %v", err, syscall.EADDRINUSE)
	}
	if c, _ := d.Config(t.Context()); len(c.Peers) != 1 || c.PrivateKey.PublicKey() != want.PrivateKey.PublicKey() {
		t.Errorf("the rest was not done:\n%s", c)
	}
	holder.Close()
	if err := pass(); err != nil {
		t.Fatal(err)
	}
	if c, _ := d.Config(t.Context()); c.ListenPort != port {
		t.Errorf("port %d, want %d", c.ListenPort, port)
	}
}

// Each peer that is refused is named, the others are made.
func TestRefusedPeerIsNamed(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	bad := owns(2, "fd12:2::/96")
	bad.Keepalive = 70000 * time.Second // more than the protocol has room for
	err := d.Apply(t.Context(), []peers.Change{
		{Op: peers.AddPeer, Peer: owns(1)}, {Op: peers.AddPeer, Peer: bad}, {Op: peers.AddPeer, Peer: owns(3, "fd12:3::/96")},
	})
	if !errors.Is(err, syscall.EINVAL) || strings.Count(err.Error(), "peer") != 1 || !strings.Contains(err.Error(), bad.Key.String()) {
		t.Errorf("Apply = %v, want peer %s alone and %v", err, bad.Key, syscall.EINVAL)
	}
	if c, _ := d.Config(t.Context()); len(c.Peers) < 2 || c.Peers[len(c.Peers)-1].Key != (wgtypes.Key{3}) {
		t.Errorf("the peer after it is not there:\n%s", c)
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{}, `link name "": want`},
		{Config{Name: "sixteen-bytes-xx"}, "want 1 to 15 bytes"},
		{Config{Name: "wg%d"}, "without space, slash, colon, percent"},
		{Config{Name: "../wg0"}, "without space, slash"},
		{Config{Name: ".."}, "without space, slash"},
		{Config{Name: "wg0", MTU: 1279}, "MTU 1279 of wg0: want 1280"},
		{Config{Name: "wg0", MTU: 65504}, "MTU 65504 of wg0"},
		{Config{Name: "wg0", SocketDir: "/tmp/" + strings.Repeat("x", 120)}, "too long for the path of a socket"},
	} {
		if _, err := New(tt.c); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v) = %v, want %q", tt.c, err, tt.want)
		}
	}
}

// A client that sends half an operation keeps nobody from the device.
func TestHalfAnOperation(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	for _, half := range []string{"set=1\nprivate_key=", "get=1\n", "se"} {
		stuck, err := net.Dial("unix", d.uapi.path)
		if err != nil {
			t.Fatal(err)
		}
		defer stuck.Close()
		if _, err := stuck.Write([]byte(half)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 3 {
		if err := d.Apply(ctx, []peers.Change{{Op: peers.AddPeer, Peer: owns(1)}}); err != nil {
			t.Error(err)
		}
		if c, err := d.Config(ctx); err != nil || len(c.Peers) != 1 {
			t.Errorf("%d peers, %v", len(c.Peers), err)
		}
	}
}

// Whoever waits for a device that does not answer, with a deadline, gets it.
func TestCallEndsWithItsContext(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	silent, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	d := talker{name: "wg0", path: path, ready: func(ctx context.Context) error { return ctx.Err() }}
	for what, call := range map[string]func(ctx context.Context) error{
		"Config": func(ctx context.Context) error { _, err := d.Config(ctx); return err },
		"Stats":  func(ctx context.Context) error { _, err := d.Stats(ctx); return err },
		"Apply": func(ctx context.Context) error {
			return d.Apply(ctx, []peers.Change{{Op: peers.AddPeer, Peer: owns(1)}})
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		began := time.Now()
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > patience/2 {
			t.Errorf("%s: %v after %s, want its deadline", what, err, time.Since(began))
		}
		cancel()
	}
}

// Who does not read, or stops in the middle of a line, is left.
func TestImpatientConnection(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	defer there.Close()
	c := impatient{here, 10 * time.Millisecond}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read = %v", err)
	}
	if _, err := c.Write(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write = %v", err)
	}
}

// wireguard-go opens and closes its sockets as the link goes up and down, and only
// logs when it cannot. So it does not hear of it.
func TestUpAndDownAreNoNews(t *testing.T) {
	t.Parallel()
	inner := make(chan tun.Event)
	l := &link{Device: eventTUN{events: inner}, events: make(chan tun.Event), ended: make(chan struct{})}
	go l.filter()
	go func() {
		for _, e := range []tun.Event{tun.EventUp, tun.EventMTUUpdate, tun.EventDown, tun.EventMTUUpdate | tun.EventDown} {
			inner <- e
		}
		close(inner)
	}()
	var got []tun.Event
	for e := range l.Events() {
		got = append(got, e)
	}
	<-l.ended
	if diff := cmp.Diff([]tun.Event{tun.EventMTUUpdate, tun.EventMTUUpdate}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

type eventTUN struct {
	noTUN
	events chan tun.Event
}

func (e eventTUN) Events() <-chan tun.Event { return e.events }

// wg(8) and wgctrl find the device in their default directory.
func TestForeignTools(t *testing.T) {
	t.Parallel()
	needTUN(t)
	if _, err := os.Stat(DefaultSocketDir); errors.Is(err, os.ErrNotExist) {
		t.Cleanup(func() { os.Remove(DefaultSocketDir) })
	}
	name := fmt.Sprintf("wt%d", os.Getpid())
	d := open(t, Config{Name: name, SocketDir: DefaultSocketDir})
	want := peers.Config{PrivateKey: wgtypes.Key{8}, Peers: []peers.Peer{owns(1, "fd12::/96")}}
	if err := d.Apply(t.Context(), peers.Diff(peers.Config{}, want)); err != nil {
		t.Fatal(err)
	}
	wg, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	defer wg.Close()
	dev, err := wg.Device(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(dev.Peers) != 1 || dev.Peers[0].AllowedIPs[0].String() != "fd12::/96" || dev.PrivateKey.PublicKey() != want.PrivateKey.PublicKey() {
		t.Errorf("wgctrl sees %+v", dev)
	}
	if err := wg.ConfigureDevice(name, wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: wgtypes.Key{2}}}}); err != nil {
		t.Fatal(err)
	}
	if c, err := d.Config(t.Context()); err != nil || len(c.Peers) != 2 {
		t.Errorf("what wgctrl added is not seen: %v, %v", c, err)
	}

	if _, err := exec.LookPath("wg"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("wg (of wireguard-tools) is not installed; make deps installs it")
		}
		t.Skip("wg (of wireguard-tools) is not installed")
	}
	out, err := exec.Command("wg", "show", name, "allowed-ips").Output()
	if err != nil {
		t.Fatal(err)
	}
	const show = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\tfd12::/96\n"
	if !strings.Contains(string(out), show) {
		t.Errorf("wg show does not have %q:\n%s", show, cmp.Diff(show, string(out)))
	}
}

// Logs name the link and show no private key.
func TestLog(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	d := open(t, Config{Log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Apply(t.Context(), []peers.Change{{Op: peers.SetDevice, Device: peers.Config{PrivateKey: key}}}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	got := out.String()
	if !strings.Contains(got, "link=wg0") || !strings.Contains(got, "Updating private key") {
		t.Errorf("log:\n%s", got)
	}
	if strings.Contains(got, key.String()) || bytes.Contains([]byte(got), Encode([]peers.Change{{Op: peers.SetDevice, Device: peers.Config{PrivateKey: key}}})[12:40]) {
		t.Error("the private key is in the log")
	}
	if strings.Contains(got, "level=WARN") || strings.Contains(got, "level=ERROR") {
		t.Errorf("a plain start and end warns:\n%s", got)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
