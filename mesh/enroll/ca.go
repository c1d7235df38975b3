// Package enroll is how nodes come to be trusted: the mesh's certificate
// authority, certificates, join tokens, TLS settings for both ends, and the keys
// and the identity that a node keeps on disk. Who may do what is decided in
// mesh/controller, what is stored of it is mesh/store's.
package enroll

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/weftmesh/weft/mesh"
)

const (
	// ControllerName is the name in every controller's certificate. Clients ask for
	// it whatever address they dialled, so that addresses may change.
	ControllerName = "controller.weft"

	// backdate allows for clocks that are behind.
	backdate   = time.Hour
	caLifetime = 20 * 365 * 24 * time.Hour
)

// ErrPin says that a controller is not of the mesh that a pin stands for.
var ErrPin = errors.New("the controller is not of the mesh that the pin stands for")

// CA is the certificate authority of a mesh. It is safe for use by many goroutines.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a certificate authority: an ECDSA P-256 key and its self-signed
// certificate.
func NewCA(now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the certificate authority's key: %w", err)
	}
	template, err := newTemplate("weft certificate authority", caLifetime, now)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the certificate authority: %w", err)
	}
	return &CA{cert, key}, nil
}

// OpenCA opens what Certificate and Seal returned. It wraps ErrSeal if the key is
// not the one that it was sealed with.
func OpenCA(certificate, sealed []byte, key SealKey) (*CA, error) {
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	der, err := key.open(sealed, certificate)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !private.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("certificate authority: the key is not the certificate's")
	}
	return &CA{cert, private}, nil
}

// Seal returns the private key, encrypted with key and bound to the certificate.
func (ca *CA) Seal(key SealKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return nil, fmt.Errorf("seal the certificate authority: %w", err)
	}
	return key.seal(der, ca.cert.Raw)
}

// Certificate returns the CA's own certificate, DER.
func (ca *CA) Certificate() []byte { return ca.cert.Raw }

// PEM returns the CA's own certificate as text.
func (ca *CA) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
}

// Pin names the mesh by its CA: the SHA-256 of the CA's public key (PKIX), as 52
// characters of base32.
func (ca *CA) Pin() string { return pinOf(ca.cert) }

// CertificatePin is the Pin of a CA of which only the certificate (DER) is at hand.
func CertificatePin(certificate []byte) (string, error) {
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return "", fmt.Errorf("certificate authority: %w", err)
	}
	return pinOf(cert), nil
}

func pinOf(cert *x509.Certificate) string { return hashText(cert.RawSubjectPublicKeyInfo) }

// CheckPin reports whether s can be a pin.
func CheckPin(s string) error {
	if !isText32(s, sha256.Size) {
		return errors.New("pin of the mesh: it is not 52 characters of base32")
	}
	return nil
}

// SignNode certifies that pub is the key of node: valid from an hour before now
// until lifetime after it.
func (ca *CA) SignNode(pub crypto.PublicKey, node mesh.Node, lifetime time.Duration, now time.Time) ([]byte, error) {
	template, err := newTemplate("weft node", lifetime, now)
	if err != nil {
		return nil, err
	}
	template.URIs = []*url.URL{nodeURI(node)}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return ca.sign(template, pub)
}

// SignController certifies that pub is the key of a controller.
func (ca *CA) SignController(pub crypto.PublicKey, lifetime time.Duration, now time.Time) ([]byte, error) {
	template, err := newTemplate("weft controller", lifetime, now)
	if err != nil {
		return nil, err
	}
	template.DNSNames = []string{ControllerName}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	return ca.sign(template, pub)
}

func (ca *CA) sign(template *x509.Certificate, pub crypto.PublicKey) ([]byte, error) {
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for a %s: %w", template.Subject.CommonName, err)
	}
	return der, nil
}

func newTemplate(name string, lifetime time.Duration, now time.Time) (*x509.Certificate, error) {
	if lifetime <= 0 {
		return nil, fmt.Errorf("certificate lifetime %s: it must be positive", lifetime)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(lifetime),
	}, nil
}

// RenewAt returns when two thirds of a certificate's life are over. Life begins
// when it was signed, not at the back-dated NotBefore.
func RenewAt(cert *x509.Certificate) time.Time {
	signed := cert.NotBefore.Add(backdate)
	return signed.Add(cert.NotAfter.Sub(signed) * 2 / 3)
}

// ParsePublicKey reads a node's TLS public key (PKIX, DER): ECDSA on P-256 or
// Ed25519.
func ParsePublicKey(der []byte) (crypto.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("TLS public key: %w", err)
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return k, nil
		}
	case ed25519.PublicKey:
		return k, nil
	}
	return nil, errors.New("TLS public key: want ECDSA on P-256, or Ed25519")
}

// KeyHash names a TLS public key: the SHA-256 of its PKIX form, as text. It is ""
// for a key that has no such form.
func KeyHash(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	return hashText(der)
}

func hashText(b []byte) string {
	h := sha256.Sum256(b)
	return text32.EncodeToString(h[:])
}

func nodeURI(n mesh.Node) *url.URL {
	kind, path, _ := strings.Cut(n.String(), "/")
	return &url.URL{Scheme: "weft", Host: kind, Path: "/" + path}
}

// NodeName returns the node that a certificate names: for messages only. Identity
// is the key.
func NodeName(cert *x509.Certificate) (mesh.Node, bool) {
	for _, u := range cert.URIs {
		if u.Scheme == "weft" {
			return mesh.ParseNode(u.Host + u.Path)
		}
	}
	return mesh.Node{}, false
}

// ParseRoots reads the certificates of certificate authorities from PEM texts.
func ParseRoots(texts []string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, text := range texts {
		for rest := []byte(text); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("root certificate: %w", err)
			}
			out = append(out, cert)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("root certificates: there is none")
	}
	return out, nil
}

// VerifyNode checks that leaf is a node's certificate signed by one of roots. It
// does not look at dates: what an expired certificate is good for is the
// caller's decision. It wraps ErrNotOurs.
func VerifyNode(leaf *x509.Certificate, roots []*x509.Certificate) error {
	for _, root := range roots {
		if leaf.CheckSignatureFrom(root) != nil {
			continue
		}
		for _, usage := range leaf.ExtKeyUsage {
			if usage == x509.ExtKeyUsageClientAuth && !leaf.IsCA {
				return nil
			}
		}
	}
	return fmt.Errorf("client certificate: %w", ErrNotOurs)
}

// ErrNotOurs says that a certificate was not signed for a node of this mesh.
var ErrNotOurs = errors.New("it was not signed for a node of this mesh")
