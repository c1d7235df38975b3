package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/etcd"
)

// shared is one etcd for all tests that do not break it: each has a root of its own.
var (
	shared *etcd.Server
	roots  atomic.Int64
)

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weft-store")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	shared, err = etcd.Start(context.Background(), serverConfig(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := shared.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func serverConfig(dir string) etcd.Config {
	return etcd.Config{Dir: dir, Fast: true, UnsafeNoFsync: true, WALSegment: 1 << 20}
}

// ownServer is for tests that compact, stop or fill it.
func ownServer(t *testing.T) *etcd.Server {
	t.Helper()
	server, err := etcd.Start(t.Context(), serverConfig(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server
}

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

const prefix = "fd12:3456:789a::/48"

func testPlan(t testing.TB) ipam.Plan {
	t.Helper()
	plan, err := ipam.NewPlan(netip.MustParsePrefix(prefix))
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func newStore(t testing.TB, c Config) *Store {
	t.Helper()
	if c.Client == nil {
		c.Client = shared.Client()
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// again is another controller's Store on the same mesh.
func again(t testing.TB, s *Store) *Store { return newStore(t, s.config) }

// newMesh is a mesh with regions fra and nrt. It does not run.
func newMesh(t testing.TB, c Config) *Store {
	t.Helper()
	if c.Root == "" {
		c.Root = fmt.Sprintf("/test-%d/", roots.Add(1))
	}
	s := newStore(t, c)
	created, err := s.Init(t.Context(), genesis(t, "first"))
	if err != nil || !created {
		t.Fatalf("init: %v %v", created, err)
	}
	for _, r := range []string{"fra", "nrt"} {
		must(s.CreateRegion(t.Context(), "test", r, nil))(t)
	}
	return s
}

func genesis(t testing.TB, operator string) Genesis {
	return Genesis{
		Mesh:     mesh.Mesh{Plan: testPlan(t)},
		CA:       CARecord{ID: "ca1", Certificate: []byte("certificate"), SealedKey: []byte("sealed")},
		Operator: mesh.Operator{ID: operator, Hash: hash(operator), Role: mesh.RoleOperator},
	}
}

// run starts s and waits until it is ready; it ends with the test.
func run(t testing.TB, s *Store) *Store {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	select {
	case <-s.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("the mirror is not ready")
	}
	return s
}

// must returns what a change gave, or ends the test.
func must[T any](v T, rev int64, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if rev <= 0 {
			t.Fatal("a change without a revision")
		}
		return v
	}
}

// done is must for a removal.
func done(rev int64, err error) func(testing.TB) int64 { return must(rev, rev, err) }

// mirroredAt waits until s has rev and returns its State.
func mirroredAt(t testing.TB, s *Store, rev int64) mesh.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Wait(ctx, rev); err != nil {
		t.Fatal(err)
	}
	return s.State()
}

// eventually waits for a condition, looking again whenever s changes.
func eventually(t testing.TB, s *Store, what string, holds func(mesh.State) bool) {
	t.Helper()
	wake, cancel := s.Subscribe()
	defer cancel()
	deadline := time.After(15 * time.Second)
	for !holds(s.State()) {
		select {
		case <-wake:
		case <-deadline:
			t.Fatalf("never came true: %s", what)
		}
	}
}

func hash(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

func key(name string) mesh.Key {
	k, err := wgtypes.NewKey(hash("key of " + name))
	if err != nil {
		panic(err)
	}
	return mesh.Key(k)
}

// token creates one and returns how to use it; its secret is its id.
func token(t testing.TB, s *Store, tok mesh.Token) TokenUse {
	t.Helper()
	if tok.Hash == nil {
		tok.Hash = hash(tok.ID)
	}
	if tok.Expires.IsZero() {
		tok.Expires = s.now().Add(time.Hour)
	}
	must(s.CreateToken(t.Context(), "test", tok))(t)
	return TokenUse{ID: tok.ID, Hash: tok.Hash}
}

func hostSpec(name string) HostSpec {
	return HostSpec{
		Name: name, Region: "fra", Key: key(name), TLSKey: "tls of " + name,
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")},
	}
}

// host enrols a host that may carry orgs (all by default).
func host(t testing.TB, s *Store, name string, orgs ...string) mesh.Host {
	t.Helper()
	if orgs == nil {
		orgs = []string{mesh.AllOrgs}
	}
	use := token(t, s, mesh.Token{ID: "t-" + name, Kind: mesh.KindHost, Orgs: orgs})
	return must(s.EnrollHost(t.Context(), hostSpec(name), use))(t)
}

func org(t testing.TB, s *Store, name string) mesh.Org {
	t.Helper()
	return must(s.CreateOrg(t.Context(), "test", name))(t)
}

func machine(t testing.TB, s *Store, org, app, id, host string) mesh.Machine {
	t.Helper()
	return must(s.CreateMachine(t.Context(), "test", MachineSpec{Org: org, App: app, ID: id, Host: host}))(t)
}

func client(t testing.TB, s *Store, org, name, gateway string) mesh.Client {
	t.Helper()
	return must(s.CreateClient(t.Context(), "test", ClientSpec{Org: org, Name: name, Key: key(org + name), Gateway: gateway}))(t)
}

// keysBelow lists what is stored below a prefix, without the root.
func keysBelow(t testing.TB, s *Store, prefix string) []string {
	t.Helper()
	r, err := s.client.Get(t.Context(), s.root+prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, kv := range r.Kvs {
		out = append(out, strings.TrimPrefix(string(kv.Key), s.root))
	}
	return out
}

// compare knows values that hold unexported fields and times by their instant.
var compare = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}, ipam.Plan{}, mesh.Key{}),
	cmpopts.EquateApproxTime(0),
	cmpopts.EquateEmpty(),
}
