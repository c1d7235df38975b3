package controller

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/etcd"
	"github.com/weftmesh/weft/mesh/store"
)

const patience = 10 * time.Second

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The etcd library starts these once for the process and never ends them.
		goleak.IgnoreTopFunction("go.etcd.io/etcd/pkg/v3/logutil.(*MergeLogger).outputLoop"),
	)
}

// logBuffer keeps what is logged, at every level.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// world is a controller with an etcd of its own, on loopback.
type world struct {
	t       *testing.T
	cfg     Config
	log     *logBuffer
	etcd    *etcd.Server
	root    string
	url     string
	metrics string
	pin     string
	admin   *api.Client // with the credential of the first operator
	cred    enroll.Credential
	stop    func() // stops the controller and waits
}

// newWorld starts a controller on a new mesh. change may alter its configuration.
func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t, log: &logBuffer{}, root: "/weft/", etcd: startEtcd(t)}
	w.cfg = Config{
		DataDir: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", Version: "test",
		Prefix: netip.MustParsePrefix("fd12:3456:789a::/48"), PingEvery: 50 * time.Millisecond,
		FenceAfter: 2 * time.Second, Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&w.cfg)
	}
	w.start()
	return w
}

func startEtcd(t *testing.T) *etcd.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	e, err := etcd.Start(ctx, etcd.Config{Dir: filepath.Join(t.TempDir(), "etcd"), Fast: true, UnsafeNoFsync: true, WALSegment: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func newStore(t *testing.T, e *etcd.Server, root string) *store.Store {
	t.Helper()
	s, err := store.New(store.Config{Client: e.Client(), Root: root, ProgressEvery: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// start runs the controller and returns when it is ready.
func (w *world) start() {
	w.t.Helper()
	ready := make(chan netip.AddrPort, 1)
	cfg := w.cfg
	cfg.Store = newStore(w.t, w.etcd, w.root)
	cfg.Ready = func(a netip.AddrPort) { ready <- a }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	select {
	case addr := <-ready:
		w.url = "https://" + addr.String()
	case err := <-ended:
		cancel()
		w.t.Fatalf("the controller ended: %v\n%s", err, w.log)
	case <-time.After(patience):
		cancel()
		w.t.Fatalf("the controller is not ready\n%s", w.log)
	}
	_, after, _ := strings.Cut(w.log.String(), " metrics=")
	w.metrics = "http://" + strings.Fields(after)[0]
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					w.t.Errorf("the controller ended with %v", err)
				}
			case <-time.After(patience):
				w.t.Error("the controller does not end")
			}
		})
	}
	w.t.Cleanup(w.stop)
	text, err := os.ReadFile(filepath.Join(w.cfg.DataDir, OperatorFile))
	if err != nil {
		w.t.Fatal(err)
	}
	var f enroll.OperatorFile
	if err := yaml.Unmarshal(text, &f); err != nil {
		w.t.Fatal(err)
	}
	if err := f.Check(); err != nil {
		w.t.Fatal(err)
	}
	w.pin = f.Pin
	if w.cred, err = enroll.ParseCredential(f.Credential); err != nil {
		w.t.Fatal(err)
	}
	w.admin = w.client(enroll.ClientConfig{Pin: w.pin}, f.Credential)
}

