package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// iperfGbits reads from a report of `iperf3 -J` what arrived, in Gbit/s. With -J iperf3
// succeeds whatever happened, and then the report has an error and no figures.
func iperfGbits(report []byte) (float64, error) {
	var result struct {
		Error string
		End   struct {
			Received struct {
				Seconds float64 `json:"seconds"`
				Bytes   float64 `json:"bytes"`
				Bits    float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(report, &result); err != nil {
		return 0, fmt.Errorf("read the report of iperf3: %w", err)
	}
	got := result.End.Received
	switch {
	case result.Error != "":
		return 0, errors.New("iperf3: " + result.Error)
	case got.Bytes == 0 || got.Bits == 0:
		return 0, errors.New("iperf3: nothing arrived")
	case got.Seconds < iperfLeast:
		return 0, fmt.Errorf("iperf3: it ended after %.2f s", got.Seconds)
	}
	return got.Bits / 1e9, nil
}

// iperfLeast is how many seconds the shortest run takes, nearly.
const iperfLeast = 0.9

func TestIperfReport(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, report string
		want         float64
		err          string
	}{
		{"one that went well", `{"end": {"sum_received": {"seconds": 1.0, "bytes": 125000000, "bits_per_second": 1e9}}}`, 1, ""},
		{"no server yet", `{"intervals": [], "end": {}, "error": "unable to connect to server: Connection refused"}`, 0, "Connection refused"},
		{"figures and an error", `{"end": {"sum_received": {"seconds": 1.0, "bytes": 9, "bits_per_second": 72}}, "error": "the server has terminated"}`, 0, "has terminated"},
		{"all of it lost", `{"end": {"sum": {"bits_per_second": 1e9}, "sum_received": {"seconds": 1.0, "bytes": 0, "bits_per_second": 0}}}`, 0, "nothing arrived"},
		{"an early end", `{"end": {"sum_received": {"seconds": 0.2, "bytes": 9, "bits_per_second": 360}}}`, 0, "after 0.20 s"},
		{"no report", ``, 0, "read the report"},
	}
	for _, tt := range tests {
		got, err := iperfGbits([]byte(tt.report))
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, %v; want %v, %q", tt.name, got, err, tt.want, tt.err)
		}
	}
}
