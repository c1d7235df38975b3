package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
)

// controllersFaults is what happens to one controller of two, on one etcd.
func controllersFaults(t *testing.T) {
	l := newLab(t)
	e, err := world.NewEtcd(t.Context(), world.EtcdConfig{Lab: l, Bin: bin(t), Members: 1})
	if err != nil {
		t.Fatal(err)
	}
	f := newField(t, world.Config{Lab: l, Etcd: e, Controllers: 2}, "fra1", "ams1")
	f.fault(t, "killed", func(r *row) { oneKilled(r) })
	f.fault(t, "cut off from etcd", func(r *row) { cutOffFromEtcd(r, e) })
	f.fault(t, "paused", func(r *row) { controllerPaused(r) })
	f.fault(t, "flannel 621, 1240: leases lost", func(r *row) { leasesLost(r, e) })
	f.fault(t, "Cilium 31985: started before etcd", func(r *row) { startedBeforeEtcd(r, e) })
}

// leasesLost stops both controllers until etcd has forgotten all that hangs on their
// leases: presence, and no number or address (flannel #621, #1240 renumbered hosts).
func leasesLost(r *row, e *world.Etcd) {
	for _, c := range r.Controllers {
		r.must(c.Process.Pause())
		r.evidence("the kernel has stopped "+c.Name(), soon, stopped(c.Process))
	}
	r.evidence("etcd has no presence any more", 40*time.Second, func(ctx context.Context) (string, error) {
		n, err := e.Members[0].Count(ctx, "/weft/presence/")
		if err == nil && n > 0 {
			err = fmt.Errorf("it has %d", n)
		}
		return "0 keys below /weft/presence/", err
	})
	for _, c := range r.Controllers {
		r.must(c.Process.Continue())
	}
	r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
}

// startedBeforeEtcd starts controllers and an agent anew while there is no etcd: a
// controller that has not read the whole state gives nobody a view, so nobody removes
// anything (Cilium #31985 removed peers before its first list was complete).
func startedBeforeEtcd(r *row, e *world.Etcd) {
	m, fra := e.Members[0], r.Hosts["fra1"]
	r.must(m.Kill())
	r.evidence("etcd was killed", soon, ended(m.Process, "signal: killed"))
	back := r.without("fra1")
	r.must(fra.Agent.Kill())
	for _, c := range r.Controllers {
		r.must(c.Process.Kill())
		r.evidence(c.Name()+" was killed", soon, ended(c.Process, "signal: killed"))
		r.must(r.Launch(c))
	}
	r.must(r.StartAgent(fra))
	back()
	for _, c := range r.Controllers {
		r.evidence(c.Name()+" waits", 4*soon, says(c.Process, "waiting for etcd"))
	}
	r.must(m.Start(), e.Await(r.Context()))
	for _, c := range r.Controllers {
		r.must(r.AwaitReady(r.Context(), c))
	}
	r.during("all hosts to be present", convergeWithin, r.present("fra1", "ams1"))
}

// oneKilled kills the controller that a host follows: it follows the other one.
func oneKilled(r *row) {
	fra := r.Hosts["fra1"]
	s, err := r.Status(r.Context(), fra)
	r.must(err)
	var victim *world.Controller
	for _, c := range r.Controllers {
		if c.URL == s.Controller {
			victim = c
		}
	}
	if victim == nil {
		r.Fatalf("fra1 follows %q, which is none of %q", s.Controller, r.URLs())
	}
	r.must(victim.Process.Kill())
	r.evidence(victim.Name()+", which fra1 follows, was killed", soon, ended(victim.Process, "signal: killed"))
	r.evidence("it follows the other one", 2*soon, func(ctx context.Context) (string, error) {
		now, err := r.Status(ctx, fra)
		if err == nil && (!now.Connected || now.Controller == victim.URL) {
			err = fmt.Errorf("connected %v, to %s", now.Connected, now.Controller)
		}
		return now.Controller, err
	})
	r.converge()
	r.must(r.World.Run(r.Context(), victim))
}

