package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/store"
)

// place is a world of controllers that were not started yet.
func place(t *testing.T, e *world.Etcd, l *lab.Lab, controllers int) *world.World {
	t.Helper()
	w := world.Unstarted(world.Config{Lab: l, Bin: bin(t), Etcd: e})
	for range controllers {
		if _, err := w.PlaceController(); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// Who is not who it should be is refused, on either side, and told why in words.
func TestEtcdTLS(t *testing.T) {
	need(t, "ip", "curl")
	t.Parallel()
	l := newLab(t)
	e := newEtcd(t, l)
	ctl := place(t, e, l, 1).Controllers[0]
	strangers, err := world.NewAuthority(filepath.Join(l.Dir(), "strangers"))
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := strangers.Issue("controller")
	if err != nil {
		t.Fatal(err)
	}
	good := e.Flags()
	flags := func(change map[string]string) (out []string) {
		for i := 0; i < len(good); i += 2 {
			if value, changed := change[good[i]]; !changed {
				out = append(out, good[i], good[i+1])
			} else if value != "" {
				out = append(out, good[i], value)
			}
		}
		return out
	}
	for _, tt := range []struct {
		name  string
		flags []string
		code  int
		want  string
		hint  string
	}{
		{"members of another authority", flags(map[string]string{"--etcd-ca": strangers.CA()}), 1, "its certificate is of another authority than the one given", "--etcd-ca"},
		{"members of no authority that the system knows", flags(map[string]string{"--etcd-ca": ""}), 1, "its certificate is of another authority", "--etcd-ca"},
		{"no certificate of its own", flags(map[string]string{"--etcd-cert": "", "--etcd-key": ""}), 1, "it refuses this controller's certificate, or wants one", "--etcd-cert"},
		{"a stranger's certificate", flags(map[string]string{"--etcd-cert": stranger.Cert, "--etcd-key": stranger.Key}), 1, "it refuses this controller's certificate, or wants one", "--etcd-cert"},
		{"a key of another certificate", flags(map[string]string{"--etcd-key": stranger.Key}), 1, "private key does not match", ""},
		{"a certificate without its key", flags(map[string]string{"--etcd-key": ""}), 2, "a certificate and its key come together", ""},
		{"an authority that is no certificate", flags(map[string]string{"--etcd-ca": stranger.Key}), 2, "holds no certificate in PEM", ""},
		{"in clear text", []string{"--etcd", strings.ReplaceAll(e.Endpoints()[0], "https:", "http:")}, 2, "clear text", "https://"},
		{"without a port", []string{"--etcd", "https://192.0.2.1"}, 2, "want https://HOST:PORT", "https://192.0.2.1:2379"},
		{"a certificate for nobody", []string{"--etcd-ca", e.Authority.CA()}, 2, "there is no --etcd", "--etcd https://"},
		{"both kinds of etcd", append(flags(nil), "--etcd-quota", "1GB"), 2, "--etcd-quota is for the etcd inside", ""},
		{"a size that is none", []string{"--etcd-quota", "many"}, 2, "is no size", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			r, err := ctl.Exec(ctx, lab.Command{Path: filepath.Join(bin(t), "weft-controller"), Args: append([]string{"run", "--data-dir", ctl.DataDir}, tt.flags...)})
			if err != nil {
				t.Fatal(err)
			}
			said, hint, _ := strings.Cut(r.Stderr, "hint: ")
			if r.Code != tt.code || !strings.Contains(said, tt.want) || !strings.Contains(hint, tt.hint) {
				t.Errorf("code %d, want %d and %q, hint %q; it says:\n%s", r.Code, tt.code, tt.want, tt.hint, r.Stderr)
			}
			if _, err := os.Stat(filepath.Join(ctl.DataDir, "seal.key")); !errors.Is(err, os.ErrNotExist) {
				t.Error("it has made a mesh")
			}
		})
	}
}

// A controller that is started before etcd waits, says for what, and goes on when
// there is a leader.
func TestControllerWaitsForEtcd(t *testing.T) {
	need(t, "ip", "curl")
	t.Parallel()
	l := newLab(t)
	e := newEtcd(t, l)
	w := place(t, e, l, 1)
	ctl := w.Controllers[0]
	for _, m := range e.Members {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Launch(ctl); err != nil {
		t.Fatal(err)
	}
	logged := func(words ...string) {
		t.Helper()
		for _, word := range words {
			if err := ctl.Process.AwaitLog(t.Context(), word, 15*time.Second); err != nil {
				t.Fatal(err)
			}
		}
	}
	logged("waiting for etcd", "nobody listens there", e.Members[2].URL())
	if err := e.Members[0].Start(); err != nil {
		t.Fatal(err)
	}
	logged("it takes connections and does not answer")
	if err := e.Members[1].Start(); err != nil {
		t.Fatal(err)
	}
	if err := w.AwaitReady(t.Context(), ctl); err != nil {
		t.Fatal(err)
	}
}

// A second controller needs the seal key of the first, and says where from. Two
// that start at once on an empty cluster make one mesh.
func TestSecondController(t *testing.T) {
	need(t, "ip", "curl")
	t.Parallel()
	l := newLab(t)
	w := place(t, newEtcd(t, l), l, 2)
	for _, c := range w.Controllers {
		if err := w.Launch(c); err != nil {
			t.Fatal(err)
		}
	}
	var first, second *world.Controller
	await(t, "one of two to give way", 20*time.Second, func(context.Context) error {
		for i, c := range w.Controllers {
			if c.Process.Exited() {
				first, second = w.Controllers[1-i], c
				return nil
			}
		}
		return errors.New("both run")
	})
	if err := w.AwaitReady(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	said, key := second.Process.Log(), filepath.Join(second.DataDir, "seal.key")
	if second.Process.ExitCode() != 1 || !strings.Contains(said, "not the key that opens its certificate authority") || !strings.Contains(said, key) {
		t.Fatalf("the other one ended with code %d:\n%s", second.Process.ExitCode(), said)
	}
	if _, err := os.Stat(filepath.Join(second.DataDir, "operator.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left a credential that is of no mesh (%v)", err)
	}
	if err := w.CopySealKey(first, second); err != nil {
		t.Fatal(err)
	}
	if err := w.Run(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	var pins []string
	for _, c := range w.Controllers {
		pin, err := os.ReadFile(filepath.Join(c.DataDir, "mesh"))
		if err != nil {
			t.Fatal(err)
		}
		pins = append(pins, string(pin))
		if _, err := os.Stat(filepath.Join(c.DataDir, "etcd")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s has etcd's data in its directory (%v)", c.Name(), err)
		}
	}
	if pins[0] != pins[1] {
		t.Errorf("two meshes: %s", fmt.Sprint(pins))
	}

	// The name of a controller that is alive is taken.
	third, err := w.PlaceController()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.CopySealKey(first, third); err != nil {
		t.Fatal(err)
	}
	third.Flags = append(third.Flags, "--name", strings.NewReplacer(".", "-", ":", "-").Replace(strings.TrimPrefix(first.URL, "https://")))
	if err := w.Launch(third); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	third.Process.Wait(ctx)
	if said := third.Process.Log(); third.Process.ExitCode() != 1 || !strings.Contains(said, "exists already: the controller at "+first.URL+" has it, and is alive") || !strings.Contains(said, "another --name") {
		t.Errorf("a name that is taken: code %d:\n%s", third.Process.ExitCode(), said)
	}
}

// The format of what is stored: raised when all controllers that are alive know a
// newer one; too new, and a controller ends, or does not begin, and says why.
func TestStoredFormat(t *testing.T) {
	need(t, "ip", "curl")
	t.Parallel()
	l := newLab(t)
	e, err := world.NewEtcd(t.Context(), world.EtcdConfig{Lab: l, Bin: bin(t), Members: 1})
	if err != nil {
		t.Fatal(err)
	}
	w := place(t, e, l, 1)
	ctl := w.Controllers[0]
	if err := w.Run(t.Context(), ctl); err != nil {
		t.Fatal(err)
	}
	const key = "/weft/mesh"
	set := func(from, to int) {
		t.Helper()
		record, err := e.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		was, is := fmt.Sprintf(`"schema":%d`, from), fmt.Sprintf(`"schema":%d`, to)
		if !strings.Contains(record, was) {
			t.Fatalf("the record %s has not %s", record, was)
		}
		if err := e.Put(t.Context(), key, strings.Replace(record, was, is, 1)); err != nil {
			t.Fatal(err)
		}
	}
	set(store.Schema, store.Schema-1)
	await(t, "the format to be raised", time.Minute, func(ctx context.Context) error {
		record, err := e.Get(ctx, key)
		if err == nil && !strings.Contains(record, fmt.Sprintf(`"schema":%d`, store.Schema)) {
			err = fmt.Errorf("the record is %s", record)
		}
		return err
	})

	want := fmt.Sprintf("the mesh is stored in format %d, and this program knows formats up to %d", store.Schema+1, store.Schema)
	ended := func(what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		ctl.Process.Wait(ctx)
		if said := ctl.Process.Log(); ctl.Process.ExitCode() != 1 || !strings.Contains(said, want) || !strings.Contains(said, "hint: run the version of weft-controller that last ran here, or a newer one") {
			t.Errorf("%s: code %d:\n%s", what, ctl.Process.ExitCode(), said)
		}
	}
	set(store.Schema, store.Schema+1)
	ended("a controller that runs")
	if err := w.Launch(ctl); err != nil {
		t.Fatal(err)
	}
	ended("a controller that starts")
}
