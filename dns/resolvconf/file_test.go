package resolvconf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/dns"
)

const (
	deadline = 10 * time.Second
	original = "# made by dhcp\nnameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch office.example\noptions edns0 ndots:2\n"
	stubAt   = "127.0.0.153:53"
)

// The test binary is also the process that dies and the guard that outlives it.
func TestMain(m *testing.M) {
	switch os.Getenv("RESOLVCONF_TEST_AS") {
	case "up":
		up()
	case "guard":
		note, err := Guard(context.Background(), os.Stdin, childConfig())
		fmt.Fprintln(os.Stderr, "guard:", note, err)
	default:
		goleak.VerifyTestMain(m)
	}
}

func config(t *testing.T) Config {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"etc", "run/net", "var/lib/weft"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Config{
		Link: "weft0", Index: 7, Server: netip.MustParseAddr("fd12:3456:789a:1::3"),
		Domains:  []string{"internal.", "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."},
		StateDir: filepath.Join(root, "var/lib/weft"), Root: root,
		Stub: func(string) (netip.AddrPort, error) { return netip.MustParseAddrPort(stubAt), nil },
	}
}

func (cfg Config) write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(cfg.path(path), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (cfg Config) read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(cfg.path(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func mustSet(t *testing.T, cfg Config) Restore {
	t.Helper()
	restore, how, err := Set(t.Context(), cfg)
	if err != nil || how != ByFile {
		t.Fatalf("Set: %s %v", how, err)
	}
	return restore
}

func mustRecover(t *testing.T, cfg Config, want string) {
	t.Helper()
	note, err := Recover(t.Context(), cfg)
	if err != nil || !strings.Contains(note, want) || want == "" && note != "" {
		t.Fatalf("Recover: %q %v, want %q", note, err, want)
	}
}

func TestFileText(t *testing.T) {
	cfg := config(t)
	cfg.write(t, resolvConf, original)
	restore := mustSet(t, cfg)
	want := `# Written by weft. A resolver on this machine sends internal, a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa
# into the mesh over weft0, and all other names to the nameservers that were here.
# ` + "`weft down`" + ` puts this file back as it was, which is:
#| # made by dhcp
#| nameserver 192.0.2.53
#| nameserver 192.0.2.54
#| search office.example
#| options edns0 ndots:2
nameserver 127.0.0.153
search office.example
options edns0 ndots:2
`
	if diff := cmp.Diff(want, cfg.read(t, resolvConf)); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(original, cfg.read(t, "var/lib/weft/resolv.conf.original")); diff != "" {
		t.Errorf("saved original (-want +got):\n%s", diff)
	}
	if note, err := restore(t.Context()); note != "" || err != nil {
		t.Errorf("restore: %q %v", note, err)
	}
	if diff := cmp.Diff(original, cfg.read(t, resolvConf)); diff != "" {
		t.Errorf("restored (-want +got):\n%s", diff)
	}
	clean(t, cfg)
	if note, err := restore(t.Context()); note != "" || err != nil {
		t.Errorf("restore again: %q %v", note, err)
	}
}

// clean fails if anything but the original file and our lock is left.
func clean(t *testing.T, cfg Config) {
	t.Helper()
	for dir, only := range map[string]string{"etc": "resolv.conf", "var/lib/weft": "resolver.lock"} {
		entries, err := os.ReadDir(cfg.path(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != only && e.Name() != "nsswitch.conf" {
				t.Errorf("left behind: %s/%s", dir, e.Name())
			}
		}
	}
}

func TestFileKinds(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup func(t *testing.T, cfg Config)
		after func(t *testing.T, cfg Config)
	}{{
		name:  "mode and text without a final newline",
		setup: func(t *testing.T, cfg Config) { cfg.write(t, resolvConf, "nameserver 192.0.2.53") },
		after: func(t *testing.T, cfg Config) {
			if got := cfg.read(t, resolvConf); got != "nameserver 192.0.2.53" {
				t.Errorf("text %q", got)
			}
		},
	}, {
		name: "a mode of its own",
		setup: func(t *testing.T, cfg Config) {
			cfg.write(t, resolvConf, original)
			os.Chmod(cfg.path(resolvConf), 0o604)
		},
		after: func(t *testing.T, cfg Config) {
			if st, _ := os.Stat(cfg.path(resolvConf)); st.Mode().Perm() != 0o604 {
				t.Errorf("mode %o", st.Mode().Perm())
			}
		},
	}, {
		name: "relative symbolic link",
		setup: func(t *testing.T, cfg Config) {
			cfg.write(t, "/run/net/resolv.conf", original)
			os.Symlink("../run/net/resolv.conf", cfg.path(resolvConf))
		},
		after: func(t *testing.T, cfg Config) {
			if to, _ := os.Readlink(cfg.path(resolvConf)); to != "../run/net/resolv.conf" {
				t.Errorf("link to %q", to)
			}
			if got := cfg.read(t, "/run/net/resolv.conf"); got != original {
				t.Errorf("text %q", got)
			}
		},
	}, {
		name: "chain of absolute symbolic links",
		setup: func(t *testing.T, cfg Config) {
			cfg.write(t, "/run/net/resolv.conf", original)
			os.Symlink("/run/net/resolv.conf", cfg.path("/run/net/link"))
			os.Symlink("/run/net/link", cfg.path(resolvConf))
		},
		after: func(t *testing.T, cfg Config) {
			if to, _ := os.Readlink(cfg.path(resolvConf)); to != "/run/net/link" {
				t.Errorf("link to %q", to)
			}
			if got := cfg.read(t, "/run/net/resolv.conf"); got != original {
				t.Errorf("text %q", got)
			}
		},
	}, {
		name:  "no file",
		setup: func(*testing.T, Config) {},
		after: func(t *testing.T, cfg Config) {
			if _, err := os.Lstat(cfg.path(resolvConf)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("there is a file now: %v", err)
			}
		},
	}, {
		name:  "empty file",
		setup: func(t *testing.T, cfg Config) { cfg.write(t, resolvConf, "") },
		after: func(t *testing.T, cfg Config) {
			if got := cfg.read(t, resolvConf); got != "" {
				t.Errorf("text %q", got)
			}
		},
	}} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(t)
			tt.setup(t, cfg)
			links, _ := os.Readlink(cfg.path(resolvConf))
			mustSet(t, cfg)
			if now, _ := os.Readlink(cfg.path(resolvConf)); now != links {
				t.Errorf("the link to %q became %q", links, now)
			}
			if target, _ := follow(cfg, resolvConf); !strings.Contains(cfg.read(t, strings.TrimPrefix(target, cfg.Root)), "\nnameserver 127.0.0.153\n") {
				t.Error("the stub is not named")
			}
			mustRecover(t, cfg, "")
			tt.after(t, cfg)
		})
	}
}

