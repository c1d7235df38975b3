package agent

import (
	"time"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh/metrics"
)

// dnsCount is a counter of the resolver.
func dnsCount(name, help string, value uint64, labels ...metrics.Label) metrics.Stat {
	return metrics.Stat{Name: "weft_agent_dns_" + name, Help: help, Counter: true, Value: float64(value), Labels: labels}
}

// dnsStats is what the resolver counts, for Prometheus.
func dnsStats(s dns.Stats) []metrics.Stat {
	const queries, dropped, duration = "DNS messages read.", "DNS messages not answered.", "Time from a query to its answer."
	out := []metrics.Stat{
		dnsCount("queries_total", queries, s.UDP, metrics.Label{Key: "over", Value: "udp"}),
		dnsCount("queries_total", queries, s.TCP, metrics.Label{Key: "over", Value: "tcp"}),
		dnsCount("forwarded_total", "Queries passed on.", s.Forwarded),
		dnsCount("dropped_total", dropped, s.Dropped, metrics.Label{Key: "reason", Value: "no-query"}),
		dnsCount("dropped_total", dropped, s.Limited, metrics.Label{Key: "reason", Value: "rate-limit"}),
		dnsCount("over_limit_total", "Connections and forwards turned away.", s.OverLimit),
		dnsCount("unwritten_total", "Answers that could not be sent.", s.Unwritten),
		dnsCount("panics_total", "Queries whose handling panicked: a defect.", s.Panics),
	}
	for rcode, n := range s.Rcodes {
		out = append(out, dnsCount("answers_total", "DNS answers by outcome.", n, metrics.Label{Key: "rcode", Value: rcode}))
	}
	for from, l := range map[string]dns.Latency{"memory": s.Own, "upstream": s.Passed} {
		out = append(out, metrics.Stat{
			Name: "weft_agent_dns_answer_duration_seconds", Help: duration, Histogram: histogram(l),
			Labels: []metrics.Label{{Key: "from", Value: from}},
		})
	}
	return out
}

func histogram(l dns.Latency) *metrics.Histogram {
	h := &metrics.Histogram{Counts: l.Buckets[:], Sum: l.Sum.Seconds()}
	for _, b := range dns.LatencyBounds {
		h.Bounds = append(h.Bounds, float64(b)/float64(time.Second))
	}
	return h
}

// forwardStats is what happened to the names that are not the mesh's.
func forwardStats(s dns.ForwardStats) []metrics.Stat {
	return []metrics.Stat{
		dnsCount("cache_hits_total", "Forwarded names answered from the cache.", s.Hits),
		dnsCount("cache_stale_total", "Forwarded names answered from the cache although their time was over.", s.Stale),
		dnsCount("cache_misses_total", "Forwarded names answered by an upstream resolver.", s.Misses),
		dnsCount("forward_failures_total", "Forwarded names not answered.", s.Failed),
		dnsCount("forward_remembered_total", "Forwarded names that nobody was asked, because all had just failed.", s.Remembered),
		dnsCount("upstream_failures_total", "Questions that one upstream resolver did not answer, or with an error.", s.Errors),
		{Name: "weft_agent_dns_cache_entries", Help: "Forwarded answers that are kept.", Value: float64(s.Entries)},
	}
}
