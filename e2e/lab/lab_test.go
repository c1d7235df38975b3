package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		if err := beVictim(dir); err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// need skips a test where there can be no lab, or a tool is missing that the test
// uses on a host.
func need(t testing.TB, tools ...string) {
	t.Helper()
	err := Check()
	for _, tool := range tools {
		if _, errTool := exec.LookPath(lookPath(tool)); err == nil && errTool != nil {
			err = fmt.Errorf("the test runs %s, which is not installed", tool)
		}
	}
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
}

func newLab(t testing.TB, tools ...string) *Lab {
	t.Helper()
	need(t, tools...)
	l, err := New(Config{Dir: t.TempDir(), Seed: 1, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

func newHost(t testing.TB, l *Lab, name string, cfg HostConfig) *Host {
	t.Helper()
	h, err := l.Host(name, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// sh runs a shell command on a host.
func sh(t testing.TB, h *Host, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := h.Run(ctx, "sh", "-c", command)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func await(t testing.TB, what string, check func() error) {
	t.Helper()
	must(t, Await(t.Context(), what, 10*time.Second, func(context.Context) error { return check() }))
}
