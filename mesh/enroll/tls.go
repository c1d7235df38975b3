package enroll

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// ClientConfig says whom a client trusts and who it is.
type ClientConfig struct {
	Roots []string // PEM; if given, they alone count
	Pin   string   // with no Roots: the mesh's pin, of a token or an operator's file
	// Certificate returns the node's certificate, or nil; it is asked at each
	// handshake, so that a renewed one is used. Nil: there is none.
	Certificate func() *tls.Certificate
	Now         func() time.Time // default time.Now
}

// ClientTLS returns the settings with which controllers are reached: TLS 1.3, and
// a controller's certificate of this mesh, whatever the address. The handshake
// fails with an error that wraps ErrPin if the mesh is another one, or an
// x509.CertificateInvalidError with a hint if a clock is wrong.
func ClientTLS(c ClientConfig) *tls.Config {
	now := c.Now
	if now == nil {
		now = time.Now
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: ControllerName,
		// The chain is checked below instead: by pin, and with better errors.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return c.verify(cs.PeerCertificates, now()) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c.Certificate != nil {
				if cert := c.Certificate(); cert != nil {
					return cert, nil
				}
			}
			return &tls.Certificate{}, nil
		},
	}
}

func (c ClientConfig) verify(chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("controller: it sent no certificate")
	}
	roots, err := c.roots(chain)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{
		Roots: pool, DNSName: ControllerName, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("controller's certificate: %w", err)
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return mesh.WithHint(err, "this computer's clock says %s; is it right?", now.UTC().Format("2006-01-02 15:04 UTC"))
	}
	if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
		return mesh.WithHint(err, "is the address that of a controller of this mesh?")
	}
	return err
}

// roots returns the certificates to trust: what was given, or what the controller
// sent and the pin stands for.
func (c ClientConfig) roots(chain []*x509.Certificate) ([]*x509.Certificate, error) {
	if len(c.Roots) > 0 {
		return ParseRoots(c.Roots)
	}
	if err := CheckPin(c.Pin); err != nil {
		return nil, err
	}
	for _, cert := range chain {
		if cert.IsCA && pinOf(cert) == c.Pin {
			return []*x509.Certificate{cert}, nil
		}
	}
	return nil, mesh.WithHint(ErrPin, "is the address right, and the token or the operator's file of this mesh?")
}

// ServerTLS returns the settings of a controller: TLS 1.3, with the certificate
// that current returns at each handshake. Client certificates are asked for and
// their key is proven, but nothing is said here about who it is: that is decided
// for each request, so that an expired certificate can be renewed and a removed
// node is out at once.
func ServerTLS(current func() *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return current(), nil },
		// A resumed session would bring the certificate of the session before.
		SessionTicketsDisabled: true,
	}
}