// cutOffFromEtcd takes etcd away from one controller of two: its nodes move to the
// other or see how old their view is, and whoever writes there is told.
func cutOffFromEtcd(r *row, e *world.Etcd) {
	alone := r.Controllers[1]
	for _, m := range e.Members {
		r.must(r.Lab().Switch().Cut(alone.Name(), m.Name()))
	}
	r.evidence("packets are held back", 2*soon, r.cut(alone.Name(), e.Members[0].Name()))
	r.evidence("its reads say their age", 4*soon, r.aged(alone))
	r.evidence("it refuses writes", 4*soon, func(ctx context.Context) (string, error) {
		err := r.ledger.request(ctx, http.MethodPost, alone.URL+"/v1/orgs", []byte(`{"name":"never"}`), nil, false)
		if !errors.Is(err, api.ErrUnavailable) {
			return "", fmt.Errorf("it says %w", cmpErr(err, "that it is done"))
		}
		return err.Error(), nil
	})
	r.during("writes at the other", 4*soon, r.ledger.acknowledges(30))
	r.during("all hosts to be present", 45*time.Second, r.present("fra1", "ams1"))
	r.converge()
	for _, m := range e.Members {
		r.must(r.Lab().Switch().Restore(alone.Name(), m.Name()))
	}
	r.during("its reads to be current", convergeWithin, func(ctx context.Context) error {
		if line, err := r.aged(alone)(ctx); err == nil {
			return errors.New(line)
		}
		return nil
	})
	var orgs []api.OrgInfo
	r.must(r.ledger.do(r.Context(), http.MethodGet, "/v1/orgs", nil, &orgs))
	if len(orgs) != 1 {
		r.Errorf("a write that was refused was done: orgs are %+v", orgs)
	}
}

// controllerPaused stops the controller that does the periodic jobs until another one
// does them: then the first one has to find out that it does not any more.
func controllerPaused(r *row) {
	const elected, lost = "elected: this controller does the periodic jobs", "the lease was lost: another controller does the periodic jobs"
	first, second := r.Controllers[0], r.Controllers[1]
	if _, err := says(first.Process, elected)(r.Context()); err != nil {
		first, second = second, first
	}
	r.evidence(first.Name()+" does the jobs", soon, says(first.Process, elected))
	r.must(first.Process.Pause())
	r.evidence("the kernel has stopped it", soon, stopped(first.Process))
	r.evidence(second.Name()+" takes the jobs over", 45*time.Second, says(second.Process, elected))
	r.during("writes at the other", 4*soon, r.ledger.acknowledges(10))
	r.during("all hosts to be present", 45*time.Second, r.present("fra1", "ams1"))
	r.must(first.Process.Continue())
	r.evidence(first.Name()+" gives them up", 2*soon, says(first.Process, lost))
	for _, c := range r.Controllers {
		if n := r.metric(c.Host, "weft_controller_fenced_total"); n != 0 {
			r.Errorf("%s has fenced %g streams: hosts were taken for copies of themselves", c.Name(), n)
		}
	}
}

// aged is evidence that reads of a controller go on, and say how old they are.
func (r *row) aged(c *world.Controller) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+"/v1/orgs/acme/machines", nil)
		if err != nil {
			return "", err
		}
		q.Header.Set("Authorization", "Bearer "+r.ledger.bearer)
		began := time.Now()
		answer, err := r.ledger.http.Do(q)
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		age, err := strconv.Atoi(answer.Header.Get("Age"))
		if answer.StatusCode != http.StatusOK || err != nil || age <= 5 {
			return "", fmt.Errorf("%s, Age %q", answer.Status, answer.Header.Get("Age"))
		}
		return fmt.Sprintf("%s in %s, Age: %d", answer.Status, time.Since(began).Round(time.Millisecond), age), nil
	}
}
