package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/backup"
	"github.com/weftmesh/weft/mesh/etcd"
)

func backedUp(t testing.TB, s *Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := s.Dump(t.Context(), "", &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func checked(t testing.TB, text []byte) *Restorable {
	t.Helper()
	b, err := CheckBackup(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// restoredTo puts a backup back into an empty root.
func restoredTo(t testing.TB, s *Store, text []byte) Restored {
	t.Helper()
	out, err := s.Restore(t.Context(), checked(t, text), bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// elsewhere is a store on an empty root, with the configuration of s.
func elsewhere(t testing.TB, s *Store) *Store {
	t.Helper()
	c := s.config
	c.Client, c.Root = shared.Client(), fmt.Sprintf("/test-%d/", roots.Add(1))
	return newStore(t, c)
}

// stored is everything below a store's root.
func stored(t testing.TB, s *Store) map[string]string {
	t.Helper()
	r, err := s.client.Get(t.Context(), s.root, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range r.Kvs {
		out[strings.TrimPrefix(string(kv.Key), s.root)] = string(kv.Value)
	}
	return out
}

// inhabited is a mesh with something of every kind.
func inhabited(t testing.TB, c Config) *Store {
	t.Helper()
	s := newMesh(t, c)
	ctx := t.Context()
	for _, name := range []string{"h", "h1", "gone"} {
		host(t, s, name)
	}
	fill(t, s, "acme", "h", 5, 2)
	fill(t, s, "beta", "h1", 3, 0)
	done(s.RemoveMachine(ctx, "test", MachineRef{Org: "acme", ID: "m1"}))(t)
	done(s.RemoveHost(ctx, "test", "gone"))(t)
	must(s.CreateMachine(ctx, "test", MachineSpec{Org: "acme", App: "db", ID: "db1", Host: "h", Stable: true}))(t)
	done(s.RemoveMachine(ctx, "test", MachineRef{Org: "acme", ID: "db1"}))(t)
	if _, err := s.client.Put(ctx, s.root+presenceKey("h"), `{"host":"h"}`); err != nil {
		t.Fatal(err)
	}
	must(s.CreateRecord(ctx, "test", mesh.Record{Org: "acme", Name: "motd", Type: mesh.RecordTXT, Values: []string{"hello"}}))(t)
	must(s.CreateGrant(ctx, "test", mesh.Grant{From: mesh.Party{Org: "acme", App: "db"}, To: mesh.Party{Org: "beta"}, Protocol: mesh.ProtocolICMP}))(t)
	withCheck := MachineSpec{Org: "acme", App: "db", ID: "db2", Host: "h", Checks: []mesh.Check{{Kind: mesh.CheckTCP, Port: 1}}}
	must(s.CreateMachine(ctx, "test", withCheck))(t)
	done(s.SetHealth(ctx, "test", "h", []mesh.Health{{Org: "acme", Machine: "db2", Passing: true}}))(t)
	done(s.SetCoordinate(ctx, "h", place(0.1)))(t)
	if err := s.SaveReport(ctx, "h", map[string]string{"version": "1"}); err != nil {
		t.Fatal(err)
	}
	return s
}

// What a restore gives is what was backed up, but for what is written at Restorable.
func TestRestoreIsTheMeshAgain(t *testing.T) {
	t.Parallel()
	now := newClock()
	s := inhabited(t, Config{Now: now.Now})
	s.client.Put(t.Context(), s.root+keyElection+"jobs/1", "me")
	s.client.Put(t.Context(), s.root+"later/kind", `{"new":1}`) // of a newer controller
	text := backedUp(t, s)
	now.add(time.Minute)
	to := elsewhere(t, s)
	out := restoredTo(t, to, text)

	want, got := stored(t, s), stored(t, to)
	if len(got) != out.Keys {
		t.Errorf("%d keys, and %d were counted", len(got), out.Keys)
	}
	var events []string
	for _, key := range slices.Collect(maps.Keys(want)) {
		switch kind, _, _ := strings.Cut(key, "/"); {
		case kind == "tokens", kind == "presence", kind == "election":
			delete(want, key)
		case strings.HasPrefix(key, keyNextSlots):
			var n uint64
			json.Unmarshal([]byte(want[key]), &n)
			want[key] = fmt.Sprint(n + marginSlots)
		case strings.HasPrefix(key, keyResting):
			prefix, n, err := restingNumber(key)
			if err != nil {
				t.Fatal(err)
			}
			want[restingKey(prefix, now.Now().Add(restoredRest), n)] = want[key]
			delete(want, key)
		case kind == "addresses":
			var r mesh.Reservation
			json.Unmarshal([]byte(want[key]), &r)
			r.Until = now.Now().Add(restoredRest)
			b, _ := json.Marshal(r)
			want[key] = string(b)
		}
	}
	for key := range got {
		if _, there := want[key]; !there && strings.HasPrefix(key, keyAudit) {
			events = append(events, got[key])
			delete(got, key)
		}
	}
	var m mesh.Mesh
	json.Unmarshal([]byte(want[keyMesh]), &m)
	m.Epoch = uint32(now.Now().Unix())
	b, _ := json.Marshal(m)
	want[keyMesh], want[keyNextNetwork], want[keyNextHost] = string(b), "1003", "1004"
	want[keyNextFloor] = `{"networks":1003,"hosts":1004,"slot":257}`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(events) != 1 || !strings.Contains(events[0], `"mesh.restore"`) {
		t.Errorf("new in the audit log: %q", events)
	}
	if len(want) < 40 || out.Tokens != 5 || out.Mesh.Epoch != m.Epoch {
		t.Errorf("%d keys, restored: %+v", len(want), out)
	}
	// And it is in use.
	run(t, to)
	machine(t, to, "acme", "web", "new", "h")
}

// A backup is of one revision, whatever happens meanwhile, also if it is read in
// many pages.
func TestDumpIsOfOneRevision(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	org(t, s, "acme")
	const pages = 3
	putApps(t, s, pages*dumpPage, `{"ttl":1}`)
	want := stored(t, s)
	n := 0
	var text bytes.Buffer
	_, err := s.Dump(t.Context(), "", writerFunc(func(p []byte) (int, error) {
		n++
		org(t, s, fmt.Sprint("new", n))
		s.client.Put(t.Context(), s.root+"apps/acme/a05400", `{"ttl":2}`)
		s.client.Delete(t.Context(), s.root+"orgs/acme")
		return text.Write(p)
	}))
	if err != nil || n < 2 {
		t.Fatalf("%v, after %d writes", err, n)
	}
	got := map[string]string{}
	for _, r := range records(t, text.Bytes()) {
		got[r.Key] = string(r.Value)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// putApps puts n apps, many in one transaction.
func putApps(t testing.TB, s *Store, n int, value string) {
	t.Helper()
	var ops []clientv3.Op
	for i := range n {
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("%sapps/acme/a%05d", s.root, i), value))
	}
	for some := range slices.Chunk(ops, maxOps) {
		if _, err := s.commit(t.Context(), nil, some); err != nil {
			t.Fatal(err)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func records(t testing.TB, text []byte) (out []backup.Record) {
	t.Helper()
	r, err := backup.NewReader(bytes.NewReader(text))
	for err == nil {
		var record backup.Record
		if record, err = r.Next(); err == nil {
			out = append(out, record)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return out
}

// If the revision is compacted under way, the backup fails, says why, and what was
// written is no backup.
func TestDumpOfACompactedRevision(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{Client: ownServer(t).Client()})
	putApps(t, s, 3*dumpPage, `{"name":"something that fills a buffer or two"}`)
	var text bytes.Buffer
	_, err := s.Dump(t.Context(), "", writerFunc(func(p []byte) (int, error) {
		r, err := s.client.Put(t.Context(), s.root+"x", "1")
		if err == nil {
			_, err = s.client.Compact(t.Context(), r.Header.Revision)
		}
		if err != nil {
			t.Error(err)
		}
		return text.Write(p)
	}))
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "compacted") || mesh.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
	if _, err := CheckBackup(&text); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("what was written: %v", err)
	}
}

func TestDumpOfNothing(t *testing.T) {
	t.Parallel()
	if _, err := elsewhere(t, newMesh(t, Config{})).Dump(t.Context(), "", io.Discard); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// edited is a backup with one record changed, and a right checksum.
func edited(t testing.TB, text []byte, change func(*backup.Header, []backup.Record) []backup.Record) []byte {
	t.Helper()
	r, err := backup.NewReader(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	h := r.Header()
	all := change(&h, records(t, text))
	var b bytes.Buffer
	w, err := backup.NewWriter(&b, h)
	for _, record := range all {
		if err == nil {
			err = w.Write(record)
		}
	}
	if err == nil {
		_, err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCheckBackupRefuses(t *testing.T) {
	t.Parallel()
	text := backedUp(t, inhabited(t, Config{}))
	value := func(key, value string) func(*backup.Header, []backup.Record) []backup.Record {
		return func(_ *backup.Header, all []backup.Record) []backup.Record {
			i := slices.IndexFunc(all, func(r backup.Record) bool { return strings.HasPrefix(r.Key, key) })
			all[i].Value = []byte(value)
			return all
		}
	}
	without := func(key string) func(*backup.Header, []backup.Record) []backup.Record {
		return func(_ *backup.Header, all []backup.Record) []backup.Record {
			return slices.DeleteFunc(all, func(r backup.Record) bool { return strings.HasPrefix(r.Key, key) })
		}
	}
	head := func(change func(*backup.Header)) func(*backup.Header, []backup.Record) []backup.Record {
		return func(h *backup.Header, all []backup.Record) []backup.Record { change(h); return all }
	}
	for _, tt := range []struct {
		name   string
		change func(*backup.Header, []backup.Record) []backup.Record
		want   string
	}{
		{"no mesh", without(keyMesh), "there is no mesh"},
		{"no certificate authority", without(keyCAs), "no certificate authority"},
		{"a newer format of values", value(keyMesh, `{"prefix":"fd12:3456:789a::/48","epoch":1,"schema":99}`), "format 99"},
		{"a mesh that is none", value(keyMesh, `{}`), "value of mesh"},
		{"another mesh", head(func(h *backup.Header) { h.Prefix = "fd00::/48" }), "its first line is of mesh"},
		{"another epoch", head(func(h *backup.Header) { h.Epoch++ }), "its first line is of mesh"},
		{"no prefix", head(func(h *backup.Header) { h.Prefix = "" }), "prefix"},
		{"a counter that is none", value(keyNextNetwork, `"x"`), "value of next/network"},
		{"a slot counter that is none", value(keyNextSlots, `{}`), "value of next/slots/"},
		{"a certificate authority that is none", value(keyCAs, `[]`), "value of ca/"},
	} {
		if _, err := CheckBackup(bytes.NewReader(edited(t, text, tt.change))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	for i := 0; i < len(text); i += 97 {
		if _, err := CheckBackup(bytes.NewReader(text[:i])); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	b := checked(t, edited(t, text, value("hosts/h1", `{"number":0}`)))
	if diff := cmp.Diff([]string{"hosts/h1"}, b.Unreadable); diff != "" {
		t.Errorf("unreadable (-want +got):\n%s", diff)
	}
	if b := checked(t, text); len(b.Unreadable) > 0 || len(b.CAs) != 1 || b.Mesh.Epoch == 0 {
		t.Errorf("unreadable %q, %d CAs, %+v", b.Unreadable, len(b.CAs), b.Mesh)
	}
}

// What is there is not touched: a mesh, or anything else but what passes by itself.
func TestRestoreOnlyWhereThereIsNothing(t *testing.T) {
	t.Parallel()
	s := inhabited(t, Config{})
	text := backedUp(t, s)
	other := newMesh(t, Config{})
	foreign, passed := elsewhere(t, s), elsewhere(t, s)
	foreign.client.Put(t.Context(), foreign.root+"something", "1")
	passed.client.Put(t.Context(), passed.root+presenceKey("h"), "{}")
	for _, tt := range []struct {
		name string
		to   *Store
		want error
	}{{"a mesh", other, ErrExists}, {"the same mesh", again(t, s), ErrExists}, {"something", foreign, ErrConflict}} {
		before := stored(t, tt.to)
		_, err := tt.to.Restore(t.Context(), checked(t, text), bytes.NewReader(text))
		if !errors.Is(err, tt.want) || mesh.HintOf(err) == "" {
			t.Errorf("%s: %v, want %v with a hint", tt.name, err, tt.want)
		}
		if diff := cmp.Diff(before, stored(t, tt.to)); diff != "" {
			t.Errorf("%s (-before +after):\n%s", tt.name, diff)
		}
	}
	restoredTo(t, passed, text)
	if _, there := stored(t, passed)["presence/h"]; !there {
		t.Error("a host's presence, which a controller had told of before, is gone")
	}
	// A file that is another one by the time it is restored.
	to := elsewhere(t, s)
	longer := edited(t, text, func(_ *backup.Header, all []backup.Record) []backup.Record {
		return append(all, backup.Record{Key: "zzz", Value: []byte("1")})
	})
	if _, err := to.Restore(t.Context(), checked(t, text), bytes.NewReader(longer)); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("another file: %v", err)
	}
	if _, there := stored(t, to)[keyMesh]; there {
		t.Error("another file: there is a mesh all the same")
	}
}

// A restore that is interrupted at any point leaves no mesh, nobody makes another
// one of it or changes what is there, and the next restore makes it whole.
func TestInterruptedRestore(t *testing.T) {
	t.Parallel()
	s := inhabited(t, Config{})
	putApps(t, s, 700, `{"ttl":1}`)
	text := backedUp(t, s)
	for _, steps := range []int{1, 4, 5, 6, 8, 9, 11, 12, 13, 14} {
		t.Run(fmt.Sprint("after-", steps), func(t *testing.T) {
			t.Parallel()
			to := elsewhere(t, s)
			dying := again(t, to)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dying.client = dieAfter(dying.client, steps, cancel)
			if _, err := dying.Restore(ctx, checked(t, text), bytes.NewReader(text)); err == nil {
				t.Fatal("it was to be interrupted")
			}
			if _, there := stored(t, to)[keyMesh]; there {
				t.Skipf("%d steps are all", steps)
			}
			before := stored(t, to)
			if len(before) > 0 {
				if _, _, _, err := to.Load(t.Context()); !errors.Is(err, ErrConflict) || mesh.HintOf(err) == "" {
					t.Errorf("load: %v", err)
				}
				if _, err := to.Init(t.Context(), genesis(t, "other")); !errors.Is(err, ErrConflict) {
					t.Errorf("init: %v", err)
				}
			}
			if _, _, err := to.CreateOrg(t.Context(), "test", "early"); err == nil {
				t.Error("an org was created in half a mesh")
			}
			if diff := cmp.Diff(before, stored(t, to)); diff != "" {
				t.Errorf("(-before +after):\n%s", diff)
			}
			restoredTo(t, to, text)
			whole := elsewhere(t, s)
			restoredTo(t, whole, text)
			got, want := slices.Sorted(maps.Keys(stored(t, to))), slices.Sorted(maps.Keys(stored(t, whole)))
			drop := func(k string) bool { return strings.HasPrefix(k, keyAudit) || strings.HasPrefix(k, keyResting) }
			if diff := cmp.Diff(slices.DeleteFunc(want, drop), slices.DeleteFunc(got, drop)); diff != "" {
				t.Errorf("(-whole +resumed):\n%s", diff)
			}
		})
	}
}

// Two restores to one place: the one that began later goes on, alone.
func TestTwoRestoresAtOnce(t *testing.T) {
	t.Parallel()
	s := inhabited(t, Config{})
	text := backedUp(t, s)
	to := elsewhere(t, s)
	b := checked(t, text)
	slow := again(t, to)
	n, reached, goOn := 0, make(chan struct{}), make(chan struct{})
	slow.client = withKV(to.client, &faultyKV{KV: to.client.KV, before: func() error {
		if n++; n == 6 { // it holds the place
			close(reached)
			<-goOn
		}
		return nil
	}})
	ended := make(chan error, 1)
	go func() {
		_, err := slow.Restore(t.Context(), b, bytes.NewReader(text))
		ended <- err
	}()
	select {
	case <-reached:
	case err := <-ended:
		t.Fatalf("it ended before it was stopped: %v", err)
	}
	if before := stored(t, to); len(before) != 1 || before[keyRestoring] == "" {
		t.Errorf("the first one has done something already, or nothing: %d keys", len(before))
	}
	restoredTo(t, to, text)
	before := stored(t, to)
	close(goOn)
	if err := <-ended; !errors.Is(err, ErrConflict) {
		t.Errorf("the first one: %v", err)
	}
	if diff := cmp.Diff(before, stored(t, to)); diff != "" {
		t.Errorf("the first one changed (-before +after):\n%s", diff)
	}
}

// given notes numbers, and objects to one that was noted before.
type given map[string]string

func (g given) note(t testing.TB, what, number string) {
	t.Helper()
	if before, twice := g[number]; twice && before != what {
		t.Errorf("%s got %s, which %s had", what, number, before)
	}
	g[number] = what
}

func (g given) endpoint(t testing.TB, what string, m mesh.Machine) {
	g.note(t, what, "endpoint "+m.Endpoint.String())
}

// No number is given twice across a restore: neither those that the backup knows,
// nor those that were given after it and are not known any more.
func TestRestoreGivesNoNumberTwice(t *testing.T) {
	t.Parallel()
	now := newClock()
	s := run(t, newMesh(t, Config{Now: now.Now}))
	all := given{}
	life := func(s *Store, when string) {
		for _, name := range []string{"h", "h1"} {
			h := host(t, s, when+name)
			all.note(t, when+name, fmt.Sprint("host ", h.Number))
		}
		for _, name := range []string{"acme", "beta"} {
			o, rev, err := s.CreateOrg(t.Context(), "test", when+name)
			all.note(t, when+name, fmt.Sprint("network ", must(o, rev, err)(t).Network))
			mirroredAt(t, s, rev)
		}
		state := s.State()
		for _, o := range state.Orgs.All() {
			for _, h := range state.Hosts.All() {
				for i := range 3 {
					id := fmt.Sprint(when, h.Name, i)
					all.endpoint(t, o.Name+"/"+id, machine(t, s, o.Name, "web", id, h.Name))
				}
			}
		}
	}
	life(s, "a-")
	// Slots and a host number that rest at the backup, and are given again after it.
	for i := range 3 {
		done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: "a-acme", ID: fmt.Sprint("a-a-h", i)}))(t)
	}
	// A pair that has no slot yet.
	late := org(t, s, "late")
	all.note(t, "late", fmt.Sprint("network ", late.Network))
	text := backedUp(t, s)
	now.add(2 * time.Hour) // what rested is free
	for id := range all {
		if what := all[id]; strings.HasPrefix(what, "a-acme/a-a-h") {
			delete(all, id) // given again, rightly
		}
	}
	all.endpoint(t, "late/first", machine(t, s, "late", "web", "first", "a-h"))
	life(s, "b-")

	// The restored mesh does not know of all that, and lives on.
	to := elsewhere(t, s)
	restoredTo(t, to, text)
	run(t, to)
	all.endpoint(t, "late/other", machine(t, to, "late", "web", "other", "a-h"))
	all.endpoint(t, "late/other1", machine(t, to, "late", "web", "other1", "a-h1"))
	life(to, "c-")
	now.add(3 * time.Hour)
	life(to, "d-")
	if len(all) < 100 {
		t.Errorf("only %d numbers were looked at", len(all))
	}
	// A second disaster, of the restored mesh.
	text = backedUp(t, to)
	life(to, "e-")
	third := elsewhere(t, s)
	restoredTo(t, third, text)
	run(t, third)
	life(third, "f-")
}

// A one-use token that is in the backup, and was used after it, is not good again.
func TestRestoreVoidsTokens(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	use := token(t, s, mesh.Token{ID: "once", Kind: mesh.KindHost, Orgs: []string{mesh.AllOrgs}})
	text := backedUp(t, s)
	must(s.EnrollHost(t.Context(), hostSpec("h"), use))(t)
	to := elsewhere(t, s)
	if out := restoredTo(t, to, text); out.Tokens != 1 {
		t.Errorf("%d tokens were left out, want 1", out.Tokens)
	}
	spec := hostSpec("other")
	spec.Key = key("other")
	if _, _, err := to.EnrollHost(t.Context(), spec, use); !errors.Is(err, ErrToken) {
		t.Errorf("the token: %v", err)
	}
}

func TestRaised(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ next, margin, most, want uint64 }{
		{0, 1000, 65535, 1001}, {1, 1000, 65535, 1001}, {7, 256, 65535, 263},
		{65000, 1000, 65535, 65268}, // half of the 536 that are left
		{65535, 1000, 65535, 65536}, {65536, 1000, 65535, 65536},
	} {
		if got := raised(tt.next, tt.margin, tt.most); got != tt.want {
			t.Errorf("raised(%d, %d, %d) = %d, want %d", tt.next, tt.margin, tt.most, got, tt.want)
		}
	}
	f := floor{Networks: 10, Hosts: 20, Slot: 257}
	for _, tt := range []struct {
		network uint64
		host    uint32
		want    uint64
	}{{1, 1, 257}, {9, 19, 257}, {10, 19, 1}, {9, 20, 1}} {
		if got := f.first(tt.network, tt.host); got != tt.want {
			t.Errorf("first(%d, %d) = %d, want %d", tt.network, tt.host, got, tt.want)
		}
	}
	if got := (floor{}).first(1, 1); got != 1 {
		t.Errorf("without a restore slots begin at %d", got)
	}
	if ipam.MaxSlot < 4*marginSlots {
		t.Error("a few restores use up a host's slots")
	}
}

// Controllers that run while the etcd beneath them is lost and restored: what they
// hold stays as it was until the restored mesh is whole, they change nothing
// meanwhile, and then go on from it, as from another epoch.
func TestRestoreBeneathRunningControllers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		lose func(t *testing.T, s *Store, c *switched) (to *Store)
	}{
		{"the same etcd, emptied", func(t *testing.T, s *Store, c *switched) *Store {
			if _, err := c.get().Delete(t.Context(), s.root, clientv3.WithPrefix()); err != nil {
				t.Fatal(err)
			}
			return newStore(t, Config{Client: c.get(), Root: s.root})
		}},
		{"another etcd", func(t *testing.T, s *Store, c *switched) *Store {
			other := ownServer(t)
			c.set(other.Client())
			return newStore(t, Config{Client: other.Client(), Root: s.root})
		}},
		{"another etcd, of later revisions", func(t *testing.T, s *Store, c *switched) *Store {
			other := ownServer(t)
			for i := range 300 {
				if _, err := other.Client().Put(t.Context(), "/elsewhere", fmt.Sprint(i)); err != nil {
					t.Fatal(err)
				}
			}
			c.set(other.Client())
			return newStore(t, Config{Client: other.Client(), Root: s.root})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			first := ownServer(t)
			c := &switched{to: first.Client()}
			s := run(t, inhabited(t, Config{Client: c.client(), ProgressEvery: 20 * time.Millisecond}))
			text := backedUp(t, s)
			late := machine(t, s, "acme", "web", "late", "h")
			eventually(t, s, "it is mirrored", func(state mesh.State) bool { return state.Machines.Has("acme/late") })
			feed := s.Feed()
			defer feed.Close()
			before := s.State()

			to := tt.lose(t, s, c)
			if to.client != first.Client() {
				first.Close() // ends the watches
			}
			if _, _, err := s.CreateOrg(t.Context(), "test", "early"); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "there is no mesh") {
				t.Errorf("a change while there is no mesh: %v", err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dying := again(t, to)
			dying.client = dieAfter(to.client, 10, cancel) // of 11
			if _, err := dying.Restore(ctx, checked(t, text), bytes.NewReader(text)); err == nil {
				t.Fatal("it was to be interrupted")
			}
			if n := len(stored(t, to)); n < 20 {
				t.Fatalf("only %d keys are restored", n)
			}
			if _, _, err := s.CreateMachine(t.Context(), "test", MachineSpec{Org: "acme", App: "web", ID: "early", Host: "h"}); !errors.Is(err, ErrUnavailable) {
				t.Errorf("a change in half a mesh: %v", err)
			}
			if got := s.State(); got.Machines.Len() != before.Machines.Len() || got.Revision.Epoch != before.Revision.Epoch {
				t.Errorf("%d machines in epoch %d while there is no mesh", got.Machines.Len(), got.Revision.Epoch)
			}
			out := restoredTo(t, to, text)
			eventually(t, s, "the restored mesh is mirrored", func(state mesh.State) bool { return state.Revision.Epoch == out.Mesh.Epoch })
			sameAsFresh(t, s)
			for _, step := range feed.Take() {
				if n := step.After.Machines.Len(); n < before.Machines.Len()-1 {
					t.Errorf("a step to %s leaves %d machines", step.After.Revision, n)
				}
			}
			if again := machine(t, s, "acme", "web", "new", "h"); again.Endpoint == late.Endpoint {
				t.Errorf("%s was given twice", late.Endpoint)
			}
		})
	}
}

// On an etcd that takes no writes, full or merely quiet, the mirror is known to be
// current all the same, and a change is seen as soon as it is taken.
func TestMirrorOfAFullEtcd(t *testing.T) {
	t.Parallel()
	c := serverConfig(t.TempDir())
	c.QuotaBytes, c.UpkeepEvery = 4<<20, time.Hour
	server, err := etcd.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	var said logged
	config := Config{Client: server.Client(), ProgressEvery: 200 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&said, nil))}
	first := newMesh(t, config)
	for i := 0; err == nil; i++ {
		_, err = server.Client().Put(t.Context(), fmt.Sprint("/filler/", i), strings.Repeat("x", 64<<10))
	}
	config.Root = first.root
	s := run(t, newStore(t, config))
	// Without a word from the watch it would be older than this before long.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); <-tick.C {
		if age := s.Age(); age > 1500*time.Millisecond {
			t.Fatalf("the mirror is %s old; logged:\n%s", age, said.String())
		}
	}
	if _, _, err := s.CreateOrg(t.Context(), "test", "acme"); !errors.Is(err, ErrUnavailable) || !strings.Contains(mesh.HintOf(err), "--etcd-quota") {
		t.Errorf("a change: %v, hint %q", err, mesh.HintOf(err))
	}
}

// Any records, in a file whose checksum is right, are refused or can be restored:
// no value of them makes the reader panic or the restore fail half-way.
func FuzzCheckBackup(f *testing.F) {
	add := func(records ...string) { f.Add(strings.Join(records, "\n")) }
	const m, ca = "mesh\t" + `{"prefix":"fd12:3456:789a::/48","epoch":1,"schema":1}`, "ca/1\t" + `{"id":"1","certificate":"YQ==","sealed_key":"YQ=="}`
	add(ca, m, "next/network\t7", "next/slots/1/1\t65536", "tokens/t\t{}")
	add("addresses/acme/machine/x\t"+`{"endpoint":"fd12:3456:789a:1:100:1:1:0/112"}`, ca, m, "next/floor/slots\t"+`{"slot":9}`, "next/resting/slots/1/1/123-9\t{}")
	add(ca, "hosts/h\t{}", m, "orgs/acme\t"+`{"network":1}`, "presence/h\tx", "zzz\t\x00")
	f.Fuzz(func(t *testing.T, in string) {
		var text bytes.Buffer
		w, err := backup.NewWriter(&text, backup.Header{Prefix: prefix, Epoch: 1})
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(in, "\n") {
			key, value, _ := strings.Cut(line, "\t")
			if err := w.Write(backup.Record{Key: key, Value: []byte(value)}); err != nil {
				return // not in order, or no key
			}
		}
		if _, err := w.Close(); err != nil {
			t.Fatal(err)
		}
		b, err := CheckBackup(bytes.NewReader(text.Bytes()))
		if err != nil {
			return
		}
		now := newClock().Now()
		for _, r := range records(t, text.Bytes()) {
			then, ok, err := b.restored(r, now)
			if err != nil {
				t.Fatalf("value of %s was taken, and cannot be restored: %v", r.Key, err)
			}
			if kind, _, below := strings.Cut(r.Key, "/"); ok && below && slices.Contains([]string{"tokens", "presence", "election"}, kind) {
				t.Fatalf("%s comes back", r.Key)
			}
			if n := uint64(0); ok && strings.HasPrefix(r.Key, keyNextSlots) && json.Unmarshal(then.Value, &n) == nil {
				if was := uint64(0); json.Unmarshal(r.Value, &was) == nil && n <= was && was <= ipam.MaxSlot {
					t.Fatalf("%s went from %d to %d", r.Key, was, n)
				}
			}
		}
		last, m, err := b.last(now)
		if err != nil || m.Epoch <= b.Mesh.Epoch || len(last) != 4 {
			t.Fatalf("%v, epoch %d after %d", err, m.Epoch, b.Mesh.Epoch)
		}
	})
}
