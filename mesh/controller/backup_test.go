package controller

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/backup"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/etcd"
	"github.com/weftmesh/weft/mesh/store"
)

// A backup comes whole, names the mesh, is in the audit log, and holds the sealed
// key of the certificate authority and no other.
func TestBackup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	body, err := w.admin.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	var text bytes.Buffer
	s, err := backup.Verify(io.TeeReader(body, &text))
	if err != nil {
		t.Fatal(err)
	}
	if h := s.Header; h.Prefix != "fd12:3456:789a::/48" || len(h.CAs) != 1 || h.CAs[0].Pin != w.pin || h.At == 0 || s.Kinds["orgs"] != 1 {
		t.Errorf("summary: %+v", s)
	}
	found := false
	for _, e := range do[[]mesh.Event](t, w.admin, "GET", "/v1/events", nil) {
		found = found || e.Action == "mesh.backup" && e.Actor == "operator/"+firstOperator
	}
	if !found {
		t.Error("the backup is not in the audit log")
	}
	if strings.Contains(text.String(), "PRIVATE KEY") || !strings.Contains(text.String(), `"sealed_key"`) {
		t.Error("the key of the certificate authority is not in it as it is stored")
	}
}

// A backup that breaks in the middle is seen by whoever reads it: there is no end,
// and the connection is cut, too.
func TestBackupThatBreaksIsNoticed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	value := fmt.Sprintf("%q", strings.Repeat("x", 8<<10))
	var rev int64
	for i := range 2500 {
		r, err := w.etcd.Client().Put(t.Context(), fmt.Sprintf("%slater/%04d", w.root, i), value)
		if err != nil {
			t.Fatal(err)
		}
		rev = r.Header.Revision
	}
	body, err := w.admin.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	// More than the buffers of a connection is still to come.
	for range 10 {
		r, err := w.etcd.Client().Put(t.Context(), "/elsewhere", "1")
		if err != nil {
			t.Fatal(err)
		}
		rev = r.Header.Revision
	}
	if _, err := w.etcd.Client().Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	cut := &noting{r: body}
	if s, err := backup.Verify(cut); err == nil || s.Keys > 2500 {
		t.Fatalf("%d keys, %v: it should have broken", s.Keys, err)
	}
	if !errors.Is(cut.err, io.ErrUnexpectedEOF) {
		t.Errorf("the connection ended with %v", cut.err)
	}
	if !strings.Contains(w.log.String(), "backup ended early") {
		t.Error("it is not in the log")
	}
}

// noting keeps how reading ended.
type noting struct {
	r   io.Reader
	err error
}

func (n *noting) Read(p []byte) (int, error) {
	got, err := n.r.Read(p)
	if err != nil {
		n.err = err
	}
	return got, err
}

// What a restore finds in a data directory.
func TestCheckRestore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	_, cas, _, err := newStore(t, w.etcd, w.root).Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	empty, other := t.TempDir(), t.TempDir()
	key, err := enroll.LoadOrCreateSealKey(filepath.Join(other, sealFile))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := enroll.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := foreign.Seal(key)
	if err != nil {
		t.Fatal(err)
	}
	others := []store.CARecord{{ID: "1", Certificate: foreign.Certificate(), SealedKey: sealed}}
	for _, tt := range []struct {
		name, dir, sealKey string
		cas                []store.CARecord
		missing, refused   string
	}{
		{"the directory of the mesh", w.cfg.DataDir, "", cas, "", ""},
		{"a new directory", empty, "", cas, filepath.Join(empty, sealFile), ""},
		{"a new directory, and the key elsewhere", empty, filepath.Join(w.cfg.DataDir, sealFile), cas, "", ""},
		{"a key that is not there", empty, filepath.Join(empty, "nothing"), cas, "", "no such file"},
		{"the key of another mesh", other, "", cas, "", "the seal key does not open it"},
		{"the directory of another mesh", w.cfg.DataDir, "", others, "", "belongs to another mesh"},
	} {
		missing, err := CheckRestore(tt.dir, tt.sealKey, tt.cas)
		if missing != tt.missing || (err != nil) != (tt.refused != "") || err != nil && !strings.Contains(err.Error(), tt.refused) {
			t.Errorf("%s: missing %q, %v; want %q, %q", tt.name, missing, err, tt.missing, tt.refused)
		}
	}
}

