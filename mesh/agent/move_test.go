package agent

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers"
)

// on puts a stable machine of another host into the registry.
func (r *registry) on(host, id string, generation uint64) mesh.Machine {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slot++
	m := mesh.Machine{
		Org: "o", ID: id, App: "web", Host: host, Stable: true, Generation: generation, State: mesh.StateStarted, Created: time.Now().UTC(),
		Endpoint: testPlan(r.t).Endpoint(1, mesh.Host{Number: 2}.Position(), r.slot),
	}
	r.records["o/"+id] = m
	return m
}

func moving(id string) local.AttachRequest {
	return local.AttachRequest{Org: "o", App: "web", ID: id, Move: true}
}

// A machine that is prepared to come is let through the firewall, is not this
// host's yet, and is when the move is complete; its record is removed when it ends.
func TestMoveHere(t *testing.T) {
	m, r := newMachines(t, t.TempDir())
	there := r.on("b", "w", 1)
	if _, err := m.enter(t.Context(), web("w"), 1, r.view); !errors.Is(err, api.ErrExists) {
		t.Fatalf("without asking for it: %v", err)
	}
	s, err := m.enter(t.Context(), moving("w"), 1, r.view)
	if err != nil || !s.coming || s.record.Host != "b" || s.record.Next != "a" {
		t.Fatalf("prepared: %+v, %v", s, err)
	}
	in, _ := m.plan(r.view(), nil, contact{})
	want := []peers.Attachment{{Link: attach.LinkName("o", "w"), Endpoint: there.Endpoint}}
	if !slices.Equal(in, want) {
		t.Fatalf("in the firewall: %v, want %v", in, want)
	}
	r.mute = 1 // the answer is lost: the same request again is the same move
	if _, err := m.arrive(t.Context(), s.record); !errors.Is(err, api.ErrUnreachable) {
		t.Fatalf("a lost answer: %v", err)
	}
	record, err := m.arrive(t.Context(), s.record)
	if err != nil || record.Host != "a" || record.Generation != 2 || record.Endpoint != there.Endpoint {
		t.Fatalf("moved: %+v, %v", record, err)
	}
	late := r.view()
	late.Machines = []mesh.Machine{s.record}
	m.arrived(s, record)
	// A view from before the move says nothing against it.
	if in, _ := m.plan(late, nil, contact{}); !slices.Equal(in, want) || s.fate != fateStays {
		t.Fatalf("with a late view: %v, fate %d", in, s.fate)
	}
	if in, _ := m.plan(r.view(), nil, contact{}); !slices.Equal(in, want) || !s.seen {
		t.Fatalf("with the view: %v, seen %v", in, s.seen)
	}
	m.leaves(s)
	if l, any := m.begin(); !any || l.Off || l.ID != "w" {
		t.Errorf("it leaves: %+v, %v", l, any)
	}
}

// A process that goes away before the move is complete calls it off; so does the
// agent that comes after one that was killed.
func TestMoveIsCalledOff(t *testing.T) {
	for _, killed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			m, r := newMachines(t, dir)
			r.on("b", "w", 1)
			s, err := m.enter(t.Context(), moving("w"), 1, r.view)
			if err != nil {
				t.Fatal(err)
			}
			if killed {
				m = againMachines(t, dir, r)
				m.plan(r.view(), nil, contact{fromCache: true})
				letPass(11 * time.Second)
				m.plan(r.view(), nil, contact{})
			} else {
				m.leaves(s)
			}
			end := work(t, m)
			letPass(time.Second)
			end()
			if w := r.records["o/w"]; w.Next != "" || w.Host != "b" {
				t.Errorf("killed %v: the record is %+v", killed, w)
			}
			if m.plan(r.view(), nil, contact{}); len(m.leaving) != 0 {
				t.Errorf("killed %v: not forgotten: %v", killed, m.leaving)
			}
			if s, err = m.enter(t.Context(), moving("w"), 1, r.view); err != nil || !s.coming {
				t.Errorf("killed %v: another try: %v", killed, err)
			}
		})
	}
}

