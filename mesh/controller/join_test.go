package controller

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

func TestEnroll(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	fra1 := w.host("fra1", "fra", "acme")
	if got, want := fra1.is.Node.String(), "host/fra1"; got != want {
		t.Errorf("node %q, want %q", got, want)
	}
	if diff := cmp.Diff([]string{w.url}, fra1.is.Controllers); diff != "" {
		t.Errorf("controllers (-want +got):\n%s", diff)
	}
	h := do[api.HostInfo](t, w.admin, "GET", "/v1/hosts/fra1", nil)
	if h.Region != "fra" || h.Number != 1 || h.Address.String() != "fd12:3456:789a:0:8000:1:0:1" {
		t.Errorf("host %+v", h)
	}
	if len(h.Endpoints) != 1 || h.Endpoints[0].String() != "192.0.2.1:51820" {
		t.Errorf("endpoints %v", h.Endpoints)
	}
	ann := w.laptop("acme", "ann")
	if got, want := ann.is.Node.String(), "client/acme/ann"; got != want {
		t.Errorf("node %q, want %q", got, want)
	}
	c := do[api.ClientInfo](t, w.admin, "GET", "/v1/orgs/acme/clients/ann", nil)
	if c.Gateway != "fra1" || c.Address != c.Endpoint.Addr().Next().Next() {
		t.Errorf("client %+v", c)
	}
	// With the roots that it was given a node no longer needs the pin.
	byRoots := w.client(enroll.ClientConfig{Roots: fra1.is.Roots, Certificate: fra1.certificate}, "")
	if err := byRoots.Do(t.Context(), "POST", "/v1/nodes/self/report", api.Report{Version: "1"}, nil); err != nil {
		t.Error(err)
	}
}

func TestEnrollRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	w.host("taken", "fra", "all")
	otherPin := strings.Repeat("a", 52)
	for _, tt := range []struct {
		name   string
		token  api.CreateToken
		mangle func(*node, *api.EnrollRequest)
		want   *api.Error
		says   string
		hint   string
	}{
		{"no token", hostToken, func(_ *node, r *api.EnrollRequest) { r.Token = "" }, api.ErrToken, "it is empty", "weft token create"},
		{"nonsense", hostToken, func(_ *node, r *api.EnrollRequest) { r.Token = "weft-host-x" }, api.ErrToken, "a part is missing", "weft token create"},
		{"wrong secret", hostToken, func(_ *node, r *api.EnrollRequest) { r.Token = withSecret(t, r.Token) }, api.ErrToken, "there is no such token", "weft token create"},
		{"unknown token", hostToken, func(_ *node, r *api.EnrollRequest) {
			x, _ := enroll.NewToken(mesh.KindHost, w.pin)
			r.Token = x.Text()
		}, api.ErrToken, "there is no such token", "weft token create"},
		{"token of another mesh", hostToken, func(_ *node, r *api.EnrollRequest) {
			r.Token = strings.Replace(r.Token, w.pin, otherPin, 1)
		}, api.ErrToken, "another mesh", "weft token create"},
		{"client's token that says host", clientToken, func(_ *node, r *api.EnrollRequest) {
			r.Token = strings.Replace(r.Token, "weft-client-", "weft-host-", 1)
		}, api.ErrToken, "is for a client", ""},
		{"expired", api.CreateToken{Kind: mesh.KindHost, Orgs: []string{"all"}, Region: "fra", TTL: "1ns"}, nil, api.ErrToken, "expired at", "weft token create"},
		{"name that is none", hostToken, func(_ *node, r *api.EnrollRequest) { r.Name = "Fra 1" }, api.ErrInvalid, `"Fra 1"`, ""},
		{"name taken", hostToken, func(_ *node, r *api.EnrollRequest) { r.Name = "taken" }, api.ErrExists, "taken", "weft host remove"},
		{"no region", api.CreateToken{Kind: mesh.KindHost, Orgs: []string{"all"}}, nil, api.ErrInvalid, "region", "--region"},
		{"unknown region", api.CreateToken{Kind: mesh.KindHost, Orgs: []string{"all"}}, func(_ *node, r *api.EnrollRequest) { r.Region = "nrt" }, api.ErrNotFound, "region nrt", "weft region create"},
		{"region of another token", hostToken, func(_ *node, r *api.EnrollRequest) { r.Region = "nrt" }, api.ErrConflict, "for region fra", ""},
		{"WireGuard key", hostToken, func(_ *node, r *api.EnrollRequest) { r.Key = "AAAA" }, api.ErrInvalid, "WireGuard public key", "wg pubkey"},
		{"WireGuard key of zeros", hostToken, func(_ *node, r *api.EnrollRequest) { r.Key = base64.StdEncoding.EncodeToString(make([]byte, 32)) }, api.ErrInvalid, "WireGuard public key", ""},
		{"TLS key", hostToken, func(_ *node, r *api.EnrollRequest) { r.TLSKey = []byte("x") }, api.ErrInvalid, "TLS public key", ""},
		{"no endpoint, seen on loopback", hostToken, func(_ *node, r *api.EnrollRequest) { r.Endpoint = "" }, api.ErrInvalid, "saw it at 127.0.0.1", "--endpoint"},
		{"endpoint without a port", hostToken, func(_ *node, r *api.EnrollRequest) { r.Endpoint = "192.0.2.1" }, api.ErrInvalid, `endpoint "192.0.2.1"`, "--endpoint"},
		{"endpoint that is a name", hostToken, func(_ *node, r *api.EnrollRequest) { r.Endpoint = "fra1.example:51820" }, api.ErrInvalid, "want IP:PORT", "--endpoint"},
		{"unspecified endpoint", hostToken, func(_ *node, r *api.EnrollRequest) { r.Endpoint = "[::]:51820" }, api.ErrInvalid, "cannot reach", "--endpoint"},
		{"endpoint within the mesh", hostToken, func(_ *node, r *api.EnrollRequest) { r.Endpoint = "[fd12:3456:789a:0:100:1:0:1]:51820" }, api.ErrInvalid, "in the mesh fd12:3456:789a::/48 itself", "--endpoint"},
		{"link-local endpoint", hostToken, func(_ *node, r *api.EnrollRequest) { r.Endpoint = "[fe80::1%eth0]:51820" }, api.ErrInvalid, "cannot reach", "--endpoint"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := w.newNode()
			req := n.request(w.token(tt.token).Token, "new")
			if tt.mangle != nil {
				tt.mangle(n, &req)
			}
			e := refused(t, n.join(req), tt.want)
			if !strings.Contains(e.Message, tt.says) || !strings.Contains(e.Advice, tt.hint) {
				t.Errorf("says %q, hint %q; want %q, %q", e.Message, e.Advice, tt.says, tt.hint)
			}
			if hosts := do[[]api.HostInfo](t, w.admin, "GET", "/v1/hosts", nil); len(hosts) != 1 {
				t.Errorf("there are %d hosts", len(hosts))
			}
		})
	}
}

