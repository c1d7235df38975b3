package store

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// A rewrite by this version keeps the fields that a newer one added.
func TestUnknownFieldsAreKept(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, old, want string }{
		{"new", ``, `{"org":"acme","name":"web","ttl":9}`},
		{"nothing unknown", `{"org":"acme","name":"web","answer":"all"}`, `{"org":"acme","name":"web","ttl":9}`},
		{"unknown", `{"org":"x","answer":"all","colour":{"of":"sky"}}`, `{"colour":{"of":"sky"},"name":"web","org":"acme","ttl":9}`},
		{"known in other letters", `{"Answer":"all"}`, `{"org":"acme","name":"web","ttl":9}`},
		{"broken", `[1`, `{"org":"acme","name":"web","ttl":9}`},
	} {
		var old []byte
		if tt.old != "" {
			old = []byte(tt.old)
		}
		got, err := encode(old, mesh.App{Org: "acme", Name: "web", TTL: 9})
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %s %v, want %s", tt.name, got, err, tt.want)
		}
	}
	s := newMesh(t, Config{})
	h := host(t, s, "h")
	newer, err := encode([]byte(`{"rack":"r7"}`), h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Put(t.Context(), s.root+hostKey("h"), string(newer)); err != nil {
		t.Fatal(err)
	}
	yes := true
	must(s.SetHost(t.Context(), "test", "h", HostChange{Cordoned: &yes}))(t)
	r, err := s.client.Get(t.Context(), s.root+hostKey("h"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Rack     string
		Cordoned bool
	}
	if err := json.Unmarshal(r.Kvs[0].Value, &got); err != nil || got.Rack != "r7" || !got.Cordoned {
		t.Errorf("%s: %v", r.Kvs[0].Value, err)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	k := mesh.Key{0: 0xfb, 1: 0xff, 2: 0xfe} // with '+' and '/' in plain base64
	for _, tt := range []struct{ got, want string }{
		{wireguardKey(k), "keys/-__-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
		{tlsKey("sha256:a/b"), "keys/tls.c2hhMjU2OmEvYg"},
		{nextSlotKey(7, 9), "next/slots/7/9"},
		{restingKey(restingSlots(7, 9), time.Unix(1893456000, 0), 3), "next/resting/slots/7/9/01893456000-3"},
		{reportKey("h"), "volatile/hosts/h"},
		{removingKey("h"), "removing/hosts/h"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %s, want %s", tt.got, tt.want)
		}
	}
	// The mirror's range ends before volatile/: every kind that it holds comes before.
	for _, kind := range mirrored {
		if kind >= keyVolatile {
			t.Errorf("%s is not in the mirror's range", kind)
		}
	}
}

// FuzzDecode: whatever is stored, decode does not panic; what it accepts survives
// a rewrite, and makes a State whose views can be used.
func FuzzDecode(f *testing.F) {
	plan := testPlan(f)
	h := mesh.Host{Number: 1, RegionNumber: 1, Region: "fra", Key: key("h"), TLSKey: "t", Orgs: []string{"all"}}
	m := mesh.Machine{App: "web", Host: "h", Endpoint: plan.Endpoint(1, h.Position(), 1), State: "started"}
	c := mesh.Client{Key: key("c"), Endpoint: plan.Endpoint(1, h.Position(), 2), Home: "h", Gateway: "h"}
	for k, v := range map[string]any{
		"mesh": mesh.Mesh{Plan: plan, Schema: 1}, "orgs/acme": mesh.Org{Network: 1}, "apps/acme/web": mesh.App{TTL: 5},
		"regions/fra": mesh.Region{Number: 1, At: &mesh.Point{Latitude: 50, Longitude: 8}}, "hosts/h": h, "machines/acme/m": m,
		"clients/acme/c": c, "tokens/t": mesh.Token{Hash: hash("x"), Kind: "host"}, "operators/o": mesh.Operator{Role: "operator"},
		"presence/h": mesh.Presence{Controller: "c"}, "keys/x": "host/h",
	} {
		text, err := encode(nil, v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(k, text)
	}
	base := mesh.State{}.With(
		mesh.Change{Key: "mesh", Object: mesh.Mesh{Plan: plan}}, mesh.Change{Key: "orgs/acme", Object: mesh.Org{Name: "acme", Network: 1}},
		mesh.Change{Key: "hosts/other", Object: mesh.Host{Name: "other", Number: 2, RegionNumber: 1, Key: key("other"), Orgs: []string{"all"}}},
		mesh.Change{Key: "machines/acme/other", Object: mesh.Machine{Org: "acme", ID: "other", Host: "other", Endpoint: plan.Endpoint(1, ipam.Host{Region: 1, Number: 2}, 1)}},
	)
	f.Fuzz(func(t *testing.T, k string, value []byte) {
		object, err := decode(k, value, plan)
		if err != nil || object == nil {
			return
		}
		text, err := encode(value, object)
		if err != nil {
			t.Fatalf("%s: encode what was decoded: %v", k, err)
		}
		again, err := decode(k, text, plan)
		if err != nil {
			t.Fatalf("%s: decode %s: %v", k, text, err)
		}
		if diff := cmp.Diff(fmt.Sprintf("%+v", object), fmt.Sprintf("%+v", again)); diff != "" {
			if _, mesh := object.(mesh.Mesh); !mesh {
				t.Fatalf("%s (-first +again):\n%s", k, diff)
			}
		}
		if k == "mesh" {
			return
		}
		state := base.With(mesh.Change{Key: k, Object: object})
		for name := range state.Hosts.All() {
			v, _ := state.View(mesh.Node{Kind: mesh.KindHost, Name: name}, mesh.Deployment{})
			v.Config(wgtypes.Key{1}, 0)
			v.Addresses()
			v.Routes()
			v.Policy("weft0", 1, nil)
		}
		for _, c := range state.Clients.All() {
			v, _ := state.View(mesh.Node{Kind: mesh.KindClient, Org: c.Org, Name: c.Name}, mesh.Deployment{})
			v.Config(wgtypes.Key{1}, 0)
			v.Addresses()
		}
	})
}
