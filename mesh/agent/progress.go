package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers"
)

// progress is what leads on from a whole pass: what it has put in force, in a form that
// follows the view and the machines change by change. It is remembered, and so
// believed only until the next whole pass, and only as long as nothing that it was
// told to do has failed.
//
//	view, machines --changes--> wants, shift --what they touch--> system
//
// What the kernel can be asked about one thing at a time, it is: the generation of
// its rules before a set is changed; a route that is there already is refused. The
// device can only be asked about all of it: it is told the change, which does no harm
// when it has it already.
type progress struct {
	want    *wants
	found   map[string]bool             // links that no process has claimed
	in      map[string]peers.Attachment // by link
	links   *admitted
	over    overlay
	retired map[wgtypes.Key]time.Time // peers without prefixes that are to go, and when
	cached  bool                      // no controller has spoken yet
}

// errNeedsPass says that only a whole pass can tell what is to be done.
var errNeedsPass = errors.New("only a whole pass can tell")

func (l *loop) newProgress(v *mesh.View, found []attach.Found, leftover []string, in []peers.Attachment, c contact, links *admitted) *progress {
	q := &progress{
		want: wantsOf(v, l.tunnels.key.PublicKey()), found: map[string]bool{}, in: map[string]peers.Attachment{},
		links: links, over: overlay{}, retired: map[wgtypes.Key]time.Time{}, cached: c.fromCache,
	}
	for _, f := range found {
		q.found[f.Link] = true
	}
	for _, link := range leftover {
		delete(q.found, link)
	}
	for _, a := range in {
		q.in[a.Link] = a
	}
	return q
}

// follow brings the system from what the last pass has put in force to what steps
// and news say, and touches nothing else. The error wraps errNeedsPass or is that of
// a part; either way the next pass has to be a whole one.
func (l *loop) follow(ctx context.Context, v *version, steps []mesh.Delta, news map[string]bool, c contact) (applied, error) {
	q := l.progress
	l.progress = nil // until all is done
	if q == nil || c.fromCache != q.cached {
		return applied{}, errNeedsPass
	}
	t, ok := q.want.follow(steps)
	if !ok {
		return applied{}, errNeedsPass
	}
	keys := q.concerned(t, news, l.machines)
	s := shift{
		machines: l.machines, want: q.want, found: q.found, told: t.machines, in: q.attached, epoch: v.head.Revision.Epoch,
		current: !c.fromCache, now: time.Now(), shown: map[string]mesh.Machine{},
	}
	if !s.decide(keys) {
		return applied{}, errNeedsPass
	}
	for _, org := range l.machines.needs() {
		if removesOrg(steps, org) {
			return applied{}, errNeedsPass
		}
	}
	if err := l.apply(ctx, q, t, &s, keys, v.head.Revision); err != nil {
		return applied{}, err
	}
	l.progress, l.last, l.seen = q, nil, v
	view := v.head
	self := q.want.self
	view.Host = &self
	return applied{view: &view, links: q.links, orgs: len(q.want.orgs), mtu: l.mtuNow}, nil
}

func removesOrg(steps []mesh.Delta, org string) bool {
	return slices.ContainsFunc(steps, func(d mesh.Delta) bool { return slices.Contains(d.Removed, "orgs/"+org) })
}

// concerned are the machines here of which something changed.
func (q *progress) concerned(t *touched, news map[string]bool, m *machines) map[string]bool {
	out := maps.Clone(news)
	maps.Copy(out, t.noted)
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range t.machines {
		_, leaves := m.leaving[key]
		_, off := m.leaving[key+offSuffix]
		_, missing := m.missing[key]
		if q.want.isHere(key) || m.stays[key] != nil || leaves || off || missing || t.left[key] {
			out[key] = true
		}
	}
	return out
}

func (q *progress) attached(link string) (peers.Attachment, bool) {
	a, in := q.in[link]
	return a, in
}

// apply does what a pass does, in the same order, for what was touched.
func (l *loop) apply(ctx context.Context, q *progress, t *touched, s *shift, keys map[string]bool, rev mesh.Revision) error {
	plus, minus := q.want.policy(t)
	before, after := l.part(q.want, minus, s.before), l.part(q.want, plus, s.after)
	if t.regranted {
		before.Grants, after.Grants = t.boxes, q.want.boxes()
	}
	if err := l.system.ChangeFirewall(ctx, before, after); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	for _, a := range s.before {
		delete(q.in, a.Link)
	}
	for _, a := range s.after {
		q.in[a.Link] = a
	}
	q.links.change(s.before, s.shown)
	if err := l.changeTunnels(ctx, q, t, rev); err != nil {
		return err
	}
	sizes := l.sizesNow()
	changes := q.want.links(t, l.link, addressesOn, sizes.route)
	done, err := l.system.ChangeLink(changes)
	for _, c := range done {
		l.log.Info("link", "change", c)
	}
	if err != nil {
		return err
	}
	if l.machines.correct(q.over, keys, q.want) && l.correct != nil {
		l.correct(q.over.delta())
	}
	if len(plus)+len(minus) > 0 {
		if err := l.system.ChangeNames(plus, minus); err != nil {
			return err
		}
	}
	return l.changeProbes(q.want, t)
}

// part is a policy that says of networks and machines these alone.
func (l *loop) part(w *wants, networks []peers.Network, in []peers.Attachment) peers.Policy {
	return peers.Policy{
		Link: l.link, Mesh: w.plan.Prefix(), Resolver: w.plan.Resolver(0), Self: w.plan.HostAddr(0, w.self.Position()),
		ProbePort: l.probe, Networks: networks, Attachments: in,
	}
}

func (l *loop) changeTunnels(ctx context.Context, q *progress, t *touched, rev mesh.Revision) error {
	changes, retired := q.want.tunnels(t)
	now := time.Now()
	for key, due := range q.retired {
		if q.want.peer(key) != nil {
			delete(q.retired, key)
		} else if !now.Before(due) {
			changes = append(changes, peers.Change{Op: peers.RemovePeer, Peer: peers.Peer{Key: key}})
		}
	}
	if len(changes)+len(retired) == 0 {
		return nil
	}
	if err := l.tunnels.change(ctx, changes, rev, l.system.Opened); err != nil {
		return err
	}
	for _, c := range changes {
		if c.Op == peers.RemovePeer {
			delete(q.retired, c.Peer.Key)
		}
	}
	q.retire(retired)
	if len(retired) > 0 && l.tunnels.later != nil {
		l.tunnels.later()
	}
	return nil
}

// retire notes peers that have lost their prefixes.
func (q *progress) retire(keys []wgtypes.Key) {
	for _, key := range keys {
		q.retired[key] = time.Now().Add(retire)
	}
}

// retires reports whether a peer is to go now.
func (q *progress) retires(now time.Time) bool {
	for _, due := range q.retired {
		if !now.Before(due) {
			return true
		}
	}
	return false
}

func (l *loop) changeProbes(w *wants, t *touched) error {
	var plus, minus []netip.Addr
	for a, was := range t.sources {
		switch now := w.sources[a] > 0; {
		case now && !was:
			plus = append(plus, a)
		case was && !now:
			minus = append(minus, a)
		}
	}
	if !t.targets && len(plus)+len(minus) == 0 {
		return nil
	}
	var targets []probe.Target
	if t.targets {
		hosts := mesh.View{Plan: w.plan, Host: &w.self, Hosts: slices.Collect(maps.Values(w.hosts))}
		targets = append([]probe.Target{}, probeTargets(&hosts)...)
	}
	return l.system.ChangeProbes(targets, plus, minus)
}
