package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/mesh/agent/local"
)

func ago(d time.Duration) *time.Duration { return &d }

func TestPrintExplain(t *testing.T) {
	t.Parallel()
	web := local.Explain{
		Name: "web.internal", Type: "AAAA", Org: "acme", As: "db-1", Source: netip.MustParseAddr("fd12::1"), Node: "host/fra-1", Region: "fra",
		Rcode: "NOERROR", Revision: "1.27", ViewAge: 812 * time.Millisecond, Connected: true,
		Machines: []local.Considered{
			{Position: 1, Reason: "near", Machine: "w1", State: "started", Host: "fra-1", Region: "fra", Basis: "here", HostState: "here"},
			{Position: 2, Reason: "near", Machine: "w2", State: "started", Health: "passing", HealthAge: ago(3 * time.Hour), Host: "ams-1", Region: "ams",
				Distance: 8123 * time.Microsecond, Basis: "measured", HostState: "ok", AnsweredAge: ago(210 * time.Millisecond)},
			{Reason: "far", Machine: "w3", State: "draining", Host: "nrt-1", Region: "nrt", Distance: 240 * time.Millisecond, Basis: "coordinates",
				CoordinateError: 0.125, HostState: "unmeasured", AskedAge: ago(40 * time.Second)},
			{Reason: "dead", Machine: "w4", State: "started", Health: "failing", HealthAge: ago(75 * time.Second), Note: "connection refused", Host: "syd-1",
				Region: "syd", Distance: 331 * time.Millisecond, Basis: "geography", HostState: "dead", SuspectAge: ago(90 * time.Second), AbsentAge: ago(61 * time.Second), HostCordoned: true},
			{Reason: "cordoned", Machine: "w6", State: "started", Cordoned: true, Health: "passing", HealthAge: ago(time.Minute), Host: "ams-1", Region: "ams",
				Distance: 8123 * time.Microsecond, Basis: "measured", HostState: "ok", AnsweredAge: ago(210 * time.Millisecond)},
			{Reason: "lost", Machine: "w5", Host: "x", Region: "unknown", Basis: "unknown", HostState: "unmeasured"},
		},
	}
	for _, tt := range []struct {
		name string
		x    local.Explain
		want string
	}{
		{"machines", web, `
question     web.internal AAAA
asked by     fd12::1 (machine db-1 of acme)
answered by  host/fra-1, region fra
view         revision 1.27, connected, known to be current 800ms ago
answer       NOERROR, 2 of 6 machines

#  MACHINE  STATE                                         HOST   REGION   DISTANCE  RESTS ON                 HOST STATE                                               LAST PROBE                    WHY
1  w1       started                                       fra-1  fra      0.0 ms    here                     here                                                     -                             near
2  w2       started, passing for 3h0m0s                   ams-1  ams      8.1 ms    measured                 ok                                                       answered 200ms ago            near
-  w3       draining                                      nrt-1  nrt      240.0 ms  coordinates, error 0.12  unmeasured                                               asked 40s ago, never answered  far
-  w4       started, failing for 1m15s (connection refused)  syd-1  syd      331.0 ms  geography                dead for 1m30s, lost by the controllers 1m1s ago, cordoned  not asked yet                 dead
-  w6       started,cordoned, passing for 1m0s                 ams-1  ams      8.1 ms    measured                 ok                                                       answered 200ms ago            cordoned
-  w5       unknown                                       x      unknown  -         unknown                  unmeasured                                               not asked yet                 lost
`},
		{"no name of the mesh", local.Explain{
			Name: "example.com", Type: "A", Org: "acme", Source: netip.MustParseAddr("fd12::1"), Node: "host/fra-1", Revision: "1.27", ViewAge: 2 * time.Hour, Note: "asked elsewhere",
		}, `
question     example.com A
asked by     fd12::1 (a member of acme that is no machine)
answered by  host/fra-1
view         revision 1.27, NOT connected, known to be current 2h0m0s ago
why          asked elsewhere
`},
		{"text", local.Explain{
			Name: "regions.web.internal", Type: "TXT", Org: "acme", Source: netip.MustParseAddr("fd12::1"), Node: "host/fra-1", Rcode: "NOERROR", Answer: []string{`"fra,nrt"`}, Revision: "1.27", Connected: true,
		}, `
question     regions.web.internal TXT
asked by     fd12::1 (a member of acme that is no machine)
answered by  host/fra-1
view         revision 1.27, connected, known to be current 0s ago
answer       NOERROR "fra,nrt"
`},
	} {
		var out bytes.Buffer
		cmd := &cobra.Command{}
		cmd.SetOut(&out)
		if err := printExplain(cmd, tt.x); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(words(tt.want), words(out.String())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// words is a table's lines with their columns a blank apart: how wide these are is
// not what is tested.
func words(text string) string {
	var out []string
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		out = append(out, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(out, "\n")
}

func TestDigArguments(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ args, want string }{
		{"", "NAME is missing"},
		{"a AAAA b", `unexpected argument "b"`},
		{"--top a", `unexpected argument "a"`},
	} {
		cmd := digCommand()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(tt.args))
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("dig %s: %v, want %s", tt.args, err, tt.want)
		}
	}
}
