package dns

import (
	"fmt"
	"net/netip"
	"strconv"
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

// What one change costs does not depend on how much there is.
func BenchmarkWith(b *testing.B) {
	for _, n := range []int{1000, 10000, 100000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			d := fixture()
			machine := func(i int) Machine {
				return Machine{
					ID: fmt.Sprintf("m%06d", i), App: fmt.Sprintf("app%d", i/10), Host: "ams-1", Started: true, Healthy: true,
					Addr: netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:1:200:%x:%x:2", 3+i>>14, 1+i&0x3fff)),
				}
			}
			for i := range n {
				d.Orgs[0].Machines = append(d.Orgs[0].Machines, machine(i))
			}
			z := NewZone(d)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m := machine(i * 7919 % n)
				m.Started = i/n%2 == 1
				z = z.With(Delta{Orgs: []OrgDelta{{Name: "acme", Machines: []Machine{m}}}})
			}
		})
	}
}
