package agent

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// control is a controller in memory: a mesh.State behind the real protocol over
// real TLS, without a store.
type control struct {
	t        *testing.T
	ca       *enroll.CA
	token    enroll.Token
	clients  enroll.Token
	address  string
	lifetime time.Duration
	ping     time.Duration

	server *httptest.Server
	alarm  signal
	// Of all nodes of the test, in one course of time.
	log  *slog.Logger
	text *logs

	mu        sync.Mutex // guards what follows
	state     mesh.State
	slot      uint16
	renewals  int
	requests  map[string]int // by method and path
	reports   map[string]api.Report
	fence     bool
	certFails int
}

func testPlan(t testing.TB) ipam.Plan {
	t.Helper()
	p, err := ipam.NewPlan(netip.MustParsePrefix("fd12:3456:789a::/48"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newControl(t *testing.T) *control {
	t.Helper()
	ca, err := enroll.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := &control{t: t, ca: ca, lifetime: time.Hour, ping: 200 * time.Millisecond, requests: map[string]int{}, reports: map[string]api.Report{}, slot: 1}
	c.log, c.text = newLog(t)
	if c.token, err = enroll.NewToken(mesh.KindHost, ca.Pin()); err != nil {
		t.Fatal(err)
	}
	if c.clients, err = enroll.NewToken(mesh.KindClient, ca.Pin()); err != nil {
		t.Fatal(err)
	}
	c.change(
		mesh.Change{Key: "mesh", Object: mesh.Mesh{Plan: testPlan(t), Epoch: 1}},
		mesh.Change{Key: "regions/fra", Object: mesh.Region{Name: "fra", Number: 129, At: &mesh.Point{Latitude: 50.1, Longitude: 8.7}}},
		mesh.Change{Key: "regions/ams", Object: mesh.Region{Name: "ams", Number: 130}},
		mesh.Change{Key: "orgs/acme", Object: mesh.Org{Name: "acme", Network: 1}},
		mesh.Change{Key: "orgs/other", Object: mesh.Org{Name: "other", Network: 2}},
	)
	c.start("127.0.0.1:0")
	t.Cleanup(c.stop)
	return c
}

// start listens, on the address of before if there was one.
func (c *control) start(address string) {
	c.t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.address = l.Addr().String()
	key, err := enroll.LoadOrCreateKeys(c.t.TempDir())
	if err != nil {
		c.t.Fatal(err)
	}
	der, err := c.ca.SignController(key.TLS.Public(), time.Hour, time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{der, c.ca.Certificate()}, PrivateKey: key.TLS}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/enroll", c.enroll)
	mux.HandleFunc("GET /v1/nodes/self/view", c.node(c.view))
	mux.HandleFunc("POST /v1/nodes/self/renew", c.node(c.renew))
	mux.HandleFunc("POST /v1/nodes/self/report", c.node(c.report))
	mux.HandleFunc("PUT /v1/nodes/self/gateway", c.node(c.gateway))
	mux.HandleFunc("POST /v1/orgs/{org}/machines", c.node(c.createMachine))
	mux.HandleFunc("GET /v1/orgs/{org}/machines/{id}", c.node(c.showMachine))
	mux.HandleFunc("DELETE /v1/orgs/{org}/machines/{id}", c.node(c.deleteMachine))
	mux.HandleFunc("PUT /v1/orgs/{org}/machines/{id}/host", c.node(c.moveMachine))
	mux.HandleFunc("DELETE /v1/orgs/{org}/machines/{id}/host", c.node(c.moveMachine))
	c.server = httptest.NewUnstartedServer(mux)
	c.server.Listener.Close()
	c.server.Listener = l
	c.server.TLS = enroll.ServerTLS(func() *tls.Certificate { return cert })
	c.server.EnableHTTP2 = true
	c.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	c.server.StartTLS()
}

func (c *control) stop() {
	if c.server != nil {
		c.server.CloseClientConnections()
		c.server.Close()
		c.server = nil
	}
}

func (c *control) url() string { return "https://" + c.address }

// change applies changes as one revision and tells the streams.
func (c *control) change(changes ...mesh.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changeLocked(changes...)
}

func (c *control) changeLocked(changes ...mesh.Change) {
	c.state = c.state.With(changes...)
	c.state.Revision.Revision++
	c.alarm.fire()
}

func (c *control) now() mesh.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *control) count(request string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests[request]
}

func say(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func no(w http.ResponseWriter, e *api.Error, format string, args ...any) {
	w.WriteHeader(e.Status)
	json.NewEncoder(w).Encode(api.Error{Status: e.Status, Code: e.Code, Message: fmt.Sprintf(format, args...)})
}

func (c *control) enroll(w http.ResponseWriter, r *http.Request) {
	var q api.EnrollRequest
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		no(w, api.ErrInvalid, "%s", err)
		return
	}
	public, err := enroll.ParsePublicKey(q.TLSKey)
	key, err2 := wgtypes.ParseKey(q.Key)
	if err != nil || err2 != nil {
		no(w, api.ErrInvalid, "keys")
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var node mesh.Node
	switch q.Token {
	case c.token.Text():
		node = mesh.Node{Kind: mesh.KindHost, Name: q.Name}
		endpoint := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), q.Port)
		c.changeLocked(mesh.Change{Key: "hosts/" + q.Name, Object: mesh.Host{
			Name: q.Name, Number: uint32(c.state.Hosts.Len() + 1), Region: "fra", RegionNumber: 129, Key: mesh.Key(key), TLSKey: enroll.KeyHash(public),
			Endpoints: []netip.AddrPort{endpoint}, Orgs: []string{mesh.AllOrgs},
		}})
	case c.clients.Text():
		node = mesh.Node{Kind: mesh.KindClient, Org: "acme", Name: q.Name}
		c.slot++
		var home mesh.Host
		for _, home = range c.state.Hosts.All() {
			break
		}
		c.changeLocked(mesh.Change{Key: "clients/acme/" + q.Name, Object: mesh.Client{
			Org: "acme", Name: q.Name, Key: mesh.Key(key), TLSKey: enroll.KeyHash(public), Home: home.Name, Gateway: home.Name,
			Endpoint: c.state.Mesh.Plan.Endpoint(1, home.Position(), c.slot),
		}})
	default:
		no(w, api.ErrToken, "the token is not known")
		return
	}
	der, err := c.ca.SignNode(public, node, c.lifetime, time.Now())
	if err != nil {
		no(w, api.ErrInvalid, "%s", err)
		return
	}
	say(w, api.EnrollResponse{Node: node.String(), Certificate: der, Roots: []string{c.ca.PEM()}, Controllers: []string{c.url()}})
}

// node finds out who asks. Only renewal takes an expired certificate.
func (c *control) node(next func(http.ResponseWriter, *http.Request, mesh.Node)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.requests[r.Method+" "+r.URL.Path]++
		c.mu.Unlock()
		if len(r.TLS.PeerCertificates) == 0 {
			no(w, api.ErrUnauthorized, "no certificate")
			return
		}
		leaf := r.TLS.PeerCertificates[0]
		node, ok := c.now().NodeByTLSKey(enroll.KeyHash(leaf.PublicKey))
		expired := time.Now().After(leaf.NotAfter) || time.Now().Before(leaf.NotBefore)
		if !ok || expired && !strings.HasSuffix(r.URL.Path, "/renew") {
			if expired {
				c.mu.Lock()
				c.certFails++
				c.mu.Unlock()
			}
			no(w, api.ErrUnauthorized, "unknown or expired")
			return
		}
		next(w, r, node)
	}
}

