package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
)

// Over an underlay of IPv6, where nobody on the way cuts a packet, a narrow path is
// found as well, and its headers are larger.
func TestNarrowPathIPv6(t *testing.T) {
	need(t, "nsenter", "python3", "ip")
	t.Parallel()
	w := newWorld(t, world.Config{})
	for i, region := range []string{"fra", "ams"} {
		at := netip.MustParseAddr(fmt.Sprintf("2001:db8:6::%d", i+1))
		weft(t, w, "region", "create", region)
		h, err := w.AddHost(t.Context(), region+"1", region, "--endpoint", netip.AddrPortFrom(at, 51820).String())
		if err == nil {
			_, err = h.Run(t.Context(), "ip", "-6", "addr", "add", at.String()+"/64", "dev", "eth0", "nodad")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := carryEverywhere(t, w)
	a, b := m["fra1"], m["ams1"]
	await(t, "a to reach b", 10*time.Second, func(ctx context.Context) error { return reach(ctx, a, b) })
	await(t, "the tunnel to be as wide as the link", 15*time.Second, mtusAre(w, "fra1", map[string]int{"ams1": 1420}))
	if p, _, err := peerOf(t.Context(), w, "fra1", "ams1"); err != nil || !p.Endpoint.Addr().Is6() {
		t.Fatalf("the underlay is not IPv6: %s, %v", p.Endpoint, err)
	}

	// 1400 bytes of IPv6 hold 40 + 8 + 32 of headers and 1312 of what was padded to 16.
	if err := w.Lab().Switch().SetMTU("fra1", "ams1", 1400); err != nil {
		t.Fatal(err)
	}
	if out, err := python(t.Context(), a, echoScript, b.Address.String(), "500000"); err != nil {
		t.Fatalf("TCP over a narrow path: %v\n%s", err, out)
	}
	await(t, "the MTU to be lowered", 8*time.Second, func(ctx context.Context) error {
		return errors.Join(mtusAre(w, "fra1", map[string]int{"ams1": 1312})(ctx), mtusAre(w, "ams1", map[string]int{"fra1": 1312})(ctx))
	})
	if out, err := python(t.Context(), a, discoverScript, b.Address.String()); err != nil || strings.TrimSpace(out) != "1312" {
		t.Errorf("path MTU discovery of a datagram: %q, %v", out, err)
	}
}
