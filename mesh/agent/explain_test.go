package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/agent/probe"
)

// sampleEvidence is what host a knows at a moment: b is measured, c is cordoned,
// was lost by the controllers, and has stopped answering; web-b fails its checks.
func sampleEvidence(t *testing.T) evidence {
	now := time.Unix(10_000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	v := sampleView(t)
	for i := range v.Machines {
		if v.Machines[i].ID != "db" {
			v.Machines[i].Checks = []mesh.Check{{Kind: mesh.CheckTCP, Port: 80}}
		}
	}
	v.Health = []mesh.Health{
		{Org: "acme", Machine: "web-a", Passing: true, Since: ago(time.Hour)},
		{Org: "acme", Machine: "web-b", Since: ago(12 * time.Second), Note: "connection refused"},
		{Org: "other", Machine: "web-c", Since: ago(time.Minute)}, // another one of that name
	}
	v.Hosts[1].Coordinate = &mesh.Coordinate{Error: 0.4}
	data := zoneData(v, nil)
	for i := range data.Orgs[0].Machines {
		data.Orgs[0].Machines[i].Healthy = data.Orgs[0].Machines[i].ID == "web-a"
	}
	p := &presence{gone: map[string]time.Time{"c": ago(5 * time.Minute)}}
	return evidence{
		zone:     dns.NewZone(data),
		facts:    dns.Facts{"b": {RTT: 8 * time.Millisecond}, "c": {Estimate: 90 * time.Millisecond, Suspect: true}},
		view:     v,
		contact:  contact{connected: true, last: ago(700 * time.Millisecond)},
		measured: probe.Results{"b": {RTT: 8 * time.Millisecond}, "c": {Suspect: true, SuspectSince: ago(4 * time.Minute)}},
		sights:   map[string]probe.Sight{"b": {Asked: ago(50 * time.Millisecond), Answered: ago(200 * time.Millisecond)}, "c": {Asked: ago(time.Second)}},
		presence: p, now: now,
		forward: func(string) []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")} },
	}
}

// lines are the facts of an explanation, one machine a line.
func lines(x local.Explain) string {
	var b strings.Builder
	line := func(format string, args ...any) {
		b.WriteString(strings.TrimSpace(fmt.Sprintf(format, args...)) + "\n")
	}
	line("%s %s org=%s as=%s source=%s node=%s/%s rcode=%s view=%s/%s/%v note=%s", x.Name, x.Type, x.Org, x.As, x.Source, x.Node, x.Region, x.Rcode, x.Revision, x.ViewAge, x.Connected, x.Note)
	age := func(d *time.Duration) string {
		if d == nil {
			return "-"
		}
		return d.String()
	}
	for _, m := range x.Machines {
		line("%d %s %s/%s/%s(%s) cordoned=%v host=%s/%s/%s cordoned=%v %s/%s asked=%s answered=%s suspect=%s absent=%s error=%.1f: %s",
			m.Position, m.Machine, m.State, m.Health, age(m.HealthAge), m.Note, m.Cordoned, m.Host, m.Region, m.HostState, m.HostCordoned, m.Distance, m.Basis,
			age(m.AskedAge), age(m.AnsweredAge), age(m.SuspectAge), age(m.AbsentAge), m.CoordinateError, m.Reason)
	}
	return b.String()
}

func TestExplain(t *testing.T) {
	e := sampleEvidence(t)
	const head = "node=host/a/fra rcode=NOERROR view=1.7/700ms/true note="
	for _, tt := range []struct{ org, as, name, kind, want string }{
		{"acme", "", "web.internal", "", `
web.internal AAAA org=acme as= source=fd12:3456:789a:1:8100:1:0:1 ` + head + `
1 web-a started/passing/1h0m0s() cordoned=false host=a/fra/here cordoned=false 0s/here asked=- answered=- suspect=- absent=- error=0.0: the app is set to answer all
0 web-b started/failing/12s(connection refused) cordoned=false host=b/fra/ok cordoned=false 8ms/measured asked=50ms answered=200ms suspect=- absent=- error=0.0: it fails its checks
0 web-c started/failing/-() cordoned=false host=c/nrt/suspect cordoned=true 90ms/coordinates asked=1s answered=- suspect=4m0s absent=5m0s error=0.4: its host is cordoned
`},
		{"acme", "web-b", "top1.nearest.of.web.internal.", "srv", `
top1.nearest.of.web.internal. SRV org=acme as=web-b source=fd12:3456:789a:1:8100:2:1:2 ` + head + `there are no records of this type
`},
		{"acme", "", "regions.web.internal", "TXT", `
regions.web.internal TXT org=acme as= source=fd12:3456:789a:1:8100:1:0:1 ` + head + `distances do not matter: it is what the view says
`},
		{"other", "", "web.internal", "AAAA", `
web.internal AAAA org=other as= source=fd12:3456:789a:2:8100:1:0:1 node=host/a/fra rcode=NXDOMAIN view=1.7/700ms/true note=there is no such name in this org
`},
		{"acme", "", "example.com", "A", `
example.com A org=acme as= source=fd12:3456:789a:1:8100:1:0:1 node=host/a/fra rcode= view=1.7/700ms/true note=it is no name of the mesh: it is asked of 192.0.2.53:53
`},
	} {
		x, err := e.explain(tt.org, tt.as, tt.name, tt.kind)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), lines(x)); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.name, tt.kind, diff)
		}
	}
	for _, tt := range []struct{ org, as, name, kind, want string }{
		{"", "", "web.internal", "", "which org?"},
		{"nosuch", "", "web.internal", "", "does not carry it"},
		{"acme", "db", "web.internal", "", "machine db: org acme has none of that name"}, // it is another org's
		{"acme", "", "web.internal", "QQQ", `unknown record type "QQQ"`},
	} {
		if x, err := e.explain(tt.org, tt.as, tt.name, tt.kind); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %+v, %v", tt, x, err)
		}
	}
}

