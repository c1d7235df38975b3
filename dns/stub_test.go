package dns

import (
	"context"
	"net/netip"
	"testing"
)

func runStub(t *testing.T, s *Stub) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("stub: %v", err)
		}
	})
}

// The laptop's split: internal. to the mesh, all else to where it went before.
func TestStubSplits(t *testing.T) {
	meshServer := startUpstream(t, says(t, "web.internal. 5 IN AAAA "+w1))
	before := startUpstream(t, says(t, "example.com. 5 IN A 192.0.2.1"))
	stub, err := NewStub(StubConfig{
		Listen: []netip.AddrPort{before.at, netip.MustParseAddrPort("127.0.0.1:0")}, // the first is taken
		Forward: ForwarderConfig{
			Upstreams: func() []netip.AddrPort { return []netip.AddrPort{before.at} },
			Rules:     map[string][]netip.AddrPort{"internal.": {meshServer.at}},
			Mesh:      mesh,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	runStub(t, stub)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for _, tt := range []struct{ name, qtype, want string }{
		{"web.internal", "AAAA", w1 + "\n"}, {"example.com", "A", "192.0.2.1\n"},
	} {
		if r, err := Lookup(ctx, direct, stub.Addr(), tt.name, tt.qtype); err != nil || r.Short() != tt.want {
			t.Errorf("%s: %v %v", tt.name, r, err)
		}
	}
	if st := stub.Stats(); st.Forwarded != 2 || st.UDP != 2 {
		t.Errorf("stats %+v", st)
	}
}
