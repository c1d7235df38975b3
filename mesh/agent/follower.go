package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// ErrFenced says that another node uses this node's key: one of the two is a copy.
var ErrFenced = errors.New("another node uses the same key")

// fencedLimit is how often in a row a stream must be fenced before that is
// believed: after a broken line a controller may take our own old stream for the
// other node.
const fencedLimit = 3

// errUnsound says that a stream sent what cannot be.
var errUnsound = errors.New("the view stream makes no sense")

// errStale says that a controller has heard nothing from etcd for a while.
var errStale = errors.New("its state may be old")

// errBehind says that a controller knows less than this node has seen.
var errBehind = errors.New("its state is older than what this node has seen")

// streams opens view streams. In the program it is the node's credentials.
type streams interface {
	// servers lists the controllers, the one that worked last in front.
	servers() []string
	// open opens a stream at one of them. last is the revision from which it may go on,
	// zero if it has to begin with a snapshot.
	open(ctx context.Context, server string, last mesh.Revision) (viewStream, error)
	// worked notes that a controller was good for a stream, and what the view says
	// of controllers and roots.
	worked(server string, v *mesh.View)
}

// viewStream is an *api.Stream.
type viewStream interface {
	Next() (api.Event, error)
	Close()
}

// contact is what a follower knows of the controllers.
type contact struct {
	connected  bool
	controller string    // the one last spoken to
	last       time.Time // when the view was last known to be current
	fromCache  bool      // no controller has confirmed the view since the start
	// told is what the controllers say: more or less than the view in force while a
	// removal is held back. nil: nothing yet.
	told   *mesh.View
	saying *version // that told is made of when somebody asks, see follower.Contact
}

// follower holds a node's view: first the one on disk, then what the controllers
// say. It has one writer, Run; everybody may read.
type follower struct {
	node     mesh.Node
	dir      string // "": no cache
	timing   Timing
	streams  streams
	problems *problems
	log      *slog.Logger

	// Of Run alone.
	current  current
	fencedAt string            // the controller that said so last; ""
	staleAt  time.Time         // when a controller was last left for being stale
	failed   map[string]int    // by controller: the failure with which its last stream ended, or did not begin
	failures int               // so far
	reasons  map[string]string // by controller: why, as logged

	view     atomic.Pointer[version]
	contacts atomic.Pointer[contact]
	changed  signal
	hosts    signal                  // the hosts in the view, or the view as a whole
	told     string                  // the controller for which worked was called last; of Run alone
	keep     chan struct{}           // wakes the writer of the cache
	news     news                    // for it
	kept     atomic.Pointer[version] // that is on disk
	written  signal
	tail     *tail // what the disk does not have yet; nil: none is kept; of Run alone, and of load
	// Set before load and Run, if wanted. confirm is called with the view whenever a
	// controller stands by it, unless all that it says since the last time leaves the
	// hosts as they were. names is called with each view that comes in force, before
	// anybody else sees it: step, if it is not nil, is all that leads there from the one
	// before. wake is called after the view has changed.
	confirm func(*mesh.View, time.Time)
	names   func(v *version, step *mesh.Delta)
	wake    func()
	once    bool // fault injection: a stream that ended is not opened again
}

func newFollower(node mesh.Node, dir string, t Timing, s streams, p *problems, log *slog.Logger) *follower {
	f := &follower{
		node: node, dir: dir, timing: t, streams: s, problems: p, log: log, keep: make(chan struct{}, 1),
		failed: map[string]int{}, reasons: map[string]string{},
		confirm: func(*mesh.View, time.Time) {}, names: func(*version, *mesh.Delta) {}, wake: func() {},
	}
	f.current.holdFor = t.HoldFor
	f.contacts.Store(&contact{})
	return f
}

// View returns the view in force, nil if there is none yet. It is not to be
// changed.
func (f *follower) View() *mesh.View { return f.view.Load().View() }

