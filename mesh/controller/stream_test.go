package controller

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

func TestViewFollowsChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	fra1, fra2 := w.host("fra1", "fra", "acme"), w.host("fra2", "fra", "acme")
	f := fra1.view()
	first := f.next()
	if first.Snapshot == nil {
		t.Fatalf("the first event is %+v, want a snapshot", first)
	}
	f.view = *first.Snapshot
	if diff := cmp.Diff([]string{w.url}, f.view.Controllers); diff != "" {
		t.Errorf("controllers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(fra1.is.Roots, f.view.Roots); diff != "" {
		t.Errorf("roots (-want +got):\n%s", diff)
	}
	a := fra1.machine("acme", "web", "a")
	b := fra2.machine("acme", "web", "b")
	v := f.until("both machines and the other host", func(v mesh.View) bool { return len(v.Machines) == 2 && len(v.Hosts) == 1 })
	if diff := cmp.Diff([]string{a.Address.String(), b.Address.String()}, []string{v.Machines[0].Address().String(), v.Machines[1].Address().String()}); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if err := fra2.Do(t.Context(), "DELETE", "/v1/orgs/acme/machines/b", nil, nil); err != nil {
		t.Fatal(err)
	}
	f.until("the machine and the host gone", func(v mesh.View) bool { return len(v.Machines) == 1 && len(v.Hosts) == 0 })
}

// What a node has put together from deltas is what the next snapshot says.
func TestDeltasLeadToTheSnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.org("evil")
	w.region("fra")
	fra1, fra2 := w.host("fra1", "fra", "all"), w.host("fra2", "fra", "all")
	f := fra1.view()
	for _, m := range []struct{ org, app, id string }{{"acme", "web", "a"}, {"evil", "db", "b"}, {"acme", "api", "c"}} {
		fra1.machine(m.org, m.app, m.id)
		fra2.machine(m.org, m.app, m.id+"2")
	}
	ann := w.laptop("acme", "ann")
	do[api.ClientInfo](t, ann.Client, "PUT", "/v1/nodes/self/gateway", api.GatewayRequest{Gateway: "fra2"})
	do[api.HostInfo](t, w.admin, "PATCH", "/v1/hosts/fra2", map[string]any{"cordoned": true})
	for _, path := range []string{"/v1/orgs/evil/machines/b", "/v1/orgs/acme/machines/c2", "/v1/orgs/evil"} {
		if err := w.admin.Do(t.Context(), "DELETE", path, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	got := f.until("all of it", func(v mesh.View) bool {
		return len(v.Machines) == 3 && len(v.Clients) == 1 && len(v.Hosts) == 1 && v.Hosts[0].Cordoned && len(v.Orgs) == 1
	})
	f.close()
	second := fra1.view()
	want := second.until("the next snapshot", func(mesh.View) bool { return true })
	got.Revision, want.Revision = mesh.Revision{}, mesh.Revision{}
	if diff := cmp.Diff(jsonOf(t, want), jsonOf(t, got)); diff != "" {
		t.Errorf("(-snapshot +deltas):\n%s", diff)
	}
}

func jsonOf(t *testing.T, v any) (out any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Nothing of an org ever reaches a node that does not carry it: not a name, not an
// address, not a key, in no event.
func TestTwoOrgsStreamsAreIsolated(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.org("secretcorp")
	w.region("fra")
	a, s := w.host("edge-a", "fra", "acme"), w.host("edge-s", "fra", "secretcorp")
	a.machine("acme", "web", "first")
	ann := w.laptop("acme", "ann")
	raw := map[string]*lines{"host": w.lines(a, "h2"), "client": w.lines(ann, "h2")}
	sam := w.laptop("secretcorp", "sam-h")
	m := s.machine("secretcorp", "vault", "hush")
	if err := w.admin.Do(t.Context(), "DELETE", "/v1/orgs/secretcorp/machines/hush", nil, nil); err != nil {
		t.Fatal(err)
	}
	do[mesh.App](t, w.admin, "POST", "/v1/orgs/secretcorp/apps", api.CreateApp{Name: "later"})
	a.machine("acme", "web", "last") // seen by both: what came before has been sent
	theirs := do[api.ClientInfo](t, w.admin, "GET", "/v1/orgs/secretcorp/clients/sam-h", nil)
	forbidden := []string{
		"secretcorp", "vault", "hush", "sam-h", "later", "edge-s", m.Endpoint.String(), theirs.Endpoint.String(),
		s.keys.WireGuard.PublicKey().String(), sam.keys.WireGuard.PublicKey().String(),
	}
	for who, l := range raw {
		var text string
		if who == "host" {
			text = l.until("last")
		} else {
			text = l.untilRevision(m.Created) // a client sees no machines: enough pings have passed
		}
		for _, f := range forbidden {
			if strings.Contains(text, f) {
				t.Errorf("the %s's stream holds %q of another org", who, f)
			}
		}
	}
	// A client's key is for its gateway only.
	other := w.host("edge-b", "fra", "acme")
	other.machine("acme", "web", "third")
	v := other.view().until("the client", func(v mesh.View) bool { return len(v.Clients) == 1 })
	if v.Clients[0].Key != nil {
		t.Error("a host that is not the gateway got the client's key")
	}
}

func jsonText(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// lines reads a stream as it comes over the wire.
type lines struct {
	t    *testing.T
	resp *http.Response
	text chan string
}

func (w *world) lines(n *node, protocol string) *lines {
	w.t.Helper()
	c := w.bare(protocol, n.certificate)
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "GET", w.url+"/v1/nodes/self/view", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	l := &lines{t: w.t, resp: resp, text: make(chan string, 10000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(l.text)
		r := bufio.NewReader(resp.Body)
		for {
			s, err := r.ReadString('\n')
			if err != nil {
				return
			}
			select {
			case l.text <- s:
			default: // nobody reads any more
			}
		}
	}()
	w.t.Cleanup(func() { cancel(); resp.Body.Close(); <-done })
	return l
}

// until returns all text up to and with the line that holds what.
func (l *lines) until(what string) string {
	l.t.Helper()
	var all strings.Builder
	deadline := time.After(patience)
	for {
		select {
		case s, ok := <-l.text:
			if !ok {
				l.t.Fatalf("waiting for %q: the stream ended after %s", what, all.String())
			}
			all.WriteString(s)
			if strings.Contains(s, what) {
				return all.String()
			}
		case <-deadline:
			l.t.Fatalf("waiting for %q: only %s came", what, all.String())
		}
	}
}

// untilRevision reads on until the controller has sent two pings more than there
// were: each covers what happened before.
func (l *lines) untilRevision(time.Time) string {
	l.t.Helper()
	text := l.until("snapshot")
	for drained := false; !drained; {
		select {
		case s := <-l.text:
			text += s
		default:
			drained = true
		}
	}
	return text + l.until("event: ping") + l.until("event: ping") + l.until("data:")
}

// The stream's format is a contract: events with id and data, flushed at once,
// over either version of HTTP.
func TestStreamOnTheWire(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"h2", "http/1.1"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(c *Config) { c.PingEvery = 100 * time.Millisecond })
			w.org("acme")
			w.region("fra")
			n := w.host("fra1", "fra", "all")
			began := time.Now()
			l := w.lines(n, protocol)
			if want := map[string]int{"h2": 2, "http/1.1": 1}[protocol]; l.resp.ProtoMajor != want {
				t.Fatalf("HTTP/%d", l.resp.ProtoMajor)
			}
			if ct := l.resp.Header.Get("Content-Type"); ct != "text/event-stream" {
				t.Errorf("content type %q", ct)
			}
			first := l.until("data: ")
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("the snapshot took %s", took)
			}
			head := strings.SplitN(first, "\n", 3)
			if !strings.HasPrefix(head[0], "id: ") || head[1] != "event: snapshot" {
				t.Errorf("it begins %q", first)
			}
			rev := head[0]
			n.machine("acme", "web", "a")
			delta := l.until("web")
			if strings.Contains(delta, rev+"\nevent: delta") || !strings.Contains(delta, "event: delta\ndata: {") {
				t.Errorf("delta %q", delta)
			}
			l.until("event: ping")
			data := strings.TrimPrefix(l.until("data: "), "data: ")
			var ping api.Ping
			if err := json.Unmarshal([]byte(data), &ping); err != nil || ping.Revision.Revision == 0 || time.Since(ping.Time) > time.Minute {
				t.Errorf("ping %q: %v", data, err)
			}
		})
	}
}

