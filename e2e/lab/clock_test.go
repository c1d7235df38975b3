package lab

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// A process's clock jumps, and only its own; time that passes does not.
func TestSetClock(t *testing.T) {
	t.Parallel()
	l := newLab(t, "python3")
	if err := CheckClock(); err != nil {
		t.Skip(err)
	}
	h := newHost(t, l, "a", HostConfig{})
	const program = `
import sys, threading, time
sys.setswitchinterval(0.0005)
def busy():
    while True: time.time()
for _ in range(3): threading.Thread(target=busy, daemon=True).start()
while True:
    print(time.time(), time.monotonic(), flush=True)
    time.sleep(0.02)
`
	p, err := h.Start("clock", "python3", []string{"-c", program}, nil)
	must(t, err)
	other, err := h.Start("other", "python3", []string{"-c", program}, nil)
	must(t, err)
	read := func(p *Process) (wall, passed float64) {
		t.Helper()
		before := len(p.Log())
		await(t, "two more lines", func() error {
			if n := strings.Count(p.Log()[before:], "\n"); n < 3 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
		if _, err := fmt.Sscan(lines[len(lines)-2], &wall, &passed); err != nil {
			t.Fatal(err)
		}
		return wall, passed
	}
	_, start := read(p)
	began := time.Now()
	for _, offset := range []time.Duration{0, 72 * time.Hour, -72 * time.Hour, 90 * time.Second, 0} {
		must(t, p.SetClock(offset))
		wall, passed := read(p)
		now := time.Now()
		if d := wall - float64(now.UnixNano())/1e9 - offset.Seconds(); math.Abs(d) > 2 {
			t.Errorf("set to %s more, the clock is %fs off", offset, d)
		}
		if d := passed - start - now.Sub(began).Seconds(); math.Abs(d) > 2 {
			t.Errorf("set to %s more, %fs too many have passed", offset, d)
		}
		if wall, _ := read(other); math.Abs(wall-float64(time.Now().UnixNano())/1e9) > 2 {
			t.Errorf("the other process's clock is off too")
		}
	}
}
