package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
)

// controllerFaults is what happens to the one controller with etcd inside. Hosts and
// machines must not notice.
func controllerFaults(t *testing.T) {
	f := newField(t, world.Config{}, "fra1", "ams1")
	ctl := f.Controllers[0]

	f.fault(t, "killed", func(r *row) {
		r.during("writes to be acknowledged", soon, r.ledger.acknowledges(20))
		p := ctl.Process
		r.must(p.Kill())
		r.evidence("it was killed", soon, ended(p, "signal: killed"))
		r.last(time.Second)
		r.must(f.StartController(t.Context()))
	})

	f.fault(t, "paused", func(r *row) {
		p := ctl.Process
		r.must(p.Pause())
		r.evidence("the kernel has stopped it", soon, stopped(p))
		r.last(10 * time.Second)
		r.must(p.Continue())
		r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
		if n := r.metric(ctl.Host, "weft_controller_fenced_total"); n != 0 {
			r.Errorf("%g streams were fenced: hosts were taken for copies of themselves", n)
		}
	})

	f.fault(t, "cut off from hosts", func(r *row) {
		sw := r.Lab().Switch()
		r.must(sw.Cut("ctl", "fra1"), sw.CutOneWay("ctl", "ams1"))
		r.evidence("both ways", 2*soon, r.cut("fra1", "ctl"))
		r.evidence("one way", 2*soon, r.cut("ctl", "ams1"))
		// Its side of the streams ends first; that takes no name away.
		r.evidence("the controller misses both", 40*time.Second, func(ctx context.Context) (string, error) {
			return "neither is present", r.present()(ctx)
		})
		r.must(sw.Restore("ctl", "fra1"), sw.Restore("ctl", "ams1"))
		r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
	})

	f.fault(t, "slow disk", func(r *row) { slowDisk(r, ctl) })

	f.fault(t, "killed under load", func(r *row) { killedUnderLoad(r, ctl) })

	f.fault(t, "full disk", func(r *row) { fullDisk(r, ctl) })

	f.fault(t, "clock jumps", func(r *row) { clockJumps(r, ctl) })
}

// slowDisk makes each fsync of the controller's disk take longer than a second:
// writes take as long, and nothing else does.
func slowDisk(r *row, ctl *world.Controller) {
	r.possible(lab.CheckSlowDisk())
	r.must(ctl.Process.Kill())
	disk, err := ctl.MountSlowDisk(ctl.DataDir)
	r.must(err)
	r.must(r.StartController(r.Context()))
	r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
	disk.SetSync(1200 * time.Millisecond)
	r.evidence("each fsync waits", 2*soon, func(context.Context) (string, error) {
		all, delayed, waited := disk.Syncs()
		if delayed < 3 {
			return "", fmt.Errorf("%d of %d were delayed", delayed, all)
		}
		return fmt.Sprintf("%d were delayed, by %s together", delayed, waited.Round(time.Millisecond)), nil
	})
	r.evidence("etcd notices", 2*soon, says(ctl.Process, "slow fdatasync"))
	r.during("writes to be acknowledged all the same", 10*soon, r.ledger.acknowledges(2))
	began := time.Now()
	if _, err := r.Weft(r.Context(), "machine", "list", "--org", "acme"); err != nil || time.Since(began) > time.Second {
		r.Errorf("a list took %s, with the disk slow for writes: %v", time.Since(began), err)
	}
	disk.SetSync(0)
	r.during("writes to be fast again", 2*soon, r.ledger.acknowledges(30))
}

// fullDisk takes all space of the controller's disk: writes are refused, everything
// else goes on, and once there is space again so do writes.
func fullDisk(r *row, ctl *world.Controller) {
	r.must(ctl.Process.Kill())
	disk, err := ctl.MountDisk(r.Context(), ctl.DataDir, 320<<20)
	r.must(err)
	r.must(r.StartController(r.Context()))
	r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
	r.must(disk.Fill(0))
	r.evidence("no space is left", soon, func(context.Context) (string, error) {
		free, size, err := disk.Space()
		if err == nil && free > 0 {
			err = fmt.Errorf("%d of %d bytes are free", free, size)
		}
		return fmt.Sprintf("%d of %d bytes are free", free, size), err
	})
	r.evidence("the controller notices", soon, says(ctl.Process, "the disk is nearly full"))
	r.evidence("writes are refused", soon, r.ledger.refused("MB left"))
	// Much is tried, and nothing of it is written: etcd would end.
	stop := r.ledger.more(16, 0)
	r.last(3 * time.Second)
	stop()
	r.must(r.present("fra1", "ams1")(r.Context()))
	// It starts without space, too.
	r.must(ctl.Process.Kill())
	r.must(r.StartController(r.Context()))
	r.during("reads", soon, func(ctx context.Context) error {
		return r.ledger.do(ctx, http.MethodGet, "/v1/orgs/acme/machines", nil, nil)
	})
	r.must(disk.Free())
	r.during("writes to be acknowledged again", convergeWithin, r.ledger.acknowledges(10))
}

