package userspace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

const serveArg = "serve-device"

// serveIfAsked makes this test's program the process of a device.
func serveIfAsked() {
	if len(os.Args) != 4 || os.Args[1] != serveArg {
		return
	}
	var c ProcessConfig
	if err := json.Unmarshal([]byte(os.Args[3]), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	c.Ready, c.Log = os.NewFile(3, "ready"), slog.New(slog.DiscardHandler)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := Serve(ctx, c); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// site is a namespace with a name, and what a process of a device in it is given.
type site struct {
	plane *netns.Handle
	c     ProcessConfig
}

var sites atomic.Int64

func newSite(t *testing.T) site {
	t.Helper()
	needTUN(t)
	name := fmt.Sprintf("weft-test-device-%d-%d", os.Getpid(), sites.Add(1))
	plane, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(netns.Remove(name), plane.Close()); err != nil {
			t.Error(err)
		}
	})
	return site{plane, ProcessConfig{Name: "wg0", Namespace: name, SocketDir: t.TempDir(), Version: "v1.0 test"}}
}

func (s site) remote(t *testing.T) RemoteConfig {
	return RemoteConfig{
		Name: s.c.Name, Plane: s.plane, Namespace: s.c.Namespace, SocketDir: s.c.SocketDir, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Command: func() *exec.Cmd {
			text, err := json.Marshal(s.c)
			if err != nil {
				t.Fatal(err)
			}
			return exec.Command("/proc/self/exe", serveArg, s.c.Name, string(text))
		},
	}
}

func attach(t *testing.T, c RemoteConfig) *Remote {
	t.Helper()
	r, err := Attach(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// running reports whether a process has not ended.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// A process outlives who started it, with its tunnels; the next one finds it.
func TestRemoteIsFoundAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if Held(t.Context(), s.remote(t)) {
		t.Fatal("there is a process before there is one")
	}
	first := attach(t, s.remote(t))
	key := peers.Change{Op: peers.SetDevice, Device: peers.Config{PrivateKey: wgtypes.Key{7}}}
	if err := first.Apply(t.Context(), []peers.Change{key, {Op: peers.AddPeer, Peer: owns(1, "fd12::/96")}}); err != nil {
		t.Fatal(err)
	}
	before, err := first.Config(t.Context())
	if err != nil || len(before.Peers) != 1 {
		t.Fatalf("%+v, %v", before, err)
	}
	pid := first.About().Pid
	if group, err := unix.Getpgid(pid); err != nil || group != pid {
		t.Errorf("its group is %d, %v; want one of its own, %d", group, err, pid)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Config(t.Context()); !errors.Is(err, peers.ErrClosed) {
		t.Errorf("after Release: %v", err)
	}
	s.c.Version = "v2.0"
	second := attach(t, s.remote(t))
	after, err := second.Config(t.Context())
	if diff := cmp.Diff(before, after, cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})); err != nil || diff != "" {
		t.Errorf("%v (-before +after):\n%s", err, diff)
	}
	plane, err := PlaneID(s.plane)
	if err != nil {
		t.Fatal(err)
	}
	want := About{Protocol: Protocol, Version: "v1.0 test", Link: "wg0", Namespace: s.c.Namespace, Plane: plane, Pid: pid}
	if diff := cmp.Diff(want, second.About()); diff != "" || !second.Found() || first.Found() {
		t.Errorf("found %t (-want +got):\n%s", second.Found(), diff)
	}
	if !Held(t.Context(), s.remote(t)) {
		t.Error("Held says that there is no process")
	}
	if ended, err := End(t.Context(), s.remote(t)); !ended || err != nil {
		t.Errorf("End: %t, %v", ended, err)
	}
	if running(pid) || linkIn(t, s.plane, "wg0") != nil {
		t.Error("the process or its link is left")
	}
	if ended, err := End(t.Context(), s.remote(t)); ended || err != nil {
		t.Errorf("End again: %t, %v", ended, err)
	}
}

// A process that dies or hangs is told of, and another one takes its place.
func TestRemoteIsLost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		sig  syscall.Signal
		says string
	}{{"killed", syscall.SIGKILL, "has ended"}, {"stopped", syscall.SIGSTOP, "does not answer"}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			c := s.remote(t)
			told := make(chan error, 2)
			c.Ended = func(why error) { told <- why }
			r := attach(t, c)
			pid := r.About().Pid
			if err := syscall.Kill(pid, tt.sig); err != nil {
				t.Fatal(err)
			}
			select {
			case why := <-told:
				if !errors.Is(why, peers.ErrClosed) || !strings.Contains(why.Error(), tt.says) {
					t.Errorf("told %v", why)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("nothing is told")
			}
			if _, err := r.Stats(t.Context()); !errors.Is(err, peers.ErrClosed) {
				t.Errorf("Stats: %v", err)
			}
			if held := Held(t.Context(), s.remote(t)); held != (tt.sig == syscall.SIGSTOP) {
				t.Errorf("Held: %t", held)
			}
			next := attach(t, s.remote(t))
			if next.Found() || next.About().Pid == pid || running(pid) {
				t.Errorf("found %t, process %d after %d, which runs: %t", next.Found(), next.About().Pid, pid, running(pid))
			}
			if _, err := next.Config(t.Context()); err != nil {
				t.Error(err)
			}
			if len(told) > 0 {
				t.Errorf("told again: %v", <-told)
			}
		})
	}
}