// A removed node's stream ends within a second, and it does not come back.
func TestRemovalCutsTheStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.PingEvery = time.Hour }) // not by way of a ping
	w.org("acme")
	w.org("evil")
	w.region("fra")
	hostNode, laptop, other := w.host("fra1", "fra", "all"), w.laptop("acme", "ann"), w.laptop("evil", "eve")
	for _, tt := range []struct {
		name, remove string
		node         *node
	}{
		{"client", "/v1/orgs/acme/clients/ann", laptop},
		{"client of a removed org", "/v1/orgs/evil", other},
		{"host", "/v1/hosts/fra1", hostNode},
	} {
		f := tt.node.view()
		f.until("a view", func(mesh.View) bool { return true })
		began := time.Now()
		if err := w.admin.Do(t.Context(), "DELETE", tt.remove, nil, nil); err != nil {
			t.Fatal(err)
		}
		f.end()
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s: cut after %s", tt.name, took)
		}
		_, err := tt.node.View(t.Context(), mesh.Revision{}, patience)
		refused(t, err, api.ErrUnauthorized)
	}
}

func TestPresenceFollowsTheStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.region("fra")
	w.org("acme")
	fra1, ann := w.host("fra1", "fra", "all"), (*node)(nil)
	present := func() bool { return do[api.HostInfo](t, w.admin, "GET", "/v1/hosts/fra1", nil).Present }
	if present() {
		t.Error("present without a stream")
	}
	f := fra1.view()
	eventually(t, "present", present)
	f.close()
	eventually(t, "absent", func() bool { return !present() })
	// A client's stream makes nobody present.
	ann = w.laptop("acme", "ann")
	ann.view().until("a view", func(mesh.View) bool { return true })
	if present() {
		t.Error("a client made its gateway present")
	}
}

