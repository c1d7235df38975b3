package agent

import (
	"context"
	"net/netip"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/peers"
)

// ways watches what the tunnels carry: both directions, and how large packets. It tells
// of what is wrong once, and of its end, and keeps it among the problems meanwhile. It
// is for one goroutine.
type ways struct {
	host  *host
	told  map[string]probe.Way // hosts with a one-way tunnel
	small map[string]hostSize  // hosts at which large packets do not arrive
	rx    map[mesh.Key]received
}

// received is how much a tunnel had received at some moment.
type received struct {
	bytes uint64
	at    time.Time
}

func newWays(h *host) *ways {
	return &ways{host: h, told: map[string]probe.Way{}, small: map[string]hostSize{}, rx: map[mesh.Key]received{}}
}

// look is called whenever something was measured, and every second.
func (w *ways) look(ctx context.Context, v *mesh.View, measured probe.Results, now time.Time) {
	w.sizes(v, measured)
	var stats map[mesh.Key]peers.Stats
	if doubtful(measured) {
		stats = w.stats(ctx)
	}
	decrypts := w.decrypts(v, measured, stats, now)
	w.host.plane.prober.decrypts(decrypts)
	w.oneWays(v, measured, stats, decrypts, now)
}

// doubtful reports whether a host is silent or a tunnel one-way.
func doubtful(measured probe.Results) bool {
	for _, r := range measured {
		if r.Suspect || r.Way.OneWay() {
			return true
		}
	}
	return false
}

func (w *ways) stats(ctx context.Context) map[mesh.Key]peers.Stats {
	list, err := w.host.plane.device.stats(ctx)
	if err != nil {
		return nil // the pass tells of it
	}
	out := make(map[mesh.Key]peers.Stats, len(list))
	for _, s := range list {
		out[mesh.Key(s.Key)] = s
	}
	return out
}

// What a tunnel receives without carrying anything: handshakes and keepalives. More
// than this, in bytes a second, is data.
const idleRate = 100

// decrypts are the silent hosts of which the tunnel receives data.
func (w *ways) decrypts(v *mesh.View, measured probe.Results, stats map[mesh.Key]peers.Stats, now time.Time) map[string]bool {
	out := map[string]bool{}
	for _, h := range v.Hosts {
		s, there := stats[h.Key]
		r := measured[h.Name]
		if !there || !r.Suspect || r.Way == probe.WayLostOut {
			delete(w.rx, h.Key)
			continue
		}
		was, known := w.rx[h.Key]
		if !known || s.Rx < was.bytes {
			w.rx[h.Key] = received{s.Rx, now}
			continue
		}
		if d := now.Sub(was.at); d >= time.Second {
			out[h.Name] = float64(s.Rx-was.bytes)/d.Seconds() > idleRate
			if d > 10*time.Second {
				w.rx[h.Key] = received{s.Rx, now}
			}
		}
	}
	return out
}

// oneWays tells of tunnels that carry one direction only.
func (w *ways) oneWays(v *mesh.View, measured probe.Results, stats map[mesh.Key]peers.Stats, decrypts map[string]bool, now time.Time) {
	h, there := w.host, map[string]bool{}
	sights := map[string]probe.Sight(nil)
	for _, host := range v.Hosts {
		r := measured[host.Name]
		if !r.Way.OneWay() {
			continue
		}
		there[host.Name] = true
		if sights == nil {
			sights = h.plane.prober.sights()
		}
		s := stats[host.Key]
		o := oneWay{
			host: host.Name, way: r.Way, since: now.Sub(r.WaySince), handshake: probe.Never, decrypts: decrypts[host.Name],
			theyDo: sights[host.Name].Hears.Decrypts, endpoint: endpointOf(host, s), port: h.cfg.Port,
		}
		if !s.LastHandshake.IsZero() {
			o.handshake = max(now.Sub(s.LastHandshake), 0)
		}
		h.problems.set("one-way "+host.Name, o.sentence())
		if w.told[host.Name] != r.Way {
			w.told[host.Name] = r.Way
			h.log.Warn("one-way tunnel", "host", host.Name, "lost", lostText(r.Way), "why", o.sentence())
		}
	}
	for name := range w.told {
		if !there[name] {
			delete(w.told, name)
			h.problems.set("one-way "+name, "")
			h.log.Info("tunnel is not one-way any more", "host", name)
		}
	}
}

// sizes follows how large packets may be.
func (w *ways) sizes(v *mesh.View, measured probe.Results) {
	h := w.host
	now, news := h.paths.judge(v, measured)
	h.plane.prober.tops(now.tops())
	if news {
		h.paths.changed()
	}
	for _, host := range v.Hosts {
		s := now.hosts[host.Name]
		was, told := w.small[host.Name]
		switch {
		case s.narrow():
			text := narrowSentence(host.Name, s, endpointOf(host, peers.Stats{}))
			h.problems.set("mtu "+host.Name, text)
			if was != s {
				h.log.Warn("large packets are lost", "host", host.Name, "mtu", s.mtu, "why", text)
			}
			w.small[host.Name] = s
		case told:
			delete(w.small, host.Name)
			h.problems.set("mtu "+host.Name, "")
			h.log.Info("large packets arrive again", "host", host.Name, "mtu", s.mtu)
		}
	}
	for name := range w.small {
		if _, there := now.hosts[name]; !there {
			delete(w.small, name)
			h.problems.set("mtu "+name, "")
		}
	}
}

func oneWayCount(measured probe.Results) (n int) {
	for _, r := range measured {
		if r.Way.OneWay() {
			n++
		}
	}
	return n
}

func endpointOf(h mesh.ViewHost, s peers.Stats) netip.AddrPort {
	switch {
	case s.Endpoint.IsValid():
		return s.Endpoint
	case len(h.Endpoints) > 0:
		return h.Endpoints[0]
	}
	return netip.AddrPort{}
}

// lostText is a direction as Status has it.
func lostText(w probe.Way) string {
	switch w {
	case probe.WayLostOut:
		return local.LostOut
	case probe.WayLostIn:
		return local.LostIn
	}
	return ""
}

// annotate adds to a list of peers what probes and paths say of the hosts among them.
func annotate(list []local.Peer, v *mesh.View, measured probe.Results, s *sizes) {
	byKey := make(map[string]string, len(v.Hosts))
	for _, h := range v.Hosts {
		byKey[h.Key.String()] = h.Name
	}
	for i, p := range list {
		name, ok := byKey[p.Key]
		if !ok {
			continue
		}
		if s != nil {
			list[i].MTU = s.hosts[name].mtu
		}
		if way := measured[name].Way; way.OneWay() {
			list[i].State, list[i].Lost = local.PeerOneWay, lostText(way)
		}
	}
}
