package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/agent/local"
)

// stream is 1,000 numbered packets a second from a machine on one host to one on
// another, which sends them back.
type stream struct {
	world  *world.World
	from   *world.Host
	record string
	sender *world.Machine
}

func newStream(t *testing.T, w *world.World, from, to string) *stream {
	t.Helper()
	sink, err := w.Start(t.Context(), w.Hosts[to], "acme", "count", "sink", append(w.Echo(), "-numbers", "[::]:"+numbersPort, "-record", filepath.Join(w.Lab().Dir(), "got"))...)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{world: w, from: w.Hosts[from], record: filepath.Join(w.Lab().Dir(), "sent")}
	s.sender, err = w.Start(t.Context(), s.from, "acme", "count", "sender", append(w.Echo(), sendArgs(s.record, sink.Address.String(), 0)...)...)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the sender to begin", 5*time.Second, func(context.Context) error {
		_, err := os.Stat(s.record)
		return err
	})
	s.flows(t, 5*time.Second)
	return s
}

// flows waits until packets that are sent from now on come back.
func (s *stream) flows(t *testing.T, within time.Duration) {
	t.Helper()
	after := s.last(t, "sent")
	await(t, "packets to come back", within, func(context.Context) error {
		if s.last(t, "back") <= after+100 {
			return fmt.Errorf("none after %d", after)
		}
		return nil
	})
}

// last is the highest number of one kind, -1 if there is none yet.
func (s *stream) last(t *testing.T, what string) int {
	t.Helper()
	highest := -1
	for n := range numbersIn(t, s.record, what) {
		highest = max(highest, n)
	}
	return highest
}

