package kernel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
	"github.com/weftmesh/weft/peers/peerstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// skip skips, but not where everything is there: in the virtual machine.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("WEFT_VM") != "" {
		t.Fatalf("in the virtual machine: "+format, args...)
	}
	t.Skipf(format, args...)
}

func newPlane(t *testing.T) *netns.Handle {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "network namespaces need root")
	}
	h, err := netns.New()
	must(t, err)
	t.Cleanup(func() { h.Close() })
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open makes a device wg0 in a namespace of its own, unless c says otherwise, and
// shows that it is the kernel's.
func open(t *testing.T, c Config) *Device {
	t.Helper()
	if c.Plane == nil {
		c.Plane = newPlane(t)
	}
	if c.Name == "" {
		c.Name = "wg0"
	}
	d, err := New(c)
	if errors.Is(err, os.ErrNotExist) {
		skip(t, "make test-kernel runs this in a virtual machine: %v", err)
	}
	must(t, err)
	t.Cleanup(func() { d.Close() })
	if l := linkIn(t, c.Plane, c.Name); l == nil || l.Type() != "wireguard" {
		t.Fatalf("the link is %v, not the kernel's WireGuard", l)
	}
	return d
}

func linkIn(t *testing.T, plane *netns.Handle, name string) netlink.Link {
	t.Helper()
	nl, err := plane.Netlink()
	must(t, err)
	defer nl.Close()
	l, err := nl.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	must(t, err)
	return l
}

func setUp(t *testing.T, plane *netns.Handle, name string) error {
	t.Helper()
	nl, err := plane.Netlink()
	must(t, err)
	defer nl.Close()
	return nl.LinkSetUp(linkIn(t, plane, name))
}

func TestConformance(t *testing.T) {
	t.Parallel()
	peerstest.Run(t, func(t *testing.T) peers.Device { return open(t, Config{}) })
}

// The same with the sockets open: a link that is up takes another way in the kernel.
func TestConformanceUp(t *testing.T) {
	t.Parallel()
	peerstest.Run(t, func(t *testing.T) peers.Device {
		plane := newPlane(t)
		d := open(t, Config{Plane: plane})
		must(t, setUp(t, plane, "wg0"))
		return d
	})
}

func TestTraffic(t *testing.T) {
	t.Parallel()
	peerstest.RunTraffic(t, "wireguard", func(t *testing.T, at peerstest.Site) peers.Device {
		return open(t, Config{Plane: at.Plane, Underlay: at.Underlay})
	})
}

func TestLink(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	open(t, Config{Plane: plane, MTU: 1380})
	l := linkIn(t, plane, "wg0")
	if linkIn(t, nil, "wg0") != nil {
		t.Fatal("the link is in the process's namespace")
	}
	if l.Attrs().MTU != 1380 || l.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("link has MTU %d and flags %v, want 1380 and down", l.Attrs().MTU, l.Attrs().Flags)
	}
	must(t, setUp(t, plane, "wg0"))
	nl, err := plane.Netlink()
	must(t, err)
	defer nl.Close()
	if addrs, err := nl.AddrList(l, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
		t.Errorf("addresses of the link: %v, %v", addrs, err)
	}
}

// The UDP sockets are in the process's namespace, also for a caller who is not, and
// also after a change of the port.
func TestSocketsAreInTheProcessNamespace(t *testing.T) {
	t.Parallel()
	elsewhere := newPlane(t)
	open(t, Config{Name: "probe"})
	var d *Device
	must(t, elsewhere.Do(func() (err error) {
		d, err = New(Config{Name: "wg0", Plane: elsewhere})
		return err
	}))
	defer d.Close()
	must(t, setUp(t, elsewhere, "wg0"))
	check := func() {
		t.Helper()
		c, err := d.Config(t.Context())
		must(t, err)
		if c.ListenPort == 0 {
			t.Fatal("the device has no port")
		}
		if conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(c.ListenPort)}); err == nil {
			conn.Close()
			t.Errorf("nobody here holds the device's port %d", c.ListenPort)
		} else if !errors.Is(err, syscall.EADDRINUSE) {
			t.Error(err)
		}
	}
	check()
	port := freePort(t)
	must(t, d.Apply(t.Context(), []peers.Change{{Op: peers.SetDevice, Device: peers.Config{ListenPort: port}}}))
	if c, _ := d.Config(t.Context()); c.ListenPort != port {
		t.Errorf("port %d, want %d", c.ListenPort, port)
	}
	check()
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp", nil)
	must(t, err)
	defer c.Close()
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}

// A port that is taken is told by its number, does not stop what comes after it, and
// is had once it is free.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	d := open(t, Config{Plane: plane})
	must(t, setUp(t, plane, "wg0"))
	holder, err := net.ListenUDP("udp4", nil)
	must(t, err)
	defer holder.Close()
	port := uint16(holder.LocalAddr().(*net.UDPAddr).Port)
	want := peers.Config{PrivateKey: key(8), ListenPort: port, Peers: []peers.Peer{{Key: key(1), AllowedIPs: many(1)}}}
	pass := func() error {
		have, err := d.Config(t.Context())
		must(t, err)
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
	must(t, pass())
	if c, _ := d.Config(t.Context()); c.ListenPort != port {
		t.Errorf("port %d, want %d", c.ListenPort, port)
	}
}

