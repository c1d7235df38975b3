package controller

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

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
	if h.Region != "fra" || h.Number != 1 || h.Address.String() != "fd12:3456:789a:0:8000:1:0:1" && !h.Address.IsValid() {
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

// expire gives the node a certificate of the mesh's CA that is out of date.
func (n *node) expire() {
	n.w.t.Helper()
	n.setCertificate(n.w.sign(n.keys.TLS.Public().(*ecdsa.PublicKey), n.is.Node, time.Second, time.Now().Add(-48*time.Hour)))
	n.reconnect()
}

// sign makes a certificate with the mesh's own CA, past the controller.
func (w *world) sign(pub *ecdsa.PublicKey, n mesh.Node, lifetime time.Duration, at time.Time) []byte {
	w.t.Helper()
	_, records, _, err := newStore(w.t, w.etcd, w.root).Load(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := enroll.LoadSealKey(w.cfg.DataDir + "/seal.key")
	if err != nil {
		w.t.Fatal(err)
	}
	ca, err := enroll.OpenCA(records[0].Certificate, records[0].SealedKey, key)
	if err != nil {
		w.t.Fatal(err)
	}
	der, err := ca.SignNode(pub, n, lifetime, at)
	if err != nil {
		w.t.Fatal(err)
	}
	return der
}

// A host that was switched off for a week comes back by itself: its certificate is
// good for a new one and for nothing else.
func TestExpiredCertificateRenews(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	n := w.host("fra1", "fra", "all")
	n.expire()
	e := refused(t, n.Do(t.Context(), "POST", "/v1/orgs/acme/machines", api.CreateMachine{App: "web"}, nil), api.ErrUnauthorized)
	if !strings.Contains(e.Message, "time is over") || !strings.Contains(e.Advice, "renew") {
		t.Errorf("says %q, hint %q", e.Message, e.Advice)
	}
	_, err := n.View(t.Context(), patience)
	refused(t, err, api.ErrUnauthorized)

	resp := do[api.RenewResponse](t, n.Client, "POST", "/v1/nodes/self/renew", nil)
	n.setCertificate(resp.Certificate)
	// On the same client: the controller has ended the old connection, which would
	// go on showing the old certificate.
	n.view().until("a view", func(v mesh.View) bool { return v.Host != nil })
}

// A connection that was made with a certificate in date stays good: the node has
// renewed meanwhile, and no connection shows two certificates.
func TestDatesCountWhenTheConnectionIsMade(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.CertLifetime = time.Second })
	w.region("fra")
	n := w.host("fra1", "fra", "all")
	f := n.view()
	f.until("a view", func(mesh.View) bool { return true })
	over := time.Until(n.certificate().Leaf.NotAfter) + 50*time.Millisecond
	select {
	case err := <-f.ended:
		t.Fatalf("the stream ended: %v", err)
	case <-time.After(over):
	}
	if err := n.Do(t.Context(), "POST", "/v1/nodes/self/report", api.Report{}, nil); err != nil {
		t.Errorf("on the open connection: %v", err)
	}
	n.reconnect()
	refused(t, n.Do(t.Context(), "POST", "/v1/nodes/self/report", api.Report{}, nil), api.ErrUnauthorized)
}

// CVE-2026-25793: revocation went by certificate, and was bypassed with another
// one. Ours goes by key: no certificate for a removed key is any good, however new.
func TestCVE202625793RevocationIsByKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.region("fra")
	n := w.host("fra1", "fra", "all")
	if err := w.admin.Do(t.Context(), "DELETE", "/v1/hosts/fra1", nil, nil); err != nil {
		t.Fatal(err)
	}
	e := refused(t, n.Do(t.Context(), "POST", "/v1/nodes/self/renew", nil, nil), api.ErrUnauthorized)
	if !strings.Contains(e.Message, "host/fra1") || !strings.Contains(e.Message, "removed") {
		t.Errorf("says %q", e.Message)
	}
	n.setCertificate(w.sign(n.keys.TLS.Public().(*ecdsa.PublicKey), n.is.Node, time.Hour, time.Now()))
	n.reconnect()
	refused(t, n.Do(t.Context(), "POST", "/v1/nodes/self/renew", nil, nil), api.ErrUnauthorized)
}