// A cloned disk image: the second node with one key is fenced, the first one
// stays, and somebody is told.
func TestOneKeyTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.FenceAfter = patience })
	w.region("fra")
	original := w.host("fra1", "fra", "all")
	first := original.view()
	first.until("a view", func(mesh.View) bool { return true })
	clone := &node{w: w, keys: original.keys, is: original.is, cert: original.certificate()}
	clone.reconnect()
	second := clone.view()
	e := second.next()
	if !strings.Contains(e.Fenced, "same key") || !strings.Contains(e.Fenced, "127.0.0.1") {
		t.Errorf("the clone got %+v, want to be fenced", e)
	}
	if err := second.end(); !errors.Is(err, io.EOF) {
		t.Errorf("the clone's stream ended with %v", err)
	}
	w.org("acme")
	original.machine("acme", "web", "a")
	first.until("the original still follows", func(v mesh.View) bool { return len(v.Machines) == 1 })
	if !strings.Contains(w.log.String(), "level=ERROR") || !strings.Contains(w.log.String(), "fenced") {
		t.Error("no alarm in the log")
	}
	if m := w.scrape(); !strings.Contains(m, "weft_controller_fenced_total 1") {
		t.Error("no alarm in the metrics")
	}
}

// A node whose old connection is dead without anybody having said so gets in.
func TestDeadStreamIsReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.PingEvery, c.FenceAfter = time.Hour, fenceGrace+3*fencePoll })
	w.region("fra")
	n := w.host("fra1", "fra", "all")
	// A relay that stops to read, as a cut cable does: what is sent is not
	// acknowledged once the buffers are full. To have them full, there is a lot.
	silent := w.silentStream(n)
	defer silent.Close()
	eventually(t, "the first stream", func() bool { return strings.Contains(w.scrape(), "weft_controller_streams 1") })
	w.org("acme")
	for i := range 40 {
		do[api.MachineInfo](t, n.Client, "POST", "/v1/orgs/acme/machines", api.CreateMachine{App: "web", Meta: map[string]string{"a": strings.Repeat("x", 200+i)}})
	}
	f := n.view()
	f.until("the snapshot on a new connection", func(v mesh.View) bool { return len(v.Machines) == 40 })
}

// silentStream opens a view stream on a connection that is never read again.
func (w *world) silentStream(n *node) net.Conn {
	w.t.Helper()
	d := net.Dialer{Control: smallBuffers}
	conn, err := d.DialContext(w.t.Context(), "tcp", strings.TrimPrefix(w.url, "https://"))
	if err != nil {
		w.t.Fatal(err)
	}
	config := enroll.ClientTLS(enroll.ClientConfig{Pin: w.pin, Certificate: n.certificate})
	config.NextProtos = []string{"http/1.1"}
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /v1/nodes/self/view HTTP/1.1\r\nHost: controller.weft\r\n\r\n"); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// A reader that takes nothing is cut, and holds up nobody.
func TestSlowReaderIsCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.PingEvery = 10 * time.Millisecond; c.WriteTimeout = 200 * time.Millisecond })
	w.region("fra")
	w.org("acme")
	n := w.host("fra1", "fra", "all")
	slow := w.bare("h2", n.certificate)
	slow.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 16}
	resp, err := slow.Get(w.url + "/v1/nodes/self/view")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	open := func() bool { return strings.Contains(w.scrape(), "weft_controller_streams 1") }
	eventually(t, "the stream", open)
	meta := map[string]string{}
	for _, k := range "abcdefghijklmnopqrstuvwxyz" {
		meta[string(k)] = strings.Repeat("x", 250)
	}
	for range 20 { // 6.5 kB each: more than the reader has room for
		do[api.MachineInfo](t, n.Client, "POST", "/v1/orgs/acme/machines", api.CreateMachine{App: "web", Meta: meta})
	}
	eventually(t, "the end of the stream", func() bool { return !open() })
	// The connection, and what else goes over it, is not to blame.
	if again, err := slow.Get(w.url + "/v1/mesh"); err != nil || again.StatusCode != http.StatusOK {
		t.Errorf("after it: %v", err)
	} else {
		again.Body.Close()
	}
}

func TestStopEndsStreamsAndPresence(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.PingEvery = time.Hour })
	w.region("fra")
	n := w.host("fra1", "fra", "all")
	f := n.view()
	f.until("a view", func(mesh.View) bool { return true })
	eventually(t, "present", func() bool { return do[api.HostInfo](t, w.admin, "GET", "/v1/hosts/fra1", nil).Present })
	began := time.Now()
	w.stop()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("stopping took %s", took)
	}
	f.end()
	dump, err := w.etcdDump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(dump, "presence/fra1") {
		t.Error("the host is still present")
	}
	if !strings.Contains(dump, "hosts/fra1") {
		t.Error("the test looks in the wrong place")
	}
}

// scrape returns the metrics.
func (w *world) scrape() string {
	w.t.Helper()
	resp, err := http.Get(w.metrics + "/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	return readAll(w.t, resp)
}
