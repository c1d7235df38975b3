package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
)

// request is a line of what client.py notes.
type request struct {
	began, ended time.Time
	address      string
	said         string // "ok"
}

func requestsIn(t *testing.T, path string) (out []request) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := func(s string) time.Time {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.UnixMicro(int64(f * 1e6))
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if len(f) == 4 {
			out = append(out, request{at(f[0]), at(f[1]), f[2], f[3]})
		}
	}
	return out
}

// A machine that is asked to end drains first: its name goes, everybody goes
// elsewhere, and no request fails, neither while it drains nor when it ends.
func TestDrainUnderTraffic(t *testing.T) {
	need(t, "dig", "nsenter", "python3")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	for host, delay := range map[string]time.Duration{"fra1": 2 * time.Millisecond, "ams1": 25 * time.Millisecond} {
		if err := w.Lab().Switch().SetDelay("nrt1", host, delay); err != nil {
			t.Fatal(err)
		}
	}
	const drain, rate = 3 * time.Second, 50
	leaves := startPatient(t, w, "fra1", "web", "leaves", "ok", append(fastChecks("http:80/healthz"), "--drain", drain.String())...)
	stays := startPatient(t, w, "ams1", "web", "stays", "ok", fastChecks("http:80/healthz")...)
	from := start(t, w, "nrt1", "acme", "shell", "shell")
	await(t, "the nearer one to be answered", 15*time.Second, nameIs(from, "web.internal", leaves.Address.String()))
	await(t, "the other one to pass", turned, nameIs(from, "global.web.internal", addresses(leaves.Machine, stays.Machine)...))

	record := filepath.Join(w.Lab().Dir(), "requests")
	script, err := filepath.Abs("testdata/health/client.py")
	if err != nil {
		t.Fatal(err)
	}
	client := runWith(t, w, "nrt1", "load", "client", nil, "python3", script, "web.internal", strconv.Itoa(rate), record)
	some := func(what string, n int, of func(request) bool) {
		t.Helper()
		await(t, what, 10*time.Second, func(context.Context) error {
			got := 0
			if _, err := os.Stat(record); err != nil {
				return err
			}
			for _, r := range requestsIn(t, record) {
				if of(r) {
					got++
				}
			}
			if got < n {
				return fmt.Errorf("%d of %d", got, n)
			}
			return nil
		})
	}
	some("traffic to the one that leaves", 2*rate, func(r request) bool { return r.address == leaves.Address.String() })
	asked := time.Now()
	if err := leaves.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await(t, "the name to go", drain, nameIs(from, "web.internal", stays.Address.String()))
	gone := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := leaves.Process.Wait(ctx); err == nil && leaves.Process.ExitCode() != 0 || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("weft run after SIGTERM: %v", err)
	}
	ended := time.Now()
	if took := ended.Sub(asked); took < drain || took > drain+5*time.Second {
		t.Errorf("it ended %s after SIGTERM, want about %s", took, drain)
	}
	some("traffic after its end", rate, func(r request) bool { return r.began.After(ended) })
	if err := client.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := client.Process.Wait(ctx); err != nil {
		t.Errorf("the client: %v\n%s", err, client.Process.Log())
	}
	judgeDrain(t, requestsIn(t, record), leaves.Address.String(), asked, gone, ended)
}

func judgeDrain(t *testing.T, requests []request, leaves string, asked, gone, ended time.Time) {
	t.Helper()
	var before, drains, after, late int
	last := asked
	for _, r := range requests {
		switch {
		case r.began.Before(asked):
			before++
		case r.began.Before(ended):
			drains++
		default:
			after++
		}
		if r.said != "ok" {
			t.Errorf("a request failed, %s after SIGTERM: %s (%s)", r.began.Sub(asked), r.said, r.address)
		}
		if r.address != leaves {
			continue
		}
		if r.began.After(last) {
			last = r.began
		}
		if r.began.After(gone) {
			late++
		}
	}
	if late > 0 {
		t.Errorf("%d requests went to the machine after its name was gone", late)
	}
	t.Logf("%d requests before SIGTERM, %d while it drained and ended (%s), %d after; the name was gone after %s, the last request to it began after %s",
		before, drains, ended.Sub(asked).Round(time.Millisecond), after, gone.Sub(asked).Round(time.Millisecond), last.Sub(asked).Round(time.Millisecond))
}