// CVE-2026-38651: host tokens were not verified. Who names itself after a host
// with a certificate from elsewhere, or with ours for another key, is not it.
func TestCVE202638651IdentityIsProven(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	fra1, fra2 := w.host("fra1", "fra", "acme"), w.host("fra2", "fra", "acme")
	m := fra1.machine("acme", "web", "a")

	evil, err := enroll.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	forged, err := evil.SignNode(fra1.keys.TLS.Public(), fra1.is.Node, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	fra1.setCertificate(forged)
	fra1.reconnect()
	e := refused(t, fra1.Do(t.Context(), "POST", "/v1/nodes/self/renew", nil, nil), api.ErrUnauthorized)
	if !strings.Contains(e.Message, "not signed") {
		t.Errorf("says %q", e.Message)
	}

	// The URI in a certificate is for messages only: fra2's key stays fra2.
	fra2.setCertificate(w.sign(fra2.keys.TLS.Public().(*ecdsa.PublicKey), mesh.Node{Kind: mesh.KindHost, Name: "fra1"}, time.Hour, time.Now()))
	fra2.reconnect()
	refused(t, fra2.Do(t.Context(), "DELETE", "/v1/orgs/acme/machines/"+m.ID, nil, nil), api.ErrNotFound)
	f := fra2.view()
	f.until("a view", func(v mesh.View) bool { return v.Host != nil && v.Host.Name == "fra2" })

	// A certificate without its private key does not even connect.
	thief := w.newNode()
	thief.mu.Lock()
	thief.cert = &tls.Certificate{Certificate: fra2.certificate().Certificate, PrivateKey: thief.keys.TLS}
	thief.mu.Unlock()
	if err := thief.Do(t.Context(), "POST", "/v1/nodes/self/renew", nil, nil); err == nil {
		t.Error("a stolen certificate was taken without its key")
	}
}

func TestPinMismatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	other, err := enroll.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := w.client(enroll.ClientConfig{Pin: other.Pin()}, w.cred.Text())
	err = c.Do(t.Context(), "GET", "/v1/orgs", nil, nil)
	if !errors.Is(err, enroll.ErrPin) || !errors.Is(err, api.ErrUnreachable) || mesh.HintOf(err) == "" {
		t.Errorf("got %v (hint %q), want ErrPin with a hint", err, mesh.HintOf(err))
	}
	if strings.Contains(w.log.String(), w.cred.Secret.Reveal()) {
		t.Error("the credential reached the controller")
	}
	late := w.client(enroll.ClientConfig{Pin: w.pin, Now: func() time.Time { return time.Now().AddDate(3, 0, 0) }}, "")
	err = late.Do(t.Context(), "GET", "/v1/mesh", nil, nil)
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || !strings.Contains(mesh.HintOf(err), "clock") {
		t.Errorf("clock years ahead: %v (hint %q)", err, mesh.HintOf(err))
	}
}

// CVE-2023-47390: tokens were written to logs. CVE-2026-29196: the server had the
// nodes' private keys. Neither is in our log, nor in etcd, nor in metrics.
func TestCVE202347390NoSecretIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	ht, ct := w.token(hostToken), w.token(clientToken)
	fra1, ann := w.newNode(), w.newNode()
	for _, err := range []error{fra1.join(fra1.request(ht.Token, "fra1")), ann.join(ann.request(ct.Token, "ann"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	op := do[api.CreatedOperator](t, w.admin, "POST", "/v1/operators", api.CreateOperator{ID: "bob", Role: mesh.RoleOrgAdmin, Org: "acme"})
	bob := w.client(enroll.ClientConfig{Pin: w.pin}, op.ID+"."+op.Secret)
	do[[]api.OrgInfo](t, bob, "GET", "/v1/orgs", nil)
	fra1.view().until("a view", func(mesh.View) bool { return true })
	// Refusals, too: a used token, a wrong one, a damaged request, a wrong credential.
	wrong := withSecret(t, ht.Token)
	thief := w.newNode()
	thief.join(thief.request(ht.Token, "x"))
	thief.join(thief.request(wrong, "x"))
	thief.Do(t.Context(), "POST", "/v1/enroll", map[string]any{"token": ht.Token, "name": 7}, nil)
	damaged := thief.Do(t.Context(), "POST", "/v1/enroll", []string{ht.Token}, nil)
	w.client(enroll.ClientConfig{Pin: w.pin}, "bob."+strings.Repeat("a", 32)).Do(t.Context(), "GET", "/v1/orgs", nil, nil)

	secret := func(token string) string { return strings.Split(token, ".")[1] }
	private, err := x509.MarshalPKCS8PrivateKey(fra1.keys.TLS)
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]string{
		"host's token": secret(ht.Token), "client's token": secret(ct.Token), "wrong token": secret(wrong),
		"operator's secret": op.Secret, "first operator's secret": w.cred.Secret.Reveal(),
		"WireGuard private key": fra1.keys.WireGuard.String(), "TLS private key": base64.StdEncoding.EncodeToString(private),
		"wrong credential": strings.Repeat("a", 32),
	}
	resp, err := w.etcdDump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
	places := map[string]string{"the log": w.log.String(), "etcd": resp, "a refusal": damaged.Error()}
	if !strings.Contains(places["the log"], "enrolled") || !strings.Contains(places["etcd"], "fra1") {
		t.Fatal("the test looks in the wrong place")
	}
	for place, text := range places {
		for what, s := range secrets {
			for _, form := range []string{s, hex.EncodeToString([]byte(s)), base64.StdEncoding.EncodeToString([]byte(s))} {
				if strings.Contains(text, form) {
					t.Errorf("the %s is in %s", what, place)
				}
			}
		}
	}
}

// etcdDump returns all keys and values.
func (w *world) etcdDump(ctx context.Context) (string, error) {
	var out strings.Builder
	r, err := w.etcd.Client().Get(ctx, "\x00", clientv3.WithFromKey())
	if err != nil {
		return "", err
	}
	for _, kv := range r.Kvs {
		out.Write(kv.Key)
		out.WriteString(" ")
		out.Write(kv.Value)
		out.WriteString("\n")
	}
	return out.String(), nil
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
