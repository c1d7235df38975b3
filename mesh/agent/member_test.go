package agent

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

func (c *control) join(t *testing.T) Join {
	return Join{StateDir: filepath.Join(t.TempDir(), "deep", "state"), Token: enroll.NewSecret(c.token.Text()), Controllers: []string{c.url()}, Name: "a"}
}

// joinAs opens the state and joins, as RunHost does.
func joinAs(ctx context.Context, t *testing.T, j Join) (*member, error) {
	t.Helper()
	s, err := openState(j, mesh.KindHost)
	if err != nil {
		return nil, err
	}
	defer s.close()
	log, _ := newLog(t)
	m, err := s.join(ctx, quick(), &problems{}, log, api.EnrollRequest{Port: 51820})
	if err == nil {
		t.Cleanup(func() { m.mu.Lock(); defer m.mu.Unlock(); m.forgetClientsLocked() })
	}
	return m, err
}

// files lists what is below dir.
func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestJoin(t *testing.T) {
	c := newControl(t)
	j := c.join(t)
	m, err := joinAs(t.Context(), t, j)
	if err != nil {
		t.Fatal(err)
	}
	if m.node() != (mesh.Node{Kind: mesh.KindHost, Name: "a"}) || !cmp.Equal(m.servers(), []string{c.url()}) {
		t.Errorf("node %s, servers %v", m.node(), m.servers())
	}
	for _, name := range []string{"wireguard.key", "tls.key", "node.json", "lock"} {
		info, err := os.Stat(filepath.Join(j.StateDir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	// A token matters once: with another one, or none, it stays who it is.
	j.Token, j.Controllers = enroll.Secret{}, nil
	again, err := joinAs(t.Context(), t, j)
	if err != nil || again.node() != m.node() || again.wireguard() != m.wireguard() {
		t.Errorf("again: %v", err)
	}
}

// What can never be right ends the agent, and leaves nothing behind.
func TestJoinRefused(t *testing.T) {
	c := newControl(t)
	other, err := enroll.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	token := func(kind, pin string) enroll.Secret {
		x, err := enroll.NewToken(kind, pin)
		if err != nil {
			t.Fatal(err)
		}
		return enroll.NewSecret(x.Text())
	}
	for _, tt := range []struct {
		name   string
		change func(j *Join)
		is     error
		text   string
	}{
		{"no token", func(j *Join) { j.Token = enroll.Secret{} }, ErrNoToken, "weft token create"},
		{"no such file", func(j *Join) { j.Token, j.TokenFile = enroll.Secret{}, "/nonexistent/token" }, os.ErrNotExist, "/nonexistent/token"},
		{"half a token", func(j *Join) { j.Token = enroll.NewSecret(c.token.Text()[:20]) }, enroll.ErrTokenText, "cut off"},
		{"a client's token", func(j *Join) { j.Token = enroll.NewSecret(c.clients.Text()) }, nil, "it lets a client join, and this is a host"},
		{"no controller", func(j *Join) { j.Controllers = nil }, nil, "no controller is known"},
		{"a controller without scheme", func(j *Join) { j.Controllers = []string{"10.0.0.1:7443"} }, nil, "want https://HOST:PORT"},
		{"an unknown token", func(j *Join) { j.Token = token(mesh.KindHost, c.ca.Pin()) }, api.ErrToken, "not known"},
		{"another mesh's token", func(j *Join) { j.Token = token(mesh.KindHost, other.Pin()) }, enroll.ErrPin, "pin"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j := c.join(t)
			root := filepath.Dir(filepath.Dir(j.StateDir))
			tt.change(&j)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := joinAs(ctx, t, j)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
				t.Fatalf("got %v, want %v", err, tt.is)
			}
			said := err.Error() + " / " + mesh.HintOf(err)
			if !strings.Contains(said, tt.text) {
				t.Errorf("%q does not say %q", said, tt.text)
			}
			if secret := j.Token.Reveal(); secret != "" && strings.Contains(said, secret) {
				t.Error("the error holds the token")
			}
			if left := files(t, root); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// A controller that cannot be reached yet is waited for: a host boots before its
// network is up.
func TestJoinWaitsForAController(t *testing.T) {
	c := newControl(t)
	address := c.address
	c.stop()
	j := c.join(t)
	// The first one of the list never answers.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	j.Controllers = []string{"https://" + l.Addr().String(), "https://" + address}
	l.Close()
	done := make(chan error, 1)
	go func() { _, err := joinAs(t.Context(), t, j); done <- err }()
	eventually(t, 5*time.Second, "it has its keys", func() bool { _, err := os.Stat(filepath.Join(j.StateDir, "tls.key")); return err == nil })
	c.start(address)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestStateDirIsForOne(t *testing.T) {
	c := newControl(t)
	j := c.join(t)
	s, err := openState(j, mesh.KindHost)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openState(j, mesh.KindHost); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("a second one: %v", err)
	}
	s.close()
	s, err = openState(j, mesh.KindHost)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	s.close()
}

// A host's state is not taken for a laptop's.
func TestStateOfAnotherKind(t *testing.T) {
	c := newControl(t)
	j := c.join(t)
	if _, err := joinAs(t.Context(), t, j); err != nil {
		t.Fatal(err)
	}
	s, err := openState(j, mesh.KindClient)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	log, _ := newLog(t)
	if _, err := s.join(t.Context(), quick(), &problems{}, log, api.EnrollRequest{}); err == nil || !strings.Contains(err.Error(), "not of a client") {
		t.Errorf("got %v", err)
	}
}

// Certificates of seconds are renewed at two thirds of their life, and never run
// out while a controller is there.
func TestRenewal(t *testing.T) {
	c := newControl(t)
	c.lifetime = 1200 * time.Millisecond
	m, err := joinAs(t.Context(), t, c.join(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.renew(ctx) }()
	eventually(t, 10*time.Second, "two renewals", func() bool {
		if m.expired() {
			t.Error("it ran out")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.renewals >= 2
	})
	cancel()
	<-done
	saved, err := m.identity.Load()
	if err != nil || string(saved.Certificate) != string(m.certificate.Load().Certificate[0]) {
		t.Errorf("the new one is not on disk: %v", err)
	}
}

// A host that was switched off for longer than its certificate lives comes back by
// itself: renewal alone takes an expired one.
func TestRenewalOfAnExpiredCertificate(t *testing.T) {
	c := newControl(t)
	c.lifetime = time.Millisecond
	m, err := joinAs(t.Context(), t, c.join(t))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "it runs out", m.expired)
	if err := m.do(t.Context(), "POST", "/v1/nodes/self/report", api.Report{}, nil); !errors.Is(err, api.ErrUnauthorized) {
		t.Fatalf("an expired certificate is good for a report: %v", err)
	}
	c.lifetime = time.Hour
	if err := m.renewNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.do(t.Context(), "POST", "/v1/nodes/self/report", api.Report{}, nil); err != nil {
		t.Fatalf("after the renewal: %v", err)
	}
}

// Controllers and roots of the view are learnt, kept, and what the user gave stays
// the last resort.
func TestControllersAreLearnt(t *testing.T) {
	c := newControl(t)
	j := c.join(t)
	j.Controllers = []string{c.url() + "/"}
	m, err := joinAs(t.Context(), t, j)
	if err != nil {
		t.Fatal(err)
	}
	v := sampleView(t)
	v.Controllers, v.Roots = []string{"https://10.0.0.1:7443", "https://10.0.0.2:7443"}, []string{c.ca.PEM()}
	m.worked("https://10.0.0.2:7443", v)
	want := []string{"https://10.0.0.2:7443", "https://10.0.0.1:7443", c.url()}
	if diff := cmp.Diff(want, m.servers()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	again, err := joinAs(t.Context(), t, j)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.servers(); len(got) != 3 {
		t.Errorf("after a restart: %v", got)
	}
	// A view with roots that cannot be read changes nothing.
	v.Roots = []string{"nonsense"}
	m.worked("https://10.0.0.2:7443", v)
	if _, err := m.client(); err != nil || m.saved.Roots[0] != c.ca.PEM() {
		t.Errorf("roots: %v, %v", m.saved.Roots, err)
	}
}
