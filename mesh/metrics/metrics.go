// Package metrics turns the numbers that other rooms keep about themselves into
// the text that Prometheus scrapes. It counts nothing itself and knows no room:
// each hands in a function.
package metrics

import (
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Stat is one number. Name follows Prometheus' rules: weft_<room>_<what>_<unit>,
// and _total at the end of a counter's.
type Stat struct {
	Name, Help string
	Counter    bool // it only grows; otherwise it is a gauge
	Labels     []Label
	Value      float64
	Histogram  *Histogram // if not nil it is one, and Value counts for nothing
}

// Histogram counts values by size.
type Histogram struct {
	Bounds []float64 // upper ones, ascending
	Counts []uint64  // between two bounds; one more, for what is beyond the last
	Sum    float64
}

// Label tells stats of one name apart; all stats of a name have the same keys.
type Label struct{ Key, Value string }

// Source returns numbers as of now. It is called at each scrape, by any
// goroutine, and must be quick.
type Source func() []Stat

// Handler answers a scrape with the numbers of all sources and of the process.
func Handler(sources ...Source) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collector(sources),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	// A source that is wrong about one number must not hide all the others.
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

type collector []Source

// Describe sends nothing: what there is may change from scrape to scrape.
func (collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, source := range c {
		for _, s := range source() {
			out <- s.metric()
		}
	}
}

func (s Stat) metric() prometheus.Metric {
	kind := prometheus.GaugeValue
	if s.Counter {
		kind = prometheus.CounterValue
	}
	var keys, values []string
	for _, l := range s.Labels {
		keys, values = append(keys, l.Key), append(values, l.Value)
	}
	desc := prometheus.NewDesc(s.Name, s.Help, keys, nil)
	if s.Histogram != nil {
		return s.Histogram.metric(desc, values)
	}
	m, err := prometheus.NewConstMetric(desc, kind, s.Value, values...)
	if err != nil {
		return prometheus.NewInvalidMetric(desc, err)
	}
	return m
}

func (h Histogram) metric(desc *prometheus.Desc, labels []string) prometheus.Metric {
	if len(h.Counts) != len(h.Bounds)+1 {
		return prometheus.NewInvalidMetric(desc, fmt.Errorf("%d counts for %d bounds", len(h.Counts), len(h.Bounds)))
	}
	// Prometheus counts what is at most as large as a bound.
	count, buckets := uint64(0), make(map[float64]uint64, len(h.Bounds))
	for i, n := range h.Counts {
		if count += n; i < len(h.Bounds) {
			buckets[h.Bounds[i]] = count
		}
	}
	m, err := prometheus.NewConstHistogram(desc, count, h.Sum, buckets, labels...)
	if err != nil {
		return prometheus.NewInvalidMetric(desc, err)
	}
	return m
}
