package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// stage is a node that has joined, and controllers that play what a test says, over
// real TLS. Each stream that is opened takes a controller's next play; the last one
// repeats. An err is a refusal with 503.
type stage struct {
	t    *testing.T
	join Join
	url  map[string]string // by controller

	mu    sync.Mutex // guards what follows
	plays map[string][]play
	asked []string // "<controller> <Last-Event-ID>"
}

func newStage(t *testing.T, plays map[string][]play) *stage {
	c := newControl(t)
	s := &stage{t: t, join: c.join(t), url: map[string]string{}, plays: plays}
	m, err := joinAs(t.Context(), t, s.join)
	if err != nil {
		t.Fatal(err)
	}
	c.stop()
	keys, err := enroll.LoadOrCreateKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	der, err := c.ca.SignController(keys.TLS.Public(), time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{der, c.ca.Certificate()}, PrivateKey: keys.TLS}
	for name := range plays {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(name, w, r) }))
		server.TLS = enroll.ServerTLS(func() *tls.Certificate { return cert })
		server.EnableHTTP2 = true
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		server.StartTLS()
		t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
		s.url[name] = server.URL
	}
	// It knows nothing of where it joined, and x was good for its last view.
	m.saved.Controllers, m.saved.Worked = nil, []string{s.url["x"]}
	if err := m.identity.Save(m.saved); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stage) serve(name string, w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, strings.TrimSpace(name+" "+r.Header.Get("Last-Event-ID")))
	p := s.plays[name][0]
	if len(s.plays[name]) > 1 {
		s.plays[name] = s.plays[name][1:]
	}
	s.mu.Unlock()
	if p.err != nil {
		no(w, api.ErrUnavailable, "%s", p.err)
		return
	}
	for _, e := range p.events {
		kind, v := api.EventPing, any(e.Ping)
		switch {
		case e.Snapshot != nil:
			kind, v = api.EventSnapshot, e.Snapshot
		case e.Delta != nil:
			kind, v = api.EventDelta, e.Delta
		}
		b, err := json.Marshal(v)
		if err != nil {
			s.t.Error(err)
		}
		fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, b)
	}
	http.NewResponseController(w).Flush()
	if p.hang {
		<-r.Context().Done()
	}
}

func (s *stage) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// start runs a follower of the node, as a process would: from what is on disk. The
// controllers of known are in its configuration, in this order.
func (s *stage) start(known ...string) (f *follower, p *problems, end func()) {
	s.t.Helper()
	j := s.join
	j.Controllers = nil
	for _, name := range known {
		j.Controllers = append(j.Controllers, s.url[name])
	}
	m, err := joinAs(s.t.Context(), s.t, j)
	if err != nil {
		s.t.Fatal(err)
	}
	m.timing.Silence = 500 * time.Millisecond
	log, _ := newLog(s.t)
	p = &problems{}
	timing := m.timing
	timing.Jitter, timing.HoldFor = time.Millisecond, time.Hour
	f = newFollower(m.node(), j.StateDir, timing.withDefaults(), m, p, log)
	f.load()
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	var once sync.Once
	end = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				s.t.Errorf("Run: %v", err)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			m.forgetClientsLocked()
		})
	}
	s.t.Cleanup(end)
	return f, p, end
}

// at is the view of host a at a revision: with so many other hosts.
func at(t *testing.T, epoch uint32, revision int64, hosts int) *mesh.View {
	v := soundView(t, hosts, 0)
	v.Self.Name, v.Host.Name, v.Revision = "a", "a", mesh.Revision{Epoch: epoch, Revision: revision}
	return v
}

// plus is a change to a revision that adds a host.
func plus(epoch uint32, revision int64) api.Event {
	h := mesh.ViewHost{Name: "new", Number: 900, Key: mesh.Key(keyOf(250))}
	return api.Event{Delta: &mesh.Delta{Revision: mesh.Revision{Epoch: epoch, Revision: revision}, Format: mesh.ViewFormat, Hosts: []mesh.ViewHost{h}}}
}

func whole(v *mesh.View) api.Event { return api.Event{Snapshot: v} }

func pinged(epoch uint32, revision int64) api.Event {
	return api.Event{Ping: &api.Ping{Revision: mesh.Revision{Epoch: epoch, Revision: revision}}}
}

