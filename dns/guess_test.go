package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
)

// Who wants to forge an answer must guess id and port (RFC 5452): both are drawn anew
// for each query, evenly over their range, and one says nothing of the next.
func TestForwardedQueriesCannotBeGuessed(t *testing.T) {
	const n = 400
	var mu sync.Mutex // guards ports
	var ports []int
	dial := func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
		c, err := direct(ctx, network, to)
		if err == nil && network == "udp" {
			mu.Lock()
			ports = append(ports, int(addrPortOf(c.LocalAddr()).Port()))
			mu.Unlock()
		}
		return c, err
	}
	u := startUpstream(t, says(t, ""))
	s := forwarding(t, ForwarderConfig{Dial: dial}, u.at)
	for i := range n {
		ask(t, s, fmt.Sprintf("n%d.example.", i), "A", w1, Role{}, false)
	}
	var ids []int
	u.mu.Lock()
	for _, q := range u.seen {
		ids = append(ids, int(q.Id))
	}
	u.mu.Unlock()
	mu.Lock()
	defer mu.Unlock()
	low, high := ephemeralPorts(t)
	for _, tt := range []struct {
		what      string
		values    []int
		low, high int
	}{{"ids", ids, 0, 1<<16 - 1}, {"ports", ports, low, high}} {
		if len(tt.values) < n {
			t.Fatalf("%d %s of %d queries", len(tt.values), tt.what, n)
		}
		distinct, steps, bins := map[int]bool{}, map[int]int{}, [8]float64{}
		for i, v := range tt.values {
			if v < tt.low || v > tt.high {
				t.Fatalf("%s: %d is not between %d and %d", tt.what, v, tt.low, tt.high)
			}
			distinct[v] = true
			bins[(v-tt.low)*len(bins)/(tt.high-tt.low+1)]++
			if i > 0 {
				steps[v-tt.values[i-1]]++
			}
		}
		// Of 400 draws out of 28,232 ports about 3 are drawn twice.
		if len(distinct) < n-20 {
			t.Errorf("%s: only %d different ones of %d", tt.what, len(distinct), len(tt.values))
		}
		chi, each := 0.0, float64(len(tt.values))/float64(len(bins))
		for _, b := range bins {
			chi += (b - each) * (b - each) / each
		}
		if chi > 45 { // of 7 degrees of freedom: once in ten million runs
			t.Errorf("%s are not spread evenly: %v, chi squared %.1f", tt.what, bins, chi)
		}
		for step, times := range steps {
			if times > n/20 {
				t.Errorf("%s: %d times one is the one before it plus %d", tt.what, times, step)
			}
		}
	}
}

// ephemeralPorts is the range that the kernel draws ports from.
func ephemeralPorts(t *testing.T) (low, high int) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(text), &low, &high)
	}
	if err != nil {
		t.Skipf("the range of ephemeral ports is not known here: %v", err)
	}
	return low, high
}
