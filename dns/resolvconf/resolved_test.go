package resolvconf

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

// privateBus starts a message bus for one test and returns its address.
func privateBus(t *testing.T) string {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("dbus-daemon is not installed; make deps installs it")
		}
		t.Skip("dbus-daemon is not installed")
	}
	cmd := exec.Command(daemon, "--session", "--nofork", "--print-address", "--address=unix:path="+filepath.Join(t.TempDir(), "bus"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon: %v", err)
	}
	return strings.TrimSpace(address)
}

// fakeResolved is a systemd-resolved that prints what it is told.
type fakeResolved struct {
	mu    sync.Mutex // guards the rest
	calls []string
	fail  string // the method that fails
	err   string // with this name
}

func (r *fakeResolved) did(method string, args ...any) *dbus.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if method == r.fail {
		return dbus.NewError(r.err, []any{"no"})
	}
	r.calls = append(r.calls, strings.TrimSpace(method+" "+fmt.Sprintln(args...)))
	return nil
}

func (r *fakeResolved) SetLinkDNS(i int32, servers []linkDNS) *dbus.Error {
	var s []string
	for _, x := range servers {
		a, _ := netip.AddrFromSlice(x.Address)
		s = append(s, fmt.Sprintf("%d/%s", x.Family, a))
	}
	return r.did("SetLinkDNS", i, strings.Join(s, ","))
}

func (r *fakeResolved) SetLinkDomains(i int32, domains []linkDomain) *dbus.Error {
	return r.did("SetLinkDomains", i, domains)
}

func (r *fakeResolved) SetLinkDefaultRoute(i int32, on bool) *dbus.Error {
	return r.did("SetLinkDefaultRoute", i, on)
}

func (r *fakeResolved) SetLinkDNSSEC(i int32, s string) *dbus.Error {
	return r.did("SetLinkDNSSEC", i, s)
}

func (r *fakeResolved) SetLinkDNSOverTLS(i int32, s string) *dbus.Error {
	return r.did("SetLinkDNSOverTLS", i, s)
}

func (r *fakeResolved) SetLinkLLMNR(i int32, s string) *dbus.Error {
	return r.did("SetLinkLLMNR", i, s)
}

func (r *fakeResolved) SetLinkMulticastDNS(i int32, s string) *dbus.Error {
	return r.did("SetLinkMulticastDNS", i, s)
}
func (r *fakeResolved) RevertLink(i int32) *dbus.Error { return r.did("RevertLink", i) }
func (r *fakeResolved) FlushCaches() *dbus.Error       { return r.did("FlushCaches") }

func (r *fakeResolved) failWith(method, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail, r.err = method, name
}

func (r *fakeResolved) said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	said := r.calls
	r.calls = nil
	return said
}

