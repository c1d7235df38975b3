// Package peerstest is what tests of tunnels share: Fake, a Device in memory that
// prints its state as text, and Run, the suite that every Device passes. It sends
// no packets; that a tunnel carries traffic is for the tests of each backend.
package peerstest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
)

// Fake is a Device in memory. Unlike a real one it may be used by several
// goroutines at a time, so that a test can look at it while its owner works.
type Fake struct {
	mu      sync.Mutex
	config  peers.Config                // guarded by mu, as are all below
	stats   map[wgtypes.Key]peers.Stats // what Heard told
	changes []peers.Change              // since Changes was last asked
	fail    func(peers.Change) error    // nil: nothing fails
	closed  bool
}

var _ peers.Device = (*Fake)(nil)

// NewFake returns a device without a key and peers. It chose port 40000.
func NewFake() *Fake {
	return &Fake{config: peers.Config{ListenPort: 40000}, stats: map[wgtypes.Key]peers.Stats{}}
}

// Config implements peers.Device.
func (f *Fake) Config(ctx context.Context) (peers.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.readyLocked(ctx); err != nil {
		return peers.Config{}, err
	}
	return peers.Apply(f.config, nil), nil // a copy
}

// Apply implements peers.Device.
func (f *Fake) Apply(ctx context.Context, changes []peers.Change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.readyLocked(ctx); err != nil {
		return err
	}
	for i, c := range changes {
		if f.fail != nil {
			if err := f.fail(c); err != nil {
				f.applyLocked(changes[:i])
				return fmt.Errorf("%s: %w", c, err)
			}
		}
	}
	f.applyLocked(changes)
	return nil
}

func (f *Fake) applyLocked(changes []peers.Change) {
	f.config = peers.Apply(f.config, changes)
	f.changes = append(f.changes, changes...)
	for _, c := range changes {
		if c.Op == peers.RemovePeer {
			delete(f.stats, c.Peer.Key)
		}
	}
}

// Stats implements peers.Device.
func (f *Fake) Stats(ctx context.Context) ([]peers.Stats, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.readyLocked(ctx); err != nil {
		return nil, err
	}
	var out []peers.Stats
	for _, p := range f.config.Peers {
		s := f.stats[p.Key]
		s.Key, s.Endpoint = p.Key, p.Endpoint
		out = append(out, s)
	}
	return out, nil
}

// Close implements peers.Device.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

func (f *Fake) readyLocked(ctx context.Context) error {
	if f.closed {
		return peers.ErrClosed
	}
	return ctx.Err()
}

// Heard makes the device hold what it would after packets of the peer s.Key came:
// counters, the time of the handshake, and the endpoint if s has one (the peer
// roamed). An unknown peer is not heard.
func (f *Fake) Heard(s peers.Stats) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.config.Peers, func(p peers.Peer) bool { return p.Key == s.Key })
	if i < 0 {
		return
	}
	if s.Endpoint.IsValid() {
		f.config.Peers[i].Endpoint = s.Endpoint
	}
	f.stats[s.Key] = s
}

// Fail makes Apply stop with the error that fail returns for a change. Those before
// it are made. Nil heals the device.
func (f *Fake) Fail(fail func(peers.Change) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

// Changes returns, one a line, what was applied since it was last called. A pass
// that had nothing to do leaves nothing here.
func (f *Fake) Changes() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, c := range f.changes {
		fmt.Fprintln(&b, c)
	}
	f.changes = nil
	return b.String()
}

// String is the state as text, for a golden: peers.Config's, and whether the
// device is closed.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.config.String()
	if f.closed {
		s += "closed\n"
	}
	return s
}
