package dns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseResolvConf(t *testing.T) {
	got := ParseResolvConf([]byte(`# comment
; another
nameserver 10.0.0.1
nameserver   2001:db8::1 # trailing
nameserver fe80::1%eth0
nameserver
nameserver example.com
search a.example
search b.example c.example
options ndots:2
options edns0 trust-ad
lookup file bind
`))
	want := ResolvConf{
		Nameservers: []netip.AddrPort{
			netip.MustParseAddrPort("10.0.0.1:53"), netip.MustParseAddrPort("[2001:db8::1]:53"), netip.MustParseAddrPort("[fe80::1%eth0]:53"),
		},
		Search: []string{"b.example", "c.example"}, Options: []string{"ndots:2", "edns0", "trust-ad"},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUpstreamsFollowTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	list := Upstreams(path)
	if got := list(); len(got) != 0 {
		t.Errorf("no file: %v", got)
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	lists := func(want string) {
		t.Helper()
		waitFor(t, want, func() bool { return fmt.Sprint(list()) == want })
	}
	write("nameserver 10.0.0.1\n")
	lists("[10.0.0.1:53]")
	write("nameserver 10.0.0.1\nnameserver 10.0.0.2\n")
	lists("[10.0.0.1:53 10.0.0.2:53]")
	os.Remove(path)
	lists("[10.0.0.1:53 10.0.0.2:53]")
}
