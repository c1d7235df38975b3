package store

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// CreateToken stores a join token. ID, Hash (the SHA-256 of its secret), Kind,
// Org or Orgs, Region and Expires are the caller's; Uses below 1 means 1. What it
// names must exist.
func (s *Store) CreateToken(ctx context.Context, actor string, token mesh.Token) (created mesh.Token, rev int64, err error) {
	token.Uses = max(token.Uses, 1)
	token.Created = s.now()
	if err := checkToken(token); err != nil {
		return created, 0, invalid(err)
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		orgs := slices.DeleteFunc(slices.Clone(token.Orgs), func(org string) bool { return org == mesh.AllOrgs })
		if token.Kind == mesh.KindClient {
			orgs = []string{token.Org}
		}
		for _, name := range orgs {
			org, err := t.liveOrg(ctx, name)
			if err != nil {
				return err
			}
			if token.Kind == mesh.KindClient {
				if err := t.room(ctx, org, kindTokens); err != nil {
					return err
				}
			}
		}
		if token.Region != "" {
			if _, err := t.region(ctx, token.Region); err != nil {
				return err
			}
		}
		if _, there, err := get[mesh.Token](ctx, t, tokenKey(token.ID)); err != nil || there {
			return errors.Join(err, only(there, ErrExists))
		}
		return errors.Join(t.put(tokenKey(token.ID), token), t.event("token.create", token.ID, token.Kind))
	})
	return result(token, rev, err, "create token %s", token.ID)
}

// maxTokenOrgs keeps the transaction that checks them small.
const maxTokenOrgs = 64

func checkToken(t mesh.Token) error {
	if err := mesh.CheckName("token", t.ID); err != nil {
		return err
	}
	switch {
	case len(t.Hash) != sha256.Size:
		return fmt.Errorf("token %s: its hash is not a SHA-256", t.ID)
	case t.Expires.IsZero():
		return fmt.Errorf("token %s: it has no expiry", t.ID)
	case t.Kind != mesh.KindHost && t.Kind != mesh.KindClient:
		return fmt.Errorf("token %s: kind %q is neither %s nor %s", t.ID, t.Kind, mesh.KindHost, mesh.KindClient)
	case t.Kind == mesh.KindClient && (t.Org == "" || len(t.Orgs) > 0 || t.Region != ""):
		return fmt.Errorf("token %s: a client's token names one org and no region", t.ID)
	case t.Kind == mesh.KindHost && t.ClientTTL != "":
		return fmt.Errorf("token %s: how long clients last goes with a client's token", t.ID)
	case t.Kind == mesh.KindHost && (t.Org != "" || len(t.Orgs) == 0):
		return fmt.Errorf("token %s: a host's token names the orgs that it may carry, or %q", t.ID, mesh.AllOrgs)
	case len(t.Orgs) > maxTokenOrgs:
		return fmt.Errorf("token %s: it names more than %d orgs; use %q", t.ID, maxTokenOrgs, mesh.AllOrgs)
	}
	if t.ClientTTL == "" {
		return nil
	}
	ttl, err := time.ParseDuration(t.ClientTTL)
	if err == nil && ttl == 0 {
		err = errors.New("a client cannot last 0s")
	}
	if err == nil {
		err = checkClientTTL(ttl)
	}
	if err != nil {
		return fmt.Errorf("token %s: client_ttl: %w", t.ID, err)
	}
	return nil
}

// RemoveToken removes a token. Nodes that joined by it stay.
func (s *Store) RemoveToken(ctx context.Context, actor, id string) (rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if _, there, err := get[mesh.Token](ctx, t, tokenKey(id)); err != nil || !there {
			return errors.Join(err, only(!there, ErrNotFound))
		}
		t.delete(tokenKey(id))
		return t.event("token.remove", id, "")
	})
	return removed(rev, err, "remove token %s", id)
}

