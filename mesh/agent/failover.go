package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// Which controller a node follows. It stays with the one it has. When that stream
// ends it asks all of them, one after the other, until one gives it a view:
//
//	following --- the stream broke ------> the same one first, then the others
//	          --- it fell silent --------> the others first
//	          --- it is behind, stale, or makes no sense
//	          --- fenced ----------------> the same one again, after a while

// Run follows until ctx ends (nil) or the node is fenced.
func (f *follower) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.keepOnDisk(ctx)
	}()
	defer f.endTail()
	defer func() { <-done }()
	b := backoff{first: f.timing.Backoff, most: f.timing.MaxBackoff}
	fenced := 0
	for ctx.Err() == nil {
		began := time.Now()
		got, err := f.round(ctx)
		var pause time.Duration
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrFenced):
			if fenced++; fenced >= fencedLimit {
				return mesh.WithHint(err, "if this machine is a copy of another one, remove its state directory and let it join with a token of its own")
			}
			// Long enough for a controller to find out that a line is dead.
			pause = 2 * f.timing.Silence
		case got && time.Since(began) >= f.timing.Backoff:
			fenced = 0
			b.reset()
			pause = rand.N(f.timing.Jitter + 1) // not all nodes of a controller that ended in one moment
		default: // nobody, or one that ends each stream at once
			pause = b.step()
		}
		if f.once {
			<-ctx.Done()
		}
		if !wait(ctx, pause, nil) {
			return nil
		}
	}
	return nil
}

// round tries one controller after the other until one has brought a view, and
// returns when that stream has ended. got is whether there was one.
func (f *follower) round(ctx context.Context) (got bool, err error) {
	var reasons []string
	for _, server := range inTurn(preferring(f.streams.servers(), f.fencedAt), f.failed) {
		f.fencedAt = ""
		got, err = f.follow(ctx, server)
		f.disconnected()
		if ctx.Err() != nil {
			return got, err
		}
		f.lost(server, err, got)
		if errors.Is(err, ErrFenced) {
			f.fencedAt = server // again, and not at another one, which does not see the other node
		}
		if got || f.fencedAt != "" {
			return got, err
		}
		reasons = append(reasons, fmt.Sprintf("%s: %s", server, err))
	}
	if len(reasons) > 1 {
		f.problems.set("controller", "no controller gives a view: "+strings.Join(reasons, "; "))
	}
	return false, err
}

// inTurn is the order in which controllers are tried. Those that failed last time
// come last, the one whose turn is the longest ago in front. Of the others the first
// one stays the first, and chance decides: the nodes of a controller that is gone
// spread over the others. failed counts failures; 0 is none.
func inTurn(list []string, failed map[string]int) []string {
	out := slices.Clone(list)
	if len(list) > 1 {
		rest := out[1:]
		rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	}
	slices.SortStableFunc(out, func(a, b string) int { return failed[a] - failed[b] })
	return out
}

// lost notes why a stream ended or could not be opened, and logs each reason once.
func (f *follower) lost(server string, err error, got bool) {
	if errors.Is(err, errStale) {
		clear(f.failed) // the others are asked first, whatever was wrong with them once
	}
	// A stream that broke may be opened again where it was; one that fell silent, or
	// was behind, rather elsewhere.
	if !got && !errors.Is(err, ErrFenced) || errors.Is(err, api.ErrSilent) || errors.Is(err, errBehind) || errors.Is(err, errStale) || errors.Is(err, errUnsound) {
		f.failures++
		f.failed[server] = f.failures
	} else {
		delete(f.failed, server)
	}
	sentence := fmt.Sprintf("controller %s: %s", server, err)
	switch {
	case errors.Is(err, ErrFenced):
		sentence = fmt.Sprintf("fenced: %s; this node follows no view", err)
	case errors.Is(err, api.ErrUnauthorized), errors.Is(err, api.ErrForbidden), errors.Is(err, api.ErrNotFound):
		sentence = fmt.Sprintf("%s is refused by controller %s: %s; it may have been removed from the mesh", f.node, server, err)
	}
	f.problems.set("controller", sentence)
	if was := f.reasons[server]; was != sentence || got {
		f.reasons[server] = sentence
		f.log.Warn("no view stream", "controller", server, "err", err)
	}
}

// preferring returns list with first in front.
func preferring(list []string, first string) []string {
	i := slices.Index(list, first)
	if i <= 0 {
		return list
	}
	return slices.Concat([]string{first}, list[:i], list[i+1:])
}