// Contact returns what is known of the controllers.
func (f *follower) Contact() contact {
	c := *f.contacts.Load()
	c.told = c.saying.View()
	return c
}

// load takes the view on disk.
func (f *follower) load() {
	if f.dir == "" {
		return
	}
	k, err := readCache(f.dir, f.node)
	if f.problems.err("cache", err) && err != nil {
		f.log.Error("the last view is not used", "err", err, "hint", mesh.HintOf(err))
	}
	if k.view == nil {
		f.dropTail()
		return
	}
	if k.dropped != "" {
		f.log.Warn("the end of what is on disk is left out", "what", k.dropped)
	}
	behind := false
	if f.tail != nil && k.whole {
		v, saved := f.tail.after(k.view)
		if behind = v != k.view; behind {
			f.log.Info("the disk had not taken all that was in force", "rev", k.view.Revision.String())
			k.view, k.saved = v, saved
		}
	}
	if !behind {
		f.dropTail()
	}
	f.log.Info("starting from the view on disk", "rev", k.view.Revision.String(), "saved", k.saved.Format(time.RFC3339), "peers", len(k.view.Hosts))
	f.current.restore(k.view, k.whole)
	if behind {
		f.toDisk(f.current.effective, true, nil)
	}
	f.contacts.Store(&contact{last: k.saved, fromCache: true})
	f.names(f.current.effective, nil)
	f.view.Store(f.current.effective)
	f.changed.fire()
	f.hosts.fire()
}

// awaitKept waits until a view that holds says yes to is on disk, or a while if the
// disk does not take it.
func (f *follower) awaitKept(ctx context.Context, holds func(*mesh.View) bool) {
	if f.dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	for {
		written := f.written.C()
		if v := f.kept.Load().View(); v != nil && holds(v) || !wait(ctx, keepPatience, written) {
			return
		}
	}
}

// keepOnDisk writes the view in force to disk until ctx ends.
func (f *follower) keepOnDisk(ctx context.Context) {
	if f.dir == "" {
		return
	}
	keepView(ctx, f.dir, f.timing.CacheWrite, f.keep, &f.news, func(v *version, err error) {
		if err == nil {
			f.kept.Store(v)
			f.written.fire()
		}
		if f.problems.err("cache", err) && err != nil {
			f.log.Error("the view is not kept on disk", "err", err)
		}
	})
}

// keepPatience is how long a machine waits for its record to be on disk.
const keepPatience = time.Second

// follow reads one stream until it ends. got is whether it brought a view.
func (f *follower) follow(ctx context.Context, server string) (got bool, err error) {
	last := f.current.resume()
	stream, err := f.streams.open(ctx, server, last)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	for {
		e, err := stream.Next()
		if err != nil {
			return got, err
		}
		now, age := time.Now(), time.Duration(0)
		switch {
		case e.Fenced != "":
			return false, fmt.Errorf("%w: %s", ErrFenced, e.Fenced)
		case e.Snapshot != nil:
			err = f.snapshot(e.Snapshot, now)
		case e.Delta != nil:
			err = f.delta(*e.Delta, got, last, now)
		case e.Ping != nil && got:
			f.current.heard(e.Ping.Revision, now)
			if age = e.Ping.Age; f.leaves(age, now) {
				return got, fmt.Errorf("%w: it has not heard from etcd for %s", errStale, age.Round(time.Second))
			}
		default:
			continue
		}
		if err != nil {
			return got, err
		}
		if !got {
			got = true
			f.log.Info("following the view", "controller", server, "rev", f.current.newest().String(), "resumed", e.Delta != nil)
		}
		f.publish(server, now, age)
	}
}

// leaves decides whether to look for a controller that knows more. If there is none,
// this one is as good as the others for a while.
func (f *follower) leaves(age time.Duration, now time.Time) bool {
	if age <= f.timing.Stale || len(f.streams.servers()) < 2 || now.Sub(f.staleAt) < staleRest*f.timing.Stale {
		return false
	}
	f.staleAt = now
	return true
}

