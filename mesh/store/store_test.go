package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft/mesh"
)

func TestNew(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{}); err == nil {
		t.Error("a Store without a client")
	}
	if _, err := New(Config{Client: shared.Client(), Root: "/weft"}); err == nil {
		t.Error("a root without a final slash")
	}
}

func TestInitAndLoad(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newStore(t, Config{Root: fmt.Sprintf("/init-%d/", roots.Add(1)), Now: c.Now})
	if _, _, found, err := s.Load(t.Context()); found || err != nil {
		t.Fatalf("load of nothing: found %v, %v", found, err)
	}
	if _, _, err := s.CreateOrg(t.Context(), "test", "acme"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an org without a mesh: %v", err)
	}
	// Two controllers start at once: one of them creates the mesh.
	var created atomic.Int64
	var both sync.WaitGroup
	for _, name := range []string{"one", "two"} {
		other := again(t, s)
		both.Go(func() {
			did, err := other.Init(t.Context(), genesis(t, name))
			if err != nil {
				t.Error(err)
			}
			if did {
				created.Add(1)
			}
		})
	}
	both.Wait()
	if n := created.Load(); n != 1 {
		t.Fatalf("%d of two controllers created the mesh, want 1", n)
	}
	m, cas, found, err := s.Load(t.Context())
	if err != nil || !found {
		t.Fatalf("load: found %v, %v", found, err)
	}
	if m.Plan != testPlan(t) || !m.Created.Equal(c.Now()) || m.Schema != Schema || m.Epoch == 0 {
		t.Errorf("mesh: %+v", m)
	}
	want := []CARecord{genesis(t, "").CA}
	if diff := cmp.Diff(want, cas); diff != "" {
		t.Errorf("certificate authorities (-want +got):\n%s", diff)
	}
	if got := keysBelow(t, s, keyOperators); len(got) != 1 {
		t.Errorf("operators: %q, want the winner's", got)
	}
	if _, err := s.Init(t.Context(), Genesis{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("init with nothing: %v", err)
	}
}

func TestLoadRefusesANewerFormat(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	newer := fmt.Sprintf(`{"schema":%d,"prefix":{"written":"otherwise"}}`, Schema+1)
	if _, err := s.client.Put(t.Context(), s.root+keyMesh, newer); err != nil {
		t.Fatal(err)
	}
	_, _, found, err := s.Load(t.Context())
	if !found || err == nil || !strings.Contains(err.Error(), fmt.Sprintf("is stored in format %d, and this program knows formats up to %d", Schema+1, Schema)) || mesh.HintOf(err) == "" {
		t.Fatalf("found %v, error %v, hint %q", found, err, mesh.HintOf(err))
	}
}

// One life of everything, against what the State then is.
func TestChanges(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := run(t, newMesh(t, Config{Now: c.Now}))
	ctx := t.Context()
	plan := testPlan(t)

	acme, beta := org(t, s, "acme"), org(t, s, "beta")
	if acme.Network != 1 || beta.Network != 2 {
		t.Errorf("networks %d and %d, want 1 and 2", acme.Network, beta.Network)
	}
	h := host(t, s, "fra1", "acme")
	want := mesh.Host{
		Name: "fra1", Number: 1, Region: "fra", RegionNumber: 1, Key: key("fra1"), TLSKey: "tls of fra1",
		Endpoints: hostSpec("fra1").Endpoints, Orgs: []string{"acme"}, Created: c.Now(),
	}
	if diff := cmp.Diff(want, h, compare); diff != "" {
		t.Errorf("host (-want +got):\n%s", diff)
	}
	m := must(s.CreateMachine(ctx, "test", MachineSpec{
		Org: "acme", App: "web", ID: "m1", Group: "web", Meta: map[string]string{"k": "v"}, Host: "fra1", Stable: true,
	}))(t)
	if got, want := m.Endpoint, plan.Endpoint(1, h.Position(), 1); got != want {
		t.Errorf("endpoint %s, want %s", got, want)
	}
	drawn := must(s.CreateMachine(ctx, "test", MachineSpec{Org: "acme", App: "web", Host: "fra1"}))(t)
	if len(drawn.ID) != 14 {
		t.Errorf("drawn id %q, want 14 digits", drawn.ID)
	}
	cl := client(t, s, "acme", "laptop", "")
	if cl.Home != "fra1" || cl.Gateway != "fra1" || cl.Endpoint != plan.Endpoint(1, h.Position(), 3) {
		t.Errorf("client: %+v", cl)
	}
	m = must(s.SetMachine(ctx, "test", MachineRef{"acme", "m1", "fra1"}, MachineChange{State: new(mesh.StateStopped)}))(t)
	cordoned := true
	h, rev, err := s.SetHost(ctx, "test", "fra1", HostChange{Cordoned: &cordoned})
	must(h, rev, err)(t)

	state := mirroredAt(t, s, rev)
	if got, _ := state.Machines.Get("acme/m1"); !cmp.Equal(m, got, compare) || got.State != mesh.StateStopped {
		t.Errorf("machine in the mirror: %s", cmp.Diff(m, got, compare))
	}
	if got, _ := state.Hosts.Get("fra1"); !cmp.Equal(h, got, compare) || !got.Cordoned {
		t.Errorf("host in the mirror: %s", cmp.Diff(h, got, compare))
	}
	if got, _ := state.Clients.Get("acme/laptop"); !cmp.Equal(cl, got, compare) {
		t.Errorf("client in the mirror: %s", cmp.Diff(cl, got, compare))
	}
	if got, _ := state.Apps.Get("acme/web"); got.Name != "web" || got.Org != "acme" {
		t.Errorf("the app was not made with its first machine: %+v", got)
	}
	if node, ok := state.NodeByTLSKey("tls of fra1"); !ok || node.String() != "host/fra1" {
		t.Errorf("node by TLS key: %v %v", node, ok)
	}

	// Refused while something is in the way.
	for _, tt := range []struct {
		name string
		call func() (int64, error)
		want error
		says string
	}{
		{"app with machines", func() (int64, error) { return s.RemoveApp(ctx, "test", "acme", "web") }, ErrConflict, "it has 2 machines"},
		{"region with hosts", func() (int64, error) { return s.RemoveRegion(ctx, "test", "fra") }, ErrConflict, "it has 1 host;"},
		{"last operator", func() (int64, error) { return s.RemoveOperator(ctx, "test", "first") }, ErrConflict, "the last one"},
		{"machine elsewhere", func() (int64, error) { return s.RemoveMachine(ctx, "test", MachineRef{"acme", "m1", "nrt1"}) }, ErrConflict, "not on host nrt1"},
	} {
		if _, err := tt.call(); !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.says) {
			t.Errorf("%s: error %v, want %v that says %q", tt.name, err, tt.want, tt.says)
		}
	}

	done(s.RemoveMachine(ctx, "test", MachineRef{Org: "acme", ID: "m1"}))(t)
	done(s.RemoveMachine(ctx, "test", MachineRef{Org: "acme", ID: drawn.ID}))(t)
	done(s.RemoveApp(ctx, "test", "acme", "web"))(t)
	done(s.RemoveClient(ctx, "test", "acme", "laptop"))(t)
	done(s.RemoveHost(ctx, "test", "fra1"))(t)
	done(s.RemoveRegion(ctx, "test", "fra"))(t)
	done(s.RemoveToken(ctx, "test", "t-fra1"))(t)
	must(s.CreateOperator(ctx, "test", mesh.Operator{ID: "second", Hash: hash("2"), Role: mesh.RoleOperator}))(t)
	rev = done(s.RemoveOperator(ctx, "test", "first"))(t)
	if got := keysBelow(t, s, "keys/"); len(got) > 0 {
		t.Errorf("keys left: %q", got)
	}
}

