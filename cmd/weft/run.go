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

The machine stays when the agent is restarted, and goes with this process.

A machine with a name keeps its address: one that is started under that name again,
on any host and within the time that addresses are kept for, gets it back. With
--move it takes over from the host where it runs: COMMAND is started here while the
old one goes on, and when it listens on a port what is sent to the address comes
here. What is on its way to the old one is still delivered; then that one gets
SIGTERM, and SIGKILL if it does not end, and its "weft run" says where the machine
went and exits with code 0: nothing is to be restarted there. (So do not give --move
to a supervisor that starts a command again whatever its exit code.)

With --check the host looks at the machine again and again, and it is in names only
while all checks pass: tcp:PORT (something accepts), http:PORT/PATH (a GET is answered
with 2xx or 3xx), exec:COMMAND (the shell runs it inside the machine, and it ends with
0). Its names begin with the first pass; three failures in a row (--check-fall) take it out
of them, and two passes (--check-rise) bring it back, more if that happens again and
again.`,
		Example: `  weft run --org acme --app web -- python3 -m http.server --bind :: 80
  weft run --org acme --app db --name db-1 --meta role=primary -- postgres
  weft run --org acme --app db --name db-1 --move -- postgres
  weft run --org acme --app web --check http:80/healthz --drain 10s -- nginx -g 'daemon off;'`,
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
	f.Bool("stable", false, "keep its address on another host (default: if it has a name)")
	f.Bool("move", false, "take it over from the host where it runs")
	addChecks(f)
	f.Bool("unlisted", false, "give it no name but <machine>.vm.<app>")
	f.Duration("drain", 0, "when this is asked to end: how `LONG` it is out of names before COMMAND is")
	f.Duration("ready-within", readyWithin, "with --move: the address comes here when COMMAND listens on a port, or after so long")
	return cmd
}

func run(cmd *cobra.Command, args []string) error {
	request, err := attachRequest(cmd)
	if err != nil {
		return err
	}
	s := &stay{client: node(cmd), request: request, interrupted: cmd.Context(), note: func(format string, args ...any) { cli.Notef(cmd, format, args...) }}
	s.readyWithin, _ = cmd.Flags().GetDuration("ready-within")
	drain, _ := cmd.Flags().GetDuration("drain")
	// Signals are the command's: they do not end the context, once it runs.
	ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
	s.end = cancel
	code, err := attach.Run(ctx, attach.RunConfig{
		Command: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Attach: s.attach,
		Started: s.look, Drain: drain, Draining: func() { s.drain(ctx, drain) },
	})
	cancel()
	s.keeping.Wait()
	switch {
	case err != nil:
		return cli.WithCode(notRunning(err), code)
	case s.over == nil:
		return cli.Exit(code)
	case s.over.Code == local.OverMoved:
		return cli.Exit(exitMoved)
	}
	err = errors.New(s.over.Message)
	if s.over.Hint != "" {
		err = mesh.WithHint(err, "%s", s.over.Hint)
	}
	return cli.WithCode(err, attach.ExitFailed)
}

// exitMoved is the code of a machine that another host took over, whatever its
// command made of the SIGTERM: a supervisor that restarts what failed must not start
// it here again.
const exitMoved = 0

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
	r.Move, _ = f.GetBool("move")
	r.Unlisted, _ = f.GetBool("unlisted")
	if r.Checks, err = checksOf(cmd); err != nil {
		return r, err
	}
	if drain, _ := f.GetDuration("drain"); drain < 0 || drain > mostDrain {
		return r, cli.Usagef("--drain %s: want 0 to %s", drain, mostDrain)
	}
	if f.Changed("stable") {
		stable, _ := f.GetBool("stable")
		r.Stable = &stable
	}
	within, _ := f.GetDuration("ready-within")
	switch {
	case within > mostReadyWithin:
		return r, cli.Usagef("--ready-within %s: at most %s; the controllers give up a move that takes longer", within, mostReadyWithin)
	case r.Move && r.ID == "":
		return r, cli.Usagef("--move: which machine? give its --name")
	case r.Move && r.Stable != nil && !*r.Stable:
		return r, cli.Usagef("--move takes a machine over with its address; --stable=false would give it another one")
	}
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
// with what it has.
type stay struct {
	client      local.Client
	request     local.AttachRequest
	readyWithin time.Duration
	note        func(format string, args ...any)
	end         func() // ends the command
	keeping     sync.WaitGroup
	over        *local.Over // why the command was ended; after keeping
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

// keep holds the attachment until ctx ends, or the machine is not to be here any
// more.
func (s *stay) keep(ctx context.Context, a *local.Attachment) {
	for a != nil {
		s.hold(ctx, a)
		a.Close()
		switch over := a.Over(); {
		case ctx.Err() != nil:
			return
		case over != nil:
			s.ended(*over)
			return
		}
		a = s.again(ctx)
	}
}

// hold waits until the agent has gone or ctx ends. It notes what the machine has by
// then.
func (s *stay) hold(ctx context.Context, a *local.Attachment) {
	arrived := a.Arrived()
	if a.From != "" {
		moving, stop := context.WithCancel(ctx)
		defer stop()
		s.keeping.Go(func() { s.tellReady(moving) })
	}
	for gone := false; !gone; {
		select {
		case <-ctx.Done():
			return
		case <-arrived:
			arrived = nil
			if a.From != "" {
				s.note("machine %s moved here from host %s", a.ID, a.From)
			}
		case <-a.Gone():
			gone = true
		}
	}
	select {
	case <-a.Arrived():
		s.request.Move = false // it has been done
		if held := a.Holds(); held.Endpoint.IsValid() {
			s.request.Held = &held
		}
	default: // the move goes on with the next agent
	}
}

// ended does what follows from the agent's word that the machine's stay is over.
func (s *stay) ended(over local.Over) {
	switch over.Code {
	case local.OverMoved:
		s.note("%s; its command here is ended", over.Message)
		s.over = &over
		s.end()
	case local.OverFailed:
		s.over = &over
		s.end()
	default:
		s.noNetwork(over.Message, over.Hint)
	}
}

func (s *stay) noNetwork(reason, hint string) {
	s.note("machine %s has no network: %s", s.request.ID, reason)
	if hint != "" {
		s.note("hint: %s", hint)
	}
}

const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// again asks until the agent takes the machine back; nil if ctx ends first, or if
// the agent says that it never will (it moved, or an operator removed it or its
// org). Each new reason is told once.
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
		e := &api.Error{}
		if errors.As(err, &e) && slices.Contains([]string{local.OverMoved, local.OverRemoved, local.OverFenced}, e.Code) {
			s.ended(local.Over{Code: e.Code, Message: e.Message, Hint: e.Advice})
			return nil
		}
		if reason := err.Error(); reason != told {
			told = reason
			s.noNetwork(reason, mesh.HintOf(err))
		}
		if errors.Is(err, api.ErrNotFound) || errors.Is(err, api.ErrForbidden) || errors.Is(err, api.ErrInvalid) {
			return nil
		}
		if !wait(ctx, delay/2+rand.N(delay/2)) {
			return nil
		}
	}
}

const (
	readyWithin     = 10 * time.Second
	mostReadyWithin = 90 * time.Second
	readyLook       = 20 * time.Millisecond
	readySettle     = 5 // looks with the same sockets: a command may open several
)

// tellReady tells the agent when the command of a machine that is being moved
// serves: it listens, and on as many sockets as it did a moment ago.
func (s *stay) tellReady(ctx context.Context) {
	since := time.Now()
	for before, same := 0, 0; time.Since(since) < s.readyWithin && same < readySettle; {
		if !wait(ctx, readyLook) {
			return
		}
		n, err := attach.Listeners(s.request.TID)
		if err != nil {
			s.note("cannot see whether the command listens: %v", err)
			break
		}
		if n == 0 || n != before {
			same = 0
		} else {
			same++
		}
		before = n
	}
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		err := s.client.Ready(ctx, local.Ready{Org: s.request.Org, ID: s.request.ID})
		if err == nil || ctx.Err() != nil || errors.Is(err, api.ErrNotFound) {
			return
		}
		if !wait(ctx, delay) {
			return
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
