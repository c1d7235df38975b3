package controller

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/store"
)

// A change that many streams get is made into JSON once, and reaches no stream that
// it does not concern.
func TestADeltaIsEncodedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.PingEvery = time.Hour })
	truth := w.mirror()
	w.org("acme")
	w.org("evil")
	w.region("fra")
	var trackers []*tracker
	var hosts []*node
	for i := range 4 {
		h := w.host(fmt.Sprint("fra", i), "fra", "all")
		h.machine("acme", "web", fmt.Sprint("m", i))
		hosts = append(hosts, h)
	}
	other := w.host("other", "fra", "all")
	other.machine("evil", "web", "m")
	for _, h := range append(hosts, other, w.laptop("acme", "ann")) {
		trackers = append(trackers, h.track())
	}
	w.settled(truth, 5)
	for _, x := range trackers {
		x.equals("at first", w, truth)
	}
	encoded, sent := w.metric("weft_controller_deltas_encoded_total"), w.metric("weft_controller_deltas_total")
	const changes = 20
	for i := range changes {
		hosts[i%4].machine("acme", "web", fmt.Sprint("new", i))
	}
	for _, x := range trackers {
		x.equals("after", w, truth)
	}
	if got := w.metric("weft_controller_deltas_encoded_total") - encoded; got != changes {
		t.Errorf("%d changes were encoded %d times", changes, got)
	}
	eventually(t, "all deltas counted", func() bool { return w.metric("weft_controller_deltas_total")-sent >= 4*changes })
	if got := w.metric("weft_controller_deltas_total") - sent; got != 4*changes {
		t.Errorf("%d deltas were sent, want %d: to the hosts that carry the org", got, 4*changes)
	}
}

// A node goes on from its revision, at the same controller and at another one: what
// it missed comes as one delta.
func TestAStreamResumes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	truth := w.mirror()
	w.org("acme")
	w.region("fra")
	second := w.second(newStore(t, w.etcd, w.root))
	n, other := w.host("fra1", "fra", "all"), w.host("fra2", "fra", "all")
	n.machine("acme", "web", "first")
	there := n.at(second)
	first := n.view()
	view := first.until("the machine", func(v mesh.View) bool { return len(v.Machines) == 1 })
	first.close()
	for round, at := range []*api.Client{n.Client, there, n.Client, there} {
		// While it was away: things that come, change and go, all of an org too.
		for i := range 3 {
			other.machine("acme", "web", fmt.Sprintf("r%d-%d", round, i))
		}
		if err := other.Do(t.Context(), "DELETE", fmt.Sprintf("/v1/orgs/acme/machines/r%d-1", round), nil, nil); err != nil {
			t.Fatal(err)
		}
		if round == 2 {
			w.org("late")
			n.machine("late", "web", "a")
		}
		want := w.now(truth)
		s, err := at.View(t.Context(), view.Revision, patience)
		if err != nil {
			t.Fatal(err)
		}
		e, err := s.Next()
		if err != nil || e.Delta == nil {
			t.Fatalf("round %d: the first event is %+v, %v: want a delta", round, e, err)
		}
		if len(e.Delta.Controllers) == 0 || len(e.Delta.Roots) == 0 {
			t.Error("what a controller adds to the view is not in the delta")
		}
		if view = view.Apply(*e.Delta); later(want.Revision, view.Revision) {
			t.Errorf("round %d: it leads to %s, and %s was there", round, view.Revision, want.Revision)
		}
		expected, _ := want.View(n.is.Node, mesh.Deployment{})
		for i := range expected.Hosts { // presence comes and goes by itself here
			expected.Hosts[i].Present, view.Hosts[i].Present = false, false
		}
		got := view
		got.Revision, got.Controllers, got.Roots = expected.Revision, expected.Controllers, expected.Roots
		if diff := cmp.Diff(jsonOf(t, expected), jsonOf(t, got)); diff != "" {
			t.Errorf("round %d (-state +resumed):\n%s", round, diff)
		}
		s.Close()
	}
}

