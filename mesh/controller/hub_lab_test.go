package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/store"
)

// metric returns the value of a metric without labels.
func (w *world) metric(name string) int {
	w.t.Helper()
	for line := range strings.Lines(w.scrape()) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				w.t.Fatal(err)
			}
			return int(v)
		}
	}
	w.t.Fatalf("no metric %s", name)
	return 0
}

// mirror is a store of its own on the mesh's etcd: what the state is, whatever a
// controller says.
func (w *world) mirror() *store.Store {
	w.t.Helper()
	s := newStore(w.t, w.etcd, w.root)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-done })
	select {
	case <-s.Ready():
	case <-time.After(patience):
		w.t.Fatal("the mirror is not ready")
	}
	return s
}

// now returns the state as of now.
func (w *world) now(s *store.Store) mesh.State {
	w.t.Helper()
	r, err := w.etcd.Client().Get(w.t.Context(), w.root+"mesh")
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if err := s.Wait(ctx, r.Header.Revision); err != nil {
		w.t.Fatal(err)
	}
	return s.State()
}

// tracker follows a node's view as an agent does: whatever ends a stream, it goes on
// from the revision that it has.
type tracker struct {
	t    *testing.T
	node mesh.Node

	mu       sync.Mutex // guards what follows
	clients  []*api.Client
	stream   *api.Stream
	view     mesh.View
	begun    int // streams
	resumed  int // streams that began with a delta
	failures []string
}

// track follows with clients, one after the other, until the test ends.
func (n *node) track(clients ...*api.Client) *tracker {
	x := &tracker{t: n.w.t, node: n.is.Node, clients: clients}
	if len(clients) == 0 {
		x.clients = []*api.Client{n.Client}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); x.run(ctx) }()
	n.w.t.Cleanup(func() { cancel(); x.drop(); <-done })
	return x
}

func (x *tracker) run(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		x.mu.Lock()
		client, last := x.clients[i%len(x.clients)], x.view.Revision
		x.mu.Unlock()
		s, err := client.View(ctx, last, patience)
		if err != nil {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		x.mu.Lock()
		x.stream = s
		x.begun++
		x.mu.Unlock()
		for first := true; ; first = false {
			e, err := s.Next()
			if err != nil {
				break
			}
			x.take(e, first)
		}
		s.Close()
	}
}

func (x *tracker) take(e api.Event, first bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	before := x.view.Revision
	switch {
	case e.Snapshot != nil:
		x.view = *e.Snapshot
	case e.Delta != nil:
		x.view = x.view.Apply(*e.Delta)
		if first {
			x.resumed++
		}
	case e.Ping != nil:
		x.view.Revision = e.Ping.Revision
	default:
		x.failures = append(x.failures, fmt.Sprintf("event %+v", e))
	}
	if later(before, x.view.Revision) {
		x.failures = append(x.failures, fmt.Sprintf("after revision %s came %s", before, x.view.Revision))
	}
}

// drop ends the present stream.
func (x *tracker) drop() {
	x.mu.Lock()
	s := x.stream
	x.mu.Unlock()
	if s != nil {
		s.Close()
	}
}

func (x *tracker) now() (v mesh.View, begun, resumed int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.view, x.begun, x.resumed
}

