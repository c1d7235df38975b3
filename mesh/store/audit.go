package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// auditTime makes audit ids sort by time.
const auditTime = "20060102T150405.000000Z"

// maxEvents bounds one answer of Events.
const maxEvents = 10000

// Events returns the newest entries of the audit log, at most limit, oldest first.
func (s *Store) Events(ctx context.Context, limit int) ([]mesh.Event, error) {
	limit = min(max(limit, 0), maxEvents)
	if limit == 0 {
		return nil, nil
	}
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(s.root+keyAudit, clientv3.WithPrefix(),
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(int64(limit)))})
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	kvs := r.Responses[0].GetResponseRange().Kvs
	out := make([]mesh.Event, 0, len(kvs))
	for _, kv := range slices.Backward(kvs) {
		var e mesh.Event
		if err := unmarshal(string(kv.Key), kv.Value, &e); err != nil {
			return nil, fmt.Errorf("list events: %w", err)
		}
		e.ID = strings.TrimPrefix(string(kv.Key), s.root+keyAudit)
		out = append(out, e)
	}
	return out, nil
}

// trim keeps the audit log within its limits.
func (s *Store) trim(ctx context.Context) error {
	oldest := s.now().Add(-s.config.AuditAge).Format(auditTime)
	if err := s.forget(ctx, keyAudit, clientv3.WithRange(s.root+keyAudit+oldest)); err != nil {
		return err
	}
	for {
		r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(s.root+keyAudit, clientv3.WithPrefix(), clientv3.WithCountOnly())})
		if err != nil {
			return err
		}
		over := r.Responses[0].GetResponseRange().Count - s.config.AuditSize
		if over <= 0 {
			return nil
		}
		if _, err := s.forgetSome(ctx, keyAudit, min(over, maxOps), clientv3.WithPrefix()); err != nil {
			return err
		}
	}
}

// forget deletes all of a range.
func (s *Store) forget(ctx context.Context, from string, to clientv3.OpOption) error {
	for {
		if n, err := s.forgetSome(ctx, from, maxOps, to); err != nil || n == 0 {
			return err
		}
	}
}

// forgetSome deletes the first keys of a range, and returns how many.
func (s *Store) forgetSome(ctx context.Context, from string, limit int64, to clientv3.OpOption) (int, error) {
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(s.root+from, to, clientv3.WithLimit(limit), clientv3.WithKeysOnly())})
	if err != nil {
		return 0, err
	}
	var keys []string
	for _, kv := range r.Responses[0].GetResponseRange().Kvs {
		keys = append(keys, string(kv.Key))
	}
	if len(keys) == 0 {
		return 0, nil
	}
	_, err = s.commit(ctx, nil, deletes(keys...))
	return len(keys), err
}

// ExpireTokens removes tokens that expired a while ago.
func (s *Store) ExpireTokens(ctx context.Context) error {
	kvs, err := s.list(ctx, keyTokens, 0)
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		if !s.outdated(kv) {
			continue
		}
		unchanged := clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision)
		if _, err := s.commit(ctx, []clientv3.Cmp{unchanged}, deletes(string(kv.Key))); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) outdated(kv *mvccpb.KeyValue) bool {
	object, err := decode(strings.TrimPrefix(string(kv.Key), s.root), kv.Value, s.plan())
	token, ok := object.(mesh.Token)
	return err == nil && ok && s.now().Sub(token.Expires) > tokenGrace
}

// SaveReport keeps what a host tells about itself, as JSON. It is not mirrored,
// so it may be often. A host that is not there gets ErrNotFound.
func (s *Store) SaveReport(ctx context.Context, host string, report any) error {
	text, err := encode(nil, report)
	if err != nil {
		return fmt.Errorf("save report of host %s: %w", host, err)
	}
	there := clientv3.Compare(clientv3.CreateRevision(s.root+hostKey(host)), ">", 0)
	r, err := s.commit(ctx, []clientv3.Cmp{there}, []clientv3.Op{clientv3.OpPut(s.root+reportKey(host), string(text))})
	if err == nil && !r.Succeeded {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("save report of host %s: %w", host, err)
	}
	return nil
}

// LoadReport reads into report what SaveReport kept. It wraps ErrNotFound if the
// host has not reported.
func (s *Store) LoadReport(ctx context.Context, host string, report any) error {
	r, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpGet(s.root + reportKey(host))})
	if err == nil && len(r.Responses[0].GetResponseRange().Kvs) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("load report of host %s: %w", host, err)
	}
	return unmarshal(reportKey(host), r.Responses[0].GetResponseRange().Kvs[0].Value, report)
}
