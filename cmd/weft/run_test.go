package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
)

// fakeAgent is one that does as it is told: each request is handed to the test, which
// answers it.
type fakeAgent struct {
	client   local.Client
	requests chan question
	ready    chan local.Ready // that it was told
}

type question struct {
	request local.AttachRequest
	answer  chan answer
}

// answer is what the agent does: attach the machine, say notices, until end is
// closed, or refuse.
type answer struct {
	id      string
	from    string
	held    local.Held
	notices chan local.Notice
	end     chan struct{}
	refuse  *api.Error
}

func newAgent(t *testing.T) fakeAgent {
	t.Helper()
	a := fakeAgent{local.Client{Socket: filepath.Join(t.TempDir(), "s")}, make(chan question), make(chan local.Ready, 10)}
	l, err := net.Listen("unix", a.client.Socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/attach/ready" {
			var said local.Ready
			json.NewDecoder(r.Body).Decode(&said)
			a.ready <- said
			return
		}
		q := question{answer: make(chan answer, 1)}
		json.NewDecoder(r.Body).Decode(&q.request)
		var said answer
		select {
		case a.requests <- q:
		case <-r.Context().Done():
			return
		}
		select {
		case said = <-q.answer:
		case <-r.Context().Done():
			return
		}
		if said.refuse != nil {
			w.WriteHeader(said.refuse.Status)
			json.NewEncoder(w).Encode(said.refuse)
			return
		}
		say := func(line any) {
			json.NewEncoder(w).Encode(line)
			http.NewResponseController(w).Flush()
		}
		say(local.Attached{ID: said.id, From: said.from, Held: said.held})
		for {
			select {
			case n := <-said.notices:
				say(n)
			case <-said.end:
				return
			case <-r.Context().Done():
				return
			}
		}
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return a
}

// next is the next request, answered with said.
func (a fakeAgent) next(t *testing.T, said answer) local.AttachRequest {
	t.Helper()
	select {
	case q := <-a.requests:
		q.answer <- said
		return q.request
	case <-time.After(10 * time.Second):
		t.Fatal("nobody asked within 10 s")
		return local.AttachRequest{}
	}
}

