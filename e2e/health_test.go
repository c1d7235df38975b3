package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
)

// fastChecks are the flags of checks that are made often.
func fastChecks(check string) []string {
	return []string{"--check", check, "--check-interval", "100ms", "--check-timeout", "1s"}
}

// turned bounds how long a check's verdict takes to be in names on every host: three
// looks, a report, and the way to the others.
const turned = 5 * time.Second

// Checks from the data plane, through the firewall, decide whether a machine is in
// names, on its own host and on others; and those that a command makes inside it.
func TestChecksDecideNames(t *testing.T) {
	need(t, "dig", "nsenter", "python3")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	ws := startWatchers(t, w)
	flag := filepath.Join(w.Lab().Dir(), "job-works")
	page := startPatient(t, w, "fra1", "page", "page-1", "closed", fastChecks("http:80/healthz")...)
	port := startPatient(t, w, "ams1", "port", "port-1", "closed", fastChecks("tcp:80")...)
	job := runWith(t, w, "ams1", "job", "job-1", fastChecks("exec:test -e "+flag), "sleep", "1000")
	for _, id := range []string{"page-1", "port-1", "job-1"} {
		healthIs(t, w, id, "failing since")
	}
	// They run, and do not pass: nobody is told of them.
	none := func(when string) {
		t.Helper()
		for _, app := range []string{"page", "port", "job"} {
			for host, from := range ws {
				if err := nameIs(from, "global."+app+".internal")(t.Context()); err != nil {
					t.Errorf("%s, on %s: %v", when, host, err)
				}
			}
		}
	}
	none("before any pass")

	page.set(t, "ok")
	ws.see(t, "http: the first pass", turned, "page.internal", page.Machine)
	if n := inARow(page.answered()); n < 1 {
		t.Errorf("the name came with %d good pages", n)
	}
	port.set(t, "ok")
	ws.see(t, "tcp: the first pass", turned, "port.internal", port.Machine)
	if err := os.WriteFile(flag, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ws.see(t, "exec: the first pass", turned, "job.internal", job)
	for _, id := range []string{"page-1", "port-1", "job-1"} {
		healthIs(t, w, id, "passing since")
	}

	page.set(t, "broken")
	ws.see(t, "http: a 500", turned, "page.internal")
	port.set(t, "closed")
	ws.see(t, "tcp: a closed port", turned, "port.internal")
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	ws.see(t, "exec: exit status 1", turned, "job.internal")
	for id, note := range map[string]string{"page-1": "http:80/healthz: HTTP status 500", "port-1": "refused", "job-1": "exit status 1"} {
		healthIs(t, w, id, note)
	}
	none("when all fail")

	page.set(t, "ok")
	ws.see(t, "http: recovered", turned, "page.internal", page.Machine)
	port.set(t, "ok")
	ws.see(t, "tcp: recovered", turned, "port.internal", port.Machine)
	if err := os.WriteFile(flag, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ws.see(t, "exec: recovered", turned, "job.internal", job)
}

// One that flaps has to pass more often before it is in names again, and in the end
// stays out of them while it flaps.
func TestFlappingIsDamped(t *testing.T) {
	need(t, "dig", "nsenter", "python3")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	ws := startWatchers(t, w)
	p := startPatient(t, w, "fra1", "page", "page-1", "ok", fastChecks("http:80/healthz")...)
	ws.see(t, "the first pass", turned, "page.internal", p.Machine)
	failed := func() int {
		return strings.Count(w.Hosts["fra1"].Agent.Log(), "machine=acme/page-1 state=failing")
	}
	before := failed() // its first pass may have taken long; that is no fall
	falls := func() int { return failed() - before }
	p.set(t, "flap")
	await(t, "it to fall six times", 20*time.Second, func(context.Context) error {
		if n := falls(); n < 6 {
			return fmt.Errorf("it fell %d times", n)
		}
		return nil
	})
	// It now takes eight passes in a row, and it has four at a time.
	ws.see(t, "the sixth fall", turned, "page.internal")
	stayedOut := allTheTime(t, "the name while it flaps", nameIs(ws["ams1"], "page.internal"))
	looks := len(p.answered())
	await(t, "four more rounds", 10*time.Second, func(context.Context) error {
		if n := len(p.answered()) - looks; n < 28 {
			return fmt.Errorf("%d looks", n)
		}
		return nil
	})
	stayedOut()
	if n := falls(); n != 6 {
		t.Errorf("it fell %d times, want 6: it was in names again", n)
	}
	p.set(t, "broken")
	await(t, "a bad page", 5*time.Second, func(context.Context) error {
		if inARow(p.answered()) > 0 {
			return errors.New("the last one was good")
		}
		return nil
	})
	p.set(t, "ok")
	began := time.Now()
	await(t, "the name after it works again", 10*time.Second, nameIs(ws["fra1"], "page.internal", p.Address.String()))
	if n := inARow(p.answered()); n < 8 {
		t.Errorf("it was in names again after %d good pages, want 8", n)
	} else {
		t.Logf("it was in names again after at most %d good pages, %s", n, time.Since(began).Round(time.Millisecond))
	}
}

// An agent that is killed and started again does not make a machine's name disappear
// that passes, nor one appear that fails.
func TestChecksOutliveTheAgent(t *testing.T) {
	need(t, "dig", "nsenter", "python3")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	ws := startWatchers(t, w)
	// A look takes 0.7 s, and on a busy machine longer: no time is too long.
	patient := func(check string) []string { return append(fastChecks(check), "--check-timeout", "5s") }
	checks := patient("http:80/healthz")
	good := startPatient(t, w, "fra1", "page", "good", "ok", checks...)
	bad := startPatient(t, w, "fra1", "page", "bad", "ok", checks...)
	job := runWith(t, w, "fra1", "job", "job", patient("exec:sleep 0.7"), "sleep", "1000")
	ws.see(t, "the first pass", turned, "page.internal", good.Machine, bad.Machine)
	ws.see(t, "the command's first pass", turned, "job.internal", job)
	bad.set(t, "broken")
	ws.see(t, "one that fails", turned, "page.internal", good.Machine)
	healthIs(t, w, "bad", "failing since")
	good.set(t, "slow") // an agent that begins anew does not know for a while

	h := w.Hosts["fra1"]
	var watching []func()
	for host, from := range ws {
		for name, m := range map[string]*world.Machine{"page.internal": good.Machine, "job.internal": job} {
			watching = append(watching, allTheTime(t, name+" on "+host, answeredOnlyWith(from, name, host == "fra1", m.Address.String())))
		}
	}
	for range 2 {
		if err := h.Agent.Kill(); err != nil {
			t.Fatal(err)
		}
		looks, killed := len(good.answered()), time.Now()
		if err := w.StartAgent(h); err != nil {
			t.Fatal(err)
		}
		await(t, "the next agent to look", 15*time.Second, func(context.Context) error {
			if n := len(good.answered()) - looks; n < 3 {
				return fmt.Errorf("%d looks", n)
			}
			return nil
		})
		await(t, "the next agent to answer", 10*time.Second, nameIs(ws["fra1"], "page.internal", good.Address.String()))
		t.Logf("the agent looked three times %s after its death", time.Since(killed).Round(time.Millisecond))
	}
	if err := w.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, stop := range watching {
		stop()
	}
	// And it still notices.
	good.set(t, "broken")
	ws.see(t, "failing after the restart", turned, "page.internal")
	bad.set(t, "ok")
	ws.see(t, "recovering after the restart", turned, "page.internal", bad.Machine)
}

// answeredOnlyWith is an error if a name is answered otherwise; mayBeSilent: no answer,
// or none that says anything of the name, is as good.
func answeredOnlyWith(from *world.Machine, name string, mayBeSilent bool, want string) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := from.In(ctx, "dig", "+noall", "+comments", "+answer", "+time=1", "+tries=1", "AAAA", name)
		silent := err != nil || !strings.Contains(out, "status: NOERROR") && !strings.Contains(out, "status: NXDOMAIN")
		if mayBeSilent && silent || strings.Contains(out, want) && strings.Count(out, "\tAAAA\t") == 1 {
			return nil
		}
		return fmt.Errorf("%v\n%s", err, out)
	}
}

