package mesh

import (
	"strings"
	"testing"
	"time"
)

func TestParseCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text string
		want Check
		why  string // it is refused
	}{
		{"tcp:5432", Check{Kind: CheckTCP, Port: 5432}, ""},
		{"http:80", Check{Kind: CheckHTTP, Port: 80, Path: "/"}, ""},
		{"http:8080/healthz?full=1", Check{Kind: CheckHTTP, Port: 8080, Path: "/healthz?full=1"}, ""},
		{"exec:pg_isready -h ::1", Check{Kind: CheckExec, Command: "pg_isready -h ::1"}, ""},
		{"", Check{}, "want tcp:PORT, http:PORT/PATH or exec:COMMAND"},
		{"udp:53", Check{}, "want tcp:PORT"},
		{"tcp", Check{}, "is not a port"},
		{"tcp:0", Check{}, "a port is 1 to 65535"},
		{"tcp:65536", Check{}, "is not a port"},
		{"tcp:80/x", Check{}, "is not a port"},
		{"http:/x", Check{}, "is not a port"},
		{"http:80/a b", Check{}, "has no spaces"},
		{"http:80/a\r\nb", Check{}, "has no spaces"},
		{"exec:", Check{}, "it has no command"},
		{"exec: ", Check{}, "it has no command"},
		{"exec:" + strings.Repeat("x", 1025), Check{}, "more than 1024 bytes"},
	} {
		c, err := ParseCheck(tt.text)
		switch {
		case tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why)):
			t.Errorf("%.30q: %+v %v, want %q", tt.text, c, err, tt.why)
		case tt.why == "" && (err != nil || c != tt.want):
			t.Errorf("%q: %+v %v, want %+v", tt.text, c, err, tt.want)
		case tt.why == "":
			if again, err := ParseCheck(c.String()); err != nil || again != c {
				t.Errorf("%q became %q became %+v (%v)", tt.text, c, again, err)
			}
		}
	}
}

func TestTimesOfChecks(t *testing.T) {
	t.Parallel()
	full := Check{Kind: CheckTCP, Port: 1}.WithDefaults()
	if full.Interval != Duration(5*time.Second) || full.Timeout != Duration(2*time.Second) || full.Grace != 0 || full.Fall != 3 || full.Rise != 2 {
		t.Errorf("defaults %+v", full)
	}
	for name, spoil := range map[string]func(*Check){
		"too often": func(c *Check) { c.Interval = Duration(time.Millisecond) }, "too rarely": func(c *Check) { c.Interval = Duration(2 * time.Hour) },
		"before": func(c *Check) { c.Grace = -1 }, "no failure": func(c *Check) { c.Fall = -1 }, "no end of failures": func(c *Check) { c.Fall = 101 }, "no success": func(c *Check) { c.Rise = -1 }, "an hour of waiting": func(c *Check) { c.Timeout = Duration(time.Hour) }, "no time": func(c *Check) { c.Timeout = 1 },
		"the past": func(c *Check) { c.Interval = -5 },
	} {
		c := full
		if spoil(&c); c.Validate() == nil {
			t.Errorf("%s: valid: %+v", name, c)
		}
	}
	if ValidateChecks(make([]Check, MaxChecks+1)) == nil || ValidateChecks([]Check{full, {}}) == nil || ValidateChecks(nil) != nil {
		t.Error("checks of a machine")
	}
}

func TestServesAndHealthy(t *testing.T) {
	t.Parallel()
	checked := []Check{{Kind: CheckTCP, Port: 1}}
	for _, tt := range []struct {
		name            string
		m               Machine
		h               Health
		known           bool
		serves, healthy bool
	}{
		{"plain", Machine{State: StateStarted}, Health{}, false, true, true},
		{"cordoned", Machine{State: StateStarted, Cordoned: true}, Health{}, false, false, true},
		{"draining", Machine{State: StateDraining}, Health{}, false, false, true},
		{"stopped", Machine{State: StateStopped}, Health{}, false, false, true},
		{"not passed yet", Machine{State: StateCreated, Checks: checked}, Health{}, false, false, false},
		{"started, nothing known", Machine{State: StateStarted, Checks: checked}, Health{}, false, true, false},
		{"passing", Machine{State: StateStarted, Checks: checked}, Health{Passing: true}, true, true, true},
		{"failing", Machine{State: StateStarted, Checks: checked}, Health{}, true, true, false},
		{"fails what it does not have", Machine{State: StateStarted}, Health{}, true, true, true},
	} {
		if tt.m.Serves() != tt.serves || tt.m.Healthy(tt.h, tt.known) != tt.healthy {
			t.Errorf("%s: serves %v, healthy %v", tt.name, tt.m.Serves(), tt.m.Healthy(tt.h, tt.known))
		}
	}
}
