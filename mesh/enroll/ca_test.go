package enroll

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

var (
	epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	fra1  = mesh.Node{Kind: mesh.KindHost, Name: "fra1"}
	ann   = mesh.Node{Kind: mesh.KindClient, Org: "acme", Name: "ann"}
)

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA(epoch)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func signNode(t *testing.T, ca *CA, pub crypto.PublicKey, n mesh.Node) *x509.Certificate {
	t.Helper()
	der, err := ca.SignNode(pub, n, 24*time.Hour, epoch)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func roots(cas ...*CA) (out []*x509.Certificate) {
	for _, ca := range cas {
		out = append(out, ca.cert)
	}
	return out
}

func TestSealedCAOpens(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	key, err := NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := ca.Seal(key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenCA(ca.Certificate(), sealed, key)
	if err != nil {
		t.Fatal(err)
	}
	if got.Pin() != ca.Pin() || CheckPin(ca.Pin()) != nil {
		t.Errorf("pin %q, want %q", got.Pin(), ca.Pin())
	}
	if err := VerifyNode(signNode(t, got, newKey(t).Public(), fra1), roots(ca)); err != nil {
		t.Errorf("what the opened CA signs is not accepted: %v", err)
	}
	der, _ := x509.MarshalPKCS8PrivateKey(ca.key)
	if bytes.Contains(sealed, der[len(der)-32:]) {
		t.Error("the sealed key holds the key")
	}

	otherKey, err := NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	for name, open := range map[string]func() (*CA, error){
		"another seal key":    func() (*CA, error) { return OpenCA(ca.Certificate(), sealed, otherKey) },
		"another certificate": func() (*CA, error) { return OpenCA(other.Certificate(), sealed, key) },
		"a flipped bit":       func() (*CA, error) { return OpenCA(ca.Certificate(), flipped, key) },
		"cut off":             func() (*CA, error) { return OpenCA(ca.Certificate(), sealed[:5], key) },
	} {
		if _, err := open(); !errors.Is(err, ErrSeal) {
			t.Errorf("%s: got %v, want ErrSeal", name, err)
		}
	}
	if _, err := OpenCA(ca.Certificate(), sealed, SealKey{}); err == nil {
		t.Error("an empty seal key was taken")
	}
}

func TestNodeCertificate(t *testing.T) {
	t.Parallel()
	ca, key := newCA(t), newKey(t)
	for _, n := range []mesh.Node{fra1, ann} {
		cert := signNode(t, ca, key.Public(), n)
		if got, ok := NodeName(cert); !ok || got != n {
			t.Errorf("the certificate names %v, want %v", got, n)
		}
		if !cert.NotBefore.Equal(epoch.Add(-time.Hour)) || !cert.NotAfter.Equal(epoch.Add(24*time.Hour)) {
			t.Errorf("valid %s to %s", cert.NotBefore, cert.NotAfter)
		}
		if want := epoch.Add(16 * time.Hour); !RenewAt(cert).Equal(want) {
			t.Errorf("renew at %s, want %s", RenewAt(cert), want)
		}
		if KeyHash(cert.PublicKey) != KeyHash(key.Public()) || KeyHash(key.Public()) == "" {
			t.Error("the key's hash changed on its way through the certificate")
		}
	}
	if got := signNode(t, ca, key.Public(), fra1).URIs[0].String(); got != "weft://host/fra1" {
		t.Errorf("URI %s", got)
	}
	if _, err := ca.SignNode(key.Public(), fra1, 0, epoch); err == nil {
		t.Error("a lifetime of zero was taken")
	}
}

// CVE-2026-38651: host tokens were not verified. A node is who the mesh's CA
// signed, and nobody else.
func TestCVE202638651OnlyOurSignaturesCount(t *testing.T) {
	t.Parallel()
	ca, other, key := newCA(t), newCA(t), newKey(t)
	controller, err := ca.SignController(key.Public(), time.Hour, epoch)
	if err != nil {
		t.Fatal(err)
	}
	controllerCert, err := x509.ParseCertificate(controller)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		leaf *x509.Certificate
		want error
	}{
		{"a node's", signNode(t, ca, key.Public(), fra1), nil},
		{"signed by another CA", signNode(t, other, key.Public(), fra1), ErrNotOurs},
		{"a controller's", controllerCert, ErrNotOurs},
		{"the CA's own", ca.cert, ErrNotOurs},
		{"signed by a node", signNode(t, &CA{signNode(t, ca, key.Public(), fra1), key}, key.Public(), fra1), ErrNotOurs},
	} {
		if err := VerifyNode(tt.leaf, roots(ca)); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	if err := VerifyNode(signNode(t, other, key.Public(), fra1), roots(ca, other)); err != nil {
		t.Errorf("with two roots: %v", err)
	}
}

func TestParsePublicKey(t *testing.T) {
	t.Parallel()
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		key  crypto.PublicKey
		ok   bool
	}{
		{"P-256", newKey(t).Public(), true},
		{"Ed25519", ed, true},
		{"P-384", p384.Public(), false},
		{"RSA", rsaKey.Public(), false},
	} {
		der, err := x509.MarshalPKIXPublicKey(tt.key)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParsePublicKey(der)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.ok && KeyHash(got) != KeyHash(tt.key) {
			t.Errorf("%s: another hash", tt.name)
		}
	}
	if _, err := ParsePublicKey([]byte("nonsense")); err == nil {
		t.Error("nonsense was taken")
	}
}

func FuzzParsePublicKey(f *testing.F) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		if pub, err := ParsePublicKey(der); err == nil && len(KeyHash(pub)) != 52 {
			t.Errorf("hash %q of %x", KeyHash(pub), der)
		}
	})
}
