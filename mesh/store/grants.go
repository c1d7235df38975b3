package store

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// grantsFormat is the stored format since which grants are known. An org that a
// controller of an older one removes keeps its grants, and its hosts are not told.
const grantsFormat = 4

// CreateGrant lets endpoints of one org begin flows to endpoints of another. The ID
// is drawn.
func (s *Store) CreateGrant(ctx context.Context, actor string, g mesh.Grant) (made mesh.Grant, rev int64, err error) {
	if g, err = g.Canonical(); err != nil {
		return made, 0, invalid(err)
	}
	if g.ID, err = s.draw(4); err != nil {
		return made, 0, err
	}
	g.Created = s.now()
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		// Grants are made by hand, and few: all that are made at once come one after the
		// other, so that counting them and looking for the same one is simple.
		if err := t.alone(ctx, "grants"); err != nil {
			return err
		}
		if err := t.fetch(ctx, keyMesh, orgKey(g.From.Org), orgKey(g.To.Org), grantKey(g.ID)); err != nil {
			return err
		}
		if m, _, err := get[mesh.Mesh](ctx, t, keyMesh); err != nil {
			return err
		} else if m.Schema < grantsFormat {
			return mesh.WithHint(fmt.Errorf("%w: some controllers do not know grants yet", ErrConflict), "upgrade all controllers, and try again")
		}
		if t.seen[grantKey(g.ID)] != nil {
			return ErrExists
		}
		if err := t.roomForGrant(ctx, g); err != nil {
			return err
		}
		return errors.Join(t.put(grantKey(g.ID), g), t.event("grant.create", g.ID, sentence(g)))
	})
	return result(g, rev, err, "grant %s", sentence(g))
}

// sentence says what a grant lets through.
func sentence(g mesh.Grant) string { return fmt.Sprintf("%s from %s to %s", g.Traffic(), g.From, g.To) }

// roomForGrant makes the change depend on both orgs being there, each with room for
// one more grant, and on there being no other that lets through the same.
func (t *tx) roomForGrant(ctx context.Context, g mesh.Grant) error {
	var orgs []mesh.Org
	for _, name := range []string{g.From.Org, g.To.Org} {
		org, err := t.liveOrg(ctx, name)
		if err != nil {
			return err
		}
		orgs = append(orgs, org)
	}
	r, err := t.read(ctx, clientv3.OpGet(t.s.root+keyGrants, clientv3.WithPrefix()))
	if err != nil {
		return err
	}
	t.unchanged(keyGrants, r[0].Header.Revision)
	has := map[string]int{}
	for _, kv := range r[0].Kvs {
		object, err := decode(string(kv.Key)[len(t.s.root):], kv.Value, t.s.plan())
		other, ok := object.(mesh.Grant)
		if err != nil || !ok {
			continue // a newer controller's: the mirror has said so
		}
		if other.Same(g) {
			return mesh.WithHint(fmt.Errorf("%w: it is grant %s", ErrExists, other.ID), "see it with: weft grant show %s", other.ID)
		}
		has[other.From.Org]++
		has[other.To.Org]++
	}
	for _, org := range orgs {
		if limit := limitOf(org, kindGrants); has[org.Name] >= limit {
			return limitReached(org.Name, kindGrants, has[org.Name], limit)
		}
	}
	return nil
}

// RemoveGrant removes a grant: what it let through ends.
func (s *Store) RemoveGrant(ctx context.Context, actor, id string) (rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		g, there, err := get[mesh.Grant](ctx, t, grantKey(id))
		if err != nil || !there {
			return errors.Join(err, only(!there, ErrNotFound))
		}
		t.delete(grantKey(id))
		return t.event("grant.remove", id, sentence(g))
	})
	return removed(rev, err, "remove grant %s", id)
}
