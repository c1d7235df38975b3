package controller

import (
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// A machine moves from one host to another and back, as their agents ask for it.
func TestAMachineMovesOverTheAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	a, b := w.host("a", "fra", "acme"), w.host("b", "fra", "acme")
	first := a.machine("acme", "web", "one")
	if !first.Stable || first.Generation != 1 {
		t.Fatalf("a named machine: stable %t, generation %d", first.Stable, first.Generation)
	}
	e := refused(t, b.Do(t.Context(), "POST", "/v1/orgs/acme/machines", api.CreateMachine{ID: "one", App: "web"}, nil), api.ErrExists)
	if !strings.Contains(e.Message, "host a") || !strings.Contains(e.Advice, "--move") {
		t.Errorf("refused with %q, hint %q", e.Message, e.Advice)
	}
	to := func(n *node, from string) api.MachineInfo {
		t.Helper()
		prepared := do[api.MachineInfo](t, n.Client, "POST", "/v1/orgs/acme/machines", api.CreateMachine{ID: "one", App: "web", Move: true})
		if prepared.Host != from || prepared.Next != n.is.Node.Name || prepared.Endpoint != first.Endpoint {
			t.Fatalf("prepared: %+v", prepared.Machine)
		}
		path := "/v1/orgs/acme/machines/one/host"
		refused(t, n.Do(t.Context(), "PUT", path, api.MoveMachine{Generation: prepared.Generation + 7}, nil), api.ErrConflict)
		moved := do[api.MachineInfo](t, n.Client, "PUT", path, api.MoveMachine{Generation: prepared.Generation})
		again := do[api.MachineInfo](t, n.Client, "PUT", path, api.MoveMachine{Generation: prepared.Generation})
		if again.Machine.Generation != moved.Generation || again.Host != moved.Host {
			t.Errorf("asked again: %+v, was %+v", again.Machine, moved.Machine)
		}
		return moved
	}
	moved := to(b, "a")
	if moved.Host != "b" || moved.Next != "" || moved.Generation != 2 || moved.Endpoint != first.Endpoint {
		t.Errorf("moved: %+v", moved.Machine)
	}
	if back := to(a, "b"); back.Host != "a" || back.Generation != 3 || back.Endpoint != first.Endpoint {
		t.Errorf("back home: %+v", back.Machine)
	}

	// Called off, by the host that prepared it and by no other.
	do[api.MachineInfo](t, b.Client, "POST", "/v1/orgs/acme/machines", api.CreateMachine{ID: "one", App: "web", Move: true})
	refused(t, a.Do(t.Context(), "DELETE", "/v1/orgs/acme/machines/one/host", nil, nil), api.ErrNotFound)
	if err := b.Do(t.Context(), "DELETE", "/v1/orgs/acme/machines/one/host", nil, nil); err != nil {
		t.Fatal(err)
	}
	if now := do[api.MachineInfo](t, w.admin, "GET", "/v1/orgs/acme/machines/one", nil); now.Next != "" || now.Host != "a" || now.Generation != 3 {
		t.Errorf("after it was called off: %+v", now.Machine)
	}

	// Ended and started elsewhere, it has its address again; said not to be stable, not.
	if err := a.Do(t.Context(), "DELETE", "/v1/orgs/acme/machines/one", nil, nil); err != nil {
		t.Fatal(err)
	}
	no := false
	other := do[api.MachineInfo](t, b.Client, "POST", "/v1/orgs/acme/machines", api.CreateMachine{ID: "one", App: "web", Stable: &no})
	if other.Endpoint == first.Endpoint || other.Stable {
		t.Errorf("one that is not stable: %+v", other.Machine)
	}
	if err := b.Do(t.Context(), "DELETE", "/v1/orgs/acme/machines/one", nil, nil); err != nil {
		t.Fatal(err)
	}
	if again := b.machine("acme", "web", "one"); again.Endpoint != first.Endpoint || again.Generation != 4 || again.Host != "b" {
		t.Errorf("registered again elsewhere: %+v, want %s", again.Machine, first.Endpoint)
	}
}

func TestLimitsOverTheAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	h := w.host("h", "fra", "acme")
	h.machine("acme", "web", "one")
	one, zero, wrong := 1, 0, -1
	change := func(l api.UpdateLimits) api.OrgInfo {
		t.Helper()
		return do[api.OrgInfo](t, w.admin, "PATCH", "/v1/orgs/acme", api.UpdateOrg{Limits: l})
	}
	want := mesh.DefaultLimits
	want.Machines = 1
	if got := change(api.UpdateLimits{Machines: &one}); got.Limits != want || got.Has.Machines != 1 {
		t.Errorf("org: limits %+v, want %+v; has %+v", got.Limits, want, got.Has)
	}
	want.Metadata = 1
	if got := change(api.UpdateLimits{Metadata: &one}); got.Limits != want {
		t.Errorf("org: limits %+v, want %+v", got.Limits, want)
	}
	e := refused(t, h.Do(t.Context(), "POST", "/v1/orgs/acme/machines", api.CreateMachine{App: "web"}, nil), api.ErrLimit)
	if e.Advice != "an operator can raise it: weft org limit acme --machines 2" {
		t.Errorf("refused with %q, hint %q", e.Message, e.Advice)
	}
	refused(t, w.admin.Do(t.Context(), "PATCH", "/v1/orgs/acme", api.UpdateOrg{Limits: api.UpdateLimits{Tokens: &wrong}}, nil), api.ErrInvalid)
	change(api.UpdateLimits{Machines: &zero})
	h.machine("acme", "web", "two")
}

func TestClientsThatExpire(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.org("acme")
	w.region("fra")
	w.host("h", "fra", "acme")
	in := api.CreateClient{Name: "phone", Key: newWireGuardKey(t), TTL: "24h"}
	made := do[api.CreatedClient](t, w.admin, "POST", "/v1/orgs/acme/clients", in)
	if left := time.Until(made.Client.Expires); left > 24*time.Hour || left < 23*time.Hour {
		t.Errorf("it lasts %s", left)
	}
	for _, ttl := range []string{"soon", "-1h", "1ms", "1000000h"} {
		in := api.CreateClient{Name: "other", Key: newWireGuardKey(t), TTL: ttl}
		refused(t, w.admin.Do(t.Context(), "POST", "/v1/orgs/acme/clients", in, nil), api.ErrInvalid)
	}
	refused(t, w.admin.Do(t.Context(), "POST", "/v1/tokens", api.CreateToken{Kind: mesh.KindClient, Org: "acme", ClientTTL: "0s"}, nil), api.ErrInvalid)
	token := do[api.CreatedToken](t, w.admin, "POST", "/v1/tokens", api.CreateToken{Kind: mesh.KindClient, Org: "acme", ClientTTL: "1h"})
	if shown := do[api.Token](t, w.admin, "GET", "/v1/tokens/"+token.ID, nil); shown.ClientTTL != "1h" {
		t.Errorf("the token says %q", shown.ClientTTL)
	}
	n := w.newNode()
	do[api.EnrollResponse](t, w.admin, "POST", "/v1/enroll", n.request(token.Token, "job"))
	if job := do[api.ClientInfo](t, w.admin, "GET", "/v1/orgs/acme/clients/job", nil); time.Until(job.Expires) > time.Hour || job.Expires.IsZero() {
		t.Errorf("a client by that token expires at %s", job.Expires)
	}
}
