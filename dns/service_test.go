package dns

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestService(t *testing.T) {
	checkAll(t, testServer(fixture(), fixtureFacts()), []row{
		// the near set of the bare name
		{ask: "_80._tcp.web.internal. SRV", from: d1, want: "_80._tcp.web.internal. 5 IN SRV 0 1 80 w1.vm.web.internal."},
		{ask: "_53._udp.global.web.internal. SRV", from: d1, want: `
			_53._udp.global.web.internal. 5 IN SRV 0 1 53 w1.vm.web.internal.
			_53._udp.global.web.internal. 5 IN SRV 1 1 53 w2.vm.web.internal.
			_53._udp.global.web.internal. 5 IN SRV 2 1 53 w3.vm.web.internal.`},
		// of the same app: all of it
		{ask: "_80._tcp.web.internal. SRV", from: w3, want: `
			_80._tcp.web.internal. 5 IN SRV 0 1 80 w1.vm.web.internal.
			_80._tcp.web.internal. 5 IN SRV 1 1 80 w2.vm.web.internal.
			_80._tcp.web.internal. 5 IN SRV 2 1 80 w3.vm.web.internal.`},
		{ask: "_65535._tcp.nrt.web.internal. SRV", want: "_65535._tcp.nrt.web.internal. 5 IN SRV 0 1 65535 w3.vm.web.internal."},
		{ask: "_1._tcp.w2.vm.web.internal. SRV", want: "_1._tcp.w2.vm.web.internal. 5 IN SRV 0 1 1 w2.vm.web.internal."},
		{ask: "_1._tcp.worker.process.web.internal. SRV", want: "_1._tcp.worker.process.web.internal. 5 IN SRV 0 1 1 w3.vm.web.internal."},
		{ask: "_1._tcp.primary.role.kv._metadata.web.internal. SRV", want: "_1._tcp.primary.role.kv._metadata.web.internal. 5 IN SRV 0 1 1 w1.vm.web.internal."},
		{ask: "_1._tcp.top1.nearest.of.web.internal. SRV", want: "_1._tcp.top1.nearest.of.web.internal. 5 IN SRV 0 1 1 w1.vm.web.internal."},
		{ask: "_5432._TCP.DB.internal. SRV", from: w1, want: "_5432._TCP.DB.internal. 60 IN SRV 0 1 5432 d1.vm.db.internal."},
		// it is there, but not of this type, or without machines
		{ask: "_80._tcp.web.internal. AAAA"},
		{ask: "_80._tcp.web.internal. TXT"},
		{ask: "_tcp.web.internal. SRV"},
		{ask: "_udp.fra.web.internal. AAAA"},
		{ask: "_80._tcp.idle.internal. SRV"},
		{ask: "web.internal. SRV"},
		// there is no such name
		{ask: "_0._tcp.web.internal. SRV", code: "NXDOMAIN"},
		{ask: "_080._tcp.web.internal. SRV", code: "NXDOMAIN"},
		{ask: "_65536._tcp.web.internal. SRV", code: "NXDOMAIN"},
		{ask: "_http._tcp.web.internal. SRV", code: "NXDOMAIN"},
		{ask: "_._tcp.web.internal. SRV", code: "NXDOMAIN"},
		{ask: "_80._sctp.web.internal. SRV", code: "NXDOMAIN"},
		{ask: "_80._tcp.nosuch.internal. SRV", code: "NXDOMAIN"},
		{ask: "_80._tcp.secret.internal. SRV", code: "NXDOMAIN"},
		{ask: "_80._tcp.nosuch.vm.web.internal. SRV", code: "NXDOMAIN"},
		{ask: "_80._tcp.vms.web.internal. SRV", code: "NXDOMAIN"},
		{ask: "_80._tcp.vm.web.internal. SRV", code: "NXDOMAIN"},
		{ask: "_80._tcp.internal. SRV", code: "NXDOMAIN"},
		{ask: "_80._tcp._80._tcp.web.internal. SRV", code: "NXDOMAIN"},
		{ask: "fra._80._tcp.web.internal. SRV", code: "NXDOMAIN"},
	})
}

// The addresses come along, so that a client need not ask again.
func TestServiceAddresses(t *testing.T) {
	m := ask(t, testServer(fixture(), fixtureFacts()), "_80._tcp.global.web.internal.", "SRV", d1, Role{}, false)
	want := zoneText(t, `
		w1.vm.web.internal. 5 IN AAAA `+w1+`
		w2.vm.web.internal. 5 IN AAAA `+w2+`
		w3.vm.web.internal. 5 IN AAAA `+w3)
	if diff := cmp.Diff(want, records(t, m.Extra)); diff != "" {
		t.Errorf("additional (-want +got):\n%s", diff)
	}
}

// What does not fit: first the addresses that nobody asked for are left out, and
// that is no truncation; then TC says to come back over TCP.
func TestServiceTooLong(t *testing.T) {
	many := func(n int) *Server {
		return testServer(with(func(d *Data) {
			for i := range n {
				d.Orgs[0].Machines = append(d.Orgs[0].Machines, Machine{
					ID: fmt.Sprintf("machine-%03d", i), App: "many", Host: "fra-1", Started: true, Healthy: true,
					Addr: netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:1:100:1:%x:2", 1000+i)),
				})
			}
		}), fixtureFacts())
	}
	for _, r := range []struct {
		machines  int
		stream    bool
		answers   int
		truncated bool
		extra     int
	}{
		{10, false, 10, false, 10},
		{20, false, 20, false, 0},
		{300, true, 300, false, 300},
	} {
		m := ask(t, many(r.machines), "_80._tcp.many.internal.", "SRV", w1, Role{}, r.stream)
		if len(m.Answer) != r.answers || m.Truncated != r.truncated || len(records(t, m.Extra)) != r.extra {
			t.Errorf("%d machines, stream %v: %d answers, truncated %v, %d more; want %d, %v, %d",
				r.machines, r.stream, len(m.Answer), m.Truncated, len(records(t, m.Extra)), r.answers, r.truncated, r.extra)
		}
	}
	if m := ask(t, many(300), "_80._tcp.many.internal.", "SRV", w1, Role{}, false); !m.Truncated {
		t.Error("300 machines over UDP: not truncated")
	}
	if m := ask(t, many(300), "many.internal.", "AAAA", w1, Role{}, false); !m.Truncated || m.Rcode != dns.RcodeSuccess {
		t.Error("300 addresses over UDP: not truncated")
	}
}
