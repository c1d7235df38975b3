package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// handshake connects a client to a controller over a pipe. It returns what the
// client's handshake said and what the controller learnt about the client.
func handshake(t *testing.T, server, client *tls.Config) (error, tls.ConnectionState) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s, c := tls.Server(a, server), tls.Client(b, client)
	served := make(chan struct{})
	go func() {
		defer close(served)
		if s.HandshakeContext(ctx) == nil {
			s.Write([]byte("x")) // TLS 1.3: the client's first read ends its handshake
		}
		a.Close()
	}()
	err := c.HandshakeContext(ctx)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	b.Close()
	<-served
	return err, s.ConnectionState()
}

func serverConfig(t *testing.T, ca *CA, name string) *tls.Config {
	t.Helper()
	key := newKey(t)
	var der []byte
	var err error
	if name == ControllerName {
		der, err = ca.SignController(key.Public(), 24*time.Hour, epoch)
	} else {
		der, err = ca.SignNode(key.Public(), fra1, 24*time.Hour, epoch)
	}
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{der, ca.Certificate()}, PrivateKey: key}
	return ServerTLS(func() *tls.Certificate { return cert })
}

func TestClientTLS(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	unknown := func(err error) bool {
		var u x509.UnknownAuthorityError
		return errors.As(err, &u)
	}
	for _, tt := range []struct {
		name   string
		server *tls.Config
		client ClientConfig
		at     time.Duration // after the certificate was signed
		check  func(error) bool
		hint   string
	}{
		{"by pin", serverConfig(t, ca, ControllerName), ClientConfig{Pin: ca.Pin()}, 0, nil, ""},
		{"by root", serverConfig(t, ca, ControllerName), ClientConfig{Roots: []string{ca.PEM()}}, 0, nil, ""},
		{"by one of two roots", serverConfig(t, ca, ControllerName), ClientConfig{Roots: []string{other.PEM(), ca.PEM()}}, 0, nil, ""},
		{"clock an hour behind", serverConfig(t, ca, ControllerName), ClientConfig{Pin: ca.Pin()}, -50 * time.Minute, nil, ""},
		{"pin of another mesh", serverConfig(t, ca, ControllerName), ClientConfig{Pin: other.Pin()}, 0,
			func(err error) bool { return errors.Is(err, ErrPin) }, "of this mesh"},
		{"root of another mesh", serverConfig(t, ca, ControllerName), ClientConfig{Roots: []string{other.PEM()}}, 0,
			func(err error) bool { return unknown(err) && !errors.Is(err, ErrPin) }, "of this mesh"},
		{"roots count, not the pin", serverConfig(t, ca, ControllerName), ClientConfig{Roots: []string{other.PEM()}, Pin: ca.Pin()}, 0,
			unknown, ""},
		{"no trust at all", serverConfig(t, ca, ControllerName), ClientConfig{}, 0,
			func(err error) bool { return strings.Contains(err.Error(), "pin of the mesh") }, ""},
		{"a node that poses as a controller", serverConfig(t, ca, "node"), ClientConfig{Pin: ca.Pin()}, 0,
			func(err error) bool { return !errors.Is(err, ErrPin) }, ""},
		{"clock years behind", serverConfig(t, ca, ControllerName), ClientConfig{Pin: ca.Pin()}, -5 * 365 * 24 * time.Hour,
			func(err error) bool { return strings.Contains(err.Error(), "not yet valid") }, "clock"},
		{"clock years ahead", serverConfig(t, ca, ControllerName), ClientConfig{Pin: ca.Pin()}, 5 * 365 * 24 * time.Hour,
			func(err error) bool { return strings.Contains(err.Error(), "expired") }, "2031"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.client.Now = func() time.Time { return epoch.Add(tt.at) }
			err, _ := handshake(t, tt.server, ClientTLS(tt.client))
			if tt.check == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !tt.check(err) {
				t.Errorf("got %v", err)
			}
			if !strings.Contains(mesh.HintOf(err), tt.hint) {
				t.Errorf("hint %q, want %q in it", mesh.HintOf(err), tt.hint)
			}
		})
	}
}

// A man in the middle who forwards the real CA certificate, which is public, but
// signs with a key of his own.
func TestPinNeedsASignature(t *testing.T) {
	t.Parallel()
	ca, evil := newCA(t), newCA(t)
	key := newKey(t)
	der, err := evil.SignController(key.Public(), time.Hour, epoch)
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{der, ca.Certificate(), evil.Certificate()}, PrivateKey: key}
	client := ClientTLS(ClientConfig{Pin: ca.Pin(), Now: func() time.Time { return epoch }})
	if err, _ := handshake(t, ServerTLS(func() *tls.Certificate { return cert }), client); err == nil {
		t.Error("the handshake succeeded")
	}
}

// A certificate of ours for a server that is not a controller is no good.
func TestControllerMustBeOne(t *testing.T) {
	t.Parallel()
	ca, key := newCA(t), newKey(t)
	template, err := newTemplate("something else", time.Hour, epoch)
	if err != nil {
		t.Fatal(err)
	}
	template.DNSNames, template.ExtKeyUsage = []string{"other.weft"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := ca.sign(template, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{der, ca.Certificate()}, PrivateKey: key}
	client := ClientTLS(ClientConfig{Pin: ca.Pin(), Now: func() time.Time { return epoch }})
	var wrong x509.HostnameError
	if err, _ := handshake(t, ServerTLS(func() *tls.Certificate { return cert }), client); !errors.As(err, &wrong) {
		t.Errorf("got %v, want a wrong name", err)
	}
}

func TestServerTLSTakesExpiredClients(t *testing.T) {
	t.Parallel()
	ca, key := newCA(t), newKey(t)
	der, err := ca.SignNode(key.Public(), fra1, time.Second, epoch.Add(-1000*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	current := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	client := ClientTLS(ClientConfig{
		Pin: ca.Pin(), Now: func() time.Time { return epoch }, Certificate: func() *tls.Certificate { return current },
	})
	err, state := handshake(t, serverConfig(t, ca, ControllerName), client)
	if err != nil {
		t.Fatal(err)
	}
	if len(state.PeerCertificates) != 1 || KeyHash(state.PeerCertificates[0].PublicKey) != KeyHash(key.Public()) {
		t.Error("the controller did not see the client's key")
	}
	if state.Version != tls.VersionTLS13 {
		t.Errorf("version %x", state.Version)
	}

	current = nil // a client without a certificate gets in too: each request decides
	if err, state = handshake(t, serverConfig(t, ca, ControllerName), client); err != nil || len(state.PeerCertificates) != 0 {
		t.Errorf("without a certificate: %v", err)
	}
}

func TestServerTLSRefusesOldVersions(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	client := ClientTLS(ClientConfig{Pin: ca.Pin(), Now: func() time.Time { return epoch }})
	client.MinVersion, client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if err, _ := handshake(t, serverConfig(t, ca, ControllerName), client); err == nil {
		t.Error("TLS 1.2 was taken")
	}
}
