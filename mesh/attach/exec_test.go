package attach

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A line of shell beside the command is where the command is, and says how it ended.
func TestExecIsInTheMachine(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	r, w, err := os.Pipe()
	check(t, err)
	defer r.Close()
	failed := map[string]string{}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code, err := Run(ctx, RunConfig{
		Command: []string{"sh", "-c", "read x"}, Stdin: r, Attach: attachTo(plane, 1),
		Started: func(ctx context.Context, init int) {
			defer w.Close() // the command ends
			for name, line := range map[string]string{
				"resolver":  "grep -q fd12:3456:789a::3 /etc/resolv.conf",
				"host name": "test $(cat /proc/sys/kernel/hostname) = web-1",
				"network":   "test $(ls /sys/class/net | tr '\\n' ,) = eth0,lo,",
				"processes": "grep -q weft-init /proc/1/cmdline",
				"directory": "test \"$PWD\" = '" + mustGetwd(t) + "'",
				"code":      "echo one; echo two; exit 3",
			} {
				if err := Exec(ctx, init, line, nil); err != nil {
					failed[name] = err.Error()
				}
			}
			late, stop := context.WithTimeout(ctx, 100*time.Millisecond)
			defer stop()
			if err := Exec(late, init, "sleep 1000 & sleep 1000", nil); err != context.DeadlineExceeded {
				failed["a line that does not end"] = "not in time"
			}
			if err := Exec(ctx, init, "true", []string{"X=1"}); err != nil {
				failed["an environment"] = err.Error()
			}
			if Exec(ctx, 1<<22, "true", nil) == nil {
				failed["a machine that there is not"] = "none"
			}
		},
	})
	if err != nil || code != 1 { // read found the end of its input
		t.Errorf("code %d, %v", code, err)
	}
	if got := failed["code"]; got != "exit status 3: two" {
		t.Errorf("a line that fails says %q", got)
	}
	delete(failed, "code")
	for name, why := range failed {
		t.Errorf("%s: %s", name, why)
	}
}

func mustGetwd(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	check(t, err)
	return dir
}

// Asked to end, a machine is drained first, and other signals go through meanwhile;
// asked again, its command is told at once.
func TestDrain(t *testing.T) {
	t.Parallel()
	plane := newPlane(t)
	for _, tt := range []struct {
		name  string
		drain string
		again bool
	}{{"it waits", "300ms", false}, {"asked twice", "1h", true}} {
		p := start(t, plane, 1, "drain="+tt.drain, "sh", "-c", `
			trap 'echo usr; kill $!' USR1
			trap 'echo term; exit 7' TERM
			echo ready
			while :; do sleep 1000 & wait $!; done`)
		p.line(t, "ready")
		check(t, p.Process.Signal(unix.SIGTERM))
		eventually(t, "it drains", func() bool { return strings.Contains(p.stderr.String(), "draining") })
		check(t, p.Process.Signal(unix.SIGUSR1))
		p.line(t, "usr")
		if tt.again {
			check(t, p.Process.Signal(unix.SIGTERM))
		}
		p.line(t, "term")
		if _, code := p.end(t); code != 7 {
			t.Errorf("%s: code %d, stderr %q", tt.name, code, p.stderr)
		}
	}
}