// The other one ends while its successor is prepared: there is nothing to move, and
// the name is registered here.
func TestMoveOfOneThatEnds(t *testing.T) {
	m, r := newMachines(t, t.TempDir())
	old := r.on("b", "w", 1)
	s, err := m.enter(t.Context(), moving("w"), 1, r.view)
	if err != nil {
		t.Fatal(err)
	}
	m.plan(r.view(), nil, contact{})
	delete(r.records, "o/w")
	if in, _ := m.plan(r.view(), nil, contact{}); len(in) != 1 || s.fate != fateStays {
		t.Fatalf("given up: %v, fate %d", in, s.fate)
	}
	if _, err := m.arrive(t.Context(), s.record); !errors.Is(err, api.ErrConflict) {
		t.Errorf("with another address: %v", err)
	}
	delete(r.records, "o/w")
	r.reserved = map[string]netip.Prefix{"o/w": old.Endpoint}
	if got, err := m.arrive(t.Context(), s.record); err != nil || got.Host != "a" || got.Endpoint != old.Endpoint {
		t.Errorf("registered: %+v, %v", got, err)
	}
}

// A machine that another host took over: what is under way is still let through,
// its record is not this host's to remove, and its process does not get it back.
func TestMovedAway(t *testing.T) {
	m, r := newMachines(t, t.TempDir())
	s, err := m.enter(t.Context(), web("w"), 7, r.view)
	if err != nil {
		t.Fatal(err)
	}
	m.plan(r.view(), nil, contact{})
	record := r.records["o/w"]
	record.Next = "b"
	r.records["o/w"] = record
	m.plan(r.view(), nil, contact{})
	record.Host, record.Next, record.Generation = "b", "", 1
	r.records["o/w"] = record
	for what, v := range map[string]*mesh.View{"in the view": r.view(), "with its org": {Plan: testPlan(t)}} {
		s.fate, s.over = fateStays, make(chan struct{})
		in, _ := m.plan(v, []attach.Found{{Link: s.link}}, contact{})
		select {
		case <-s.over:
		default:
			t.Fatalf("%s: not told", what)
		}
		if s.fate != fateMoved || s.host != "b" || len(in) != 1 {
			t.Errorf("%s: fate %d on %q, in the firewall %v", what, s.fate, s.host, in)
		}
		if got := m.needs(); !slices.Equal(got, []string{"o"}) {
			t.Errorf("%s: needs %v", what, got)
		}
	}
	m.leaves(s)
	if _, any := m.begin(); any || len(m.stays) != 0 {
		t.Error("the record of another host is to be removed")
	}
	in, leftover := m.plan(r.view(), []attach.Found{{Link: s.link}}, contact{})
	if len(in) != 0 || !slices.Equal(leftover, []string{s.link}) {
		t.Errorf("after its end: %v, left over %v", in, leftover)
	}
	back := web("w")
	back.Held = &local.Held{Endpoint: record.Endpoint}
	var e *api.Error
	if _, err := m.enter(t.Context(), back, 7, r.view); !errors.As(err, &e) || e.Code != local.OverMoved {
		t.Errorf("its process comes back: %v", err)
	}
}

