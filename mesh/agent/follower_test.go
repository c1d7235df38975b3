package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// script plays controllers: what each attempt at a stream brings. A stream that
// has said everything ends; with hang it stays open until it is closed.
type script struct {
	list []string // controllers

	mu     sync.Mutex
	opened []string
	asked  []string          // from which revision
	plays  map[string][]play // by controller, one after the other; the last one repeats
}

type play struct {
	events []api.Event
	err    error // of opening
	hang   bool
	lasts  time.Duration // before it ends
}

func (s *script) servers() []string { return s.list }

func (s *script) open(ctx context.Context, server string, last mesh.Revision) (viewStream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = append(s.opened, server)
	s.asked = append(s.asked, last.String())
	p := s.plays[server][0]
	if len(s.plays[server]) > 1 {
		s.plays[server] = s.plays[server][1:]
	}
	if p.err != nil {
		return nil, p.err
	}
	return &played{ctx, p}, nil
}

func (s *script) worked(server string, _ *mesh.View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = preferring(s.list, server)
}

func (s *script) attempts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.opened...)
}

type played struct {
	ctx context.Context
	play
}

func (p *played) Next() (api.Event, error) {
	if len(p.events) > 0 {
		e := p.events[0]
		p.events = p.events[1:]
		return e, nil
	}
	if p.hang {
		<-p.ctx.Done()
	}
	wait(p.ctx, p.lasts, nil)
	return api.Event{}, errors.New("it ended")
}

func (p *played) Close() {}

// follow runs a follower in a bubble until the test ends it.
func follow(t *testing.T, s *script) (f *follower, p *problems, end func() error) {
	log, _ := newLog(t)
	p = &problems{}
	f = newFollower(mesh.Node{Kind: mesh.KindHost, Name: "self"}, "", Timing{}.withDefaults(), s, p, log)
	f.view.Store(nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return f, p, func() error { cancel(); return <-done }
}

// sound view of a host called self.
func soundView(t *testing.T, hosts, machines int) *mesh.View {
	v := crowd(hosts, 0, machines)
	v.Plan, v.Format = testPlan(t), mesh.ViewFormat
	return v
}

// pass lets time go by on the bubble's clock.
func letPass(d time.Duration) { <-time.After(d); synctest.Wait() }

func TestFollowerTriesAllControllers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := soundView(t, 2, 0)
		s := &script{list: []string{"x", "y", "z"}, plays: map[string][]play{
			"x": {{err: errors.New("refused")}}, "y": {{events: []api.Event{{Snapshot: v}}, hang: true}}, "z": {{err: errors.New("refused")}},
		}}
		f, p, end := follow(t, s)
		synctest.Wait()
		if f.View() != v || !f.Contact().connected || f.Contact().controller != "y" || len(p.list()) != 0 {
			t.Errorf("view %v, contact %+v, problems %v", f.View(), f.Contact(), p.list())
		}
		if got := strings.Join(s.attempts(), " "); got != "x y" && got != "x z y" {
			t.Errorf("attempts: %s", got)
		}
		if err := end(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// A stream that breaks is opened again; the view stays, and says that it is old.
func TestFollowerReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, later := soundView(t, 2, 1), soundView(t, 2, 1)
		later.Revision.Revision = 2
		s := &script{list: []string{"x"}, plays: map[string][]play{"x": {
			{events: []api.Event{{Snapshot: v}, {Delta: &mesh.Delta{Revision: mesh.Revision{Revision: 1}, Removed: []string{"machines/o/m000"}}}}},
			{err: errors.New("refused")}, {err: errors.New("refused")}, {err: errors.New("refused")},
			{events: []api.Event{{Snapshot: later}}, hang: true},
		}}}
		f, p, end := follow(t, s)
		synctest.Wait()
		if len(f.View().Machines) != 0 || f.Contact().connected || len(p.list()) != 1 {
			t.Errorf("after the first stream: %d machines, %+v, %v", len(f.View().Machines), f.Contact(), p.list())
		}
		letPass(time.Minute)
		if len(f.View().Machines) != 1 || !f.Contact().connected || len(p.list()) != 0 {
			t.Errorf("after the last: %d machines, %+v, %v", len(f.View().Machines), f.Contact(), p.list())
		}
		if n := len(s.attempts()); n != 5 {
			t.Errorf("%d attempts", n)
		}
		end()
	})
}

// A stream that begins with a change is not taken up where another one ended: what
// came in between is not known.
func TestFollowerWantsASnapshotFromEachStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := soundView(t, 2, 0)
		s := &script{list: []string{"x"}, plays: map[string][]play{"x": {
			{events: []api.Event{{Snapshot: v}}},
			{events: []api.Event{{Delta: &mesh.Delta{Removed: []string{"hosts/h000"}}}}, hang: true},
		}}}
		f, p, end := follow(t, s)
		letPass(time.Minute)
		if len(f.View().Hosts) != 2 {
			t.Error("a change without a snapshot was applied")
		}
		if got := p.list(); len(got) != 1 || !strings.Contains(got[0], "makes no sense") {
			t.Errorf("the stream was not given up: %v", got)
		}
		end()
	})
}

// While nobody answers, attempts become rare, and never stop.
func TestFollowerBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{list: []string{"x"}, plays: map[string][]play{"x": {{err: errors.New("refused")}}}}
		_, _, end := follow(t, s)
		letPass(10 * time.Minute)
		first := len(s.attempts())
		letPass(10 * time.Minute)
		if later := len(s.attempts()) - first; first < 55 || first > 135 || later < 55 || later > 130 {
			t.Errorf("%d attempts in ten minutes, %d in ten more", first, later)
		}
		end()
	})
}

