package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
)

// agentFaults is what happens to a host's agent. Its machines run on, and nobody else
// notices more than that they cannot be reached.
func agentFaults(t *testing.T) {
	f := newField(t, world.Config{}, "fra1", "ams1")
	fra := f.Hosts["fra1"]

	f.fault(t, "killed", func(r *row) {
		back := r.without("fra1")
		pid := r.machinePid("web-fra1")
		r.must(fra.Agent.Kill())
		r.evidence("it was killed", soon, ended(fra.Agent, "signal: killed"))
		r.last(2 * time.Second)
		r.must(f.StartAgent(fra))
		back()
		if now := r.machinePid("web-fra1"); now != pid {
			r.Errorf("its machine was process %d and is process %d", pid, now)
		}
	})

	f.fault(t, "paused", func(r *row) {
		back := r.without("fra1")
		r.must(fra.Agent.Pause())
		r.evidence("the kernel has stopped it", soon, stopped(fra.Agent))
		r.evidence("others leave its machines out", 2*soon, func(ctx context.Context) (string, error) {
			got, err := r.witnesses["ams1"].ask(ctx, "global.web.internal.")
			if lost := r.Machines["acme/web-fra1"].Address.String(); err == nil && slices.Contains(got, lost) {
				err = fmt.Errorf("%s is still among %q", lost, got)
			}
			return fmt.Sprintf("global.web.internal is %q", got), err
		})
		r.last(3 * time.Second)
		r.must(fra.Agent.Continue())
		back()
		r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
	})

	f.fault(t, "cut off from the controllers", func(r *row) { agentCutOff(r, fra) })
	f.fault(t, "full disk", func(r *row) { agentDiskFull(r, fra) })
	f.fault(t, "clock jumps", func(r *row) { agentClockJumps(r, fra) })
}

// agentCutOff keeps a host from the controllers until these miss it, and kills its
// agent meanwhile: it lives on what it knows.
func agentCutOff(r *row, fra *world.Host) {
	sw := r.Lab().Switch()
	r.must(sw.Cut("fra1", "ctl"))
	r.evidence("packets are held back", 2*soon, r.cut("fra1", "ctl"))
	r.evidence("the controller misses it", 40*time.Second, func(ctx context.Context) (string, error) {
		return "only ams1 is present", r.present("ams1")(ctx)
	})
	r.evidence("the agent knows", 40*time.Second, func(ctx context.Context) (string, error) {
		s, err := r.Status(ctx, fra)
		if err == nil && s.Connected {
			err = errors.New("its status says that it is connected")
		}
		return fmt.Sprintf("connected: %v, its view is %s old", s.Connected, s.ViewAge.Round(time.Second)), err
	})
	if full() {
		r.last(75 * time.Second) // longer than it takes to be dead, were it not for the probes
	}
	back := r.without("fra1")
	r.must(fra.Agent.Kill(), r.StartAgent(fra))
	back()
	r.must(sw.Restore("fra1", "ctl"))
	r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
}

// agentDiskFull leaves an agent no space for its view: it says so, and everything
// else goes on.
func agentDiskFull(r *row, fra *world.Host) {
	back := r.without("fra1")
	r.must(fra.Agent.Stop())
	disk, err := fra.MountDisk(r.Context(), r.StateDir("fra1"), 4<<20)
	r.must(err, r.StartAgent(fra))
	back()
	r.must(disk.Fill(0))
	r.evidence("the view cannot be kept", 2*soon, says(fra.Agent, "no space left on device"))
	r.evidence("the status says so", 2*soon, func(ctx context.Context) (string, error) {
		s, err := r.Status(ctx, fra)
		if said := strings.Join(s.Problems, "\n"); err != nil || strings.Contains(said, "no space left on device") {
			return said, err
		}
		return "", fmt.Errorf("its problems are %q", s.Problems)
	})
	r.converge()
	r.must(disk.Free())
	r.during("the view to be kept again", 2*soon, func(ctx context.Context) error {
		s, err := r.Status(ctx, fra)
		if err == nil && strings.Contains(strings.Join(s.Problems, "\n"), "no space left on device") {
			err = fmt.Errorf("its problems are %q", s.Problems)
		}
		return err
	})
}

// days is a jump beyond every lifetime of a certificate.
const days = 3 * 24 * time.Hour

// agentClockJumps sets an agent's clock days ahead, and days back. It cannot tell
// valid certificates then, and changes nothing.
func agentClockJumps(r *row, fra *world.Host) {
	r.possible(lab.CheckClock())
	for _, jump := range []time.Duration{days, -days} {
		r.must(fra.Agent.SetClock(jump))
		// It has to connect anew, with that clock.
		before := time.Now()
		r.must(r.KillController(), r.StartController(r.Context()))
		r.evidence(fmt.Sprintf("its clock is %s off", jump), 2*soon, says(fra.Agent, "time="+before.Add(jump).UTC().Format("2006-01-02")))
		r.evidence("it does not believe the controller, and says why", 2*soon, says(fra.Agent, "time="+before.Add(jump).UTC().Format("2006-01-02"), "certificate has expired or is not yet valid"))
		r.last(2 * time.Second)
		r.must(fra.Agent.SetClock(0))
		r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
	}
}

// without tolerates that a host is not there: it answers nobody, and others may leave
// its machines out. The function that it returns waits until the host is back.
func (r *row) without(host string) (back func()) {
	gone := r.Machines["acme/web-"+host].Address.String()
	for name, x := range r.witnesses {
		if name == host {
			x.tolerate(may{names: true, packets: true})
		} else {
			x.tolerate(may{packets: true, missing: []string{gone}})
		}
	}
	return func() {
		r.Helper()
		r.during("host "+host+" to be as before", convergeWithin, func(ctx context.Context) error {
			for _, x := range r.witnesses {
				if err := x.look(ctx); err != nil {
					return err
				}
			}
			return nil
		})
		for _, x := range r.witnesses {
			x.tolerate(may{})
		}
	}
}

func (r *row) machinePid(id string) int {
	r.Helper()
	pid, err := r.Machines["acme/"+id].Pid()
	r.must(err)
	return pid
}
