package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// registration is what this controller says about itself: a record that stays when
// it crashes, and beside it a key on the lease of presence, which says that it is
// alive.
type registration struct {
	mu      sync.Mutex // guards the fields below, not the requests
	record  *mesh.Controller
	written clientv3.LeaseID // the lease that the record was last written with
}

// controllerRest is how long the record of a controller that is not alive stays.
const controllerRest = 24 * time.Hour

const keyAlive = keyElection + "alive/"

func aliveKey(controller string) string { return keyAlive + controller }

// goneKey holds since when a controller has not been alive. It is not mirrored.
func goneKey(controller string) string { return keyVolatile + "controllers/" + controller }

type goneSince struct {
	Since time.Time `json:"since"`
}

// Register makes this controller known to the others and to the nodes, until Leave,
// or until it has not been alive for a day. Schema is filled in, and Started if it
// is zero. It waits for etcd until ctx ends; if etcd answers and takes no writes, for
// want of space, it is made known later. Errors: a mesh of a newer format;
// ErrExists, the name is that of another controller, which is alive.
func (s *Store) Register(ctx context.Context, c mesh.Controller) error {
	if err := mesh.CheckName("controller", c.Name); err != nil {
		return invalid(err)
	}
	c.Schema = s.config.Schema
	if c.Started.IsZero() {
		c.Started = s.now()
	}
	r := &s.registration
	r.mu.Lock()
	r.record, r.written = &c, 0
	r.mu.Unlock()
	for attempt := 0; ; attempt++ {
		err := s.settleRegistration(ctx)
		if err == nil {
			return nil
		}
		// Reads and streams need not wait until etcd takes writes again. Presence goes on
		// trying, and ends this controller if the format is raised meanwhile.
		if n := new(noAnswer); errors.As(err, &n) && n.refused && s.mirror.isReady() {
			s.log.Warn("this controller is not registered yet", "controller", c.Name, "err", err)
			return nil
		}
		if !errors.Is(err, ErrUnavailable) || wait(ctx, min(10*time.Millisecond<<min(attempt, 7), time.Second)) != nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.record = nil
			return fmt.Errorf("register controller %s: %w", c.Name, err)
		}
	}
}

