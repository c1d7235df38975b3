package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
)

// fakeAgent is one that does as it is told: each request is handed to the test, which
// answers it.
type fakeAgent struct {
	client   local.Client
	requests chan question
}

type question struct {
	request local.AttachRequest
	answer  chan answer
}

// answer is what the agent does: attach the machine until end is closed, or refuse.
type answer struct {
	id     string
	end    chan struct{}
	refuse *api.Error
}

func newAgent(t *testing.T) fakeAgent {
	t.Helper()
	a := fakeAgent{local.Client{Socket: filepath.Join(t.TempDir(), "s")}, make(chan question)}
	l, err := net.Listen("unix", a.client.Socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
		json.NewEncoder(w).Encode(local.Attached{ID: said.id})
		http.NewResponseController(w).Flush()
		select {
		case <-said.end:
		case <-r.Context().Done():
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
