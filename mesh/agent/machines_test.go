package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers"
)

// registry is the controllers as machines see them: records by key.
type registry struct {
	mu      sync.Mutex
	records map[string]mesh.Machine
	down    bool
	mute    int           // answers that get lost
	held    chan struct{} // closed when requests may go on; nil: they may
	epoch   uint32
	// addresses that are kept for a name
	reserved map[string]netip.Prefix
	asked    []string
	slot     uint16
	t        testing.TB
}

func (r *registry) request(_ context.Context, method, path string, in, out any) error {
	if r.held != nil {
		<-r.held
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	parts := strings.Split(strings.TrimPrefix(path, "/v1/orgs/"), "/")
	r.asked = append(r.asked, method+" "+strings.Join(parts, "/"))
	if r.down {
		return api.ErrUnreachable
	}
	key := parts[0] + "/"
	if len(parts) > 2 {
		key += parts[2]
	}
	old, there := r.records[key]
	switch {
	case len(parts) > 3 && !there, method == http.MethodDelete && !there:
		return api.ErrNotFound
	case len(parts) > 3 && method == http.MethodPut:
		return r.commitLocked(key, old, in.(api.MoveMachine), out.(*api.MachineInfo))
	case len(parts) > 3 && old.Next != "a":
		return api.ErrConflict
	case len(parts) > 3:
		old.Next = ""
		r.records[key] = old
		return nil
	case method == http.MethodDelete:
		delete(r.records, key)
		return nil
	case method == http.MethodGet && !there:
		return api.ErrNotFound
	case method == http.MethodGet:
		out.(*api.MachineInfo).Machine = old
		return nil
	}
	return r.createLocked(parts[0], in.(api.CreateMachine), out.(*api.MachineInfo))
}

func (r *registry) commitLocked(key string, m mesh.Machine, q api.MoveMachine, out *api.MachineInfo) error {
	switch {
	case m.Host == "a" && m.Generation == q.Generation+1: // said before
	case m.Next != "a" || m.Generation != q.Generation:
		return api.ErrConflict
	default:
		m.Host, m.Next, m.Generation = "a", "", m.Generation+1
		r.records[key] = m
	}
	*out = api.MachineInfo{Machine: m}
	return r.answerLocked()
}

func (r *registry) createLocked(org string, q api.CreateMachine, out *api.MachineInfo) error {
	key := org + "/" + q.ID
	m, there := r.records[key]
	for at, other := range r.records {
		if q.Endpoint.IsValid() && other.Endpoint == q.Endpoint && !(at == key && q.Move) {
			return api.ErrConflict
		}
	}
	switch {
	case there && m.Host == "a": // said before
	case there && q.Move:
		m.Next = "a"
	case there:
		return api.ErrExists
	default:
		r.slot++
		m = mesh.Machine{
			Org: org, ID: q.ID, App: q.App, Group: q.Group, Meta: q.Meta, Host: "a", State: mesh.StateStarted,
			Stable:   q.Stable == nil && q.ID != "" || q.Stable != nil && *q.Stable,
			Endpoint: testPlan(r.t).Endpoint(1, mesh.Host{Number: 1}.Position(), r.slot), Created: time.Now().UTC(),
		}
		if kept, there := r.reserved[key]; there {
			m.Endpoint = kept
		}
		if q.Endpoint.IsValid() {
			m.Endpoint = q.Endpoint
		}
	}
	r.records[key] = m
	*out = api.MachineInfo{Machine: m}
	return r.answerLocked()
}

// answerLocked loses an answer if it is to.
func (r *registry) answerLocked() error {
	if r.mute > 0 {
		r.mute--
		return api.ErrUnreachable
	}
	return nil
}

func (r *registry) set(change func()) { r.mu.Lock(); defer r.mu.Unlock(); change() }

// view is what the host would be told.
func (r *registry) view() *mesh.View {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := &mesh.View{Revision: mesh.Revision{Epoch: r.epoch}, Plan: testPlan(r.t), Self: mesh.Node{Kind: mesh.KindHost, Name: "a"}, Host: &mesh.Host{Name: "a", Number: 1}, Orgs: []mesh.Org{{Name: "o", Network: 1}}}
	for _, m := range r.records {
		v.Machines = append(v.Machines, m)
	}
	sortView(v)
	return v
}

func newMachines(t *testing.T, dir string) (*machines, *registry) {
	t.Helper()
	r := &registry{records: map[string]mesh.Machine{}, t: t}
	return againMachines(t, dir, r), r
}

// againMachines is the same host after a restart of the agent.
func againMachines(t *testing.T, dir string, r *registry) *machines {
	t.Helper()
	log, _ := newLog(t)
	m, err := openMachines(&machines{host: "a", dir: dir, request: r.request, reclaim: 10 * time.Second, wake: func() {}, log: log})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func web(id string) local.AttachRequest { return local.AttachRequest{Org: "o", App: "web", ID: id} }

// work runs the worker that removes records, until the test says so.
func work(t *testing.T, m *machines) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.run(ctx, Timing{}.withDefaults()) }()
	return func() { cancel(); <-done }
}

