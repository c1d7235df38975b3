package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// scripted is a source and a feed whose steps the test makes.
type scripted struct {
	state   mesh.State
	between *mesh.State // one that the last merged step passed over
	steps   []mesh.Step
	taken   mesh.Revision
}

func (s *scripted) feed() feed         { s.taken = s.state.Revision; return s }
func (s *scripted) Age() time.Duration { return 0 }
func (s *scripted) Start() mesh.State  { return s.state }
func (s *scripted) C() <-chan struct{} { return nil }
func (s *scripted) Close()             {}
func (s *scripted) Take() []mesh.Step {
	steps := s.steps
	s.steps, s.taken = nil, s.state.Revision
	return steps
}
func (s *scripted) Revision() mesh.Revision { return s.taken }

// change makes a step of changes.
func (s *scripted) change(merged bool, changes ...mesh.Change) {
	step := mesh.Step{Before: s.state, Merged: merged}
	if merged {
		between := s.state.With(changes[0])
		s.between = &between
		s.between.Revision.Revision += 2
		s.state.Revision.Revision += 3
	}
	s.state = s.state.With(changes...)
	s.state.Revision.Revision++
	step.After = s.state
	for _, c := range changes {
		step.Keys = append(step.Keys, c.Key)
	}
	s.steps = append(s.steps, step)
}

// reader is a node that follows a hub, as the server and the node together do.
type reader struct {
	node    mesh.Node
	key     string
	view    *mesh.View // as received, with all its events
	stream  *stream    // nil between two
	ended   error      // why the stream ended
	resumed int
}

// take applies events as they go over the wire.
func (r *reader) take(t *rapid.T, text []byte) {
	for block := range strings.SplitSeq(strings.TrimSuffix(string(text), "\n\n"), "\n\n") {
		lines := strings.Split(block, "\n")
		id, kind, data := strings.TrimPrefix(lines[0], "id: "), strings.TrimPrefix(lines[1], "event: "), []byte(strings.TrimPrefix(lines[2], "data: "))
		var rev mesh.Revision
		if err := rev.UnmarshalText([]byte(id)); err != nil {
			t.Fatal(err)
		}
		if r.view != nil && later(r.view.Revision, rev) {
			t.Fatalf("%s: after revision %s comes %s", r.node, r.view.Revision, rev)
		}
		switch kind {
		case api.EventSnapshot:
			r.view = &mesh.View{}
			if err := json.Unmarshal(data, r.view); err != nil {
				t.Fatal(err)
			}
		case api.EventDelta:
			var d mesh.Delta
			if err := json.Unmarshal(data, &d); err != nil {
				t.Fatal(err)
			}
			v := r.view.Apply(d)
			r.view = &v
		case api.EventPing:
			r.view.Revision = rev
		}
		if r.view.Revision != rev {
			t.Fatalf("%s: event %s leads to revision %s", r.node, id, r.view.Revision)
		}
	}
}

// recording is an events whose reader takes everything.
type recording struct {
	t *rapid.T
	r *reader
}

func (w recording) write(text []byte) error { w.r.take(w.t, text); return nil }

// open opens a stream, or finds that the node may not.
func (r *reader) open(t *rapid.T, s *server) {
	ctx, cancel := context.WithCancelCause(context.Background())
	r.stream = newStream(caller{node: r.node, key: r.key}, nil, ctx, cancel)
	var since mesh.Revision
	if r.view != nil {
		since = r.view.Revision
	}
	w, err := s.hub.open(r.stream, since)
	if err != nil {
		r.stream, r.view = nil, nil
		return
	}
	before := s.hub.counters.resumed.Load()
	if err := s.begin(ctx, r.stream, &events{out: recording{t, r}, sent: since}, w); err != nil {
		t.Fatalf("%s begins: %v", r.node, err)
	}
	r.resumed += int(s.hub.counters.resumed.Load() - before)
}