// Each peer that is refused is named, the others are made.
func TestRefusedPeerIsNamed(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	bad := peers.Peer{Key: key(2), Keepalive: 70000 * time.Second}
	err := d.Apply(t.Context(), []peers.Change{
		{Op: peers.AddPeer, Peer: peers.Peer{Key: key(1)}}, {Op: peers.AddPeer, Peer: bad}, {Op: peers.AddPeer, Peer: peers.Peer{Key: key(3)}},
	})
	if !errors.Is(err, syscall.EINVAL) || strings.Count(err.Error(), "peer") != 1 || !strings.Contains(err.Error(), bad.Key.String()) {
		t.Errorf("Apply = %v, want peer %s alone and %v", err, bad.Key, syscall.EINVAL)
	}
	if c, _ := d.Config(t.Context()); len(c.Peers) != 2 {
		t.Errorf("the others are not there:\n%s", c)
	}
}

func TestTaken(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	first := open(t, Config{Plane: plane})
	if d, err := New(Config{Name: "wg0", Plane: plane}); !errors.Is(err, os.ErrExist) || d != nil {
		t.Errorf("New = %v, %v, want os.ErrExist", d, err)
	}
	if _, err := first.Config(t.Context()); err != nil {
		t.Errorf("the first is disturbed: %v", err)
	}
	must(t, plane.Do(func() error {
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "wg1"}, Mode: netlink.TUNTAP_MODE_TUN})
	}))
	if d, err := New(Config{Name: "wg1", Plane: plane, Adopt: true}); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "tuntap") && !strings.Contains(err.Error(), "tun") {
		t.Errorf("a link of another kind: New = %v, %v, want os.ErrExist and the kind", d, err)
	}
	must(t, Remove(plane, "wg1"))
	if linkIn(t, plane, "wg1") == nil {
		t.Error("Remove took a link that is no WireGuard")
	}
}

// A device that is released is found again as it was, with its sockets open.
func TestAdopt(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	first := open(t, Config{Plane: plane})
	want := peers.Config{PrivateKey: key(8), ListenPort: freePort(t), Peers: []peers.Peer{{Key: key(1), AllowedIPs: many(2)}}}
	must(t, first.Apply(t.Context(), peers.Diff(peers.Config{}, want)))
	must(t, setUp(t, plane, "wg0"))
	number := linkIn(t, plane, "wg0").Attrs().Index
	must(t, first.Release())
	if _, err := first.Config(t.Context()); !errors.Is(err, peers.ErrClosed) {
		t.Errorf("after Release: %v, want peers.ErrClosed", err)
	}

	second := open(t, Config{Plane: plane, Adopt: true})
	have, err := second.Config(t.Context())
	must(t, err)
	if left := peers.Diff(have, want); len(left) > 0 || linkIn(t, plane, "wg0").Attrs().Index != number {
		t.Errorf("it is another one: %v", left)
	}
	if conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(want.ListenPort)}); err == nil {
		conn.Close()
		t.Error("its sockets are closed")
	}
	must(t, second.Close())
	if linkIn(t, plane, "wg0") != nil {
		t.Error("Close left the link")
	}
	open(t, Config{Plane: plane, Adopt: true}) // there is none: it is made
	must(t, Remove(plane, "wg0"))
	must(t, Remove(plane, "wg0"))
	if linkIn(t, plane, "wg0") != nil {
		t.Error("Remove left the link")
	}
}

// When somebody deletes or renames the link, or moves it to another namespace, the
// device is gone, and says so; what is closed then is that link alone.
func TestLinkDeletedOrRenamed(t *testing.T) {
	t.Parallel()
	elsewhere := newPlane(t)
	for name, do := range map[string]func(*netlink.Handle, netlink.Link) error{
		"moved":   func(nl *netlink.Handle, l netlink.Link) error { return nl.LinkSetNsFd(l, elsewhere.Fd()) },
		"deleted": func(nl *netlink.Handle, l netlink.Link) error { return nl.LinkDel(l) },
		"renamed": func(nl *netlink.Handle, l netlink.Link) error { return nl.LinkSetName(l, "other") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plane := newPlane(t)
			d := open(t, Config{Plane: plane})
			nl, err := plane.Netlink()
			must(t, err)
			defer nl.Close()
			must(t, do(nl, linkIn(t, plane, "wg0")))
			second := open(t, Config{Plane: plane}) // of the same name
			_, err1 := d.Config(t.Context())
			err2 := d.Apply(t.Context(), []peers.Change{{Op: peers.AddPeer, Peer: peers.Peer{Key: key(1)}}})
			for _, err := range []error{err1, err2} {
				if !errors.Is(err, peers.ErrClosed) || !strings.Contains(err.Error(), "its link is gone") {
					t.Errorf("it says %v", err)
				}
			}
			must(t, d.Close())
			if linkIn(t, plane, "other") != nil {
				t.Error("the renamed link is left over")
			}
			if c, err := second.Config(t.Context()); err != nil || len(c.Peers) != 0 {
				t.Errorf("the new one is disturbed: %v, %v", c, err)
			}
		})
	}
}

