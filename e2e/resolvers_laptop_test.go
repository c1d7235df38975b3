package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
)

// office is a nameserver that a laptop had before: it knows one name, and notes what
// it is asked.
type office struct {
	*lab.Host
	mu    sync.Mutex // guards asked
	asked []string
}

const officeName, officeAnswer = "intra.office.example.", "203.0.113.7"

func newOffice(t *testing.T, l *lab.Lab, name string) *office {
	t.Helper()
	h, err := l.Host(name, lab.HostConfig{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := h.ListenPacket("udp4", h.Addr().String()+":53")
	if err != nil {
		t.Fatal(err)
	}
	o := &office{Host: h}
	done := make(chan struct{})
	go func() { defer close(done); o.serve(conn) }()
	t.Cleanup(func() { conn.Close(); <-done })
	return o
}

func (o *office) serve(conn net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		var m dnsmessage.Message
		if err != nil || m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		o.mu.Lock()
		o.asked = append(o.asked, strings.ToLower(q.Name.String()))
		o.mu.Unlock()
		m = dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
		if !strings.EqualFold(q.Name.String(), officeName) {
			m.RCode = dnsmessage.RCodeNameError
		} else if q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1},
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr(officeAnswer).As4()},
			}}
		}
		if out, err := m.Pack(); err == nil {
			_, _ = conn.WriteTo(out, from) // the client asks again
		}
	}
}

// heard returns what was asked since the last call.
func (o *office) heard() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	asked := o.asked
	o.asked = nil
	return asked
}

// laptopKind is a laptop with one of Linux's resolvers.
type laptopKind struct {
	how string // as `weft status` calls it
	cfg func(t *testing.T, dir string) lab.HostConfig
	// prepare makes the resolver ask the office. It returns what is printed about it,
	// which must be the same afterwards.
	prepare func(t *testing.T, l *laptop, at netip.Addr) func(ctx context.Context) (string, error)
	// split checks more of what is set.
	split func(t *testing.T, l *laptop, resolver string)
}

func plainHost(*testing.T, string) lab.HostConfig { return lab.HostConfig{PrivateEtc: true} }

var laptopKinds = map[string]laptopKind{
	"plain file":          {"resolv.conf", plainHost, preparePlain, nil},
	"systemd-resolved":    {"systemd-resolved", plainHost, prepareResolved, splitResolved},
	"openresolv":          {"resolvconf", hostWith("openresolv"), prepareResolvconf("openresolv"), nil},
	"Debian's resolvconf": {"resolvconf", hostWith("resolvconf"), prepareResolvconf("resolvconf"), nil},
}

// resolvConfText reads resolv.conf, in whatever directory it really is.
func resolvConfText(l *laptop) (string, error) {
	b, err := l.ReadFile("/etc/resolv.conf")
	return string(b), err
}

func preparePlain(t *testing.T, l *laptop, at netip.Addr) func(context.Context) (string, error) {
	if err := l.WriteFile("/etc/resolv.conf", fmt.Appendf(nil, "# by hand\nnameserver %s\nsearch office.example\n", at), 0o640); err != nil {
		t.Fatal(err)
	}
	return func(context.Context) (string, error) { return resolvConfText(l) }
}

