package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
)

// The table of faults. Each row breaks one thing of a mesh that works, and asserts
// two things: its own evidence that the fault really happened, and what held all the
// time and afterwards:
//
//	names      every host answered them, complete, at any time
//	packets    passed between the hosts
//	writes     were acknowledged and are there, or refused with the reason
//	addresses  none was given twice, none changed
//	views      have what is new within a bound once the fault is over
//	nothing    was removed: the machines and the tunnels are those from before
//
// A row that cannot show its evidence fails.

// The rows of one mesh follow each other; the meshes are side by side, whatever the
// number of processors: most of it is waiting.
func TestFaults(t *testing.T) {
	need(t, "nsenter", "curl")
	t.Parallel()
	var meshes sync.WaitGroup
	for name, rows := range map[string]func(*testing.T){
		"agent": agentFaults, "controller": controllerFaults, "controllers": controllersFaults,
		"etcd": etcdFaults, "slow etcd": slowEtcdFaults,
	} {
		meshes.Go(func() { t.Run(name, rows) })
	}
	meshes.Wait()
}

// soon bounds what a mesh without faults does at once, on a machine that does much
// else.
const soon = 5 * time.Second

// field is a mesh in which one fault follows the other.
type field struct {
	*world.World
	witnesses map[string]*witness // by host, which each has a machine of app web, too
	ledger    *ledger
	broken    bool // a row failed: those after it would tell nothing
	probes    int
}

// newField makes a mesh with a machine on each host, which are asked from now on.
func newField(t *testing.T, cfg world.Config, hosts ...string) *field {
	t.Helper()
	w := newWorld(t, cfg, hosts...)
	f := &field{World: w, witnesses: map[string]*witness{}}
	// The lab ends what was started last first, which may be etcd; a controller takes
	// longer to end without it.
	t.Cleanup(func() {
		for _, c := range w.Controllers {
			if err := c.Process.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	beat := &pulse{}
	background(t, beat.run)
	var webs []*world.Machine
	for _, h := range hosts {
		webs = append(webs, start(t, w, h, "acme", "web", "web-"+h))
	}
	for i, h := range hosts {
		// Of another app: an app's own machines are told of all of it, reachable or not.
		eye := start(t, w, h, "acme", "eye", "eye-"+h)
		f.witnesses[h] = newWitness(t, eye, webs[(i+1)%len(webs)], webs, beat)
	}
	await(t, "every host to answer every name", soon, func(context.Context) error {
		for _, x := range f.witnesses {
			if err := x.look(t.Context()); err != nil {
				return err
			}
		}
		return nil
	})
	f.ledger = newLedger(t, w)
	for _, x := range f.witnesses {
		background(t, x.run)
	}
	return f
}

// background runs fn until the test ends, before the lab does.
func background(t *testing.T, fn func(ctx context.Context)) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

// row is a fault that is being tried.
type row struct {
	*testing.T
	*field
	shown []string // its evidence
}

// fault tries one: do breaks something, shows that it is broken, sees what holds
// meanwhile, and heals it.
func (f *field) fault(t *testing.T, name string, do func(r *row)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		if f.broken {
			t.Skip("the row before left a mesh that does not work")
		}
		f.broken = true // until the end is reached
		r := &row{T: t, field: f}
		t.Cleanup(r.complain)
		before := r.inventory()
		for _, x := range f.witnesses {
			x.begin()
		}
		f.ledger.begin(t)
		began := time.Now()
		do(r)
		r.converge()
		r.during("each witness to have asked", 2*soon, func(context.Context) error { // a row may be short
			for host, x := range f.witnesses {
				if !x.hasAsked() {
					return fmt.Errorf("that on %s has not yet", host)
				}
			}
			return nil
		})
		f.ledger.end(r)
		for host, x := range f.witnesses {
			x.end(r, host)
		}
		if after := r.inventory(); !slices.Equal(before, after) {
			t.Errorf("machines are\n%s\nwere\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
		if len(r.shown) == 0 {
			t.Error("the row has no evidence that the fault happened")
		}
		t.Logf("%s: %s", time.Since(began).Round(100*time.Millisecond), f.ledger.summary())
		f.broken = t.Failed()
	})
}

// evidence waits for a sign that the fault is there, and writes it down.
func (r *row) evidence(what string, within time.Duration, look func(ctx context.Context) (string, error)) {
	r.Helper()
	await(r.T, "evidence: "+what, within, func(ctx context.Context) error {
		found, err := look(ctx)
		if err == nil {
			r.shown = append(r.shown, what)
			r.Logf("evidence: %s: %s", what, found)
		}
		return err
	})
}

// says is evidence in what a process has printed: a line with all the words.
func says(p *lab.Process, words ...string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		for line := range strings.Lines(p.Log()) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return strings.TrimSpace(line), nil
			}
		}
		return "", fmt.Errorf("no line of %s on %s has %q; its last is %q", p.Name(), p.Host().Name(), words, p.LastLine())
	}
}

// stopped is evidence that a process is paused.
func stopped(p *lab.Process) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		state, err := p.State()
		if err == nil && state != 'T' {
			err = fmt.Errorf("process %d is in state %c", p.Pid(), state)
		}
		return fmt.Sprintf("/proc/%d/stat: %c", p.Pid(), state), err
	}
}