// What is wanted of a machine is in names on every host within seconds, and the texts
// that begin with all. have it whatever is wanted.
func TestMachineVerbs(t *testing.T) {
	need(t, "dig", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1")
	ws := startWatchers(t, w)
	a, b := start(t, w, "fra1", "acme", "web", "a"), start(t, w, "ams1", "acme", "web", "b")
	const seconds = 3 * time.Second
	ws.see(t, "both", seconds, "global.web.internal", a, b)
	for _, tt := range []struct {
		verb, state string
		in          bool
	}{
		{"cordon", "started,cordoned", false}, {"uncordon", "started", true},
		{"drain", "draining", false}, {"start", "started", true},
		{"stop", "stopped", false}, {"cordon", "stopped,cordoned", false}, {"start", "started,cordoned", false}, {"uncordon", "started", true},
	} {
		out := weft(t, w, "machine", tt.verb, "--org", "acme", "a")
		if !strings.Contains(out, tt.state) {
			t.Errorf("weft machine %s printed no %q:\n%s", tt.verb, tt.state, out)
		}
		want, names := []*world.Machine{b}, "b ams"
		if tt.in {
			want, names = []*world.Machine{a, b}, "a fra,b ams"
		}
		ws.see(t, tt.verb, seconds, "global.web.internal", want...)
		var group sync.WaitGroup
		for host, from := range ws {
			group.Go(func() {
				for name, want := range map[string]string{"vms.web.internal": names, "all.vms.web.internal": "a fra,b ams"} {
					if got, err := texts(t.Context(), from, name); err != nil || got != want {
						t.Errorf("%s: on %s %s is %q, want %q, %v", tt.verb, host, name, got, want, err)
					}
				}
			})
		}
		group.Wait()
		if a.Process.Exited() {
			t.Fatalf("weft machine %s ended it: %s", tt.verb, a.Process.LastLine())
		}
		if err := reach(t.Context(), ws["ams1"], a); err != nil {
			t.Errorf("%s: its network: %v", tt.verb, err)
		}
	}
}
