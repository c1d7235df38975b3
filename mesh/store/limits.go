package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// Kinds that are counted by org, as in mesh.State.Count.
const (
	kindMachines = "machines"
	kindClients  = "clients"
	kindTokens   = "tokens"
	kindRecords  = "records"
	kindGrants   = "grants"
)

// Far from a limit, the mirror is enough to say that there is room. Near it, the
// objects are counted, and the transaction compares that none was created since.
const (
	// limitMargin is what may be created unseen between a look at a mirror of within
	// mirrorLag and the transaction.
	limitMargin = 512
	mirrorLag   = time.Second
)

// maxLimit bounds limits: slots times hosts of an org is more, memory is not.
const maxLimit = 10_000_000

// maxRecords bounds the limit of records: all of an org's go to every host that
// carries it.
const maxRecords = 100_000

// maxGrants bounds the limit of grants: each is looked at when an endpoint of the org
// changes.
const maxGrants = 10_000

// limitOf is how many objects of a kind an org may have.
func limitOf(org mesh.Org, kind string) int {
	l := org.Limits.Or(mesh.DefaultLimits)
	switch kind {
	case kindMachines:
		return l.Machines
	case kindClients:
		return l.Clients
	case kindRecords:
		return l.Records
	case kindGrants:
		return l.Grants
	}
	return l.Tokens
}

// room makes the change depend on there being room for one more object of a kind.
func (t *tx) room(ctx context.Context, org mesh.Org, kind string) error {
	limit := limitOf(org, kind)
	if n, ok := t.s.atMost(kind, org.Name); ok && n+limitMargin <= limit {
		return nil
	}
	if t.part != nil {
		return errAlone
	}
	// Callers of this Store come one after the other: each undoes the others' count.
	if err := t.alone(ctx, "limit/"+kind+"/"+org.Name); err != nil {
		return err
	}
	n, prefix, rev, err := t.count(ctx, kind, org.Name)
	if err != nil {
		return err
	}
	if n >= limit {
		return limitReached(org.Name, kind, n, limit)
	}
	if n+limitMargin > limit {
		t.unchanged(prefix, rev)
	}
	return nil
}

// atMost is how many objects of a kind an org can have now, by the mirror: a
// revision that it has not heard of may have created as many as a batch has. ok is false if it has
// not heard anything lately.
func (s *Store) atMost(kind, org string) (n int, ok bool) {
	m := &s.mirror
	m.mu.Lock()
	known, confirmed := m.known, m.confirmed
	m.mu.Unlock()
	if confirmed.IsZero() || time.Since(confirmed) > mirrorLag {
		return 0, false
	}
	return s.State().Count(kind, org) + maxJoint*int(max(0, s.newest.Load()-known)), true
}

// count counts in etcd, as of revision rev.
func (t *tx) count(ctx context.Context, kind, org string) (n int, prefix string, rev int64, err error) {
	if kind == kindTokens {
		return t.countTokens(ctx, org)
	}
	prefix = kind + "/" + org + "/"
	r, err := t.read(ctx, clientv3.OpGet(t.s.root+prefix, clientv3.WithPrefix(), clientv3.WithCountOnly()))
	if err != nil {
		return 0, "", 0, err
	}
	return int(r[0].Count), prefix, r[0].Header.Revision, nil
}

// countTokens counts the tokens of an org that can still be used.
func (t *tx) countTokens(ctx context.Context, org string) (n int, prefix string, rev int64, err error) {
	r, err := t.read(ctx, clientv3.OpGet(t.s.root+keyTokens, clientv3.WithPrefix()))
	if err != nil {
		return 0, "", 0, err
	}
	for _, kv := range r[0].Kvs {
		object, err := decode(strings.TrimPrefix(string(kv.Key), t.s.root), kv.Value, t.s.plan())
		if token, ok := object.(mesh.Token); err == nil && ok && token.Org == org && token.Uses > 0 && t.s.now().Before(token.Expires) {
			n++
		}
	}
	return n, keyTokens, r[0].Header.Revision, nil
}

func limitReached(org, kind string, n, limit int) error {
	return mesh.WithHint(fmt.Errorf("org %s: %w: it has %s, and may have %d", org, ErrLimit, count(n, strings.TrimSuffix(kind, "s")), limit),
		"an operator can raise it: weft org limit %s --%s %d", org, kind, min(2*limit, mostOf(kind)))
}

// mostOf bounds the limit of what of a kind an org may have.
func mostOf(kind string) int {
	switch kind {
	case kindRecords:
		return maxRecords
	case kindGrants:
		return maxGrants
	}
	return maxLimit
}

// checkPairs refuses metadata of more pairs than the org may have on a machine.
func checkPairs(org mesh.Org, meta map[string]string) error {
	limit := org.Limits.Or(mesh.DefaultLimits).Metadata
	if len(meta) <= limit {
		return nil
	}
	err := fmt.Errorf("org %s: %w: %s of metadata, and a machine may have %d", org.Name, ErrLimit, count(len(meta), "pair"), limit)
	return mesh.WithHint(err, "an operator can raise it: weft org limit %s --metadata %d", org.Name, len(meta))
}

// UpdateOrg sets an org's limits. What it has beyond a lower one stays.
func (s *Store) UpdateOrg(ctx context.Context, actor, name string, limits mesh.Limits) (org mesh.Org, rev int64, err error) {
	return s.ChangeLimits(ctx, actor, name, func(mesh.Limits) mesh.Limits { return limits })
}

// ChangeLimits sets an org's limits to what change makes of them.
func (s *Store) ChangeLimits(ctx context.Context, actor, name string, change func(mesh.Limits) mesh.Limits) (org mesh.Org, rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if org, err = t.liveOrg(ctx, name); err != nil {
			return err
		}
		limits := change(org.Limits)
		if err := checkLimits(limits); err != nil || limits == org.Limits {
			return invalid(err)
		}
		org.Limits = limits
		l := limits.Or(mesh.DefaultLimits)
		note := fmt.Sprintf("machines %d, clients %d, tokens %d, metadata %d, records %d, grants %d", l.Machines, l.Clients, l.Tokens, l.Metadata, l.Records, l.Grants)
		return errors.Join(t.put(orgKey(name), org), t.event("org.limit", name, note))
	})
	return result(org, rev, err, "set limits of org %s", name)
}

func checkLimits(l mesh.Limits) error {
	for _, x := range []struct {
		name   string
		n, max int
	}{{kindMachines, l.Machines, maxLimit}, {kindClients, l.Clients, maxLimit}, {kindTokens, l.Tokens, maxLimit}, {"metadata", l.Metadata, maxMeta}, {kindRecords, l.Records, maxRecords}, {kindGrants, l.Grants, maxGrants}} {
		if x.n < 0 || x.n > x.max {
			return fmt.Errorf("limit of %s: %d is not within 1 to %d (0: the default)", x.name, x.n, x.max)
		}
	}
	return nil
}
