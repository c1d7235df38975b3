package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/e2e/churn"
	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/prober"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// Patience of one question: with one that must be answered, and with one that must
// not.
const (
	askWithin    = 3 * time.Second
	refuseWithin = 300 * time.Millisecond
	quietWithin  = 40 * time.Second
)

// look asks all processes who they are, and makes of it who is there. What they have
// heard is judged by the way. It says what is not yet as it is to be. The state
// follows where a machine is, since a move may have failed, if follow says so: that is
// for the one goroutine that does operations.
func (c *churned) look(ctx context.Context, follow bool) error {
	c.mu.Lock()
	var lives []*life
	for _, l := range c.lives {
		if !l.process.Exited() {
			lives = append(lives, l)
		}
	}
	if follow {
		c.lives = lives
	}
	c.mu.Unlock()
	selves, errs := make([]prober.Self, len(lives)), make([]error, len(lives))
	var group sync.WaitGroup
	for i, l := range lives {
		group.Go(func() { selves[i], errs[i] = l.self.Self(ctx) })
	}
	group.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := churn.Scene{Grants: slices.Clone(c.state.Grants), Changing: slices.Clone(c.changing), Hosts: map[string]churn.HostAddresses{}, Cordoned: c.state.Cordoned, Apps: maps.Clone(c.apps)}
	var problems []error
	for i, l := range lives {
		if h, ok := c.w.Hosts[l.key]; ok && errs[i] == nil {
			at := s.Hosts[l.key]
			if at.Underlay = h.Addr(); l.plane {
				// The resolvers', which are on all hosts, are the nearest host's.
				at.Plane = slices.DeleteFunc(selves[i].Addresses, func(a netip.Addr) bool { return a.As16()[15] == 3 })
			}
			s.Hosts[l.key] = at
			continue
		}
		e, err := c.endpoint(l, selves[i], errs[i], follow)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s on %s: %w", l.key, l.host.Name(), err))
		} else if e.Address.IsValid() {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	c.scene = s
	for i, l := range lives {
		e := c.where[l.key]
		if _, ok := c.w.Hosts[l.key]; ok {
			e = churn.Endpoint{Key: l.key, Host: l.key}
		}
		c.findings = append(c.findings, s.JudgeHeard(churn.Listener{Endpoint: e, Heard: selves[i].Heard}, c.addresses, c.where, c.windows)...)
	}
	for key, m := range c.state.Machines {
		n := 0
		for _, e := range s.Endpoints {
			if e.Key == key {
				n++
			}
		}
		if m.Runs != (n == 1) {
			problems = append(problems, fmt.Errorf("%s is to run: %v; %d of it do", key, m.Runs, n))
		}
	}
	return errors.Join(problems...)
}

// endpoint is what a process that is there is, as it says itself; it has no address
// if it is not to be in the mesh.
func (c *churned) endpoint(l *life, self prober.Self, err error, follow bool) (churn.Endpoint, error) {
	e := churn.Endpoint{Key: l.key, App: l.app}
	laptop, isLaptop := c.state.Laptops[l.key]
	if err != nil || isLaptop && !laptop.Up {
		return e, err
	}
	i := slices.IndexFunc(self.Addresses, func(a netip.Addr) bool { return a.As16()[15] == 2 })
	if i < 0 {
		return e, errors.New("it has no address yet")
	}
	e.Address = self.Addresses[i]
	if !isLaptop {
		e.Host, e.Was = l.host.Name(), c.was[l.key]
		if m, ok := c.state.Machines[l.key]; ok && follow {
			m.Host = e.Host
			c.state.Machines[l.key] = m
		}
	}
	if !slices.Contains(c.addresses[l.key], e.Address) {
		c.addresses[l.key] = append(c.addresses[l.key], e.Address)
	}
	c.where[l.key] = e
	return e, nil
}

// ask has everybody that is there try some of his cases, and judges the answers.
func (c *churned) ask(ctx context.Context, quiet bool, which func(from churn.Endpoint, s churn.Scene) []churn.Case) ([]churn.Finding, error) {
	c.mu.Lock()
	s, lives := c.scene, slices.Clone(c.lives)
	c.mu.Unlock()
	type heard struct {
		cases   []churn.Case
		answers []prober.Answer
		err     error
	}
	results := make([]heard, len(lives))
	var group sync.WaitGroup
	for i, l := range lives {
		at := slices.IndexFunc(s.Endpoints, func(e churn.Endpoint) bool { return e.Key == l.key && (e.Host == "" || e.Host == l.host.Name()) })
		if at < 0 {
			continue
		}
		cases := which(s.Endpoints[at], s)
		group.Go(func() {
			answers, err := askCases(ctx, l.self, cases)
			results[i] = heard{cases, answers, err}
		})
	}
	group.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var findings []churn.Finding
	var errs []error
	for _, r := range results {
		if r.err != nil {
			errs = append(errs, r.err)
			continue
		}
		c.tried += len(r.cases)
		found := churn.Judge(r.cases, r.answers, quiet, c.windows)
		for _, f := range found {
			if f.What == churn.Forbidden {
				c.findings = append(c.findings, f)
			}
		}
		findings = append(findings, found...)
	}
	return findings, errors.Join(errs...)
}

// askCases asks what must be answered with patience, and the rest without.
func askCases(ctx context.Context, p prober.Client, cases []churn.Case) ([]prober.Answer, error) {
	answers := make([]prober.Answer, len(cases))
	var errs [2]error
	var group sync.WaitGroup
	for i, within := range []time.Duration{askWithin, refuseWithin} {
		var questions []prober.Question
		var places []int
		for n, x := range cases {
			if (x.Want == churn.Reached) == (i == 0) {
				questions, places = append(questions, x.Question), append(places, n)
			}
		}
		group.Go(func() {
			var got []prober.Answer
			if got, errs[i] = p.Ask(ctx, within, questions); errs[i] == nil {
				for k, n := range places {
					answers[n] = got[k]
				}
			}
		})
	}
	group.Wait()
	return answers, errors.Join(errs[:]...)
}

// watch tries what is forbidden, a sample at a time, until ctx ends.
func (c *churned) watch(ctx context.Context) {
	tick := time.NewTicker(700 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_ = c.look(ctx, false)
		_, _ = c.ask(ctx, false, func(from churn.Endpoint, s churn.Scene) []churn.Case {
			cases := slices.DeleteFunc(s.Cases(from), func(x churn.Case) bool { return x.Want != churn.Refused })
			return sample(cases, 16)
		}) // who has ended has no answer
	}
}

// check tries everything, once.
func (c *churned) check(ctx context.Context) error {
	if err := c.look(ctx, true); err != nil {
		return err
	}
	findings, err := c.ask(ctx, true, func(from churn.Endpoint, s churn.Scene) []churn.Case {
		return append(s.Cases(from), s.NameCases(from)...)
	})
	if err := errors.Join(err, c.recorded(ctx)); err != nil {
		return err
	}
	if len(findings) == 0 {
		return nil
	}
	return errors.New(listing(findings))
}

func listing(findings []churn.Finding) string {
	var b strings.Builder
	for _, f := range findings[:min(12, len(findings))] {
		fmt.Fprintf(&b, "\n  %s", f)
	}
	return fmt.Sprintf("%d findings:%s", len(findings), b.String())
}

// recorded compares the controllers' list of machines with who is there.
func (c *churned) recorded(ctx context.Context) error {
	var have, want []string
	for org := range c.state.Orgs {
		list, err := world.List[api.MachineInfo](ctx, c.w, "machine", "list", "--org", org)
		if err != nil {
			return err
		}
		for _, m := range list {
			if m.State == mesh.StateStarted {
				have = append(have, m.Org+"/"+m.ID+" on "+m.Host)
			}
		}
	}
	for key, m := range c.state.Machines {
		if m.Runs {
			want = append(want, key+" on "+m.Host)
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		return fmt.Errorf("the controllers list %q, want %q", have, want)
	}
	return nil
}

// quiet makes amends, waits until everything is as it is to be, and looks once more:
// then it must hold at once. It returns how long it took.
func (c *churned) quiet(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	c.mu.Lock()
	c.state = c.state.Amends()
	c.mu.Unlock()
	if err := c.heal(); err != nil {
		return 0, err
	}
	err := lab.Await(ctx, "a quiet moment", quietWithin, func(ctx context.Context) error {
		if err := c.violated(); err != nil {
			return lab.Hopeless(err)
		}
		if err := c.revive(ctx); err != nil {
			return err
		}
		return c.check(ctx)
	})
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	c.mu.Lock()
	c.changing = nil
	clear(c.was)
	c.mu.Unlock()
	if err := c.check(ctx); err != nil {
		return took, fmt.Errorf("at a quiet moment: %w", err)
	}
	return took, c.violated()
}

// violated says what was seen that must never be.
func (c *churned) violated() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.findings) == 0 {
		return nil
	}
	return errors.New("what must never be: " + listing(c.findings))
}

// fail tells all that is needed to find out why.
func (c *churned) fail(err error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), 10*time.Second)
	defer cancel()
	var b strings.Builder
	for name, h := range c.w.Hosts {
		out, err := h.Run(ctx, filepath.Join(c.w.Bin(), "weft"), "status")
		fmt.Fprintf(&b, "--- status of %s (%v)\n%s", name, err, out)
	}
	for _, l := range c.lives {
		if l.up != nil {
			out, err := l.host.Run(ctx, filepath.Join(c.w.Bin(), "weft"), "status")
			fmt.Fprintf(&b, "--- status of %s (%v)\n%s", l.key, err, out)
		}
	}
	c.t.Fatalf("WEFT_SEED=%d: %v\nwhat was done:\n%s\n%s", c.seed, err, strings.Join(c.did, "\n"), b.String())
}
