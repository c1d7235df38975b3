package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/mesh"
)

// sameView lets cmp look into a view; a Plan is compared as a whole.
var sameView = cmp.Comparer(func(a, b mesh.View) bool { return cmp.Equal(viewText(a), viewText(b)) })

func viewText(v mesh.View) string {
	b, err := encodeView(&v, true, time.Unix(0, 0))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func keyOf(b byte) wgtypes.Key { return wgtypes.Key{31: b} }

// sampleState is a mesh of three hosts, two orgs, machines and clients.
func sampleState(t testing.TB) mesh.State {
	p := testPlan(t)
	var s mesh.State
	s = s.With(
		mesh.Change{Key: "mesh", Object: mesh.Mesh{Plan: p, Epoch: 1}},
		mesh.Change{Key: "regions/fra", Object: mesh.Region{Name: "fra", Number: 129, At: &mesh.Point{Latitude: 50.1, Longitude: 8.7}}},
		mesh.Change{Key: "regions/nrt", Object: mesh.Region{Name: "nrt", Number: 193}},
		mesh.Change{Key: "orgs/acme", Object: mesh.Org{Name: "acme", Network: 1}},
		mesh.Change{Key: "orgs/other", Object: mesh.Org{Name: "other", Network: 2}},
		mesh.Change{Key: "apps/acme/web", Object: mesh.App{Org: "acme", Name: "web", Answer: "all", TTL: 9}},
	)
	for i, name := range []string{"a", "b", "c"} {
		h := mesh.Host{Name: name, Number: uint32(i + 1), Region: "fra", RegionNumber: 129, Key: mesh.Key(keyOf(byte(i + 1))), TLSKey: name, Orgs: []string{mesh.AllOrgs}}
		if name == "c" {
			h.Region, h.RegionNumber, h.Cordoned = "nrt", 193, true
		}
		h.Endpoints = append(h.Endpoints, addrPort("192.0.2."+string(rune('1'+i))+":51820"))
		s = s.With(mesh.Change{Key: "hosts/" + name, Object: h}, mesh.Change{Key: "presence/" + name, Object: mesh.Presence{Host: name}},
			mesh.Change{Key: "machines/acme/web-" + name, Object: mesh.Machine{
				Org: "acme", ID: "web-" + name, App: "web", Group: "g", Meta: map[string]string{"k": "v"}, Host: name,
				Endpoint: p.Endpoint(1, h.Position(), 1), State: mesh.StateStarted, Created: time.Unix(int64(i), 0).UTC(),
			}})
	}
	a, _ := s.Hosts.Get("a")
	b, _ := s.Hosts.Get("b")
	return s.With(
		mesh.Change{Key: "machines/other/db", Object: mesh.Machine{Org: "other", ID: "db", App: "db", Host: "a", Endpoint: p.Endpoint(2, a.Position(), 2), State: mesh.StateStopped}},
		mesh.Change{Key: "clients/acme/anna", Object: mesh.Client{Org: "acme", Name: "anna", Key: mesh.Key(keyOf(50)), Endpoint: p.Endpoint(1, b.Position(), 9), Home: "b", Gateway: "a"}},
	)
}

func sampleView(t testing.TB) *mesh.View {
	v, ok := sampleState(t).View(mesh.Node{Kind: mesh.KindHost, Name: "a"}, mesh.Deployment{Controllers: []string{"https://192.0.2.9:7443"}})
	if !ok {
		t.Fatal("no view")
	}
	v.Revision = mesh.Revision{Epoch: 1, Revision: 7}
	return &v
}

func TestCacheRoundTrip(t *testing.T) {
	v := sampleView(t)
	dir := t.TempDir()
	b, err := encodeView(v, true, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, cacheFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readCache(dir, v.Self)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(*v, *got.view, sameView); diff != "" || !got.whole {
		t.Errorf("whole %t (-want +got):\n%s", got.whole, diff)
	}
	if k, err := readCache(t.TempDir(), v.Self); k.view != nil || err != nil {
		t.Errorf("no cache: %v, %v", k.view, err)
	}
}

// What a full disk, a crash or a curious person can do to the file.
func TestDamagedCacheIsRefusedAndPutAside(t *testing.T) {
	v := sampleView(t)
	good, err := encodeView(v, true, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other := *v
	other.Self = mesh.Node{Kind: mesh.KindHost, Name: "z"}
	strange, err := encodeView(&other, true, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"empty":            {},
		"cut":              good[:len(good)/2],
		"zeros":            make([]byte, len(good)),
		"not JSON":         []byte("hello"),
		"changed":          bytes.Replace(good, []byte("192.0.2.2"), []byte("192.0.2.7"), 1),
		"another version":  bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1),
		"another node's":   strange,
		"something behind": append(bytes.Clone(good), good...),
		"no view":          []byte(`{"version":1,"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, cacheFile)
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			k, err := readCache(dir, v.Self)
			if k.view != nil || !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), path+".damaged") || mesh.HintOf(err) == "" {
				t.Fatalf("got %v, %v", k.view, err)
			}
			if aside, err := os.ReadFile(path + ".damaged"); err != nil || !bytes.Equal(aside, text) {
				t.Errorf("put aside: %v", err)
			}
			if k, err := readCache(dir, mesh.Node{}); k.view != nil || err != nil {
				t.Errorf("met again: %v, %v", k.view, err)
			}
		})
	}
}

// A damaged cache is a problem in Status and a line in the log, and not the end.
func TestFollowerStartsWithADamagedCache(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, cacheFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, text := newLog(t)
	var p problems
	f := newFollower(mesh.Node{Kind: mesh.KindHost, Name: "a"}, dir, quick(), nil, &p, log)
	f.load()
	if f.View() != nil || len(p.list()) != 1 || !strings.Contains(p.list()[0], "damaged") || !text.contains("the last view is not used") {
		t.Errorf("view %v, problems %v, log %s", f.View(), p.list(), text)
	}
}

// Many changes are one write, and the last one is kept when the agent ends.
func TestCacheWritesAreCoalesced(t *testing.T) {
	dir := t.TempDir()
	v := versionOf(sampleView(t))
	wake := make(chan struct{}, 1)
	writes := 0
	ctx, cancel := context.WithCancel(t.Context())
	var n news
	n.add(v, true, nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		keepView(ctx, dir, time.Hour, wake, &n, func(_ *version, err error) {
			if err != nil {
				t.Errorf("write: %v", err)
			}
			writes++
		})
	}()
	wake <- struct{}{}
	path := filepath.Join(dir, cacheFile)
	eventually(t, 5*time.Second, "the first view is kept", func() bool { _, err := os.Stat(path); return err == nil })
	for i := range 50 {
		d := mesh.Delta{Revision: mesh.Revision{Epoch: 1, Revision: int64(100 + i)}}
		v = v.with(d)
		n.add(v, true, &d)
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	cancel()
	<-done
	if writes != 2 {
		t.Errorf("%d writes, want 2", writes)
	}
	got, err := readCache(dir, v.head.Self)
	if err != nil || got.view.Revision != v.head.Revision {
		t.Errorf("kept %v, %v; want revision %s", got.view, err, v.head.Revision)
	}
	for _, name := range []string{cacheFile, logFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// A disk that takes half a second for a write has the view of 1.5 s ago, not of the
// last ten: an agent that is killed goes on from there.
func TestSlowDiskStaysClose(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const slow = 500 * time.Millisecond
		var n news
		wake := make(chan struct{}, 1)
		var kept atomic.Pointer[version]
		done := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer close(done)
			keepView(ctx, dir, 10*time.Millisecond, wake, &n, func(v *version, err error) {
				if err != nil {
					t.Errorf("write: %v", err)
				}
				time.Sleep(slow)
				kept.Store(v)
			})
		}()
		v := versionOf(sampleView(t))
		var step *mesh.Delta // the first one is another view as a whole
		var said []mesh.Revision
		for i := range 100 {
			n.add(v, true, step)
			said = append(said, v.head.Revision)
			select {
			case wake <- struct{}{}:
			default:
			}
			time.Sleep(100 * time.Millisecond)
			if old := i - 16; old >= 0 { // of 1.6 s ago
				if k := kept.Load(); k == nil || earlier(k.head.Revision, said[old]) {
					t.Errorf("at change %d the disk does not have change %d", i, old)
					break
				}
			}
			step = &mesh.Delta{Revision: mesh.Revision{Epoch: v.head.Revision.Epoch, Revision: v.head.Revision.Revision + 1}}
			v = v.with(*step)
		}
		cancel()
		<-done
	})
}

// The disk is slow, and the view costs nothing to make: only the latter holds up the
// next base. One that costs much is followed by changes, not by another base.
func TestBasesRest(t *testing.T) {
	k := &keeper{dir: t.TempDir(), rested: time.Now().Add(time.Hour)}
	defer k.close()
	v := versionOf(sampleView(t))
	if err := k.keep(v, true, true, nil); err != nil { // there is none yet
		t.Fatal(err)
	}
	if left := time.Until(k.rested); left > time.Minute {
		t.Fatalf("the next base rests for %s", left)
	}
	grow := func() int {
		d := mesh.Delta{Revision: v.head.Revision}
		d.Revision.Revision++
		for range 500 {
			d.Removed = append(d.Removed, "records/acme/"+strings.Repeat("x", 300)+"/TXT")
		}
		v = v.with(d)
		if err := k.keep(v, true, false, []mesh.Delta{d}); err != nil {
			t.Fatal(err)
		}
		return k.size
	}
	k.rested = time.Now().Add(time.Hour)
	if first, second := grow(), grow(); second <= first || first < leastLog {
		t.Errorf("the log has %d, then %d bytes: another base was made", first, second)
	}
	k.rested = time.Now()
	if size := grow(); size >= leastLog {
		t.Errorf("the log has %d bytes, and no base was made", size)
	}
	if got, err := readCache(k.dir, v.head.Self); err != nil || got.view.Revision != v.head.Revision {
		t.Errorf("on disk is %v, %v; want revision %s", got.view, err, v.head.Revision)
	}
}

// Whatever single byte is changed: the file is refused, or says the same.
func TestCacheChecksum(t *testing.T) {
	v := sampleView(t)
	good, err := encodeView(v, true, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		bad := bytes.Clone(good)
		i := rapid.IntRange(0, len(bad)-1).Draw(t, "at")
		bad[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		got, _, _, err := decodeView(bad, v.Self)
		if err == nil && viewText(*got) != string(good) {
			t.Fatalf("byte %d (%q): accepted as another view", i, good[max(0, i-20):min(len(good), i+20)])
		}
	})
}