func ids(v *mesh.View) string {
	var out []string
	for _, m := range v.Machines {
		out = append(out, m.ID)
	}
	return strings.Join(out, " ")
}

// A machine that ended is out of the names at once, and its record is removed as
// soon as a controller can be reached, also by the next agent.
func TestGoneWhenItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		m, r := newMachines(t, dir)
		s, err := m.enter(t.Context(), web("w"), 1, r.view)
		if err != nil {
			t.Fatal(err)
		}
		v := r.view()
		m.plan(v, nil, contact{})
		if ids(m.mask(v)) != "w" {
			t.Fatal("masked while it lives")
		}
		r.set(func() { r.down = true })
		end := work(t, m)
		m.leaves(s)
		if ids(m.mask(v)) != "" {
			t.Error("named although it ended")
		}
		letPass(time.Minute)
		end()
		if len(r.records) != 1 {
			t.Fatal("removed without a controller")
		}
		m = againMachines(t, dir, r)
		if ids(m.mask(v)) != "" {
			t.Error("named again after a restart")
		}
		end = work(t, m)
		r.set(func() { r.down = false })
		letPass(time.Minute)
		if len(r.records) != 0 {
			t.Error("the record stays")
		}
		// Until the view shows it no more it is masked, then forgotten.
		if m.plan(v, nil, contact{}); ids(m.mask(v)) != "" {
			t.Error("named again when the record was removed and the view not yet told")
		}
		if m.plan(r.view(), nil, contact{}); len(m.leaving) != 0 {
			t.Errorf("not forgotten: %v", m.leaving)
		}
		end()
	})
}

// A record of this host with neither process nor link is removed after a while;
// one whose link is there is a machine that lives.
func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, r := newMachines(t, t.TempDir())
		for _, id := range []string{"link", "nothing", "back"} {
			if err := r.request(t.Context(), http.MethodPost, "/v1/orgs/o/machines", api.CreateMachine{ID: id, App: "web"}, &api.MachineInfo{}); err != nil {
				t.Fatal(err)
			}
		}
		elsewhere := mesh.Machine{Org: "o", ID: "far", App: "web", Host: "b"}
		r.records["o/far"] = elsewhere
		found := []attach.Found{{Link: attach.LinkName("o", "link")}}
		in, leftover := m.plan(r.view(), found, contact{})
		if len(in) != 1 || in[0].Link != found[0].Link || len(leftover) != 0 {
			t.Errorf("in %v, left over %v", in, leftover)
		}
		letPass(5 * time.Second)
		if _, err := m.enter(t.Context(), web("back"), 1, r.view); err != nil {
			t.Fatal(err)
		}
		m.plan(r.view(), found, contact{})
		if len(m.leaving) != 0 {
			t.Errorf("swept too early: %v", m.leaving)
		}
		letPass(6 * time.Second)
		m.plan(r.view(), found, contact{})
		end := work(t, m)
		letPass(time.Second)
		end()
		var left []string
		for key := range r.records {
			left = append(left, key)
		}
		slices.Sort(left)
		if diff := cmp.Diff([]string{"o/back", "o/far", "o/link"}, left); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
	})
}

