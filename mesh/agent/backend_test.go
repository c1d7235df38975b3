package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/kernel"
	"github.com/weftmesh/weft/peers/netns"
)

func TestChooseBackend(t *testing.T) {
	t.Parallel()
	needRoot(t)
	unavailable := kernel.Available()
	for _, tt := range []struct{ asked, with, without string }{
		{"", BackendKernel, BackendUserspace},
		{BackendAuto, BackendKernel, BackendUserspace},
		{BackendKernel, BackendKernel, "this kernel has no WireGuard"},
		{BackendUserspace, BackendUserspace, BackendUserspace},
		{"magic", `backend "magic": want auto, kernel or userspace`, `backend "magic": want auto, kernel or userspace`},
	} {
		var out logs
		c := HostConfig{Backend: tt.asked, Log: slog.New(slog.NewTextHandler(&out, nil))}
		got, err := c.chooseBackend()
		want := tt.with
		if unavailable != nil {
			want = tt.without
		}
		switch {
		case err != nil && !strings.Contains(err.Error(), want), err == nil && got != want:
			t.Errorf("asked for %q: %q, %v, want %q", tt.asked, got, err, want)
		case errors.Is(err, os.ErrNotExist) && !strings.Contains(mesh.HintOf(err), "modprobe wireguard"):
			t.Errorf("asked for %q: hint %q", tt.asked, mesh.HintOf(err))
		}
		// Who is told nothing else hears why it is not the kernel.
		if told := out.contains("WireGuard runs in userspace"); told != (err == nil && got == BackendUserspace && tt.asked != BackendUserspace) {
			t.Errorf("asked for %q: log %q", tt.asked, out.String())
		}
	}
}

// releasable is a device that can do without its process.
type releasable struct {
	peers.Device
	closed, released bool
}

func (r *releasable) Close() error   { r.closed = true; return nil }
func (r *releasable) Release() error { r.released = true; return nil }

// closable is one that cannot.
type closable struct {
	peers.Device
	closed bool
}

func (c *closable) Close() error { c.closed = true; return nil }

func TestLeave(t *testing.T) {
	t.Parallel()
	r, c := &releasable{}, &closable{}
	for _, g := range []*guardedDevice{{}, {device: r}, {device: c}} {
		if err := g.leave(); err != nil {
			t.Error(err)
		}
	}
	if r.closed || !r.released || !c.closed {
		t.Errorf("closed %t, released %t; the other: closed %t", r.closed, r.released, c.closed)
	}
}

// The port of a link that an earlier agent left is its own; any other that has it is
// in the way, and so is a link of another kind.
func TestKeptPort(t *testing.T) {
	t.Parallel()
	needRoot(t)
	c := HostConfig{Namespace: fmt.Sprint("weft-test-kept-", os.Getpid()), Link: "weft0", Port: 51820}
	if got := c.keptPort(); got != c.Port {
		t.Errorf("without a data plane: %d, want %d", got, c.Port)
	}
	ns, err := netns.Create(c.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Remove(c.Namespace)
	defer ns.Close()
	if got := c.keptPort(); got != c.Port {
		t.Errorf("without a link: %d, want %d", got, c.Port)
	}
	if err := ns.Do(func() error {
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: c.Link}, Mode: netlink.TUNTAP_MODE_TUN})
	}); err != nil {
		t.Fatal(err)
	}
	if got := c.keptPort(); got != c.Port {
		t.Errorf("with a TUN link: %d, want %d", got, c.Port)
	}
}
