package agent

import (
	"fmt"
	"slices"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// A snapshot that would take away most of what works is more often a mistake (a
// controller with half a state, a restored backup) than meant. So what it adds
// and changes is applied at once, and what it removes is kept for a while. It goes
// when the controllers still say so after HoldFor.

// minHeld and the half: fewer removals than these are ordinary.
const minHeld = 5

// heldBack says why the step from old to new is held back, or "" if it is not:
// it would remove more than half, and at least five, of the peers or of the
// machines.
func heldBack(old, new *mesh.View) string {
	if old == nil {
		return ""
	}
	gone := func(what string, have, lost int) string {
		if lost >= minHeld && 2*lost > have {
			return fmt.Sprintf("%d of %d %s would be removed", lost, have, what)
		}
		return ""
	}
	hosts, clients := lost(old.Hosts, new.Hosts, hostKey), lost(ownClients(old), ownClients(new), clientKey)
	machines := lost(old.Machines, new.Machines, machineKey)
	if why := gone("peers", len(old.Hosts)+len(ownClients(old)), len(hosts)+len(clients)); why != "" {
		return why
	}
	return gone("machines", len(old.Machines), len(machines))
}

// retain returns new with all that old has and new does not, except what cannot
// stand beside new: a peer with a key or a number that is used again, an endpoint
// that is used again, things of an org that is not carried any more under its old
// number.
func retain(old, new *mesh.View) *mesh.View {
	v := *new
	numbers, keys := map[uint32]bool{}, map[string]bool{}
	for _, h := range new.Hosts {
		numbers[h.Number], keys[h.Key.String()] = true, true
	}
	for _, h := range lost(old.Hosts, new.Hosts, hostKey) {
		if !numbers[h.Number] && !keys[h.Key.String()] {
			v.Hosts = append(slices.Clip(v.Hosts), h)
		}
	}
	networks := map[uint64]bool{}
	for _, o := range new.Orgs {
		networks[o.Network] = true
	}
	for _, o := range lost(old.Orgs, new.Orgs, func(o mesh.Org) string { return o.Name }) {
		if !networks[o.Network] {
			v.Orgs = append(slices.Clip(v.Orgs), o)
		}
	}
	v.Apps = append(slices.Clip(v.Apps), lost(old.Apps, new.Apps, func(a mesh.App) string { return a.Org + "/" + a.Name })...)
	used := map[string]bool{}
	for _, m := range new.Machines {
		used[m.Endpoint.String()] = true
	}
	for _, c := range new.Clients {
		used[c.Endpoint.String()] = true
	}
	kept := map[string]bool{}
	for _, m := range lost(old.Machines, new.Machines, machineKey) {
		if !used[m.Endpoint.String()] {
			v.Machines, kept[machineKey(m)] = append(slices.Clip(v.Machines), m), true
		}
	}
	for _, h := range lost(old.Health, new.Health, healthKey) {
		if kept[healthKey(h)] { // without, it would not be in names
			v.Health = append(slices.Clip(v.Health), h)
		}
	}
	v.Records = append(slices.Clip(v.Records), lost(old.Records, new.Records, recordKey)...)
	for _, c := range lost(old.Clients, new.Clients, clientKey) {
		if !used[c.Endpoint.String()] && (c.Key == nil || !keys[c.Key.String()]) {
			v.Clients = append(slices.Clip(v.Clients), c)
		}
	}
	v.Grants = append(slices.Clip(v.Grants), lost(old.Grants, new.Grants, grantKey)...)
	for _, g := range lost(old.Granted, new.Granted, grantedKey) {
		if !used[g.Endpoint.String()] {
			v.Granted = append(slices.Clip(v.Granted), g)
		}
	}
	sortView(&v)
	return &v
}

func hostKey(h mesh.ViewHost) string     { return h.Name }
func machineKey(m mesh.Machine) string   { return m.Org + "/" + m.ID }
func clientKey(c mesh.ViewClient) string { return c.Org + "/" + c.Name }
func healthKey(h mesh.Health) string     { return h.Org + "/" + h.Machine }
func grantKey(g mesh.Grant) string       { return g.ID }
func grantedKey(g mesh.Granted) string   { return g.Endpoint.String() }
func recordKey(r mesh.Record) string     { return r.Org + "/" + r.Name + "/" + r.Type }

// ownClients are the clients that are peers of the view's node.
func ownClients(v *mesh.View) []mesh.ViewClient {
	return slices.DeleteFunc(slices.Clone(v.Clients), func(c mesh.ViewClient) bool { return c.Key == nil })
}

// lost returns what old has and new has not, by key.
func lost[T any](old, new []T, key func(T) string) []T {
	there := make(map[string]bool, len(new))
	for _, x := range new {
		there[key(x)] = true
	}
	var out []T
	for _, x := range old {
		if !there[key(x)] {
			out = append(out, x)
		}
	}
	return out
}

// sortView puts the lists in the order of their keys, as a view has them.
func sortView(v *mesh.View) {
	sortBy(v.Hosts, hostKey)
	sortBy(v.Orgs, func(o mesh.Org) string { return o.Name })
	sortBy(v.Apps, func(a mesh.App) string { return a.Org + "/" + a.Name })
	sortBy(v.Machines, machineKey)
	sortBy(v.Clients, clientKey)
	sortBy(v.Records, recordKey)
	sortBy(v.Health, healthKey)
	sortBy(v.Grants, grantKey)
	sortBy(v.Granted, grantedKey)
}

func sortBy[T any](list []T, key func(T) string) {
	slices.SortStableFunc(list, func(a, b T) int {
		switch ka, kb := key(a), key(b); {
		case ka < kb:
			return -1
		case ka > kb:
			return 1
		}
		return 0
	})
}

// current is the view that a follower holds: what the controllers say (told), and
// what is in effect (effective), which differs while a removal is held back.
//
//	snapshot that removes most ----> held ----> applied after HoldFor, when the
//	                                  |         controllers speak again
//	       one that does not <--------'
//
// A new stream goes on from told, never from what is in effect: the two have one
// revision, and while a removal is held back only one of them is what the
// controllers count from.
type current struct {
	holdFor time.Duration // 0: never hold

	told      *version // nil: nothing yet
	kept      *version // what they said before the start, from disk; nil: not known
	effective *version
	// step is all that leads to effective from the one before, of one change; nil: it
	// is another one as a whole.
	step      *mesh.Delta
	heldSince time.Time // zero: not held
	why       string
	upTo      mesh.Revision // told, or kept, is known to be right up to here
}

// restore takes the view on disk. whole is whether it was all that the controllers
// said, and no more. Nothing is told before a controller speaks, so that its first
// word is weighed against what works.
func (c *current) restore(v *mesh.View, whole bool) {
	c.effective = versionOf(v)
	if whole {
		c.kept, c.upTo = c.effective, v.Revision
	}
}

// resume is the revision from which a delta would be of use; zero: none. A view of
// older controllers lacks what no delta brings.
func (c *current) resume() mesh.Revision {
	said := c.told
	if said == nil {
		said = c.kept
	}
	if said != nil && said.head.Format < mesh.ViewFormat {
		return mesh.Revision{}
	}
	return c.upTo
}

// newest is the revision of the newest view that this node has seen.
func (c *current) newest() mesh.Revision {
	switch {
	case c.told != nil:
		return c.told.head.Revision
	case c.effective != nil:
		return c.effective.head.Revision
	}
	return mesh.Revision{}
}

// snapshot takes a whole view. It is false, and nothing happens, if the view is
// older than what this node has seen: an older one is wrong, whoever says it.
func (c *current) snapshot(v *mesh.View, now time.Time) bool {
	if earlier(v.Revision, c.newest()) {
		return false
	}
	// Of newer controllers: what this node does not know of, it has not kept.
	v.Format = min(v.Format, mesh.ViewFormat)
	c.told, c.kept, c.upTo, c.step = versionOf(v), nil, v.Revision, nil
	if why := heldBack(c.effective.View(), v); why != "" && c.holdFor > 0 {
		if c.heldSince.IsZero() {
			c.heldSince = now
		}
		c.why = why
	} else {
		c.heldSince, c.why = time.Time{}, ""
	}
	c.settle(now)
	return true
}

// resumed takes the delta that a stream begins with: all that changed since the
// revision that the stream was opened with. It is weighed as the snapshot that it
// stands for.
func (c *current) resumed(d mesh.Delta, now time.Time) bool {
	said := c.told
	if said == nil {
		said = c.kept
	}
	if said == nil || !follows(d.Revision, said.head.Revision) {
		return false
	}
	was := c.effective
	v := said.View().Apply(d)
	v.Format = d.Format // of older controllers: what it does not tell of changes unseen
	if v.Validate() != nil || !c.snapshot(&v, now) {
		return false
	}
	c.stepped(was, said, d)
	return true
}

// stepped notes that d led from said to told: if these were, and are, in force, it is
// all that has changed.
func (c *current) stepped(was, said *version, d mesh.Delta) {
	if c.step = nil; was == said && c.effective == c.told {
		c.step = &d
	}
}

// delta takes a change of what the controllers said last. It is false if that is
// not what it follows: if nothing was said yet, or something later.
func (c *current) delta(d mesh.Delta, now time.Time) bool {
	if c.told == nil || !follows(d.Revision, c.told.head.Revision) || d.Revision == c.told.head.Revision && !d.Empty() {
		return false
	}
	was, said := c.effective, c.told
	c.told, c.upTo = said.with(d), d.Revision
	c.settle(now)
	c.stepped(was, said, d)
	return true
}

// heard notes that the controllers stand by what they said, up to a revision.
func (c *current) heard(rev mesh.Revision, now time.Time) {
	if follows(rev, c.upTo) {
		c.upTo = rev
	}
	if !c.heldSince.IsZero() && now.Sub(c.heldSince) >= c.holdFor {
		c.settle(now)
	}
}

func (c *current) settle(now time.Time) {
	switch {
	case c.heldSince.IsZero():
		c.effective = c.told
	case now.Sub(c.heldSince) >= c.holdFor:
		c.heldSince, c.why, c.effective, c.step = time.Time{}, "", c.told, nil
	default:
		c.effective = versionOf(retain(c.effective.View(), c.told.View()))
	}
}

// earlier reports whether a is of an earlier state than b. A later epoch counts
// more than any revision: it was begun on purpose, see mesh.Mesh.
func earlier(a, b mesh.Revision) bool {
	return a.Epoch < b.Epoch || a.Epoch == b.Epoch && a.Revision < b.Revision
}

// follows reports whether a change may lead from b to a.
func follows(a, b mesh.Revision) bool { return a.Epoch == b.Epoch && !earlier(a, b) }
