package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRules(t *testing.T) {
	t.Parallel()
	at := netip.MustParseAddrPort
	for _, tt := range []struct {
		list string // as a list is cut, at its commas
		want map[string][]netip.AddrPort
		err  string
	}{
		{list: "", want: map[string][]netip.AddrPort{}},
		{list: "corp.example=10.0.0.53", want: map[string][]netip.AddrPort{"corp.example": {at("10.0.0.53:53")}}},
		{list: "Corp.Example.=10.0.0.53:5353,fd00::1, [fd00::2]:54,lab=192.0.2.1,corp.example=10.0.1.53", want: map[string][]netip.AddrPort{
			"corp.example": {at("10.0.0.53:5353"), at("[fd00::1]:53"), at("[fd00::2]:54"), at("10.0.1.53:53")}, "lab": {at("192.0.2.1:53")},
		}},
		{list: "10.0.0.53", err: `--dns-rule "10.0.0.53": want DOMAIN=IP`},
		{list: "corp.example=", err: `--dns-rule "corp.example=": want DOMAIN=IP`},
		{list: "corp.example=dns.corp.example", err: "want DOMAIN=IP"},
		{list: "=10.0.0.53", err: "want DOMAIN=IP"},
		{list: ".=10.0.0.53", err: `--dns-rule ".=10.0.0.53": all names are no domain`},
	} {
		var list []string
		if tt.list != "" {
			list = strings.Split(tt.list, ",")
		}
		got, err := parseRules(list)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: %v, %v", tt.list, got, err)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got):\n%s", tt.list, err, diff)
		}
	}
}

// The options of the resolver come from flags, the environment and a file alike: they
// are persistent flags.
func TestResolverFlags(t *testing.T) {
	t.Parallel()
	run := runCommand()
	for _, name := range []string{"dns-upstream", "dns-rule", "dns-rebind-ok", "dns-log"} {
		if f := run.PersistentFlags().Lookup(name); f == nil || f.Hidden || f.DefValue != "[]" && f.DefValue != "false" {
			t.Errorf("--%s: %+v", name, f)
		}
	}
}
