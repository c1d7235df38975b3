package enroll

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
)

func TestKeysAreMadeOnce(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	first, err := Identity{dir}.Keys()
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreateKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	if first.WireGuard != second.WireGuard || KeyHash(first.TLS.Public()) != KeyHash(second.TLS.Public()) {
		t.Error("the second time there are other keys")
	}
	der, err := first.TLSPublic()
	if err != nil {
		t.Fatal(err)
	}
	if pub, err := ParsePublicKey(der); err != nil || KeyHash(pub) != KeyHash(first.TLS.Public()) {
		t.Errorf("the public key does not come back: %v", err)
	}
	modes := map[string]os.FileMode{}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		modes[filepath.Base(path)] = info.Mode().Perm()
		return nil
	})
	want := map[string]os.FileMode{"b": 0o700, "wireguard.key": 0o600, "tls.key": 0o600}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}
}

// CVE-2026-29196: private keys were readable.
func TestCVE202629196ExposedKeysAreRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		file string // below the directory; "" is the directory itself
		mode os.FileMode
		ok   bool
	}{
		{"WireGuard key, group reads", "wireguard.key", 0o640, false},
		{"WireGuard key, all read", "wireguard.key", 0o604, false},
		{"TLS key, all read", "tls.key", 0o644, false},
		{"TLS key, group writes", "tls.key", 0o620, false},
		{"TLS key, read only", "tls.key", 0o400, true},
		{"directory, others write", "", 0o702, false},
		{"directory, group writes", "", 0o770, false},
		{"directory, others list", "", 0o755, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "id")
			if _, err := LoadOrCreateKeys(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(dir, tt.file), tt.mode); err != nil {
				t.Fatal(err)
			}
			_, err := LoadOrCreateKeys(dir)
			switch {
			case tt.ok && err != nil:
				t.Error(err)
			case !tt.ok && (!errors.Is(err, ErrExposed) || !strings.Contains(err.Error(), dir)):
				t.Errorf("got %v, want ErrExposed that names the file", err)
			case !tt.ok && !strings.Contains(mesh.HintOf(err), "chmod"):
				t.Errorf("hint %q", mesh.HintOf(err))
			}
		})
	}
}

func TestDamagedKeysAreRefused(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"wireguard.key", "tls.key"} {
		dir := t.TempDir()
		if _, err := LoadOrCreateKeys(dir); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, file)
		for _, text := range []string{"", "nonsense\n", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadOrCreateKeys(dir); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%s = %q: got %v, want an error that names it", file, text, err)
			}
			if b, _ := os.ReadFile(path); string(b) != text {
				t.Errorf("%s was overwritten", file)
			}
		}
	}
}

func TestMembershipRoundTrip(t *testing.T) {
	t.Parallel()
	id := Identity{filepath.Join(t.TempDir(), "id")}
	if _, err := id.Load(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before the first Save: %v", err)
	}
	ca := newCA(t)
	keys, err := id.Keys()
	if err != nil {
		t.Fatal(err)
	}
	cert := signNode(t, ca, keys.TLS.Public(), ann)
	want := Membership{Node: ann, Certificate: cert.Raw, Roots: []string{ca.PEM()}, Controllers: []string{"https://[fd00::1]:7443"}}
	for range 2 {
		if err := id.Save(want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := id.Load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if info, err := os.Stat(filepath.Join(id.Dir, "node.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("node.json: %v, %v", info.Mode(), err)
	}
	if _, err := keys.Certificate(got.Certificate); err != nil {
		t.Errorf("key and certificate: %v", err)
	}
	if _, err := keys.Certificate(signNode(t, ca, newKey(t).Public(), ann).Raw); err == nil {
		t.Error("a certificate of another key was taken")
	}
	for range 2 {
		if err := id.Forget(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := id.Load(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Forget: %v", err)
	}
	if again, err := id.Keys(); err != nil || again.WireGuard != keys.WireGuard {
		t.Errorf("Forget took the keys: %v", err)
	}
}

func TestDamagedMembershipIsRefused(t *testing.T) {
	t.Parallel()
	id := Identity{t.TempDir()}
	for _, text := range []string{"", "{", `{"node":"x"}`, `{"node":"client/acme"}`} {
		if err := os.WriteFile(filepath.Join(id.Dir, "node.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := id.Load(); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSealKeyFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "seal.key")
	if _, err := LoadSealKey(path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("missing: %v", err)
	}
	first, err := LoadOrCreateSealKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrCreateSealKey(path)
	if err != nil || !bytes.Equal(again.key(), first.key()) {
		t.Errorf("the second time there is another key: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateSealKey(path); !errors.Is(err, ErrExposed) {
		t.Errorf("exposed: %v", err)
	}
	if err := os.WriteFile(path, []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateSealKey(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("damaged: %v", err)
	}
}

func TestWriteFileLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// A directory in the file's place: the rename fails.
	if err := os.Mkdir(filepath.Join(dir, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "x"), []byte("y")); err == nil {
		t.Fatal("a directory was overwritten")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestOperatorFileCheck(t *testing.T) {
	t.Parallel()
	c, err := NewCredential("admin")
	if err != nil {
		t.Fatal(err)
	}
	good := OperatorFile{[]string{"https://a:7443"}, testPin, c.Text()}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for _, bad := range []OperatorFile{{nil, testPin, c.Text()}, {good.Controllers, "x", c.Text()}, {good.Controllers, testPin, "x"}} {
		if bad.Check() == nil {
			t.Errorf("%v was taken", bad.Controllers)
		}
	}
}

func TestRenewAtOfShortLives(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	der, err := ca.SignNode(newKey(t).Public(), fra1, 9*time.Second, epoch)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Keys{TLS: newKey(t)}.Certificate(der)
	if m != nil || err == nil {
		t.Error("a certificate of another key was taken")
	}
	chain, err := ParseRoots([]string{ca.PEM()})
	if err != nil || len(chain) != 1 || !chain[0].IsCA {
		t.Errorf("roots: %v", err)
	}
	if _, err := ParseRoots(nil); err == nil {
		t.Error("no roots were taken")
	}
}
