package agent

import (
	"net/netip"
	"testing"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func TestReachOf(t *testing.T) {
	t.Parallel()
	own := []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}
	for _, tt := range []struct {
		name  string
		given string
		at    string // as recorded; "": nowhere
		fixed bool
		nat   bool
		own   []netip.Addr
		want  api.Reach // zero: nothing is said
	}{
		{name: "its own address", at: "192.0.2.1:51820", own: own},
		{name: "its own of IPv6", at: "[2001:db8::1]:51820", own: own},
		{name: "none of its own", at: "192.0.2.2:51820", own: own, want: api.Reach{Port: 51820}},
		{name: "another port", at: "192.0.2.1:4", own: own, want: api.Reach{Port: 51820}},
		{name: "no address at all", at: "192.0.2.1:51820", want: api.Reach{Port: 51820}},
		{name: "given once, and not any more", at: "192.0.2.2:51820", fixed: true, own: own},
		{name: "as given", given: "192.0.2.2:1", at: "192.0.2.2:1", fixed: true, own: own},
		{name: "given anew", given: "192.0.2.3:1", at: "192.0.2.2:1", fixed: true, own: own, want: api.Reach{Endpoint: "192.0.2.3:1"}},
		{name: "given, and recorded as seen", given: "192.0.2.1:51820", at: "192.0.2.1:51820", own: own, want: api.Reach{Endpoint: "192.0.2.1:51820"}},
		{name: "behind NAT", nat: true, own: own},
		{name: "nowhere", own: own},
	} {
		record := mesh.Host{NAT: tt.nat, Fixed: tt.fixed}
		if tt.at != "" {
			record.Endpoints = []netip.AddrPort{addrPort(tt.at)}
		}
		given, _ := netip.ParseAddrPort(tt.given)
		var got api.Reach
		if r := reachOf(given, 51820, record, tt.own); r != nil {
			got = *r
		}
		if got != tt.want {
			t.Errorf("%s: says %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