func TestSetErrors(t *testing.T) {
	broken := errors.New("port 53 is taken")
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, cfg *Config)
		want   string
	}{
		{"no stub", func(_ *testing.T, cfg *Config) { cfg.Stub = nil }, ErrNoStub.Error()},
		{"stub fails", func(_ *testing.T, cfg *Config) {
			cfg.Stub = func(string) (netip.AddrPort, error) { return netip.AddrPort{}, broken }
		}, broken.Error()},
		{"stub on another port", func(_ *testing.T, cfg *Config) {
			cfg.Stub = func(string) (netip.AddrPort, error) { return netip.MustParseAddrPort("127.0.0.1:5353"), nil }
		}, "port 53"},
		{"links in a circle", func(t *testing.T, cfg *Config) {
			os.Remove(cfg.path(resolvConf))
			os.Symlink("resolv.conf", cfg.path(resolvConf))
		}, "too many levels"},
		{"link into nothing", func(t *testing.T, cfg *Config) {
			os.Remove(cfg.path(resolvConf))
			os.Symlink("/run/gone/resolv.conf", cfg.path(resolvConf))
		}, "/run/gone/resolv.conf"},
		{"a directory", func(t *testing.T, cfg *Config) {
			os.Remove(cfg.path(resolvConf))
			os.Mkdir(cfg.path(resolvConf), 0o755)
		}, "no regular file"},
		{"no state directory", func(_ *testing.T, cfg *Config) { cfg.StateDir = "" }, "state directory"},
		{"no server", func(_ *testing.T, cfg *Config) { cfg.Server = netip.Addr{} }, "server"},
		{"no domains", func(_ *testing.T, cfg *Config) { cfg.Domains = nil }, "domains"},
		{"damaged state", func(t *testing.T, cfg *Config) { os.WriteFile(cfg.statePath(), []byte("{"), 0o600) }, "resolver.json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(t)
			cfg.write(t, resolvConf, original)
			tt.change(t, &cfg)
			if _, _, err := Set(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Set: %v, want %q", err, tt.want)
			}
			if text, err := os.ReadFile(cfg.path(resolvConf)); err == nil && string(text) != original {
				t.Errorf("the file was changed: %s", text)
			}
		})
	}
}

