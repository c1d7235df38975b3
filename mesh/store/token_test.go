package store

import (
	"crypto/subtle"
	"errors"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// TS-2025-007: a one-off key was checked, then written, and so used twice. Here
// the use goes in the transaction that makes the node: of many at once, at two
// controllers, exactly one gets in.
func TestTS2025007OneUseTokenSpentOnce(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{})
	stores := []*Store{one, again(t, one)}
	org(t, one, "acme")
	host(t, one, "fra1")
	for _, tt := range []struct {
		name string
		tok  mesh.Token
		join func(s *Store, name string, use TokenUse) error
	}{
		{"host", mesh.Token{ID: "one-host", Kind: mesh.KindHost, Orgs: []string{"all"}}, func(s *Store, name string, use TokenUse) error {
			return third(s.EnrollHost(t.Context(), hostSpec(name), use))
		}},
		{"client", mesh.Token{ID: "one-client", Kind: mesh.KindClient, Org: "acme"}, func(s *Store, name string, use TokenUse) error {
			return third(s.EnrollClient(t.Context(), ClientSpec{Name: name, Key: key(name), TLSKey: name}, use))
		}},
	} {
		use := token(t, one, tt.tok)
		var in atomic.Int64
		together(16, func(i int) {
			err := tt.join(stores[i%2], tt.name+string(rune('a'+i)), use)
			switch {
			case err == nil:
				in.Add(1)
			case !errors.Is(err, ErrToken):
				t.Errorf("%s %d: %v, want ErrToken", tt.name, i, err)
			}
		})
		if n := in.Load(); n != 1 {
			t.Errorf("%s: %d got in with a token of one use", tt.name, n)
		}
	}
	if n := len(keysBelow(t, one, keyHosts)); n != 2 {
		t.Errorf("%d hosts, want fra1 and one more", n)
	}
	if n := len(keysBelow(t, one, "clients/")); n != 1 {
		t.Errorf("%d clients, want 1", n)
	}
	// Every redemption is in the audit log.
	events, err := one.Events(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	redeemed := map[string]int{}
	for _, e := range events {
		redeemed[e.Action+" by "+e.Actor]++
	}
	for _, want := range []string{"host.enroll by token/one-host", "client.enroll by token/one-client"} {
		if redeemed[want] != 1 {
			t.Errorf("%q is in the audit log %d times", want, redeemed[want])
		}
	}
}

// TS-2025-003: a secret was compared in variable time. What compares a hash here
// must be crypto/subtle, and nothing else in the package may look at one.
func TestTS2025003ConstantTimeCompare(t *testing.T) {
	t.Parallel()
	f, err := parser.ParseFile(gotoken.NewFileSet(), "access.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			fun, ok := n.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if fun.Sel.Name == "ConstantTimeCompare" {
				calls++
				return false
			}
			if fun.Sel.Name == "Equal" || fun.Sel.Name == "Compare" {
				t.Errorf("access.go compares by %s", fun.Sel.Name)
			}
		case *ast.BinaryExpr:
			for _, side := range []ast.Expr{n.X, n.Y} {
				if sel, ok := side.(*ast.SelectorExpr); ok && sel.Sel.Name == "Hash" {
					t.Error("access.go compares a hash by an operator")
				}
			}
		}
		return true
	})
	if calls != 1 {
		t.Errorf("%d calls of subtle.ConstantTimeCompare (%d), want 1", calls, subtle.ConstantTimeCompare(nil, nil))
	}
}

func TestRefusedTokens(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newMesh(t, Config{Now: c.Now})
	org(t, s, "acme")
	org(t, s, "beta")
	host(t, s, "fra1")
	good := token(t, s, mesh.Token{ID: "good", Kind: mesh.KindHost, Orgs: []string{"acme"}, Expires: c.Now().Add(time.Hour)})
	short := token(t, s, mesh.Token{ID: "short", Kind: mesh.KindHost, Orgs: []string{"acme"}, Expires: c.Now().Add(time.Second)})
	people := token(t, s, mesh.Token{ID: "people", Kind: mesh.KindClient, Org: "acme"})
	c.add(time.Second)

	almost := slices.Clone(good.Hash)
	almost[31] ^= 1
	for _, tt := range []struct {
		name string
		use  TokenUse
		says string
	}{
		{"unknown", TokenUse{"unknown", good.Hash}, "there is no such token"},
		// It must not meet what stands in for a missing hash.
		{"unknown with a zero hash", TokenUse{"unknown", make([]byte, 32)}, "there is no such token"},
		{"no id", TokenUse{"", good.Hash}, "there is no such token"},
		{"a path for an id", TokenUse{"../operators/first", good.Hash}, "there is no such token"},
		{"wrong in one bit", TokenUse{"good", almost}, "there is no such token"},
		{"no hash", TokenUse{"good", nil}, "there is no such token"},
		{"half a hash", TokenUse{"good", good.Hash[:16]}, "there is no such token"},
		{"expired", short, "expired at 2030-01-02 03:04:06 UTC"},
		{"of a client", people, "is for a client"},
	} {
		_, _, err := s.EnrollHost(t.Context(), hostSpec("new"), tt.use)
		if !errors.Is(err, ErrToken) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want ErrToken that says %q", tt.name, err, tt.says)
		}
	}
	spec := ClientSpec{Name: "laptop", Key: key("laptop"), TLSKey: "laptop"}
	if _, _, err := s.EnrollClient(t.Context(), spec, good); !errors.Is(err, ErrToken) {
		t.Errorf("a client with a host's token: %v", err)
	}
	spec.Org = "beta"
	if _, _, err := s.EnrollClient(t.Context(), spec, people); !errors.Is(err, ErrToken) {
		t.Errorf("a client of another org than its token's: %v", err)
	}
	if got := keysBelow(t, s, keyHosts); len(got) != 1 {
		t.Errorf("hosts: %q", got)
	}
}

// headscale #2830: a node that had joined was put out because its old key was
// looked at again. Here the request that joined gets its answer again, spends
// nothing, and does not care that the token is spent and has expired.
func TestHeadscale2830ATokenMattersOnce(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newMesh(t, Config{Now: c.Now})
	org(t, s, "acme")
	use := token(t, s, mesh.Token{ID: "once", Kind: mesh.KindHost, Orgs: []string{"acme"}})
	first := must(s.EnrollHost(t.Context(), hostSpec("fra1"), use))(t)
	people := token(t, s, mesh.Token{ID: "people", Kind: mesh.KindClient, Org: "acme"})
	laptop := ClientSpec{Name: "laptop", Key: key("laptop"), TLSKey: "laptop"}
	before := must(s.EnrollClient(t.Context(), laptop, people))(t)
	c.add(48 * time.Hour)
	second := must(s.EnrollHost(t.Context(), hostSpec("fra1"), use))(t)
	if second.Number != first.Number {
		t.Errorf("host number %d, then %d", first.Number, second.Number)
	}
	if after := must(s.EnrollClient(t.Context(), laptop, people))(t); after.Endpoint != before.Endpoint {
		t.Errorf("client at %s, then %s", before.Endpoint, after.Endpoint)
	}
	// The name with other keys is somebody else.
	other := hostSpec("fra1")
	other.Key = key("other")
	if _, _, err := s.EnrollHost(t.Context(), other, use); !errors.Is(err, ErrExists) {
		t.Errorf("the name with other keys: %v", err)
	}
	other = hostSpec("fra2")
	if _, _, err := s.EnrollHost(t.Context(), other, use); !errors.Is(err, ErrToken) {
		t.Errorf("another host with the spent token: %v", err)
	}
}