// resume asks for the view with a Last-Event-ID.
func (n *node) resume(last string) (*http.Response, string) {
	n.w.t.Helper()
	ctx, cancel := context.WithTimeout(n.w.t.Context(), patience)
	n.w.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", n.w.url+"/v1/nodes/self/view", nil)
	if err != nil {
		n.w.t.Fatal(err)
	}
	req.Header.Set("Last-Event-ID", last)
	resp, err := n.w.bare("http/1.1", n.certificate).Do(req)
	if err != nil {
		n.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	head := make([]byte, 64)
	k, _ := resp.Body.Read(head)
	return resp, string(head[:k])
}

// How a stream begins, by what the node says it has.
func TestHowAStreamBegins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.region("fra")
	n := w.host("fra1", "fra", "all")
	f := n.view()
	now := f.until("a view", func(mesh.View) bool { return true }).Revision
	f.close()
	id := func(epoch uint32, rev int64) string { return mesh.Revision{Epoch: epoch, Revision: rev}.String() }
	for _, tt := range []struct{ name, last, begins string }{
		{"nothing", "", "snapshot"},
		{"no revision", "what?", "snapshot"},
		{"the revision", id(now.Epoch, now.Revision), "delta"},
		{"before this controller began", id(now.Epoch, 1), "snapshot"},
		{"an earlier epoch", id(now.Epoch-1, now.Revision+1000), "snapshot"},
	} {
		resp, head := n.resume(tt.last)
		if resp.StatusCode != 200 || !strings.Contains(head, "event: "+tt.begins) {
			t.Errorf("%s: status %d, begins %q, want a %s", tt.name, resp.StatusCode, head, tt.begins)
		}
	}
	t.Run("a revision to come", func(t *testing.T) {
		for _, last := range []string{id(now.Epoch, now.Revision+1_000_000), id(now.Epoch+1, 5)} {
			began := time.Now()
			resp, body := n.resume(last)
			if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || time.Since(began) < time.Second {
				t.Errorf("%s: status %d after %s, Retry-After %q: %s", last, resp.StatusCode, time.Since(began), resp.Header.Get("Retry-After"), body)
			}
		}
	})
	t.Run("a revision that comes", func(t *testing.T) {
		r, err := w.etcd.Client().Get(t.Context(), w.root)
		if err != nil {
			t.Fatal(err)
		}
		var wait sync.WaitGroup
		wait.Go(func() {
			for range 3 {
				if _, err := w.etcd.Client().Put(context.Background(), "/elsewhere", "x"); err != nil {
					t.Error(err)
				}
			}
		})
		resp, head := n.resume(id(now.Epoch, r.Header.Revision+3))
		wait.Wait()
		if resp.StatusCode != 200 || !strings.HasPrefix(head, "id: "+id(now.Epoch, r.Header.Revision+3)+"\nevent: delta") {
			t.Errorf("status %d, begins %q", resp.StatusCode, head)
		}
	})
}

// A node that stops to read is cut off and holds up nobody; when it reads again, it
// goes on from where it was and has all of it.
func TestASlowStreamIsCutAndResumes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.WriteTimeout = time.Second })
	truth := w.mirror()
	w.org("acme")
	w.region("fra")
	n, other := w.host("fra1", "fra", "all"), w.host("fra2", "fra", "all")
	n.machine("acme", "web", "a")
	meta := map[string]string{}
	for _, k := range "abcdefghijklmnopqrstuvwxyz" {
		meta[string(k)] = strings.Repeat("x", 250)
	}
	for i := range 10 {
		do[api.MachineInfo](t, other.Client, "POST", "/v1/orgs/acme/machines", api.CreateMachine{App: "web", ID: fmt.Sprint("big", i), Meta: meta})
	}
	quick := other.track()
	w.settled(truth, 1)
	// Over HTTP/2 the reader's window is all that is on the way.
	client := w.bare("h2", n.certificate)
	client.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 17}
	resp, err := client.Get(w.url + "/v1/nodes/self/view")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	w.settled(truth, 2)
	cut := func() bool { return strings.Contains(w.log.String(), `node=host/fra1 err="send: `+errSlow.Error()) }
	for range 5 {
		w.touch("machines/acme/big") // 65 kB each time
	}
	eventually(t, "the stream cut", cut)
	if w.metric("weft_controller_slow_streams_total") == 0 {
		t.Error("it is not counted")
	}
	if err := other.Do(t.Context(), "DELETE", "/v1/orgs/acme/machines/big7", nil, nil); err != nil {
		t.Fatal(err)
	}
	quick.equals("of the one that reads", w, truth)
	if _, begun, _ := quick.now(); begun != 1 {
		t.Errorf("the other node has had %d streams", begun)
	}
	view := whatCame(t, resp.Body)
	s, err := n.View(t.Context(), view.Revision, patience)
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.Next()
	if s.Close(); err != nil || first.Delta == nil {
		t.Fatalf("it begins again with %+v, %v: want a delta", first, err)
	}
	got, want := view.Apply(*first.Delta), mesh.View{}
	want, _ = w.now(truth).View(n.is.Node, mesh.Deployment{})
	got.Revision, got.Controllers, got.Roots = want.Revision, want.Controllers, want.Roots
	if diff := cmp.Diff(jsonOf(t, want), jsonOf(t, got)); diff != "" {
		t.Errorf("of the one that did not (-state +streamed):\n%s", diff)
	}
}

