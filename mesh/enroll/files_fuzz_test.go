package enroll

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/weftmesh/weft/mesh"
)

// FuzzIdentityFiles: whatever the files of an identity hold, they are read or
// refused; what is read can be saved and is read the same, and its roots and its
// certificate are parsed or refused as well.
func FuzzIdentityFiles(f *testing.F) {
	dir := f.TempDir()
	identity := Identity{Dir: dir}
	keys, err := identity.Keys()
	if err != nil {
		f.Fatal(err)
	}
	err = identity.Save(Membership{Node: mesh.Node{Kind: mesh.KindHost, Name: "h"}, Certificate: []byte("x"), Roots: []string{"y"}, Controllers: []string{"https://ctl"}})
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{membershipFile, wireguardFile, tlsFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"node":"client//"}`))
	f.Add([]byte(`{"node":"host/h","certificate":"","roots":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := parseWireGuardKey(b); err == nil {
			if again, err := parseWireGuardKey([]byte(k.String())); err != nil || again != k {
				t.Fatalf("WireGuard key: %v", err)
			}
		}
		if k, err := parseTLSKey(b); err == nil {
			// Of any kind of key: it has a hash, or none.
			KeyHash(k.Public())
		}
		identity := Identity{Dir: t.TempDir()}
		if err := os.WriteFile(filepath.Join(identity.Dir, membershipFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := identity.Load()
		if err != nil {
			return
		}
		if _, err := ParseRoots(m.Roots); err == nil && len(m.Roots) == 0 {
			t.Log("no roots")
		}
		_, _ = keys.Certificate(m.Certificate)
		if err := identity.Save(m); err != nil {
			t.Fatal(err)
		}
		again, err := identity.Load()
		if err != nil || again.Node != m.Node || !slices.Equal(again.Controllers, m.Controllers) || !slices.Equal(again.Roots, m.Roots) || string(again.Certificate) != string(m.Certificate) {
			t.Fatalf("%+v, then %+v: %v", m, again, err)
		}
	})
}

// FuzzOpenCA: a CA record that was damaged is refused, never half used.
func FuzzOpenCA(f *testing.F) {
	key := newSealKey(make([]byte, 32))
	f.Add([]byte("certificate"), []byte("sealed"))
	f.Fuzz(func(t *testing.T, certificate, sealed []byte) {
		if ca, err := OpenCA(certificate, sealed, key); err == nil {
			if _, err := ca.Seal(key); err != nil {
				t.Fatal(err)
			}
		}
	})
}
