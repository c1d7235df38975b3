package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
)

// Ports of the workload, see its flags.
const (
	echoPort = 7
	webPort  = 80
)

// flow is one connection from inside a machine, over which is said and heard.
type flow struct {
	net.Conn
	said int
}

// begin opens a connection to a port of another machine.
func begin(ctx context.Context, from *watcher, network string, to *world.Machine, port uint16) (*flow, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	c, err := from.dial(ctx, network, netip.AddrPortFrom(to.Address, port))
	if err != nil {
		return nil, err
	}
	return &flow{Conn: c}, nil
}

// says sends a line to the echo, and hears it.
func (f *flow) says() error {
	f.said++
	line := fmt.Sprintf("line %d\n", f.said)
	if err := f.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := io.WriteString(f, line); err != nil {
		return err
	}
	heard := make([]byte, len(line))
	if _, err := io.ReadFull(f, heard); err != nil {
		return err
	}
	if string(heard) != line {
		return fmt.Errorf("said %q, heard %q", line, heard)
	}
	return nil
}

// echoed says one line over a connection of its own.
func echoed(ctx context.Context, from *watcher, network string, to *world.Machine) error {
	f, err := begin(ctx, from, network, to, echoPort)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.says()
}

// refused is the error of what should have failed and did not.
func refused(what string, err error) error {
	if err == nil {
		return errors.New(what)
	}
	return nil
}

