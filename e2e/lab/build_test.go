package lab

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The programs of the project are built, started, and answer. Not parallel: it
// sets the environment.
func TestBuildAndServe(t *testing.T) {
	packages := []string{"github.com/weftmesh/weft/e2e/lab/workload"}
	t.Setenv("WEFT_BIN", "")
	bin, err := Build(t.Context(), BuildConfig{Dir: filepath.Join(t.TempDir(), "bin"), Packages: packages})
	must(t, err)
	t.Setenv("WEFT_BIN", bin.Dir())
	again, err := Build(t.Context(), BuildConfig{Dir: "/nowhere", Packages: packages})
	if err != nil || again != bin {
		t.Errorf("with WEFT_BIN: %v, %v", again, err)
	}
	if _, err := Build(t.Context(), BuildConfig{Packages: []string{"./cmd/none"}}); err == nil || !strings.Contains(err.Error(), "look for programs in WEFT_BIN="+bin.Dir()) {
		t.Errorf("with WEFT_BIN, one missing: %v", err)
	}

	l := newLab(t, "curl")
	a, b := newHost(t, l, "a", HostConfig{}), newHost(t, l, "b", HostConfig{IPv6: true})
	p, err := b.Start("echo", bin.Path("workload"), nil, []string{"WEFT_NAME=web-1", "WEFT_REGION=fra"})
	must(t, err)
	must(t, p.AwaitLog(t.Context(), "http on [::]:80", 5*time.Second))
	out := sh(t, a, "curl -sS --local-port 4321 http://192.0.2.2/")
	want := map[string]string{"name": "web-1", "region": "fra", "client": "192.0.2.1:4321", "server": "192.0.2.2:80"}
	got := map[string]string{}
	must(t, json.Unmarshal([]byte(out), &got))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	must(t, p.Stop())
	if p.ExitCode() != 0 {
		t.Errorf("echo ended with %d: %s", p.ExitCode(), p.Log())
	}
}

func TestBuildFails(t *testing.T) {
	t.Setenv("WEFT_BIN", "")
	_, err := Build(t.Context(), BuildConfig{Dir: t.TempDir(), Packages: []string{"./no-such-command"}})
	if err == nil || !strings.Contains(err.Error(), "build ./no-such-command: exit status 1\n") {
		t.Errorf("%v", err)
	}
}