// A machine comes back to an agent that was restarted as what it was, and stops
// asking when it is told that it was removed.
func TestStayComesBackAndGivesUpWhenRefused(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	notes := make(chan string, 10)
	s := &stay{
		client: a.client, request: local.AttachRequest{Org: "acme", App: "web"}, interrupted: t.Context(),
		note: func(format string, args ...any) { notes <- fmt.Sprintf(format, args...) },
	}
	attached := make(chan error, 1)
	go func() {
		_, err := s.attach(t.Context(), 7)
		attached <- err
	}()
	first := answer{id: "m1", end: make(chan struct{})}
	if diff := cmp.Diff(local.AttachRequest{Org: "acme", App: "web", TID: 7}, a.next(t, first)); diff != "" {
		t.Errorf("first request (-want +got):\n%s", diff)
	}
	if err := <-attached; err != nil {
		t.Fatal(err)
	}
	close(first.end)
	a.next(t, answer{refuse: &api.Error{Status: 503, Code: "unavailable", Message: "not yet"}})
	second := answer{id: "m1", end: make(chan struct{})}
	if diff := cmp.Diff(local.AttachRequest{Org: "acme", App: "web", ID: "m1", TID: 7}, a.next(t, second)); diff != "" {
		t.Errorf("request of one that comes back (-want +got):\n%s", diff)
	}
	close(second.end)
	a.next(t, answer{refuse: &api.Error{Status: 404, Code: "not-found", Message: "removed", Advice: "start it anew"}})
	s.keeping.Wait()
	close(notes)
	var told []string
	for n := range notes {
		told = append(told, n)
	}
	want := []string{"machine m1 has no network: not yet", "machine m1 has no network: removed", "hint: start it anew"}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// newStay is one that asks a, and notes what it says.
func newStay(t *testing.T, a fakeAgent, r local.AttachRequest) (s *stay, notes func() []string) {
	said := make(chan string, 20)
	s = &stay{
		client: a.client, request: r, interrupted: t.Context(), readyWithin: time.Second, end: func() {},
		note: func(format string, args ...any) { said <- fmt.Sprintf(format, args...) },
	}
	return s, func() (out []string) {
		s.keeping.Wait()
		close(said)
		for n := range said {
			out = append(out, n)
		}
		return out
	}
}

// attachStay calls attach as attach.Run does, in a thread of a process that nothing
// listens in, and answers it.
func attachStay(t *testing.T, a fakeAgent, s *stay, said answer) local.AttachRequest {
	t.Helper()
	attached := make(chan error, 1)
	go func() {
		_, err := s.attach(t.Context(), os.Getpid())
		attached <- err
	}()
	r := a.next(t, said)
	if err := <-attached; err != nil {
		t.Fatal(err)
	}
	return r
}

// A machine that another host took over: its command is ended, and it does not come
// back.
func TestStayEndsWhenItMoved(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	s, notes := newStay(t, a, local.AttachRequest{Org: "acme", App: "web", ID: "m1"})
	ended := false
	s.end = func() { ended = true }
	said := answer{id: "m1", notices: make(chan local.Notice), end: make(chan struct{})}
	attachStay(t, a, s, said)
	said.notices <- local.Notice{Over: &local.Over{Code: local.OverMoved, Message: "machine acme/m1 moved to host b"}}
	close(said.end)
	if diff := cmp.Diff([]string{"machine acme/m1 moved to host b; its command here is ended"}, notes()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if !ended || s.over == nil || s.over.Code != local.OverMoved {
		t.Errorf("ended %v, over %+v", ended, s.over)
	}
}

// One that moved while the agent was away hears it when it comes back, with what it
// held.
func TestStayMovedWhileTheAgentWasAway(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	s, notes := newStay(t, a, local.AttachRequest{Org: "acme", App: "web", ID: "m1"})
	held := local.Held{Endpoint: netip.MustParsePrefix("fd12:3456:789a:1:300:5:1:0/112"), Generation: 2, Revision: mesh.Revision{Epoch: 1, Revision: 7}}
	said := answer{id: "m1", held: held, end: make(chan struct{})}
	attachStay(t, a, s, said)
	close(said.end)
	again := a.next(t, answer{refuse: &api.Error{Status: 409, Code: local.OverMoved, Message: "machine acme/m1 moved to host b"}})
	if diff := cmp.Diff(&held, again.Held, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("it says that it held (-want +got):\n%s", diff)
	}
	if notes(); s.over == nil || s.over.Code != local.OverMoved {
		t.Errorf("over %+v", s.over)
	}
}

// The one that takes over says when its command serves; as long as the move is not
// complete it asks every agent for it again, and afterwards never.
func TestStayTakesOver(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	s, notes := newStay(t, a, local.AttachRequest{Org: "acme", App: "web", ID: "m1", Move: true})
	first := answer{id: "m1", from: "b", end: make(chan struct{})}
	if r := attachStay(t, a, s, first); !r.Move {
		t.Error("it does not ask for the move")
	}
	if r := <-a.ready; r != (local.Ready{Org: "acme", ID: "m1"}) {
		t.Errorf("ready: %+v", r)
	}
	close(first.end)
	second := answer{id: "m1", from: "b", notices: make(chan local.Notice), end: make(chan struct{})}
	if r := a.next(t, second); !r.Move || r.Held != nil {
		t.Errorf("before the move is complete it comes back with %+v", r)
	}
	<-a.ready
	held := local.Held{Endpoint: netip.MustParsePrefix("fd12:3456:789a:1:300:5:1:0/112"), Generation: 2}
	second.notices <- local.Notice{Holds: &held}
	close(second.end)
	if r := a.next(t, answer{refuse: &api.Error{Status: 404, Code: "not-found", Message: "over"}}); r.Move || r.Held == nil || r.Held.Generation != 2 {
		t.Errorf("after the move it comes back with %+v", r)
	}
	if diff := cmp.Diff([]string{"machine m1 moved here from host b", "machine m1 has no network: over"}, notes()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// A move that fails ends the command, with the reason.
func TestStayWhoseMoveFails(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	s, notes := newStay(t, a, local.AttachRequest{Org: "acme", App: "web", ID: "m1", Move: true})
	said := answer{id: "m1", from: "b", notices: make(chan local.Notice), end: make(chan struct{})}
	attachStay(t, a, s, said)
	said.notices <- local.Notice{Over: &local.Over{Code: local.OverFailed, Message: "machine acme/m1 stays on host b: no"}}
	close(said.end)
	if notes(); s.over == nil || s.over.Code != local.OverFailed {
		t.Errorf("over %+v", s.over)
	}
}

func TestMoveFlags(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want string // in the error; "": none
	}{
		{[]string{"--name", "m1", "--move"}, ""},
		{[]string{"--name", "m1", "--move", "--stable"}, ""},
		{[]string{"--name", "m1", "--stable=false"}, ""},
		{[]string{"--move"}, "--name"},
		{[]string{"--name", "m1", "--move", "--stable=false"}, "--stable=false"},
		{[]string{"--name", "m1", "--move", "--ready-within", "3m"}, "--ready-within"},
	} {
		cmd := runCommand()
		if err := cmd.ParseFlags(append([]string{"--org", "acme", "--app", "web"}, tt.args...)); err != nil {
			t.Fatal(err)
		}
		r, err := attachRequest(cmd)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %+v, %v; want %q", tt.args, r, err, tt.want)
		}
	}
}

// Ctrl-C counts while the agent has not answered.
func TestAttachEndsWithTheUser(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	interrupted, interrupt := context.WithCancel(t.Context())
	s := &stay{client: a.client, interrupted: interrupted}
	done := make(chan error, 1)
	go func() {
		_, err := s.attach(context.Background(), 7)
		done <- err
	}()
	select {
	case <-a.requests:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody asked within 10 s")
	}
	interrupt()
	select {
	case err := <-done:
		if err == nil {
			t.Error("attached, although nobody answered")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still waiting 10 s after the interruption")
	}
}
