package enroll

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"

	"github.com/weftmesh/weft/mesh"
)

// ErrTokenText says that a text is not a join token.
var ErrTokenText = errors.New("not a join token")

const (
	tokenPrefix  = "weft-"
	tokenIDBytes = 5 // 8 characters
)

var tokenID = regexp.MustCompile(`^[a-z0-9]{1,63}$`)

// Token is a join token: "weft-<kind>-<id>.<secret>.<pin>". It prints with its
// secret as [redacted]; Text returns the whole.
type Token struct {
	Kind   string // mesh.KindHost or mesh.KindClient
	ID     string // a-z and 0-9
	Secret Secret
	Pin    string // of the mesh, see CA.Pin
}

// NewToken draws a token for the mesh with the given pin.
func NewToken(kind, pin string) (Token, error) {
	if kind != mesh.KindHost && kind != mesh.KindClient {
		return Token{}, fmt.Errorf("token kind %q: want %s or %s", kind, mesh.KindHost, mesh.KindClient)
	}
	if err := CheckPin(pin); err != nil {
		return Token{}, err
	}
	id, err := draw(nil, tokenIDBytes)
	if err != nil {
		return Token{}, fmt.Errorf("draw a token: %w", err)
	}
	secret, err := DrawSecret(nil)
	return Token{Kind: kind, ID: id, Secret: secret, Pin: pin}, err
}

// ParseToken reads a token; white space around it is ignored. It wraps
// ErrTokenText. No error repeats the text: it may hold a secret.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	bad := func(why string) (Token, error) {
		return Token{}, mesh.WithHint(fmt.Errorf("join token: %w: %s", ErrTokenText, why),
			"a token is one line, weft-<kind>-<id>.<secret>.<pin>; make one with: weft token create")
	}
	switch {
	case s == "":
		return bad("it is empty")
	case strings.ContainsAny(s, " \t\r\n"):
		return bad("it holds white space")
	case !strings.HasPrefix(s, tokenPrefix):
		return bad("it does not begin with " + tokenPrefix)
	}
	head, rest, _ := strings.Cut(s[len(tokenPrefix):], ".")
	kind, id, ok := strings.Cut(head, "-")
	secret, pin, two := strings.Cut(rest, ".")
	switch {
	case !ok || kind != mesh.KindHost && kind != mesh.KindClient:
		return bad(`its kind is neither "host" nor "client"`)
	case !tokenID.MatchString(id):
		return bad("its id is not 1 to 63 of a-z and 0-9")
	case !two:
		return bad("a part is missing; was it cut off?")
	case !isText32(secret, secretBytes):
		return bad("its secret is damaged; was it cut off?")
	case CheckPin(pin) != nil:
		return bad("its last part, the mesh's pin, is damaged; was it cut off?")
	}
	return Token{Kind: kind, ID: id, Secret: NewSecret(secret), Pin: pin}, nil
}

// Text returns the whole token, with its secret.
func (t Token) Text() string { return t.head() + "." + t.Secret.Reveal() + "." + t.Pin }

// Hash returns the SHA-256 of the secret: what the store keeps.
func (t Token) Hash() []byte { return t.Secret.Hash() }

func (t Token) head() string   { return tokenPrefix + t.Kind + "-" + t.ID }
func (t Token) String() string { return t.head() + "." + redacted }

// Format prints the token without its secret, whatever the verb.
func (t Token) Format(f fmt.State, _ rune) { io.WriteString(f, t.String()) }

// LogValue prints the token without its secret.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText prints the token without its secret.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// MarshalJSON prints the token without its secret.
func (t Token) MarshalJSON() ([]byte, error) { return json.Marshal(t.String()) }
