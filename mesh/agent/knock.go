package agent

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers"
)

// knock is when a new peer is asked anew for a handshake. Two ends hear of each other at
// about the same time: a first word that comes before the other end knows its sender is
// lost, and of two that cross both are. WireGuard says the next one only 5 s later, and
// two that have crossed once are likely to do so again. A peer that is removed and added
// has a first word again. Only one end knocks: a laptop; which of two hosts, leads says.
type knock struct {
	peer  wgtypes.Key
	first time.Duration // that the first word has; each one after it has twice as long as the one before
	pause time.Duration // that the next one has
	until time.Time     // then WireGuard goes on by itself
	due   time.Time
	over  bool
}

const (
	// gatewayWord is how long a laptop's first word has: it speaks at once.
	gatewayWord = 300 * time.Millisecond
	// hostWord is that of a host, which waits before it speaks (firstWord, secondWord): an
	// answer from the other end of the world has to be in time.
	hostWord = 700 * time.Millisecond
	// rekeyTimeout is WireGuard's: nobody knocks after it.
	rekeyTimeout = 5 * time.Second
)

// next decides about the peer as it is now; shaken says that it has answered. again is
// that it has to be asked anew, and wait when to decide again (0: not any more).
func (k *knock) next(peer wgtypes.Key, shaken bool, now time.Time) (again bool, wait time.Duration) {
	if peer != k.peer || k.until.IsZero() {
		*k = knock{peer: peer, first: k.first, pause: 2 * k.first, due: now.Add(k.first), until: now.Add(rekeyTimeout)}
	}
	switch {
	case shaken, k.over:
		k.over = true
		return false, 0
	case now.Before(k.due):
		return false, k.due.Sub(now)
	}
	k.due, k.pause = now.Add(k.pause), 2*k.pause
	if k.over = k.due.After(k.until); k.over {
		return true, 0
	}
	return true, k.due.Sub(now)
}

// leads reports whether this host knocks at a new peer, and not the peer at it. One
// without an endpoint has to begin itself, and so has this host if it is behind NAT;
// else it is the one with the lower key.
func leads(own wgtypes.Key, p peers.Peer) bool {
	return p.Endpoint.IsValid() && (p.Keepalive > 0 || bytes.Compare(own[:], p.Key[:]) < 0)
}

// knocks asks new hosts that have not answered anew, if it is time to, and returns when
// to look again; 0: there are none.
func (l *loop) knocks(ctx context.Context, now time.Time) (wait time.Duration) {
	own := l.tunnels.key.PublicKey()
	for _, p := range l.tunnels.fresh {
		if leads(own, p) {
			if l.knocking == nil {
				l.knocking = map[wgtypes.Key]*knock{}
			}
			l.knocking[p.Key] = &knock{first: hostWord}
			l.knocking[p.Key].next(p.Key, false, now)
		}
	}
	l.tunnels.fresh = nil
	sooner := func(d time.Duration) {
		if wait == 0 || d < wait {
			wait = d
		}
	}
	due := false
	for _, k := range l.knocking {
		if d := k.due.Sub(now); d > 0 {
			sooner(d)
		} else {
			due = true
		}
	}
	device, there := l.system.Opened()
	if !due || !there {
		return wait
	}
	stats, err := device.Stats(ctx)
	if err != nil {
		return hostWord // the next pass tells
	}
	shaken := make(map[wgtypes.Key]bool, len(stats))
	for _, s := range stats {
		shaken[s.Key] = !s.LastHandshake.IsZero()
	}
	again := map[wgtypes.Key]bool{}
	for key, k := range l.knocking {
		knocks, d := k.next(key, shaken[key], now)
		if knocks {
			again[key] = true
		}
		if d == 0 {
			delete(l.knocking, key)
		} else {
			sooner(d)
		}
	}
	if err := l.knock(ctx, device, again); err != nil {
		l.log.Warn("new hosts that have not answered are not asked anew", "err", err)
	}
	return wait
}

// knock removes these peers and adds them as they are.
func (l *loop) knock(ctx context.Context, device peers.Device, which map[wgtypes.Key]bool) error {
	if len(which) == 0 {
		return nil
	}
	have, err := device.Config(ctx)
	if err != nil {
		return err
	}
	var changes []peers.Change
	for _, p := range have.Peers {
		if which[p.Key] {
			l.log.Info("a new host has not answered: asked anew", "peer", p.Key.String(), "endpoint", p.Endpoint.String())
			changes = append(changes, peers.Change{Op: peers.RemovePeer, Peer: peers.Peer{Key: p.Key}}, peers.Change{Op: peers.AddPeer, Peer: p})
		}
	}
	return device.Apply(ctx, changes)
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
	t.fresh = nil // there is one, and it is looked at here
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
