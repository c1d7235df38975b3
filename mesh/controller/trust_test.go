package controller

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

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
	_, err := n.View(t.Context(), mesh.Revision{}, patience)
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
	// Streams have connections of their own; this is the one for the rest.
	if err := n.Do(t.Context(), "POST", "/v1/nodes/self/report", api.Report{}, nil); err != nil {
		t.Fatal(err)
	}
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

// A wrong credential is not made good by a right one beside it.
func TestCredentialsDoNotMix(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.region("fra")
	n := w.host("fra1", "fra", "all")
	both := func(bearer string) *api.Client {
		return w.client(enroll.ClientConfig{Pin: w.pin, Certificate: n.certificate}, bearer)
	}
	refused(t, both("admin."+strings.Repeat("a", 32)).Do(t.Context(), "POST", "/v1/nodes/self/renew", nil, nil), api.ErrUnauthorized)
	refused(t, both(w.cred.Text()).Do(t.Context(), "POST", "/v1/nodes/self/renew", nil, nil), api.ErrForbidden)
	for _, bearer := range []string{"x", "admin.", "." + w.cred.Secret.Reveal(), "nobody." + w.cred.Secret.Reveal(), w.cred.Text() + "a"} {
		refused(t, both(bearer).Do(t.Context(), "GET", "/v1/orgs", nil, nil), api.ErrUnauthorized)
	}
}