// The controller loses its watch, and etcd compacts what it missed: it lists anew.
// Streams that are open get the difference, as do those that go on from before.
func TestStreamsOverACompaction(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	e := w.etcd.Client()
	g := &gated{Watcher: e.Watcher, cuts: map[int]context.CancelFunc{}}
	c := clientv3.NewCtxClient(e.Ctx())
	c.KV, c.Lease, c.Watcher = e.KV, e.Lease, g
	cut, err := store.New(store.Config{Client: c, Root: w.root, ProgressEvery: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	second, truth := w.second(cut), w.mirror()
	w.org("acme")
	w.org("evil")
	w.region("fra")
	n, other := w.host("fra1", "fra", "all"), w.host("fra2", "fra", "all")
	for _, m := range []string{"stays", "goes", "stops"} {
		n.machine("acme", "web", m)
	}
	other.machine("acme", "web", "b")
	x := n.track(n.at(second))
	w.settled(truth, 1)
	x.equals("at first", w, truth)
	away := other.view() // at the first controller: it comes to the second one later
	old := away.until("both", func(v mesh.View) bool { return len(v.Machines) == 4 && v.Hosts[0].Present })
	away.close()
	snapshots := second.metric("weft_controller_snapshots_total")

	g.cut(true)
	writer := newStore(t, w.etcd, w.root)
	change := func(rev int64, err error) int64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	change(writer.RemoveMachine(t.Context(), "", store.MachineRef{Org: "acme", ID: "goes"}))
	_, rev, err := writer.SetMachine(t.Context(), "", store.MachineRef{Org: "acme", ID: "stops"}, store.MachineChange{State: new(mesh.StateStopped)})
	change(rev, err)
	_, rev, err = writer.CreateMachine(t.Context(), "", store.MachineSpec{Org: "evil", App: "db", ID: "comes", Host: "fra1"})
	rev = change(rev, err)
	if _, err := e.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	g.cut(false)
	x.equals("after the compaction", w, truth)
	if !g.gone.Load() {
		t.Error("no watch was told of a compaction: this proves nothing")
	}
	resumed, err := other.at(second).View(t.Context(), old.Revision, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer resumed.Close()
	first, err := resumed.Next()
	if err != nil || first.Delta == nil {
		t.Fatalf("the first event is %+v, %v: want a delta", first, err)
	}
	got := old.Apply(*first.Delta)
	if len(got.Machines) != 3 {
		t.Errorf("after the compaction %d machines, want 3", len(got.Machines))
	}
	if _, begun, _ := x.now(); begun != 1 || second.metric("weft_controller_snapshots_total") != snapshots {
		t.Errorf("%d streams began, and it took a snapshot", begun)
	}
}

// For a while everything changes at random, and streams are broken off at random, at
// two controllers: in the end all have what the state says.
func TestStreamsUnderChange(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t, nil)
	truth, writer := w.mirror(), newStore(t, w.etcd, w.root)
	second := w.second(newStore(t, w.etcd, w.root))
	orgs := []string{"acme", "ac", "evil"}
	for _, o := range orgs {
		w.org(o)
	}
	w.region("fra")
	var trackers []*tracker
	var hosts []string
	follow := func(n *node) {
		trackers = append(trackers, n.track(n.Client, n.at(second)))
	}
	for i := range 4 {
		hosts = append(hosts, fmt.Sprint("fra", i))
		follow(w.host(hosts[i], "fra", "all"))
	}
	for _, o := range orgs {
		follow(w.laptop(o, "ann"))
	}
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	ctx := t.Context()
	for range 5 {
		for range 40 {
			org, id := pick(orgs), fmt.Sprint("m", r.IntN(6))
			switch r.IntN(10) {
			case 0, 1, 2, 3:
				writer.CreateMachine(ctx, "", store.MachineSpec{Org: org, App: "web", ID: id, Host: pick(hosts)})
			case 4, 5:
				writer.RemoveMachine(ctx, "", store.MachineRef{Org: org, ID: id})
			case 6:
				writer.SetMachine(ctx, "", store.MachineRef{Org: org, ID: id}, store.MachineChange{State: new(pick([]string{mesh.StateStarted, mesh.StateStopped}))})
			case 7:
				writer.SetGateway(ctx, "", org, "ann", pick(hosts))
			case 8:
				cordoned := r.IntN(2) == 0
				writer.SetHost(ctx, "", pick(hosts), store.HostChange{Cordoned: &cordoned})
			case 9:
				trackers[r.IntN(len(trackers))].drop()
			}
		}
		eventually(t, "all hosts present", func() bool { return w.now(truth).Presence.Len() == len(hosts) })
		for _, x := range trackers {
			x.equals("at a quiet moment", w, truth)
		}
	}
	begun, resumed := 0, 0
	for _, x := range trackers {
		_, b, n := x.now()
		begun, resumed = begun+b, resumed+n
	}
	t.Logf("%d streams, %d of them resumed", begun, resumed)
	if resumed == 0 {
		t.Error("no stream resumed: this proves nothing")
	}
}
