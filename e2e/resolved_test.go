package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
)

// missing skips a test for want of something, and fails it under CI=true.
func missing(t *testing.T, sentence string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(sentence)
	}
	t.Skip(sentence)
}

// resolved is Debian's systemd-resolved on a host of the lab, with a message bus and
// an /etc of its own. It is unpacked, not installed: the machine that runs the tests
// keeps its own resolver.
type resolved struct {
	host *lab.Host
	bus  *lab.Process
	proc *lab.Process
	root string // where it is unpacked
}

const (
	resolvedConf = `[Resolve]
FallbackDNS=
LLMNR=no
MulticastDNS=no
`
	busConf = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_destination="*"/>
    <allow receive_type="*"/>
  </policy>
</busconfig>
`
	resolvedUser = "systemd-resolve"
)

// startResolved starts it on a host with PrivateEtc. Whether names are looked up
// through it is up to the host's resolv.conf.
func startResolved(t *testing.T, h *lab.Host) *resolved {
	t.Helper()
	program := requireProgram(t, "../build/resolved/lib/systemd/systemd-resolved", "systemd-resolved")
	r := &resolved{host: h, root: filepath.Join(filepath.Dir(program), "..", "..")}
	if err := r.furnish(); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.bus, err = h.Start("dbus", "dbus-daemon", []string{"--config-file=/run/dbus/bus.conf", "--nofork", "--nopidfile"}, nil); err != nil {
		t.Fatal(err)
	}
	await(t, "the message bus", 5*time.Second, func(context.Context) error {
		conn, err := h.DialContext(t.Context(), "unix", "/run/dbus/system_bus_socket")
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	if r.proc, err = h.Start("resolved", program, nil, r.env()); err != nil {
		t.Fatal(err)
	}
	await(t, "systemd-resolved", 5*time.Second, func(ctx context.Context) error {
		if r.proc.Exited() {
			return lab.Hopeless(fmt.Errorf("it has ended: %s", r.proc.LastLine()))
		}
		_, err := r.ctl(ctx, "status")
		return err
	})
	return r
}

// furnish gives the host what the package would: a user, directories, a file.
func (r *resolved) furnish() error {
	return r.host.DoInside(func() error {
		const id = 64153
		for path, line := range map[string]string{
			"/etc/passwd": fmt.Sprintf("%s:x:%d:%d::/:/usr/sbin/nologin\n", resolvedUser, id, id),
			"/etc/group":  fmt.Sprintf("%s:x:%d:\n", resolvedUser, id),
		} {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			var others strings.Builder
			for l := range strings.Lines(string(text)) {
				if !strings.HasPrefix(l, resolvedUser+":") {
					others.WriteString(l)
				}
			}
			if err := os.WriteFile(path, []byte(others.String()+line), 0o644); err != nil {
				return err
			}
		}
		errs := []error{os.MkdirAll("/run/dbus", 0o755), os.MkdirAll("/run/systemd/resolve", 0o755), os.MkdirAll("/etc/systemd", 0o755)}
		for path, text := range map[string]string{
			"/run/dbus/bus.conf": busConf, "/etc/systemd/resolved.conf": resolvedConf,
		} {
			errs = append(errs, os.WriteFile(path, []byte(text), 0o644))
		}
		return errors.Join(append(errs, os.Chown("/run/systemd/resolve", id, id))...)
	})
}

// env lets the programs find the libraries that are unpacked with them.
func (r *resolved) env() []string {
	var dirs []string
	for _, pattern := range []string{"usr/lib/*-linux-gnu", "usr/lib/*-linux-gnu/systemd", "lib/*-linux-gnu"} {
		found, err := filepath.Glob(filepath.Join(r.root, pattern))
		if err == nil {
			dirs = append(dirs, found...)
		}
	}
	return []string{"LD_LIBRARY_PATH=" + strings.Join(dirs, ":")}
}

// ctl types a resolvectl command.
func (r *resolved) ctl(ctx context.Context, args ...string) (string, error) {
	return r.host.RunEnv(ctx, append(r.env(), "SYSTEMD_COLORS=0"), filepath.Join(r.root, "usr/bin/resolvectl"), args...)
}
