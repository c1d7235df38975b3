package userspace

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The kernel's form of an address and ours say the same.
func TestEndpointNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, out string }{
		{"192.0.2.1:51820", "192.0.2.1:51820"},
		{"0.0.0.0:1", "0.0.0.0:1"},
		{"[2001:db8::1]:65535", "[2001:db8::1]:65535"},
		{"[fe80::1%lo]:258", "[fe80::1%lo]:258"},
		{"[fe80::1%1]:258", "[fe80::1%lo]:258"},          // lo is the first everywhere
		{"[fe80::1%987654]:258", "[fe80::1%987654]:258"}, // its link is gone
		{"[::ffff:192.0.2.1]:5", "[::ffff:192.0.2.1]:5"},
	} {
		e, err := newEndpoint(netip.MustParseAddrPort(tt.in))
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if got := addrPortOf(&e.name); got != netip.MustParseAddrPort(tt.out) {
			t.Errorf("%s: the kernel reads %s", tt.in, got)
		}
		if e.DstToString() != tt.in || e.DstIP() != netip.MustParseAddrPort(tt.in).Addr() || len(e.DstToBytes()) == 0 {
			t.Errorf("%s: it says %s, %s", tt.in, e.DstToString(), e.DstIP())
		}
	}
	if _, err := newEndpoint(netip.MustParseAddrPort("[fe80::1%nosuchlink]:1")); err == nil || !strings.Contains(err.Error(), "nosuchlink") {
		t.Errorf("a link that is not there: %v", err)
	}
	if _, err := newBind().ParseEndpoint("localhost:1"); err == nil {
		t.Error("a name is taken for an address")
	}
}

// Whoever sends, in whatever order, and whichever address of ours it writes to: the
// endpoint is the right one, and it is the same again when nothing has changed.
func TestKnownEndpoints(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var k known
		addr := rapid.Custom(func(t *rapid.T) netip.Addr {
			n := byte(rapid.IntRange(1, 40).Draw(t, "n"))
			if rapid.Bool().Draw(t, "v4") {
				return netip.AddrFrom4([4]byte{192, 0, 2, n})
			}
			return netip.AddrFrom16([16]byte{0: 0xfd, 15: n})
		})
		ours := rapid.SampledFrom([]netip.Addr{{}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")})
		for range 100 {
			from := netip.AddrPortFrom(addr.Draw(t, "from"), uint16(rapid.IntRange(1, 3).Draw(t, "port")))
			sender, err := newEndpoint(from)
			if err != nil {
				t.Fatal(err)
			}
			to := ours.Draw(t, "to")
			e, err := k.endpoint(&sender.name, to)
			if err != nil || e.to != from || e.SrcIP() != to {
				t.Fatalf("%s to %s: %v, %v to %v", from, to, err, e.to, e.SrcIP())
			}
			if again, _ := k.endpoint(&sender.name, to); again != e {
				t.Fatalf("%s is made anew", fmt.Sprint(from))
			}
		}
	})
}
