package controller

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func TestReachedAt(t *testing.T) {
	t.Parallel()
	inside := netip.MustParsePrefix("fd12:3456:789a::/48")
	for _, tt := range []struct {
		name     string
		was      string // "": behind NAT
		fixed    bool
		endpoint string
		seen     string
		want     string // "": as it was
		refused  string
	}{
		{name: "another address", was: "192.0.2.1:51820", seen: "192.0.2.9", want: "192.0.2.9:51820"},
		{name: "the same, as behind a router that maps one to one", was: "192.0.2.1:51820", seen: "192.0.2.1"},
		{name: "another port", was: "192.0.2.1:4", seen: "192.0.2.1", want: "192.0.2.1:51820"},
		{name: "another private address", was: "10.0.0.1:51820", seen: "10.0.7.1", want: "10.0.7.1:51820"},
		{name: "a public one seen over a private network", was: "192.0.2.1:51820", seen: "10.0.0.1"},
		{name: "a private one seen from outside", was: "10.0.0.1:51820", seen: "192.0.2.1"},
		{name: "seen over the other family", was: "192.0.2.1:51820", seen: "2001:db8::1"},
		{name: "another of IPv6", was: "[2001:db8::1]:51820", seen: "2001:db8::2", want: "[2001:db8::2]:51820"},
		{name: "seen in a provider's shared space", was: "192.0.2.1:51820", seen: "100.64.0.1"},
		{name: "seen on loopback", was: "192.0.2.1:51820", seen: "127.0.0.1"},
		{name: "not seen", was: "192.0.2.1:51820"},
		{name: "seen in the mesh", was: "192.0.2.1:51820", seen: "fd12:3456:789a::5", refused: "in the mesh fd12:3456:789a::/48 itself"},
		{name: "behind NAT", seen: "192.0.2.9"},
		{name: "given before, seen elsewhere", was: "192.0.2.1:51820", fixed: true, seen: "192.0.2.9"},
		{name: "given anew", was: "192.0.2.1:51820", fixed: true, endpoint: "192.0.2.7:1", seen: "192.0.2.9", want: "192.0.2.7:1"},
		{name: "given as it was seen: stays from now on", was: "192.0.2.1:51820", endpoint: "192.0.2.1:51820", want: "192.0.2.1:51820"},
		{name: "given again", was: "192.0.2.1:51820", fixed: true, endpoint: "192.0.2.1:51820"},
		{name: "given of another family", was: "192.0.2.1:51820", endpoint: "[2001:db8::1]:1", want: "[2001:db8::1]:1"},
		{name: "given in the mesh", was: "192.0.2.1:51820", endpoint: "[fd12:3456:789a::5]:1", refused: "in the mesh fd12:3456:789a::/48 itself"},
		{name: "given nonsense", was: "192.0.2.1:51820", endpoint: "fra1", refused: "want IP:PORT"},
	} {
		h := mesh.Host{Name: "fra1", NAT: tt.was == "", Fixed: tt.fixed}
		if !h.NAT {
			h.Endpoints = []netip.AddrPort{netip.MustParseAddrPort(tt.was)}
		}
		seen, _ := netip.ParseAddr(tt.seen)
		to, changed, err := reachedAt(h, api.Reach{Endpoint: tt.endpoint, Port: 51820}, seen, inside)
		got := ""
		if changed {
			got = to[0].String()
		}
		if got != tt.want || (err != nil) != (tt.refused != "") || err != nil && !strings.Contains(err.Error(), tt.refused) {
			t.Errorf("%s: %q, %v, want %q, %q", tt.name, got, err, tt.want, tt.refused)
		}
	}
}

// A host says where it is reached now: others are told, but not of more than one change
// a minute. What nobody can reach is refused, and keeps nothing else from being taken.
func TestReportOfReach(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	a, b := w.host("a", "fra", "all"), w.host("b", "fra", "all")
	a.machine("acme", "web", "1")
	b.machine("acme", "web", "2")
	report := func(endpoint, version string) error {
		return a.Do(t.Context(), "POST", "/v1/nodes/self/report", api.Report{Version: version, Reach: &api.Reach{Endpoint: endpoint}}, nil)
	}
	if err := report("192.0.2.9:51820", "1"); err != nil {
		t.Fatal(err)
	}
	v := (<-b.view().events).Snapshot
	if v == nil || len(v.Hosts) != 1 || len(v.Hosts[0].Endpoints) != 1 || v.Hosts[0].Endpoints[0].String() != "192.0.2.9:51820" {
		t.Errorf("the other host's view: %+v", v)
	}
	if err := report("192.0.2.10:51820", "1"); err != nil {
		t.Error(err)
	}
	if err := report("[fd12:3456:789a::5]:51820", "2"); !errors.Is(err, api.ErrInvalid) {
		t.Errorf("an endpoint in the mesh: %v", err)
	}
	if h := do[api.HostInfo](t, w.admin, "GET", "/v1/hosts/a", nil); h.Endpoints[0].String() != "192.0.2.9:51820" || !h.Fixed {
		t.Errorf("a moment later: %+v", h)
	}
	var kept api.Report
	if err := newStore(t, w.etcd, w.root).LoadReport(t.Context(), "a", &kept); err != nil || kept.Version != "2" || kept.Reach != nil {
		t.Errorf("kept %+v, %v", kept, err)
	}
}