// A machine whose process comes back to a new agent is not cut off while the controllers
// are asked about it, neither by a whole pass nor by one over what changed.
func TestNotCutOffWhileRegistered(t *testing.T) {
	for _, tt := range []struct {
		name string
		view func(r *registry)
		in   bool
	}{
		{"known", func(*registry) {}, true},
		{"to controllers of before as well", func(r *registry) { r.epoch++; delete(r.records, "o/w") }, true},
		{"removed", func(r *registry) { delete(r.records, "o/w") }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, r := newMachines(t, t.TempDir())
				w := r.on("a", "w", 1)
				found := []attach.Found{{Link: attach.LinkName("o", "w"), Endpoint: w.Endpoint}}
				m.plan(r.view(), found, contact{fromCache: true})
				tt.view(r)
				v := r.view()
				r.held = make(chan struct{})
				other := web("w")
				other.Group = "blue" // so that the controllers have to be asked
				entered := make(chan error)
				go func() { _, err := m.enter(t.Context(), other, 1, func() *mesh.View { return v }); entered <- err }()
				synctest.Wait()
				var want []peers.Attachment
				if tt.in {
					want = []peers.Attachment{{Link: found[0].Link, Endpoint: w.Endpoint}}
				}
				in, leftover := m.plan(v, found, contact{})
				if !slices.Equal(in, want) || len(leftover) != 0 {
					t.Errorf("a whole pass: in the firewall %v, want %v, left over %v", in, want, leftover)
				}
				s := shift{
					machines: m, want: wantsOf(v, wgtypes.Key{}), found: map[string]bool{found[0].Link: true}, current: true, now: time.Now(), shown: map[string]mesh.Machine{},
					in: func(string) (a peers.Attachment, in bool) {
						return peers.Attachment{Link: found[0].Link, Endpoint: w.Endpoint}, true
					},
				}
				// Where the view does not know it a whole pass has to tell.
				if known := len(v.Machines) > 0; s.decide(map[string]bool{"o/w": true}) != known || len(s.before)+len(s.after) > 0 {
					t.Errorf("the firewall loses %v and gets %v", s.before, s.after)
				}
				close(r.held)
				if err := <-entered; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A machine whose agent was restarted gets its record back, also without any
// controller; with other facts under its name it is made anew.
func TestReclaim(t *testing.T) {
	m, r := newMachines(t, t.TempDir())
	first, err := m.enter(t.Context(), web("w"), 1, r.view)
	if err != nil {
		t.Fatal(err)
	}
	m = againMachines(t, t.TempDir(), r)
	r.down = true
	again, err := m.enter(t.Context(), web("w"), 1, r.view)
	if err != nil || !again.record.Created.Equal(first.record.Created) || again.record.Endpoint != first.record.Endpoint {
		t.Fatalf("again: %+v, %v", again, err)
	}
	m = againMachines(t, t.TempDir(), r)
	other := web("w")
	other.Group = "g"
	if _, err := m.enter(t.Context(), other, 1, r.view); !errors.Is(err, api.ErrUnreachable) || mesh.HintOf(err) == "" {
		t.Fatalf("other facts without a controller: %v", err)
	}
	r.down = false
	anew, err := m.enter(t.Context(), other, 1, r.view)
	if err != nil || anew.record.Endpoint == first.record.Endpoint || anew.record.Group != "g" {
		t.Fatalf("other facts: %+v, %v", anew, err)
	}
}

// Ended while no controller could be reached, and started again under its name:
// the record that was to go is used again, and not removed under its user.
func TestReclaimWhatWasToGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, r := newMachines(t, t.TempDir())
		s, err := m.enter(t.Context(), web("w"), 1, r.view)
		if err != nil {
			t.Fatal(err)
		}
		r.set(func() { r.down = true })
		end := work(t, m)
		m.leaves(s)
		letPass(time.Minute)
		if _, err := m.enter(t.Context(), web("w"), 2, r.view); err != nil {
			t.Fatal(err)
		}
		r.set(func() { r.down = false })
		letPass(time.Minute)
		end()
		v := r.view()
		if len(r.records) != 1 || ids(m.mask(v)) != "w" {
			t.Errorf("records %v, names %q", r.records, ids(m.mask(v)))
		}
	})
}

// While somebody takes a name over, its old record is left to him.
func TestNothingIsRemovedUnderAUser(t *testing.T) {
	m, _ := newMachines(t, t.TempDir())
	m.leaving["o/w"] = leave{Org: "o", ID: "w"}
	if ok, err := m.tryReserve(&stay{key: "o/w"}); !ok || err != nil {
		t.Fatalf("reserve: %v, %v", ok, err)
	}
	if l, any := m.begin(); any {
		t.Errorf("removes %s under its user", l.key())
	}
	m.leaving["o/x"] = leave{Org: "o", ID: "x"}
	if l, any := m.begin(); !any || l.ID != "x" {
		t.Errorf("begins with %+v, %v", l, any)
	}
	// And while it is being removed nobody takes it over.
	if ok, err := m.tryReserve(&stay{key: "o/x"}); ok || err != nil {
		t.Errorf("taken over in the middle: %v, %v", ok, err)
	}
}

// Of two processes with one name the second is refused, unless the first is just
// ending.
func TestOneNameOneMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, r := newMachines(t, t.TempDir())
		s, err := m.enter(t.Context(), web("w"), 1, r.view)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.enter(t.Context(), web("w"), 2, r.view); !errors.Is(err, api.ErrConflict) {
			t.Errorf("a second one: %v", err)
		}
		end := work(t, m)
		time.AfterFunc(time.Second, func() { m.leaves(s) })
		s, err = m.enter(t.Context(), web("w"), 2, r.view)
		if err != nil {
			t.Fatalf("after the first: %v", err)
		}
		if m.stays["o/w"] != s {
			t.Error("it is not the one that has the name")
		}
		end()
	})
}