// lost lists the packets of a stretch that did not come back. It gives the last ones
// a moment.
func (s *stream) lost(t *testing.T, first, last int) (list []int) {
	t.Helper()
	awhile(t, func() bool { return s.last(t, "back") > last })
	back := numbersIn(t, s.record, "back")
	for n := range numbersIn(t, s.record, "sent") {
		if n >= first && n <= last && !back[n] {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// awhile waits some seconds for a condition that need not come.
func awhile(t *testing.T, ok func() bool) {
	deadline := time.After(3 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			return
		case <-t.Context().Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// traces is what a restart must not touch, as others than the agent see it.
type traces struct {
	firewall string // with the handles of all rules and elements
	links    string
	routes   string
	device   []int // the process that holds the tunnels
	peers    map[string]peerTrace
}

type peerTrace struct{ handshake, received, sent int }

func look(t *testing.T, h *world.Host) (x traces) {
	t.Helper()
	run := func(args ...string) string {
		t.Helper()
		out, err := h.Run(t.Context(), "ip", append([]string{"netns", "exec", "weft"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	x.firewall = regexp.MustCompile(`(packets|bytes|expires) \S+`).ReplaceAllString(run("nft", "-a", "list", "ruleset"), "")
	x.firewall = steady(x.firewall)
	x.links, x.routes = run("ip", "-o", "link"), run("ip", "-6", "route")
	var err error
	if x.device, err = h.Daemons(); err != nil {
		t.Fatal(err)
	}
	x.peers = map[string]peerTrace{}
	for _, line := range strings.Split(strings.TrimSpace(run("wg", "show", "weft0", "dump")), "\n")[1:] {
		f := strings.Fields(line)
		number := func(i int) int { n, _ := strconv.Atoi(f[i]); return n }
		x.peers[f[0]] = peerTrace{number(4), number(5), number(6)}
	}
	return x
}

// untouched reports what differs after a restart of a host's agent from before.
func untouched(t *testing.T, what string, before, after traces) {
	t.Helper()
	for _, x := range []struct{ what, before, after string }{
		{"the firewall", before.firewall, after.firewall}, {"the links", before.links, after.links},
		{"the routes", before.routes, after.routes}, {"the device's process", fmt.Sprint(before.device), fmt.Sprint(after.device)},
	} {
		if x.before != x.after {
			t.Errorf("%s changed %s:\n%s\nwas\n%s", what, x.what, x.after, x.before)
		}
	}
	if len(before.peers) == 0 {
		t.Fatalf("%s: there were no tunnels", what)
	}
	for key, b := range before.peers {
		a := after.peers[key]
		if a.handshake < b.handshake || a.handshake == 0 || a.received < b.received || a.sent < b.sent {
			t.Errorf("%s: the tunnel to %s began anew: %+v, was %+v", what, key, a, b)
		}
	}
}

// changesLogged are the lines of an agent's log that tell of something that it has changed.
var changesLogged = regexp.MustCompile(`(?m)^.*msg="?(tunnel|link|WireGuard link made|data plane made|firewall|machine's link removed)\b.*$`)

// An agent that is stopped, killed or replaced by another version, and started, is
// not noticed by who sends through its host: no packet is lost, and nothing that is
// right is changed.
func TestAgentRestartLosesNothing(t *testing.T) {
	need(t, "ip", "nft", "wg", "nsenter")
	t.Parallel()
	other := filepath.Join(t.TempDir(), "weft-agent")
	built := make(chan error, 1)
	go func() { built <- buildVersion(t.Context(), other, "v9.9.9-other") }()
	w := newWorld(t, world.Config{AgentFlags: []string{"--backend", "userspace"}}, "fra1", "ams1")
	h := w.Hosts["fra1"]
	s := newStream(t, w, "fra1", "ams1")
	version := agentUp(t, w, h).Version

	for _, x := range []struct {
		name  string
		end   func() error
		other bool // the next one is of another version
	}{
		{"stopped and started", func() error { return h.Agent.Stop() }, false},
		{"killed and started", func() error { return h.Agent.Kill() }, false},
		{"replaced by another version", func() error { return h.Agent.Stop() }, true},
		{"killed and replaced by the first version", func() error { return h.Agent.Kill() }, false},
	} {
		program := filepath.Join(w.Bin(), "weft-agent")
		if x.other {
			if err := <-built; err != nil {
				t.Fatal(err)
			}
			program = other
		}
		s.flows(t, 5*time.Second)
		before, first := look(t, h), s.last(t, "sent")
		if err := x.end(); err != nil {
			t.Fatal(err)
		}
		<-time.After(300 * time.Millisecond) // without any agent
		if err := w.StartAgentOf(h, program); err != nil {
			t.Fatal(err)
		}
		status := agentUp(t, w, h)
		s.flows(t, 5*time.Second)
		last, after := s.last(t, "sent"), look(t, h)
		lost := s.lost(t, first, last)
		t.Logf("agent %s: %d packets sent meanwhile, %d lost %v", x.name, last-first+1, len(lost), lost)
		if len(lost) > 0 || last-first < 300 {
			t.Errorf("agent %s: lost %d of %d", x.name, len(lost), last-first+1)
		}
		untouched(t, x.name, before, after)
		if told := changesLogged.FindAllString(h.Agent.Log(), -1); len(told) > 0 {
			t.Errorf("agent %s: it changed what was right:\n%s", x.name, strings.Join(told, "\n"))
		}
		if !strings.Contains(h.Agent.Log(), "WireGuard link found") {
			t.Errorf("agent %s: it says nothing of the link that it found:\n%s", x.name, h.Agent.Log())
		}
		if x.other && (status.Version == version || !strings.HasPrefix(status.Device, version+",")) {
			t.Errorf("status says version %q, device %q; the device was started by %q", status.Version, status.Device, version)
		}
	}
	renamedMeanwhile(t, w, h, s)
	deviceKilled(t, w, h, s)
	cleaned(t, w, h)
}

// cleaned ends the agent, which leaves the tunnels, and then takes them away.
func cleaned(t *testing.T, w *world.World, h *world.Host) {
	t.Helper()
	if err := h.Agent.Stop(); err != nil {
		t.Fatal(err)
	}
	if left, err := h.Daemons(); err != nil || len(left) != 1 {
		t.Errorf("an agent that has ended leaves the processes %v, %v; want the device's", left, err)
	}
	if out, err := h.Run(t.Context(), filepath.Join(w.Bin(), "weft-agent"), "clean"); err != nil {
		t.Fatal(out, err)
	}
	left, err := h.Daemons()
	out, nsErr := h.Run(t.Context(), "ip", "netns", "list")
	if err = errors.Join(err, nsErr); err != nil || len(left) != 0 || strings.Contains(out, "weft") {
		t.Errorf("after weft-agent clean: processes %v, namespaces %q, %v", left, out, err)
	}
}

// renamedMeanwhile renames links while no agent runs: the next one gives them their
// names back, and the machine stays what it was.
func renamedMeanwhile(t *testing.T, w *world.World, h *world.Host, s *stream) {
	t.Helper()
	status, err := w.Status(t.Context(), h)
	if err != nil || len(status.Machines) != 1 {
		t.Fatalf("machines %+v, %v", status.Machines, err)
	}
	before := look(t, h)
	if err := h.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"weft0", status.Machines[0].Link} {
		if out, err := h.Run(t.Context(), "ip", "netns", "exec", "weft", "ip", "link", "set", name, "name", fmt.Sprint("other", i)); err != nil {
			t.Fatal(out, err)
		}
	}
	if err := w.StartAgent(h); err != nil {
		t.Fatal(err)
	}
	agentUp(t, w, h)
	s.flows(t, 10*time.Second)
	now, err := w.Status(t.Context(), h)
	if err != nil || len(now.Machines) != 1 || now.Machines[0].Address != status.Machines[0].Address || now.Machines[0].Link != status.Machines[0].Link {
		t.Errorf("machines were %+v and are %+v, %v", status.Machines, now.Machines, err)
	}
	if told := strings.Count(h.Agent.Log(), " again\""); told != 2 {
		t.Errorf("it told of %d names:\n%s", told, h.Agent.Log())
	}
	untouched(t, "agent killed, links renamed and agent started", before, look(t, h))
	nameless(t, w, h, s, status.Machines[0])
}

// nameless takes a machine's link what it could be found by. The machine cannot be
// attached then, and is not given up for that.
func nameless(t *testing.T, w *world.World, h *world.Host, s *stream, m local.Attached) {
	t.Helper()
	rename := func(args ...string) {
		t.Helper()
		if out, err := h.Run(t.Context(), "ip", append([]string{"netns", "exec", "weft", "ip", "link", "set"}, args...)...); err != nil {
			t.Fatal(out, err)
		}
	}
	if err := h.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	rename(m.Link, "alias", "")
	rename(m.Link, "name", "nobodys")
	if err := w.StartAgent(h); err != nil {
		t.Fatal(err)
	}
	await(t, "two tries to attach it", 15*time.Second, func(context.Context) error {
		if n := strings.Count(h.Agent.Log(), "machine not attached"); n < 2 {
			return fmt.Errorf("%d tries", n)
		}
		return nil
	})
	if out := weft(t, w, "machine", "list", "--org", "acme"); !strings.Contains(out, m.Address.String()) {
		t.Errorf("weft machine list does not have it any more:\n%s", out)
	}
	rename("nobodys", "name", m.Link)
	agentUp(t, w, h)
	s.flows(t, 10*time.Second)
}

// deviceKilled kills the process that holds the tunnels: its agent starts another
// one, and says so once.
func deviceKilled(t *testing.T, w *world.World, h *world.Host, s *stream) {
	t.Helper()
	before, first := look(t, h), s.last(t, "sent")
	if len(before.device) != 1 {
		t.Fatalf("processes of devices: %v", before.device)
	}
	began := time.Now()
	if _, err := h.Run(t.Context(), "sh", "-c", fmt.Sprint("kill -9 ", before.device[0])); err != nil {
		t.Fatal(err)
	}
	await(t, "another process", 5*time.Second, func(context.Context) error {
		now, err := h.Daemons()
		if err == nil && (len(now) != 1 || now[0] == before.device[0]) {
			err = fmt.Errorf("there are %v", now)
		}
		return err
	})
	s.flows(t, 15*time.Second)
	healed := time.Since(began)
	lost := s.lost(t, first, s.last(t, "sent"))
	t.Logf("device's process killed: healed within %s, %d packets lost", healed.Round(time.Millisecond), len(lost))
	if len(lost) == 0 {
		t.Error("no packet was lost: the tunnels were elsewhere")
	}
	if n := strings.Count(h.Agent.Log(), "the device's process is lost"); n != 1 {
		t.Errorf("said %d times that the process is lost", n)
	}
	if status := agentUp(t, w, h); len(status.Problems) > 0 {
		t.Errorf("problems: %q", status.Problems)
	}
}

// agentUp waits until a host's agent follows the view and has its machines back.
func agentUp(t *testing.T, w *world.World, h *world.Host) (s statusText) {
	t.Helper()
	await(t, "the agent of "+h.Name()+" to be up", 15*time.Second, func(ctx context.Context) error {
		status, err := w.Status(ctx, h)
		switch {
		case err != nil:
			return err
		case !status.Connected || len(status.Machines) == 0 || len(status.Peers) == 0:
			return errors.New("it does not follow the view yet, or has no machines or tunnels")
		case len(status.Problems) > 0:
			return fmt.Errorf("problems: %q", status.Problems)
		}
		s = statusText{status.Version, status.Device, status.Problems}
		return nil
	})
	return s
}

type statusText struct {
	Version, Device string
	Problems        []string
}

// buildVersion builds the agent with another version in it.
func buildVersion(ctx context.Context, path, version string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-X github.com/weftmesh/weft/cmd/internal/cli.Version="+version, "-o", path, "../cmd/weft-agent")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build another version: %w\n%s", err, out)
	}
	return nil
}

// steady is what nft lists, without what is in sets that packets fill: that comes and goes.
func steady(rules string) string {
	return regexp.MustCompile(`(flags [^{}]*(?:dynamic|timeout)[^{}]*?)\s*elements = \{[^}]*\}`).ReplaceAllString(rules, "$1")
}
