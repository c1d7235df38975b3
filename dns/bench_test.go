package dns

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func BenchmarkHandle(b *testing.B) {
	s := testServer(many(1000), fixtureFacts())
	for _, tt := range []struct{ name, ask string }{
		{"app", "web.internal."}, {"machine", "w2.vm.web.internal."}, {"none", "nosuch.internal."}, {"top3of1000", "top3.nearest.of.big.internal."},
	} {
		packet, err := new(dns.Msg).SetQuestion(tt.ask, TypeAAAA).SetEdns0(1232, false).Pack()
		if err != nil {
			b.Fatal(err)
		}
		source := netip.MustParseAddr(d1)
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if out, _ := s.handle(packet, source, Role{}, false); out == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}
