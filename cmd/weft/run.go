package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/attach"
)

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "run --org ORG --app APP [flags] [--] COMMAND...", Short: "Run a command as a machine of an org",
		DisableFlagsInUseLine: true,
		Long: `Run a command as a machine of an org: with a network of its own that reaches only its
org, the mesh's resolver, and its names in the DNS for as long as it runs. It ends
when the command ends, with the command's exit code; 128 plus the number of the
signal that ended it; 125 if it could not be run as a machine; 126 if it cannot be
executed; 127 if there is no such command. Signals are passed on.

The machine stays when the agent is restarted, and goes with this process.`,
		Example: `  weft run --org acme --app web -- python3 -m http.server --bind :: 80
  weft run --org acme --app db --name db-1 --meta role=primary -- postgres`,
		Args:        cli.Args("COMMAND..."),
		Annotations: map[string]string{cli.OwnCode: strconv.Itoa(attach.ExitFailed)},
		RunE:        run,
	}
	addSocket(cmd)
	addOrg(cmd)
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.String("app", "", "the `APP` that it belongs to")
	f.String("name", "", "its `NAME` in the org (default: drawn)")
	f.String("group", "", "its process `GROUP`")
	f.StringToString("meta", nil, "what it can be found by: `KEY=VALUE`, also several")
	return cmd
}

func run(cmd *cobra.Command, args []string) error {
	request, err := attachRequest(cmd)
	if err != nil {
		return err
	}
	s := &stay{client: node(cmd), request: request, interrupted: cmd.Context(), note: func(format string, args ...any) { cli.Notef(cmd, format, args...) }}
	// Signals are the command's: they do not end the context, once it runs.
	ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
	defer s.keeping.Wait()
	defer cancel()
	code, err := attach.Run(ctx, attach.RunConfig{
		Command: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Attach: s.attach,
	})
	if err != nil {
		return cli.WithCode(notRunning(err), code)
	}
	return cli.Exit(code)
}

func attachRequest(cmd *cobra.Command) (r local.AttachRequest, err error) {
	if err := cli.Required(cmd, "org", "app"); err != nil {
		return r, err
	}
	f := cmd.Flags()
	r.Org, _ = f.GetString("org")
	r.App, _ = f.GetString("app")
	r.ID, _ = f.GetString("name")
	r.Group, _ = f.GetString("group")
	r.Meta, _ = f.GetStringToString("meta")
	for _, check := range [][2]string{{"org", r.Org}, {"app", r.App}, {"machine", r.ID}, {"group", r.Group}} {
		if check[1] == "" && !slices.Contains([]string{"org", "app"}, check[0]) {
			continue
		}
		if err := named(check[0], check[1]); err != nil {
			return r, err
		}
	}
	return r, nil
}

// stay keeps a machine in the mesh: when the agent goes away, it comes back to it
// with the ID that it has.
type stay struct {
	client  local.Client
	request local.AttachRequest
	note    func(format string, args ...any)
	keeping sync.WaitGroup
	// interrupted ends when the user gives up; it counts until the machine is attached.
	interrupted context.Context
}

// attach is what attach.Run calls once, while thread tid holds the namespace. It
// does so until Run returns.
func (s *stay) attach(ctx context.Context, tid int) (attach.Settings, error) {
	s.request.TID = tid
	ctx, cancel := context.WithCancel(ctx)
	attached := context.AfterFunc(s.interrupted, cancel)
	a, err := s.client.Attach(ctx, s.request)
	attached()
	if err != nil {
		cancel()
		return attach.Settings{}, err
	}
	s.request.ID = a.ID
	s.keeping.Go(func() {
		defer cancel()
		s.keep(ctx, a)
	})
	return attach.Settings{Resolver: a.Resolver, Hostname: a.ID}, nil
}

const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// keep holds the attachment until ctx ends.
func (s *stay) keep(ctx context.Context, a *local.Attachment) {
	for {
		select {
		case <-ctx.Done():
			a.Close()
			return
		case <-a.Gone():
			a.Close()
		}
		if a = s.again(ctx); a == nil {
			return
		}
	}
}

// again asks until the agent takes the machine back; nil if ctx ends first, or if
// the agent says that it never will (an operator removed the machine or its org).
// Each new reason is told once.
func (s *stay) again(ctx context.Context) *local.Attachment {
	told := ""
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		a, err := s.client.Attach(ctx, s.request)
		if err == nil {
			return a
		}
		if ctx.Err() != nil {
			return nil
		}
		final := errors.Is(err, api.ErrNotFound) || errors.Is(err, api.ErrForbidden) || errors.Is(err, api.ErrInvalid)
		if reason := err.Error(); reason != told {
			told = reason
			s.note("machine %s has no network: %s", s.request.ID, reason)
			if hint := mesh.HintOf(err); hint != "" {
				s.note("hint: %s", hint)
			}
		}
		if final {
			return nil
		}
		if !wait(ctx, delay/2+rand.N(delay/2)) {
			return nil
		}
	}
}

// wait waits for d; false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
