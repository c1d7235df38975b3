package mesh

import (
	"testing"
)

// FuzzTexts: revisions, nodes, places and keys are read or refused; what is read is
// written so that it reads the same.
func FuzzTexts(f *testing.F) {
	for _, s := range []string{"1.7", "4294967295.9223372036854775807", "4294967296.1", "1.-1", ".", "+1.+2", "host/h", "client/acme/c", "client//", "host/a/b",
		"50.1,8.7", "-0,0", "NaN,1", "1e2,1", Key{1, 2, 3}.String(), "AAAA"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var r, again Revision
		if r.UnmarshalText([]byte(s)) == nil {
			text, err := r.MarshalText()
			if err != nil || again.UnmarshalText(text) != nil || again != r {
				t.Fatalf("revision %q: %v, then %v: %v", s, r, again, err)
			}
		}
		if n, ok := ParseNode(s); ok {
			if again, ok := ParseNode(n.String()); !ok || again != n {
				t.Fatalf("node %q: %+v, then %+v", s, n, again)
			}
			State{}.View(n, Deployment{})
		}
		if p, err := ParsePoint(s); err == nil {
			if again, err := ParsePoint(p.String()); err != nil || *again != *p {
				t.Fatalf("place %q: %v, then %v: %v", s, p, again, err)
			}
		}
		var k, same Key
		if k.UnmarshalText([]byte(s)) == nil {
			if same.UnmarshalText([]byte(k.String())) != nil || same != k {
				t.Fatalf("key %q: %s, then %s", s, k, same)
			}
		}
	})
}