var (
	hostToken   = api.CreateToken{Kind: mesh.KindHost, Orgs: []string{"all"}, Region: "fra"}
	clientToken = api.CreateToken{Kind: mesh.KindClient, Org: "acme"}
)

func withSecret(t *testing.T, token string) string {
	t.Helper()
	x, err := enroll.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	if x.Secret, err = enroll.DrawSecret(nil); err != nil {
		t.Fatal(err)
	}
	return x.Text()
}

// TS-2025-007: a one-off key was used twice. Of many who come at once with one
// token, one gets in.
func TestTS2025007TokenIsSpentOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.region("fra")
	token := w.token(hostToken).Token
	const n = 8
	errs := make(chan error, n)
	for i := range n {
		node := w.newNode()
		req := node.request(token, "h"+string(rune('a'+i)))
		go func() { errs <- node.join(req) }()
	}
	joined := 0
	for range n {
		if err := <-errs; err == nil {
			joined++
		} else {
			refused(t, err, api.ErrToken)
		}
	}
	if joined != 1 {
		t.Errorf("%d nodes joined with a one-use token", joined)
	}
}

func TestEnrollAgainGivesTheSameNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.region("fra")
	n := w.newNode()
	req := n.request(w.token(hostToken).Token, "fra1")
	for range 2 { // the answer to the first may have been lost
		if err := n.join(req); err != nil {
			t.Fatal(err)
		}
	}
	thief := w.newNode()
	refused(t, thief.join(thief.request(req.Token, "fra1")), api.ErrExists)
}