func prepareResolved(t *testing.T, l *laptop, at netip.Addr) func(context.Context) (string, error) {
	r := startResolved(t, l.Host)
	for _, args := range [][]string{{"dns", "eth0", at.String()}, {"domain", "eth0", "office.example"}} {
		if _, err := r.ctl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	err := l.DoInside(func() error {
		return errors.Join(os.Remove("/etc/resolv.conf"), os.Symlink("/run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf"))
	})
	if err != nil {
		t.Fatal(err)
	}
	l.resolved = r
	return func(ctx context.Context) (string, error) {
		text, err := resolvConfText(l)
		for _, what := range []string{"dns", "domain", "dnssec", "default-route"} {
			out, ctlErr := r.ctl(ctx, what)
			text, err = text+out, errors.Join(err, ctlErr)
		}
		return text, err
	}
}

func splitResolved(t *testing.T, l *laptop, resolver string) {
	for what, want := range map[string]string{"dns": resolver, "dnssec": "no", "default-route": "no", "llmnr": "no", "mdns": "no"} {
		out, err := l.resolved.ctl(t.Context(), what, "weft0")
		if _, got, _ := strings.Cut(strings.TrimSpace(out), ": "); err != nil || got != want {
			t.Errorf("resolvectl %s weft0: %v, %q, want %q", what, err, out, want)
		}
	}
	out, err := l.resolved.ctl(t.Context(), "domain", "weft0")
	_, list, _ := strings.Cut(out, ": ")
	domains := strings.Fields(list)
	foreign := func(d string) bool {
		return d != "~internal" && !(strings.HasPrefix(d, "~") && strings.HasSuffix(d, ".d.f.ip6.arpa"))
	}
	if err != nil || !slices.Contains(domains, "~internal") || len(domains) != 3 || slices.ContainsFunc(domains, foreign) {
		t.Errorf("resolvectl domain weft0: %v, %q", err, out)
	}
}

// hostWith makes hosts on which resolvconf is one that make deps has unpacked.
func hostWith(flavour string) func(*testing.T, string) lab.HostConfig {
	return func(t *testing.T, dir string) lab.HostConfig {
		source := filepath.Dir(filepath.Dir(requireProgram(t, "../build/"+flavour+"/sbin/resolvconf", flavour)))
		for _, from := range []string{"sbin", "lib/resolvconf"} {
			if err := moveScripts(filepath.Join(source, from), filepath.Join(dir, from), dir); err != nil {
				t.Fatal(err)
			}
		}
		return lab.HostConfig{PrivateEtc: true, Env: []string{"PATH=" + filepath.Join(dir, "sbin") + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}}
	}
}

// moveScripts copies files and lets them find each other under dir.
func moveScripts(from, to, dir string) error {
	moved := strings.NewReplacer("/lib/resolvconf", dir+"/lib/resolvconf", "/sbin/resolvconf", dir+"/sbin/resolvconf")
	return filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), []byte(moved.Replace(string(text))), info.Mode().Perm())
	})
}

