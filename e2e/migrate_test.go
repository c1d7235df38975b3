package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh/api"
)

// A mesh moves from the etcd inside its controller to a cluster with three
// controllers, by one command: hosts and machines go on, nothing is renumbered, no
// name is missing for a moment, and what comes later gets other addresses.
func TestMigrate(t *testing.T) {
	need(t, "ip", "curl", "dig")
	t.Parallel()
	l := newLab(t)
	w := newWorld(t, world.Config{Lab: l}, "fra1", "ams1")
	e := newEtcd(t, l)
	ctx := t.Context()
	web := start(t, w, "fra1", "acme", "web", "web-1")
	from := start(t, w, "ams1", "acme", "probe", "probe-1")
	await(t, "the name", 10*time.Second, nameIs(from, "web.internal", web.Address.String()))
	addresses := func() map[string]string {
		t.Helper()
		list, err := world.List[api.MachineInfo](ctx, w, "machine", "list", "--org", "acme")
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, m := range list {
			out[m.ID] = m.Address.String()
		}
		return out
	}
	before := addresses()
	named := allTheTime(t, "web.internal", nameIs(from, "web.internal", web.Address.String()))
	reached := allTheTime(t, "a page of web-1", func(ctx context.Context) error { return reach(ctx, from, web) })

	ctl := w.Controllers[0]
	if _, err := w.Migrate(ctx, ctl, e); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("migrate under a running controller: %v", err)
	}
	if err := ctl.Process.Stop(); err != nil {
		t.Fatal(err)
	}
	out, err := w.Migrate(ctx, ctl, e)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(strings.TrimSpace(out))
	if err := w.Run(ctx, ctl); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := w.AddController(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.AwaitHosts(ctx); err != nil {
		t.Fatal(err)
	}
	for host := range w.Hosts {
		knows(t, w, host, w.URLs()...)
	}
	after := addresses()
	for id, addr := range before {
		if after[id] != addr {
			t.Errorf("machine %s had %s and has %s", id, addr, after[id])
		}
	}
	for i := range 3 {
		m := start(t, w, "fra1", "acme", "later", fmt.Sprintf("later-%d", i))
		for id, addr := range before {
			if addr == m.Address.String() {
				t.Errorf("%s got the address of %s, %s", m.ID, id, addr)
			}
		}
		if ipam.EndpointOf(m.Address) == ipam.EndpointOf(web.Address) {
			t.Errorf("%s got the endpoint of web-1", m.ID)
		}
	}
	named()
	reached()

	// The old way is closed, and says where to go.
	r, err := ctl.Exec(ctx, lab.Command{Path: w.Bin() + "/weft-controller", Args: []string{
		"run", "--data-dir", ctl.DataDir, "--listen", "127.0.0.1:7444", "--metrics", "",
	}})
	if want := "weft-controller run --data-dir " + ctl.DataDir + " --etcd " + strings.Join(e.Endpoints(), ","); err != nil || r.Code == 0 ||
		!strings.Contains(r.Stderr, "the mesh has moved to "+strings.Join(e.Endpoints(), ",")) || !strings.Contains(r.Stderr, want) {
		t.Errorf("the controller on its old data: %v, code %d, %s", err, r.Code, r.Stderr)
	}
	// And so is a second migration.
	if _, err := w.Migrate(ctx, ctl, e); exitCode(err) != 1 {
		t.Errorf("migrate again: %v", err)
	}
}

func exitCode(err error) int {
	var exit *lab.ExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	return 0
}