// A link that is called otherwise, while nobody has its name, is not gone: it gets the
// name back, and all is as before.
func TestLinkNamedBack(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	d := open(t, Config{Plane: plane})
	must(t, d.Apply(t.Context(), []peers.Change{{Op: peers.AddPeer, Peer: peers.Peer{Key: key(1)}}}))
	nl, err := plane.Netlink()
	must(t, err)
	defer nl.Close()
	l := linkIn(t, plane, "wg0")
	must(t, nl.LinkSetName(l, "other"))
	if _, err := d.Config(t.Context()); err == nil || errors.Is(err, peers.ErrClosed) || !strings.Contains(err.Error(), "called other now") {
		t.Errorf("it says %v", err)
	}
	must(t, nl.LinkSetName(l, "wg0"))
	if c, err := d.Config(t.Context()); err != nil || len(c.Peers) != 1 {
		t.Errorf("afterwards: %v, %v", c, err)
	}
}

// Without the namespace in which its sockets were opened the device goes on, silent: it
// can be asked, configured and closed.
func TestUnderlayIsRemoved(t *testing.T) {
	t.Parallel()
	underlay, plane := newPlane(t), newPlane(t)
	d := open(t, Config{Plane: plane, Underlay: underlay})
	must(t, setUp(t, plane, "wg0"))
	to := netip.MustParseAddrPort("192.0.2.1:51820")
	must(t, d.Apply(t.Context(), []peers.Change{{Op: peers.SetDevice, Device: peers.Config{PrivateKey: key(8)}}}))
	underlay.Close()
	must(t, d.Apply(t.Context(), []peers.Change{{Op: peers.AddPeer, Peer: peers.Peer{Key: key(1), Endpoint: to, Keepalive: time.Second, AllowedIPs: many(1)}}}))
	if c, err := d.Config(t.Context()); err != nil || len(c.Peers) != 1 {
		t.Errorf("it holds %v, %v", c, err)
	}
	must(t, d.Close())
	if linkIn(t, plane, "wg0") != nil {
		t.Error("Close left the link")
	}
}

// A call that hangs is reported, and so are those that wait for it.
func TestHangIsReported(t *testing.T) {
	t.Parallel()
	d := caller{turn: make(chan struct{}, 1), wait: 20 * time.Millisecond}
	hang := make(chan struct{})
	var late atomic.Bool
	err := d.call(t.Context(), func() error { <-hang; late.Store(true); return nil })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the kernel has not answered for 20ms") {
		t.Errorf("call = %v", err)
	}
	err = d.call(t.Context(), func() error { t.Error("two calls at once"); return nil })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "an earlier call still hangs") {
		t.Errorf("the next call = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.call(ctx, func() error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	close(hang)
	d.wait = time.Minute
	if err := d.call(t.Context(), func() error { return nil }); err != nil || !late.Load() {
		t.Errorf("afterwards: %v", err)
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
		{Config{Name: ".."}, "without space, slash"},
		{Config{Name: "wg0", MTU: 1279}, "MTU 1279 of wg0: want 1280"},
		{Config{Name: "wg0", MTU: 65456}, "MTU 65456 of wg0"},
	} {
		if _, err := New(tt.c); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v) = %v, want %q", tt.c, err, tt.want)
		}
	}
}

// Without the right the error says so: on a thread that is nobody's. Without the
// driver too, where there is none.
func TestNotPossible(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	err := plane.Do(func() error { // its thread ends with it
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			return errno
		}
		return add(Config{Name: "wg0", MTU: 1420})
	})
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("without the right: %v, want os.ErrPermission", err)
	}
	d, err := New(Config{Name: "wg0", Plane: plane})
	if err == nil {
		d.Close()
	} else if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "this kernel has no WireGuard") {
		t.Errorf("New = %v", err)
	}
	if linkIn(t, plane, "wg0") != nil {
		t.Error("a link is left over")
	}
}

// wgctrl, as wg(8), finds the device in its namespace; what it changes is seen.
func TestForeignTools(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	d := open(t, Config{Plane: plane})
	var wg *wgctrl.Client
	must(t, plane.Do(func() (err error) {
		wg, err = wgctrl.New()
		return err
	}))
	defer wg.Close()
	must(t, wg.ConfigureDevice("wg0", wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: key(2)}}}))
	if c, err := d.Config(t.Context()); err != nil || len(c.Peers) != 1 {
		t.Errorf("what another added is not seen: %v, %v", c, err)
	}
}
