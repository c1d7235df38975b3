package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers"
)

// tunnels gives a device what a view wants. It remembers one thing, what was
// wanted before: an endpoint that changed there was given by somebody; one that
// only the device has changed is where a peer has roamed to, and stays.
type tunnels struct {
	key    wgtypes.Key
	port   uint16
	log    *slog.Logger
	later  func() // wakes the loop in a moment; nil: the next pass will do
	wanted peers.Config
}

// set applies the difference between what the device says that it holds and what v
// wants.
func (t *tunnels) set(ctx context.Context, v *mesh.View, open func() (peers.Device, error)) error {
	device, err := open()
	if err != nil {
		return err
	}
	have, err := device.Config(ctx)
	if err != nil {
		return err
	}
	want, dropped := sound(v.Config(t.key, t.port))
	changes, left := emptied(peers.Diff(have, peers.Retarget(t.wanted, want)), have)
	if left && t.later != nil {
		t.later()
	}
	if len(changes) == 0 {
		t.wanted = want
		return nil
	}
	for _, why := range dropped {
		t.log.Warn("left out of the tunnels", "why", why)
	}
	if err := device.Apply(ctx, changes); err != nil {
		// wanted stays: the next pass sees again what was given a new endpoint.
		return fmt.Errorf("tunnels: %w", err)
	}
	t.wanted = want
	for _, c := range changes {
		t.log.Info("tunnel", "change", c.String(), "rev", v.Revision.String())
	}
	return nil
}

// retire is how long a peer that has lost its prefixes stays.
const retire = 100 * time.Millisecond

// emptied makes the removal of a peer that still has prefixes their removal only:
// nothing more is sent to it or believed of it, and what the device has queued for
// it at this moment, of an endpoint that moves to another peer, still leaves. left
// says that a later pass has peers to remove.
func emptied(changes []peers.Change, have peers.Config) (out []peers.Change, left bool) {
	held := make(map[wgtypes.Key][]netip.Prefix, len(have.Peers))
	for _, p := range have.Peers {
		held[p.Key] = p.AllowedIPs
	}
	taken := map[netip.Prefix]bool{} // by another peer, in the same step
	for _, c := range changes {
		if c.Op == peers.AddPeer || c.Op == peers.Move {
			for _, ip := range c.Peer.AllowedIPs {
				taken[ip] = true
			}
		}
	}
	for _, c := range changes {
		ips := held[c.Peer.Key]
		if c.Op != peers.RemovePeer || len(ips) == 0 {
			out = append(out, c)
			continue
		}
		left = true
		ips = slices.DeleteFunc(slices.Clone(ips), func(ip netip.Prefix) bool { return taken[ip] })
		if len(ips) > 0 {
			out = append(out, peers.Change{Op: peers.Drop, Peer: peers.Peer{Key: c.Peer.Key, AllowedIPs: ips}})
		}
	}
	return out, left
}

// sound leaves out of a configuration what a device would misunderstand: one bad
// record must not keep the others from having a tunnel. Of two peers with one key,
// or with one prefix, the first one stays.
func sound(c peers.Config) (good peers.Config, dropped []string) {
	good = peers.Config{PrivateKey: c.PrivateKey, ListenPort: c.ListenPort}
	prefixes, keys := map[netip.Prefix]bool{}, map[wgtypes.Key]bool{}
	for _, p := range c.Peers {
		var ips []netip.Prefix
		for _, ip := range p.AllowedIPs {
			if prefixes[ip] || !ip.IsValid() || ip != ip.Masked() {
				dropped = append(dropped, fmt.Sprintf("peer %s: prefix %s is not valid or is another peer's", p.Key, ip))
				continue
			}
			ips = append(ips, ip)
		}
		p.AllowedIPs = ips
		err := peers.Config{PrivateKey: c.PrivateKey, Peers: []peers.Peer{p}}.Validate()
		if err == nil && keys[p.Key] {
			err = fmt.Errorf("peer %s: the key stands twice", p.Key)
		}
		if err != nil {
			dropped = append(dropped, err.Error())
			continue
		}
		keys[p.Key] = true
		for _, ip := range ips {
			prefixes[ip] = true
		}
		good.Peers = append(good.Peers, p)
	}
	return good, dropped
}

// passes runs passes.
type passes struct {
	timing   Timing
	problems *problems
	log      *slog.Logger
}

// run calls pass whenever something changed, and every tick, until ctx ends. One
// that fails is soon called again. One that does not come back is told of: a call
// into the system hangs.
func (p passes) run(ctx context.Context, wake func() <-chan struct{}, pass func() error) {
	for {
		changed := wake()
		start := time.Now()
		dog := time.AfterFunc(p.timing.Watchdog, func() {
			p.problems.set("watchdog", fmt.Sprintf("a pass has been running since %s: the system does not answer", start.Format(time.RFC3339)))
			p.log.Error("a pass takes too long", "since", start.Format(time.RFC3339))
		})
		err := pass()
		if !dog.Stop() {
			p.log.Warn("a long pass has ended", "took", time.Since(start).Round(time.Millisecond))
		}
		p.problems.set("watchdog", "")
		if ctx.Err() != nil {
			return
		}
		if p.problems.err("pass", err) && err != nil {
			p.log.Error("not everything is as the view says", "err", err)
		}
		pause := p.timing.Tick
		if err != nil {
			pause = min(time.Second, pause)
		}
		if !wait(ctx, pause, changed) {
			return
		}
	}
}
