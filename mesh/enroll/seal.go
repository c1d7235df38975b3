package enroll

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/weftmesh/weft/mesh"
)

// ErrSeal says that something sealed does not open: the key is another one, or
// the text was changed.
var ErrSeal = errors.New("the seal key does not open it")

// SealKey encrypts the CA's private key at rest (AES-256-GCM). It prints as
// [redacted]. The zero SealKey is not valid.
type SealKey struct{ key func() []byte } // a function for the reason given at Secret

// NewSealKey draws a key.
func NewSealKey() (SealKey, error) {
	k := make([]byte, 32)
	if _, err := rand.Read(k); err != nil {
		return SealKey{}, fmt.Errorf("draw a seal key: %w", err)
	}
	return newSealKey(k), nil
}

func newSealKey(b []byte) SealKey { return SealKey{func() []byte { return b }} }

// LoadSealKey reads the key file at path. The error wraps os.ErrNotExist if there
// is none. A file that others than its owner can read is refused.
func LoadSealKey(path string) (SealKey, error) {
	b, err := readPrivate(path)
	if err != nil {
		return SealKey{}, fmt.Errorf("seal key: %w", err)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(raw) != 32 {
		return SealKey{}, fmt.Errorf("seal key: read %s: it is not 32 bytes in base64", path)
	}
	return newSealKey(raw), nil
}

// LoadOrCreateSealKey reads the key file at path, or makes one (0600) if there is
// none. It is for a mesh that is just being made: an existing mesh cannot be
// opened with a new key.
func LoadOrCreateSealKey(path string) (SealKey, error) {
	k, err := LoadSealKey(path)
	if !errors.Is(err, os.ErrNotExist) {
		return k, err
	}
	if k, err = NewSealKey(); err != nil {
		return SealKey{}, err
	}
	if err := WriteFile(path, []byte(base64.StdEncoding.EncodeToString(k.key())+"\n")); err != nil {
		return SealKey{}, fmt.Errorf("seal key: %w", err)
	}
	return k, nil
}

func (k SealKey) aead() (cipher.AEAD, error) {
	if k.key == nil {
		return nil, errors.New("seal key: it is empty")
	}
	block, err := aes.NewCipher(k.key())
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// seal encrypts text; bound must be given again to open it.
func (k SealKey) seal(text, bound []byte) ([]byte, error) {
	aead, err := k.aead()
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return aead.Seal(nonce, nonce, text, bound), nil
}

func (k SealKey) open(sealed, bound []byte) ([]byte, error) {
	aead, err := k.aead()
	if err != nil {
		return nil, err
	}
	if len(sealed) < aead.NonceSize() {
		return nil, ErrSeal
	}
	text, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], bound)
	if err != nil {
		return nil, ErrSeal
	}
	return text, nil
}

func (k SealKey) String() string { return redacted }

// Format prints [redacted] whatever the verb.
func (k SealKey) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue prints [redacted].
func (k SealKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText prints [redacted].
func (k SealKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// OperatorFile is what a controller writes for the first operator of a new mesh,
// as YAML, and what `weft context add NAME --file` reads. It holds a secret.
type OperatorFile struct {
	Controllers []string `yaml:"controllers"` // base URLs
	Pin         string   `yaml:"pin"`
	Credential  string   `yaml:"credential"` // "<id>.<secret>"
}

// Check reports what is missing or wrong in the file.
func (f OperatorFile) Check() error {
	if len(f.Controllers) == 0 {
		return errors.New("controllers: there is none")
	}
	if err := CheckPin(f.Pin); err != nil {
		return err
	}
	if _, err := ParseCredential(f.Credential); err != nil {
		return err
	}
	return nil
}

// readPrivate reads a file that must be its owner's alone.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, mesh.WithHint(fmt.Errorf("read %s: %w (mode %04o)", path, ErrExposed, perm), "if nobody else has read it: chmod 600 %s", path)
	}
	return io.ReadAll(f)
}
