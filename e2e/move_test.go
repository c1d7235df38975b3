package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh"
)

const numbersPort = "9"

// roamer is the machine acme/roamer, on one host after the other.
type roamer struct {
	*world.Machine
	record string
}

// runRoamer starts acme/roamer on a host and does not wait for it.
func runRoamer(t *testing.T, w *world.World, host string, flags []string, command ...string) roamer {
	t.Helper()
	h := w.Hosts[host]
	args := slices.Concat([]string{"run", "--org", "acme", "--app", "web", "--name", "roamer"}, flags, []string{"--"}, command)
	p, err := h.Host.Start("roamer-on-"+host, filepath.Join(w.Bin(), "weft"), args, nil)
	if err != nil {
		t.Fatal(err)
	}
	return roamer{Machine: &world.Machine{Org: "acme", App: "web", ID: "roamer", Host: h, Process: p}}
}

// startRoamer starts acme/roamer with a command that counts numbered packets.
func startRoamer(t *testing.T, w *world.World, name, host string, flags ...string) roamer {
	t.Helper()
	record := filepath.Join(w.Lab().Dir(), "got-"+name)
	r := runRoamer(t, w, host, flags, append(w.Echo(), "-numbers", "[::]:"+numbersPort, "-record", record)...)
	r.record = record
	return r
}

// here waits until a host has the machine, and notes its address.
func (r *roamer) here(t *testing.T, w *world.World) {
	t.Helper()
	await(t, "roamer to be on "+r.Host.Name(), 20*time.Second, func(ctx context.Context) error {
		if r.Process.Exited() {
			return lab.Hopeless(fmt.Errorf("it has ended: %s", r.Process.LastLine()))
		}
		s, err := w.Status(ctx, r.Host)
		if err != nil {
			return err
		}
		for _, m := range s.Machines {
			if m.ID == r.ID {
				r.Address = m.Address
				return nil
			}
		}
		return errors.New("its agent does not list it")
	})
	await(t, "roamer to serve", 5*time.Second, func(ctx context.Context) error {
		_, err := r.In(ctx, "curl", "-sS", "-g", "--max-time", "2", "http://[::1]/")
		return err
	})
}

// gone waits until `weft run` has ended because the machine moved.
func (r *roamer) gone(t *testing.T, to string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := r.Process.Wait(ctx); err != nil {
		t.Errorf("weft run on %s after the move: %v\n%s", r.Host.Name(), err, r.Process.Log())
	}
	if want := "machine acme/roamer moved to host " + to; !strings.Contains(r.Process.Log(), want) {
		t.Errorf("weft run on %s says nothing of %q:\n%s", r.Host.Name(), want, r.Process.Log())
	}
}

// record is what the controllers have of the machine.
func roamerRecord(ctx context.Context, w *world.World) (mesh.Machine, error) {
	list, err := world.List[mesh.Machine](ctx, w, "machine", "list", "--org", "acme")
	if err != nil {
		return mesh.Machine{}, err
	}
	i := slices.IndexFunc(list, func(m mesh.Machine) bool { return m.ID == "roamer" })
	if i < 0 {
		return mesh.Machine{}, errors.New("there is no machine acme/roamer")
	}
	return list[i], nil
}

// numbersIn reads the lines of one kind from a record.
func numbersIn(t *testing.T, path, what string) map[int]bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]bool{}
	for line := range strings.Lines(string(text)) {
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), what+" "); ok {
			n, err := strconv.Atoi(s)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			out[n] = true
		}
	}
	return out
}

// sender is a stream of numbered packets to the machine.
type sender struct {
	name    string
	process *lab.Process
	record  string
	delay   time.Duration // from it to where the machine is, one way
}

func sendArgs(record, to string, first int) []string {
	return []string{"-send", "[" + to + "]:" + numbersPort, "-first", strconv.Itoa(first), "-record", record}
}

