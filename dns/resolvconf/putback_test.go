package resolvconf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// laptopFiles draws what a laptop may have in /etc/resolv.conf, and around it.
func laptopFiles(t *rapid.T, cfg Config) {
	text := func(label string) []byte {
		return []byte(rapid.StringOf(rapid.SampledFrom([]rune("an#;| \n\t\x00é"))).Draw(t, label))
	}
	write := func(path, label string) {
		mode := rapid.SampledFrom([]os.FileMode{0o644, 0o600, 0o444, 0o664}).Draw(t, "mode")
		if err := errors.Join(os.WriteFile(cfg.path(path), text(label), mode), os.Chmod(cfg.path(path), mode)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/etc/hosts", "/etc/resolv.conf.bak", "/run/net/other"} {
		if rapid.Bool().Draw(t, path) {
			write(path, "another file")
		}
	}
	links := map[string][2]string{ // of resolv.conf, and the file that it leads to
		"a file": {"", resolvConf}, "a link": {"/run/net/resolv.conf", "/run/net/resolv.conf"},
		"a relative link": {"../run/net/resolv.conf", "/run/net/resolv.conf"}, "nothing": {"", ""}, "a link to nothing": {"/run/net/resolv.conf", ""},
	}
	l := links[rapid.SampledFrom([]string{"a file", "a link", "a relative link", "nothing", "a link to nothing"}).Draw(t, "resolv.conf")]
	if l[0] != "" {
		if err := os.Symlink(l[0], cfg.path(resolvConf)); err != nil {
			t.Fatal(err)
		}
	}
	if l[1] != "" {
		write(l[1], "text")
	}
}

// Whatever the laptop had, whoever else writes the file meanwhile, and wherever we
// are killed: afterwards all is as it was, or as that other one has left it.
func TestPutsBack(t *testing.T) {
	base, n := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		cfg := Config{
			Link: "weft0", Server: netip.MustParseAddr("fd12:3456:789a:1::3"), Domains: []string{"internal."},
			Root: filepath.Join(base, fmt.Sprint(n)),
		}
		cfg.StateDir = cfg.path("/var/lib/weft")
		if err := errors.Join(os.MkdirAll(cfg.path("/etc"), 0o755), os.MkdirAll(cfg.path("/run/net"), 0o755)); err != nil {
			t.Fatal(err)
		}
		laptopFiles(t, cfg)
		laptop := func() [2]map[string]string {
			return [2]map[string]string{tree(t, cfg.path("/etc")), tree(t, cfg.path("/run"))}
		}
		want, meddled := laptop(), false
		stub := byte(153)
		cfg.Stub = func(string) (netip.AddrPort, error) {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, stub}), 53), nil
		}
		steps := rapid.SliceOfN(rapid.SampledFrom([]string{"set", "set", "another stub", "killed early", "meddle", "recover"}), 1, 8).Draw(t, "steps")
		for _, step := range steps {
			switch step {
			case "another stub":
				stub ^= 1
				fallthrough
			case "set":
				if _, how, err := Set(context.Background(), cfg); err != nil || how != ByFile {
					t.Fatalf("Set: %s %v", how, err)
				}
				meddled = false
			case "killed early": // before the file is replaced
				crash := cfg
				crash.Stub = func(string) (netip.AddrPort, error) { panic("killed") }
				func() {
					defer func() { _ = recover() }()
					Set(context.Background(), crash)
				}()
			case "meddle":
				target, err := follow(cfg, resolvConf)
				if err == nil {
					err = os.WriteFile(target, fmt.Appendf(nil, "nameserver 192.0.2.%d\n", stub), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
				want, meddled = laptop(), true
			case "recover":
				if _, err := Recover(context.Background(), cfg); err != nil {
					t.Fatalf("Recover: %v", err)
				}
			}
		}
		note, err := Recover(context.Background(), cfg)
		if err != nil || note != "" && !meddled {
			t.Fatalf("Recover: %q %v", note, err)
		}
		if diff := cmp.Diff(want, laptop()); diff != "" {
			t.Fatalf("after %q (-want +got):\n%s", steps, diff)
		}
	})
}