// Set again changes nothing; after somebody rewrote the file it takes that as the
// original; for a new owner and a new stub the first original stays.
func TestSetAgain(t *testing.T) {
	cfg := config(t)
	cfg.write(t, resolvConf, original)
	mustSet(t, cfg)
	before, _ := os.Stat(cfg.path(resolvConf))
	mustSet(t, cfg)
	if after, _ := os.Stat(cfg.path(resolvConf)); !os.SameFile(before, after) {
		t.Error("the file was written again")
	}

	cfg.Owner = "next"
	cfg.Stub = func(string) (netip.AddrPort, error) { return netip.MustParseAddrPort("127.0.0.154:53"), nil }
	mustSet(t, cfg)
	if got := cfg.read(t, resolvConf); !strings.Contains(got, "\nnameserver 127.0.0.154\n") || strings.Contains(got, "127.0.0.153") {
		t.Errorf("file:\n%s", got)
	}

	const roamed = "nameserver 198.51.100.53\n"
	cfg.write(t, resolvConf, roamed)
	var seen []byte
	cfg.Stub = func(original string) (netip.AddrPort, error) {
		seen, _ = os.ReadFile(original)
		return netip.MustParseAddrPort("127.0.0.154:53"), nil
	}
	mustSet(t, cfg)
	if st, err := cfg.load(); err != nil || len(st.Wrote) != 1 {
		t.Errorf("state %+v %v: texts from before the change are kept", st, err)
	}
	if string(seen) != roamed {
		t.Errorf("the stub's upstreams are %q", seen)
	}
	mustRecover(t, cfg, "")
	if got := cfg.read(t, resolvConf); got != roamed {
		t.Errorf("restored %q", got)
	}
}

// Restore only what is still ours.
func TestChangedFileIsLeft(t *testing.T) {
	cfg := config(t)
	cfg.write(t, resolvConf, original)
	mustSet(t, cfg)
	cfg.write(t, resolvConf, "nameserver 198.51.100.53\n")
	mustRecover(t, cfg, "changed by another program")
	if got := cfg.read(t, resolvConf); got != "nameserver 198.51.100.53\n" {
		t.Errorf("file %q", got)
	}
	clean(t, cfg)
	mustRecover(t, cfg, "")
}

func TestOwners(t *testing.T) {
	cfg := config(t)
	cfg.write(t, resolvConf, original)
	cfg.Owner = "new"
	mustSet(t, cfg)
	old := cfg
	old.Owner = "old"
	mustRecover(t, old, "") // the guard of an earlier run
	if got := cfg.read(t, resolvConf); got == original {
		t.Error("another owner's guard restored the file")
	}
	old.Owner = "" // `down`
	mustRecover(t, old, "")
	if got := cfg.read(t, resolvConf); got != original {
		t.Errorf("file %q", got)
	}
}