// Several controllers, each of which says or does what the row has. The node follows
// until it has the view of the row, by revision and number of other hosts.
func TestFailover(t *testing.T) {
	t.Parallel()
	behind := errors.New("this controller is behind")
	for _, tt := range []struct {
		name  string
		plays map[string][]play
		view  string // revision, hosts
		asked string
		says  string // a problem, "" for none
	}{
		{
			name:  "a stream goes on where the last one ended",
			plays: map[string][]play{"x": {{events: []api.Event{whole(at(t, 1, 5, 2))}}, {events: []api.Event{plus(1, 6)}, hang: true}}},
			view:  "1.6 3", asked: "x, x 1.5",
		},
		{
			name:  "and from the last ping, at another controller",
			plays: map[string][]play{"x": {{events: []api.Event{whole(at(t, 1, 5, 2)), pinged(1, 8)}}, {err: behind}}, "y": {{events: []api.Event{plus(1, 9)}, hang: true}}},
			view:  "1.9 3", asked: "x, x 1.8, y 1.8",
		},
		{
			name:  "or begins anew, when the controller does not know how",
			plays: map[string][]play{"x": {{events: []api.Event{whole(at(t, 1, 5, 2))}}, {events: []api.Event{whole(at(t, 1, 50, 4))}, hang: true}}},
			view:  "1.50 4", asked: "x, x 1.5",
		},
		{
			name: "an older snapshot is not taken",
			plays: map[string][]play{
				"x": {{events: []api.Event{whole(at(t, 1, 10, 2))}}, {err: behind}},
				"y": {{events: []api.Event{whole(at(t, 1, 9, 4))}, hang: true}},
				"z": {{events: []api.Event{plus(1, 11)}, hang: true}},
			},
			view: "1.11 3",
		},
		{
			name:  "a stream that goes back is given up",
			plays: map[string][]play{"x": {{events: []api.Event{whole(at(t, 1, 10, 2)), plus(1, 9)}, hang: true}}, "y": {{events: []api.Event{plus(1, 10), plus(1, 11)}, hang: true}}},
			view:  "1.11 3", asked: "x, y 1.10",
		},
		{
			name:  "a newer epoch counts more than revisions",
			plays: map[string][]play{"x": {{events: []api.Event{whole(at(t, 1, 1000, 2))}}, {events: []api.Event{whole(at(t, 7, 3, 4))}, hang: true}}},
			view:  "7.3 4", asked: "x, x 1.1000",
		},
		{
			name:  "and there is no way back from it",
			plays: map[string][]play{"x": {{events: []api.Event{whole(at(t, 7, 3, 4))}}, {events: []api.Event{whole(at(t, 1, 1000, 2))}, hang: true}}},
			view:  "7.3 4", says: "its state is older than what this node has seen: revision 1.1000, and this node has 7.3",
		},
		{
			name:  "a change never leads from one epoch to another",
			plays: map[string][]play{"x": {{events: []api.Event{whole(at(t, 1, 5, 2))}}, {events: []api.Event{plus(2, 6)}, hang: true}}},
			view:  "1.5 2", says: "a change to revision 2.6 of a view of revision 1.5",
		},
		{
			name:  "a controller that hangs is known by its silence",
			plays: map[string][]play{"x": {{events: []api.Event{whole(at(t, 1, 5, 2))}, hang: true}}, "y": {{events: []api.Event{plus(1, 6), pinged(1, 6)}, hang: true}}},
			view:  "1.6 3", asked: "x, y 1.5",
		},
		{
			name:  "one that cannot do it now is passed over",
			plays: map[string][]play{"x": {{err: errors.New("it has not read the state yet")}}, "y": {{events: []api.Event{whole(at(t, 1, 5, 2))}, hang: true}}},
			view:  "1.5 2", asked: "x, y",
		},
		{
			name: "all are behind: the view stays, and it is said",
			plays: map[string][]play{
				"x": {{events: []api.Event{whole(at(t, 1, 10, 2))}}, {err: behind}},
				"y": {{events: []api.Event{whole(at(t, 1, 9, 4))}, hang: true}},
			},
			view: "1.10 2", says: "no controller gives a view: ",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, tt.plays)
			f, p, _ := s.start(slices.Sorted(func(yield func(string) bool) {
				for name := range tt.plays {
					if !yield(name) {
						return
					}
				}
			})...)
			eventually(t, 10*time.Second, "view "+tt.view+", problem "+tt.says, func() bool {
				v, said := f.View(), strings.Join(p.list(), "; ")
				return v != nil && fmt.Sprint(v.Revision, " ", len(v.Hosts)) == tt.view && (tt.says == "") == (said == "") && strings.Contains(said, tt.says)
			})
			// Chance decides in which order the others are asked, and how often all are.
			if got := s.told(); tt.asked != "" && strings.Join(got[:min(len(got), strings.Count(tt.asked, ",")+1)], ", ") != tt.asked {
				t.Errorf("asked: %s\nwant:  %s", strings.Join(got, ", "), tt.asked)
			}
			if tt.says != "" {
				// It stays so.
				before := len(s.told())
				eventually(t, 10*time.Second, "more attempts", func() bool { return len(s.told()) > before+3 })
				if v := f.View(); fmt.Sprint(v.Revision, " ", len(v.Hosts)) != tt.view {
					t.Errorf("view %s with %d hosts", v.Revision, len(v.Hosts))
				}
			}
		})
	}
}

