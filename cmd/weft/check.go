package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/attach"
)

// What `weft run` does about a machine's health: it says which checks there are, runs
// those that are commands, and has the machine drained before it ends.

// mostDrain bounds how long a command is kept from ending.
const mostDrain = time.Hour

func addChecks(f *pflag.FlagSet) {
	f.StringArray("check", nil, "look at it: `CHECK` is tcp:PORT, http:PORT/PATH or exec:COMMAND; also several")
	f.Duration("check-interval", mesh.DefaultCheckInterval, "how `LONG` from one look to the next")
	f.Duration("check-timeout", mesh.DefaultCheckTimeout, "how `LONG` one may take")
	f.Duration("check-grace", 0, "how `LONG` after the start failures do not count")
	f.Int("check-fall", mesh.DefaultCheckFall, "so `MANY` failures in a row take it out of names")
	f.Int("check-rise", mesh.DefaultCheckRise, "so `MANY` passes in a row bring it back, and more while it flaps")
}

// checksOf are the checks that the flags say.
func checksOf(cmd *cobra.Command) (checks []mesh.Check, err error) {
	f := cmd.Flags()
	texts, _ := f.GetStringArray("check")
	var times mesh.Check
	for name, to := range map[string]*mesh.Duration{"interval": &times.Interval, "timeout": &times.Timeout, "grace": &times.Grace} {
		d, _ := f.GetDuration("check-" + name)
		if *to = mesh.Duration(d); f.Changed("check-"+name) && len(texts) == 0 {
			return nil, cli.Usagef("--check-%s: there is no --check", name)
		}
	}
	for name, to := range map[string]*int{"fall": &times.Fall, "rise": &times.Rise} {
		switch *to, _ = f.GetInt("check-" + name); {
		case f.Changed("check-"+name) && len(texts) == 0:
			return nil, cli.Usagef("--check-%s: there is no --check", name)
		case *to == 0: // which in a record is the default
			return nil, cli.Usagef("--check-%s 0: want at least 1", name)
		case !f.Changed("check-" + name):
			*to = 0
		}
	}
	for _, text := range texts {
		c, err := mesh.ParseCheck(text)
		if err == nil {
			times.Kind, times.Port, times.Path, times.Command = c.Kind, c.Port, c.Path, c.Command
			c = times
			err = c.Validate()
		}
		if err != nil {
			return nil, cli.WithCode(err, cli.CodeUsage)
		}
		checks = append(checks, c)
	}
	if err := mesh.ValidateChecks(checks); err != nil {
		return nil, cli.WithCode(err, cli.CodeUsage)
	}
	return checks, nil
}

// look runs the checks that are commands, inside the machine, until ctx ends.
func (s *stay) look(ctx context.Context, init int) {
	var looking sync.WaitGroup
	defer looking.Wait()
	for i, c := range s.request.Checks {
		if c.Kind == mesh.CheckExec {
			looking.Go(func() { s.lookWith(ctx, init, i, c.WithDefaults()) })
		}
	}
}

func (s *stay) lookWith(ctx context.Context, init, i int, c mesh.Check) {
	result := local.CheckResult{Org: s.request.Org, ID: s.request.ID, Check: i}
	for passed := false; ; {
		err := lookOnce(ctx, init, c)
		if ctx.Err() != nil {
			return
		}
		passed = passed || err == nil
		result.Failure = ""
		if err != nil {
			result.Failure = err.Error()
		}
		// An agent that is away hears the next one.
		bounded, cancel := context.WithTimeout(ctx, time.Duration(c.Timeout))
		s.client.Checked(bounded, result)
		cancel()
		next := time.Duration(c.Interval)
		if !passed {
			next = min(next, time.Second) // its names wait for the first pass
		}
		if !wait(ctx, next) {
			return
		}
	}
}

func lookOnce(ctx context.Context, init int, c mesh.Check) error {
	bounded, cancel := context.WithTimeout(ctx, time.Duration(c.Timeout))
	defer cancel()
	err := attach.Exec(bounded, init, c.Command, nil)
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("it did not end within " + c.Timeout.String())
	}
	return err
}

// drain has the machine taken out of names.
func (s *stay) drain(ctx context.Context, d time.Duration) {
	s.note("machine %s drains for %s before its command is asked to end", s.request.ID, d)
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	err := s.client.Drain(ctx, local.Drain{Org: s.request.Org, ID: s.request.ID})
	if err != nil && ctx.Err() == nil && !errors.Is(err, api.ErrNotFound) {
		s.note("%v", err)
	}
}
