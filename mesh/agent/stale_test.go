package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// A controller that hears nothing from etcd is left for one that does. Where all are
// like that, the node stays: what they say is old, and better than nothing.
func TestStaleController(t *testing.T) {
	t.Parallel()
	stale := func(revision int64) api.Event {
		return api.Event{Ping: &api.Ping{Revision: mesh.Revision{Epoch: 1, Revision: revision}, Age: time.Minute}}
	}
	for _, tt := range []struct {
		name  string
		plays map[string][]play
		view  int64
		asked string // all of it
		age   time.Duration
	}{
		{
			name: "another one knows more",
			plays: map[string][]play{
				"x": {{events: []api.Event{whole(at(t, 1, 5, 2)), stale(5)}, hang: true}},
				"y": {{events: []api.Event{plus(1, 6), pinged(1, 6)}, hang: true}},
			},
			view: 6, asked: "x, y 1.5",
		},
		{
			name: "the other one is stale, too",
			plays: map[string][]play{
				"x": {{events: []api.Event{whole(at(t, 1, 5, 2)), stale(5)}, hang: true}},
				"y": {{events: []api.Event{plus(1, 6), stale(6), stale(6), stale(6)}, hang: true}},
			},
			view: 6, asked: "x, y 1.5", age: time.Minute,
		},
		{
			name:  "there is no other",
			plays: map[string][]play{"x": {{events: []api.Event{whole(at(t, 1, 5, 2)), stale(5), stale(5)}, hang: true}}},
			view:  5, asked: "x", age: time.Minute,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, tt.plays)
			known := []string{"x"}
			if len(tt.plays) > 1 {
				known = append(known, "y")
			}
			f, _, end := s.start(known...)
			eventually(t, 5*time.Second, "the view, and its age", func() bool {
				v, c := f.View(), f.Contact()
				return v != nil && v.Revision.Revision == tt.view && c.connected && time.Since(c.last) >= tt.age && time.Since(c.last) < tt.age+30*time.Second
			})
			end()
			if left := !f.staleAt.IsZero(); left != (len(known) > 1) {
				t.Errorf("it left a controller for being stale: %v", left)
			}
			// What hangs is given up for its silence in the end; that is not what is tested.
			want := strings.Split(tt.asked, ", ")
			if got := s.told(); len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
				t.Errorf("asked %q, want %q", got, want)
			}
		})
	}
}

// The others are asked before the one that is stale, also those that failed once.
func TestStaleComesLast(t *testing.T) {
	t.Parallel()
	log, _ := newLog(t)
	f := newFollower(mesh.Node{Kind: mesh.KindHost, Name: "a"}, "", quick(), nil, &problems{}, log)
	f.failed["y"] = 1
	f.lost("x", fmt.Errorf("%w: for a minute", errStale), true)
	for range 20 {
		if got := inTurn([]string{"x", "y"}, f.failed); !slices.Equal(got, []string{"y", "x"}) {
			t.Fatalf("asked in turn: %q", got)
		}
	}
}
