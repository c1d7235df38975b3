package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// numbers is what was ever given: networks, host numbers, addresses, and to whom.
type numbers map[string]string

// note adds what there is now, and reports what somebody else had before.
func (n numbers) note(t *testing.T, w *world.World) {
	t.Helper()
	ctx := t.Context()
	add := func(number, owner string) {
		if before, given := n[number]; given && before != owner {
			t.Errorf("%s has %s, which %s had", owner, number, before)
		}
		n[number] = owner
	}
	orgs, err := world.List[api.OrgInfo](ctx, w, "org", "list")
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := world.List[api.HostInfo](ctx, w, "host", "list")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		add(fmt.Sprint("host number ", h.Number), "host "+h.Name)
	}
	for _, o := range orgs {
		add(fmt.Sprint("network ", o.Network), "org "+o.Name)
		machines, err := world.List[api.MachineInfo](ctx, w, "machine", "list", "--org", o.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range machines {
			add("address "+m.Endpoint.String(), "machine "+o.Name+"/"+m.ID)
		}
	}
}

// backUp takes a backup, and checks it as an operator can.
func backUp(t *testing.T, w *world.World, name string) string {
	t.Helper()
	file := filepath.Join(w.Lab().Dir(), name)
	weft(t, w, "backup", "--file", file)
	weft(t, w, "backup", "verify", file)
	return file
}