// A process that comes back to an agent that knows nothing of it says what it held.
func TestComeBack(t *testing.T) {
	const epoch = 3
	rev := func(epoch uint32, n int64) mesh.Revision { return mesh.Revision{Epoch: epoch, Revision: n} }
	for _, tt := range []struct {
		name            string
		there           string // host of the record; "": none
		held            mesh.Revision
		view            mesh.Revision
		cache           bool
		conflict, swept bool
		code            string // of the error
		asked           string
	}{
		{name: "it is there", there: "a", held: rev(epoch, 5), view: rev(epoch, 9)},
		{name: "it is there, says our disk", there: "a", held: rev(epoch, 5), view: rev(epoch, 4), cache: true},
		{name: "removed", held: rev(epoch, 5), view: rev(epoch, 9), code: local.OverRemoved},
		{name: "swept by ourselves", swept: true, held: rev(epoch, 5), view: rev(epoch, 9), asked: "POST o/machines"},
		{name: "no controller has spoken", held: rev(epoch, 5), view: rev(epoch, 9), cache: true, code: "unavailable"},
		{name: "the view is older than that", held: rev(epoch, 5), view: rev(epoch, 4), code: "unavailable"},
		{name: "moved", there: "b", held: rev(epoch, 5), view: rev(epoch, 9), code: local.OverMoved},
		{name: "restored", held: rev(epoch-1, 5), view: rev(epoch, 1), asked: "POST o/machines"},
		{name: "restored, and another one has it", held: rev(epoch-1, 5), view: rev(epoch, 1), conflict: true, code: local.OverFenced, asked: "POST o/machines"},
	} {
		m, r := newMachines(t, t.TempDir())
		m.contact = func() contact { return contact{fromCache: tt.cache} }
		w := r.on("b", "w", 1)
		switch tt.there {
		case "":
			delete(r.records, "o/w")
		default:
			w.Host = tt.there
			r.records["o/w"] = w
		}
		if tt.conflict {
			r.records["o/x"] = mesh.Machine{Org: "o", ID: "x", Host: "b", Endpoint: w.Endpoint}
		}
		if tt.swept {
			m.swept["o/w"] = true
		}
		v := r.view()
		v.Revision = tt.view
		q := web("w")
		q.Held = &local.Held{Endpoint: w.Endpoint, Generation: 1, Revision: tt.held}
		s, err := m.enter(t.Context(), q, 1, func() *mesh.View { return v })
		code := ""
		if e := (&api.Error{}); errors.As(err, &e) {
			code = e.Code
		} else if err != nil {
			code = err.Error()
		}
		if asked := strings.Join(r.asked, ", "); code != tt.code || asked != tt.asked {
			t.Errorf("%s: error %q after asking %q, want %q after %q", tt.name, code, asked, tt.code, tt.asked)
		}
		if err == nil && !tt.swept && s.record.Endpoint != w.Endpoint {
			t.Errorf("%s: endpoint %s, want %s", tt.name, s.record.Endpoint, w.Endpoint)
		}
	}
}

// A request whose answer was lost is the same request when it is made again, also
// without a name.
func TestLostAnswer(t *testing.T) {
	m, r := newMachines(t, t.TempDir())
	r.mute = 1
	named := web("w")
	if _, err := m.enter(t.Context(), named, 1, r.view); !errors.Is(err, api.ErrUnreachable) {
		t.Fatalf("a lost answer: %v", err)
	}
	if s, err := m.enter(t.Context(), named, 1, func() *mesh.View { return nil }); err != nil || len(r.records) != 1 {
		t.Fatalf("again: %+v, %v; records %v", s, err, r.records)
	}
	s, err := m.enter(t.Context(), web(""), 1, r.view)
	if err != nil || len(s.record.ID) != 14 || s.record.Stable {
		t.Fatalf("without a name: %+v, %v", s, err)
	}
	if other, err := m.enter(t.Context(), web(""), 1, r.view); err != nil || other.record.ID == s.record.ID {
		t.Errorf("another one: %+v, %v", other, err)
	}
}

// Only the process that attached a machine says that it can serve.
func TestCanServe(t *testing.T) {
	m, r := newMachines(t, t.TempDir())
	s, err := m.enter(t.Context(), web("w"), 1, r.view)
	if err != nil {
		t.Fatal(err)
	}
	m.belongs(s, 7)
	if m.canServe("o/w", 8) || m.canServe("o/x", 7) || s.can {
		t.Error("said by another process")
	}
	if !m.canServe("o/w", 7) || !m.canServe("o/w", 7) || !s.can {
		t.Error("not said by its own")
	}
}

