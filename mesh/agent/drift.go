package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers/link"
	"github.com/weftmesh/weft/peers/netns"
)

// events is what the kernel has told of the data plane and the loop has not looked at
// yet.
type events struct {
	wake func()

	mu       sync.Mutex // guards what follows
	list     []link.Event
	rules    bool // the firewall's, somebody has changed them
	nameless bool // the namespace has lost its name
}

// mostEvents bounds them. More say as much as that some were lost.
const mostEvents = 4096

func (q *events) add(e link.Event) {
	q.mu.Lock()
	if len(q.list) >= mostEvents {
		q.list, e = nil, link.Event{Kind: link.LostEvent}
	}
	q.list = append(q.list, e)
	q.mu.Unlock()
	q.wake()
}

func (q *events) addRules() {
	q.mu.Lock()
	q.rules = true
	q.mu.Unlock()
	q.wake()
}

func (q *events) addNameless() {
	q.mu.Lock()
	q.nameless = true
	q.mu.Unlock()
	q.wake()
}

func (q *events) take() (list []link.Event, rules, nameless bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	list, rules, nameless = q.list, q.rules, q.nameless
	q.list, q.rules, q.nameless = nil, false, false
	return list, rules, nameless
}

// watch hears what changes in the plane until ctx ends. One that breaks begins again:
// what it has missed may be anything.
func (p *plane) watch(ctx context.Context, q *events) {
	var ends sync.WaitGroup
	again := func(what string, watch func() error, missed func()) {
		for {
			err := watch()
			if ctx.Err() != nil {
				return
			}
			p.log.Warn("changes of the data plane are not heard for a moment", "what", what, "err", err)
			if !wait(ctx, time.Second, nil) {
				return
			}
			missed()
		}
	}
	ends.Go(func() {
		again("links", func() error { return link.Watch(ctx, p.ns, q.add) }, func() { q.add(link.Event{Kind: link.LostEvent}) })
	})
	if !p.cfg.Disable[DisableFirewall] {
		ends.Go(func() { again("firewall", func() error { return p.wall.Watch(ctx, q.addRules) }, q.addRules) })
	}
	if !p.cfg.Disable[DisableNamespace] {
		ends.Go(func() { p.watchName(ctx, q) })
	}
	ends.Wait()
}

// watchName looks each second whether the namespace still has its name: by it the next
// agent finds it, and everybody who looks inside.
func (p *plane) watchName(ctx context.Context, q *events) {
	for wait(ctx, time.Second, nil) {
		if named, err := p.ns.Named(p.cfg.Namespace); err == nil && !named {
			q.addNameless()
		}
	}
}

// Rename implements system.
func (p *plane) Rename(e link.Event) error { return link.Rename(p.ns, e) }

// Repair implements system.
func (p *plane) Repair(m attach.Machine) ([]string, error) { return attach.Repair(p.ns, m) }

// hear looks at what the kernel has told, and raises an alarm for what is not as it is
// wanted. What we have changed ourselves is as wanted, and says nothing.
func (l *loop) hear(ctx context.Context, now time.Time) {
	list, rules, nameless := l.events.take()
	for _, e := range list {
		if e.Kind == link.RenameEvent && (e.Link == l.link || attach.IsLinkName(e.Link)) {
			l.rename(e, now)
		}
	}
	if l.progress == nil {
		return // a whole pass comes anyway
	}
	for _, e := range list {
		if machine, what := l.strangeEvent(e); machine != "" {
			l.doubt(machine, now)
		} else if what != "" {
			l.alarms.raise(what)
		}
	}
	if nameless {
		l.alarms.raise("namespace")
	}
	if rules {
		if moved, err := l.system.Strange(ctx); moved || err != nil {
			l.alarms.raise("firewall")
		}
	}
}

// rename gives a link its name back: all that is about it goes by that.
func (l *loop) rename(e link.Event, now time.Time) {
	if err := l.system.Rename(e); err != nil {
		l.log.Warn("a link has lost its name", "err", err)
		return
	}
	l.log.Info("link", "change", "name "+e.Link+" again")
	l.alarms.strike("link "+e.Link, now)
}

// Aliases of links: people see by them what a link is, and an agent finds by them those
// that were renamed while none ran.
const (
	machineAlias = "weft machine " // and its key
	deviceAlias  = "weft device "  // and the link's name
)

// alias is that of the device's link, "" where the namespace is not the mesh's own.
func (c HostConfig) alias() string {
	if c.Disable[DisableNamespace] {
		return ""
	}
	return deviceAlias + c.Link
}

// nameByAlias is how a link of the plane is to be called, "" if it is nobody's that is
// known.
func (c HostConfig) nameByAlias(alias string) string {
	if alias == c.alias() {
		return c.Link
	}
	key, ok := strings.CutPrefix(alias, machineAlias)
	if org, id, whole := strings.Cut(key, "/"); ok && whole {
		return attach.LinkName(org, id)
	}
	return ""
}

