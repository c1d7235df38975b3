package controller

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// files returns the names and modes below dir, and their contents.
func files(t *testing.T, dir string) (modes map[string]string, contents map[string]string) {
	t.Helper()
	modes, contents = map[string]string{}, map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		modes[e.Name()] = info.Mode().String()
		if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
			contents[e.Name()] = string(b)
		}
	}
	return modes, contents
}

func TestFirstStartMakesAMesh(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Advertise = []string{"https://203.0.113.1:7443"} })
	modes, before := files(t, w.cfg.DataDir)
	if diff := cmp.Diff(map[string]string{"mesh": "-rw-------", "operator.yaml": "-rw-------", "seal.key": "-rw-------"}, modes); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(w.cfg.DataDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v, %v", info.Mode(), err)
	}
	want := "controllers:\n- https://203.0.113.1:7443\npin: " + w.pin + "\ncredential: " + w.cred.Text() + "\n"
	if diff := cmp.Diff(want, before["operator.yaml"]); diff != "" {
		t.Errorf("operator.yaml (-want +got):\n%s", diff)
	}
	if got := do[api.MeshInfo](t, w.admin, "GET", "/v1/mesh", nil); got.Pin != w.pin || got.Version != "test" {
		t.Errorf("mesh %+v", got)
	}
	w.org("acme")

	// The second start finds it all, and changes nothing.
	w.stop()
	w.cfg.Prefix = netip.Prefix{}
	w.start()
	_, after := files(t, w.cfg.DataDir)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("after the second start (-before +after):\n%s", diff)
	}
	if orgs := do[[]api.OrgInfo](t, w.admin, "GET", "/v1/orgs", nil); len(orgs) != 1 || orgs[0].Prefix.String() != "fd12:3456:789a:1::/64" {
		t.Errorf("orgs %+v", orgs)
	}
	// Another controller of the same mesh needs the seal key, and nothing else.
	second := w.cfg
	second.DataDir = filepath.Join(t.TempDir(), "second")
	second.SealKeyFile = filepath.Join(w.cfg.DataDir, "seal.key")
	if err := runUntilReady(t, w, second); err != nil {
		t.Fatal(err)
	}
	if _, got := files(t, second.DataDir); len(got) != 1 || got["mesh"] != before["mesh"] {
		t.Errorf("the second controller's files: %v", got)
	}
}

// runUntilReady runs a controller on w's etcd until it is ready, and stops it. It
// returns why it did not come so far.
func runUntilReady(t *testing.T, w *world, cfg Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ready := false
	cfg.Store = newStore(t, w.etcd, w.root)
	cfg.Ready = func(netip.AddrPort) { ready = true; cancel() }
	err := Run(ctx, cfg)
	if !ready && err == nil {
		t.Fatal("it was never ready, and says nothing")
	}
	return err
}

func TestPrefixIsDrawn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Prefix = netip.Prefix{} })
	w.org("acme")
	p := do[[]api.OrgInfo](t, w.admin, "GET", "/v1/orgs", nil)[0].Prefix
	if a := p.Addr().As16(); a[0] != 0xfd || p.Bits() != 64 {
		t.Errorf("prefix %s", p)
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.stop()
	other := newWorld(t, nil)
	other.stop()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	empty := &world{t: t, etcd: w.etcd, root: "/empty/"}
	data := filepath.Join(t.TempDir(), "new")

	for _, tt := range []struct {
		name   string
		on     *world
		change func(*Config)
		is     error
		says   []string
		hint   string
	}{
		{"port taken", w, func(c *Config) { c.Listen = busy.Addr().String() }, syscall.EADDRINUSE, []string{"listen for the API", busy.Addr().String()}, "--listen"},
		{"metrics port taken", w, func(c *Config) { c.MetricsListen = busy.Addr().String() }, syscall.EADDRINUSE, []string{"listen for the metrics"}, "--metrics"},
		{"data directory of another mesh", w, func(c *Config) {
			c.DataDir = other.cfg.DataDir
			c.SealKeyFile = filepath.Join(w.cfg.DataDir, "seal.key")
		},
			ErrOtherMesh, []string{other.cfg.DataDir, other.pin[:8], w.pin[:8]}, "--data-dir"},
		{"data directory of another mesh, with its key", w, func(c *Config) { c.DataDir = other.cfg.DataDir }, enroll.ErrSeal, []string{"seal.key"}, "copy it from"},
		{"data directory of a mesh, and an empty etcd", empty, nil, ErrOtherMesh, []string{w.cfg.DataDir, "no mesh in etcd"}, "backup"},
		{"no seal key", w, func(c *Config) { c.DataDir = data }, os.ErrNotExist, []string{"there is a mesh in etcd", filepath.Join(data, "seal.key")}, "copy it from"},
		{"another seal key", w, func(c *Config) { c.SealKeyFile = filepath.Join(other.cfg.DataDir, "seal.key") }, enroll.ErrSeal, []string{other.cfg.DataDir}, "copy it from"},
		{"another prefix", w, func(c *Config) { c.Prefix = netip.MustParsePrefix("fd00:1::/32") }, nil, []string{"fd00:1::/32", "fd12:3456:789a::/48"}, "leave --prefix out"},
		{"prefix that is not ULA", empty, func(c *Config) { c.DataDir, c.Prefix = data, netip.MustParsePrefix("2001:db8::/48") }, ipam.ErrPrefix, []string{"fd00::/8"}, "leave --prefix out"},
		{"advertised without a scheme", w, func(c *Config) { c.Advertise = []string{"192.0.2.1:7443"} }, nil, []string{"192.0.2.1:7443"}, "--advertise"},
		{"no data directory", w, func(c *Config) { c.DataDir = "" }, nil, []string{"data directory"}, ""},
		{"negative lifetime", w, func(c *Config) { c.CertLifetime = -time.Second }, nil, []string{"negative"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := w.cfg
			if tt.change != nil {
				tt.change(&cfg)
			}
			_, mine := files(t, w.cfg.DataDir)
			_, theirs := files(t, other.cfg.DataDir)
			err := runUntilReady(t, tt.on, cfg)
			if err == nil {
				t.Fatal("it started")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %v", err, tt.is)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("says %q, want %q in it", err, s)
				}
			}
			if !strings.Contains(mesh.HintOf(err), tt.hint) || tt.hint != "" && mesh.HintOf(err) == "" {
				t.Errorf("hint %q, want %q in it", mesh.HintOf(err), tt.hint)
			}
			_, mineNow := files(t, w.cfg.DataDir)
			_, theirsNow := files(t, other.cfg.DataDir)
			if !cmp.Equal(mine, mineNow) || !cmp.Equal(theirs, theirsNow) {
				t.Error("files have changed")
			}
			if made, _ := files(t, data); len(made) > 0 {
				t.Errorf("files were made: %v", made)
			}
		})
	}
	if _, _, found, err := newStore(t, w.etcd, "/empty/").Load(t.Context()); found || err != nil {
		t.Errorf("a mesh was made where none was to be: %v", err)
	}
}

