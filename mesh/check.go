package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Check is how a machine's host sees whether the machine works.
type Check struct {
	Kind    string `json:"kind"`              // CheckTCP, CheckHTTP or CheckExec
	Port    uint16 `json:"port,omitempty"`    // of tcp and http
	Path    string `json:"path,omitempty"`    // of http, with its '/'
	Command string `json:"command,omitempty"` // of exec: what the shell runs inside the machine

	Interval Duration `json:"interval,omitzero"` // between two attempts; default 5 s
	Timeout  Duration `json:"timeout,omitzero"`  // of one; default 2 s
	Grace    Duration `json:"grace,omitzero"`    // after the start of the machine, in which a failure does not count

	Fall int `json:"fall,omitempty"` // so many failures in a row make it fail; default 3
	Rise int `json:"rise,omitempty"` // so many successes in a row make it pass again; default 2, and more while it flaps
}

// Kinds of checks.
const (
	CheckTCP  = "tcp"  // a connection is accepted
	CheckHTTP = "http" // a GET is answered with 2xx or 3xx
	CheckExec = "exec" // a command ends with 0
)

// Of a check that does not say.
const (
	DefaultCheckInterval = 5 * time.Second
	DefaultCheckTimeout  = 2 * time.Second
	DefaultCheckFall     = 3
	DefaultCheckRise     = 2
)

// Bounds of checks.
const (
	MaxChecks        = 8 // of a machine
	maxCheckText     = 1024
	minCheckInterval = 100 * time.Millisecond
	maxCheckInterval = time.Hour
	minCheckTimeout  = 10 * time.Millisecond
	maxCheckTimeout  = time.Minute
	maxCheckGrace    = time.Hour
	maxCheckRun      = 100 // attempts in a row
)

const wantChecks = "want tcp:PORT, http:PORT/PATH or exec:COMMAND"

// ParseCheck reads "tcp:PORT", "http:PORT/PATH" or "exec:COMMAND".
func ParseCheck(s string) (c Check, err error) {
	kind, rest, _ := strings.Cut(s, ":")
	c.Kind = kind
	switch kind {
	case CheckTCP, CheckHTTP:
		port, path := rest, ""
		if kind == CheckHTTP { // http:80 asks for "/"
			port, path, _ = strings.Cut(rest, "/")
			c.Path = "/" + path
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return c, fmt.Errorf("check %q: %q is not a port", s, port)
		}
		c.Port = uint16(n)
	case CheckExec:
		c.Command = rest
	default:
		return c, fmt.Errorf("check %q: %s", s, wantChecks)
	}
	return c, c.Validate()
}

// String is the inverse of ParseCheck; its times and thresholds are not in it.
func (c Check) String() string {
	switch c.Kind {
	case CheckExec:
		return c.Kind + ":" + c.Command
	case CheckHTTP:
		return c.Kind + ":" + strconv.Itoa(int(c.Port)) + c.Path
	}
	return c.Kind + ":" + strconv.Itoa(int(c.Port))
}

// WithDefaults fills in the times and thresholds that c does not say.
func (c Check) WithDefaults() Check {
	c.Interval = cmp.Or(c.Interval, Duration(DefaultCheckInterval))
	c.Timeout = cmp.Or(c.Timeout, Duration(DefaultCheckTimeout))
	c.Fall, c.Rise = cmp.Or(c.Fall, DefaultCheckFall), cmp.Or(c.Rise, DefaultCheckRise)
	return c
}

// Validate reports a check that cannot be.
func (c Check) Validate() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("check %q: "+format, append([]any{c.String()}, args...)...)
	}
	switch {
	case c.Kind != CheckTCP && c.Kind != CheckHTTP && c.Kind != CheckExec:
		return fail(wantChecks)
	case c.Kind != CheckExec && c.Port == 0:
		return fail("a port is 1 to 65535")
	case c.Kind == CheckExec && strings.TrimSpace(c.Command) == "":
		return fail("it has no command")
	case len(c.Command) > maxCheckText || len(c.Path) > maxCheckText:
		return fail("it has more than %d bytes", maxCheckText)
	case c.Kind == CheckHTTP && (!strings.HasPrefix(c.Path, "/") || strings.ContainsFunc(c.Path, func(r rune) bool { return r <= ' ' || r == 0x7f })):
		return fail("a path begins with '/' and has no spaces")
	}
	full := c.WithDefaults()
	within := func(what string, d Duration, least, most time.Duration) error {
		if time.Duration(d) < least || time.Duration(d) > most {
			return fail("its %s of %s is not within %s to %s", what, d, least, most)
		}
		return nil
	}
	run := func(what string, n int) error {
		if n < 1 || n > maxCheckRun {
			return fail("%d %s in a row are not within 1 to %d", n, what, maxCheckRun)
		}
		return nil
	}
	return errors.Join(
		run("failures", full.Fall), run("successes", full.Rise),
		within("interval", full.Interval, minCheckInterval, maxCheckInterval),
		within("timeout", full.Timeout, minCheckTimeout, maxCheckTimeout),
		within("grace", full.Grace, 0, maxCheckGrace))
}

// ValidateChecks reports what cannot be the checks of a machine.
func ValidateChecks(checks []Check) error {
	if len(checks) > MaxChecks {
		return fmt.Errorf("a machine with %d checks: at most %d", len(checks), MaxChecks)
	}
	for _, c := range checks {
		if err := c.Validate(); err != nil {
			return err
		}
	}
	return nil
}