// staleRest, times Stale, is the least time between two looks for a controller that
// is not stale.
const staleRest = 6

func (f *follower) snapshot(v *mesh.View, now time.Time) error {
	if err := checkView(v, f.node); err != nil {
		return fmt.Errorf("%w: %w", errUnsound, err)
	}
	if newest := f.current.newest(); !f.current.snapshot(v, now) {
		return fmt.Errorf("%w: revision %s, and this node has %s", errBehind, v.Revision, newest)
	}
	return nil
}

// delta takes a change: as the first event of a stream one that leads on from last,
// if the stream was opened with that, and else one of what the stream said before.
func (f *follower) delta(d mesh.Delta, got bool, last mesh.Revision, now time.Time) error {
	newest := f.current.newest()
	if err := f.checkDelta(d); err != nil {
		return fmt.Errorf("%w: %w", errUnsound, err)
	}
	switch {
	case got && f.current.delta(d, now), !got && last != (mesh.Revision{}) && f.current.resumed(d, now):
		return nil
	case !got && last == (mesh.Revision{}):
		return fmt.Errorf("%w: a change before the first snapshot", errUnsound)
	}
	return fmt.Errorf("%w: a change to revision %s of a view of revision %s", errUnsound, d.Revision, newest)
}

// checkDelta reports numbers that the view's plan has no room for, as checkView does:
// names are made of a change before anybody looks at the view.
func (f *follower) checkDelta(d mesh.Delta) error {
	if f.current.effective == nil {
		return nil
	}
	v := mesh.View{Plan: f.current.effective.head.Plan, Host: d.Host, Hosts: d.Hosts, Orgs: d.Orgs}
	return v.Validate()
}

// publish makes the current view the one in force; age is that of what the controller
// knows.
func (f *follower) publish(server string, now time.Time, age time.Duration) {
	f.problems.set("controller", "")
	f.held()
	f.contacts.Store(&contact{connected: true, controller: server, last: now.Add(-age), saying: f.current.told})
	v, step := f.current.effective, f.current.step
	if v == f.view.Load() {
		f.confirm(v.Hosts(), now)
		return
	}
	f.keepTail(v, step)
	f.names(v, step)
	hosts := step == nil || changesHosts(*step)
	if hosts {
		f.confirm(v.Hosts(), now)
	}
	f.view.Store(v)
	if f.dir != "" {
		f.toDisk(v, v == f.current.told, step)
	}
	f.wake()
	f.changed.fire()
	if hosts {
		f.hosts.fire()
	}
	if step == nil || step.Controllers != nil || step.Roots != nil || f.told != server {
		f.streams.worked(server, v.View())
		f.told = server
	}
}

// toDisk has the view that comes in force written.
func (f *follower) toDisk(v *version, whole bool, step *mesh.Delta) {
	f.news.add(v, whole, step)
	select {
	case f.keep <- struct{}{}:
	default:
	}
}

// changesHosts reports whether a change is one of hosts, too.
func changesHosts(d mesh.Delta) bool {
	return d.Host != nil || d.Coordinate != nil || len(d.Hosts) > 0 ||
		slices.ContainsFunc(d.Removed, func(key string) bool {
			return strings.HasPrefix(key, "hosts/") || strings.HasPrefix(key, "coordinates/")
		})
}

func (f *follower) held() {
	sentence := ""
	if !f.current.heldSince.IsZero() {
		sentence = fmt.Sprintf("a snapshot is held back: %s; it is applied when the controllers still say so at %s",
			f.current.why, f.current.heldSince.Add(f.timing.HoldFor).Format(time.RFC3339))
	}
	if f.problems.set("held", sentence) && sentence != "" {
		f.log.Warn("a snapshot is held back", "why", f.current.why, "for", f.timing.HoldFor)
	}
}

func (f *follower) disconnected() {
	c := f.Contact()
	if !c.connected {
		return
	}
	c.connected = false
	f.contacts.Store(&c)
	f.changed.fire()
}