func (c *control) view(w http.ResponseWriter, r *http.Request, node mesh.Node) {
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w)
	send := func(kind string, rev mesh.Revision, v any) bool {
		b, err := json.Marshal(v)
		if err != nil {
			return false
		}
		_, err = fmt.Fprintf(w, "event: %s\nid: %s\ndata: %s\n\n", kind, rev, b)
		return err == nil && flush.Flush() == nil
	}
	c.mu.Lock()
	fenced := c.fence
	c.mu.Unlock()
	if fenced {
		fmt.Fprintf(w, "event: %s\ndata: another node uses this key\n\n", api.EventFenced)
		flush.Flush()
		return
	}
	if node.Kind == mesh.KindHost {
		c.change(mesh.Change{Key: "presence/" + node.Name, Object: mesh.Presence{Host: node.Name, Controller: "c"}})
		defer c.change(mesh.Change{Key: "presence/" + node.Name})
	}
	d := mesh.Deployment{Controllers: []string{c.url()}, Roots: []string{c.ca.PEM()}}
	changed := c.alarm.C()
	last, ok := c.now().View(node, d)
	if !ok || !send(api.EventSnapshot, last.Revision, last) {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(c.ping):
			if !send(api.EventPing, last.Revision, api.Ping{Revision: last.Revision, Time: time.Now()}) {
				return
			}
			continue
		case <-changed:
		}
		changed = c.alarm.C()
		next, ok := c.now().View(node, d)
		if !ok {
			return
		}
		delta := mesh.DiffViews(last, next)
		if last = next; !delta.Empty() && !send(api.EventDelta, next.Revision, delta) {
			return
		}
	}
}

func (c *control) renew(w http.ResponseWriter, r *http.Request, node mesh.Node) {
	c.mu.Lock()
	c.renewals++
	c.mu.Unlock()
	der, err := c.ca.SignNode(r.TLS.PeerCertificates[0].PublicKey, node, c.lifetime, time.Now())
	if err != nil {
		no(w, api.ErrInvalid, "%s", err)
		return
	}
	say(w, api.RenewResponse{Certificate: der, Roots: []string{c.ca.PEM()}})
}

