package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/backup"
	"github.com/weftmesh/weft/mesh/enroll"
)

// dumpPage is how many keys are read at once: it bounds the memory that a backup
// takes. etcd counts all keys that are left with every page.
const dumpPage = 2000

const keyPresence = "presence/"

// passing are the kinds that are true only now: they are in no backup.
var passing = []string{keyElection, keyPresence}

// Dump writes a backup of everything below the root, as of one revision, while
// changes go on. Presence and elections are not in it. What was written before an
// error is not a backup, and does not read as one.
//
// actor, unless empty, gets an entry in the audit log. A full etcd takes none, and
// is backed up all the same.
func (s *Store) Dump(ctx context.Context, actor string, w io.Writer) (backup.Summary, error) {
	if actor != "" {
		if err := s.Note(ctx, actor, "mesh.backup", "", ""); err != nil {
			s.log.Warn("a backup is not in the audit log", "actor", actor, "err", err)
		}
	}
	summary, err := s.dump(ctx, w)
	if err != nil {
		return summary, fmt.Errorf("back up the mesh at %s: %w", s.root, err)
	}
	return summary, nil
}

func (s *Store) dump(ctx context.Context, w io.Writer) (backup.Summary, error) {
	header, err := s.dumpHeader(ctx)
	if err != nil {
		return backup.Summary{}, err
	}
	out, err := backup.NewWriter(w, header)
	if err != nil {
		return backup.Summary{}, err
	}
	for _, r := range s.beside(passing...) {
		if err := s.dumpRange(ctx, out, header.At, r[0], r[1]); err != nil {
			return backup.Summary{}, err
		}
	}
	return out.Close()
}

// dumpHeader reads what the header says, and by that the revision of the backup.
func (s *Store) dumpHeader(ctx context.Context) (h backup.Header, err error) {
	r, err := s.commit(ctx, nil, []clientv3.Op{
		clientv3.OpGet(s.root + keyMesh), clientv3.OpGet(s.root+keyCAs, clientv3.WithPrefix()),
	})
	if err != nil {
		return h, err
	}
	found := r.Responses[0].GetResponseRange().Kvs
	if len(found) == 0 {
		return h, fmt.Errorf("mesh: %w", ErrNotFound)
	}
	m, err := s.decodeMesh(found[0].Value)
	if err != nil {
		return h, err
	}
	h = backup.Header{
		Root: s.root, Prefix: m.Plan.String(), Epoch: m.Epoch, At: r.Header.Revision, Schema: m.Schema,
		Created: m.Created, Taken: s.now(),
	}
	for _, kv := range r.Responses[1].GetResponseRange().Kvs {
		var ca CARecord
		if err := unmarshal(string(kv.Key), kv.Value, &ca); err != nil {
			return h, err
		}
		pin, err := enroll.CertificatePin(ca.Certificate)
		if err != nil {
			s.log.Warn("a certificate authority cannot be read; it is in the backup as it is", "ca", ca.ID, "err", err)
		}
		h.CAs = append(h.CAs, backup.Authority{ID: ca.ID, Pin: pin})
	}
	return h, nil
}

// dumpRange writes the keys from from to before to, as they were at revision rev.
func (s *Store) dumpRange(ctx context.Context, out *backup.Writer, rev int64, from, to string) error {
	for {
		r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(from, clientv3.WithRange(to), clientv3.WithRev(rev), clientv3.WithLimit(dumpPage))})
		if errors.Is(err, rpctypes.ErrCompacted) {
			return mesh.WithHint(fmt.Errorf("%w: revision %d was compacted before all of it was read", ErrUnavailable, rev),
				"take the backup again, over a faster connection or near the controller")
		}
		if err != nil {
			return err
		}
		found := r.Responses[0].GetResponseRange()
		for _, kv := range found.Kvs {
			if err := out.Write(backup.Record{Key: strings.TrimPrefix(string(kv.Key), s.root), Value: kv.Value}); err != nil {
				return err
			}
			from = string(kv.Key) + "\x00"
		}
		if !found.More {
			return nil
		}
	}
}

// Note adds an entry to the audit log about what changed nothing.
func (s *Store) Note(ctx context.Context, actor, action, target, note string) error {
	_, err := s.change(ctx, actor, func(_ context.Context, t *tx) error { return t.event(action, target, note) })
	return err
}
