package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// FuzzDecodeKept: FuzzDecode for what the mirror holds besides the nodes: kept
// addresses, controllers, presence, records, health, coordinates, grants.
func FuzzDecodeKept(f *testing.F) {
	plan := testPlan(f)
	endpoint := plan.Endpoint(1, ipam.Host{Region: 1, Number: 1}, 7)
	for k, v := range map[string]any{
		"addresses/acme/machine/m": mesh.Reservation{Endpoint: endpoint, Generation: 3, Until: time.Unix(1893456000, 0)},
		"addresses/acme/client/c":  mesh.Reservation{Endpoint: endpoint},
		"controllers/ctl":          mesh.Controller{URLs: []string{"https://ctl:7443"}, Version: "1", Schema: 1},
		"presence/h":               mesh.Presence{Controller: "ctl"},
		"records/acme/a.b/TXT":     mesh.Record{Values: []string{"x", ""}, TTL: 7},
		"grants/7":                 mesh.Grant{From: mesh.Party{Org: "acme"}, To: mesh.Party{Org: "b", App: "db"}, Protocol: "tcp", FirstPort: 5},
		"records/acme/a/alias":     mesh.Record{Values: []string{"web.internal"}},
		"records/acme/_p._tcp/SRV": mesh.Record{Values: []string{"0 1 80 web.internal"}},
		"records/acme/a/aaaa":      mesh.Record{Values: []string{"fd12::1"}}, "records/acme/a/AAAA": mesh.Record{Values: []string{"fd12::1"}},
		"health/acme/m":    mesh.Health{Passing: true, Since: time.Unix(1893456000, 0), Note: "x"},
		"coordinates/h":    place(0.1),
		"addresses/acme/m": mesh.Reservation{}, "controllers/a/b": mesh.Controller{},
	} {
		text, err := encode(nil, v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(k, text)
	}
	base := mesh.State{}.With(
		mesh.Change{Key: "mesh", Object: mesh.Mesh{Plan: plan}}, mesh.Change{Key: "orgs/acme", Object: mesh.Org{Name: "acme", Network: 1}},
		mesh.Change{Key: "hosts/h", Object: mesh.Host{Name: "h", Number: 1, RegionNumber: 1, Key: key("h"), Orgs: []string{"all"}}},
		mesh.Change{Key: "machines/acme/m", Object: mesh.Machine{Org: "acme", ID: "m", Host: "h", Endpoint: endpoint}},
	)
	f.Fuzz(func(t *testing.T, k string, value []byte) {
		if kind, _, _ := strings.Cut(k, "/"); kind == "mesh" {
			return // FuzzDecode's
		}
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
			t.Fatalf("%s (-first +again):\n%s", k, diff)
		}
		state := base.With(mesh.Change{Key: k, Object: object})
		v, _ := state.View(mesh.Node{Kind: mesh.KindHost, Name: "h"}, mesh.Deployment{})
		v.Config(wgtypes.Key{1}, 0)
		v.Addresses()
		v.Routes()
		// It is where its key says, and what it says can be told to others.
		if r, ok := object.(mesh.Record); ok && k != recordKey(r.Org, r.Name, r.Type) {
			t.Fatalf("%s: %+v", k, r)
		}
		if c, ok := object.(mesh.Coordinate); ok && c.Validate() != nil {
			t.Fatalf("%s: %+v: %v", k, c, c.Validate())
		}
		// Taken away again, nothing of it is left.
		if r, ok := object.(mesh.Reservation); ok {
			if !r.Endpoint.IsValid() || k != "addresses/"+r.Org+"/"+r.Kind+"/"+r.Name {
				t.Fatalf("%s: %+v", k, r)
			}
			if n := state.With(mesh.Change{Key: k}).Reserved.Len(); n != 0 {
				t.Fatalf("%s: %d kept addresses are left", k, n)
			}
		}
	})
}

// FuzzResting: whatever stands under a space's numbers that rest, what is taken for
// a number can be given, and its key is the one that it would be given back to.
func FuzzResting(f *testing.F) {
	n := slots(7, 9)
	for _, k := range []string{restingKey(n.resting, time.Unix(1893456000, 0), 3), n.resting, n.resting + "-", n.resting + "1-70000", n.resting + "x-1", n.resting + "1-2-3"} {
		f.Add(k)
	}
	t0 := &tx{s: &Store{root: "/weft/"}}
	f.Fuzz(func(t *testing.T, k string) {
		key, number := t0.resting(n, &mvccpb.KeyValue{Key: []byte("/weft/" + k)})
		if number == 0 {
			return
		}
		if number > n.max || key != k {
			t.Fatalf("%q is number %d at %q", k, number, key)
		}
	})
}

// FuzzStoredNumbers: counters and other values that State does not hold are read or
// refused; what is read is written the same.
func FuzzStoredNumbers(f *testing.F) {
	for _, text := range []string{"1", "65536", "-1", "1e3", `"7"`, "18446744073709551616", "", "null", `{"number":7}`, `{"number":-7}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		var next, again uint64
		if err := unmarshal("next/host", value, &next); err == nil {
			text, err := encode(value, next)
			if err != nil {
				t.Fatal(err)
			}
			if err := unmarshal("next/host", text, &again); err != nil || again != next {
				t.Fatalf("%s: %d, then %d: %v", value, next, again, err)
			}
		}
		var job, then removal
		if err := unmarshal(removingKey("h"), value, &job); err == nil {
			text, err := encode(value, job)
			if err != nil {
				t.Fatal(err)
			}
			if err := unmarshal(removingKey("h"), text, &then); err != nil || job != then {
				t.Fatalf("%s: %+v, then %+v: %v", value, job, then, err)
			}
		}
		var e, after mesh.Event
		if err := unmarshal(keyAudit+"x", value, &e); err == nil {
			text, err := json.Marshal(e)
			if err != nil {
				return // a year that JSON has no form for
			}
			if err := unmarshal(keyAudit+"x", text, &after); err != nil || !e.Time.Equal(after.Time) || e.Actor != after.Actor {
				t.Fatalf("%s: %+v, then %+v: %v", value, e, after, err)
			}
		}
	})
}

// FuzzEncode: a rewrite never fails, whatever was stored, and what this program
// knows is what it wrote.
func FuzzEncode(f *testing.F) {
	for _, old := range []string{"", "{}", `{"rack":"r7","Name":"x"}`, `[1]`, `{"name":{"a":1},"orgs":null}`, `{"number":1,"NUMBER":2}`} {
		f.Add([]byte(old), "h", uint32(3))
	}
	f.Fuzz(func(t *testing.T, old []byte, region string, number uint32) {
		h := mesh.Host{Name: "h", Region: region, Number: number, Key: key("h"), Orgs: []string{"all"}}
		text, err := encode(old, h)
		if err != nil {
			t.Fatal(err)
		}
		var got, want mesh.Host
		plain, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if err := json.Unmarshal(plain, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, compare); diff != "" {
			t.Fatalf("over %s (-written +read):\n%s", old, diff)
		}
	})
}
