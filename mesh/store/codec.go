package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"strings"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// encode writes v as JSON. Fields of old, the stored value that v replaces, that
// this program does not know are kept: a newer controller wrote them. (Within
// lists and inner objects they are not.)
func encode(old []byte, v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil || old == nil || reflect.TypeOf(v).Kind() != reflect.Struct {
		return text, err
	}
	var was map[string]json.RawMessage
	if json.Unmarshal(old, &was) != nil {
		return text, nil
	}
	known := fields(reflect.TypeOf(v))
	maps.DeleteFunc(was, func(name string, _ json.RawMessage) bool { return known[strings.ToLower(name)] })
	if len(was) == 0 {
		return text, nil
	}
	var now map[string]json.RawMessage
	if err := json.Unmarshal(text, &now); err != nil {
		return text, nil // not an object: nothing to keep
	}
	maps.Copy(was, now)
	return json.Marshal(was)
}

// fields returns the JSON names of a struct's fields, in lower case.
func fields(t reflect.Type) map[string]bool {
	out := map[string]bool{}
	if t.Kind() != reflect.Struct {
		return out
	}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		out[strings.ToLower(name)] = true
	}
	return out
}

// decode reads the value at key, both as stored, into the object that
// mesh.State.With takes. object is nil, without an error, for a kind that State
// does not hold. What decode accepts can be used: addresses and numbers are within
// their fields, and the names in the object are those of its key.
func decode(key string, value []byte, plan ipam.Plan) (object any, err error) {
	kind, rest, _ := strings.Cut(key, "/")
	first, second, two := strings.Cut(rest, "/")
	switch kind {
	case "mesh":
		if rest != "" {
			return nil, fmt.Errorf("key %q: not a key of this kind", key)
		}
		return decodeAs(value, func(m *mesh.Mesh) error { return checkMesh(*m) })
	case "orgs", "regions", "hosts", "tokens", "operators", "presence", "controllers", "coordinates", "grants":
		if two || mesh.CheckName(kind, first) != nil {
			return nil, fmt.Errorf("key %q: not a key of this kind", key)
		}
	case "addresses":
		third := ""
		if second, third, _ = strings.Cut(second, "/"); mesh.CheckName(kind, first) != nil || mesh.CheckName(kind, third) != nil ||
			second != mesh.KindMachine && second != mesh.KindClient {
			return nil, fmt.Errorf("key %q: not a key of this kind", key)
		}
		return decodeAs(value, func(r *mesh.Reservation) error {
			r.Org, r.Kind, r.Name = first, second, third
			return checkEndpoint(r.Endpoint, plan)
		})
	case "records":
		name, kind, _ := strings.Cut(second, "/")
		if known, err := mesh.RecordType(kind); mesh.CheckName(kind, first) != nil || mesh.CheckRecordName(name) != nil || err != nil || known != kind {
			return nil, fmt.Errorf("key %q: not a key of this kind", key)
		}
		return decodeAs(value, func(r *mesh.Record) error {
			r.Org, r.Name, r.Type = first, name, kind
			return checkRecord(r)
		})
	case "apps", "machines", "clients", "health":
		if mesh.CheckName(kind, first) != nil || mesh.CheckName(kind, second) != nil {
			return nil, fmt.Errorf("key %q: not a key of this kind", key)
		}
	}
	switch kind {
	case "orgs":
		return decodeAs(value, func(o *mesh.Org) error { o.Name = first; return checkNetwork(o.Network, plan) })
	case "apps":
		return decodeAs(value, func(a *mesh.App) error { a.Org, a.Name = first, second; return nil })
	case "regions":
		return decodeAs(value, func(r *mesh.Region) error { r.Name = first; return nil })
	case "hosts":
		return decodeAs(value, func(h *mesh.Host) error {
			h.Name = first
			return errors.Join(checkNumber(h.Number), checkKey(h.Key))
		})
	case "machines":
		return decodeAs(value, func(m *mesh.Machine) error {
			m.Org, m.ID = first, second
			return checkEndpoint(m.Endpoint, plan)
		})
	case "clients":
		return decodeAs(value, func(c *mesh.Client) error {
			c.Org, c.Name = first, second
			return errors.Join(checkEndpoint(c.Endpoint, plan), checkKey(c.Key))
		})
	case "tokens":
		return decodeAs(value, func(t *mesh.Token) error { t.ID = first; return nil })
	case "operators":
		return decodeAs(value, func(o *mesh.Operator) error { o.ID = first; return nil })
	case "controllers":
		return decodeAs(value, func(c *mesh.Controller) error { c.Name = first; return nil })
	case "health":
		return decodeAs(value, func(h *mesh.Health) error { h.Org, h.Machine = first, second; return nil })
	case "coordinates":
		return decodeAs(value, func(c *mesh.Coordinate) error { return c.Validate() })
	case "grants":
		return decodeAs(value, func(g *mesh.Grant) error { g.ID = first; return checkGrant(g) })
	case "presence":
		return decodeAs(value, func(p *mesh.Presence) error { p.Host = first; return nil })
	}
	return nil, nil
}

func decodeAs[T any](value []byte, check func(*T) error) (any, error) {
	var v T
	if err := json.Unmarshal(value, &v); err != nil {
		return nil, err
	}
	if err := check(&v); err != nil {
		return nil, err
	}
	return v, nil
}

func checkMesh(m mesh.Mesh) error {
	if !m.Plan.IsValid() {
		return errors.New("the mesh has no prefix")
	}
	return nil
}

func checkNetwork(n uint64, plan ipam.Plan) error {
	if n == 0 || plan.IsValid() && n > plan.MaxNetwork() {
		return fmt.Errorf("network %d is not one of mesh %s", n, plan)
	}
	return nil
}

func checkNumber(n uint32) error {
	if n == 0 || n > ipam.MaxHost {
		return fmt.Errorf("host number %d is not within 1 to %d", n, ipam.MaxHost)
	}
	return nil
}

func checkKey(k mesh.Key) error {
	if k == (mesh.Key{}) {
		return errors.New("it has no WireGuard key")
	}
	return nil
}

// checkRecord puts a record into the form that CreateRecord gives it.
func checkRecord(r *mesh.Record) error {
	canonical, err := r.Canonical()
	*r = canonical
	return err
}

// checkGrant puts a grant into the form that CreateGrant gives it.
func checkGrant(g *mesh.Grant) error {
	canonical, err := g.Canonical()
	*g = canonical
	return err
}

func checkEndpoint(p netip.Prefix, plan ipam.Plan) error {
	if p.Bits() != ipam.EndpointBits || p.Masked() != p || plan.IsValid() && !plan.Prefix().Contains(p.Addr()) {
		return fmt.Errorf("endpoint %s is not a /%d of mesh %s", p, ipam.EndpointBits, plan)
	}
	return nil
}
