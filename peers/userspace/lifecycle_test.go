package userspace

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

func TestCloseLeavesNothing(t *testing.T) { // not parallel: it counts goroutines
	plane, dir := newPlane(t), t.TempDir()
	before := goleak.IgnoreCurrent()
	d, err := New(Config{Name: "wg0", Plane: plane, SocketDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	idle, err := net.Dial("unix", filepath.Join(dir, "wg0.sock")) // a client that says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if err := d.Apply(t.Context(), []peers.Change{{Op: peers.AddPeer, Peer: owns(1, "fd12::/96")}}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	d.Close()
	if took := time.Since(start); took > patience/2 {
		t.Errorf("Close waited %s for a client that says nothing", took)
	}
	if linkIn(t, plane, "wg0") != nil {
		t.Error("the link is still there")
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("left in the socket's directory: %v, %v", files, err)
	}
	goleak.VerifyNone(t, before)
}

func TestSocketOfACrashedProcessIsReplaced(t *testing.T) {
	t.Parallel()
	needTUN(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "wg0.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the test left no stale socket: %v", err)
	}
	d := open(t, Config{SocketDir: dir})
	if _, err := d.Config(t.Context()); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", st.Mode(), err)
	}
}

func TestTaken(t *testing.T) {
	t.Parallel()
	plane, dir := newPlane(t), t.TempDir()
	first := open(t, Config{Plane: plane, SocketDir: dir})
	for _, tt := range []struct {
		name string
		c    Config
	}{
		{"the socket, by a device elsewhere", Config{Name: "wg0", Plane: newPlane(t), SocketDir: dir}},
		{"the link, by a device with its socket elsewhere", Config{Name: "wg0", Plane: plane, SocketDir: t.TempDir()}},
	} {
		d, err := New(tt.c)
		if !errors.Is(err, os.ErrExist) || d != nil {
			t.Errorf("%s: New = %v, %v, want os.ErrExist", tt.name, d, err)
		}
		if files, _ := os.ReadDir(tt.c.SocketDir); tt.c.SocketDir != dir && len(files) != 0 {
			t.Errorf("%s: left in the socket's directory: %v", tt.name, files)
		}
	}
	if _, err := first.Config(t.Context()); err != nil {
		t.Errorf("the first is disturbed: %v", err)
	}
	// A TUN link that nobody has open would be taken over silently.
	if err := plane.Do(func() error {
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "wg1"}, Mode: netlink.TUNTAP_MODE_TUN})
	}); err != nil {
		t.Fatal(err)
	}
	if d, err := New(Config{Name: "wg1", Plane: plane, SocketDir: dir}); !errors.Is(err, os.ErrExist) {
		t.Errorf("a link that persists: New = %v, %v, want os.ErrExist", d, err)
	}
}

// When somebody deletes the link the device is gone, and says so.
func TestLinkDeleted(t *testing.T) {
	t.Parallel()
	plane, dir := newPlane(t), t.TempDir()
	d := open(t, Config{Plane: plane, SocketDir: dir})
	nl, err := plane.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	if err := nl.LinkDel(linkIn(t, plane, "wg0")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the device says that it is gone", func() bool {
		_, err = d.Config(t.Context())
		return errors.Is(err, peers.ErrClosed)
	})
	if !strings.Contains(err.Error(), "its link is gone") {
		t.Errorf("Config = %v", err)
	}
	d.Close()
	open(t, Config{Plane: plane, SocketDir: dir}) // and can be made anew
}

// Without the right, or without the driver, the error says so: on a thread that is
// nobody's, and on one that sees an empty /dev/net.
func TestNoTUN(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func() error
		want    error
	}{
		{"no permission", func() error {
			const nobody = 65534
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
				return errno
			}
			return nil
		}, os.ErrPermission},
		{"no driver", func() error {
			return errors.Join(
				unix.Unshare(unix.CLONE_NEWNS),
				unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
				unix.Mount("none", filepath.Dir(tunPath), "tmpfs", 0, ""),
			)
		}, os.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// The thread of Do ends with it, and what was done to it too.
			err := newPlane(t).Do(func() error {
				if err := tt.prepare(); err != nil {
					return err
				}
				dev, err := openTUN("wg0", DefaultMTU)
				if err == nil {
					dev.Close()
				}
				return err
			})
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tunPath) {
				t.Errorf("openTUN = %v, want %v on %s", err, tt.want, tunPath)
			}
		})
	}
}