func prepareResolvconf(flavour string) func(*testing.T, *laptop, netip.Addr) func(context.Context) (string, error) {
	return func(t *testing.T, l *laptop, at netip.Addr) func(context.Context) (string, error) {
		etc, err := filepath.Abs("../build/" + flavour + "/etc")
		if err != nil {
			t.Fatal(err)
		}
		if flavour == "openresolv" {
			err = l.WriteFile("/etc/resolvconf.conf", []byte("resolv_conf=/etc/resolv.conf\nlibc_restart=:\n"), 0o644)
		} else {
			err = l.DoInside(func() error {
				const dynamic = "/run/resolvconf/resolv.conf"
				return errors.Join(
					os.MkdirAll("/run/resolvconf/interface", 0o755), os.WriteFile("/run/resolvconf/enable-updates", nil, 0o644),
					os.Remove("/etc/resolv.conf"), os.Symlink(dynamic, "/etc/resolv.conf"),
					moveScripts(filepath.Join(etc, "resolvconf"), "/etc/resolvconf", l.scripts),
				)
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		r, err := l.Exec(t.Context(), lab.Command{Path: filepath.Join(l.scripts, "sbin/resolvconf"), Args: []string{"-a", "eth0"}, Stdin: fmt.Sprintf("nameserver %s\nsearch office.example\n", at)})
		if err != nil || r.Code != 0 {
			t.Fatalf("resolvconf -a: %v, %+v", err, r)
		}
		return func(ctx context.Context) (string, error) {
			text, err := resolvConfText(l)
			list, listErr := l.Run(ctx, filepath.Join(l.scripts, "sbin/resolvconf"), "-l")
			return text + list, errors.Join(err, listErr)
		}
	}
}

// Whichever resolver a laptop has: the mesh's names go to the mesh, all others where
// they went before, and afterwards all is as it was, also after a crash.
func TestLaptopResolvers(t *testing.T) {
	need(t, "curl", "getent", "nsenter", "dbus-daemon")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1")
	web := start(t, w, "fra1", "acme", "web", "web")
	for name, kind := range laptopKinds {
		host := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, strings.ToLower(name))
		dir := filepath.Join(w.Lab().Dir(), "scripts-"+host)
		o := newOffice(t, w.Lab(), "office-"+host)
		l := placeLaptop(t, w, host, kind.cfg(t, dir))
		l.scripts = dir
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			state := kind.prepare(t, l, o.Addr())
			before, err := state(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			back := func(ctx context.Context) error {
				now, err := state(ctx)
				if err == nil && now != before {
					err = fmt.Errorf("it is\n%s\nand was\n%s", now, before)
				}
				return err
			}
			for _, end := range []string{"down", "kill -9"} {
				l.start(t, w)
				l.splits(t, w, kind, o, web)
				if back(t.Context()) == nil {
					t.Fatal("nothing was set: this test looks in the wrong place")
				}
				if end == "down" {
					if out, err := l.Run(t.Context(), filepath.Join(w.Bin(), "weft"), "down"); err != nil {
						t.Fatalf("weft down: %v\n%s", err, out)
					}
				} else if err := l.up.Kill(); err != nil {
					t.Fatal(err)
				}
				await(t, "the resolver to be as before, after "+end, 5*time.Second, back)
				await(t, "weft up to end", 5*time.Second, func(context.Context) error {
					if !l.up.Exited() {
						return errors.New("it runs")
					}
					return nil
				})
				if out, err := l.Run(t.Context(), "getent", "ahostsv4", officeName); err != nil || !strings.Contains(out, officeAnswer) {
					t.Errorf("%s after %s: %v\n%s", officeName, end, err, out)
				}
			}
		})
	}
}

// splits checks that each name goes where it belongs while `weft up` runs.
func (l *laptop) splits(t *testing.T, w *world.World, kind laptopKind, o *office, web *world.Machine) {
	t.Helper()
	await(t, "weft up to say how the resolver is set", 10*time.Second, func(ctx context.Context) error {
		out, err := l.Run(ctx, filepath.Join(w.Bin(), "weft"), "status")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "DNS" && f[1] == kind.how {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("not by %s:\n%s", kind.how, out))
	})
	o.heard()
	await(t, "the laptop to reach web", 10*time.Second, l.reaches("web.internal"))
	for _, tt := range []struct{ command, want string }{
		{"getent ahostsv6 web.internal", web.Address.String()},
		{"getent hosts " + web.Address.String(), "web.vm.web.internal"},
		{"getent ahostsv4 " + officeName, officeAnswer},
		{"getent ahostsv4 intra", officeAnswer}, // by the search list
	} {
		f := strings.Fields(tt.command)
		if out, err := l.Run(t.Context(), f[0], f[1:]...); err != nil || !strings.Contains(out, tt.want) {
			t.Errorf("%s: %v, no %s in\n%s", tt.command, err, tt.want, out)
		}
	}
	asked := o.heard()
	if !slices.Contains(asked, officeName) {
		t.Errorf("the office was not asked for %s, but for %q", officeName, asked)
	}
	for _, name := range asked {
		if strings.HasSuffix(name, ".internal.") || strings.HasSuffix(name, ".d.f.ip6.arpa.") {
			t.Errorf("the office was asked for %s", name)
		}
	}
	if kind.split != nil {
		s, err := w.Status(t.Context(), w.Hosts["fra1"])
		if err != nil {
			t.Fatal(err)
		}
		prefix := s.Prefix.Addr().As16()
		resolver := web.Address.As16()
		copy(resolver[:6], prefix[:6])
		copy(resolver[8:], make([]byte, 8))
		resolver[15] = 3
		kind.split(t, l, netip.AddrFrom16(resolver).String())
	}
}
