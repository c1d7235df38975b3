package enroll

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
)

// ErrExposed says that a file with a secret can be read or written by others than
// its owner.
var ErrExposed = errors.New("others can read or write it")

// Names of the files in an identity's directory.
const (
	wireguardFile  = "wireguard.key"
	tlsFile        = "tls.key"
	membershipFile = "node.json"
)

// Keys are a node's two private keys. They never leave the node.
type Keys struct {
	WireGuard wgtypes.Key // private
	TLS       crypto.Signer
}

// LoadOrCreateKeys reads the node's keys from dir, and makes what is not there:
// dir 0700, files 0600. It wraps ErrExposed if others can read a key, or write to
// dir.
func LoadOrCreateKeys(dir string) (Keys, error) {
	if err := makeDir(dir); err != nil {
		return Keys{}, err
	}
	wg, err := loadOrCreate(filepath.Join(dir, wireguardFile), newWireGuardKey, parseWireGuardKey)
	if err != nil {
		return Keys{}, fmt.Errorf("WireGuard key: %w", err)
	}
	signer, err := loadOrCreate(filepath.Join(dir, tlsFile), newTLSKey, parseTLSKey)
	if err != nil {
		return Keys{}, fmt.Errorf("TLS key: %w", err)
	}
	return Keys{wg, signer}, nil
}

// TLSPublic returns the TLS public key, PKIX DER, as an enrolment sends it.
func (k Keys) TLSPublic() ([]byte, error) { return x509.MarshalPKIXPublicKey(k.TLS.Public()) }

// Certificate joins the TLS key and its certificate (DER). It fails if they do
// not belong together.
func (k Keys) Certificate(der []byte) (*tls.Certificate, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	if KeyHash(leaf.PublicKey) != KeyHash(k.TLS.Public()) {
		return nil, errors.New("node certificate: it is of another key")
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.TLS, Leaf: leaf}, nil
}

func loadOrCreate[T any](path string, create func() ([]byte, error), parse func([]byte) (T, error)) (T, error) {
	var none T
	b, err := readPrivate(path)
	if errors.Is(err, os.ErrNotExist) {
		if b, err = create(); err == nil {
			err = WriteFile(path, b)
		}
	}
	if err != nil {
		return none, err
	}
	v, err := parse(b)
	if err != nil {
		return none, fmt.Errorf("read %s: %w", path, err)
	}
	return v, nil
}

func newWireGuardKey() ([]byte, error) {
	k, err := wgtypes.GeneratePrivateKey()
	return []byte(k.String() + "\n"), err
}

func parseWireGuardKey(b []byte) (wgtypes.Key, error) {
	return wgtypes.ParseKey(strings.TrimSpace(string(b)))
}

func newTLSKey() ([]byte, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

func parseTLSKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("it holds no PEM")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, errors.New("it is no signing key")
	}
	return signer, nil
}

// Membership is what a node was given when it joined, and what renewals and views
// change.
type Membership struct {
	Node        mesh.Node
	Certificate []byte   // DER
	Roots       []string // PEM
	Controllers []string // base URLs
	Worked      []string // those that gave the node its last views, the last one first
}

// Identity is the place where a node keeps its keys and its membership.
type Identity struct{ Dir string }

// Keys reads or makes the node's keys; see LoadOrCreateKeys.
func (i Identity) Keys() (Keys, error) { return LoadOrCreateKeys(i.Dir) }

type membershipJSON struct {
	Node        string   `json:"node"`
	Certificate []byte   `json:"certificate"`
	Roots       []string `json:"roots"`
	Controllers []string `json:"controllers"`
	Worked      []string `json:"worked,omitempty"`
}

// Load reads the membership. The error wraps os.ErrNotExist if the node has not
// joined yet.
func (i Identity) Load() (Membership, error) {
	path := filepath.Join(i.Dir, membershipFile)
	b, err := readPrivate(path)
	if err != nil {
		return Membership{}, fmt.Errorf("node identity: %w", err)
	}
	var j membershipJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return Membership{}, fmt.Errorf("node identity: read %s: %w", path, err)
	}
	node, ok := mesh.ParseNode(j.Node)
	if !ok {
		return Membership{}, fmt.Errorf("node identity: read %s: %q names no node", path, j.Node)
	}
	return Membership{node, j.Certificate, j.Roots, j.Controllers, j.Worked}, nil
}

// Save writes the membership, all or nothing.
func (i Identity) Save(m Membership) error {
	if err := makeDir(i.Dir); err != nil {
		return err
	}
	b, err := json.MarshalIndent(membershipJSON{m.Node.String(), m.Certificate, m.Roots, m.Controllers, m.Worked}, "", "  ")
	if err == nil {
		err = WriteFile(filepath.Join(i.Dir, membershipFile), append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("node identity: %w", err)
	}
	return nil
}

// Forget removes the membership: the node has left, or was removed. The keys stay.
func (i Identity) Forget() error {
	if err := os.Remove(filepath.Join(i.Dir, membershipFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("node identity: %w", err)
	}
	return nil
}

// makeDir makes dir (0700), or checks that only its owner writes to it.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return mesh.WithHint(fmt.Errorf("directory %s: %w (mode %04o)", dir, ErrExposed, perm), "chmod 700 %s", dir)
	}
	return nil
}

// WriteFile puts data at path for its owner alone (0600): after a crash there is
// the old file or the new one, whole.
func WriteFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename in dir last: without it a crash may bring the old name back.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