// settleRegistration writes the record if the current lease has not seen it, or if
// it is gone. An error that does not wrap ErrUnavailable is final.
func (s *Store) settleRegistration(ctx context.Context) error {
	unlock, err := s.locks.lock(ctx, "registration")
	if err != nil {
		return err
	}
	defer unlock()
	if m := s.mesh.Load(); m != nil && m.Schema > s.config.Schema {
		return s.tooNew(m.Schema)
	}
	r := &s.registration
	r.mu.Lock()
	record, written := r.record, r.written
	r.mu.Unlock()
	lease := s.presence.current()
	switch {
	case record == nil:
		return nil
	case lease == 0:
		return errNoLease
	case written == lease && (s.State().Controllers.Has(record.Name) || !s.knows(keyControllers)):
		return nil
	}
	_, err = s.change(ctx, "controller/"+record.Name, func(ctx context.Context, t *tx) error {
		return t.register(ctx, *record, lease)
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		s.wakePresence()
		return errNoLease
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written = lease
	return nil
}

var errNoLease = fmt.Errorf("%w: this controller has no lease yet", ErrUnavailable)

// register is the transaction of a registration. It reads the mesh record, so the
// format cannot be raised past this controller at the same moment.
func (t *tx) register(ctx context.Context, c mesh.Controller, lease clientv3.LeaseID) error {
	if err := t.fetch(ctx, keyMesh, controllerKey(c.Name), aliveKey(c.Name), goneKey(c.Name)); err != nil {
		return err
	}
	stored := t.seen[keyMesh]
	if stored == nil {
		return fmt.Errorf("mesh at %s: %w", t.s.root, ErrNotFound)
	}
	if _, err := t.s.decodeMesh(stored.Value); err != nil {
		return err
	}
	was, _, err := get[mesh.Controller](ctx, t, controllerKey(c.Name))
	if err != nil {
		return err
	}
	alive := t.seen[aliveKey(c.Name)]
	if alive != nil && clientv3.LeaseID(alive.Lease) != lease && !slices.Equal(was.URLs, c.URLs) {
		return mesh.WithHint(fmt.Errorf("controller name %s: %w: the controller at %s has it, and is alive", c.Name, ErrExists, strings.Join(was.URLs, " ")),
			"give each controller another --name")
	}
	if t.seen[goneKey(c.Name)] != nil {
		t.delete(goneKey(c.Name))
	}
	t.ops = append(t.ops, clientv3.OpPut(t.s.root+aliveKey(c.Name), "", clientv3.WithLease(lease)))
	return t.put(controllerKey(c.Name), c)
}

// Leave takes this controller's record away: the nodes go to the others. While
// there are others, the presence of this one's hosts is then left to them: it is
// not withdrawn when a stream ends, but expires if nobody takes it over.
func (s *Store) Leave(ctx context.Context) error {
	unlock, err := s.locks.lock(ctx, "registration")
	if err != nil {
		return err
	}
	defer unlock()
	r := &s.registration
	r.mu.Lock()
	record := r.record
	r.record = nil
	r.mu.Unlock()
	if record == nil {
		return nil
	}
	alive, err := s.list(ctx, keyAlive, 0)
	if err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	own := s.root + aliveKey(record.Name)
	others := slices.ContainsFunc(alive, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) != own })
	s.presence.handOver(others)
	ours := clientv3.Compare(clientv3.LeaseValue(own), "=", s.presence.current())
	if _, err := s.commit(ctx, []clientv3.Cmp{ours}, deletes(own, s.root+controllerKey(record.Name))); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

// forgetControllers removes the records of controllers that have not been alive for
// a day, and notes who is not alive now.
func (s *Store) forgetControllers(ctx context.Context) error {
	records, err := s.list(ctx, keyControllers, 0)
	if err != nil {
		return err
	}
	for _, kv := range records {
		name := strings.TrimPrefix(string(kv.Key), s.root+keyControllers)
		if err := s.forgetController(ctx, name); err != nil {
			return fmt.Errorf("controller %s: %w", name, err)
		}
	}
	return nil
}

func (s *Store) forgetController(ctx context.Context, name string) error {
	forgotten := false
	_, err := s.change(ctx, "", func(ctx context.Context, t *tx) error {
		forgotten = false
		if err := t.fetch(ctx, controllerKey(name), aliveKey(name), goneKey(name)); err != nil {
			return err
		}
		if t.seen[controllerKey(name)] == nil || t.seen[aliveKey(name)] != nil {
			return nil
		}
		var gone goneSince
		noted := t.seen[goneKey(name)]
		if noted == nil {
			return t.put(goneKey(name), goneSince{s.now()})
		}
		if err := json.Unmarshal(noted.Value, &gone); err != nil {
			return t.put(goneKey(name), goneSince{s.now()})
		}
		if forgotten = s.now().Sub(gone.Since) >= controllerRest; forgotten {
			t.delete(controllerKey(name))
			t.delete(goneKey(name))
		}
		return nil
	})
	if err == nil && forgotten {
		s.log.Info("controller forgotten: it has not been alive for a day", "controller", name)
	}
	return err
}

// raiseSchema raises the stored format to the newest one that every controller
// that is alive knows. A controller that is not alive is refused when it comes
// back, if it is older.
func (s *Store) raiseSchema(ctx context.Context) error {
	raised := 0
	_, err := s.change(ctx, "", func(ctx context.Context, t *tx) (err error) {
		raised, err = t.raiseSchema(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("raise the stored format: %w", err)
	}
	if raised > 0 {
		s.log.Info("the mesh is stored in a newer format from now on", "format", raised)
	}
	return nil
}

func (t *tx) raiseSchema(ctx context.Context) (raised int, err error) {
	if err := t.fetch(ctx, keyMesh); err != nil || t.seen[keyMesh] == nil {
		return 0, err
	}
	m, err := t.s.decodeMesh(t.seen[keyMesh].Value)
	if err != nil || m.Schema >= t.s.config.Schema {
		return 0, err
	}
	known, err := t.knownByAll(ctx)
	if err != nil || known <= m.Schema {
		return 0, err
	}
	m.Schema = known
	return known, errors.Join(t.put(keyMesh, m), t.event("mesh.format", "", fmt.Sprint(known)))
}

// knownByAll is the newest format that this controller and all others that are
// alive know; 0 if that cannot be told. The commit compares that no controller came
// or changed since.
func (t *tx) knownByAll(ctx context.Context) (int, error) {
	r, err := t.read(ctx,
		clientv3.OpGet(t.s.root+keyControllers, clientv3.WithPrefix()),
		clientv3.OpGet(t.s.root+keyAlive, clientv3.WithPrefix(), clientv3.WithKeysOnly()),
		clientv3.OpGet(t.s.root+"presence/", clientv3.WithPrefix()))
	if err != nil {
		return 0, err
	}
	known, registered := t.s.config.Schema, map[string]bool{}
	for _, kv := range r[0].Kvs {
		key := strings.TrimPrefix(string(kv.Key), t.s.root)
		t.seen[key] = kv
		object, err := decode(key, kv.Value, t.s.plan())
		c, is := object.(mesh.Controller)
		if err != nil || !is {
			return 0, nil
		}
		registered[c.Name] = true
		if slices.ContainsFunc(r[1].Kvs, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == t.s.root+aliveKey(c.Name) }) {
			known = min(known, c.Schema)
		}
	}
	for _, kv := range r[2].Kvs {
		// Controllers of the first format did not register, but had hosts.
		var p mesh.Presence
		if json.Unmarshal(kv.Value, &p) != nil || !registered[p.Controller] {
			return 0, nil
		}
	}
	if len(r[1].Kvs) == 0 {
		return 0, nil
	}
	// Whoever comes or comes back writes its record, too.
	t.unchanged(keyControllers, r[0].Header.Revision)
	return known, nil
}
