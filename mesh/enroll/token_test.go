package enroll

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/weftmesh/weft/mesh"
)

var testPin = strings.Repeat("a", 52)

func TestTokenRoundTrip(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{mesh.KindHost, mesh.KindClient} {
		want, err := NewToken(kind, testPin)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseToken(" " + want.Text() + "\n")
		if err != nil {
			t.Fatal(err)
		}
		if got.Text() != want.Text() || got.Kind != kind || got.ID != want.ID || got.Pin != testPin {
			t.Errorf("got %q, want %q", got.Text(), want.Text())
		}
		if !got.Secret.Matches(want.Hash()) {
			t.Error("the secret does not match its own hash")
		}
	}
	if _, err := NewToken("machine", testPin); err == nil {
		t.Error("a token of an unknown kind was made")
	}
	if _, err := NewToken(mesh.KindHost, "short"); err == nil {
		t.Error("a token with a wrong pin was made")
	}
}

func TestParseTokenRefuses(t *testing.T) {
	t.Parallel()
	secret := strings.Repeat("b", 32)
	for _, tt := range []struct{ name, text, why string }{
		{"empty", "  \n", "it is empty"},
		{"two lines", "weft-host-a." + secret + ".\n" + testPin, "white space"},
		{"other prefix", "tskey-auth-abc", "begin with weft-"},
		{"no kind", "weft-.", "its kind"},
		{"unknown kind", "weft-machine-ab." + secret + "." + testPin, "its kind"},
		{"no id", "weft-host-." + secret + "." + testPin, "its id"},
		{"id in capitals", "weft-host-AB." + secret + "." + testPin, "its id"},
		{"only the head", "weft-host-ab", "a part is missing"},
		{"no pin", "weft-host-ab." + secret, "a part is missing"},
		{"short secret", "weft-host-ab." + secret[1:] + "." + testPin, "its secret"},
		{"capital in the secret", "weft-host-ab.B" + secret[1:] + "." + testPin, "its secret"},
		{"short pin", "weft-host-ab." + secret + "." + testPin[1:], "pin"},
		{"pin with bits past its end", "weft-host-ab." + secret + "." + testPin[1:] + "b", "pin"},
		{"a fourth part", "weft-host-ab." + secret + "." + testPin + ".x", "pin"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseToken(tt.text)
			if !errors.Is(err, ErrTokenText) || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("got %v, want ErrTokenText with %q", err, tt.why)
			}
			if mesh.HintOf(err) == "" {
				t.Error("the error has no hint")
			}
			if err != nil && strings.Contains(err.Error(), secret[1:]) {
				t.Error("the error repeats the secret")
			}
		})
	}
}

func FuzzParseToken(f *testing.F) {
	token, err := NewToken(mesh.KindHost, testPin)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token.Text())
	f.Add("weft-client-x.y.z")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseToken(s)
		if err != nil {
			return
		}
		if got.Text() != strings.TrimSpace(s) {
			t.Errorf("%q parses as %q", s, got.Text())
		}
		if strings.Contains(fmt.Sprintf("%+v", got), got.Secret.Reveal()) {
			t.Error("it prints its secret")
		}
	})
}

// CVE-2023-47390: tokens were written to logs. Whatever prints a secret, alone or
// inside something else, prints [redacted].
func TestCVE202347390SecretsPrintRedacted(t *testing.T) {
	t.Parallel()
	token, err := NewToken(mesh.KindHost, testPin)
	if err != nil {
		t.Fatal(err)
	}
	credential, err := NewCredential("ann")
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	type hidden struct {
		token      Token
		credential Credential
		secret     Secret
		key        SealKey
		pointer    *Token
	}
	type open struct {
		Token      Token
		Credential Credential
		Secret     Secret
		Key        SealKey
		Pointer    *Token
	}
	values := []any{
		token, &token, credential, &credential, token.Secret, &token.Secret, key, &key,
		hidden{token, credential, token.Secret, key, &token}, open{token, credential, token.Secret, key, &token},
		[]Token{token}, map[string]Credential{"a": credential},
	}
	secrets := []string{token.Secret.Reveal(), credential.Secret.Reveal(), string(key.key()), fmt.Sprint(key.key())[1:20]}
	check := func(how, text string) {
		t.Helper()
		for _, s := range secrets {
			if strings.Contains(text, s) || strings.Contains(text, fmt.Sprintf("%x", s)) || strings.Contains(text, fmt.Sprintf("%X", s)) {
				t.Errorf("%s prints a secret: %s", how, text)
			}
		}
	}
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%10.3s"} {
			check(verb, fmt.Sprintf(verb, v))
		}
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		check("json", string(j))
		if y, err := yaml.Marshal(v); err == nil {
			check("yaml", string(y))
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		check("slog", log.String())
	}
	for _, v := range []any{token, token.Secret, key} {
		if s := fmt.Sprint(v); !strings.Contains(s, redacted) {
			t.Errorf("%T prints as %q, want [redacted] in it", v, s)
		}
	}
}

func TestSecretMatchesNothingWhenEmpty(t *testing.T) {
	t.Parallel()
	var s Secret
	if s.Matches(s.Hash()) {
		t.Error("an empty secret matches")
	}
	x, err := DrawSecret(nil)
	if err != nil {
		t.Fatal(err)
	}
	if x.Matches(nil) || x.Matches(NewSecret("other").Hash()) || !x.Matches(x.Hash()) {
		t.Error("Matches is wrong")
	}
}

func TestParseCredential(t *testing.T) {
	t.Parallel()
	want, err := NewCredential("ann")
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCredential(want.Text() + "\n")
	if err != nil || got.Text() != want.Text() {
		t.Errorf("got %q, %v", got.Text(), err)
	}
	for _, bad := range []string{"", "ann", "ann.", "." + want.Secret.Reveal(), "Ann." + want.Secret.Reveal(), want.Text() + "x", "a b." + want.Secret.Reveal()} {
		if _, err := ParseCredential(bad); err == nil {
			t.Errorf("%q was taken", bad)
		} else if strings.Contains(err.Error(), want.Secret.Reveal()) {
			t.Error("the error repeats the secret")
		}
	}
	if _, err := NewCredential("no good"); err == nil {
		t.Error("a bad id was taken")
	}
}

func FuzzParseCredential(f *testing.F) {
	f.Add("ann." + strings.Repeat("b", 32))
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := ParseCredential(s); err == nil && c.Text() != strings.TrimSpace(s) {
			t.Errorf("%q parses as %q", s, c.Text())
		}
	})
}