// watchName asks for a name until end is called, which returns how often it was
// answered and what was wrong.
func watchName(from *world.Machine, name, want string) (end func() (asked int, wrong []string)) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	asked, wrong := 0, []string(nil)
	group.Go(func() {
		for ctx.Err() == nil {
			got, err := digs(ctx, from, name)
			if ctx.Err() != nil {
				return
			}
			asked++
			if err != nil || !slices.Equal(got, []string{want}) {
				wrong = append(wrong, fmt.Sprint(got, err))
			}
		}
	})
	return func() (int, []string) { cancel(); group.Wait(); return asked, wrong }
}

// A machine moves to another host and home again while a machine on a third host
// and a laptop send to it, 1,000 packets a second each. None is lost on its way to
// the machine: the new process serves before the address comes to it, and what is
// under way to the old one is still delivered. An answer of the old process that is
// on its way when the sender's host learns of the move is lost: it comes from where
// the address is not any more. Those are the ones asked for in the last round trip,
// and no others.
func TestMoveUnderTraffic(t *testing.T) {
	need(t, "dig", "curl", "nsenter")
	for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
		t.Run("delay "+delay.String(), func(t *testing.T) {
			t.Parallel()
			moveUnderTraffic(t, delay)
		})
	}
}

func moveUnderTraffic(t *testing.T, delay time.Duration) {
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	for _, p := range [][2]string{{"fra1", "ams1"}, {"fra1", "nrt1"}, {"ams1", "nrt1"}} {
		if err := w.Lab().Switch().SetDelay(p[0], p[1], delay); err != nil {
			t.Fatal(err)
		}
	}
	at := startRoamer(t, w, "1", "fra1")
	at.here(t, w)
	address, counters := at.Address, []roamer{at}
	watcher := start(t, w, "nrt1", "acme", "shell", "watcher")
	await(t, "the watcher to reach it", 10*time.Second, func(ctx context.Context) error { return reach(ctx, watcher, at.Machine) })
	l := newLaptop(t, w, "laptop")
	await(t, "the laptop to reach it", 15*time.Second, l.reaches("["+address.String()+"]"))

	var senders []sender
	record := filepath.Join(w.Lab().Dir(), "sent-by-machine")
	m, err := w.Start(t.Context(), w.Hosts["nrt1"], "acme", "load", "sender", append(w.Echo(), sendArgs(record, address.String(), 0)...)...)
	if err != nil {
		t.Fatal(err)
	}
	senders = append(senders, sender{"the machine", m.Process, record, delay})
	record = filepath.Join(w.Lab().Dir(), "sent-by-laptop")
	p, err := l.Start("sender", w.Echo()[0], sendArgs(record, address.String(), 1_000_000), nil)
	if err != nil {
		t.Fatal(err)
	}
	senders = append(senders, sender{"the laptop", p, record, delay}) // its gateway is next to it
	endWatch := watchName(watcher, "web.internal", address.String())
	<-time.After(500 * time.Millisecond) // traffic before the first move

	if out, err := w.Hosts["ams1"].Run(t.Context(), filepath.Join(w.Bin(), "weft"), "run", "--org", "acme", "--app", "web", "--name", "roamer", "--", "true"); err == nil {
		t.Fatal("a name that is in use was taken without --move")
	} else if said := fmt.Sprint(out, err); !strings.Contains(said, "fra1") || !strings.Contains(said, "--move") {
		t.Errorf("a name that is in use: want the host and --move in\n%s", said)
	}
	for i, host := range []string{"ams1", "fra1"} {
		before := at
		at = startRoamer(t, w, strconv.Itoa(i+2), host, "--move")
		if err := at.Process.AwaitLog(t.Context(), "machine roamer moved here from host "+before.Host.Name(), 20*time.Second); err != nil {
			t.Fatal(err)
		}
		before.gone(t, host)
		at.here(t, w)
		if at.Address != address {
			t.Fatalf("on %s its address is %s, it was %s", host, at.Address, address)
		}
		counters = append(counters, at)
		<-time.After(500 * time.Millisecond) // traffic after the move
	}
	for _, s := range senders {
		terminate(t, s.process)
	}
	asked, wrong := endWatch()
	t.Logf("delay %s: the name was asked for %d times", delay, asked)
	if len(wrong) > 0 || asked == 0 {
		t.Errorf("the name was answered wrong %d of %d times: %s", len(wrong), asked, wrong)
	}
	for _, s := range senders {
		countPackets(t, s, counters)
	}
	if r, err := roamerRecord(t.Context(), w); err != nil || r.Host != "fra1" || r.Next != "" {
		t.Errorf("in the end the record is %+v, %v", r, err)
	}
	comesBack(t, w, at, watcher)
}