// clockJumps sets the controller's clock days ahead, and days back: all certificates
// of nodes look expired, or not valid yet. Whoever connects gets along, then and when
// the clock is right again.
func clockJumps(r *row, ctl *world.Controller) {
	r.possible(lab.CheckClock())
	fra := r.Hosts["fra1"]
	anew := func() {
		back := r.without("fra1")
		r.must(fra.Agent.Kill(), r.StartAgent(fra))
		back()
	}
	for _, jump := range []time.Duration{days, -days} {
		r.must(ctl.Process.SetClock(jump))
		r.evidence(fmt.Sprintf("its clock is %s off", jump), soon, says(ctl.Process, "time="+time.Now().Add(jump).UTC().Format("2006-01-02")))
		r.during("writes to be acknowledged", soon, r.ledger.acknowledges(10))
		anew()
		r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
		r.must(ctl.Process.SetClock(0))
		anew()
		r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
	}
}

// killedUnderLoad kills the controller at moments that nobody chose, in the middle
// of changes and enrolments: what it was doing is done or not, and never in part.
func killedUnderLoad(r *row, ctl *world.Controller) {
	rounds := 8
	if full() {
		rounds = 40
	}
	seed := rand.Uint64()
	r.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const uses = 100000
	joins := newJoins(r, uses)
	r.Cleanup(joins.stop)
	for range rounds {
		r.during("writes to be acknowledged", 2*soon, r.ledger.acknowledges(3))
		r.during("clients to be enrolled", 2*soon, joins.acknowledges(3))
		r.last(time.Duration(rng.Int64N(int64(150 * time.Millisecond))))
		p := ctl.Process
		r.must(p.Kill())
		r.evidence("it was killed", soon, ended(p, "signal: killed"))
		r.must(r.StartController(r.Context()))
	}
	joins.stop()
	r.ledger.stop()
	// The last request of each was given up, and may be carried out a moment later.
	r.during("whole clients or none", soon, func(ctx context.Context) error { return errors.Join(joins.judge(ctx)...) })
	if err := errors.Join(r.ledger.half(r.Context())...); err != nil {
		r.Errorf("whole clients or none: %v", err)
	}
	r.Logf("%d rounds, %s", rounds, joins.summary())
}

// present is an error unless exactly these hosts are present.
func (r *row) present(want ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		var hosts []struct {
			Name    string
			Present bool
		}
		if err := r.ledger.do(ctx, http.MethodGet, "/v1/hosts", nil, &hosts); err != nil {
			return err
		}
		var there []string
		for _, h := range hosts {
			if h.Present {
				there = append(there, h.Name)
			}
		}
		if len(there) != len(want) || !containsAll(there, want) {
			return fmt.Errorf("present are %q, want %q", there, want)
		}
		return nil
	}
}

func containsAll(list, want []string) bool {
	for _, w := range want {
		found := false
		for _, x := range list {
			found = found || x == w
		}
		if !found {
			return false
		}
	}
	return true
}

// metric reads a number that a controller or an agent tells about itself; 0 if it
// tells none of that name.
func (r *row) metric(h *lab.Host, name string) float64 {
	r.Helper()
	port := "9551"
	if strings.HasPrefix(h.Name(), "ctl") {
		port = "9550"
	}
	text, err := h.Run(r.Context(), "curl", "-sS", "--max-time", "3", "http://127.0.0.1:"+port+"/metrics")
	r.must(err)
	for line := range strings.Lines(text) {
		var value float64
		if rest, found := strings.CutPrefix(line, name+" "); found {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				r.Fatalf("metric %s: %v", line, err)
			}
			return value
		}
	}
	return 0
}
