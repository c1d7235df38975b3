package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// Schema is the newest version of the stored format that this program knows. It
// works on this one and on older ones. New in 2 are reservations of endpoints,
// generations, and the controllers' own records: beside a controller that knows
// only 1 they are safe, as it keeps fields and passes over kinds that it does not
// know, and an endpoint that is reserved is none that it could give. New in 3 are
// records, health and coordinates: one that knows only 2 leaves them behind when it
// removes what they are of, so there are no records before the format is 3. New in 4
// are grants, by the same rule.
const Schema = 4

// CARecord is a certificate authority as stored: the key is sealed by the caller.
type CARecord struct {
	ID          string `json:"id"`
	Certificate []byte `json:"certificate"` // DER
	SealedKey   []byte `json:"sealed_key"`
}

// Genesis is what a mesh begins with.
type Genesis struct {
	Mesh     mesh.Mesh // Plan is required; Created and Epoch are filled in if zero, Schema always
	CA       CARecord
	Operator mesh.Operator
}

// Init creates the mesh, its certificate authority and its first operator in one
// transaction. created is false, without an error, if there is a mesh already; of
// two controllers that race one creates it, and both then Load the same.
func (s *Store) Init(ctx context.Context, g Genesis) (created bool, err error) {
	if err := s.complete(&g); err != nil {
		return false, fmt.Errorf("create mesh: %w", err)
	}
	_, err = s.change(ctx, "operator/"+g.Operator.ID, func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, keyMesh, keyRestoring); err != nil {
			return err
		}
		if created = t.seen[keyMesh] == nil; !created {
			return nil
		}
		if t.seen[keyRestoring] != nil {
			return s.halfRestored()
		}
		return errors.Join(
			t.put(keyMesh, g.Mesh),
			t.put(caKey(g.CA.ID), g.CA),
			t.put(operatorKey(g.Operator.ID), g.Operator),
			t.event("mesh.create", g.Mesh.Plan.String(), ""))
	})
	if err != nil {
		return false, fmt.Errorf("create mesh: %w", err)
	}
	return created, nil
}

// complete checks g and fills it in.
func (s *Store) complete(g *Genesis) error {
	if err := checkMesh(g.Mesh); err != nil {
		return invalid(err)
	}
	if err := mesh.CheckName("certificate authority", g.CA.ID); err != nil {
		return invalid(err)
	}
	if err := checkOperator(g.Operator); err != nil {
		return invalid(err)
	}
	now := s.now()
	if g.Mesh.Created.IsZero() {
		g.Mesh.Created = now
	}
	if g.Operator.Created.IsZero() {
		g.Operator.Created = now
	}
	g.Mesh.Schema = s.config.Schema
	// Epochs are ordered: a restore and a migration take a higher one.
	g.Mesh.Epoch = cmp.Or(g.Mesh.Epoch, 1)
	return nil
}

// Load reads the mesh record and the certificate authorities, as of now
// (linearizable), without the mirror. found is false, without an error, if there
// is no mesh. A mesh of a newer format is refused.
func (s *Store) Load(ctx context.Context) (m mesh.Mesh, cas []CARecord, found bool, err error) {
	r, err := s.commit(ctx, nil, []clientv3.Op{
		clientv3.OpGet(s.root + keyMesh),
		clientv3.OpGet(s.root+keyCAs, clientv3.WithPrefix()),
		clientv3.OpGet(s.root+keyRestoring, clientv3.WithCountOnly()),
	})
	if err != nil {
		return m, nil, false, fmt.Errorf("load mesh: %w", err)
	}
	records := r.Responses[0].GetResponseRange().Kvs
	if len(records) == 0 {
		if r.Responses[2].GetResponseRange().Count > 0 {
			err = s.halfRestored()
		}
		return m, nil, false, err
	}
	if m, err = s.decodeMesh(records[0].Value); err != nil {
		return m, nil, true, fmt.Errorf("load mesh: %w", err)
	}
	for _, kv := range r.Responses[1].GetResponseRange().Kvs {
		var ca CARecord
		if err := unmarshal(string(kv.Key), kv.Value, &ca); err != nil {
			return m, nil, true, fmt.Errorf("load mesh: %w", err)
		}
		cas = append(cas, ca)
	}
	s.mesh.Store(&m)
	return m, cas, true, nil
}

func (s *Store) decodeMesh(value []byte) (mesh.Mesh, error) {
	var version struct {
		Schema int `json:"schema"`
	}
	// The version first: a newer format may not even parse as this one.
	if err := unmarshal(keyMesh, value, &version); err != nil {
		return mesh.Mesh{}, err
	}
	if version.Schema > s.config.Schema {
		return mesh.Mesh{}, s.tooNew(version.Schema)
	}
	object, err := decode(keyMesh, value, (mesh.Mesh{}).Plan)
	if err != nil {
		return mesh.Mesh{}, fmt.Errorf("stored value of %s: %w", keyMesh, err)
	}
	return object.(mesh.Mesh), nil
}

// tooNew says that the mesh is stored in a format that this program does not know.
func (s *Store) tooNew(format int) error {
	return mesh.WithHint(
		fmt.Errorf("%w: the mesh is stored in format %d, and this program knows formats up to %d", ErrFormat, format, s.config.Schema),
		"run the version of weft-controller that last ran here, or a newer one")
}

// since tells, of the kinds that came later, with which version of the format they
// did. A controller that knows only older ones passes them over.
var since = map[string]int{keyAddresses: 2, keyControllers: 2, keyRecords: 3, keyHealth: 3, keyCoordinates: 3, keyGrants: 4}

// knows reports whether this store knows the kind of a key.
func (s *Store) knows(key string) bool {
	kind, _, _ := strings.Cut(key, "/")
	return since[kind+"/"] <= s.config.Schema
}