// A machine that is cordoned is told from one whose host is, the own host included.
func TestExplainCordoned(t *testing.T) {
	e := sampleEvidence(t)
	e.view.Host.Cordoned = true
	for i := range e.view.Machines {
		e.view.Machines[i].Cordoned = e.view.Machines[i].ID == "web-b"
	}
	x, err := e.explain("acme", "", "web.internal", "AAAA")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][2]bool{}
	for _, m := range x.Machines {
		got[m.Machine] = [2]bool{m.Cordoned, m.HostCordoned}
	}
	if diff := cmp.Diff(map[string][2]bool{"web-a": {false, true}, "web-b": {true, false}, "web-c": {false, true}}, got); diff != "" {
		t.Errorf("machine, its host (-want +got):\n%s", diff)
	}
}

// Who looks for a machine that is not listed is told so; other names are not about it.
func TestExplainUnlisted(t *testing.T) {
	e := sampleEvidence(t)
	for i := range e.view.Machines {
		e.view.Machines[i].Unlisted = e.view.Machines[i].ID == "web-b"
	}
	data := zoneData(e.view, nil)
	e.zone = dns.NewZone(data)
	for name, want := range map[string]bool{"Web.internal.": true, "global.web.internal": false, "fra.web.internal": false} {
		x, err := e.explain("acme", "", name, "AAAA")
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, m := range x.Machines {
			if m.Machine == "web-b" {
				found = m.Position == 0 && m.Reason == "it is not listed: its only name is web-b.vm.web.internal" && m.Basis == "measured" && m.Region == "fra"
			}
		}
		if found != want {
			t.Errorf("%s:\n%s", name, lines(x))
		}
	}
}

// A machine is told what it gets itself.
func TestExplainAsMachine(t *testing.T) {
	e := sampleEvidence(t)
	x, err := e.explain("acme", "web-a", "web.internal", "AAAA")
	if err != nil {
		t.Fatal(err)
	}
	if len(x.Machines) != 3 || x.Machines[0].Reason != "the asker is of the same app, and gets all of it" || x.Answer[0] != "fd12:3456:789a:1:8100:1:1:2" {
		t.Errorf("%s%v", lines(x), x.Answer)
	}
}

// A laptop says who answers for it, and where to ask why.
func TestExplainThroughAGateway(t *testing.T) {
	v, ok := sampleState(t).View(mesh.Node{Kind: mesh.KindClient, Org: "acme", Name: "anna"}, mesh.Deployment{})
	if !ok {
		t.Fatal("no view")
	}
	d := local.Dig{Source: addr("fd12:3456:789a:1:8100:2:9:2"), Rcode: "NOERROR", Answer: []string{"web.internal.\t9\tIN\tAAAA\tfd12::1", "web.internal.\t9\tIN\tAAAA\tfd12::2"}}
	for _, tt := range []struct {
		r    probe.Result
		want string
	}{
		{probe.Result{RTT: 12_340 * time.Microsecond}, "12.3 ms from here"},
		{probe.Result{RTT: time.Millisecond, Suspect: true}, "it does not answer probes from here"},
		{probe.Result{}, "not measured from here"},
	} {
		x := explainThrough(&v, d, tt.r, "web.internal", "aaaa")
		want := "this laptop's gateway answers for it, host a (" + tt.want + "), and orders by its own distances; why, it says there: weft dig --explain --org acme web.internal AAAA"
		if x.Note != want || x.Node != "host/a" || x.Region != "fra" || len(x.Machines) != 0 || strings.Join(x.Answer, " ") != "fd12::1 fd12::2" {
			t.Errorf("%+v", x)
		}
	}
}