// countPackets judges a stream: what was sent, who got it, and what was lost.
func countPackets(t *testing.T, s sender, counters []roamer) {
	t.Helper()
	sent, back := sorted(numbersIn(t, s.record, "sent")), numbersIn(t, s.record, "back")
	got := make([][]int, len(counters)) // by process
	var lost []int
	for i, c := range counters {
		by := numbersIn(t, c.record, "got")
		got[i] = slices.DeleteFunc(slices.Clone(sent), func(n int) bool { return !by[n] })
	}
	for _, n := range sent {
		if !slices.ContainsFunc(got, func(list []int) bool { _, there := slices.BinarySearch(list, n); return there }) {
			lost = append(lost, n)
		}
	}
	counts := make([]int, len(got))
	for i, list := range got {
		counts[i] = len(list)
		if len(list) < 100 {
			t.Errorf("process %d got %d packets of %s: there was no traffic to judge", i+1, len(list), s.name)
		}
		late := unanswered(list, back)
		if i == len(got)-1 && late > 0 || late < 0 {
			t.Errorf("answers of process %d to %s were lost that were not on their way at a switch", i+1, s.name)
		}
	}
	moves := len(counters) - 1
	t.Logf("delay %s: %s sent %d; the processes got %v; lost on the way there %d, round trips lost %d (in %d moves, with %d on their way at a time)",
		s.delay, s.name, len(sent), counts, len(lost), len(sent)-len(back), moves, int(2*s.delay/time.Millisecond))
	if len(lost) > 0 {
		t.Errorf("%d packets of %s were lost on their way there: %v", len(lost), s.name, lost)
	}
}

// unanswered is how many of the last packets that a process got have no answer; -1
// if others have none.
func unanswered(got []int, back map[int]bool) int {
	first := slices.IndexFunc(got, func(n int) bool { return !back[n] })
	if first < 0 {
		return 0
	}
	if slices.ContainsFunc(got[first:], func(n int) bool { return back[n] }) {
		return -1
	}
	return len(got) - first
}

func sorted(numbers map[int]bool) []int { return slices.Sorted(maps.Keys(numbers)) }

// terminate ends a process and gives it time, on a busy machine too: it has packets
// to count.
func terminate(t *testing.T, p *lab.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Fatalf("%s after SIGTERM: %v", p.Name(), err)
	}
}

// comesBack ends the machine and starts it on a third host: it has its address
// there, too.
func comesBack(t *testing.T, w *world.World, at roamer, watcher *world.Machine) {
	t.Helper()
	terminate(t, at.Process)
	await(t, "its name to go", 5*time.Second, nameIs(watcher, "web.internal"))
	again := startRoamer(t, w, "again", "ams1")
	again.here(t, w)
	if again.Address != at.Address {
		t.Errorf("started again on another host its address is %s, it was %s", again.Address, at.Address)
	}
	await(t, "the watcher to reach it", 5*time.Second, func(ctx context.Context) error { return reach(ctx, watcher, again.Machine) })
}