func (c *control) report(w http.ResponseWriter, r *http.Request, node mesh.Node) {
	var q api.Report
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		no(w, api.ErrInvalid, "%s", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reports[node.String()] = q
	w.WriteHeader(http.StatusNoContent)
}

func (c *control) gateway(w http.ResponseWriter, r *http.Request, node mesh.Node) {
	var q api.GatewayRequest
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		no(w, api.ErrInvalid, "%s", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := node.Org + "/" + node.Name
	client, _ := c.state.Clients.Get(key)
	client.Gateway = q.Gateway
	c.changeLocked(mesh.Change{Key: "clients/" + key, Object: client})
	say(w, client)
}

func (c *control) createMachine(w http.ResponseWriter, r *http.Request, node mesh.Node) {
	var q api.CreateMachine
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		no(w, api.ErrInvalid, "%s", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	org, ok := c.state.Orgs.Get(r.PathValue("org"))
	if !ok {
		no(w, api.ErrNotFound, "org %s: not found", r.PathValue("org"))
		return
	}
	key := org.Name + "/" + q.ID
	m, there := c.state.Machines.Get(key)
	_, taken := c.state.AtEndpoint(q.Endpoint)
	switch {
	case there && m.Host == node.Name && !q.Endpoint.IsValid(): // said before
	case there && q.Move:
		m.Next = node.Name
	case there:
		no(w, api.ErrExists, "machine %s: exists already on host %s", key, m.Host)
		return
	case taken:
		no(w, api.ErrConflict, "machine %s: %s is another one's", key, q.Endpoint)
		return
	default:
		m = c.newMachine(org, node.Name, q)
	}
	c.changeLocked(mesh.Change{Key: "machines/" + key, Object: m})
	host, _ := c.state.Hosts.Get(m.Host)
	say(w, api.MachineInfo{Machine: m, Address: m.Address(), Region: host.Region})
}

func (c *control) newMachine(org mesh.Org, on string, q api.CreateMachine) mesh.Machine {
	c.slot++
	host, _ := c.state.Hosts.Get(on)
	m := mesh.Machine{
		Org: org.Name, ID: q.ID, App: q.App, Group: q.Group, Meta: q.Meta, Host: on, State: mesh.StateStarted,
		Stable:   q.Stable == nil || *q.Stable,
		Endpoint: c.state.Mesh.Plan.Endpoint(org.Network, host.Position(), c.slot), Created: time.Now().UTC(),
	}
	if q.Endpoint.IsValid() {
		m.Endpoint = q.Endpoint
	}
	return m
}

// moveMachine completes a move, or (DELETE) calls it off.
func (c *control) moveMachine(w http.ResponseWriter, r *http.Request, node mesh.Node) {
	var q api.MoveMachine
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil && r.Method == http.MethodPut {
		no(w, api.ErrInvalid, "%s", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := r.PathValue("org") + "/" + r.PathValue("id")
	m, there := c.state.Machines.Get(key)
	switch {
	case !there:
		no(w, api.ErrNotFound, "machine %s: not found", key)
		return
	case m.Host == node.Name && m.Generation == q.Generation+1: // said before
	case m.Next != node.Name || r.Method == http.MethodPut && m.Generation != q.Generation:
		no(w, api.ErrConflict, "machine %s: it is not about to move to %s", key, node.Name)
		return
	case r.Method == http.MethodPut:
		m.Host, m.Next, m.Generation = node.Name, "", m.Generation+1
	default:
		m.Next = ""
	}
	c.changeLocked(mesh.Change{Key: "machines/" + key, Object: m})
	say(w, api.MachineInfo{Machine: m, Address: m.Address()})
}

// restore makes the state that of a backup, with changes: what the nodes saw since
// is of an older epoch.
func (c *control) restore(changes ...mesh.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.Revision.Epoch++
	c.changeLocked(changes...)
}

func (c *control) showMachine(w http.ResponseWriter, r *http.Request, _ mesh.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := r.PathValue("org") + "/" + r.PathValue("id")
	if m, ok := c.state.Machines.Get(key); ok {
		json.NewEncoder(w).Encode(api.MachineInfo{Machine: m})
		return
	}
	no(w, api.ErrNotFound, "machine %s: not found", key)
}

func (c *control) deleteMachine(w http.ResponseWriter, r *http.Request, node mesh.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := r.PathValue("org") + "/" + r.PathValue("id")
	switch m, ok := c.state.Machines.Get(key); {
	case !ok:
		no(w, api.ErrNotFound, "machine %s: not found", key)
	case m.Host != node.Name:
		no(w, api.ErrConflict, "machine %s: it is on %s", key, m.Host)
	default:
		c.changeLocked(mesh.Change{Key: "machines/" + key})
		w.WriteHeader(http.StatusNoContent)
	}
}
