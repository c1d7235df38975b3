package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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

// streams opens view streams. In the program it is the node's credentials.
type streams interface {
	// servers lists the controllers, the one to try first in front.
	servers() []string
	// open opens a stream at one of them.
	open(ctx context.Context, server string) (viewStream, error)
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

	current  current // of Run alone
	view     atomic.Pointer[mesh.View]
	contacts atomic.Pointer[contact]
	changed  signal
	keep     chan struct{}             // wakes the writer of the cache
	kept     atomic.Pointer[mesh.View] // that is on disk
	written  signal
	// Set before Run, if wanted: called with the view whenever a controller stands by
	// it, and after the view has changed.
	confirm func(*mesh.View, time.Time)
	wake    func()
	once    bool // fault injection: a stream that ended is not opened again
}

func newFollower(node mesh.Node, dir string, t Timing, s streams, p *problems, log *slog.Logger) *follower {
	f := &follower{
		node: node, dir: dir, timing: t, streams: s, problems: p, log: log, keep: make(chan struct{}, 1),
		confirm: func(*mesh.View, time.Time) {}, wake: func() {},
	}
	f.current.holdFor = t.HoldFor
	f.contacts.Store(&contact{})
	return f
}

// View returns the view in force, nil if there is none yet. It is not to be
// changed.
func (f *follower) View() *mesh.View { return f.view.Load() }

// Contact returns what is known of the controllers.
func (f *follower) Contact() contact { return *f.contacts.Load() }

// load takes the view on disk.
func (f *follower) load() {
	if f.dir == "" {
		return
	}
	v, saved, err := readCache(f.dir, f.node)
	if f.problems.err("cache", err) && err != nil {
		f.log.Error("the last view is not used", "err", err)
	}
	if v == nil {
		return
	}
	f.log.Info("starting from the view on disk", "rev", v.Revision.String(), "saved", saved.Format(time.RFC3339), "peers", len(v.Hosts))
	// Only what is in force: nothing is told before a controller speaks, so the first
	// snapshot is weighed against what works.
	f.current.effective = v
	f.contacts.Store(&contact{last: saved, fromCache: true})
	f.view.Store(v)
	f.changed.fire()
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
		if v := f.kept.Load(); v != nil && holds(v) || !wait(ctx, keepPatience, written) {
			return
		}
	}
}

// keepPatience is how long a machine waits for its record to be on disk.
const keepPatience = time.Second

// Run follows until ctx ends (nil) or the node is fenced.
func (f *follower) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if f.dir != "" {
			keepView(ctx, f.dir, f.timing.CacheWrite, f.keep, f.View, func(v *mesh.View, err error) {
				if err == nil {
					f.kept.Store(v)
					f.written.fire()
				}
				if f.problems.err("cache", err) && err != nil {
					f.log.Error("the view is not kept on disk", "err", err)
				}
			})
		}
	}()
	defer func() { <-done }()
	b := backoff{first: f.timing.Backoff, most: f.timing.MaxBackoff}
	fenced := 0
	for ctx.Err() == nil {
		for _, server := range f.streams.servers() {
			got, err := f.follow(ctx, server)
			f.disconnected()
			if ctx.Err() != nil {
				return nil
			}
			f.lost(server, err, got)
			if got {
				b.reset()
				fenced = 0
			}
			if errors.Is(err, ErrFenced) {
				if fenced++; fenced >= fencedLimit {
					return mesh.WithHint(err, "if this machine is a copy of another one, remove its state directory and let it join with a token of its own")
				}
				// Long enough for a controller to find out that a line is dead.
				if !wait(ctx, 2*f.timing.Silence, nil) {
					return nil
				}
			}
			if got {
				break // back to the one that worked, after a moment
			}
		}
		if f.once {
			<-ctx.Done()
		}
		if !wait(ctx, b.step(), nil) {
			return nil
		}
	}
	return nil
}

// lost logs why a stream ended or could not be opened, once per reason.
func (f *follower) lost(server string, err error, got bool) {
	sentence := fmt.Sprintf("controller %s: %s", server, err)
	switch {
	case errors.Is(err, ErrFenced):
		sentence = fmt.Sprintf("fenced: %s; this node follows no view", err)
	case errors.Is(err, api.ErrUnauthorized), errors.Is(err, api.ErrForbidden), errors.Is(err, api.ErrNotFound):
		sentence = fmt.Sprintf("%s is refused by controller %s: %s; it may have been removed from the mesh", f.node, server, err)
	}
	if f.problems.set("controller", sentence) || got {
		f.log.Warn("no view stream", "controller", server, "err", err)
	}
}

// follow reads one stream until it ends. got is whether it brought a view.
func (f *follower) follow(ctx context.Context, server string) (got bool, err error) {
	stream, err := f.streams.open(ctx, server)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	for {
		e, err := stream.Next()
		if err != nil {
			return got, err
		}
		now := time.Now()
		switch {
		case e.Fenced != "":
			return false, fmt.Errorf("%w: %s", ErrFenced, e.Fenced)
		case e.Snapshot != nil:
			if err := checkView(e.Snapshot, f.node); err != nil {
				return got, fmt.Errorf("%w: %w", errUnsound, err)
			}
			if !got {
				f.log.Info("following the view", "controller", server, "rev", e.Snapshot.Revision.String())
			}
			f.current.snapshot(e.Snapshot, now)
			got = true
		case e.Delta != nil:
			// Nothing is known to stand before the first snapshot of a stream.
			if !got || !f.current.delta(*e.Delta, now) {
				return got, fmt.Errorf("%w: a change before the first snapshot", errUnsound)
			}
		case e.Ping != nil && got:
			f.current.heard(now)
		}
		if got {
			f.publish(server, now)
		}
	}
}

// publish makes the current view the one in force.
func (f *follower) publish(server string, now time.Time) {
	f.problems.set("controller", "")
	f.held()
	f.contacts.Store(&contact{connected: true, controller: server, last: now})
	v := f.current.effective
	f.confirm(v, now)
	if v == f.view.Load() {
		return
	}
	f.view.Store(v)
	f.wake()
	f.changed.fire()
	f.streams.worked(server, v)
	select {
	case f.keep <- struct{}{}:
	default:
	}
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

// preferring returns list with first in front.
func preferring(list []string, first string) []string {
	i := slices.Index(list, first)
	if i <= 0 {
		return list
	}
	return slices.Concat([]string{first}, list[:i], list[i+1:])
}
