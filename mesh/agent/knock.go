package agent

import (
	"context"
	"fmt"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers"
)

// knock is when a laptop asks its gateway anew for a handshake. A laptop and its new
// gateway hear of each other at about the same time, and the laptop always speaks first:
// a first word that comes before the gateway knows it is lost, and WireGuard says the
// next one only 5 s later. A peer that is removed and added has a first word again.
type knock struct {
	gateway wgtypes.Key
	tries   int
	due     time.Time
}

const (
	// knockFirst is how long the first word has; each one after it twice as long as the
	// one before, so that an answer from far away comes in time.
	knockFirst = 300 * time.Millisecond
	// mostKnocks are all, the last one 4.5 s after the first word: then WireGuard goes on.
	mostKnocks = 4
)

// next decides about the peer as it is now; shaken says that it has answered. again is
// that it has to be asked anew, and wait when to decide again (0: not any more).
func (k *knock) next(gateway wgtypes.Key, shaken bool, now time.Time) (again bool, wait time.Duration) {
	if gateway != k.gateway {
		*k = knock{gateway: gateway, due: now.Add(knockFirst)}
	}
	switch {
	case shaken:
		k.tries = mostKnocks
		return false, 0
	case k.tries >= mostKnocks:
		return false, 0
	case now.Before(k.due):
		return false, k.due.Sub(now)
	}
	k.tries++
	k.due = now.Add(knockFirst << k.tries)
	if k.tries >= mostKnocks {
		return true, 0
	}
	return true, k.due.Sub(now)
}

// knocks asks the gateway of a view anew for a handshake, if it is time to.
func (l *laptop) knocks(ctx context.Context, t *tunnels, v *mesh.View) error {
	device, there := l.device.opened()
	want := v.Config(t.key, t.port)
	if !there || len(want.Peers) != 1 {
		return nil
	}
	stats, err := device.Stats(ctx)
	if err != nil {
		return fmt.Errorf("tunnels: %w", err)
	}
	gateway, shaken := want.Peers[0], false
	for _, s := range stats {
		shaken = shaken || s.Key == gateway.Key && !s.LastHandshake.IsZero()
	}
	again, wait := l.knock.next(gateway.Key, shaken, time.Now())
	if wait > 0 {
		time.AfterFunc(wait, l.woken.fire)
	}
	if !again {
		return nil
	}
	l.log.Info("the gateway has not answered: asked anew", "host", v.Client.Gateway)
	if err := device.Apply(ctx, []peers.Change{{Op: peers.RemovePeer, Peer: peers.Peer{Key: gateway.Key}}, {Op: peers.AddPeer, Peer: gateway}}); err != nil {
		return fmt.Errorf("tunnels: %w", err)
	}
	return nil
}