// equals waits until the view is what the state of truth says. Where the controllers
// are is not of the state alone.
func (x *tracker) equals(what string, w *world, truth *store.Store) {
	x.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		want, ok := w.now(truth).View(x.node, mesh.Deployment{})
		got, _, _ := x.now()
		got.Revision, got.Controllers, got.Roots = want.Revision, want.Controllers, want.Roots
		if ok && jsonText(x.t, want) == jsonText(x.t, got) {
			break
		}
		if time.Now().After(deadline) {
			x.t.Fatalf("%s: the view of %s, %v (-state +streamed):\n%s", what, x.node, ok, cmp.Diff(jsonOf(x.t, want), jsonOf(x.t, got)))
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range x.failures {
		x.t.Errorf("%s: %s", x.node, f)
	}
}

// settled waits until nothing more is on the way: all hosts that have a stream are
// present.
func (w *world) settled(s *store.Store, hosts int) {
	w.t.Helper()
	eventually(w.t, "all hosts present", func() bool { return w.now(s).Presence.Len() == hosts })
}

// second starts another controller on the same mesh, with a store of its own.
func (w *world) second(s *store.Store) *world {
	w.t.Helper()
	x := &world{t: w.t, log: &logBuffer{}, etcd: w.etcd, root: w.root, pin: w.pin}
	x.cfg = w.cfg
	x.cfg.Store, x.cfg.Log = s, slog.New(slog.NewTextHandler(x.log, nil))
	x.cfg.Name, x.cfg.SealKeyFile = "second", filepath.Join(w.cfg.DataDir, sealFile)
	x.cfg.DataDir = filepath.Join(w.t.TempDir(), "data")
	ready := make(chan netip.AddrPort, 1)
	x.cfg.Ready = func(a netip.AddrPort) { ready <- a }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, x.cfg) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("the second controller: %v", err)
		}
	})
	select {
	case addr := <-ready:
		x.url = "https://" + addr.String()
	case <-time.After(patience):
		w.t.Fatal("the second controller is not ready")
	}
	_, after, _ := strings.Cut(x.log.String(), " metrics=")
	x.metrics = "http://" + strings.Fields(after)[0]
	return x
}

// at returns the node's client of a controller.
func (n *node) at(w *world) *api.Client {
	return w.client(enroll.ClientConfig{Pin: n.w.pin, Certificate: n.certificate}, "")
}

// whatCame is the view after all whole events of a stream that was cut.
func whatCame(t *testing.T, body io.Reader) (v mesh.View) {
	t.Helper()
	text, _ := io.ReadAll(body)
	blocks := strings.Split(string(text), "\n\n")
	for _, block := range blocks[:len(blocks)-1] { // what follows the last is not whole
		_, rest, _ := strings.Cut(block, "\nevent: ")
		kind, data, _ := strings.Cut(rest, "\ndata: ")
		var err error
		switch kind {
		case api.EventSnapshot:
			err = json.Unmarshal([]byte(data), &v)
		case api.EventDelta:
			var d mesh.Delta
			err = json.Unmarshal([]byte(data), &d)
			v = v.Apply(d)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !v.Plan.IsValid() {
		t.Fatalf("no snapshot came, only %d bytes", len(text))
	}
	return v
}

// touch turns the state of all machines below a key around, in one transaction.
func (w *world) touch(prefix string) {
	w.t.Helper()
	r, err := w.etcd.Client().Get(w.t.Context(), w.root+prefix, clientv3.WithPrefix())
	if err != nil {
		w.t.Fatal(err)
	}
	var ops []clientv3.Op
	turn := strings.NewReplacer(`"`+mesh.StateStarted+`"`, `"`+mesh.StateStopped+`"`, `"`+mesh.StateStopped+`"`, `"`+mesh.StateStarted+`"`)
	for _, kv := range r.Kvs {
		ops = append(ops, clientv3.OpPut(string(kv.Key), turn.Replace(string(kv.Value))))
	}
	if _, err := w.etcd.Client().Txn(w.t.Context()).Then(ops...).Commit(); err != nil {
		w.t.Fatal(err)
	}
}

// gated is a watcher that can be cut off from etcd.
type gated struct {
	clientv3.Watcher
	mu   sync.Mutex
	shut bool
	cuts map[int]context.CancelFunc
	next int
	gone atomic.Bool // a watch was told of a compaction
}

func (g *gated) cut(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	if shut {
		for _, cancel := range g.cuts {
			cancel()
		}
	}
}

func (g *gated) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	out := make(chan clientv3.WatchResponse)
	inner, cancel := context.WithCancel(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		cancel()
	}
	id := g.next
	g.next++
	g.cuts[id] = cancel
	go func() {
		defer close(out)
		defer func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			delete(g.cuts, id)
			cancel()
		}()
		for r := range g.Watcher.Watch(inner, key, opts...) {
			if r.CompactRevision != 0 {
				g.gone.Store(true)
			}
			select {
			case out <- r:
			case <-inner.Done():
				return
			}
		}
	}()
	return out
}
