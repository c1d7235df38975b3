package dns

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// Domains with resolvers of their own: the longest one counts, whole labels match,
// and what they answer is kept and filtered as everything is.
func TestDomains(t *testing.T) {
	answering := func(addr string) *upstream {
		return startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg {
			return says(t, q.Question[0].Name+" 60 IN AAAA "+addr+"\n"+q.Question[0].Name+" 60 IN AAAA "+w1)(q, stream)
		})
	}
	corp, lab, rest := answering("2001:db8::1"), answering("2001:db8::2"), answering("2001:db8::3")
	s := forwarding(t, ForwarderConfig{
		Domains: map[string][]netip.AddrPort{"Corp.example": {corp.at}, "lab.corp.example.": {lab.at}, "compute.internal": {corp.at}},
		Rebind:  []string{"friend.corp.example"},
	}, rest.at)
	for _, tt := range []struct {
		name string
		to   *upstream
		want int // addresses: the mesh's only where it may
	}{
		{"x.corp.example.", corp, 1}, {"CORP.EXAMPLE.", corp, 1}, {"x.Lab.Corp.example.", lab, 1}, {"xlab.corp.example.", corp, 1},
		{"notcorp.example.", rest, 1}, {"example.", rest, 1}, {"friend.corp.example.", corp, 2}, {"vm.compute.internal.", corp, 1},
	} {
		for range 2 {
			if m := ask(t, s, tt.name, "AAAA", w1, Role{}, false); len(m.Answer) != tt.want {
				t.Errorf("%s: %v, want %d addresses", tt.name, m.Answer, tt.want)
			}
		}
		if n := tt.to.queries.Swap(0); n != 1 { // and the second answer was kept
			t.Errorf("%s: asked %d times where it was to be asked once", tt.name, n)
		}
	}
	if n := corp.queries.Load() + lab.queries.Load() + rest.queries.Load(); n != 0 {
		t.Errorf("%d questions went elsewhere", n)
	}
	if got := s.cfg.Forward.Servers("x.lab.corp.example"); len(got) != 1 || got[0] != lab.at {
		t.Errorf("Servers: %v", got)
	}
	for _, domain := range []string{".", "a..b", "web.internal", "internal."} {
		if _, err := NewForwarder(ForwarderConfig{Domains: map[string][]netip.AddrPort{domain: {rest.at}}}); err == nil {
			t.Errorf("a rule for %q was taken", domain)
		}
	}
}
