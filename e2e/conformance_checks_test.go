package e2e

import (
	"fmt"
	"slices"
	"strings"
)

// checkEDNS: unknown options are passed over, an unknown version is refused with
// BADVERS, a cookie is given back, and who has no EDNS at all is answered as well.
func checkEDNS(t reporter, b *box) {
	for _, tt := range []struct {
		command string
		want    []string
	}{
		{"dig +noedns web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"dig +bufsize=4096 web.internal AAAA", []string{"status: NOERROR", "EDNS: version: 0", b.w1}},
		{"dig +ednsopt=65001:c0ffee web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"dig +ednsflags=0x4000 web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"dig +edns=1 +noednsnegotiation web.internal AAAA", []string{"status: BADVERS"}},
		{"dig +cookie web.internal AAAA", []string{"status: NOERROR", "(good)", b.w1}},
		{"dig +dnssec web.internal AAAA", []string{"status: NOERROR", "flags: do", b.w1}},
		{"dig +nsid +subnet=192.0.2.0/24 web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"kdig +edns=1 web.internal AAAA", []string{"BADVERS"}},
		{"kdig +noedns web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"kdig +nsid +padding=64 web.internal AAAA", []string{"status: NOERROR", b.w1}},
		{"kdig +tcp +keepopen +bufsize=512 web.internal AAAA _apps.internal TXT", []string{b.w1, b.apps}},
		{"dig web.internal ANY +notcp", []string{"status: NOERROR"}},
		{"dig web.internal TYPE65", []string{"status: NOERROR", "ANSWER: 0", "SOA"}},
		{"dig nobody.internal AAAA", []string{"status: NXDOMAIN", "ANSWER: 0", "SOA"}},
	} {
		f := strings.Fields(tt.command)
		out, err := b.Run(t.Context(), f[0], f[1:]...)
		for _, want := range tt.want {
			if err != nil || !strings.Contains(out, want) {
				t.Errorf("%s: %v, no %q in\n%s", tt.command, err, want, out)
			}
		}
	}
}

// checkTruncation: a long answer is cut over UDP, with TC, and whole over TCP.
func checkTruncation(t reporter, b *box) {
	for _, tt := range []struct {
		command string
		tc      bool
		answers string
	}{
		{"dig +notcp +ignore +noedns " + b.longTXT.name + " TXT", true, ""},
		{"dig +notcp +ignore " + b.longAAAA.name + " AAAA", true, ""},
		{"dig +tcp " + b.longTXT.name + " TXT", false, "ANSWER: 1,"},
		{"dig +tcp " + b.longAAAA.name + " AAAA", false, fmt.Sprintf("ANSWER: %d,", confBig)},
		{"dig +noedns " + b.longAAAA.name + " AAAA", false, fmt.Sprintf("ANSWER: %d,", confBig)},
	} {
		f := strings.Fields(tt.command)
		out, err := b.Run(t.Context(), f[0], f[1:]...)
		flags := ""
		for line := range strings.Lines(out) {
			if rest, ok := strings.CutPrefix(line, ";; flags:"); ok {
				flags, _, _ = strings.Cut(rest, ";")
			}
		}
		if err != nil || slices.Contains(strings.Fields(flags), "tc") != tt.tc || !strings.Contains(out, tt.answers) {
			t.Errorf("%s: %v, flags %q, want tc %v and %q:\n%s", tt.command, err, flags, tt.tc, tt.answers, out)
		}
	}
}

// checkCase: the question comes back in the letters in which it was asked (clients
// check that: draft-vixie-dnsext-dns0x20), and so does the record's name.
func checkCase(t reporter, b *box) {
	for _, name := range []string{"WeB.iNtErNaL", "wEB.INTERNAL", "REGIONS.weB.inTernal"} {
		for _, kind := range []string{"AAAA", "TXT"} {
			out, err := b.Run(t.Context(), "dig", "+noall", "+question", "+comments", name, kind)
			if err != nil || !strings.Contains(out, name+".") || !strings.Contains(out, "NOERROR") {
				t.Errorf("dig %s %s: %v\n%s", name, kind, err, out)
			}
		}
	}
}

// checkSorted: what a C library makes of many addresses is still the ones there are.
func checkSorted(t reporter, b *box) {
	out, err := b.Run(t.Context(), "getent", "ahostsv6", "global.web.internal")
	for _, a := range []string{b.w1, b.w2, b.w3} {
		if err != nil || strings.Count(out, a) != 3 { // stream, datagram, raw
			t.Errorf("getent ahostsv6: %v, not three times %s in\n%s", err, a, out)
		}
	}
}