// Named after the outage: addresses of machines that had moved were still taken from
// an old state. Here a controller that lags behind the others, and one that was put
// back to an older state, offer what was; the node, restarted in between, never goes
// back, and shows that it waits.
func TestFly202606NoViewGoesBack(t *testing.T) {
	t.Parallel()
	moved, before := at(t, 1, 100, 2), at(t, 1, 90, 2)
	machine := mesh.Machine{Org: "o", ID: "m", Host: "h001", Generation: 2}
	moved.Machines = []mesh.Machine{machine}
	machine.Host, machine.Generation = "h000", 1
	before.Machines = []mesh.Machine{machine}
	s := newStage(t, map[string][]play{
		"x": {{events: []api.Event{whole(moved)}}, {events: []api.Event{whole(before), pinged(1, 90)}, hang: true}},
		"y": {{events: []api.Event{whole(before)}, hang: true}},
	})
	for _, round := range []string{"started", "restarted"} {
		f, p, end := s.start("x", "y")
		eventually(t, 10*time.Second, round+": the view, and why it is not newer", func() bool {
			said := strings.Join(p.list(), "; ")
			return f.View() != nil && strings.Contains(said, "no controller gives a view: ") && strings.Count(said, "revision 1.90, and this node has 1.100") == 2
		})
		if m := f.View().Machines[0]; m.Host != "h001" || f.View().Revision.Revision != 100 || f.Contact().connected {
			t.Errorf("%s: machine on %s, revision %s, contact %+v", round, m.Host, f.View().Revision, f.Contact())
		}
		end()
	}
}

// A restart goes on from the view on disk, and tries first the controller that
// worked last; the list was learnt from the view.
func TestRestartGoesOn(t *testing.T) {
	t.Parallel()
	v := at(t, 1, 5, 2)
	s := newStage(t, map[string][]play{
		"x": {{events: []api.Event{whole(v)}, hang: true}},
		"y": {{events: []api.Event{plus(1, 6)}, hang: true}},
		"z": {{err: errors.New("not now")}},
	})
	v.Controllers = []string{s.url["x"], s.url["y"], s.url["z"]}
	f, _, end := s.start("x")
	eventually(t, 10*time.Second, "a view of y: x falls silent", func() bool { return f.View() != nil && f.View().Revision.Revision == 6 })
	f.awaitKept(t.Context(), func(v *mesh.View) bool { return v.Revision.Revision == 6 })
	end()
	before := s.told()
	if want := "x"; before[0] != want || !slices.Contains(before, "y 1.5") {
		t.Errorf("asked %v", before)
	}

	s.mu.Lock()
	s.plays["y"] = []play{{events: []api.Event{{Delta: &mesh.Delta{Revision: mesh.Revision{Epoch: 1, Revision: 9}, Removed: []string{"hosts/h000"}}}}, hang: true}}
	s.mu.Unlock()
	f, _, end = s.start() // nothing in its configuration
	if got := f.View(); got == nil || got.Revision.Revision != 6 || !f.Contact().fromCache {
		t.Errorf("from disk: %+v", got)
	}
	eventually(t, 10*time.Second, "the change since", func() bool { return f.View().Revision.Revision == 9 && len(f.View().Hosts) == 2 })
	if got := s.told()[len(before)]; got != "y 1.6" {
		t.Errorf("asked %s first", got)
	}
	if got := f.streams.servers(); got[0] != s.url["y"] || len(got) != 3 {
		t.Errorf("controllers: %v", got)
	}
	end()
}

func TestInTurn(t *testing.T) {
	list := []string{"a", "b", "c", "d"}
	for _, tt := range []struct {
		failed map[string]int
		want   []string // orders
	}{
		{nil, []string{"abcd", "abdc", "acbd", "acdb", "adbc", "adcb"}},
		{map[string]int{"c": 3}, []string{"abdc", "adbc"}},
		{map[string]int{"a": 1}, []string{"bcda", "bdca", "cbda", "cdba", "dbca", "dcba"}},
		{map[string]int{"a": 7, "b": 5}, []string{"cdba", "dcba"}},
		{map[string]int{"a": 2, "b": 4, "c": 1, "d": 3}, []string{"cadb"}},
	} {
		seen := map[string]bool{}
		for range 300 {
			seen[strings.Join(inTurn(list, tt.failed), "")] = true
		}
		if diff := cmp.Diff(tt.want, slices.Sorted(maps.Keys(seen))); diff != "" {
			t.Errorf("failed %v (-want +got):\n%s", tt.failed, diff)
		}
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "d"}, list); diff != "" {
		t.Errorf("the list was changed: %s", diff)
	}
	if got := inTurn(nil, nil); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}
