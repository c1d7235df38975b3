package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
)

// onDisk is what a host's agent has on disk of its view: the base, and the log of
// what has changed since.
func onDisk(w *world.World, host string) (text string, err error) {
	for _, name := range []string{"view.json", "view.log"} {
		b, err := os.ReadFile(filepath.Join(w.StateDir(host), name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		text += string(b)
	}
	return text, nil
}

// keeps waits until a host's agent has a machine's record on disk.
func keeps(t *testing.T, w *world.World, host string, m *world.Machine) {
	t.Helper()
	await(t, "the view with "+m.ID+" to be on "+host+"'s disk", 3*time.Second, func(context.Context) error {
		kept, err := onDisk(w, host)
		if err == nil && !strings.Contains(kept, m.Endpoint()) {
			err = fmt.Errorf("it does not have %s", m.Endpoint())
		}
		return err
	})
}

// A host loses power and comes back while controller and etcd are gone: its tunnels
// and names are there again by what is on its disk, without anybody's help.
func TestRebootWithoutControlPlane(t *testing.T) {
	need(t, "ping", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	a, b := start(t, w, "fra1", "acme", "web", "a"), start(t, w, "ams1", "acme", "api", "b")
	keeps(t, w, "fra1", a)
	keeps(t, w, "fra1", b)
	h := w.Hosts["fra1"]
	// fra1's own address in acme's network, which answers echoes.
	own := strings.TrimSuffix(homeOf(a.Address.String()), "/96") + "1"
	tunnel := func(ctx context.Context) error {
		_, err := b.In(ctx, "ping", "-c1", "-W0.2", own)
		return err
	}
	await(t, "b to reach fra1", 5*time.Second, tunnel)
	name := func(ctx context.Context) error {
		out, err := h.Run(ctx, filepath.Join(w.Bin(), "weft"), "dig", "--org", "acme", "api.internal")
		if err == nil && !strings.Contains(out, b.Address.String()) {
			err = fmt.Errorf("the answer is %q", out)
		}
		return err
	}
	await(t, "the name of b on fra1", 5*time.Second, name)

	if err := w.KillController(); err != nil {
		t.Fatal(err)
	}
	reboot(t, w, h)
	began := time.Now()
	back := make(chan time.Duration, 1)
	go func() {
		for t.Context().Err() == nil && tunnel(t.Context()) != nil {
		}
		back <- time.Since(began)
	}()
	await(t, "the name of b after the reboot", 10*time.Second, name)
	names := time.Since(began)
	select {
	case tunnels := <-back:
		t.Logf("figure: reboot-names %d ms (aim <= 2000)", names.Milliseconds())
		t.Logf("figure: reboot-tunnels %d ms (aim <= 2000)", tunnels.Milliseconds())
	case <-time.After(10 * time.Second):
		t.Fatal("b does not reach fra1 after the reboot")
	}
	s, err := w.Status(t.Context(), h)
	if err != nil || !s.FromCache || s.Connected || s.ViewAge < 100*time.Millisecond {
		t.Errorf("status: from disk %t, connected %t, %s old, %v", s.FromCache, s.Connected, s.ViewAge, err)
	}
	damaged(t, w, h)
}

// reboot takes the host down and starts its agent again.
func reboot(t *testing.T, w *world.World, h *world.Host) {
	t.Helper()
	if err := h.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := w.StartAgent(h); err != nil {
		t.Fatal(err)
	}
}

// damaged reboots the host with a view on disk that was changed: it is refused, which
// log and status explain, and a controller brings it anew.
func damaged(t *testing.T, w *world.World, h *world.Host) {
	t.Helper()
	if err := h.Agent.Stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.StateDir(h.Name()), "view.json")
	kept, err := os.ReadFile(path)
	if err == nil {
		kept[len(kept)/2] ^= 0x20
		err = os.WriteFile(path, kept, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	reboot(t, w, h)
	var said string
	await(t, "the status to say that the view is damaged", 5*time.Second, func(ctx context.Context) error {
		s, err := w.Status(ctx, h)
		said = strings.Join(s.Problems, "\n")
		if err == nil && !strings.Contains(said, "damaged") {
			err = fmt.Errorf("problems: %q", said)
		}
		return err
	})
	for _, want := range []string{path + ": damaged: ", path + ".damaged", "Until a controller answers"} {
		if !strings.Contains(said, want) {
			t.Errorf("status does not say %q:\n%s", want, said)
		}
	}
	if log := h.Agent.Log(); !strings.Contains(log, "the last view is not used") || !strings.Contains(log, "hint=") {
		t.Errorf("the log does not explain it:\n%s", log)
	}
	if err := w.StartController(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "the view to come anew", 15*time.Second, func(ctx context.Context) error {
		s, err := w.Status(ctx, h)
		if err == nil && (!s.Connected || len(s.Problems) > 0 || len(s.Peers) == 0) {
			err = fmt.Errorf("connected %t, problems %q", s.Connected, s.Problems)
		}
		return err
	})
}
