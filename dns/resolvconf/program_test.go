package resolvconf

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// flavours are the two programs of that name, as make deps unpacks them.
var flavours = []string{"openresolv", "resolvconf"}

// withResolvconf returns a configuration whose system has the real program, moved
// under Root, and which knows two interfaces.
func withResolvconf(t *testing.T, flavour string) Config {
	t.Helper()
	cfg := config(t)
	source := filepath.Join("../../build", flavour)
	if _, err := os.Stat(filepath.Join(source, "sbin/resolvconf")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not here; make deps unpacks it: %v", flavour, err)
		}
		t.Skipf("%s is not here; make deps unpacks it", flavour)
	}
	r := cfg.Root
	moved := strings.NewReplacer(
		"=/etc\n", "="+r+"/etc\n", "/etc/", r+"/etc/", "/run/resolvconf", r+"/run/resolvconf", "/lib/resolvconf", r+"/lib/resolvconf", "/sbin/resolvconf", r+"/sbin/resolvconf",
	)
	for _, dir := range []string{"sbin", "lib/resolvconf", "etc/resolvconf"} {
		from := filepath.Join(source, dir)
		err := filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
			rel, _ := filepath.Rel(source, path)
			switch {
			case err != nil:
				return err
			case d.IsDir():
				return os.MkdirAll(cfg.path(rel), 0o755)
			case d.Type()&os.ModeSymlink != 0:
				return nil
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			return os.WriteFile(cfg.path(rel), []byte(moved.Replace(string(text))), info.Mode().Perm())
		})
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if flavour == "openresolv" {
		cfg.write(t, "/etc/resolvconf.conf", "resolv_conf="+cfg.path(resolvConf)+"\nlibc_restart=:\n")
	} else {
		if err := os.MkdirAll(cfg.path("/run/resolvconf/interface"), 0o755); err != nil {
			t.Fatal(err)
		}
		cfg.write(t, "/run/resolvconf/enable-updates", "")
		os.Symlink(cfg.path("/run/resolvconf/resolv.conf"), cfg.path(resolvConf))
	}
	cfg.Resolvconf = cfg.path("/sbin/resolvconf")
	cfg.record(t, "eth0", "nameserver 192.0.2.53\nsearch office.example\noptions ndots:2\n")
	cfg.record(t, "wlan0", "nameserver 198.51.100.53\n")
	return cfg
}

// record is what a DHCP client does: it hands resolvconf what it was told.
func (cfg Config) record(t *testing.T, name, text string, options ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), cfg.Resolvconf, append(options, "-a", name)...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("resolvconf -a %s: %v\n%s", name, err, out)
	}
}

func (cfg Config) servers(t *testing.T) []string {
	t.Helper()
	return nameservers(cfg.read(t, resolvConf))
}

func nameservers(text string) (list []string) {
	for line := range strings.Lines(text) {
		if a, ok := strings.CutPrefix(line, "nameserver "); ok {
			list = append(list, strings.TrimSpace(a))
		}
	}
	return list
}

