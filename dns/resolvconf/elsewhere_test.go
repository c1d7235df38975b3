package resolvconf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The ways of systems that the tests do not run on: what they write and what they
// undo is the same everywhere.

// The package compiles for all systems that it knows.
func TestOtherSystemsCompile(t *testing.T) {
	t.Parallel()
	for _, system := range []string{"darwin", "windows"} {
		cmd := exec.CommandContext(t.Context(), "go", "build", ".")
		cmd.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", system, err, out)
		}
	}
}

// tree is all that is below a directory: text, mode and target of each file.
func tree(t interface {
	Helper()
	Fatal(...any)
}, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := ""
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(b)
		case info.Mode()&fs.ModeSymlink != 0:
			if text, err = os.Readlink(path); err != nil {
				return err
			}
		}
		all[rel] = info.Mode().String() + " " + text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// afterwards reverts by what is on disk, as Recover does.
func afterwards(b backend, cfg Config) (note string, err error) {
	st, err := cfg.load()
	if err != nil || st == nil {
		return "", err
	}
	if note, err = b.revert(context.Background(), cfg, st); err != nil {
		return "", err
	}
	return note, cfg.forget()
}

func TestResolverDir(t *testing.T) {
	cfg := config(t)
	st := &state{How: ByResolverDir}
	if err := (resolverDir{}).set(t.Context(), cfg, st); err != nil {
		t.Fatal(err)
	}
	const want = `# Written by weft. Names below this domain are in the mesh, over weft0; ` + "`weft down`" + ` removes it.
nameserver fd12:3456:789a:1::3
`
	for _, name := range []string{"internal", "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"} {
		if diff := cmp.Diff(want, cfg.read(t, "/etc/resolver/"+name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if note, err := afterwards(resolverDir{}, cfg); note != "" || err != nil {
		t.Errorf("revert: %q %v", note, err)
	}
	if _, err := os.Stat(cfg.path(resolverFiles)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}

	// The state was lost: what is ours is known by its first words.
	if err := (resolverDir{}).set(t.Context(), cfg, &state{How: ByResolverDir}); err != nil {
		t.Fatal(err)
	}
	cfg.write(t, "/etc/resolver/office.example", "nameserver 192.0.2.1\n")
	os.RemoveAll(cfg.StateDir)
	if note, err := (resolverDir{}).revertWithoutState(cfg); err != nil || !strings.Contains(note, "removed") {
		t.Errorf("without a state: %q %v", note, err)
	}
	if left := slices.Sorted(maps.Keys(tree(t, cfg.path(resolverFiles)))); fmt.Sprint(left) != "[. office.example]" {
		t.Errorf("left: %v", left)
	}
}

// Whatever was there before, and wherever a crash comes, it is put back; what
// somebody else has written meanwhile is theirs.
func TestResolverDirPutsBack(t *testing.T) {
	base := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		cfg := Config{
			Link: "weft0", Root: filepath.Join(base, fmt.Sprint(n)), Domains: []string{"internal.", "9.ip6.arpa."},
			Server: netip.MustParseAddr("fd12:3456:789a:1::3"),
		}
		cfg.StateDir = cfg.path("/var/lib/weft")
		if err := errors.Join(os.MkdirAll(cfg.StateDir, 0o755), os.MkdirAll(cfg.path("/etc"), 0o755)); err != nil {
			t.Fatal(err)
		}
		dir := cfg.path(resolverFiles)
		if rapid.Bool().Draw(t, "directory") {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"internal", "9.ip6.arpa", "office.example"} {
				if rapid.Bool().Draw(t, name) {
					text := rapid.StringOf(rapid.SampledFrom([]rune("a#\n\x00é"))).Draw(t, "text")
					mode := rapid.SampledFrom([]os.FileMode{0o644, 0o600, 0o444}).Draw(t, "mode")
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		before := tree(t, cfg.path("/etc"))
		for range rapid.IntRange(1, 3).Draw(t, "times") {
			st, err := cfg.load()
			if err != nil {
				t.Fatal(err)
			}
			if st == nil {
				st = &state{How: ByResolverDir}
			}
			if err := (resolverDir{}).set(context.Background(), cfg, st); err != nil {
				t.Fatal(err)
			}
			cfg.Server = cfg.Server.Next() // a new text each time
		}
		if rapid.Bool().Draw(t, "crash between the files") {
			if st, _ := cfg.load(); before["resolver"] != "" && st.Files[0].Absent {
				os.Remove(st.Files[0].Path)
			}
		}
		meddled := rapid.Bool().Draw(t, "meddled")
		if meddled {
			if err := os.WriteFile(filepath.Join(dir, "internal"), []byte("theirs\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		note, err := afterwards(resolverDir{}, cfg)
		if err != nil || meddled != strings.Contains(note, "changed by another program") {
			t.Fatalf("revert: %q %v", note, err)
		}
		after := tree(t, cfg.path("/etc"))
		if meddled {
			if !strings.HasSuffix(after["resolver/internal"], " theirs\n") {
				t.Fatalf("what somebody else wrote is gone: %v", after)
			}
			delete(after, "resolver/internal")
			delete(before, "resolver/internal")
			before["resolver"] = after["resolver"] // it cannot go
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Fatalf("(-before +after):\n%s", diff)
		}
	})
}

func TestResolverDirRefused(t *testing.T) {
	for err, want := range map[error]bool{fs.ErrPermission: true, syscall.EROFS: true, syscall.ENOSPC: false} {
		if got := errors.Is(refusal(&fs.PathError{Op: "mkdir", Path: "/etc/resolver", Err: err}), errRefused); got != want {
			t.Errorf("%v: refused %v, want %v", err, got, want)
		}
	}
}

func TestScutil(t *testing.T) {
	cfg := config(t)
	var said []string
	cfg.command = func(_ context.Context, stdin, program string, args ...string) (string, error) {
		said = append(said, strings.TrimSpace(program+" "+strings.Join(args, " "))+"\n"+stdin)
		return "", nil
	}
	if err := (scutil{}).set(t.Context(), cfg, &state{How: ByScutil}); err != nil {
		t.Fatal(err)
	}
	if note, err := afterwards(scutil{}, cfg); note != "" || err != nil {
		t.Errorf("revert: %q %v", note, err)
	}
	want := []string{`/usr/sbin/scutil
d.init
d.add ServerAddresses * fd12:3456:789a:1::3
d.add SupplementalMatchDomains * internal a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa
d.add SupplementalMatchDomainsNoSearch # 1
set State:/Network/Service/weft-weft0/DNS
quit
`, `/usr/sbin/scutil
remove State:/Network/Service/weft-weft0/DNS
quit
`}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	cfg.Link = "two words"
	if err := (scutil{}).set(t.Context(), cfg, &state{How: ByScutil}); err == nil {
		t.Error("a link of two words")
	}
}

// fakeRegistry is keys and what is in them, as text.
type fakeRegistry struct {
	keys      map[string]string
	refreshed int
	fails     string // the key that cannot be written
}

func (r *fakeRegistry) Exists(path string) (bool, error) {
	for k := range r.keys {
		if k == path || strings.HasPrefix(k, path+`\`) {
			return true, nil
		}
	}
	return false, nil
}

func (r *fakeRegistry) Read(path string) (nrptRule, bool, error) {
	names, servers, ok := strings.Cut(r.keys[path], " -> ")
	return nrptRule{strings.Fields(names), servers}, ok, nil
}

func (r *fakeRegistry) Write(path string, rule nrptRule) error {
	if path == r.fails {
		return errors.New("access is denied")
	}
	r.keys[path] = strings.Join(rule.Names, " ") + " -> " + rule.Servers
	return nil
}

func (r *fakeRegistry) Delete(path string) error { delete(r.keys, path); return nil }
func (r *fakeRegistry) Refresh(bool) error       { r.refreshed++; return nil }

func TestNRPT(t *testing.T) {
	const (
		key  = `\{54d4d2ab-be0c-8f3d-8efe-0aa5e4d1d1b5}`
		rule = ".internal .a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa -> fd12:3456:789a:1::3"
	)
	own := `\` + nrptKey("weft0")
	if nrptKey("weft0") != nrptKey("weft0") || nrptKey("weft0") == nrptKey("weft1") || len(own) != len(key) {
		t.Errorf("key %s", own)
	}
	for _, policy := range []bool{false, true} {
		cfg := config(t)
		reg := &fakeRegistry{keys: map[string]string{nrptLocal + `\{other}`: ".office -> 192.0.2.1"}}
		want := map[string]string{nrptLocal + `\{other}`: ".office -> 192.0.2.1", nrptLocal + own: rule}
		if policy {
			reg.keys[nrptPolicy+`\{theirs}`] = ".corp -> 192.0.2.2"
			want[nrptPolicy+`\{theirs}`], want[nrptPolicy+own] = ".corp -> 192.0.2.2", rule
		}
		before := maps.Clone(reg.keys)
		cfg.registry = reg
		st := &state{How: ByNRPT}
		for range 2 { // the second time changes nothing
			if err := (nrpt{}).set(t.Context(), cfg, st); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(want, reg.keys); diff != "" || reg.refreshed != 1 {
			t.Errorf("refreshed %d times (-want +got):\n%s", reg.refreshed, diff)
		}
		if note, err := afterwards(nrpt{}, cfg); note != "" || err != nil {
			t.Errorf("revert: %q %v", note, err)
		}
		if diff := cmp.Diff(before, reg.keys); diff != "" || reg.refreshed != 2 {
			t.Errorf("refreshed %d times (-before +after):\n%s", reg.refreshed, diff)
		}
	}

	// What was begun before an error is on disk, to be undone.
	cfg := config(t)
	reg := &fakeRegistry{keys: map[string]string{nrptPolicy + `\{theirs}`: ".corp -> 192.0.2.2"}, fails: nrptPolicy + own}
	cfg.registry = reg
	if err := (nrpt{}).set(t.Context(), cfg, &state{How: ByNRPT}); err == nil || !strings.Contains(err.Error(), "access is denied") {
		t.Errorf("set: %v", err)
	}
	if _, err := afterwards(nrpt{}, cfg); err != nil || len(reg.keys) != 1 {
		t.Errorf("revert: %v, left %v", err, reg.keys)
	}
	cfg.Domains = []string{"."}
	if err := (nrpt{}).set(t.Context(), cfg, &state{How: ByNRPT}); err == nil {
		t.Error("a rule for every name was written")
	}
	if _, err := systemRegistry().Exists(nrptLocal); err == nil {
		t.Error("Linux has a registry")
	}
}