func TestEnrollIgnoresUnknownFields(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.region("fra")
	n := w.newNode()
	var resp api.EnrollResponse
	newer := struct {
		api.EnrollRequest
		Kernel string `json:"kernel"`
	}{n.request(w.token(hostToken).Token, "fra1"), "9.0"}
	if err := n.Do(t.Context(), "POST", "/v1/enroll", newer, &resp); err != nil {
		t.Fatal(err)
	}
	n.setCertificate(resp.Certificate)
	n.reconnect()
	for _, path := range []string{"/v1/nodes/self/report", "/v1/orgs/acme/machines"} {
		err := n.Do(t.Context(), "POST", path, map[string]any{"app": "web", "mood": "good"}, nil)
		if err != nil && !errors.Is(err, api.ErrNotFound) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// headscale #2830: nodes were logged out because an old enrolment key was checked
// again. A token matters once: neither its end nor its removal touches the node.
func TestHeadscale2830TokenMattersOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.region("fra")
	n := w.newNode()
	token := w.token(api.CreateToken{Kind: mesh.KindHost, Orgs: []string{"all"}, Region: "fra", TTL: "2s"})
	if err := n.join(n.request(token.Token, "fra1")); err != nil {
		t.Fatal(err)
	}
	if err := w.admin.Do(t.Context(), "DELETE", "/v1/tokens/"+token.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.start()
	n.reconnect()
	renewed := do[api.RenewResponse](t, n.Client, "POST", "/v1/nodes/self/renew", nil)
	n.setCertificate(renewed.Certificate)
	n.reconnect()
	n.view().until("a view", func(mesh.View) bool { return true })
}

func TestRenew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.CertLifetime = 10 * time.Second })
	w.region("fra")
	n := w.host("fra1", "fra", "all")
	before := n.certificate().Leaf
	if life := before.NotAfter.Sub(before.NotBefore); life != time.Hour+10*time.Second {
		t.Errorf("it lives %s", life)
	}
	resp := do[api.RenewResponse](t, n.Client, "POST", "/v1/nodes/self/renew", nil)
	n.setCertificate(resp.Certificate)
	after := n.certificate().Leaf
	if after.SerialNumber.Cmp(before.SerialNumber) == 0 || enroll.KeyHash(after.PublicKey) != enroll.KeyHash(before.PublicKey) {
		t.Error("it is not a new certificate for the same key")
	}
	if got, _ := enroll.NodeName(after); got != n.is.Node {
		t.Errorf("it names %v", got)
	}
	if diff := cmp.Diff(n.is.Roots, resp.Roots); diff != "" {
		t.Errorf("roots (-want +got):\n%s", diff)
	}
}

func TestLeave(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	fra1, ann := w.host("fra1", "fra", "acme"), w.laptop("acme", "ann")
	for _, n := range []*node{ann, fra1} {
		if err := n.Do(t.Context(), "DELETE", "/v1/nodes/self", nil, nil); err != nil {
			t.Error(err)
		}
		refused(t, n.Do(t.Context(), "DELETE", "/v1/nodes/self", nil, nil), api.ErrUnauthorized)
	}
	if hosts := do[[]api.HostInfo](t, w.admin, "GET", "/v1/hosts", nil); len(hosts) != 0 {
		t.Errorf("left: %v", hosts)
	}
	// The same keys may join again.
	if err := fra1.join(fra1.request(w.token(hostToken).Token, "fra1")); err != nil {
		t.Error(err)
	}
}

func TestGateway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.org("evil")
	w.region("fra")
	w.host("fra1", "fra", "acme")
	w.host("fra2", "fra", "acme")
	w.host("fra3", "fra", "evil")
	ann := w.laptop("acme", "ann")
	for _, gateway := range []string{"fra1", "fra2"} {
		c := do[api.ClientInfo](t, ann.Client, "PUT", "/v1/nodes/self/gateway", api.GatewayRequest{Gateway: gateway})
		if c.Gateway != gateway {
			t.Errorf("gateway %s, want %s", c.Gateway, gateway)
		}
	}
	refused(t, ann.Do(t.Context(), "PUT", "/v1/nodes/self/gateway", api.GatewayRequest{Gateway: "fra3"}, nil), api.ErrConflict)
	refused(t, ann.Do(t.Context(), "PUT", "/v1/nodes/self/gateway", api.GatewayRequest{Gateway: "none"}, nil), api.ErrNotFound)
}

func TestReportIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.region("fra")
	fra1 := w.host("fra1", "fra", "all")
	want := api.Report{Version: "1.2", Revision: "1.2", RTT: map[string]time.Duration{"nrt1": time.Second}, Suspect: []string{"nrt1"}}
	if err := fra1.Do(t.Context(), "POST", "/v1/nodes/self/report", want, nil); err != nil {
		t.Fatal(err)
	}
	var got api.Report
	if err := newStore(t, w.etcd, w.root).LoadReport(t.Context(), "fra1", &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func readAll(t *testing.T, r *http.Response) string {
	t.Helper()
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