func TestResolvconf(t *testing.T) {
	for _, flavour := range flavours {
		t.Run(flavour, func(t *testing.T) {
			t.Parallel()
			cfg := withResolvconf(t, flavour)
			before := cfg.read(t, resolvConf)
			if got := cfg.servers(t); fmt.Sprint(got) != "[192.0.2.53 198.51.100.53]" {
				t.Fatalf("before: %q", before)
			}
			set := func() Restore {
				t.Helper()
				restore, how, err := Set(t.Context(), cfg)
				if err != nil || how != ByResolvconf {
					t.Fatalf("Set: %s %v", how, err)
				}
				return restore
			}
			restore := set()
			now := cfg.read(t, resolvConf)
			if got := cfg.servers(t); fmt.Sprint(got) != "[127.0.0.153]" {
				t.Errorf("nameservers %v", got)
			}
			for _, kept := range []string{"search office.example\n", "options ndots:2\n"} {
				if !strings.Contains(now, kept) {
					t.Errorf("no %q in\n%s", kept, now)
				}
			}
			upstreams := func() string { return fmt.Sprint(nameservers(cfg.read(t, "var/lib/weft/resolv.conf.original"))) }
			if got := upstreams(); got != "[192.0.2.53 198.51.100.53]" {
				t.Errorf("the stub's upstreams %s", got)
			}
			was, _ := os.Stat(cfg.path(resolvConf))
			set()
			if is, _ := os.Stat(cfg.path(resolvConf)); !os.SameFile(was, is) || !was.ModTime().Equal(is.ModTime()) {
				t.Error("the file was written again")
			}

			// The laptop moves to another network: the stub follows, the file stays.
			cfg.record(t, "eth0", "nameserver 203.0.113.53\nsearch cafe.example\n")
			set()
			if got := upstreams(); got != "[203.0.113.53 198.51.100.53]" {
				t.Errorf("the stub's upstreams after a move %s", got)
			}
			if got := cfg.servers(t); fmt.Sprint(got) != "[127.0.0.153]" {
				t.Errorf("nameservers after a move %v", got)
			}
			cfg.record(t, "eth0", "nameserver 192.0.2.53\nsearch office.example\noptions ndots:2\n")

			if note, err := restore(t.Context()); note != "" || err != nil {
				t.Errorf("restore: %q %v", note, err)
			}
			if diff := cmp.Diff(before, cfg.read(t, resolvConf)); diff != "" {
				t.Errorf("restored (-want +got):\n%s", diff)
			}
			mustRecover(t, cfg, "")

			// A crash and a start of the machine: /run is empty, resolv.conf may be old.
			set()
			old := cfg.read(t, resolvConf)
			os.RemoveAll(cfg.path("/run/resolvconf"))
			if flavour == "resolvconf" {
				return // its file is in /run as well
			}
			cfg.write(t, resolvConf, old)
			cfg.record(t, "eth0", "nameserver 192.0.2.53\n")
			mustRecover(t, cfg, "")
			if got := cfg.servers(t); fmt.Sprint(got) != "[192.0.2.53]" {
				t.Errorf("nameservers after a reboot %v", got)
			}
		})
	}
}

// Whatever records there are, all is as it was afterwards.
func TestResolvconfPutsBack(t *testing.T) {
	for _, flavour := range flavours {
		t.Run(flavour, func(t *testing.T) {
			t.Parallel()
			cfg := withResolvconf(t, flavour)
			for seed := range 6 {
				draw := rapid.Custom(func(t *rapid.T) string {
					var b strings.Builder
					for range rapid.IntRange(0, 3).Draw(t, "servers") {
						fmt.Fprintf(&b, "nameserver %s\n", rapid.SampledFrom([]string{"192.0.2.1", "2001:db8::1", "192.0.2.9", "203.0.113.77"}).Draw(t, "server"))
					}
					if rapid.Bool().Draw(t, "search") {
						b.WriteString("search a.example b.example\n")
					}
					if rapid.Bool().Draw(t, "options") {
						b.WriteString("options edns0 timeout:1\n")
					}
					return b.String()
				})
				var records []string
				for i, name := range []string{"eth0", "wlan0", "tun0"} {
					text := draw.Example(seed*3 + i)
					cfg.record(t, name, text)
					records = append(records, text)
				}
				before := tree(t, cfg.path("/etc"))
				resolv, run := cfg.read(t, resolvConf), recordsIn(t, cfg)
				if _, how, err := Set(t.Context(), cfg); err != nil || how != ByResolvconf {
					t.Fatalf("%q: Set: %s %v", records, how, err)
				}
				if got := cfg.servers(t); fmt.Sprint(got) != "[127.0.0.153]" {
					t.Errorf("%q: nameservers %v", records, got)
				}
				mustRecover(t, cfg, "")
				if diff := cmp.Diff(before, tree(t, cfg.path("/etc"))); diff != "" {
					t.Errorf("%q: /etc (-before +after):\n%s", records, diff)
				}
				if diff := cmp.Diff(run, recordsIn(t, cfg)); diff != "" || cfg.read(t, resolvConf) != resolv {
					t.Errorf("%q: records (-before +after):\n%s", records, diff)
				}
			}
		})
	}
}

// recordsIn lists resolvconf's own files.
func recordsIn(t *testing.T, cfg Config) []string {
	t.Helper()
	var all []string
	for path, text := range tree(t, cfg.path("/run/resolvconf")) {
		if !strings.HasPrefix(text, "d") {
			all = append(all, path+" "+text)
		}
	}
	slices.Sort(all)
	return all
}