func (r *reader) close(s *server) {
	if r.stream != nil {
		s.hub.close(r.stream)
		r.stream.cancel(nil)
		r.stream = nil
	}
}

// flush reads what has come; how a stream ends is noted.
func (r *reader) flush(t *rapid.T, s *server, ping bool) {
	out := &events{out: recording{t, r}, sent: r.view.Revision}
	var err error
	if ping {
		err = s.ping(r.stream.ctx, r.stream, out) // what it covers goes first
	} else {
		err = s.flush(r.stream.ctx, r.stream, out)
	}
	if err != nil {
		if r.close(s); !errors.Is(err, errGone) {
			t.Fatalf("%s: the stream ended: %v", r.node, err)
		}
	}
}

// check compares the view with what the state says.
func (r *reader) check(t *rapid.T, state mesh.State, d mesh.Deployment) {
	owner, known := state.NodeByTLSKey(r.key)
	want, ok := state.View(r.node, d)
	if there := ok && known && owner == r.node; there != (r.stream != nil) {
		t.Fatalf("%s: may have a stream %v, has one %v", r.node, there, r.stream != nil)
	}
	if r.stream == nil {
		return
	}
	var got mesh.View
	if err := json.Unmarshal([]byte(encoded(t, r.view)), &got); err != nil {
		t.Fatal(err)
	}
	got.Revision = want.Revision
	if diff := cmp.Diff(encoded(t, want), encoded(t, got)); diff != "" {
		t.Fatalf("the view of %s (-want +got):\n%s", r.node, diff)
	}
}

func encoded(t *rapid.T, v any) string {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	modelOrgs  = []string{"a", "ab", "z"}
	modelHosts = []string{"h", "h1", "x"}
	modelPlan  = func() ipam.Plan {
		p, err := newPlan(netip.MustParsePrefix("fd12:3456:789a::/48"))
		if err != nil {
			panic(err)
		}
		return p
	}()
)

