package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// followed returns the controller whose stream a host follows now.
func followed(ctx context.Context, w *world.World, host string) (*world.Controller, error) {
	s, err := w.Status(ctx, w.Hosts[host])
	if err != nil {
		return nil, err
	}
	if !s.Connected {
		return nil, fmt.Errorf("%s follows no controller: %s", host, strings.Join(s.Problems, "; "))
	}
	for _, c := range w.Controllers {
		if c.URL == s.Controller {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%s follows %s, which is none of ours", host, s.Controller)
}

// awaitFollowing waits until a host follows a controller that is not gone.
func awaitFollowing(t *testing.T, w *world.World, host string, gone *world.Controller) (c *world.Controller) {
	t.Helper()
	await(t, host+" to follow another controller", 40*time.Second, func(ctx context.Context) (err error) {
		if c, err = followed(ctx, w, host); err == nil && c == gone {
			err = errors.New("it still follows the one that is gone")
		}
		return err
	})
	return c
}

// asking asks for a name, from a machine, until its end is called.
type asking struct {
	*watcher
	name string
	want []netip.Addr

	cancel context.CancelFunc
	group  sync.WaitGroup
	// Of the goroutine, until it has ended.
	answers int
	missed  []string
}

func ask(t *testing.T, from *world.Machine, name string, want ...netip.Addr) *asking {
	t.Helper()
	a := &asking{watcher: newWatcher(t, from), name: name, want: want}
	ctx, cancel := context.WithCancel(t.Context())
	a.cancel = cancel
	t.Cleanup(a.end)
	await(t, name+" on "+from.Host.Name(), 10*time.Second, func(ctx context.Context) error {
		missing, err := a.missing(ctx)
		if err == nil && len(missing) > 0 {
			err = fmt.Errorf("%v are not in it", missing)
		}
		return err
	})
	a.group.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			missing, err := a.missing(ctx)
			if err == nil {
				a.answers++
			}
			if len(missing) > 0 {
				a.missed = append(a.missed, fmt.Sprintf("%s %v", time.Now().Format("15:04:05.000"), missing))
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	return a
}

// missing asks once, and returns what an answer does not have.
func (a *asking) missing(ctx context.Context) (out []netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	reply, err := dns.Lookup(ctx, a.dial, a.resolver, a.name, "AAAA")
	if err != nil {
		return nil, err
	}
	got := strings.Fields(reply.Short())
	for _, addr := range a.want {
		if !slices.Contains(got, addr.String()) {
			out = append(out, addr)
		}
	}
	return out, nil
}

func (a *asking) end() { a.cancel(); a.group.Wait() }

// One of three controllers crashes with hosts' streams on it. Its lease on their
// presence lives on for a while and then ends; they follow another one by then. No
// answer on any host ever lacks a machine, and changes are known everywhere again
// soon.
func TestControllerCrashTakesNoName(t *testing.T) {
	need(t, "ip", "curl", "nsenter")
	t.Parallel()
	l := newLab(t)
	hosts := []string{"fra1", "ams1", "nrt1"}
	w := newWorld(t, world.Config{Lab: l, Etcd: newEtcd(t, l), Controllers: 3}, hosts...)
	var addrs []netip.Addr
	var shells []*world.Machine
	for _, h := range hosts {
		addrs = append(addrs, start(t, w, h, "acme", "web", "web-"+h).Address)
		shells = append(shells, start(t, w, h, "acme", "shell", "shell-"+h))
	}
	var asked []*asking
	for _, m := range shells {
		asked = append(asked, ask(t, m, "global.web.internal.", addrs...))
	}
	victim, err := followed(t.Context(), w, hosts[0])
	if err != nil {
		t.Fatal(err)
	}
	crashed := time.Now()
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, c := range w.Controllers {
		if c != victim {
			left = append(left, c.URL)
		}
	}
	for _, h := range hosts {
		awaitFollowing(t, w, h, victim)
	}
	t.Logf("all hosts follow other controllers after %s", time.Since(crashed).Round(time.Millisecond))
	addr, err := nodeClient(t, w, hosts[0], left...).register(t.Context(), "acme", "late", "late-1")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range asked {
		if err := a.await(t.Context(), "late.internal.", addr, 5*time.Second); err != nil {
			t.Errorf("a change after the crash, on %s: %v", a.machine.Host.Name(), err)
		}
	}
	// Beyond the end of the lease.
	await(t, "the end of the lease", 30*time.Second, func(ctx context.Context) error {
		if since := time.Since(crashed); since < presenceLease {
			return fmt.Errorf("%s have passed", since.Round(time.Second))
		}
		return nil
	})
	if err := w.AwaitHosts(t.Context()); err != nil {
		t.Error(err)
	}
	for _, a := range asked {
		a.end()
		if len(a.missed) > 0 {
			t.Errorf("on %s %d of %d answers lacked a machine: %s", a.machine.Host.Name(), len(a.missed), a.answers, strings.Join(a.missed[:min(len(a.missed), 5)], "; "))
		}
		if a.answers < 50 {
			t.Errorf("on %s there were only %d answers", a.machine.Host.Name(), a.answers)
		}
	}
}

// presenceLease is longer than hosts stay present after their controller crashed.
const presenceLease = 18 * time.Second

// A controller that cannot reach etcd any more answers reads, says how old they are,
// and refuses changes soon. Whoever knows the other controllers notices nothing.
func TestControllerCutOffFromEtcd(t *testing.T) {
	need(t, "ip", "curl")
	t.Parallel()
	l := newLab(t)
	etcd := newEtcd(t, l)
	w := newWorld(t, world.Config{Lab: l, Etcd: etcd, Controllers: 2})
	cut, other := w.Controllers[1], w.Controllers[0]
	for _, m := range etcd.Members {
		if err := l.Switch().Cut(cut.Name(), m.Name()); err != nil {
			t.Fatal(err)
		}
	}
	var age atomic.Int64
	alone, both := operatorAt(t, w, &age, cut), operatorAt(t, w, nil, cut, other)
	await(t, "an answer that says how old it is", 20*time.Second, func(ctx context.Context) error {
		var orgs []api.OrgInfo
		if err := alone.Do(ctx, "GET", "/v1/orgs", nil, &orgs); err != nil || len(orgs) != 1 {
			return fmt.Errorf("%d orgs, %w", len(orgs), err)
		}
		if age.Load() == 0 {
			return errors.New("it does not")
		}
		return nil
	})
	for _, change := range []struct {
		method, path string
		in           any
	}{{"POST", "/v1/orgs", api.CreateOrg{Name: "late"}}, {"DELETE", "/v1/orgs/acme", nil}} {
		began := time.Now()
		err := alone.Do(t.Context(), change.method, change.path, change.in, nil)
		if took := time.Since(began); !errors.Is(err, api.ErrUnavailable) || took > 6*time.Second {
			t.Errorf("%s at the controller alone, after %s: %v", change.method, took, err)
		}
	}
	if err := both.Do(t.Context(), "POST", "/v1/orgs", api.CreateOrg{Name: "late"}, nil); err != nil {
		t.Errorf("with another controller: %v", err)
	}
	for _, m := range etcd.Members {
		if err := l.Switch().Restore(cut.Name(), m.Name()); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the controller to know of it, and to make changes", 30*time.Second, func(ctx context.Context) error {
		if err := alone.Do(ctx, "GET", "/v1/orgs/late", nil, nil); err != nil {
			return err
		}
		err := alone.Do(ctx, "POST", "/v1/orgs", api.CreateOrg{Name: "later"}, nil)
		if errors.Is(err, api.ErrExists) {
			return nil
		}
		return err
	})
}

// operatorAt is a client of some controllers, of which the first is asked first.
func operatorAt(t *testing.T, w *world.World, age *atomic.Int64, at ...*world.Controller) *api.Client {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.Controllers[0].DataDir, "operator.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var f enroll.OperatorFile
	if err := yaml.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	cfg := api.Config{TLS: enroll.ClientTLS(enroll.ClientConfig{Pin: f.Pin}), Bearer: f.Credential, Dial: w.Controller.DialContext}
	for _, c := range at {
		cfg.Servers = append(cfg.Servers, c.URL)
	}
	if age != nil {
		cfg.OnAge = func(d time.Duration) { age.Store(int64(d)) }
	}
	c, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