// It is there, but it does not rule, or would not do what it is told: the file it is.
func TestResolvconfIsPassedBy(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, cfg *Config)
	}{
		{"the file is not its own", func(t *testing.T, cfg *Config) {
			cfg.write(t, "/etc/resolvconf.conf", cfg.read(t, "/etc/resolvconf.conf")+"resolvconf=NO\n")
			cfg.write(t, resolvConf, original)
		}},
		{"another's record is exclusive", func(t *testing.T, cfg *Config) { cfg.record(t, "wg0", "nameserver 192.0.2.99\n", "-x") }},
		{"another local resolver comes first", func(t *testing.T, cfg *Config) {
			text := cfg.read(t, "/etc/resolvconf.conf")
			cfg.write(t, "/etc/resolvconf.conf", text+"name_servers=127.0.0.1\n")
			cfg.record(t, "wlan0", "nameserver 198.51.100.54\n")
		}},
		{"it is systemd's", func(t *testing.T, cfg *Config) {
			cfg.write(t, "/sbin/resolvectl", "")
			cfg.Resolvconf = cfg.path("/sbin/link")
			os.Symlink("resolvectl", cfg.Resolvconf)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := withResolvconf(t, "openresolv")
			tt.change(t, &cfg)
			// What openresolv makes of the same records is not always the same.
			if out, err := exec.CommandContext(t.Context(), cfg.path("/sbin/resolvconf"), "-u").CombinedOutput(); err != nil {
				t.Fatalf("resolvconf -u: %v\n%s", err, out)
			}
			before, records := cfg.read(t, resolvConf), recordsIn(t, cfg)
			for range 2 {
				mustSet(t, cfg)
				if got := cfg.servers(t); fmt.Sprint(got) != "[127.0.0.153]" {
					t.Errorf("nameservers %v", got)
				}
			}
			if diff := cmp.Diff(records, recordsIn(t, cfg)); diff != "" {
				t.Errorf("records (-before +after):\n%s", diff)
			}
			mustRecover(t, cfg, "")
			if got := cfg.read(t, resolvConf); got != before {
				t.Errorf("restored %q, want %q", got, before)
			}
		})
	}
}

// From one way to the next while we are up: somebody's record becomes exclusive.
func TestResolvconfLosesItsRule(t *testing.T) {
	cfg := withResolvconf(t, "openresolv")
	if _, how, err := Set(t.Context(), cfg); err != nil || how != ByResolvconf {
		t.Fatalf("Set: %s %v", how, err)
	}
	cfg.record(t, "wg0", "nameserver 192.0.2.99\n", "-x")
	mustSet(t, cfg)
	if got := nameservers(cfg.read(t, "var/lib/weft/resolv.conf.original")); fmt.Sprint(got) != "[192.0.2.99]" {
		t.Errorf("the stub's upstreams %v", got)
	}
	mustRecover(t, cfg, "")
	if got := cfg.servers(t); fmt.Sprint(got) != "[192.0.2.99]" {
		t.Errorf("restored %v", got)
	}
}

func TestResolvconfErrors(t *testing.T) {
	cfg := config(t)
	cfg.write(t, resolvConf, "# Generated by resolvconf\nnameserver 192.0.2.53\n")
	cfg.Resolvconf = cfg.path("/run/resolvconf")
	if err := os.WriteFile(cfg.Resolvconf, []byte("#!/bin/sh\n[ $1 = -l ] || { echo disk full >&2; exit 3; }\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, how, err := Set(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("Set: %s %v", how, err)
	}
	cfg.Stub = nil
	if _, _, err := Set(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), ErrNoStub.Error()) {
		t.Errorf("Set without a stub: %v", err)
	}
	cfg.Stub = func(string) (netip.AddrPort, error) { return netip.MustParseAddrPort("127.0.0.1:5353"), nil }
	if _, _, err := Set(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "port 53") {
		t.Errorf("Set with a stub elsewhere: %v", err)
	}
	// The program was removed while its record was in force.
	st := &state{How: ByResolvconf, Program: cfg.path("/sbin/gone"), Record: "lo.weft0"}
	if note, err := (program{}).revert(context.Background(), cfg, st); err != nil || !strings.Contains(note, "is gone") {
		t.Errorf("revert: %q %v", note, err)
	}
}

func TestSplitRecords(t *testing.T) {
	const list = "# resolv.conf from lo.weft0\nnameserver 127.0.0.153\n\n# resolv.conf from eth0\n# a comment\nnameserver 192.0.2.53\nsearch x\n\n# resolv.conf from lo.weft01\nnameserver 127.0.0.9\n"
	ours, others := splitRecords(list, "lo.weft0")
	if ours != "nameserver 127.0.0.153\n" || others != "# a comment\nnameserver 192.0.2.53\nsearch x\nnameserver 127.0.0.9\n" {
		t.Errorf("ours %q, others %q", ours, others)
	}
}
