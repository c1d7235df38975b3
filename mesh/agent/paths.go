package agent

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/link"
)

// sizes are how large packets may be, as bytes of a packet that goes into a tunnel. They
// are never changed after they are given out.
type sizes struct {
	link  int // the MTU of the WireGuard link and of the machines' links
	hosts map[string]hostSize
	peers map[wgtypes.Key]int // of those hosts whose routes have a lower one
}

// hostSize is how large packets to one host may be.
type hostSize struct {
	underlay int  // as the route to its endpoint says; 0: there is no route
	top      int  // that would fit by that
	mtu      int  // that does, as far as is known
	tiny     bool // not even minMTU does
}

// narrow reports whether probes say that less arrives than the route promises.
func (s hostSize) narrow() bool { return s.mtu < s.top || s.tiny }

// sizesOf decides. ways are the MTUs of the underlay's routes by address, others that of
// its default route. The link is as wide as the widest way; a host behind a narrower
// one, or at which large packets do not arrive, has a lower MTU on its own routes.
func sizesOf(configured int, hosts []mesh.ViewHost, ways map[netip.Addr]int, others int, measured probe.Results) *sizes {
	s := &sizes{link: configured, hosts: make(map[string]hostSize, len(hosts)), peers: map[wgtypes.Key]int{}}
	if configured == 0 {
		widest := 0
		for _, h := range hosts {
			widest = max(widest, ways[underlayOf(h)])
		}
		if widest == 0 {
			widest = others
		}
		s.link = through(widest)
	}
	for _, h := range hosts {
		x := hostSize{underlay: ways[underlayOf(h)], top: s.link}
		if x.underlay != 0 {
			x.top = min(s.link, max(x.underlay-underlayRoom, minMTU))
		}
		x.mtu = x.top
		if r := measured[h.Name]; r.MTU != 0 {
			x.mtu, x.tiny = min(x.top, r.MTU), r.Tiny
		}
		s.hosts[h.Name] = x
		if x.mtu < s.link {
			s.peers[wgtypes.Key(h.Key)] = x.mtu
		}
	}
	return s
}

func (s *sizes) same(t *sizes) bool {
	return s.link == t.link && maps.Equal(s.hosts, t.hosts) && maps.Equal(s.peers, t.peers)
}

// tops are for probe.Prober.Tops.
func (s *sizes) tops() map[string]int {
	out := make(map[string]int, len(s.hosts))
	for name, x := range s.hosts {
		out[name] = x.top
	}
	return out
}

// route is the MTU of a peer's route; 0: the link's. A host's own address, over which
// probes look whether the path has got wider, keeps the link's.
func (s *sizes) route(prefix netip.Prefix, peer wgtypes.Key) int {
	if s == nil || prefix.Bits() == prefix.Addr().BitLen() {
		return 0
	}
	return s.peers[peer]
}

// peerRoutes are the routes of a view's peers, sorted.
func peerRoutes(v *mesh.View, s *sizes) []link.Route {
	var out []link.Route
	sources := v.Sources()
	for _, p := range v.Config(wgtypes.Key{}, 0).Peers {
		for _, ip := range p.AllowedIPs {
			out = append(out, link.Route{Prefix: ip, MTU: s.route(ip, p.Key), Source: sources[ip]})
		}
	}
	slices.SortStableFunc(out, func(a, b link.Route) int { return peers.ComparePrefix(a.Prefix, b.Prefix) })
	return slices.CompactFunc(out, func(a, b link.Route) bool { return a.Prefix == b.Prefix })
}

func (l *loop) sizesNow() *sizes {
	if l.sizes == nil {
		return nil
	}
	return l.sizes()
}

// paths keeps sizes. Any goroutine may ask.
type paths struct {
	configured int
	changed    func() // asks for a whole pass

	mu      sync.Mutex // guards what follows
	ways    map[netip.Addr]int
	others  int
	current *sizes
}

// get returns what is known, and looks first if nothing is.
func (p *paths) get(v *mesh.View) *sizes {
	p.mu.Lock()
	known := p.current
	p.mu.Unlock()
	if known == nil {
		known, _ = p.look(v, nil)
	}
	return known
}