// A crash between the files and the mesh in etcd leaves files of no mesh: the next
// start makes the mesh, with a credential that is good.
func TestStartAfterACrashInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := enroll.LoadOrCreateSealKey(filepath.Join(dir, "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := enroll.WriteFile(filepath.Join(dir, OperatorFile), []byte("controllers: []\npin: x\ncredential: y\n")); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *Config) { c.DataDir = dir })
	w.org("acme")
	if again, err := enroll.LoadSealKey(filepath.Join(dir, "seal.key")); err != nil || !sameKey(t, key, again) {
		t.Errorf("the seal key was replaced: %v", err)
	}
}

func sameKey(t *testing.T, a, b enroll.SealKey) bool {
	t.Helper()
	ca, err := enroll.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := ca.Seal(a)
	if err != nil {
		t.Fatal(err)
	}
	_, err = enroll.OpenCA(ca.Certificate(), sealed, b)
	return err == nil
}

// Of two controllers that make the mesh at the same moment one wins; the other
// leaves no credential that is good for nothing.
func TestTwoFirstStarts(t *testing.T) {
	t.Parallel()
	shared := &world{t: t, etcd: startEtcd(t), root: "/weft/"}
	type result struct {
		dir string
		err error
	}
	results := make(chan result, 2)
	for range 2 {
		cfg := Config{DataDir: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0"}
		cfg.Store = newStore(t, shared.etcd, shared.root)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cfg.Ready = func(netip.AddrPort) { cancel() }
		go func() { results <- result{cfg.DataDir, Run(ctx, cfg)} }()
	}
	won := 0
	for range 2 {
		r := <-results
		_, got := files(t, r.dir)
		if r.err == nil {
			won++
			continue
		}
		if !errors.Is(r.err, os.ErrNotExist) && !errors.Is(r.err, enroll.ErrSeal) {
			t.Errorf("the loser says %v", r.err)
		}
		if len(got) > 0 {
			t.Errorf("the loser leaves %v", slices.Collect(func(yield func(string) bool) {
				for name := range got {
					if !yield(name) {
						return
					}
				}
			}))
		}
	}
	if won != 1 {
		t.Errorf("%d controllers made the mesh", won)
	}
}

func TestOwnURLs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ listen, want string }{
		{"192.0.2.1:7443", "https://192.0.2.1:7443"},
		{"[2001:db8::1]:7443", "https://[2001:db8::1]:7443"},
	} {
		got, err := ownURLs(tt.listen)
		if err != nil || !cmp.Equal(got, []string{tt.want}) {
			t.Errorf("%s: %v, %v", tt.listen, got, err)
		}
	}
	got, err := ownURLs("[::]:7443")
	if err != nil || len(got) == 0 {
		t.Fatal(got, err)
	}
	cfg := Config{DataDir: "x", Advertise: got}
	if err := cfg.complete(); err != nil {
		t.Error(err)
	}
}

func TestOwnCertificateIsRenewed(t *testing.T) {
	t.Parallel()
	ca, err := enroll.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own := &ownCertificate{ca: ca, lifetime: 150 * time.Millisecond}
	if err := own.renew(); err != nil {
		t.Fatal(err)
	}
	first := own.current.Load()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); own.run(ctx, func(err error) { t.Error(err) }) }()
	eventually(t, "another certificate", func() bool { return own.current.Load() != first })
	cancel()
	<-done
}