func second(_ int64, err error) error { return err }

func TestRefusals(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newMesh(t, Config{Now: c.Now})
	ctx := t.Context()
	org(t, s, "acme")
	org(t, s, "beta")
	host(t, s, "fra1", "acme")
	hidden := hostSpec("nat1")
	hidden.NAT, hidden.Endpoints = true, nil
	must(s.EnrollHost(ctx, hidden, token(t, s, mesh.Token{ID: "nat", Kind: mesh.KindHost, Orgs: []string{"all"}})))(t)
	client(t, s, "acme", "laptop", "fra1")
	machine(t, s, "acme", "web", "m1", "fra1")
	regional := token(t, s, mesh.Token{ID: "regional", Kind: mesh.KindHost, Orgs: []string{"all"}, Region: "nrt"})
	spare := token(t, s, mesh.Token{ID: "spare", Kind: mesh.KindHost, Orgs: []string{"all"}, Uses: 9})
	expires := s.now().Add(time.Hour)

	stranger := func(change func(*HostSpec)) HostSpec {
		spec := hostSpec("new")
		change(&spec)
		return spec
	}
	for _, tt := range []struct {
		name string
		want error
		call func() error
	}{
		{"org twice", ErrExists, func() error { return third(s.CreateOrg(ctx, "", "acme")) }},
		{"org with a bad name", ErrInvalid, func() error { return third(s.CreateOrg(ctx, "", "Acme")) }},
		{"org called all", ErrInvalid, func() error { return third(s.CreateOrg(ctx, "", "all")) }},
		{"org that is not there", ErrNotFound, func() error { return second(s.RemoveOrg(ctx, "", "gone")) }},
		{"region twice", ErrExists, func() error { return third(s.CreateRegion(ctx, "", "fra", nil)) }},
		{"region with a meaning", ErrInvalid, func() error { return third(s.CreateRegion(ctx, "", "top2", nil)) }},
		{"region that is not there", ErrNotFound, func() error { return second(s.RemoveRegion(ctx, "", "gone")) }},
		{"app twice", ErrExists, func() error { return third(s.CreateApp(ctx, "", mesh.App{Org: "acme", Name: "web"})) }},
		{"app of no org", ErrNotFound, func() error { return third(s.CreateApp(ctx, "", mesh.App{Org: "gone", Name: "web"})) }},
		{"app with a reserved name", ErrInvalid, func() error { return third(s.CreateApp(ctx, "", mesh.App{Org: "acme", Name: "google"})) }},
		{"app that is not there", ErrNotFound, func() error { return second(s.RemoveApp(ctx, "", "acme", "gone")) }},
		{"machine twice", ErrExists, func() error {
			return third(s.CreateMachine(ctx, "", MachineSpec{Org: "acme", App: "other", ID: "m1", Host: "fra1"}))
		}},
		{"machine of no org", ErrNotFound, func() error {
			return third(s.CreateMachine(ctx, "", MachineSpec{Org: "gone", App: "web", Host: "fra1"}))
		}},
		{"machine on no host", ErrNotFound, func() error {
			return third(s.CreateMachine(ctx, "", MachineSpec{Org: "acme", App: "web", Host: "gone"}))
		}},
		{"machine on a host that may not carry the org", ErrConflict, func() error {
			return third(s.CreateMachine(ctx, "", MachineSpec{Org: "beta", App: "web", Host: "fra1"}))
		}},
		{"machine with much metadata", ErrInvalid, func() error {
			return third(s.CreateMachine(ctx, "", MachineSpec{Org: "acme", App: "web", Host: "fra1", Meta: map[string]string{"k": strings.Repeat("v", 256)}}))
		}},
		{"machine state", ErrInvalid, func() error {
			return third(s.SetMachine(ctx, "", MachineRef{Org: "acme", ID: "m1"}, MachineChange{State: new("paused")}))
		}},
		{"machine that is not there", ErrNotFound, func() error { return second(s.RemoveMachine(ctx, "", MachineRef{Org: "acme", ID: "gone"})) }},
		{"client twice", ErrExists, func() error {
			return third(s.CreateClient(ctx, "", ClientSpec{Org: "acme", Name: "laptop", Key: key("x")}))
		}},
		{"client with a host's key", ErrExists, func() error {
			return third(s.CreateClient(ctx, "", ClientSpec{Org: "acme", Name: "thief", Key: key("fra1")}))
		}},
		{"client without a key", ErrInvalid, func() error { return third(s.CreateClient(ctx, "", ClientSpec{Org: "acme", Name: "x"})) }},
		{"client of an org that no host may carry openly", ErrConflict, func() error {
			return third(s.CreateClient(ctx, "", ClientSpec{Org: "beta", Name: "x", Key: key("x")}))
		}},
		{"client at a gateway behind NAT", ErrConflict, func() error {
			return third(s.CreateClient(ctx, "", ClientSpec{Org: "acme", Name: "x", Key: key("x"), Gateway: "nat1"}))
		}},
		{"client to a gateway that may not carry the org", ErrConflict, func() error {
			return third(s.CreateClient(ctx, "", ClientSpec{Org: "beta", Name: "x", Key: key("x"), Gateway: "fra1"}))
		}},
		{"gateway that is not there", ErrNotFound, func() error { return third(s.SetGateway(ctx, "", "acme", "laptop", "gone")) }},
		{"gateway behind NAT", ErrConflict, func() error { return third(s.SetGateway(ctx, "", "acme", "laptop", "nat1")) }},
		{"host twice", ErrExists, func() error {
			spec := hostSpec("fra1")
			spec.Key = key("another")
			return third(s.EnrollHost(ctx, spec, spare))
		}},
		{"host with another's WireGuard key", ErrExists, func() error {
			return third(s.EnrollHost(ctx, stranger(func(h *HostSpec) { h.Key = key("fra1") }), spare))
		}},
		{"host with another's TLS key", ErrExists, func() error {
			return third(s.EnrollHost(ctx, stranger(func(h *HostSpec) { h.TLSKey = "tls of fra1" }), spare))
		}},
		{"host in no region", ErrInvalid, func() error {
			return third(s.EnrollHost(ctx, stranger(func(h *HostSpec) { h.Region = "" }), spare))
		}},
		{"host in a region that is not there", ErrNotFound, func() error {
			return third(s.EnrollHost(ctx, stranger(func(h *HostSpec) { h.Region = "gone" }), spare))
		}},
		{"host in another region than its token's", ErrConflict, func() error { return third(s.EnrollHost(ctx, hostSpec("new"), regional)) }},
		{"host with an endpoint that nobody reaches", ErrInvalid, func() error {
			return third(s.EnrollHost(ctx, stranger(func(h *HostSpec) { h.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:1")} }), spare))
		}},
		{"host change of nobody", ErrNotFound, func() error { return third(s.SetHost(ctx, "", "gone", HostChange{})) }},
		{"host that is not there", ErrNotFound, func() error { return second(s.RemoveHost(ctx, "", "gone")) }},
		{"token without a hash", ErrInvalid, func() error {
			return third(s.CreateToken(ctx, "", mesh.Token{ID: "x", Kind: mesh.KindHost, Orgs: []string{"all"}, Expires: expires}))
		}},
		{"token for an org that is not there", ErrNotFound, func() error {
			return third(s.CreateToken(ctx, "", mesh.Token{ID: "x", Hash: hash("x"), Kind: mesh.KindHost, Orgs: []string{"gone"}, Expires: expires}))
		}},
		{"token of a client for two orgs", ErrInvalid, func() error {
			return third(s.CreateToken(ctx, "", mesh.Token{ID: "x", Hash: hash("x"), Kind: mesh.KindClient, Org: "acme", Orgs: []string{"beta"}, Expires: expires}))
		}},
		{"token twice", ErrExists, func() error {
			return third(s.CreateToken(ctx, "", mesh.Token{ID: "spare", Hash: hash("x"), Kind: mesh.KindHost, Orgs: []string{"all"}, Expires: expires}))
		}},
		{"token that is not there", ErrNotFound, func() error { return second(s.RemoveToken(ctx, "", "gone")) }},
		{"operator with an org", ErrInvalid, func() error {
			return third(s.CreateOperator(ctx, "", mesh.Operator{ID: "x", Hash: hash("x"), Role: mesh.RoleOperator, Org: "acme"}))
		}},
		{"admin of no org", ErrInvalid, func() error {
			return third(s.CreateOperator(ctx, "", mesh.Operator{ID: "x", Hash: hash("x"), Role: mesh.RoleOrgAdmin}))
		}},
		{"admin of an org that is not there", ErrNotFound, func() error {
			return third(s.CreateOperator(ctx, "", mesh.Operator{ID: "x", Hash: hash("x"), Role: mesh.RoleOrgAdmin, Org: "gone"}))
		}},
		{"operator that is not there", ErrNotFound, func() error { return second(s.RemoveOperator(ctx, "", "gone")) }},
		{"report of a host that is not there", ErrNotFound, func() error { return s.SaveReport(ctx, "gone", 1) }},
		{"report that was never made", ErrNotFound, func() error { return s.LoadReport(ctx, "fra1", new(int)) }},
	} {
		if err := tt.call(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if got := keysBelow(t, s, keyHosts); len(got) != 2 {
		t.Errorf("hosts after refusals: %q", got)
	}
	// Not one use of the token went with a refusal.
	r, err := s.client.Get(ctx, s.root+tokenKey("spare"))
	if err != nil || !strings.Contains(string(r.Kvs[0].Value), `"uses":9`) {
		t.Errorf("the token after refusals: %s %v", r.Kvs[0].Value, err)
	}
}

func third[T any](_ T, _ int64, err error) error { return err }

func TestCordonedHostGetsNoNewMachines(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	org(t, s, "acme")
	host(t, s, "fra1")
	yes, no := true, false
	must(s.SetHost(t.Context(), "test", "fra1", HostChange{Cordoned: &yes}))(t)
	_, _, err := s.CreateMachine(t.Context(), "test", MachineSpec{Org: "acme", App: "web", Host: "fra1"})
	if !errors.Is(err, ErrConflict) {
		t.Errorf("a machine on a cordoned host: %v", err)
	}
	must(s.SetHost(t.Context(), "test", "fra1", HostChange{Cordoned: &no}))(t)
	machine(t, s, "acme", "web", "m1", "fra1")
}

func TestEvents(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newMesh(t, Config{Now: c.Now, AuditAge: 24 * time.Hour, AuditSize: 130})
	for i := range 5 {
		c.add(time.Second)
		must(s.CreateOrg(t.Context(), "operator/ann", fmt.Sprint("org", i)))(t)
	}
	got, err := s.Events(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	want := []mesh.Event{
		{Time: c.Now().Add(-time.Second), Actor: "operator/ann", Action: "org.create", Target: "org3"},
		{Time: c.Now(), Actor: "operator/ann", Action: "org.create", Target: "org4"},
	}
	if diff := cmp.Diff(want, got, compare, cmpopts.IgnoreFields(mesh.Event{}, "ID")); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if got, err := s.Events(t.Context(), 0); err != nil || len(got) != 0 {
		t.Errorf("no events: %v %v", got, err)
	}

	// Capped by size, the oldest first, in more than one transaction.
	for i := range 260 {
		c.add(time.Second)
		e := mesh.Event{ID: c.Now().Format(auditTime) + "-00", Time: c.Now(), Target: fmt.Sprint(i)}
		text, _ := encode(nil, e)
		if _, err := s.client.Put(t.Context(), s.root+keyAudit+e.ID, string(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.trim(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err = s.Events(t.Context(), 1000)
	if err != nil || len(got) != 130 || got[0].Target != "130" || got[129].Target != "259" {
		t.Errorf("after trimming by size: %d events, %v", len(got), err)
	}
	// And by age.
	c.add(24*time.Hour - 9*time.Second)
	if err := s.trim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err = s.Events(t.Context(), 1000); err != nil || len(got) != 10 {
		t.Errorf("after trimming by age: %d events, want 10 (%v)", len(got), err)
	}
}

func TestReports(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	host(t, s, "fra1")
	type report struct{ Version string }
	if err := s.SaveReport(t.Context(), "fra1", report{"v1"}); err != nil {
		t.Fatal(err)
	}
	var got report
	if err := s.LoadReport(t.Context(), "fra1", &got); err != nil || got.Version != "v1" {
		t.Fatalf("report %+v, %v", got, err)
	}
	done(s.RemoveHost(t.Context(), "test", "fra1"))(t)
	if err := s.LoadReport(t.Context(), "fra1", &got); !errors.Is(err, ErrNotFound) {
		t.Errorf("the report of a removed host: %v", err)
	}
}

// Not parallel: it counts goroutines.
func TestRunLeavesNothingBehind(t *testing.T) {
	s := newMesh(t, Config{})
	host(t, s, "h")
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-s.Ready()
	if err := s.Present(t.Context(), "h", "c"); err != nil && !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	// The watch has begun: etcd's client keeps the goroutines of one whose beginning
	// was cancelled until it is closed.
	org(t, s, "acme")
	eventually(t, s, "the watch has begun", func(state mesh.State) bool { return state.Orgs.Has("acme") })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v", err)
	}
	goleak.VerifyNone(t, before)
	if err := s.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
}
