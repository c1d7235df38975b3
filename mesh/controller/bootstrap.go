package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/store"
)

// Files in the data directory.
const (
	sealFile     = "seal.key"      // see Config.SealKeyFile
	meshFile     = "mesh"          // pin of the mesh that the directory belongs to
	OperatorFile = "operator.yaml" // credential of a new mesh's first operator, see enroll.OperatorFile
)

// firstOperator is the id of a new mesh's first operator.
const firstOperator = "admin"

// firstCA is the id of a new mesh's certificate authority.
const firstCA = "1"

// ErrOtherMesh says that a data directory belongs to another mesh than the store.
var ErrOtherMesh = errors.New("it belongs to another mesh")

// open returns the mesh's certificate authorities, the one that signs first. If
// the store holds no mesh, it makes one.
func open(ctx context.Context, cfg Config) ([]*enroll.CA, error) {
	m, records, found, err := cfg.Store.Load(ctx)
	if err != nil {
		return nil, err
	}
	owner, err := readOwner(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if !found {
		if owner != "" {
			return nil, mesh.WithHint(fmt.Errorf("data directory %s: %w: mesh %s, and there is no mesh in etcd", cfg.DataDir, ErrOtherMesh, short(owner)),
				"restore etcd from a backup; or, to begin a new mesh, choose another --data-dir")
		}
		if err := create(ctx, cfg); err != nil {
			return nil, err
		}
		if m, records, found, err = cfg.Store.Load(ctx); err != nil || !found {
			return nil, errors.Join(err, only(!found, errors.New("the mesh that was just made is not in etcd")))
		}
	}
	if err := checkPrefix(cfg.Prefix, m); err != nil {
		return nil, err
	}
	cas, err := unseal(cfg, records, owner)
	if err != nil {
		return nil, err
	}
	if owner == "" {
		if err := enroll.WriteFile(filepath.Join(cfg.DataDir, meshFile), []byte(cas[0].Pin()+"\n")); err != nil {
			return nil, fmt.Errorf("mark the data directory: %w", err)
		}
	}
	return cas, nil
}

// unseal opens the certificate authorities with the seal key, which must be here.
func unseal(cfg Config, records []store.CARecord, owner string) ([]*enroll.CA, error) {
	hint := "copy it from the data directory of the controller that made the mesh (mode 0600): " + cfg.SealKeyFile
	key, err := enroll.LoadSealKey(cfg.SealKeyFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, mesh.WithHint(fmt.Errorf("there is a mesh in etcd, but not the key that opens its certificate authority: %w", err), "%s", hint)
	case err != nil:
		return nil, err
	}
	var cas []*enroll.CA
	for _, r := range records {
		ca, err := enroll.OpenCA(r.Certificate, r.SealedKey, key)
		if errors.Is(err, enroll.ErrSeal) {
			err = mesh.WithHint(fmt.Errorf("%s: %w", cfg.SealKeyFile, err), "%s", hint)
		}
		if err != nil {
			return nil, err
		}
		cas = append(cas, ca)
	}
	if len(cas) == 0 {
		return nil, errors.New("the mesh in etcd has no certificate authority")
	}
	for _, ca := range cas {
		if owner == "" || owner == ca.Pin() {
			return cas, nil
		}
	}
	return nil, mesh.WithHint(fmt.Errorf("data directory %s: %w: mesh %s, and etcd holds mesh %s", cfg.DataDir, ErrOtherMesh, short(owner), short(cas[0].Pin())),
		"choose the --data-dir of this mesh, or another etcd")
}

// create makes a new mesh. What the operator needs is on disk before the mesh is
// in etcd: a crash between leaves no mesh that nobody can administer.
func create(ctx context.Context, cfg Config) (err error) {
	plan, err := newPlan(cfg.Prefix)
	if err != nil {
		return err
	}
	ca, err := enroll.NewCA(time.Now())
	if err != nil {
		return err
	}
	credential, err := enroll.NewCredential(firstOperator)
	if err != nil {
		return err
	}
	_, statErr := os.Stat(cfg.SealKeyFile)
	key, err := enroll.LoadOrCreateSealKey(cfg.SealKeyFile)
	if err != nil {
		return err
	}
	sealed, err := ca.Seal(key)
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(enroll.OperatorFile{Controllers: cfg.Advertise, Pin: ca.Pin(), Credential: credential.Text()})
	if err != nil {
		return fmt.Errorf("write the operator's credential: %w", err)
	}
	path := filepath.Join(cfg.DataDir, OperatorFile)
	if err := enroll.WriteFile(path, text); err != nil {
		return fmt.Errorf("write the operator's credential: %w", err)
	}
	created, err := cfg.Store.Init(ctx, store.Genesis{
		Mesh:     mesh.Mesh{Plan: plan},
		CA:       store.CARecord{ID: firstCA, Certificate: ca.Certificate(), SealedKey: sealed},
		Operator: mesh.Operator{ID: firstOperator, Hash: credential.Secret.Hash(), Role: mesh.RoleOperator},
	})
	if err != nil {
		return err
	}
	if !created {
		// Another controller was faster: what was written here is of no mesh.
		os.Remove(path)
		if errors.Is(statErr, os.ErrNotExist) {
			os.Remove(cfg.SealKeyFile)
		}
		return nil
	}
	cfg.Log.Info("mesh created", "prefix", plan.String(), "pin", ca.Pin(), "operator", path)
	return nil
}

func newPlan(prefix netip.Prefix) (ipam.Plan, error) {
	if !prefix.IsValid() {
		var err error
		if prefix, err = ipam.RandomPrefix(rand.Reader); err != nil {
			return ipam.Plan{}, err
		}
	}
	plan, err := ipam.NewPlan(prefix)
	return plan, mesh.WithHint(err, "leave --prefix out, and one is drawn (RFC 4193)")
}

// checkPrefix refuses a prefix that is asked for and is not the mesh's.
func checkPrefix(asked netip.Prefix, m mesh.Mesh) error {
	if !asked.IsValid() || asked == m.Plan.Prefix() {
		return nil
	}
	return mesh.WithHint(fmt.Errorf("mesh prefix %s: the mesh in etcd has %s, and it cannot change", asked, m.Plan), "leave --prefix out")
}

// readOwner returns the pin of the mesh that the data directory belongs to, or "".
func readOwner(dir string) (string, error) {
	path := filepath.Join(dir, meshFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	pin := strings.TrimSpace(string(b))
	if err := enroll.CheckPin(pin); err != nil {
		return "", fmt.Errorf("data directory: read %s: %w", path, err)
	}
	return pin, nil
}

// short is enough of a pin to tell meshes apart by eye.
func short(pin string) string { return pin[:8] + "…" }

func only(when bool, err error) error {
	if when {
		return err
	}
	return nil
}