// A move that is cut short in the middle, by the death of the agent that it leads
// to, of its process or of the controller, leaves the machine where it is; and one
// that can go on does.
func TestMoveCutShort(t *testing.T) {
	need(t, "dig", "curl", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	at := startRoamer(t, w, "1", "fra1")
	at.here(t, w)
	watcher := start(t, w, "nrt1", "acme", "shell", "watcher")
	const soon = 10 * time.Second
	reachable := func(ctx context.Context) error { return reach(ctx, watcher, at.Machine) }
	await(t, "the watcher to reach it", soon, reachable)
	record := func(what string, ok func(mesh.Machine) bool) {
		t.Helper()
		await(t, what, 20*time.Second, func(ctx context.Context) error {
			r, err := roamerRecord(ctx, w)
			if err == nil && !ok(r) {
				err = fmt.Errorf("it is on %q, next %q", r.Host, r.Next)
			}
			return err
		})
	}
	prepared := func(r mesh.Machine) bool { return r.Host == "fra1" && r.Next == "ams1" }
	attached := func(what string) {
		t.Helper()
		record("the move to be prepared "+what, prepared)
		if err := w.Hosts["ams1"].Agent.AwaitLog(t.Context(), "from=fra1", soon); err != nil {
			t.Fatal(err)
		}
	}
	calledOff := func(r mesh.Machine) bool { return r.Host == "fra1" && r.Next == "" }

	// The agent dies between prepare and commit; its process finds the next one.
	silent := runRoamer(t, w, "ams1", []string{"--move", "--ready-within", "1m"}, "sleep", "1000")
	attached("at first")
	if err := w.Hosts["ams1"].Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := reachable(t.Context()); err != nil {
		t.Fatalf("with the agent killed that it was to move to: %v", err)
	}
	if err := w.StartAgent(w.Hosts["ams1"]); err != nil {
		t.Fatal(err)
	}
	attached("for its process that comes back")
	// Its process dies, too.
	if err := silent.Kill(); err != nil {
		t.Fatal(err)
	}
	record("the move to be called off", calledOff)
	await(t, "the watcher to reach it", soon, reachable)
	if at.Process.Exited() {
		t.Fatalf("the machine ended with a move that was called off: %s", at.Process.LastLine())
	}

	// Agent and process die together.
	silent = runRoamer(t, w, "ams1", []string{"--move", "--ready-within", "1m"}, "sleep", "1000")
	record("the move to be prepared again", prepared)
	if err := errors.Join(w.Hosts["ams1"].Agent.Kill(), silent.Kill()); err != nil {
		t.Fatal(err)
	}
	if err := w.StartAgent(w.Hosts["ams1"]); err != nil {
		t.Fatal(err)
	}
	record("the move to be called off by the next agent", calledOff)
	await(t, "the watcher to reach it", soon, reachable)

	// The controller dies between prepare and commit, and comes back.
	if err := w.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := runRoamer(t, w, "ams1", []string{"--move", "--ready-within", "1m"},
		"sh", "-c", "while [ ! -e "+filepath.Join(w.Lab().Dir(), "go")+" ]; do sleep 0.1; done; exec "+w.Echo()[0])
	attached("once more")
	if err := w.KillController(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.Lab().Dir(), "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	await(t, "the agent to say that the move is not complete", soon, func(ctx context.Context) error {
		s, err := w.Status(ctx, w.Hosts["ams1"])
		if err == nil && !strings.Contains(strings.Join(s.Problems, "\n"), "the move of machine acme/roamer is not complete") {
			err = fmt.Errorf("its problems are %q", s.Problems)
		}
		return err
	})
	if err := reachable(t.Context()); err != nil || at.Process.Exited() {
		t.Fatalf("without a controller: %v", err)
	}
	if err := w.StartController(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := next.Process.AwaitLog(t.Context(), "moved here from host fra1", 30*time.Second); err != nil {
		t.Fatal(err)
	}
	at.gone(t, "ams1")
	next.Address = at.Address
	await(t, "the watcher to reach it", soon, func(ctx context.Context) error { return reach(ctx, watcher, next.Machine) })
}