// known returns what is known; nil: nothing yet.
func (p *paths) known() *sizes {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

// look asks the underlay about the ways to a view's hosts, and reports whether
// something follows from it that did not before.
func (p *paths) look(v *mesh.View, measured probe.Results) (now *sizes, news bool) {
	var to []netip.Addr
	for _, h := range viewHosts(v) {
		if a := underlayOf(h); a.IsValid() {
			to = append(to, a)
		}
	}
	ways, others, err := underlayWays(to, false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.ways, p.others = make(map[netip.Addr]int, len(to)), others
		for i, a := range to {
			p.ways[a] = ways[i]
		}
	}
	return p.judgeLocked(v, measured)
}

// judge takes what probes have measured, see look. It looks if there are new hosts.
func (p *paths) judge(v *mesh.View, measured probe.Results) (now *sizes, news bool) {
	if p.lacks(v) {
		return p.look(v, measured)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.judgeLocked(v, measured)
}

// lacks reports whether the way to a host of a view was not asked for yet.
func (p *paths) lacks(v *mesh.View) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(viewHosts(v), func(h mesh.ViewHost) bool {
		_, known := p.ways[underlayOf(h)]
		return !known && underlayOf(h).IsValid()
	})
}

func (p *paths) judgeLocked(v *mesh.View, measured probe.Results) (*sizes, bool) {
	now := sizesOf(p.configured, viewHosts(v), p.ways, p.others, measured)
	if p.current != nil && p.current.same(now) {
		return p.current, false
	}
	p.current = now
	return now, true
}

// underlayOf is where a host is on the underlay; not valid: nobody knows.
func underlayOf(h mesh.ViewHost) netip.Addr {
	if len(h.Endpoints) == 0 {
		return netip.Addr{}
	}
	return h.Endpoints[0].Addr()
}

func viewHosts(v *mesh.View) []mesh.ViewHost {
	if v == nil {
		return nil
	}
	return v.Hosts
}

// mtu is the MTU of the WireGuard link and of the machines' links.
func (h *host) mtu(v *mesh.View) int { return h.paths.get(v).link }

// lookUnder looks at the underlay, and wakes the loop if something follows from it.
func (h *host) lookUnder(f *follower) {
	h.lookAtOwn()
	if v := f.Hosts(); v != nil {
		if _, news := h.paths.look(v, h.plane.prober.results()); news {
			h.paths.changed()
		}
	}
}

const (
	// underlayEvery is the time between two looks at the underlay's routes if it tells
	// nothing; underlayCalm how long it is let settle when it does, and underlayRest the
	// least time between two looks then.
	underlayEvery = 30 * time.Second
	underlayCalm  = 200 * time.Millisecond
	underlayRest  = time.Second
)

// watchUnderlay calls look when routes or links of the host's namespace change, and
// now and then, until ctx ends.
func watchUnderlay(ctx context.Context, look func()) {
	for ctx.Err() == nil {
		watchOnce(ctx, look)
	}
}

// watchOnce ends when the kernel's messages do: it drops who does not keep up.
func watchOnce(ctx context.Context, look func()) {
	done := make(chan struct{})
	defer close(done)
	routes, links := make(chan netlink.RouteUpdate), make(chan netlink.LinkUpdate)
	if netlink.RouteSubscribe(routes, done) != nil {
		routes = nil // looking now and then is all that is left
	}
	if netlink.LinkSubscribe(links, done) != nil {
		links = nil
	}
	defer func() { drain(routes, links) }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	calm := false // the timer is about to end a calm
	var last time.Time
	for {
		open := true
		select {
		case <-ctx.Done():
			return
		case _, open = <-routes:
		case _, open = <-links:
		case <-timer.C:
			look()
			last = time.Now()
			timer.Reset(underlayEvery)
			calm = false
			continue
		}
		if !open {
			wait(ctx, time.Second, nil)
			return
		}
		if !calm {
			calm = true
			timer.Reset(max(underlayCalm, underlayRest-time.Since(last)))
		}
	}
}

// drain lets those end that still send.
func drain(routes <-chan netlink.RouteUpdate, links <-chan netlink.LinkUpdate) {
	go func() {
		for routes != nil || links != nil {
			open := true
			select {
			case _, open = <-routes:
				if !open {
					routes = nil
				}
			case _, open = <-links:
				if !open {
					links = nil
				}
			}
		}
	}()
}
