package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
)

// An agent is killed whose disk has not taken what is in force: the next one goes on
// from that all the same, without any controller.
func TestKilledOnASlowDisk(t *testing.T) {
	need(t, "nsenter")
	if err := lab.CheckSlowDisk(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	h := w.Hosts["fra1"]
	if err := h.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	disk, err := h.MountSlowDisk(w.StateDir("fra1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.StartAgent(h); err != nil {
		t.Fatal(err)
	}
	await(t, "the agent to be up", 5*time.Second, func(ctx context.Context) error {
		_, err := w.Status(ctx, h)
		return err
	})
	a := start(t, w, "fra1", "acme", "web", "a")
	keeps(t, w, "fra1", a)
	names := func(of ...*world.Machine) func(context.Context) error {
		return func(ctx context.Context) error {
			out, err := h.Run(ctx, filepath.Join(w.Bin(), "weft"), "dig", "--org", "acme", "global.api.internal")
			for _, m := range of {
				if err == nil && !strings.Contains(out, m.Address.String()) {
					err = fmt.Errorf("the answer is %q, without %s", out, m.ID)
				}
			}
			return err
		}
	}

	disk.SetSync(time.Minute)
	// The first one is being written from here on, and so the second one is not.
	b := start(t, w, "ams1", "acme", "api", "b")
	await(t, "the agent to wait for its disk", 5*time.Second, func(context.Context) error {
		if _, delayed, _ := disk.Syncs(); delayed == 0 {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	c := start(t, w, "ams1", "acme", "api", "c")
	await(t, "both names on fra1", 5*time.Second, names(b, c))
	if err := w.KillController(); err != nil {
		t.Fatal(err)
	}
	// Nobody can be killed who waits for a disk: the kill is under way when it is done.
	if err := h.Agent.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	disk.SetSync(0)
	if err := h.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	if kept, err := onDisk(w, "fra1"); err != nil || strings.Contains(kept, c.Endpoint()) {
		t.Fatalf("%s is on the disk, %v: this shows nothing", c.ID, err)
	}
	if err := w.StartAgent(h); err != nil {
		t.Fatal(err)
	}
	await(t, "both names after the restart, from disk", 5*time.Second, names(b, c))
	s, err := w.Status(t.Context(), h)
	if err != nil || !s.FromCache || s.Connected {
		t.Errorf("status: from disk %t, connected %t, %v", s.FromCache, s.Connected, err)
	}
	await(t, "the disk to have it, too", 5*time.Second, func(context.Context) error {
		kept, err := onDisk(w, "fra1")
		if err == nil && !strings.Contains(kept, c.Endpoint()) {
			err = fmt.Errorf("%s is not on it", c.ID)
		}
		return err
	})
}