func TestAllAnswer(t *testing.T) {
	v := &mesh.View{Hosts: []mesh.ViewHost{
		{Name: "b", Orgs: []string{"o"}, Present: true}, {Name: "c", Orgs: []string{"p"}, Present: true}, {Name: "d", Orgs: []string{"o"}},
	}}
	for _, tt := range []struct {
		answers string
		want    bool
	}{{"", false}, {"c", false}, {"b", true}} {
		if got := allAnswer(v, "o", func(h string) bool { return h == tt.answers }); got != tt.want {
			t.Errorf("only %q answers: %v", tt.answers, got)
		}
	}
}

// What a device has queued for a peer is still sent when the peer goes: it loses its
// prefixes first, and what another peer takes over is not taken away from that one.
func TestEmptied(t *testing.T) {
	v := sampleView(t)
	v.Machines = append(v.Machines, mesh.Machine{Org: "acme", ID: "m", Host: v.Hosts[1].Name, Endpoint: v.Plan.Endpoint(1, v.Hosts[0].Position(), 77)})
	have := v.Config(privateKey(), 51820)
	v.Machines[len(v.Machines)-1].Host = v.Host.Name
	v.Hosts = v.Hosts[:1]
	want := v.Config(privateKey(), 51820)
	for i, left := range []bool{true, false} {
		changes, more := emptied(peers.Diff(have, want), have)
		have = peers.Apply(have, changes)
		if (len(more) > 0) != left {
			t.Errorf("step %d: more to do: %v", i, more)
		}
		for _, p := range have.Peers {
			if p.Key == keyOf(3) && (i > 0 || len(p.AllowedIPs) > 0) {
				t.Errorf("step %d: the peer that goes has %v", i, p.AllowedIPs)
			}
		}
	}
	if diff := peers.Diff(have, want); len(diff) > 0 {
		t.Errorf("not there after two steps: %v", diff)
	}
}

// A host that loses an org with its last machine, because that moved, goes on to
// receive what is under way to it until the stay is over.
func TestPassGoesOnForOneThatMoved(t *testing.T) {
	s := &fakeSystem{}
	l, m, _ := newLoop(t, s)
	r := &registry{records: map[string]mesh.Machine{}, t: t}
	m.request = r.request
	there := mesh.ViewHost{Name: "b", Number: 2, Key: mesh.Key(keyOf(2)), Orgs: []string{"o"}}
	view := func() *mesh.View {
		v := r.view()
		v.Hosts = []mesh.ViewHost{there}
		return v
	}
	w, err := m.enter(t.Context(), web("w"), 1, view)
	if err != nil {
		t.Fatal(err)
	}
	s.found = []attach.Found{{Link: w.link, Endpoint: w.record.Endpoint}}
	record := r.records["o/w"]
	record.Next = "b"
	r.records["o/w"] = record
	if _, err := l.pass(t.Context(), view()); err != nil {
		t.Fatal(err)
	}
	without := view()
	without.Orgs, without.Hosts, without.Machines = nil, nil, nil
	carries := func(when string, want bool) {
		t.Helper()
		if _, err := l.pass(t.Context(), without); err != nil {
			t.Fatal(err)
		}
		c, err := s.device.Config(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		emptyPeers := !slices.ContainsFunc(c.Peers, func(p peers.Peer) bool { return len(p.AllowedIPs) > 0 })
		if in := len(s.policy.Networks) == 1 && len(s.policy.Attachments) == 1; in != want || emptyPeers == want {
			t.Errorf("%s: the firewall has %v and %v, the tunnels %v", when, s.policy.Networks, s.policy.Attachments, c.Peers)
		}
	}
	carries("moved", true)
	carries("a while later", true)
	s.found = nil
	m.leaves(w)
	carries("over", false)
}
