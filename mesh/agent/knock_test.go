package agent

import (
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A gateway that does not answer is asked anew, ever more rarely and a few times; one
// that has answered never; and another one from the beginning.
func TestKnocks(t *testing.T) {
	a, b := wgtypes.Key{1}, wgtypes.Key{2}
	start := time.Unix(1_700_000_000, 0)
	var k knock
	for _, tt := range []struct {
		after   time.Duration
		gateway wgtypes.Key
		shaken  bool
		again   bool
		wait    time.Duration
	}{
		{0, a, false, false, 300 * time.Millisecond},
		{100 * time.Millisecond, a, false, false, 200 * time.Millisecond},
		{300 * time.Millisecond, a, false, true, 600 * time.Millisecond},
		{800 * time.Millisecond, a, true, false, 0},
		{2 * time.Second, a, true, false, 0},
		{3 * time.Second, a, false, false, 0}, // it has, once
		{4 * time.Second, b, false, false, 300 * time.Millisecond},
		{4300 * time.Millisecond, b, false, true, 600 * time.Millisecond},
		{4900 * time.Millisecond, b, false, true, 1200 * time.Millisecond},
		{6100 * time.Millisecond, b, false, true, 2400 * time.Millisecond},
		{8400 * time.Millisecond, b, false, false, 100 * time.Millisecond},
		{8500 * time.Millisecond, b, false, true, 0},
		{time.Hour, b, false, false, 0},
		{2 * time.Hour, a, false, false, 300 * time.Millisecond},
	} {
		if again, wait := k.next(tt.gateway, tt.shaken, start.Add(tt.after)); again != tt.again || wait != tt.wait {
			t.Errorf("after %s: %t %s, want %t %s", tt.after, again, wait, tt.again, tt.wait)
		}
	}
}