// The drill of a full etcd, through everything: changes are refused with the way
// out, reading, streams and backups go on, health and metrics show it; a restart
// does not hang; and with a larger quota all is as before.
func TestNoSpaceDrill(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "etcd")
	w := &world{t: t, root: "/weft/"}
	begin := func(quota int64) {
		w.log = &logBuffer{}
		w.cfg.Log = slog.New(slog.NewTextHandler(w.log, nil))
		var err error
		w.etcd, err = etcd.Start(t.Context(), etcd.Config{Dir: dir, QuotaBytes: quota, UpkeepEvery: 100 * time.Millisecond, Fast: true, UnsafeNoFsync: true, WALSegment: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		e := w.etcd
		t.Cleanup(func() { e.Close() })
		w.cfg.Etcd = func() []store.Condition {
			size := e.Size()
			return []store.Condition{{Size: size.File, InUse: size.InUse, Quota: size.Quota, Alarms: e.Alarms()}}
		}
		w.start()
	}
	end := func() {
		w.stop()
		w.etcd.Close()
	}
	w.cfg = Config{
		DataDir: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", Version: "test",
		Prefix: netip.MustParsePrefix("fd12:3456:789a::/48"),
	}
	begin(4 << 20)
	w.org("acme")
	w.fillEtcd()
	w.checkFull()
	end()
	begin(4 << 20) // started again as it is
	w.checkFull()
	end()
	begin(16 << 20)
	eventually(t, "changes are taken again", func() bool {
		return w.admin.Do(t.Context(), "POST", "/v1/orgs", api.CreateOrg{Name: "beta"}, nil) == nil
	})
	if got := w.get(w.url + "/readyz"); got != "ready\n" {
		t.Errorf("readyz: %q", got)
	}
	var names []string
	for _, o := range do[[]api.OrgInfo](t, w.admin, "GET", "/v1/orgs", nil) {
		names = append(names, o.Name)
	}
	if diff := cmp.Diff([]string{"acme", "beta"}, names); diff != "" {
		t.Errorf("orgs (-want +got):\n%s", diff)
	}
}

// fillEtcd writes beside the mesh until upkeep can make no more room.
func (w *world) fillEtcd() {
	w.t.Helper()
	big := strings.Repeat("x", 16<<10)
	whole := func() bool { size := w.etcd.Size(); return size.InUse > size.Quota/100*93 && len(w.etcd.Alarms()) > 0 }
	for i := 0; !whole(); i++ {
		if _, err := w.etcd.Client().Put(w.t.Context(), fmt.Sprint("/filler/", i), big); err != nil {
			eventually(w.t, "etcd is full, or has room again", func() bool { return whole() || len(w.etcd.Alarms()) == 0 })
		}
	}
}

func (w *world) checkFull() {
	w.t.Helper()
	t := w.t
	e := refused(t, w.admin.Do(t.Context(), "POST", "/v1/orgs", api.CreateOrg{Name: "late"}, nil), api.ErrUnavailable)
	if !strings.Contains(e.Message, "NOSPACE") || !strings.Contains(e.Advice, "--etcd-quota") {
		t.Errorf("the refusal: %q, hint %q", e.Message, e.Advice)
	}
	if n := len(do[[]api.OrgInfo](t, w.admin, "GET", "/v1/orgs", nil)); n != 1 {
		t.Errorf("%d orgs, want 1", n)
	}
	body, err := w.admin.Backup(t.Context())
	if err != nil {
		t.Fatalf("a backup: %v", err)
	}
	defer body.Close()
	if _, err := backup.Verify(body); err != nil {
		t.Errorf("a backup: %v", err)
	}
	if got := w.get(w.url + "/readyz"); !strings.HasPrefix(got, "ready, but etcd raises an alarm: NOSPACE: ") {
		t.Errorf("readyz: %q", got)
	}
	text := w.get(w.metrics + "/metrics")
	for _, want := range []string{`weft_etcd_alarm{alarm="NOSPACE",member=""} 1`, `weft_etcd_alarm{alarm="CORRUPT",member=""} 0`, `weft_etcd_quota_bytes{member=""} 4.194304e+06`} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics: no %s", want)
		}
	}
}

func (w *world) get(url string) string {
	w.t.Helper()
	resp, err := w.bare("h2", nil).Get(url)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		w.t.Fatalf("GET %s: %s %v %s", url, resp.Status, err, text)
	}
	return string(text)
}

func TestAlarmLog(t *testing.T) {
	t.Parallel()
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	w := alarmLog{raised: map[string]time.Time{}}
	var events []string
	full := true
	step := func(d time.Duration, alarms ...string) []string {
		raised, ended := w.look(alarms, at.Add(d))
		w.report(func(target, note string) error {
			if full {
				return store.ErrUnavailable
			}
			events = append(events, target+" "+note)
			return nil
		})
		return append(raised, ended...)
	}
	got := [][]string{
		step(0), step(2*time.Second, "NOSPACE: full"), step(4*time.Second, "NOSPACE: fuller"), step(64 * time.Second), step(66 * time.Second),
	}
	full = false
	step(68 * time.Second)
	want := [][]string{nil, {"NOSPACE: full"}, nil, {"NOSPACE"}, nil}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("logged (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"NOSPACE raised 2030-01-02T03:04:07Z", "NOSPACE ended 2030-01-02T03:05:09Z, after 1m2s"}, events); diff != "" {
		t.Errorf("audit (-want +got):\n%s", diff)
	}
}