// ended is evidence that a process has ended, as a signal or an exit code says.
func ended(p *lab.Process, how string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		if !p.Exited() {
			return "", fmt.Errorf("process %d runs", p.Pid())
		}
		err := p.Wait(ctx)
		if fmt.Sprint(err) != how {
			return "", fmt.Errorf("process %d ended with %v, want %s", p.Pid(), err, how)
		}
		return fmt.Sprintf("process %d: %v", p.Pid(), err), nil
	}
}

// cut is evidence that the switch holds back what goes from one host to the other, or
// comes back. What was held back before does not count.
func (r *row) cut(from, to string) func(context.Context) (string, error) {
	count := func() (uint64, error) {
		there, err := r.Lab().Switch().Counters(from, to)
		if err != nil {
			return 0, err
		}
		back, err := r.Lab().Switch().Counters(to, from)
		return there.Cut + back.Cut, err
	}
	before, err := count()
	r.must(err)
	return func(context.Context) (string, error) {
		now, err := count()
		if err == nil && now == before {
			err = fmt.Errorf("no packet between %s and %s was held back", from, to)
		}
		return fmt.Sprintf("%d packets between %s and %s were held back", now-before, from, to), err
	}
}

// chatter is what programs say about the many clients of a row.
var chatter = []string{"msg=tunnel", "msg=link", `msg="client created"`, `msg="client removed"`, `msg="enrolled"`}

// complain prints the end of what programs said, if the row failed.
func (r *row) complain() {
	if !r.Failed() {
		return
	}
	var programs []*lab.Process
	for _, c := range r.Controllers {
		programs = append(programs, c.Process)
	}
	for _, h := range r.Hosts {
		programs = append(programs, h.Agent)
	}
	for _, p := range programs {
		var lines []string
		for line := range strings.Lines(p.Log()) {
			if !slices.ContainsFunc(chatter, func(c string) bool { return strings.Contains(line, c) }) {
				lines = append(lines, line)
			}
		}
		r.Logf("%s on %s:\n%s", p.Name(), p.Host().Name(), strings.Join(lines[max(0, len(lines)-25):], ""))
	}
}

// possible skips a row, with a sentence, where its fault cannot be made; under CI=true
// that is a failure.
func (r *row) possible(err error) {
	r.Helper()
	if err == nil {
		return
	}
	r.broken = false // nothing was done
	if os.Getenv("CI") == "true" {
		r.Fatal(err)
	}
	r.Skip(err)
}

// must ends the row at the first error.
func (r *row) must(errs ...error) {
	r.Helper()
	for _, err := range errs {
		if err != nil {
			r.Fatal(err)
		}
	}
}

// during waits for what must come while the fault lasts, or soon after.
func (r *row) during(what string, within time.Duration, look func(ctx context.Context) error) {
	r.Helper()
	await(r.T, what, within, look)
}

// last lets a fault be there for a while: the time itself is what is tested.
func (r *row) last(d time.Duration) { <-time.After(d) }

// inventory is what nobody may lose: machines and hosts with their numbers and
// addresses, as the controllers have them.
func (r *row) inventory() []string {
	r.Helper()
	var out []string
	r.during("the lists of machines and hosts", 2*soon, func(ctx context.Context) error {
		var machines []api.MachineInfo
		var hosts []api.HostInfo
		err := errors.Join(r.ledger.do(ctx, http.MethodGet, "/v1/orgs/acme/machines", nil, &machines), r.ledger.do(ctx, http.MethodGet, "/v1/hosts", nil, &hosts))
		out = out[:0]
		for _, m := range machines {
			out = append(out, fmt.Sprintf("machine %s on %s: %s, %s", m.ID, m.Host, m.Address, m.Endpoint))
		}
		for _, h := range hosts {
			out = append(out, fmt.Sprintf("host %s: number %d, %s, key %s", h.Name, h.Number, h.Address, h.Key))
		}
		return err
	})
	slices.Sort(out)
	return out
}

// convergeWithin bounds how long after a fault something new takes to be known
// everywhere: an agent's longest pause between tries, and a little.
const convergeWithin = 20 * time.Second

// converge makes something new and waits until every host answers for it.
func (r *row) converge() {
	r.Helper()
	began := time.Now()
	r.probes++
	name := fmt.Sprintf("probe%d", r.probes)
	r.during("a write to be acknowledged again", convergeWithin, func(ctx context.Context) error {
		return r.ledger.create(ctx, name)
	})
	addr, written := r.ledger.address(name), time.Since(began)
	for host, x := range r.witnesses {
		r.during("host "+host+" to know what is new", convergeWithin, func(ctx context.Context) error {
			return x.answers(ctx, name+"._peer.internal.", addr)
		})
	}
	r.Logf("converged after %s, of which %s to write", time.Since(began).Round(time.Millisecond), written.Round(time.Millisecond))
}

// full says that the whole table is wanted: more rounds, longer faults.
func full() bool { return os.Getenv("WEFT_FULL") != "" }