// Removed by an operator: the machine is told, its namespace does not get it back,
// a new one does.
func TestRemovedByAnOperator(t *testing.T) {
	m, r := newMachines(t, t.TempDir())
	s, err := m.enter(t.Context(), web("w"), 7, r.view)
	if err != nil {
		t.Fatal(err)
	}
	m.plan(&mesh.View{Plan: testPlan(t)}, nil, contact{}) // before the view knows it
	if m.stays["o/w"] == nil {
		t.Fatal("taken for removed before it was ever seen")
	}
	m.plan(r.view(), nil, contact{})
	delete(r.records, "o/w")
	found := []attach.Found{{Link: s.link}}
	m.plan(r.view(), found, contact{fromCache: true})
	if m.stays["o/w"] == nil {
		t.Fatal("removed on the word of a cache")
	}
	in, leftover := m.plan(r.view(), found, contact{})
	select {
	case <-s.over:
	default:
		t.Error("the machine was not told")
	}
	if len(in) != 0 || !slices.Equal(leftover, []string{s.link}) {
		t.Errorf("in %v, left over %v", in, leftover)
	}
	if m.leaves(s); len(m.leaving) != 0 {
		t.Error("a record that is gone is to be removed")
	}
	if _, err := m.enter(t.Context(), web("w"), 7, r.view); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("the same machine again: %v", err)
	}
	if _, err := m.enter(t.Context(), web("w"), 8, r.view); err != nil {
		t.Errorf("a new one of that name: %v", err)
	}
}

// A registration that fails leaves no trace.
func TestEnterFails(t *testing.T) {
	m, r := newMachines(t, t.TempDir())
	r.down = true
	for range 2 { // the second would find the name taken
		if _, err := m.enter(t.Context(), web("w"), 1, r.view); !errors.Is(err, api.ErrUnreachable) {
			t.Fatalf("got %v", err)
		}
	}
	if len(m.stays) != 0 || len(m.leaving) != 0 {
		t.Errorf("left: %v %v", m.stays, m.leaving)
	}
}

// Whatever happens in whatever order: a machine with a process is named and its
// record is never removed; and when all have ended and the controllers answer,
// nothing is left of them.
func TestMachinesProperties(t *testing.T) {
	dir := t.TempDir()
	type step struct{ event, id string }
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{
				rapid.SampledFrom([]string{"enter", "leave", "down", "up", "plan", "time"}).Draw(rt, "event"),
				rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "id"),
			}
		}), 1, 25).Draw(rt, "steps")
		wrong := ""
		synctest.Test(t, func(t *testing.T) {
			r := &registry{records: map[string]mesh.Machine{}, t: t}
			m := againMachines(t, dir, r)
			m.leaving = map[string]leave{}
			end := work(t, m)
			defer end()
			alive := map[string]*stay{}
			for _, s := range steps {
				switch s.event {
				case "enter":
					if alive[s.id] != nil {
						break
					}
					entered, err := m.enter(t.Context(), web(s.id), 1, r.view)
					if err == nil {
						alive[s.id] = entered
					} else if !errors.Is(err, api.ErrUnreachable) {
						wrong = "enter: " + err.Error()
						return
					}
				case "leave":
					if alive[s.id] != nil {
						m.leaves(alive[s.id])
						delete(alive, s.id)
					}
				case "down", "up":
					r.set(func() { r.down = s.event == "down" })
				case "plan":
					m.plan(r.view(), nil, contact{})
				case "time":
					letPass(time.Minute)
				}
				names := ids(m.mask(r.view()))
				for id := range alive {
					if !strings.Contains(names, id) {
						wrong = id + " lives and is not named"
						return
					}
				}
			}
			for _, s := range alive {
				m.leaves(s)
			}
			r.set(func() { r.down = false })
			letPass(time.Minute)
			if m.plan(r.view(), nil, contact{}); len(r.records) != 0 || len(m.leaving) != 0 {
				wrong = fmt.Sprintf("left: %v, %v", r.records, m.leaving)
			}
		})
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

func TestCheckAttach(t *testing.T) {
	for _, tt := range []struct {
		r  local.AttachRequest
		ok bool
	}{
		{web("w"), true},
		{web(""), true},
		{local.AttachRequest{App: "web"}, false},
		{local.AttachRequest{Org: "o"}, false},
		{local.AttachRequest{Org: "o", App: "google"}, false},
		{local.AttachRequest{Org: "o/../x", App: "web"}, false},
		{local.AttachRequest{Org: "o", App: "web", ID: "UPPER"}, false},
	} {
		if err := checkAttach(tt.r); (err == nil) != tt.ok || err != nil && !errors.Is(err, api.ErrInvalid) {
			t.Errorf("%+v: %v, want ok %v", tt.r, err, tt.ok)
		}
	}
}
