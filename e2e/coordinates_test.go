package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/agent/local"
)

// explain is what `weft dig --explain` on a host says.
func explain(ctx context.Context, w *world.World, host, name string) (x local.Explain, err error) {
	out, err := w.Hosts[host].Run(ctx, filepath.Join(w.Bin(), "weft"), "dig", "--explain", "--org", "acme", name, "-o", "json")
	if err != nil {
		return x, err
	}
	return x, json.Unmarshal([]byte(out), &x)
}

// explained is what it says of one machine.
func explained(ctx context.Context, w *world.World, host, name, machine string) (local.Considered, error) {
	x, err := explain(ctx, w, host, name)
	if err != nil {
		return local.Considered{}, err
	}
	for _, c := range x.Machines {
		if c.Machine == machine {
			return c, nil
		}
	}
	return local.Considered{}, fmt.Errorf("it says nothing of machine %s: %+v", machine, x)
}

// How far a host is that was never measured is estimated from network coordinates:
// two hosts whose probes do not reach each other, on a line between two others that
// both of them measure. Hosts tell of their coordinates when there is something else
// to tell, so a machine on each has a health that changes all the time.
func TestCoordinatesStandInForProbes(t *testing.T) {
	need(t, "dig", "nsenter", "python3")
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	draw := rand.New(rand.NewPCG(seed, 1))
	at := map[string]float64{"ams1": 0, "fra1": 45 + 10*draw.Float64(), "sin1": 60 + 10*draw.Float64(), "nrt1": 120} // ms
	t.Logf("seed %d: the hosts are at %v", seed, at)
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	rtt := func(a, b string) time.Duration {
		return time.Duration(max(at[a]-at[b], at[b]-at[a]) * float64(time.Millisecond))
	}
	apart := func(pairs ...[2]string) {
		t.Helper()
		for _, p := range pairs {
			if err := w.Lab().Switch().SetRTT(p[0], p[1], rtt(p[0], p[1])); err != nil {
				t.Fatal(err)
			}
		}
	}
	apart([2]string{"fra1", "ams1"}, [2]string{"fra1", "nrt1"}, [2]string{"ams1", "nrt1"})
	weft(t, w, "region", "create", "sin")
	joined := time.Now()
	// Those that do not answer stay in names, so that it is seen what the estimate is for.
	if _, err := w.AddHost(t.Context(), "sin1", "sin", "--disable", "suspect"); err != nil {
		t.Fatal(err)
	}
	if err := w.Lab().Switch().Cut("sin1", "fra1"); err != nil {
		t.Fatal(err)
	}
	apart([2]string{"sin1", "ams1"}, [2]string{"sin1", "nrt1"}, [2]string{"sin1", "fra1"})
	if err := w.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	for host := range w.Hosts {
		startPatient(t, w, host, "pulse", "pulse-"+host, "pulse", fastChecks("http:80/healthz")...)
	}
	for _, host := range []string{"fra1", "ams1", "nrt1"} {
		start(t, w, host, "acme", "web", "web-"+host)
	}
	start(t, w, "sin1", "acme", "shell", "shell-sin1")

	// Coordinates of a mesh this young are rough; that they are there and are used is
	// what counts.
	estimated := func(host, name, machine string) {
		t.Helper()
		var c local.Considered
		await(t, "the way from "+host+" to "+machine+" to rest on coordinates", 20*time.Second, func(ctx context.Context) (err error) {
			c, err = explained(ctx, w, host, name, machine)
			switch {
			case err != nil:
				return err
			case c.Basis == "measured":
				return lab.Hopeless(errors.New("it was measured: the cut came too late"))
			case c.Basis != "coordinates":
				return fmt.Errorf("it rests on %q", c.Basis)
			}
			return nil
		})
		t.Logf("%s after the join the way from %s to %s rests on coordinates: it is %s (error %.2f), in truth %s",
			time.Since(joined).Round(100*time.Millisecond), host, machine, c.Distance.Round(100*time.Microsecond), c.CoordinateError, rtt("sin1", "fra1").Round(100*time.Microsecond))
		if c.Distance <= 0 || c.Distance > 2*rtt("ams1", "nrt1") {
			t.Errorf("from %s to %s it is estimated as %s", host, machine, c.Distance)
		}
	}
	estimated("sin1", "web.internal", "web-fra1")
	estimated("fra1", "shell.internal", "shell-sin1")
	x, err := explain(t.Context(), w, "sin1", "top3.nearest.of.web.internal")
	if err != nil || len(x.Answer) != 3 || len(x.Machines) != 3 {
		t.Fatalf("%+v, %v", x, err)
	}
	for i, c := range x.Machines[1:] {
		// About as near is in any order.
		if before := x.Machines[i]; float64(c.Distance) < 0.7*float64(before.Distance) {
			t.Errorf("%s (%s, %s) is answered before %s (%s, %s)", before.Machine, before.Distance, before.Basis, c.Machine, c.Distance, c.Basis)
		}
	}

	if err := w.Lab().Switch().Restore("sin1", "fra1"); err != nil {
		t.Fatal(err)
	}
	restored := time.Now()
	await(t, "what is measured to take its place", 15*time.Second, func(ctx context.Context) error {
		c, err := explained(ctx, w, "sin1", "web.internal", "web-fra1")
		if err == nil && (c.Basis != "measured" || c.Distance > 2*rtt("sin1", "fra1")) {
			err = fmt.Errorf("it rests on %s: %s", c.Basis, c.Distance)
		}
		return err
	})
	t.Logf("measured %s after the cut ended", time.Since(restored).Round(100*time.Millisecond))
}
