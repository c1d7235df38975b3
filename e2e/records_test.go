package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh"
)

// answered is what dig shows of an answer: its status, its values in order, and the
// TTL that they share.
type answered struct {
	status string
	values []string
	ttl    int
}

func (a answered) String() string {
	return fmt.Sprintf("%s %q, TTL %d", a.status, a.values, a.ttl)
}

func digFull(ctx context.Context, from *world.Machine, kind, name string) (a answered, err error) {
	out, err := from.In(ctx, "dig", "+noall", "+comments", "+answer", "+time=1", "+tries=1", kind, name)
	if err != nil {
		return a, err
	}
	for line := range strings.Lines(out) {
		if _, status, ok := strings.Cut(line, "status: "); ok {
			a.status, _, _ = strings.Cut(status, ",")
		}
		f := strings.Fields(line)
		if len(f) < 5 || strings.HasPrefix(line, ";") {
			continue
		}
		if f[3] != kind {
			return a, fmt.Errorf("the answer has a record of type %s: %s", f[3], line)
		}
		if a.ttl, err = strconv.Atoi(f[1]); err != nil {
			return a, err
		}
		a.values = append(a.values, strings.Join(f[4:], " "))
	}
	slices.Sort(a.values)
	return a, nil
}

// answers waits until all of these machines are answered like this.
func answers(t *testing.T, within time.Duration, kind, name string, want answered, from ...*world.Machine) {
	t.Helper()
	slices.Sort(want.values)
	began := time.Now()
	await(t, kind+" "+name+" to be "+want.String(), within, func(ctx context.Context) error {
		var errs []error
		for _, m := range from {
			got, err := digFull(ctx, m, kind, name)
			if err == nil && (got.status != want.status || got.ttl != want.ttl || !slices.Equal(got.values, want.values)) {
				err = fmt.Errorf("on %s it is %s", m.Host.Name(), got)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	t.Logf("%s %s is %s after %s", kind, name, want, time.Since(began).Round(time.Millisecond))
}

var (
	noSuchName = answered{status: "NXDOMAIN"}
	noData     = answered{status: "NOERROR"}
)

func found(ttl int, values ...string) answered { return answered{"NOERROR", values, ttl} }

// An org's own records, and what its apps' names answer, from the command line to the
// answers on two hosts; no other org sees any of it.
func TestRecordsAndSettings(t *testing.T) {
	need(t, "dig", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	for pair, delay := range map[[2]string]time.Duration{{"fra1", "ams1"}: 4 * time.Millisecond, {"fra1", "nrt1"}: 60 * time.Millisecond, {"ams1", "nrt1"}: 70 * time.Millisecond} {
		if err := w.Lab().Switch().SetDelay(pair[0], pair[1], delay); err != nil {
			t.Fatal(err)
		}
	}
	weft(t, w, "org", "create", "globex")
	fra, nrt := start(t, w, "fra1", "acme", "shell", "shell-fra"), start(t, w, "nrt1", "acme", "shell", "shell-nrt")
	other := start(t, w, "fra1", "globex", "shell", "shell-globex")
	start(t, w, "fra1", "globex", "web", "web-globex")
	w1, w2, w3 := start(t, w, "fra1", "acme", "web", "w1"), start(t, w, "ams1", "acme", "web", "w2"), start(t, w, "nrt1", "acme", "web", "w3")
	at := func(ms ...*world.Machine) []string { return addresses(ms...) }
	const soon = 5 * time.Second
	record := func(args ...string) { t.Helper(); weft(t, w, append([]string{"record"}, args...)...) }
	// Distances first, which names depend on.
	answers(t, 15*time.Second, "AAAA", "web.internal", found(5, at(w1)...), fra)
	answers(t, 15*time.Second, "AAAA", "web.internal", found(5, at(w3)...), nrt)
	answers(t, 15*time.Second, "AAAA", "top2.nearest.of.web.internal", found(5, at(w1, w2)...), fra)

	record("create", "--org", "acme", "printer", "AAAA", "fd12:3456:789a:1::7", "--ttl", "77")
	record("create", "--org", "acme", "motd.office", "TXT", "closed today", "back on monday")
	record("create", "--org", "acme", "_pg._tcp.store", "SRV", "3 1 5432 web.internal")
	record("create", "--org", "acme", "api", "alias", "web.internal", "--ttl", "20")
	answers(t, soon, "AAAA", "printer.internal", found(77, "fd12:3456:789a:1::7"), fra, nrt)
	answers(t, soon, "TXT", "motd.office.internal", found(5, `"closed today"`, `"back on monday"`), fra, nrt)
	answers(t, soon, "SRV", "_pg._tcp.store.internal", found(5, "3 1 5432 web.internal."), fra, nrt)
	// An alias is what is there, near set and all, for no longer than either may be kept.
	answers(t, soon, "AAAA", "api.internal", found(5, at(w1)...), fra)
	answers(t, soon, "AAAA", "api.internal", found(5, at(w3)...), nrt)
	answers(t, soon, "TXT", "printer.internal", noData, fra, nrt)
	answers(t, soon, "AAAA", "office.internal", noData, fra, nrt) // something is below it
	for kind, name := range map[string]string{"AAAA": "printer.internal", "TXT": "motd.office.internal", "SRV": "_pg._tcp.store.internal"} {
		answers(t, soon, kind, name, noSuchName, other)
	}
	answers(t, soon, "AAAA", "api.internal", noSuchName, other)

	weft(t, w, "app", "set", "--org", "acme", "web", "--answer", "all", "--ttl", "30")
	answers(t, soon, "AAAA", "web.internal", found(30, at(w1, w2, w3)...), fra, nrt)
	answers(t, soon, "AAAA", "api.internal", found(20, at(w1, w2, w3)...), fra, nrt)
	weft(t, w, "app", "set", "--org", "acme", "web", "--answer", "2")
	answers(t, soon, "AAAA", "web.internal", found(30, at(w1, w2)...), fra)
	answers(t, soon, "AAAA", "web.internal", found(30, at(w3, w1)...), nrt)
	weft(t, w, "app", "set", "--org", "acme", "web", "--answer", "near")
	answers(t, soon, "AAAA", "web.internal", found(30, at(w1)...), fra)
	answers(t, soon, "AAAA", "web.internal", found(30, at(w3)...), nrt)
	if a, err := digFull(t.Context(), other, "AAAA", "web.internal"); err != nil || a.ttl != 5 {
		t.Errorf("another org's app of that name: %s, %v", a, err)
	}

	record("set", "--org", "acme", "motd.office", "TXT", "open")
	answers(t, soon, "TXT", "motd.office.internal", found(5, `"open"`), fra, nrt)
	record("create", "--org", "acme", "printer", "TXT", "third floor")
	answers(t, soon, "TXT", "printer.internal", found(5, `"third floor"`), fra, nrt)
	record("remove", "--org", "acme", "printer", "AAAA")
	answers(t, soon, "AAAA", "printer.internal", noData, fra, nrt)
	for _, name := range []string{"printer", "motd.office", "_pg._tcp.store", "api"} {
		record("remove", "--org", "acme", name)
	}
	for kind, name := range map[string]string{"TXT": "printer.internal", "AAAA": "api.internal", "SRV": "_pg._tcp.store.internal"} {
		answers(t, soon, kind, name, noSuchName, fra, nrt)
	}
	answers(t, soon, "AAAA", "office.internal", noSuchName, fra, nrt)
	for _, args := range [][]string{
		{"record", "create", "--org", "acme", "web", "TXT", "x"}, // an app's name
		{"record", "create", "--org", "acme", "_apps", "TXT", "x"},
		{"record", "create", "--org", "acme", "x", "A", "192.0.2.1"},
		{"app", "set", "--org", "acme", "web", "--answer", "0"},
	} {
		if out, err := w.Weft(t.Context(), args...); err == nil {
			t.Errorf("weft %s was taken:\n%s", strings.Join(args, " "), out)
		}
	}
}

// Records, settings and health are in a backup; what a host knows better of the
// health of its machines it says again.
func TestRestoreOfRecordsAndHealth(t *testing.T) {
	need(t, "dig", "curl", "nsenter", "python3")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	ctx := t.Context()
	from := start(t, w, "ams1", "acme", "shell", "shell")
	checks := fastChecks("http:80/healthz")
	good, bad := startPatient(t, w, "fra1", "web", "good", "ok", checks...), startPatient(t, w, "fra1", "web", "bad", "ok", checks...)
	const soon = 10 * time.Second
	answers(t, soon, "AAAA", "web.internal", found(5, addresses(good.Machine, bad.Machine)...), from)
	bad.set(t, "broken")
	healthIs(t, w, "bad", "failing since")
	weft(t, w, "record", "create", "--org", "acme", "motd", "TXT", "from the backup", "--ttl", "40")
	weft(t, w, "record", "create", "--org", "acme", "api", "alias", "web.internal")
	weft(t, w, "app", "set", "--org", "acme", "web", "--answer", "all", "--ttl", "30")
	weft(t, w, "machine", "cordon", "--org", "acme", "shell")
	answers(t, soon, "AAAA", "web.internal", found(30, addresses(good.Machine)...), from)
	records := func() string { return weft(t, w, "record", "list", "--org", "acme") }
	file, before := backUp(t, w, "mesh.backup"), records()
	since := map[string]mesh.Health{}
	for _, id := range []string{"good", "bad"} {
		since[id] = *machineInfo(t, w, id).Health
	}

	// All of it changes, and then the store is lost.
	weft(t, w, "record", "set", "--org", "acme", "motd", "TXT", "later")
	weft(t, w, "record", "remove", "--org", "acme", "api")
	weft(t, w, "app", "set", "--org", "acme", "web", "--answer", "near", "--ttl", "5")
	weft(t, w, "machine", "uncordon", "--org", "acme", "shell")
	answers(t, soon, "TXT", "motd.internal", found(5, `"later"`), from)
	c := w.Controllers[0]
	if err := w.KillController(); err != nil {
		t.Fatal(err)
	}
	key := w.Lab().Dir() + "/seal.key"
	if err := os.Rename(c.DataDir+"/seal.key", key); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.DataDir); err != nil {
		t.Fatal(err)
	}
	named := allTheTime(t, "the one that passes", nameIs(from, "global.web.internal", good.Address.String()))
	restore(t, w, file, "--data-dir", c.DataDir, "--seal-key-file", key)
	c.Flags = append(c.Flags, "--seal-key-file", key)
	if err := w.StartController(ctx); err != nil {
		t.Fatal(err)
	}
	if after := records(); after != before {
		t.Errorf("the records are\n%s\nwere\n%s", after, before)
	}
	for _, id := range []string{"good", "bad"} {
		if h := machineInfo(t, w, id).Health; h == nil || h.Passing != since[id].Passing || !h.Since.Equal(since[id].Since) {
			t.Errorf("the health of %s is %+v, was %+v", id, h, since[id])
		}
	}
	if m := machineInfo(t, w, "shell"); !m.Cordoned {
		t.Error("the cordon was not restored")
	}
	answers(t, 20*time.Second, "TXT", "motd.internal", found(40, `"from the backup"`), from)
	answers(t, soon, "AAAA", "web.internal", found(30, addresses(good.Machine)...), from)
	if a, err := digFull(ctx, from, "AAAA", "api.internal"); err != nil || !slices.Equal(a.values, addresses(good.Machine)) {
		t.Errorf("the alias: %s, %v", a, err)
	}
	named()
	// What is found out from now on gets to the others as before.
	bad.set(t, "ok")
	answers(t, soon, "AAAA", "web.internal", found(30, addresses(good.Machine, bad.Machine)...), from)
	healthIs(t, w, "bad", "passing since")
}
