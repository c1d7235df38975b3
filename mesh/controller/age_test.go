package controller

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// A controller that is cut off from etcd goes on answering what it knows, and says
// how old that is; a change is refused soon, with the time to try again.
func TestCutOffFromEtcd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	client := w.bare("h2", nil)
	ask := func(method, path, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+w.cred.Text())
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := ask("GET", "/v1/orgs", "")
	readAll(t, resp)
	if resp.Header.Get("Age") != "" {
		t.Errorf("an answer that is up to date has Age %s", resp.Header.Get("Age"))
	}
	w.etcd.Close()
	eventually(t, "answers say how old they are", func() bool {
		resp = ask("GET", "/v1/orgs", "")
		if text := readAll(t, resp); resp.StatusCode != 200 || !strings.Contains(text, "acme") {
			t.Fatalf("%d: %s", resp.StatusCode, text)
		}
		return resp.Header.Get("Age") != ""
	})
	if age, err := strconv.Atoi(resp.Header.Get("Age")); err != nil || age < 5 || age > 20 {
		t.Errorf("Age: %q, want a few seconds", resp.Header.Get("Age"))
	}
	if text := readAll(t, ask("GET", "/readyz", "")); !strings.Contains(text, "old: etcd does not answer") {
		t.Errorf("readiness: %s", text)
	}
	for _, change := range [][2]string{{"POST", "/v1/orgs"}, {"DELETE", "/v1/orgs/acme"}} {
		began := time.Now()
		resp := ask(change[0], change[1], `{"name":"x"}`)
		text := readAll(t, resp)
		if took := time.Since(began); resp.StatusCode != api.ErrUnavailable.Status || resp.Header.Get("Retry-After") == "" || resp.Header.Get("Age") != "" || took > changeTimeout+time.Second {
			t.Errorf("%s: %d after %s, %v: %s", change[0], resp.StatusCode, took, resp.Header, text)
		}
	}
}

// Who knows one controller learns the others: those that the mesh has noted.
func TestMeshNamesItsControllers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	info := do[api.MeshInfo](t, w.client(enroll.ClientConfig{Pin: w.pin}, ""), "GET", "/v1/mesh", nil)
	if !slices.Contains(info.Controllers, w.url) {
		t.Errorf("controllers %v, want %s among them", info.Controllers, w.url)
	}
}
