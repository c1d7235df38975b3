package metrics

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHandler(t *testing.T) {
	t.Parallel()
	n := 1.0
	h := Handler(
		func() []Stat {
			n++
			return []Stat{
				{Name: "weft_test_things", Help: "Things.", Value: n},
				{Name: "weft_test_calls_total", Help: "Calls.", Counter: true, Labels: []Label{{"route", "a"}}, Value: 3},
				{Name: "weft_test_calls_total", Help: "Calls.", Counter: true, Labels: []Label{{"route", "b"}}, Value: 4},
			}
		},
		func() []Stat {
			return []Stat{
				{Name: "weft_test_seconds", Help: "Time.", Histogram: &Histogram{Bounds: []float64{0.5, 2}, Counts: []uint64{3, 0, 4}, Sum: 21}},
				{Name: "weft_test_bad_seconds", Help: "Time.", Histogram: &Histogram{Bounds: []float64{0.5}, Counts: []uint64{3}}},
			}
		},
		func() []Stat { return []Stat{{Name: "not a name", Help: "Wrong.", Value: 1}} },
	)
	want := []string{
		`# HELP weft_test_calls_total Calls.`,
		`# TYPE weft_test_calls_total counter`,
		`weft_test_calls_total{route="a"} 3`,
		`weft_test_calls_total{route="b"} 4`,
		`# HELP weft_test_seconds Time.`,
		`# TYPE weft_test_seconds histogram`,
		`weft_test_seconds_bucket{le="0.5"} 3`,
		`weft_test_seconds_bucket{le="2"} 3`,
		`weft_test_seconds_bucket{le="+Inf"} 7`,
		`weft_test_seconds_sum 21`,
		`weft_test_seconds_count 7`,
		`# HELP weft_test_things Things.`,
		`# TYPE weft_test_things gauge`,
		`weft_test_things 3`,
	}
	scrape := func() (ours []string, text string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		for _, line := range strings.Split(w.Body.String(), "\n") {
			if strings.Contains(line, "weft_") {
				ours = append(ours, line)
			}
		}
		return ours, w.Body.String()
	}
	scrape()
	ours, text := scrape()
	if diff := cmp.Diff(want, ours); diff != "" {
		t.Errorf("second scrape (-want +got):\n%s", diff)
	}
	if !strings.Contains(text, "go_goroutines") {
		t.Error("the process' own numbers are not there")
	}
}