// What makes no sense ends the stream and changes nothing.
func TestFollowerRefusesNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := soundView(t, 2, 0)
		stranger := soundView(t, 0, 0)
		stranger.Self.Name = "somebody"
		noPlan := crowd(2, 0, 0)
		for name, events := range map[string][]api.Event{
			"a change first":             {{Delta: &mesh.Delta{}}},
			"another node's view":        {{Snapshot: stranger}},
			"a view without a mesh":      {{Snapshot: noPlan}},
			"nonsense after a good view": {{Snapshot: v}, {Snapshot: stranger}},
		} {
			s := &script{list: []string{"x"}, plays: map[string][]play{"x": {{events: events, hang: true}}}}
			f, p, end := follow(t, s)
			synctest.Wait()
			want := events[0].Snapshot
			if want != v {
				want = nil
			}
			if f.View() != want || len(p.list()) != 1 || !strings.Contains(p.list()[0], "makes no sense") {
				t.Errorf("%s: view %v, problems %v", name, f.View(), p.list())
			}
			end()
		}
	})
}

// Two nodes with one key: the one that is fenced ends, but not at the first word
// of a controller that has not yet noticed that our old line is dead.
func TestFollowerFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fenced := play{events: []api.Event{{Fenced: "another node uses this key"}}}
		good := play{events: []api.Event{{Snapshot: soundView(t, 1, 0)}}, hang: true}
		s := &script{list: []string{"x"}, plays: map[string][]play{"x": {fenced, good}}}
		f, p, end := follow(t, s)
		synctest.Wait()
		if len(p.list()) != 1 || !strings.Contains(p.list()[0], "fenced") {
			t.Errorf("problems: %v", p.list())
		}
		letPass(2 * time.Minute)
		if f.View() == nil {
			t.Error("fenced once, by mistake, and never again connected")
		}
		end()

		s = &script{list: []string{"x"}, plays: map[string][]play{"x": {fenced}}}
		_, _, end = follow(t, s)
		letPass(5 * time.Minute)
		if err := end(); !errors.Is(err, ErrFenced) || mesh.HintOf(err) == "" {
			t.Errorf("Run: %v", err)
		}
		if n := len(s.attempts()); n != fencedLimit {
			t.Errorf("%d attempts", n)
		}
	})
}

// The next stream is opened soon after one that worked for a while, though not by
// all nodes in one moment. One that ends at once is not opened again at once.
func TestFollowerFailsOverSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct{ lasts, least, most time.Duration }{
			{10 * time.Second, 0, 200 * time.Millisecond},
			{300 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond},
		} {
			waits := map[time.Duration]bool{}
			for range 5 {
				good := play{events: []api.Event{{Snapshot: soundView(t, 1, 0)}}, lasts: tt.lasts}
				s := &script{list: []string{"x"}, plays: map[string][]play{"x": {good, {events: good.events, hang: true}}}}
				f, _, end := follow(t, s)
				began := time.Now()
				for len(s.attempts()) < 2 {
					<-time.After(time.Millisecond)
				}
				synctest.Wait()
				waited := f.Contact().last.Sub(began) - tt.lasts
				if waits[waited] = true; waited < tt.least || waited > tt.most+time.Millisecond {
					t.Errorf("a stream of %s: the next one %s later", tt.lasts, waited)
				}
				end()
			}
			if len(waits) < 2 {
				t.Errorf("a stream of %s: always the same wait", tt.lasts)
			}
		}
	})
}

// Another node has the key: that is found out at the controller that says so. At
// others, which do not see that node, nothing would be known.
func TestFencedNodeAsksTheSameController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fenced := []play{{events: []api.Event{{Fenced: "another node uses this key"}}}}
		s := &script{list: []string{"x", "y", "z", "u"}, plays: map[string][]play{"x": {{err: errors.New("refused")}}, "y": fenced, "z": fenced, "u": fenced}}
		_, _, end := follow(t, s)
		letPass(5 * time.Minute)
		if err := end(); !errors.Is(err, ErrFenced) {
			t.Errorf("Run: %v", err)
		}
		if a := s.attempts(); len(a) != 4 || a[1] != a[2] || a[2] != a[3] {
			t.Errorf("attempts %v", a)
		}
	})
}

// A snapshot that would take most away is held, said so, and applied when the
// controllers stand by it.
func TestFollowerHoldsASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pings := []api.Event{{Snapshot: soundView(t, 20, 0)}, {Snapshot: soundView(t, 2, 0)}}
		s := &script{list: []string{"x"}, plays: map[string][]play{"x": {
			{events: pings}, {events: []api.Event{{Snapshot: soundView(t, 2, 0)}}, hang: true},
		}}}
		f, p, end := follow(t, s)
		synctest.Wait()
		if len(f.View().Hosts) != 20 {
			t.Errorf("%d hosts left", len(f.View().Hosts))
		}
		letPass(time.Second)
		if got := p.list(); len(got) != 1 || !strings.Contains(got[0], "18 of 20 peers would be removed") {
			t.Errorf("problems: %v", got)
		}
		end()
	})
}

// Removed from the mesh: it is said, in words.
func TestFollowerSaysThatItWasRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refusal := fmt.Errorf("x: %w", &api.Error{Status: 401, Code: "unauthorized", Message: "no such node"})
		s := &script{list: []string{"x"}, plays: map[string][]play{"x": {{err: refusal}}}}
		_, p, end := follow(t, s)
		synctest.Wait()
		if got := p.list(); len(got) != 1 || !strings.Contains(got[0], "may have been removed") {
			t.Errorf("problems: %v", got)
		}
		end()
	})
}