// client returns a client of this controller.
func (w *world) client(trust enroll.ClientConfig, bearer string) *api.Client {
	w.t.Helper()
	c, err := api.New(api.Config{Servers: []string{w.url}, TLS: enroll.ClientTLS(trust), Bearer: bearer, Timeout: patience})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

// do makes a request that must succeed.
func do[T any](t *testing.T, c *api.Client, method, path string, in any) (out T) {
	t.Helper()
	if err := c.Do(t.Context(), method, path, in, &out); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return out
}

func (w *world) org(name string) {
	w.t.Helper()
	do[api.OrgInfo](w.t, w.admin, "POST", "/v1/orgs", api.CreateOrg{Name: name})
}

func (w *world) region(name string) {
	w.t.Helper()
	do[mesh.Region](w.t, w.admin, "POST", "/v1/regions", api.CreateRegion{Name: name, At: &mesh.Point{Latitude: 50.1, Longitude: 8.7}})
}

func (w *world) token(in api.CreateToken) api.CreatedToken {
	w.t.Helper()
	return do[api.CreatedToken](w.t, w.admin, "POST", "/v1/tokens", in)
}

// operator makes an operator and returns a client with its credential.
func (w *world) operator(id, role, org string) *api.Client {
	w.t.Helper()
	created := do[api.CreatedOperator](w.t, w.admin, "POST", "/v1/operators", api.CreateOperator{ID: id, Role: role, Org: org})
	return w.client(enroll.ClientConfig{Pin: w.pin}, created.ID+"."+created.Secret)
}

// node is a host or a client that has keys, and perhaps has joined.
type node struct {
	*api.Client
	w    *world
	id   enroll.Identity
	keys enroll.Keys
	is   enroll.Membership
	mu   sync.Mutex
	cert *tls.Certificate
}

// newNode makes a node that knows the mesh by its pin.
func (w *world) newNode() *node {
	w.t.Helper()
	n := &node{w: w, id: enroll.Identity{Dir: filepath.Join(w.t.TempDir(), "id")}}
	var err error
	if n.keys, err = n.id.Keys(); err != nil {
		w.t.Fatal(err)
	}
	n.reconnect()
	return n
}

// reconnect gives the node a client with connections of its own.
func (n *node) reconnect() {
	n.Client = n.w.client(enroll.ClientConfig{Pin: n.w.pin, Certificate: n.certificate}, "")
}

func (n *node) certificate() *tls.Certificate {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cert
}

func (n *node) setCertificate(der []byte) {
	n.w.t.Helper()
	c, err := n.keys.Certificate(der)
	if err != nil {
		n.w.t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cert = c
}

func (n *node) request(token, name string) api.EnrollRequest {
	n.w.t.Helper()
	pub, err := n.keys.TLSPublic()
	if err != nil {
		n.w.t.Fatal(err)
	}
	return api.EnrollRequest{Token: token, Name: name, Key: n.keys.WireGuard.PublicKey().String(), TLSKey: pub, Endpoint: "192.0.2.1:51820"}
}

func (n *node) join(req api.EnrollRequest) error {
	var resp api.EnrollResponse
	if err := n.Do(n.w.t.Context(), "POST", "/v1/enroll", req, &resp); err != nil {
		return err
	}
	n.setCertificate(resp.Certificate)
	n.is.Node, _ = mesh.ParseNode(resp.Node)
	n.is.Certificate, n.is.Roots, n.is.Controllers = resp.Certificate, resp.Roots, resp.Controllers
	n.reconnect() // the connection so far showed no certificate
	return nil
}

// host enrols a host; orgs are those that it may carry.
func (w *world) host(name, region string, orgs ...string) *node {
	w.t.Helper()
	n := w.newNode()
	t := w.token(api.CreateToken{Kind: mesh.KindHost, Orgs: orgs, Region: region})
	if err := n.join(n.request(t.Token, name)); err != nil {
		w.t.Fatalf("enrol host %s: %v", name, err)
	}
	return n
}

// laptop enrols a client.
func (w *world) laptop(org, name string) *node {
	w.t.Helper()
	n := w.newNode()
	t := w.token(api.CreateToken{Kind: mesh.KindClient, Org: org})
	if err := n.join(n.request(t.Token, name)); err != nil {
		w.t.Fatalf("enrol client %s/%s: %v", org, name, err)
	}
	return n
}

// machine registers a machine on the host.
func (n *node) machine(org, app, id string) api.MachineInfo {
	n.w.t.Helper()
	return do[api.MachineInfo](n.w.t, n.Client, "POST", "/v1/orgs/"+org+"/machines", api.CreateMachine{App: app, ID: id})
}

// view opens the node's stream.
func (n *node) view() *follower {
	n.w.t.Helper()
	s, err := n.View(n.w.t.Context(), mesh.Revision{}, patience)
	if err != nil {
		n.w.t.Fatalf("view of %s: %v", n.is.Node, err)
	}
	f := &follower{t: n.w.t, stream: s, events: make(chan api.Event, 1000), ended: make(chan error, 1), done: make(chan struct{})}
	go f.read()
	n.w.t.Cleanup(f.close)
	return f
}

// follower reads a stream and applies it.
type follower struct {
	t      *testing.T
	stream *api.Stream
	events chan api.Event
	ended  chan error
	done   chan struct{}
	view   mesh.View
}

func (f *follower) read() {
	defer close(f.done)
	for {
		e, err := f.stream.Next()
		if err != nil {
			f.ended <- err
			return
		}
		f.events <- e
	}
}

func (f *follower) close() { f.stream.Close(); <-f.done }

// next returns the next event of any kind.
func (f *follower) next() api.Event {
	f.t.Helper()
	select {
	case e := <-f.events:
		return e
	case err := <-f.ended:
		f.t.Fatalf("the stream ended: %v", err)
	case <-time.After(patience):
		f.t.Fatal("no event came")
	}
	return api.Event{}
}

// until applies events until the view is as wanted.
func (f *follower) until(what string, ok func(mesh.View) bool) mesh.View {
	f.t.Helper()
	deadline := time.After(patience)
	for f.view.Plan.IsValid() == false || !ok(f.view) {
		select {
		case e := <-f.events:
			switch {
			case e.Snapshot != nil:
				f.view = *e.Snapshot
			case e.Delta != nil:
				f.view = f.view.Apply(*e.Delta)
			case e.Fenced != "":
				f.t.Fatalf("fenced: %s", e.Fenced)
			}
		case err := <-f.ended:
			f.t.Fatalf("waiting for %s: the stream ended: %v", what, err)
		case <-deadline:
			f.t.Fatalf("%s: did not come about; the view is %+v", what, f.view)
		}
	}
	return f.view
}

// end waits until the controller has ended the stream.
func (f *follower) end() error {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case <-f.events:
		case err := <-f.ended:
			return err
		case <-deadline:
			f.t.Fatal("the stream does not end")
		}
	}
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("%s: did not come about", what)
		case <-tick.C:
		}
	}
}

// refused checks that err is a refusal with the code of want.
func refused(t *testing.T, err error, want *api.Error) *api.Error {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != want.Code || e.Status != want.Status {
		t.Errorf("got %v, want a refusal with code %s", err, want.Code)
		return &api.Error{}
	}
	if e.Message == "" {
		t.Error("the refusal says nothing")
	}
	return e
}

func newWireGuardKey(t *testing.T) string {
	t.Helper()
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k.PublicKey().String()
}

// bare is an HTTP client with the trust of a pin, for what api.Client hides.
func (w *world) bare(protocol string, cert func() *tls.Certificate) *http.Client {
	config := enroll.ClientTLS(enroll.ClientConfig{Pin: w.pin, Certificate: cert})
	config.NextProtos = []string{protocol}
	tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: protocol == "h2"}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}
