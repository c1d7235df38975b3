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
	key     wgtypes.Key
	port    uint16
	log     *slog.Logger
	later   func()                         // wakes the loop in a moment; nil: the next pass will do
	retired []wgtypes.Key                  // by the last set: peers without prefixes, which are to go in a moment
	fresh   []peers.Peer                   // that were added and nobody has looked at since
	wanted  map[wgtypes.Key]netip.AddrPort // endpoints by peer
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
	changes, left := emptied(peers.Diff(have, peers.Retarget(given(t.wanted), want)), have)
	if t.retired = left; len(left) > 0 && t.later != nil {
		t.later()
	}
	if len(changes) == 0 {
		t.wanted = endpoints(want)
		return nil
	}
	for _, why := range dropped {
		t.log.Warn("left out of the tunnels", "why", why)
	}
	if err := device.Apply(ctx, changes); err != nil {
		// wanted stays: the next pass sees again what was given a new endpoint.
		return fmt.Errorf("tunnels: %w", err)
	}
	t.wanted = endpoints(want)
	for _, c := range changes {
		if c.Op == peers.AddPeer {
			t.fresh = append(t.fresh, c.Peer)
		}
		t.log.Info("tunnel", "change", c.String(), "rev", v.Revision.String())
	}
	return nil
}

// change carries out changes that are known without asking the device.
func (t *tunnels) change(ctx context.Context, changes []peers.Change, rev mesh.Revision, opened func() (peers.Device, bool)) error {
	device, there := opened()
	if !there {
		return fmt.Errorf("tunnels: %w", peers.ErrClosed)
	}
	if len(changes) > 0 {
		if err := device.Apply(ctx, changes); err != nil {
			return fmt.Errorf("tunnels: %w", err)
		}
	}
	for _, c := range changes {
		switch {
		case c.Op == peers.AddPeer:
			t.fresh = append(t.fresh, c.Peer)
			t.wanted[c.Peer.Key] = c.Peer.Endpoint
		case c.Op == peers.UpdatePeer && c.SetEndpoint:
			t.wanted[c.Peer.Key] = c.Peer.Endpoint
		case c.Op == peers.RemovePeer:
			delete(t.wanted, c.Peer.Key)
		}
		t.log.Info("tunnel", "change", c.String(), "rev", rev.String())
	}
	return nil
}

func endpoints(c peers.Config) map[wgtypes.Key]netip.AddrPort {
	out := make(map[wgtypes.Key]netip.AddrPort, len(c.Peers))
	for _, p := range c.Peers {
		out[p.Key] = p.Endpoint
	}
	return out
}

func given(endpoints map[wgtypes.Key]netip.AddrPort) (c peers.Config) {
	for key, e := range endpoints {
		c.Peers = append(c.Peers, peers.Peer{Key: key, Endpoint: e})
	}
	return c
}

// retire is how long a peer that has lost its prefixes stays.
const retire = 100 * time.Millisecond

// emptied makes the removal of a peer that still has prefixes their removal only:
// nothing more is sent to it or believed of it, and what the device has queued for
// it at this moment, of an endpoint that moves to another peer, still leaves. left
// are the peers that a later pass has to remove.
func emptied(changes []peers.Change, have peers.Config) (out []peers.Change, left []wgtypes.Key) {
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
		left = append(left, c.Peer.Key)
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
	var self wgtypes.Key
	if c.PrivateKey != self {
		self = c.PrivateKey.PublicKey() // once: it costs as much as a handshake
	}
	for _, p := range c.Peers {
		var ips []netip.Prefix
		own := make(map[netip.Prefix]bool, len(p.AllowedIPs))
		for _, ip := range p.AllowedIPs {
			if prefixes[ip] || own[ip] || !ip.IsValid() || ip != ip.Masked() {
				dropped = append(dropped, fmt.Sprintf("peer %s: prefix %s is not valid or is another peer's", p.Key, ip))
				continue
			}
			ips = append(ips, ip)
			own[ip] = true
		}
		p.AllowedIPs = ips
		err := peers.Config{Peers: []peers.Peer{p}}.Validate()
		if err == nil && p.Key == self {
			err = fmt.Errorf("peer %s: that is the key of the device itself", p.Key)
		}
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
// that fails is soon called again.
func (p passes) run(ctx context.Context, wake func() <-chan struct{}, pass func() error) {
	p.runPaced(ctx, wake, func() (time.Duration, error) {
		if err := pass(); err != nil {
			return min(time.Second, p.timing.Tick), err
		}
		return p.timing.Tick, nil
	})
}

// runPaced calls pass whenever something changed, and when the time is over that the
// last one said, until ctx ends. One that does not come back is told of: a call into
// the system hangs.
func (p passes) runPaced(ctx context.Context, wake func() <-chan struct{}, pass func() (time.Duration, error)) {
	for {
		changed := wake()
		start := time.Now()
		dog := time.AfterFunc(p.timing.Watchdog, func() {
			p.problems.set("watchdog", fmt.Sprintf("a pass has been running since %s: the system does not answer", start.Format(time.RFC3339)))
			p.log.Error("a pass takes too long", "since", start.Format(time.RFC3339))
		})
		pause, err := pass()
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
		if !wait(ctx, pause, changed) {
			return
		}
	}
}