// pinged sends one echo of so many bytes, which nobody may divide.
func pinged(ctx context.Context, from, to *world.Machine, bytes int) error {
	out, err := from.In(ctx, "ping", "-c1", "-W1", "-M", "do", "-s", strconv.Itoa(bytes), to.Address.String())
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// firstTunnel is how long two hosts may take that have had nothing to do with each
// other, on a busy machine; see TestFirstGrantedPacket. Both make the tunnel at once: a
// first word that comes before the other one knows its sender is lost, and WireGuard says
// the next one only 5 s later; the other host speaks before.
const firstTunnel = 10 * time.Second

// granted are two orgs on hosts of their own, and a host of neither.
//
//	fra1  acme    web-1 (app web), batch-1 (app batch)
//	ams1  globex  db-1 (app db), cache-1 (app cache)
//	nrt1  third   x-1
type granted struct {
	*world.World
	web, batch, db, cache, third *world.Machine
}

func newGranted(t *testing.T) *granted {
	t.Helper()
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	weft(t, w, "org", "create", "globex")
	weft(t, w, "org", "create", "third")
	return &granted{
		World: w, web: start(t, w, "fra1", "acme", "web", "web-1"), batch: start(t, w, "fra1", "acme", "batch", "batch-1"),
		db: start(t, w, "ams1", "globex", "db", "db-1"), cache: start(t, w, "ams1", "globex", "cache", "cache-1"),
		third: start(t, w, "nrt1", "third", "x", "x-1"),
	}
}

func (g *granted) grant(t *testing.T, args ...string) string {
	t.Helper()
	weft(t, g.World, append([]string{"grant", "create"}, args...)...)
	all, err := world.List[api.GrantInfo](t.Context(), g.World, "grant", "list")
	if err != nil {
		t.Fatal(err)
	}
	newest := all[0]
	for _, x := range all {
		if x.Created.After(newest.Created) {
			newest = x
		}
	}
	return newest.ID
}

// A grant from one org's app to a port of another's: within a second that passes, and
// nothing else does; when it is taken back, what has begun ends.
func TestGrant(t *testing.T) {
	need(t, "dig", "nsenter")
	t.Parallel()
	g := newGranted(t)
	ctx := t.Context()
	web, batch, db, third := newWatcher(t, g.web), newWatcher(t, g.batch), newWatcher(t, g.db), newWatcher(t, g.third)
	if err := refused("acme reaches globex without a grant", echoed(ctx, web, "tcp6", g.db)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	g.grant(t, "--from", "acme/web", "--to", "globex/db", "--icmp")
	await(t, "the tunnel that a grant asks for", firstTunnel, func(ctx context.Context) error { return pinged(ctx, g.web, g.db, 56) })
	t.Logf("granted, the tunnel included: after %s", time.Since(began).Round(time.Millisecond))
	id := g.grant(t, "--from", "acme/web", "--to", "globex/db", "--tcp", "7")
	made := time.Now()
	await(t, "the grant to be in force", time.Second, func(ctx context.Context) error { return echoed(ctx, web, "tcp6", g.db) })
	t.Logf("granted: the first flow after %s", time.Since(made).Round(time.Millisecond))

	for what, err := range map[string]error{
		"another port":             func() error { _, err := begin(ctx, web, "tcp6", g.db, webPort); return err }(),
		"another protocol":         echoed(ctx, web, "udp6", g.db),
		"another app's machine":    echoed(ctx, batch, "tcp6", g.db),
		"the other direction":      echoed(ctx, db, "tcp6", g.web),
		"another app over there":   echoed(ctx, web, "tcp6", g.cache),
		"a third org":              echoed(ctx, third, "tcp6", g.db),
		"a third org to the other": echoed(ctx, third, "tcp6", g.web),
		"a third org as a target":  echoed(ctx, web, "tcp6", g.third),
	} {
		if err == nil {
			t.Errorf("%s is let through", what)
		}
	}
	// Names stay each org's own.
	for _, name := range []string{"db.internal", "db-1.vm.db.internal"} {
		if got, err := digFull(ctx, g.web, "AAAA", name); err != nil || got.status != noSuchName.status {
			t.Errorf("%s on a machine of acme: %v %v", name, got, err)
		}
	}

	f, err := begin(ctx, web, "tcp6", g.db, echoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.says(); err != nil {
		t.Fatal(err)
	}
	weft(t, g.World, "grant", "remove", id)
	await(t, "the flow that has begun to end", 2*time.Second, func(context.Context) error { return refused("it goes on", f.says()) })
	if err := refused("a flow begins after the grant was taken back", echoed(ctx, web, "tcp6", g.db)); err != nil {
		t.Error(err)
	}
	log := weft(t, g.World, "events")
	for _, line := range []string{"grant.create", "grant.remove", "tcp 7 from acme/web to globex/db"} {
		if !strings.Contains(log, line) {
			t.Errorf("the audit log says nothing of %q:\n%s", line, log)
		}
	}
}

// onDisk is all that a host keeps of its view: what it was, and what changed since.
func (g *granted) onDisk(host string) (string, error) {
	files, err := filepath.Glob(filepath.Join(g.StateDir(host), "view.*"))
	if err != nil || len(files) == 0 {
		return "", errors.Join(err, errors.New("there is no view on disk"))
	}
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		all.Write(text)
	}
	return all.String(), nil
}

// Who carries neither org learns nothing of a grant; each side learns of the other the
// endpoints that it names, and no more.
func TestWhatAGrantTells(t *testing.T) {
	t.Parallel()
	g := newGranted(t)
	id := g.grant(t, "--from", "acme/web", "--to", "globex/db", "--tcp", "7")
	for _, side := range []struct {
		host     string
		knows    []string
		knowsNot []string
	}{
		{"fra1", []string{id, g.db.Endpoint()}, []string{g.cache.Endpoint(), "db-1", "cache"}},
		{"ams1", []string{id, g.web.Endpoint()}, []string{g.batch.Endpoint(), "web-1", "batch"}},
	} {
		await(t, side.host+" to know its side", 5*time.Second, func(context.Context) error {
			view, err := g.onDisk(side.host)
			if err != nil {
				return err
			}
			for _, word := range side.knows {
				if !strings.Contains(view, word) {
					return fmt.Errorf("it does not know %s", word)
				}
			}
			for _, word := range side.knowsNot {
				if strings.Contains(view, word) {
					t.Fatalf("%s knows %s:\n%s", side.host, word, view)
				}
			}
			return nil
		})
	}
	// Something of its own, so that it is certain to have heard of all before.
	late := start(t, g.World, "nrt1", "third", "x", "late")
	await(t, "nrt1 to keep its view", 5*time.Second, func(context.Context) error {
		view, err := g.onDisk("nrt1")
		switch {
		case err != nil:
			return err
		case !strings.Contains(view, late.Endpoint()):
			return errors.New("it is not the newest yet")
		}
		for _, word := range []string{id, "acme", "globex", g.db.Endpoint(), g.web.Endpoint(), "granted"} {
			if strings.Contains(view, word) {
				t.Fatalf("nrt1 knows %s:\n%s", word, view)
			}
		}
		return nil
	})
}

// A grant is in a backup, and in force again after its restore.
func TestAGrantIsRestored(t *testing.T) {
	need(t, "nsenter")
	t.Parallel()
	g := newGranted(t)
	web := newWatcher(t, g.web)
	id := g.grant(t, "--from", "acme/web", "--to", "globex/db", "--tcp", "7")
	reached := func(ctx context.Context) error { return echoed(ctx, web, "tcp6", g.db) }
	await(t, "the grant to be in force", firstTunnel, reached)
	file := backUp(t, g.World, "grants.backup.gz")

	c := g.Controllers[0]
	if err := g.KillController(); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(g.Lab().Dir(), "seal.key")
	if err := errors.Join(os.Rename(filepath.Join(c.DataDir, "seal.key"), key), os.RemoveAll(c.DataDir)); err != nil {
		t.Fatal(err)
	}
	if err := reached(t.Context()); err != nil {
		t.Errorf("without a controller: %v", err)
	}
	restore(t, g.World, file, "--data-dir", c.DataDir, "--seal-key-file", key)
	c.Flags = append(c.Flags, "--seal-key-file", key)
	if err := g.StartController(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := weft(t, g.World, "grant", "show", id); !strings.Contains(out, "tcp 7") {
		t.Errorf("after the restore:\n%s", out)
	}
	await(t, "a machine that is newer to be reached by it", 10*time.Second, func(ctx context.Context) error {
		if g.Machines["globex/db-2"] == nil {
			start(t, g.World, "ams1", "globex", "db", "db-2")
		}
		return echoed(ctx, web, "tcp6", g.Machines["globex/db-2"])
	})
	weft(t, g.World, "grant", "remove", id)
	await(t, "the grant to end", 3*time.Second, func(ctx context.Context) error { return refused("it goes on", reached(ctx)) })
}

// A grant follows a machine to another host, holds for one that comes later, and for a
// laptop.
func TestAGrantFollows(t *testing.T) {
	need(t, "curl", "nsenter")
	t.Parallel()
	g := newGranted(t)
	web := newWatcher(t, g.web)
	g.grant(t, "--from", "acme/web", "--to", "globex/db", "--tcp", "7")
	await(t, "the grant to be in force", firstTunnel, func(ctx context.Context) error { return echoed(ctx, web, "tcp6", g.db) })

	second := start(t, g.World, "nrt1", "globex", "db", "db-2")
	await(t, "a machine that came later to be reached", firstTunnel, func(ctx context.Context) error { return echoed(ctx, web, "tcp6", second) })

	g.grant(t, "--from", "acme/client:laptop", "--to", "globex/db", "--tcp", "80")
	l := newLaptop(t, g.World, "laptop")
	await(t, "the laptop to reach globex", 10*time.Second, func(ctx context.Context) error {
		_, err := l.Run(ctx, "curl", "-sS", "-g", "--max-time", "1", "http://["+g.db.Address.String()+"]/")
		return err
	})
	if _, err := l.Run(t.Context(), "curl", "-sS", "-g", "--max-time", "1", "http://["+g.cache.Address.String()+"]/"); err == nil {
		t.Error("the laptop reaches what it was not granted")
	}

	// The far end moves, to a host that has had nothing to do with its org.
	g.grant(t, "--from", "globex/db", "--to", "acme/web", "--tcp", "7")
	db := newWatcher(t, g.db)
	roamer := runWith(t, g.World, "fra1", "web", "roamer", nil, g.Echo()...)
	await(t, "the roamer to be reached", 3*time.Second, func(ctx context.Context) error { return echoed(ctx, db, "tcp6", roamer) })
	before := roamer.Address
	roamer = runWith(t, g.World, "nrt1", "web", "roamer", []string{"--move"}, g.Echo()...)
	if roamer.Address != before {
		t.Fatalf("it was %s and is %s", before, roamer.Address)
	}
	if err := roamer.Process.AwaitLog(t.Context(), "moved here from host fra1", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	await(t, "the roamer to be reached on another host", 3*time.Second, func(ctx context.Context) error { return echoed(ctx, db, "tcp6", roamer) })
	if _, err := begin(t.Context(), db, "tcp6", roamer, webPort); err == nil {
		t.Error("after the move another port is let through")
	}
}

// What the far host has to say about a granted flow comes back, to a machine and to a
// laptop: that a packet is too large for the way there, and that it was passed on too
// often.
func TestErrorsAcrossAGrant(t *testing.T) {
	need(t, "ping", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1")
	const narrow = 1300
	weft(t, w, "region", "create", "ams")
	if _, err := w.AddHost(t.Context(), "ams1", "ams", "--mtu", strconv.Itoa(narrow)); err != nil {
		t.Fatal(err)
	}
	if err := w.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	weft(t, w, "org", "create", "globex")
	web, db := start(t, w, "fra1", "acme", "web", "web-1"), start(t, w, "ams1", "globex", "db", "db-1")
	for _, from := range []string{"acme/web", "acme/client:laptop"} {
		weft(t, w, "grant", "create", "--from", from, "--to", "globex/db", "--icmp")
	}
	l := placeLaptop(t, w, "laptop", lab.HostConfig{PrivateEtc: true})
	l.args = append(l.args, "--gateway", "fra1") // ams1 could be it too
	l.start(t, w)
	const headers = 48 // of IPv6 and of an echo
	for _, from := range []struct {
		what string
		ping func(ctx context.Context, args ...string) (string, error)
	}{
		{"a machine", func(ctx context.Context, args ...string) (string, error) {
			return web.In(ctx, append([]string{"ping"}, args...)...)
		}},
		{"a laptop", func(ctx context.Context, args ...string) (string, error) { return l.Run(ctx, "ping", args...) }},
	} {
		target := db.Address.String()
		await(t, "the grant of "+from.what+" to be in force", firstTunnel, func(ctx context.Context) error {
			_, err := from.ping(ctx, "-c1", "-W1", target)
			return err
		})
		out, err := from.ping(t.Context(), "-c3", "-W1", "-i0.3", "-M", "do", "-s", strconv.Itoa(narrow+50-headers), target)
		if err == nil || !strings.Contains(out, fmt.Sprintf("mtu=%d", narrow)) {
			t.Errorf("%s: a packet that is too large for the far host: %v\n%s", from.what, err, out)
		}
		for hops := 1; hops <= 2; hops++ {
			out, err := from.ping(t.Context(), "-c1", "-W2", "-t", strconv.Itoa(hops), target)
			if err == nil || !strings.Contains(out, "Time exceeded") {
				t.Errorf("%s: after %d hops: %v\n%s", from.what, hops, err, out)
			}
		}
	}
}