// withResolved returns a configuration whose system runs a fake systemd-resolved.
func withResolved(t *testing.T) (Config, *fakeResolved, *dbus.Conn) {
	t.Helper()
	cfg := config(t)
	cfg.Bus = privateBus(t)
	cfg.Stub = nil
	cfg.write(t, resolvConf, "nameserver 127.0.0.53\noptions edns0 trust-ad\n")
	conn, err := dbus.Connect(cfg.Bus)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := new(fakeResolved)
	if err := conn.Export(r, resolvedPath, strings.TrimSuffix(resolvedInterface, ".")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(resolvedName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return cfg, r, conn
}

func TestResolved(t *testing.T) {
	cfg, r, conn := withResolved(t)
	restore, how, err := Set(t.Context(), cfg)
	if err != nil || how != ByResolved {
		t.Fatalf("Set: %s %v", how, err)
	}
	want := []string{
		"SetLinkDomains 7 [{internal true} {a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa true}]",
		"SetLinkDefaultRoute 7 false", "SetLinkDNSSEC 7 no", "SetLinkDNSOverTLS 7 no", "SetLinkLLMNR 7 no", "SetLinkMulticastDNS 7 no",
		"SetLinkDNS 7 10/fd12:3456:789a:1::3", "FlushCaches",
	}
	if diff := cmp.Diff(want, r.said()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if got := cfg.read(t, resolvConf); !strings.HasPrefix(got, "nameserver 127.0.0.53\n") {
		t.Errorf("the file was touched: %q", got)
	}
	if note, err := restore(t.Context()); note != "" || err != nil {
		t.Errorf("restore: %q %v", note, err)
	}
	if diff := cmp.Diff([]string{"RevertLink 7"}, r.said()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	mustRecover(t, cfg, "")
	if said := r.said(); len(said) > 0 {
		t.Errorf("restored again: %v", said)
	}

	// Crash, and systemd-resolved is gone as well by the time of Recover.
	if _, _, err := Set(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	conn.ReleaseName(resolvedName)
	mustRecover(t, cfg, "")
	clean(t, cfg)
}

func TestResolvedErrors(t *testing.T) {
	cfg, r, _ := withResolved(t)
	r.failWith("SetLinkDNS", "org.freedesktop.resolve1.LinkBusy")
	if _, _, err := Set(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "SetLinkDNS of link weft0") {
		t.Errorf("Set: %v", err)
	}
	if said := r.said(); said[len(said)-1] != "RevertLink 7" {
		t.Errorf("what was begun was not undone: %v", said)
	}
	// An older version lacks a method that does not matter.
	r.failWith("SetLinkDNSOverTLS", "org.freedesktop.DBus.Error.UnknownMethod")
	if _, how, err := Set(t.Context(), cfg); err != nil || how != ByResolved {
		t.Errorf("Set with an older version: %s %v", how, err)
	}
	// The link went, and took its settings along.
	r.failWith("RevertLink", noSuchLink)
	mustRecover(t, cfg, "")
	clean(t, cfg)
}

// It runs, but names are not looked up through it: the file is what counts.
func TestResolvedIsPassedBy(t *testing.T) {
	for _, tt := range []struct {
		name, resolvConf, nsswitch, how string
	}{
		{"the file goes past it", "nameserver 192.0.2.53\n", "hosts: files dns\n", ByFile},
		{"by its stub", "nameserver 127.0.0.53\n", "hosts: files dns\n", ByResolved},
		{"by nss-resolve", "nameserver 192.0.2.53\n", "passwd: files\nhosts:\tmymachines resolve [!UNAVAIL=return] files # dns\n", ByResolved},
		{"only in a comment", "nameserver 192.0.2.53\n", "hosts: files dns # resolve\n", ByFile},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, _, _ := withResolved(t)
			cfg.Stub = func(string) (netip.AddrPort, error) { return netip.MustParseAddrPort(stubAt), nil }
			cfg.write(t, resolvConf, tt.resolvConf)
			cfg.write(t, "/etc/nsswitch.conf", tt.nsswitch)
			for range 2 { // the second time the file may be ours
				if _, how, err := Set(t.Context(), cfg); err != nil || how != tt.how {
					t.Fatalf("Set: %s %v, want %s", how, err, tt.how)
				}
			}
			mustRecover(t, cfg, "")
			if got := cfg.read(t, resolvConf); got != tt.resolvConf {
				t.Errorf("file %q", got)
			}
		})
	}
}

// From one way to the other: what the first one did is undone.
func TestResolvedComesLater(t *testing.T) {
	cfg, r, conn := withResolved(t)
	conn.ReleaseName(resolvedName)
	cfg.Stub = func(string) (netip.AddrPort, error) { return netip.MustParseAddrPort(stubAt), nil }
	mustSet(t, cfg)
	if _, err := conn.RequestName(resolvedName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	if _, how, err := Set(t.Context(), cfg); err != nil || how != ByResolved {
		t.Fatalf("Set: %s %v", how, err)
	}
	if got := cfg.read(t, resolvConf); !strings.HasPrefix(got, "nameserver 127.0.0.53\n") {
		t.Errorf("file %q", got)
	}
	if len(r.said()) == 0 {
		t.Error("systemd-resolved was told nothing")
	}
}

// tellingResolved also says how its link is set.
type tellingResolved struct {
	*fakeResolved
	link map[string]dbus.Variant
}

func (r *tellingResolved) GetLink(int32) (dbus.ObjectPath, *dbus.Error) {
	return resolvedPath + "/link/_37", nil
}

func (r *tellingResolved) GetAll(string) (map[string]dbus.Variant, *dbus.Error) { return r.link, nil }

// What is set already is not set again, every few seconds: that would drop what
// systemd-resolved has learnt about all other names.
func TestResolvedIsLeftAlone(t *testing.T) {
	cfg, r, conn := withResolved(t)
	server := netip.MustParseAddr("fd12:3456:789a:1::3")
	settings := func() map[string]dbus.Variant {
		return map[string]dbus.Variant{
			"Domains":      dbus.MakeVariant([]linkDomain{{"internal", true}, {"a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa", true}}),
			"DNS":          dbus.MakeVariant([]linkDNS{{10, server.AsSlice()}}),
			"DefaultRoute": dbus.MakeVariant(false), "DNSSEC": dbus.MakeVariant("no"), "LLMNR": dbus.MakeVariant("no"),
		}
	}
	for _, tt := range []struct {
		name   string
		change func(is map[string]dbus.Variant)
		again  bool
	}{
		{"as it must be", func(map[string]dbus.Variant) {}, false},
		{"an older version", func(is map[string]dbus.Variant) { delete(is, "DefaultRoute") }, false},
		{"no domains", func(is map[string]dbus.Variant) { is["Domains"] = dbus.MakeVariant([]linkDomain{}) }, true},
		{"a domain of another kind", func(is map[string]dbus.Variant) {
			is["Domains"] = dbus.MakeVariant([]linkDomain{{"internal", false}, {"a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa", true}})
		}, true},
		{"another server", func(is map[string]dbus.Variant) {
			is["DNS"] = dbus.MakeVariant([]linkDNS{{10, server.Next().AsSlice()}})
		}, true},
		{"all names", func(is map[string]dbus.Variant) { is["DefaultRoute"] = dbus.MakeVariant(true) }, true},
		{"DNSSEC", func(is map[string]dbus.Variant) { is["DNSSEC"] = dbus.MakeVariant("yes") }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			link := &tellingResolved{r, settings()}
			tt.change(link.link)
			for path, name := range map[dbus.ObjectPath]string{resolvedPath: strings.TrimSuffix(resolvedInterface, "."), resolvedPath + "/link/_37": "org.freedesktop.DBus.Properties"} {
				if err := conn.Export(link, path, name); err != nil {
					t.Fatal(err)
				}
			}
			if _, how, err := Set(t.Context(), cfg); err != nil || how != ByResolved {
				t.Fatalf("Set: %s %v", how, err)
			}
			if said := r.said(); (len(said) > 0) != tt.again {
				t.Errorf("it was told %q", said)
			}
		})
	}
}
