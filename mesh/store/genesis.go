package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// Schema is the version of the stored format that this program writes. It reads
// this one and older ones.
const Schema = 1

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
		if err := t.fetch(ctx, keyMesh); err != nil {
			return err
		}
		if created = t.seen[keyMesh] == nil; !created {
			return nil
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
	g.Mesh.Schema = Schema
	if g.Mesh.Epoch == 0 {
		var b [4]byte
		if _, err := io.ReadFull(s.config.Rand, b[:]); err != nil {
			return fmt.Errorf("draw an epoch: %w", err)
		}
		g.Mesh.Epoch = cmp.Or(binary.BigEndian.Uint32(b[:]), 1)
	}
	return nil
}

// Load reads the mesh record and the certificate authorities, as of now
// (linearizable), without the mirror. found is false, without an error, if there
// is no mesh. A mesh of a newer format is refused.
func (s *Store) Load(ctx context.Context) (m mesh.Mesh, cas []CARecord, found bool, err error) {
	r, err := s.commit(ctx, nil, []clientv3.Op{
		clientv3.OpGet(s.root + keyMesh),
		clientv3.OpGet(s.root+keyCAs, clientv3.WithPrefix()),
	})
	if err != nil {
		return m, nil, false, fmt.Errorf("load mesh: %w", err)
	}
	records := r.Responses[0].GetResponseRange().Kvs
	if len(records) == 0 {
		return m, nil, false, nil
	}
	if m, err = decodeMesh(records[0].Value); err != nil {
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

func decodeMesh(value []byte) (mesh.Mesh, error) {
	var version struct {
		Schema int `json:"schema"`
	}
	// The version first: a newer format may not even parse as this one.
	if err := unmarshal(keyMesh, value, &version); err != nil {
		return mesh.Mesh{}, err
	}
	if version.Schema > Schema {
		return mesh.Mesh{}, mesh.WithHint(
			fmt.Errorf("the mesh is stored in format %d, and this program knows formats up to %d", version.Schema, Schema),
			"run the version of weft-controller that last ran here, or a newer one")
	}
	object, err := decode(keyMesh, value, (mesh.Mesh{}).Plan)
	if err != nil {
		return mesh.Mesh{}, fmt.Errorf("stored value of %s: %w", keyMesh, err)
	}
	return object.(mesh.Mesh), nil
}
