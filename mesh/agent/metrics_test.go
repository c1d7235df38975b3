package agent

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh/metrics"
)

// What the resolver counts, as Prometheus reads it.
func TestDNSMetrics(t *testing.T) {
	s := dns.Stats{
		UDP: 10, TCP: 2, Forwarded: 3, Dropped: 1, Limited: 4, OverLimit: 5, Unwritten: 6,
		Rcodes: map[string]uint64{"NOERROR": 7, "NXDOMAIN": 8},
	}
	s.Own.Buckets[0], s.Own.Buckets[2], s.Own.Sum = 3, 2, 400*time.Microsecond
	s.Passed.Buckets[len(dns.LatencyBounds)], s.Passed.Sum = 1, 4*time.Second
	f := dns.ForwardStats{Hits: 1, Stale: 2, Misses: 3, Failed: 4, Remembered: 5, Errors: 6, Entries: 7}
	w := httptest.NewRecorder()
	metrics.Handler(func() []metrics.Stat { return append(dnsStats(s), forwardStats(f)...) }).
		ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	var got []string
	for _, line := range strings.Split(w.Body.String(), "\n") {
		if strings.HasPrefix(line, "weft_agent_dns_") && !strings.Contains(line, "_bucket{") {
			got = append(got, strings.TrimPrefix(line, "weft_agent_dns_"))
		}
	}
	want := strings.Split(strings.TrimSpace(`
answer_duration_seconds_sum{from="memory"} 0.0004
answer_duration_seconds_count{from="memory"} 5
answer_duration_seconds_sum{from="upstream"} 4
answer_duration_seconds_count{from="upstream"} 1
answers_total{rcode="NOERROR"} 7
answers_total{rcode="NXDOMAIN"} 8
cache_entries 7
cache_hits_total 1
cache_misses_total 3
cache_stale_total 2
dropped_total{reason="no-query"} 1
dropped_total{reason="rate-limit"} 4
forward_failures_total 4
forward_remembered_total 5
forwarded_total 3
over_limit_total 5
panics_total 0
queries_total{over="tcp"} 2
queries_total{over="udp"} 10
unwritten_total 6
upstream_failures_total 6`), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, line := range []string{
		`answer_duration_seconds_bucket{from="memory",le="1e-05"} 3`, `answer_duration_seconds_bucket{from="memory",le="0.0001"} 5`,
		`answer_duration_seconds_bucket{from="memory",le="+Inf"} 5`, `answer_duration_seconds_bucket{from="upstream",le="3"} 0`,
		`answer_duration_seconds_bucket{from="upstream",le="+Inf"} 1`,
	} {
		if !strings.Contains(w.Body.String(), "weft_agent_dns_"+line+"\n") {
			t.Errorf("not there: %s", line)
		}
	}
}
