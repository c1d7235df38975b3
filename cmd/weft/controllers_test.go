package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// fakeControllers is a mesh without orgs, of controllers that know each other.
type fakeControllers struct {
	t       *testing.T
	servers []*httptest.Server
	list    atomic.Pointer[[]string]
	age     atomic.Pointer[string]
	asked   atomic.Int32 // for the list
	file    string       // the operator's
}

func newFakeControllers(t *testing.T, n int) *fakeControllers {
	f := &fakeControllers{t: t, file: filepath.Join(t.TempDir(), "operator.yaml")}
	ca, err := enroll.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.SignController(key.Public(), time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{der, ca.Certificate()}, PrivateKey: key}
	for range n {
		s := httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
		s.TLS = enroll.ServerTLS(func() *tls.Certificate { return cert })
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		s.StartTLS()
		t.Cleanup(s.Close)
		f.servers = append(f.servers, s)
	}
	credential, err := enroll.NewCredential("admin")
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("controllers: [%q]\npin: %s\ncredential: %s\n", f.servers[0].URL, ca.Pin(), credential.Text())
	if err := os.WriteFile(f.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fakeControllers) serve(w http.ResponseWriter, r *http.Request) {
	if age := f.age.Load(); age != nil {
		w.Header().Set("Age", *age)
	}
	if r.URL.Path != "/v1/mesh" {
		fmt.Fprint(w, "[]")
		return
	}
	f.asked.Add(1)
	info := api.MeshInfo{Version: "test"}
	if list := f.list.Load(); list != nil {
		info.Controllers = *list
	}
	json.NewEncoder(w).Encode(info)
}

func (f *fakeControllers) knows(n ...int) {
	var list []string
	for _, i := range n {
		list = append(list, f.servers[i].URL)
	}
	f.list.Store(&list)
}

// weft runs a command and returns what it says on stderr.
func (f *fakeControllers) weft(args ...string) string {
	f.t.Helper()
	var out, errs bytes.Buffer
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	if err := cmd.ExecuteContext(f.t.Context()); err != nil {
		f.t.Fatalf("weft %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return errs.String()
}

// kept are the controllers of the context home, by number.
func (f *fakeControllers) kept() string {
	f.t.Helper()
	text, err := os.ReadFile(f.home())
	if err != nil {
		f.t.Fatal(err)
	}
	cred, err := parseCredential(text)
	if err != nil {
		f.t.Fatal(err)
	}
	var out []string
	for _, url := range cred.Controllers {
		out = append(out, fmt.Sprint(slices.IndexFunc(f.servers, func(s *httptest.Server) bool { return s.URL == url })))
	}
	return strings.Join(out, " ")
}

func (f *fakeControllers) home() string {
	return filepath.Join(os.Getenv("WEFT_CONFIG_DIR"), "contexts", "home.yaml")
}

func TestContextLearnsControllers(t *testing.T) {
	t.Setenv("WEFT_CONFIG_DIR", t.TempDir())
	t.Setenv("WEFT_CONTEXT", "")
	f := newFakeControllers(t, 4)
	operator, err := os.ReadFile(f.file)
	if err != nil {
		t.Fatal(err)
	}
	f.knows(0, 1)
	f.weft("context", "add", "home", "--file", f.file)
	if got := f.kept(); got != "0 1" {
		t.Errorf("added: controllers %s", got)
	}
	// Nothing is asked as long as the first one answers.
	asked := f.asked.Load()
	if said := f.weft("org", "list"); said != "" || f.asked.Load() != asked {
		t.Errorf("said %q, and the list was asked for %d times", said, f.asked.Load()-asked)
	}
	// Another one had to answer: it comes first from then on.
	f.servers[0].Close()
	f.knows(0, 1, 2)
	if said := f.weft("org", "list"); !strings.Contains(said, "weft: note: context home knows these controllers now: "+f.servers[1].URL) {
		t.Errorf("said %q", said)
	}
	if got := f.kept(); got != "1 0 2" {
		t.Errorf("after a failure: controllers %s", got)
	}
	// A day later the list is looked at again.
	f.knows(1, 2, 3)
	old := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(f.home(), old, old); err != nil {
		t.Fatal(err)
	}
	f.weft("org", "list")
	if got := f.kept(); got != "1 2 3 0" {
		t.Errorf("after a day: controllers %s", got)
	}
	if info, err := os.Stat(f.home()); err != nil || info.Mode().Perm() != 0o600 || time.Since(info.ModTime()) > time.Hour {
		t.Errorf("file %v, %v", info, err)
	}
	// A file that is the user's own is not touched.
	f.servers[1].Close()
	if err := os.WriteFile(f.file, bytes.Replace(operator, []byte(f.servers[0].URL+`"`), []byte(f.servers[1].URL+`", "`+f.servers[2].URL+`"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(f.file)
	f.weft("--context", f.file, "org", "list")
	if after, _ := os.ReadFile(f.file); !bytes.Equal(before, after) {
		t.Errorf("the user's file is now:\n%s", after)
	}
}

// An answer from a controller that is cut off from etcd says how old it is.
func TestOldAnswersAreMarked(t *testing.T) {
	t.Setenv("WEFT_CONFIG_DIR", t.TempDir())
	t.Setenv("WEFT_CONTEXT", "")
	f := newFakeControllers(t, 1)
	f.weft("context", "add", "home", "--file", f.file)
	age := "12"
	f.age.Store(&age)
	if said, want := f.weft("org", "list"), "weft: note: this is 12s old: the controller cannot reach etcd\n"; said != want {
		t.Errorf("said %q, want %q", said, want)
	}
}