// The state was lost, the file not: it holds what it was.
func TestRecoverWithoutState(t *testing.T) {
	for _, text := range []string{original, "nameserver 192.0.2.53", "", "#| odd\n\n#|\n", "\n"} {
		cfg := config(t)
		cfg.write(t, resolvConf, text)
		mustSet(t, cfg)
		os.RemoveAll(cfg.StateDir)
		mustRecover(t, cfg, "restored from its own comments")
		if diff := cmp.Diff(text, cfg.read(t, resolvConf)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	// Set after such a loss does not take our own text for the original.
	cfg := config(t)
	cfg.write(t, resolvConf, original)
	mustSet(t, cfg)
	os.RemoveAll(cfg.StateDir)
	mustSet(t, cfg)
	if got := cfg.read(t, "var/lib/weft/resolv.conf.original"); got != original {
		t.Errorf("original %q", got)
	}
	mustRecover(t, cfg, "")
	if got := cfg.read(t, resolvConf); got != original {
		t.Errorf("restored %q", got)
	}
	if _, err := Recover(t.Context(), Config{StateDir: filepath.Join(t.TempDir(), "none"), Root: t.TempDir()}); err != nil {
		t.Errorf("nothing at all: %v", err)
	}
}

// parse(print(x)) == x, for any original.
func TestEmbeddedOriginal(t *testing.T) {
	cfg := Config{Link: "weft0", Domains: []string{"internal."}}
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.StringOf(rapid.SampledFrom([]rune("an#| \n\r\t\x00é"))).Draw(t, "original")
		got, ours := embedded([]byte(render(cfg, "127.0.0.153", []byte(want))))
		if !ours || string(got) != want {
			t.Fatalf("%q came back as %q (%v)", want, got, ours)
		}
	})
}

// Wherever a crash comes, Recover leaves the file as it was.
func TestCrashes(t *testing.T) {
	another := func(string) (netip.AddrPort, error) { return netip.MustParseAddrPort("127.0.0.154:53"), nil }
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, cfg Config)
	}{
		{"the original saved, no state yet", func(t *testing.T, cfg Config) {
			defer func() { _ = recover() }()
			cfg.Stub = func(string) (netip.AddrPort, error) { panic("crash") }
			Set(t.Context(), cfg)
		}},
		{"the state on disk, the file not yet replaced", func(t *testing.T, cfg Config) {
			mustSet(t, cfg)
			cfg.write(t, resolvConf, original)
		}},
		{"set", func(t *testing.T, cfg Config) { mustSet(t, cfg) }},
		{"set again: the new state on disk, the file of the first set", func(t *testing.T, cfg Config) {
			mustSet(t, cfg)
			first := cfg.read(t, resolvConf)
			cfg.Stub = another
			mustSet(t, cfg)
			cfg.write(t, resolvConf, first)
		}},
		{"restored, the state still on disk", func(t *testing.T, cfg Config) {
			mustSet(t, cfg)
			state, _ := os.ReadFile(cfg.statePath())
			mustRecover(t, cfg, "")
			os.WriteFile(cfg.originalPath(), []byte(original), 0o600)
			os.WriteFile(cfg.statePath(), state, 0o600)
		}},
		{"restored, the original still on disk", func(t *testing.T, cfg Config) {
			mustSet(t, cfg)
			mustRecover(t, cfg, "")
			os.WriteFile(cfg.originalPath(), []byte("nameserver 203.0.113.1\n"), 0o600)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(t)
			cfg.write(t, resolvConf, original)
			tt.do(t, cfg)
			mustRecover(t, cfg, "")
			if got := cfg.read(t, resolvConf); got != original {
				t.Errorf("file %q", got)
			}
		})
	}
}

func TestLockIsWaitedFor(t *testing.T) {
	cfg := config(t)
	cfg.write(t, resolvConf, original)
	unlock, err := cfg.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := Set(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Set while locked: %v", err)
	}
	unlock()
	mustSet(t, cfg)
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// Together with the stub: a name of the mesh, and one of the rest of the world,
// through the file as a C library would read it.
func TestStubFollowsTheOriginal(t *testing.T) {
	cfg := config(t)
	cfg.write(t, resolvConf, original)
	var upstreams func() []netip.AddrPort
	cfg.Stub = func(path string) (netip.AddrPort, error) {
		upstreams = dns.Upstreams(path)
		return netip.MustParseAddrPort(stubAt), nil
	}
	mustSet(t, cfg)
	want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("192.0.2.54:53")}
	if got := upstreams(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("upstreams %v, want %v", got, want)
	}
}

// Any file may be there: ours is recognised, all others are kept whole.
func FuzzEmbedded(f *testing.F) {
	f.Add([]byte(original))
	f.Add([]byte(render(Config{Link: "weft0"}, "127.0.0.153", []byte(original))))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, ours := embedded([]byte(render(Config{Link: "weft0"}, "127.0.0.153", text)))
		if !ours || string(got) != string(text) {
			t.Fatalf("%q came back as %q", text, got)
		}
		embedded(text)
	})
}