// restore puts a backup back; flags say where.
func restore(t *testing.T, w *world.World, file string, flags ...string) string {
	t.Helper()
	out, err := w.Controllers[0].Run(t.Context(), filepath.Join(w.Bin(), "weft-controller"), append([]string{"restore", "--file", file}, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// registered waits until a machine is known under the address that it has.
func registered(w *world.World, m *world.Machine) func(context.Context) error {
	return func(ctx context.Context) error {
		machines, err := world.List[api.MachineInfo](ctx, w, "machine", "list", "--org", m.Org)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(machines, func(o api.MachineInfo) bool { return o.ID == m.ID })
		switch {
		case i < 0:
			return errors.New("it is not known")
		case machines[i].Address != m.Address:
			return fmt.Errorf("it is known at %s, and has %s", machines[i].Address, m.Address)
		}
		return nil
	}
}

// The controller's data directory is lost, and the backup is older than much of
// what runs. The hosts keep everything going; what they run and the backup does not
// know comes back under the address it has; what nobody can know of is given to
// nobody again.
func TestRestoreOfAnOlderBackup(t *testing.T) {
	need(t, "ip", "curl", "dig", "ping")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	ctx := t.Context()
	given := numbers{}
	web := start(t, w, "fra1", "acme", "web", "web-1")
	from := start(t, w, "ams1", "acme", "probe", "probe-1")
	await(t, "the name", 10*time.Second, nameIs(from, "web.internal", web.Address.String()))
	once, err := w.Token(ctx, "--kind", "host", "--orgs", "all", "--region", "fra")
	if err != nil {
		t.Fatal(err)
	}
	file := backUp(t, w, "mesh.backup.gz")

	// What the backup does not know: a machine on each host, a host, an org with a
	// machine, a token that is used up.
	late := start(t, w, "fra1", "acme", "web", "web-2")
	later := start(t, w, "ams1", "acme", "api", "api-1")
	if _, err := w.AddHostWith(ctx, "fra2", "fra", once); err != nil {
		t.Fatal(err)
	}
	if err := w.AwaitHosts(ctx); err != nil {
		t.Fatal(err)
	}
	lost := start(t, w, "fra2", "acme", "lost", "lost-1")
	weft(t, w, "org", "create", "young")
	start(t, w, "fra1", "young", "web", "young-1")
	given.note(t, w)
	await(t, "both names", 10*time.Second, nameIs(from, "web.internal", web.Address.String(), late.Address.String()))

	// The disaster. Names are answered all the while.
	c := w.Controllers[0]
	if err := w.KillController(); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(w.Lab().Dir(), "seal.key")
	if err := os.Rename(filepath.Join(c.DataDir, "seal.key"), key); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.DataDir); err != nil {
		t.Fatal(err)
	}
	named := allTheTime(t, "web-1.vm.web.internal", nameIs(from, "web-1.vm.web.internal", web.Address.String()))
	away := allTheTime(t, "web.internal without a controller", nameIs(from, "web.internal", web.Address.String(), late.Address.String()))
	out := restore(t, w, file, "--data-dir", c.DataDir, "--seal-key-file", key)
	if !strings.Contains(out, "is restored") {
		t.Errorf("restore printed:\n%s", out)
	}
	away()
	c.Flags = append(c.Flags, "--seal-key-file", key)
	if err := w.StartController(ctx); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	for _, m := range []*world.Machine{late, later} {
		await(t, m.ID+" to be registered again", 20*time.Second, registered(w, m))
	}
	await(t, "the names to be whole", 10*time.Second, nameIs(from, "web.internal", web.Address.String(), late.Address.String()))
	t.Logf("what the backup did not know was back %s after the controller", time.Since(back).Round(10*time.Millisecond))
	if err := reach(ctx, from, late); err != nil {
		t.Errorf("the machine that is newer than the backup: %v", err)
	}
	await(t, "the hosts to follow", 10*time.Second, func(ctx context.Context) error {
		for _, name := range []string{"fra1", "ams1"} {
			if s, err := w.Status(ctx, w.Hosts[name]); err != nil || !s.Connected {
				return fmt.Errorf("%s: connected %v, %v", name, s.Connected, err)
			}
		}
		return nil
	})

	// The host that is newer is not known, nor is anything of it, nor the org.
	hosts, err := world.List[api.HostInfo](ctx, w, "host", "list")
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(hosts, func(h api.HostInfo) bool { return h.Name == "fra2" }) {
		t.Error("fra2 is known, and the backup did not know it")
	}
	if out := weft(t, w, "org", "list"); strings.Contains(out, "young") {
		t.Errorf("org young is known:\n%s", out)
	}
	if _, err := w.AddHostWith(ctx, "thief", "fra", once); err != nil {
		t.Fatal(err)
	}
	await(t, "the used token to be refused", 10*time.Second, func(context.Context) error {
		if p := w.Hosts["thief"].Agent; !p.Exited() || p.ExitCode() == 0 {
			return errors.New("the agent runs")
		}
		return nil
	})
	delete(w.Hosts, "thief")

	// Nothing that was given is given again.
	weft(t, w, "org", "create", "next")
	start(t, w, "fra1", "next", "web", "next-1")
	start(t, w, "fra1", "acme", "web", "web-3")
	start(t, w, "ams1", "acme", "api", "api-2")
	gone := w.Hosts["fra2"]
	if err := gone.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := lost.Kill(); err != nil {
		t.Fatal(err)
	}
	delete(w.Hosts, "fra2")
	if _, err := w.AddHost(ctx, "fra3", "fra"); err != nil {
		t.Fatal(err)
	}
	if err := w.AwaitHosts(ctx); err != nil {
		t.Fatal(err)
	}
	start(t, w, "fra3", "acme", "web", "web-4")
	given.note(t, w)
	named()
	events, err := world.List[mesh.Event](ctx, w, "events")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(events, func(e mesh.Event) bool { return e.Action == "mesh.restore" }) {
		t.Error("the restore is not in the audit log")
	}
}

// An etcd cluster is lost beneath its controllers, which go on: a new one in its
// place gets the backup, and they go on from that.
func TestRestoreBeneathControllersOfACluster(t *testing.T) {
	need(t, "ip", "curl", "dig")
	t.Parallel()
	l := newLab(t)
	e := newEtcd(t, l)
	w := newWorld(t, world.Config{Lab: l, Etcd: e, Controllers: 2}, "fra1", "ams1")
	ctx := t.Context()
	web := start(t, w, "fra1", "acme", "web", "web-1")
	from := start(t, w, "ams1", "acme", "probe", "probe-1")
	file := backUp(t, w, "mesh.backup")
	late := start(t, w, "fra1", "acme", "api", "api-1")
	await(t, "the names", 10*time.Second, func(ctx context.Context) error {
		return errors.Join(nameIs(from, "web.internal", web.Address.String())(ctx), nameIs(from, "api.internal", late.Address.String())(ctx))
	})
	named := allTheTime(t, "web.internal", nameIs(from, "web.internal", web.Address.String()))
	for _, m := range e.Members {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(m.DataDir); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range e.Members {
		if err := m.StartNew(); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Await(ctx); err != nil {
		t.Fatal(err)
	}
	restore(t, w, file, append(e.Flags(), "--data-dir", w.Controllers[0].DataDir)...)
	await(t, "the hosts to be told of the restored mesh", 30*time.Second, func(ctx context.Context) error {
		for name, h := range w.Hosts {
			s, err := w.Status(ctx, h)
			if err != nil || strings.HasPrefix(s.Revision, "1.") {
				return fmt.Errorf("%s is at %s: %v", name, s.Revision, err)
			}
		}
		return nil
	})
	await(t, "api-1 to be registered again", 10*time.Second, registered(w, late))
	for _, c := range w.Controllers {
		if c.Process.Exited() {
			t.Errorf("controller %s has ended: %s", c.Name(), c.Process.LastLine())
		}
	}
	start(t, w, "ams1", "acme", "more", "more-1")
	if err := w.AwaitHosts(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, "the name of the late machine", 10*time.Second, nameIs(from, "api.internal", late.Address.String()))
	named()
}