// recall gives links their names back that were renamed while no agent ran.
func (c HostConfig) recall() {
	if c.Disable[DisableNamespace] {
		return
	}
	ns, err := netns.Open(c.Namespace)
	if err != nil {
		return // there is none, or whoever needs it says so
	}
	defer ns.Close()
	given, err := link.Recall(ns, c.nameByAlias)
	for _, name := range given {
		c.Log.Info("link", "change", "name "+name+" again")
	}
	if err != nil && !errors.Is(err, os.ErrPermission) {
		c.Log.Warn("a link has lost its name", "err", err)
	}
}

// strangeEvent says what of the system an event shows to be not as wanted: a machine's
// link that is to be looked at, or another part; or neither.
func (l *loop) strangeEvent(e link.Event) (machine, what string) {
	q := l.progress
	switch e.Kind {
	case link.LostEvent:
		for name := range q.in {
			l.doubt(name, time.Now())
		}
		return "", "links"
	case link.SysctlEvent:
		if e.Gone {
			return "", "sysctls"
		}
	case link.RuleEvent:
		if e.Gone == e.Rule.Own() {
			return "", "rules"
		}
	case link.LinkEvent:
		if _, in := q.in[e.Link]; in {
			return e.Link, ""
		}
		if e.Link == addressesOn && !e.Up {
			return "", "link " + addressesOn
		}
		if e.Link == l.link && (e.Gone || !e.Up || e.MTU != l.mtuNow || l.alias != "" && e.Alias != l.alias) {
			return "", "link " + l.link
		}
	case link.AddressEvent:
		name := e.Link
		if _, in := q.in[name]; in {
			return name, ""
		}
		switch wanted := q.want.holds(e.Prefix.Addr()); {
		case name == l.link && !e.Gone && e.Prefix.Addr().IsLinkLocalUnicast():
			return "", "link " + l.link
		case !q.want.plan.Prefix().Contains(e.Prefix.Addr()), wanted != e.Gone:
		default:
			return "", "addresses"
		}
	case link.RouteEvent:
		name := e.Link
		if _, in := q.in[name]; in {
			return name, ""
		}
		wanted := len(q.want.claims[e.Prefix]) > 0 || e.Prefix == q.want.plan.Prefix()
		if e.Protocol == link.Protocol && wanted == e.Gone {
			return "", "routes"
		}
	}
	return "", ""
}

// settleTime is how long a machine's link may look strange: it is being attached or
// removed.
const settleTime = 200 * time.Millisecond

// doubt has a machine's link looked at in a moment.
func (l *loop) doubt(name string, now time.Time) {
	if l.doubts == nil {
		l.doubts = map[string]time.Time{}
	}
	if _, doubted := l.doubts[name]; !doubted {
		l.doubts[name] = now.Add(settleTime)
	}
}

// repair looks at the links that are in doubt long enough, and returns when there is
// more to look at; the zero time: nothing.
func (l *loop) repair(now time.Time) (next time.Time) {
	for name, due := range l.doubts {
		if now.Before(due) {
			if next.IsZero() || due.Before(next) {
				next = due
			}
			continue
		}
		if rest := l.alarms.restFor("link "+name, now); rest > 0 {
			l.doubts[name] = now.Add(rest)
			continue
		}
		delete(l.doubts, name)
		if l.progress == nil {
			continue
		}
		a, in := l.progress.in[name]
		if !in {
			continue
		}
		m, ok := l.machines.linkOf(name, a.Endpoint, l.mtuNow)
		if !ok {
			continue
		}
		changes, err := l.system.Repair(m)
		for _, c := range changes {
			l.log.Info("machine's link put right", "change", c)
		}
		if len(changes) > 0 {
			l.alarms.strike("link "+name, now)
		}
		if errors.Is(err, os.ErrNotExist) {
			l.machines.unlinked(name)
			l.alarms.strike("link "+name, now)
		} else if err != nil {
			l.log.Warn("machine's link is not right", "link", name, "err", err)
		}
	}
	return next
}

// linkOf is what a machine's link has to be; ok is false if nobody knows.
func (m *machines) linkOf(name string, endpoint netip.Prefix, mtu int) (out attach.Machine, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out = attach.Machine{Link: name, Endpoint: endpoint, MTU: mtu}
	if s := m.stayAtLocked(name); s != nil {
		if s.attached == (attach.Machine{}) {
			return out, false // it is being attached
		}
		out = s.attached
		out.Unrouted = s.coming
	}
	return out, true
}

// unlinked tells a machine with a process that its link has gone.
func (m *machines) unlinked(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.stayAtLocked(name); s != nil {
		select {
		case s.unlinked <- struct{}{}:
		default:
		}
	}
}

// linked notes the link of a machine, once it is made.
func (m *machines) linked(s *stay, made attach.Machine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.attached = made
}

// linkMade is what the link of a machine has to be.
func (m *machines) linkMade(s *stay) attach.Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := s.attached
	out.Unrouted = s.coming
	return out
}