// A process ends by itself when nobody can find it any more.
func TestServeEndsUnwanted(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		do   func(s site) error
	}{
		{"its socket is removed", func(s site) error { return os.Remove(filepath.Join(s.c.SocketDir, "wg0.sock")) }},
		{"the directory of its socket is removed", func(s site) error { return os.RemoveAll(s.c.SocketDir) }},
		{"its namespace is removed", func(s site) error { return netns.Remove(s.c.Namespace) }},
		{"its link is deleted", func(s site) error {
			nl, err := s.plane.Netlink()
			if err != nil {
				return err
			}
			defer nl.Close()
			l, err := nl.LinkByName("wg0")
			if err != nil {
				return err
			}
			return nl.LinkDel(l)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			r := attach(t, s.remote(t))
			if err := tt.do(s); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the process ends", func() bool { return !running(r.About().Pid) })
			if files, err := os.ReadDir(s.c.SocketDir); err == nil && len(files) != 0 {
				t.Errorf("left: %v", files)
			}
		})
	}
}

// What is in the way is told as New would, and is left alone if it is not ours.
func TestAttachInTheWay(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.remote(t)
	open(t, Config{Plane: newPlane(t), SocketDir: s.c.SocketDir})
	if _, err := Attach(t.Context(), c); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "another process answers") {
		t.Errorf("a device in another program: %v", err)
	}
	if ended, err := End(t.Context(), c); ended || err != nil {
		t.Errorf("End ended it: %t, %v", ended, err)
	}
	s.c.SocketDir = t.TempDir()
	other := open(t, Config{Plane: s.plane, SocketDir: t.TempDir()})
	if _, err := Attach(t.Context(), s.remote(t)); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "there is a link of that name") {
		t.Errorf("a link of that name: %v", err)
	}
	other.Close()
	s.c.Namespace = "weft-test-none"
	if _, err := Attach(t.Context(), s.remote(t)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such namespace: %v", err)
	}
}

// The process of an earlier namespace of that name, and one of another protocol, are
// ended.
func TestAttachReplacesWhatIsOfNoUse(t *testing.T) {
	t.Parallel()
	s, elsewhere := newSite(t), newSite(t)
	elsewhere.c.SocketDir = s.c.SocketDir
	old := attach(t, s.remote(t))
	if _, err := Attach(t.Context(), elsewhere.remote(t)); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "for namespace "+s.c.Namespace) {
		t.Errorf("the process of another namespace: %v", err)
	}
	if err := netns.Remove(s.c.Namespace); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.plane, err = netns.Create(s.c.Namespace); err != nil {
		t.Fatal(err)
	}
	defer s.plane.Close()
	r := attach(t, s.remote(t))
	if r.Found() || running(old.About().Pid) || linkIn(t, s.plane, "wg0") == nil {
		t.Errorf("found %t, the old one runs: %t", r.Found(), running(old.About().Pid))
	}
	for _, tt := range []struct {
		about About
		want  string
	}{
		{About{Protocol: Protocol, Link: "wg0", Plane: "1:2"}, ""},
		{About{Protocol: Protocol + 1, Link: "wg0", Plane: "1:2", Version: "v9"}, "its version v9 speaks protocol 2, this program 1"},
		{About{Protocol: Protocol, Link: "wg1", Plane: "1:2"}, "its link is wg1"},
		{About{Protocol: Protocol, Link: "wg0", Plane: "1:3"}, "its link is in an earlier namespace"},
	} {
		if err := tt.about.usable("wg0", "1:2"); tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%+v: %v, want %q", tt.about, err, tt.want)
		}
	}
}

// A client that dies in the middle of an operation has asked for nothing, and what a
// later version asks is refused by ending the connection.
func TestAnswersWholeOperationsOnly(t *testing.T) {
	t.Parallel()
	d := open(t, Config{})
	for _, tt := range []struct{ ask, want string }{
		{fmt.Sprintf("set=1\npublic_key=%064x\n", 3), ""},
		{"set=2\n\n", ""},
		{aboutOp + "\n\n", ""}, // it is no process of its own
		{"get=1\nx=y\n\n", ""},
		{"set=1\nnonsense\n\nset=1\n\n", "errno=-71\n\nerrno=0\n\n"},
	} {
		conn, err := net.Dial("unix", d.path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(tt.ask)); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		buf := make([]byte, 4096)
		for n, err := conn.Read(buf); err == nil; n, err = conn.Read(buf) {
			got.Write(buf[:n])
		}
		conn.Close()
		if got.String() != tt.want {
			t.Errorf("%q: answered %q, want %q", tt.ask, got.String(), tt.want)
		}
	}
	if c, err := d.Config(t.Context()); err != nil || len(c.Peers) != 0 {
		t.Errorf("peers %v, %v", c.Peers, err)
	}
}