// drawModelChange is a change of something that some node may see.
func drawModelChange(t *rapid.T) mesh.Change {
	org, host := rapid.SampledFrom(modelOrgs).Draw(t, "org"), rapid.SampledFrom(modelHosts).Draw(t, "host")
	network, number := uint64(slices.Index(modelOrgs, org)+1), uint32(slices.Index(modelHosts, host)+1)
	i := rapid.IntRange(1, 3).Draw(t, "number")
	endpoint := modelPlan.Endpoint(network, ipam.Host{Region: 1, Number: number}, uint16(i))
	c := mesh.Change{}
	switch rapid.IntRange(0, 14).Draw(t, "kind") {
	case 0:
		c = mesh.Change{Key: "orgs/" + org, Object: mesh.Org{Name: org, Network: network, Tombstone: rapid.IntRange(0, 4).Draw(t, "tombstone") == 0}}
	case 1:
		c = mesh.Change{Key: "regions/fra", Object: mesh.Region{Name: "fra", Number: uint8(i)}}
	case 2:
		c = mesh.Change{Key: "controllers/c", Object: mesh.Controller{Name: "c", URLs: []string{fmt.Sprint("https://192.0.2.", i, ":7443")}}}
	case 3:
		c = mesh.Change{Key: "presence/" + host, Object: mesh.Presence{Host: host}}
	case 4:
		orgs := rapid.SliceOfNDistinct(rapid.SampledFrom(append(modelOrgs, mesh.AllOrgs)), 1, 3, rapid.ID).Draw(t, "orgs")
		key := fmt.Sprint("key of ", host, rapid.SampledFrom([]string{"", "", "", " again"}).Draw(t, "key"))
		c = mesh.Change{Key: "hosts/" + host, Object: mesh.Host{Name: host, Number: number, Orgs: orgs, TLSKey: key, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")}}}
	case 5, 6:
		name := fmt.Sprint("c", i)
		key := "key of " + org + "/" + name
		if i == 3 && rapid.IntRange(0, 3).Draw(t, "thief") == 0 {
			key = "key of h" // no store would take it; a stream ends all the same
		}
		endpoint = modelPlan.Endpoint(network, ipam.Host{Region: 1, Number: number}, uint16(i+100)) // no machine's
		c = mesh.Change{Key: "clients/" + org + "/" + name, Object: mesh.Client{Org: org, Name: name, Home: host, Endpoint: endpoint, TLSKey: key,
			Gateway: rapid.SampledFrom(modelHosts).Draw(t, "gateway")}}
	case 7:
		c = mesh.Change{Key: "apps/" + org + "/web", Object: mesh.App{Org: org, Name: "web", TTL: i}}
	case 8, 9:
		sides := []mesh.Party{{Org: org}, {Org: org, App: "web"}, {Org: org, Machine: "m1"}, {Org: org, Client: "c1"}}
		other := rapid.SampledFrom(modelOrgs).Filter(func(o string) bool { return o != org }).Draw(t, "other org")
		id := fmt.Sprint("g", i)
		c = mesh.Change{Key: "grants/" + id, Object: mesh.Grant{ID: id, From: rapid.SampledFrom(sides).Draw(t, "from"), To: mesh.Party{Org: other, App: "web"}, Protocol: mesh.ProtocolTCP}}
	default:
		m := mesh.Machine{Org: org, ID: fmt.Sprint("m", i), App: "web", Host: host, Endpoint: endpoint}
		m.State = rapid.SampledFrom([]string{mesh.StateStarted, mesh.StateStopped}).Draw(t, "state")
		m.Next = rapid.SampledFrom([]string{"", "", "x"}).Draw(t, "next")
		c = mesh.Change{Key: "machines/" + org + "/" + m.ID, Object: m}
	}
	if rapid.IntRange(0, 6).Draw(t, "gone") == 0 {
		c.Object = nil
	}
	return c
}

// Whatever happens, in whatever order streams open, read, fall behind, end and go on
// from where they were: who may have a view has in the end the one that the state
// says, and who may not has no stream.
func TestStreamsEqualTheState(t *testing.T) {
	t.Parallel()
	var resumed, overflows, snapshots, deltas, encoded uint64
	rapid.Check(t, func(t *rapid.T) {
		from := &scripted{state: mesh.State{}.With(mesh.Change{Key: "mesh", Object: mesh.Mesh{Plan: modelPlan, Epoch: 1}})}
		for i, h := range modelHosts { // so that from the beginning there is something to see
			from.state = from.state.With(mesh.Change{Key: "hosts/" + h, Object: mesh.Host{Name: h, Number: uint32(i + 1), Orgs: []string{mesh.AllOrgs}, TLSKey: "key of " + h}})
			from.state = from.state.With(mesh.Change{Key: "orgs/" + modelOrgs[i], Object: mesh.Org{Name: modelOrgs[i], Network: uint64(i + 1)}})
			from.state = from.state.With(mesh.Change{Key: "machines/a/first" + h, Object: mesh.Machine{Org: "a", ID: "first" + h, Host: h}})
		}
		from.state.Revision.Revision = 10
		s := &server{store: nil, log: slog.New(slog.DiscardHandler), deployment: mesh.Deployment{Controllers: []string{"https://192.0.2.9:7443"}, Roots: []string{"PEM"}}}
		s.hub = newHub(from, s.deployment, s.log)
		s.hub.ring.maxSteps, s.hub.ring.maxKeys = 40, 60
		var readers []*reader
		for _, h := range modelHosts {
			readers = append(readers, &reader{node: mesh.Node{Kind: mesh.KindHost, Name: h}, key: "key of " + h})
		}
		for _, o := range modelOrgs {
			readers = append(readers, &reader{node: mesh.Node{Kind: mesh.KindClient, Org: o, Name: "c1"}, key: "key of " + o + "/c1"})
		}
		pump := func() { s.hub.mu.Lock(); s.hub.pumpLocked(); s.hub.mu.Unlock() }
		pump()
		for _, r := range readers {
			r.open(t, s)
		}
		draw := func(t *rapid.T) *reader { return rapid.SampledFrom(readers).Draw(t, "reader") }
		step := func(t *rapid.T) {
			n := rapid.SampledFrom([]int{1, 1, 1, 1, 2, 3}).Draw(t, "changes")
			var changes []mesh.Change
			for range n {
				changes = append(changes, drawModelChange(t))
			}
			from.change(rapid.IntRange(0, 9).Draw(t, "merged") == 0, changes...)
		}
		settle := func() {
			pump()
			for _, r := range readers {
				if r.stream != nil {
					r.flush(t, s, true)
				}
				if r.stream == nil {
					r.open(t, s)
				}
				r.check(t, from.state, s.deployment)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"step":  func(t *rapid.T) { step(t); pump() },
			"steps": func(t *rapid.T) { step(t); step(t); step(t); pump() },
			"nothing": func(t *rapid.T) { // revisions of things that no state holds
				from.state.Revision.Revision += 2
			},
			"burst": func(t *rapid.T) { // one org's machines, more than an inbox holds
				if rapid.IntRange(0, 3).Draw(t, "really") != 0 {
					t.Skip()
				}
				for i := range inboxEvents + 6 {
					from.change(false, mesh.Change{Key: "machines/a/burst", Object: mesh.Machine{Org: "a", ID: "burst", Host: "h", App: fmt.Sprint(i), Endpoint: modelPlan.Endpoint(1, ipam.Host{Region: 1, Number: 1}, 99)}})
				}
				pump()
			},
			"epoch": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "really") == 0 {
					from.change(true, mesh.Change{Key: "mesh", Object: mesh.Mesh{Plan: modelPlan, Epoch: from.state.Revision.Epoch + 1}}, drawModelChange(t))
					pump()
				}
			},
			"open": func(t *rapid.T) {
				if r := draw(t); r.stream == nil {
					r.open(t, s)
				}
			},
			"end": func(t *rapid.T) { draw(t).close(s) },
			"elsewhere": func(t *rapid.T) { // it was at another controller, which saw more states
				r := draw(t)
				r.close(s)
				if from.between == nil || r.view != nil && later(r.view.Revision, from.between.Revision) {
					return
				}
				if v, ok := from.between.View(r.node, mesh.Deployment{Controllers: []string{"https://192.0.2.8:7443"}, Roots: []string{"another PEM"}}); ok {
					r.view = &v
				}
			},
			"read": func(t *rapid.T) {
				if r := draw(t); r.stream != nil {
					r.flush(t, s, rapid.Bool().Draw(t, "ping"))
				}
			},
			"settle": func(t *rapid.T) { settle() },
		})
		settle()
		if n := s.hub.len(); n > len(readers) {
			t.Fatalf("%d streams of %d nodes", n, len(readers))
		}
		for _, r := range readers {
			r.close(s)
		}
		if n := len(s.hub.streams) + len(s.hub.byKey) + len(s.hub.byNode) + len(s.hub.carriers) + len(s.hub.clients); n != 0 {
			t.Fatalf("%d entries of streams that ended", n)
		}
		c := &s.hub.counters
		deltas += c.deltas.Load()
		resumed, overflows, snapshots, encoded = resumed+c.resumed.Load(), overflows+c.overflows.Load(), snapshots+c.snapshots.Load(), encoded+c.encoded.Load()
	})
	t.Logf("%d deltas, %d encoded, %d snapshots, %d resumed, %d overflows", deltas, encoded, snapshots, resumed, overflows)
	if resumed == 0 || overflows == 0 || snapshots == 0 || deltas == 0 {
		t.Error("something of this never happened: this proves nothing")
	}
}