// presented returns the token that use shows, if it is of the kind and its secret
// is right. Whether it can be spent is spend's question.
func (t *tx) presented(ctx context.Context, use TokenUse, kind string) (mesh.Token, error) {
	if mesh.CheckName("token", use.ID) != nil {
		return mesh.Token{}, fmt.Errorf("%w: there is no such token", ErrToken)
	}
	token, there, err := get[mesh.Token](ctx, t, tokenKey(use.ID))
	if err != nil {
		return token, err
	}
	// A secret that is wrong and an id that is unknown look the same, also in time.
	if !there {
		token.Hash = make([]byte, sha256.Size)
	}
	if right := subtle.ConstantTimeCompare(token.Hash, use.Hash); !there || len(use.Hash) != sha256.Size || right != 1 {
		return token, fmt.Errorf("%w: there is no such token", ErrToken)
	}
	if token.Kind != kind {
		return token, fmt.Errorf("%w: token %s is for a %s", ErrToken, token.ID, token.Kind)
	}
	return token, nil
}

// spend takes one use off token, in the transaction that creates the node.
func (t *tx) spend(token mesh.Token) error {
	if now := t.s.now(); !now.Before(token.Expires) {
		return fmt.Errorf("%w: token %s expired at %s", ErrToken, token.ID, token.Expires.UTC().Format("2006-01-02 15:04:05 MST"))
	}
	if token.Uses < 1 {
		return fmt.Errorf("%w: token %s is used up", ErrToken, token.ID)
	}
	token.Uses--
	return t.put(tokenKey(token.ID), token)
}

// CreateOperator stores a credential. ID, Hash (the SHA-256 of its secret), Role
// and Org are the caller's.
func (s *Store) CreateOperator(ctx context.Context, actor string, op mesh.Operator) (created mesh.Operator, rev int64, err error) {
	if err := checkOperator(op); err != nil {
		return created, 0, invalid(err)
	}
	op.Created = s.now()
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if op.Org != "" {
			if _, err := t.liveOrg(ctx, op.Org); err != nil {
				return err
			}
		}
		if _, there, err := get[mesh.Operator](ctx, t, operatorKey(op.ID)); err != nil || there {
			return errors.Join(err, only(there, ErrExists))
		}
		return errors.Join(t.put(operatorKey(op.ID), op), t.event("operator.create", op.ID, op.Role))
	})
	return result(op, rev, err, "create operator %s", op.ID)
}

func checkOperator(op mesh.Operator) error {
	if err := mesh.CheckName("operator", op.ID); err != nil {
		return err
	}
	orgRole := op.Role == mesh.RoleOrgAdmin || op.Role == mesh.RoleOrgMember
	switch {
	case len(op.Hash) != sha256.Size:
		return fmt.Errorf("operator %s: the hash is not a SHA-256", op.ID)
	case !orgRole && op.Role != mesh.RoleOperator:
		return fmt.Errorf("operator %s: there is no role %q", op.ID, op.Role)
	case orgRole != (op.Org != ""):
		return fmt.Errorf("operator %s: role %s goes with %s", op.ID, op.Role, map[bool]string{true: "an org", false: "no org"}[orgRole])
	}
	return nil
}

// RemoveOperator removes a credential. The last one with the role "operator"
// stays: nobody could ever administer the mesh again.
func (s *Store) RemoveOperator(ctx context.Context, actor, id string) (rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		op, there, err := get[mesh.Operator](ctx, t, operatorKey(id))
		if err != nil || !there {
			return errors.Join(err, only(!there, ErrNotFound))
		}
		if op.Role == mesh.RoleOperator {
			if err := t.anotherOperator(ctx, id); err != nil {
				return err
			}
		}
		t.delete(operatorKey(id))
		return t.event("operator.remove", id, op.Role)
	})
	return removed(rev, err, "remove operator %s", id)
}

// anotherOperator makes the change depend on there being an operator beside id.
func (t *tx) anotherOperator(ctx context.Context, id string) error {
	r, err := t.read(ctx, clientv3.OpGet(t.s.root+keyOperators, clientv3.WithPrefix()))
	if err != nil {
		return err
	}
	for _, kv := range r[0].Kvs {
		key := string(kv.Key)[len(t.s.root):]
		object, err := decode(key, kv.Value, t.s.plan())
		if op, ok := object.(mesh.Operator); err == nil && ok && op.ID != id && op.Role == mesh.RoleOperator {
			t.seen[key] = kv
			return nil
		}
	}
	return fmt.Errorf("%w: it is the last one with the role %s", ErrConflict, mesh.RoleOperator)
}
