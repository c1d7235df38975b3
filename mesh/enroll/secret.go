package enroll

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/weftmesh/weft/mesh"
)

// redacted is what stands for a secret wherever one is printed.
const redacted = "[redacted]"

// secretBytes is the entropy of a secret: 160 bits, 32 characters as text.
const secretBytes = 20

// text32 is RFC 4648 base32 in lower case without padding: it has neither '.' nor
// '-', survives being read aloud, and is one word to a terminal.
var text32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Secret is a text that must not be seen: every verb of fmt, JSON, YAML and slog
// print it as [redacted]. Reveal is the only way to the text.
type Secret struct {
	// A function, because fmt prints unexported fields by reflection, past all
	// methods, and follows pointers: a function comes out as a number.
	text func() string
}

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{func() string { return text }} }

// DrawSecret makes a secret of 160 bits from r; nil is crypto/rand.
func DrawSecret(r io.Reader) (Secret, error) {
	text, err := draw(r, secretBytes)
	if err != nil {
		return Secret{}, fmt.Errorf("draw a secret: %w", err)
	}
	return NewSecret(text), nil
}

func draw(r io.Reader, n int) (string, error) {
	if r == nil {
		r = rand.Reader
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	return text32.EncodeToString(b), nil
}

// Reveal returns the text.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return s.text()
}

// Hash returns the SHA-256 of the text: what is stored instead of it.
func (s Secret) Hash() []byte {
	h := sha256.Sum256([]byte(s.Reveal()))
	return h[:]
}

// Matches reports, in constant time, whether hash is the secret's. An empty
// secret matches nothing.
func (s Secret) Matches(hash []byte) bool {
	return subtle.ConstantTimeCompare(s.Hash(), hash) == 1 && s.Reveal() != ""
}

func (s Secret) String() string { return redacted }

// Format prints [redacted] whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue prints [redacted].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText prints [redacted].
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Credential is what an operator identifies with: "<id>.<secret>".
type Credential struct {
	ID     string
	Secret Secret
}

// NewCredential makes a credential for the operator with the given id.
func NewCredential(id string) (Credential, error) {
	if err := mesh.CheckName("operator", id); err != nil {
		return Credential{}, err
	}
	s, err := DrawSecret(nil)
	return Credential{id, s}, err
}

// ParseCredential reads "<id>.<secret>". The error does not repeat the text.
func ParseCredential(s string) (Credential, error) {
	id, secret, ok := strings.Cut(strings.TrimSpace(s), ".")
	if !ok || mesh.CheckName("operator", id) != nil || !isText32(secret, secretBytes) {
		return Credential{}, fmt.Errorf("operator credential: it is not <id>.<secret>")
	}
	return Credential{id, NewSecret(secret)}, nil
}

// Text returns "<id>.<secret>", with the secret.
func (c Credential) Text() string { return c.ID + "." + c.Secret.Reveal() }

// isText32 reports whether s is the one text of n bytes.
func isText32(s string, n int) bool {
	b, err := text32.DecodeString(s)
	return err == nil && len(b) == n && text32.EncodeToString(b) == s
}
