package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

// Dial opens a connection to a literal address, in whatever network namespace it
// chooses. network is "udp" or "tcp".
type Dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)

// ForwarderConfig says where other names go.
type ForwarderConfig struct {
	// Upstreams returns the resolvers for all names without a rule, in the order
	// in which to ask them; see Upstreams, the function. It is called for each query.
	Upstreams func() []netip.AddrPort
	// Domains sends a domain and everything below it to servers of its own, which are
	// otherwise like Upstreams. The longest domain that matches by whole labels counts,
	// also among Rules.
	Domains map[string][]netip.AddrPort
	// Rules are like Domains, for servers of the mesh: their answers may point into it,
	// and are not kept, because they follow the moment.
	Rules map[string][]netip.AddrPort
	// Mesh is the mesh's prefix. Its addresses are dropped from what Upstreams
	// answer, or any name on the internet could point into it (DNS rebinding), and
	// are never asked as upstreams. Names of the mesh go to Rules only.
	Mesh netip.Prefix
	// Rebind are domains that may point into the mesh all the same.
	Rebind []string
	// Self are the addresses that this process answers on; they are never asked.
	Self []netip.AddrPort
	// Timeout is for one query over all its upstreams. 0: 3 s.
	Timeout time.Duration
	// Dial opens sockets; nil: in the namespace of the process.
	Dial Dial
	Log  *slog.Logger // nil: nothing is logged

	now func() time.Time // for tests
}

// Forwarder passes queries on to other resolvers, and keeps what they answered:
// fresh for as long as the answer says, and for a day more to fall back on when
// they do not answer. That a server could not answer a question is kept as well, for
// seconds (RFC 9520).
type Forwarder struct {
	cfg     ForwarderConfig
	rules   []*route // longest domain first
	rest    *route
	rebind  [][]string // labels of Rebind
	cache   *cache
	flights singleflight.Group
	asking  pending // questions that may outlive who asked
	nonce   []byte
	looped  atomic.Bool // told already

	failures *failures

	lower sync.Map // netip.AddrPort: upstreams that do not give a question's case back

	hits, stale, misses, failed, remembered, upstreamErrors atomic.Uint64
}

// ForwardStats counts forwarded questions since the start.
type ForwardStats struct {
	Hits       uint64 // answered from the cache
	Stale      uint64 // answered from the cache although the answer's time was over
	Misses     uint64 // answered by an upstream
	Failed     uint64 // not answered
	Remembered uint64 // of Stale and Failed: nobody was asked, all had just failed
	Errors     uint64 // an upstream did not answer, or with an error
	Entries    int    // in the cache now
}

// Stats returns the counters.
func (f *Forwarder) Stats() ForwardStats {
	return ForwardStats{
		Hits: f.hits.Load(), Stale: f.stale.Load(), Misses: f.misses.Load(), Failed: f.failed.Load(),
		Remembered: f.remembered.Load(), Errors: f.upstreamErrors.Load(), Entries: f.cache.entries.Len(),
	}
}

// route is one set of servers.
type route struct {
	labels  []string // of the domain
	servers func() []netip.AddrPort
	trusted bool // the mesh's own: may answer with mesh addresses, and is not kept
	good    atomic.Pointer[netip.AddrPort]
	down    atomic.Bool // the last question had no answer
}

const (
	defaultForwardTimeout = 3 * time.Second
	// loopOption marks our own queries to resolvers near us (RFC 6891: 65001 to 65534
	// are for local use).
	loopOption = 65353
	// maxForwardTTL caps what upstreams say, in seconds.
	maxForwardTTL = 86400
)

// NewForwarder returns a forwarder. Rules with bad names are an error.
func NewForwarder(cfg ForwarderConfig) (*Forwarder, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultForwardTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, to.String())
		}
	}
	if cfg.Upstreams == nil {
		cfg.Upstreams = func() []netip.AddrPort { return nil }
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	f := &Forwarder{cfg: cfg, rest: &route{servers: cfg.Upstreams}, nonce: make([]byte, 8)}
	var err error
	if f.cache, err = newCache(cacheEntries, cfg.now); err != nil {
		return nil, err
	}
	if f.failures, err = newFailures(failureEntries, cfg.now); err != nil {
		return nil, err
	}
	for _, domain := range cfg.Rebind {
		labels, ok := splitName(domain)
		if !ok {
			return nil, fmt.Errorf("domain %q, whose names may point into the mesh: not a domain name", domain)
		}
		f.rebind = append(f.rebind, labels)
	}
	for i := range f.nonce {
		f.nonce[i] = byte(rand.Uint32())
	}
	for domain, servers := range cfg.Rules {
		if err := f.addRule(domain, servers, true); err != nil {
			return nil, err
		}
	}
	for domain, servers := range cfg.Domains {
		if err := f.addRule(domain, servers, false); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(f.rules, func(a, b *route) int { return len(b.labels) - len(a.labels) })
	return f, nil
}

// addRule adds a route for a domain.
func (f *Forwarder) addRule(domain string, servers []netip.AddrPort, trusted bool) error {
	labels, ok := splitName(domain)
	switch {
	case !ok:
		return fmt.Errorf("forwarding rule %q: not a domain name", domain)
	case !trusted && len(labels) == 0:
		return fmt.Errorf("forwarding rule %q: all names are the upstream resolvers'", domain)
	case !trusted && ours(labels):
		return fmt.Errorf("forwarding rule %q: these names are the mesh's", domain)
	}
	servers = slices.Clone(servers)
	f.rules = append(f.rules, &route{labels: labels, servers: func() []netip.AddrPort { return servers }, trusted: trusted})
	return nil
}

// ours reports whether a name lies in the mesh's part of internal.
func ours(labels []string) bool {
	return hasSuffix(labels, "internal") && !foreign(labels[:len(labels)-1])
}

// failureMost is how long a failure of a route's servers is remembered at most. The
// mesh's own come back within moments: the next gateway takes over.
func (r *route) failureMost() time.Duration {
	if r.trusted {
		return failureFirst
	}
	return failureMost
}

// route returns who is to be asked for a name; nil: nobody may be.
func (f *Forwarder) route(labels []string) *route {
	for _, r := range f.rules {
		if hasSuffix(labels, r.labels...) {
			return r
		}
	}
	if ours(labels) {
		return nil
	}
	if hasSuffix(labels, reverseSuffix...) && f.cfg.Mesh.IsValid() {
		p, digits := labels[:len(labels)-len(reverseSuffix)], (f.cfg.Mesh.Bits()+3)/4
		if len(p) >= digits {
			if at, ok := nibbles(p[len(p)-digits:]); ok && f.cfg.Mesh.Contains(at.Addr()) {
				return nil
			}
		}
	}
	return f.rest
}

// Servers returns who would be asked for a name, in order; none: nobody.
func (f *Forwarder) Servers(name string) []netip.AddrPort {
	labels, ok := splitName(name)
	if !ok {
		return nil
	}
	to := f.route(labels)
	if to == nil {
		return nil
	}
	return f.usable(to)
}

// usable returns a route's servers: not ourselves, nobody in the mesh (unless a
// rule says so), the one that answered last in front.
func (f *Forwarder) usable(r *route) []netip.AddrPort {
	var servers []netip.AddrPort
	for _, s := range r.servers() {
		s = netip.AddrPortFrom(s.Addr().Unmap(), s.Port())
		if !s.IsValid() || slices.Contains(f.cfg.Self, s) || slices.Contains(servers, s) ||
			!r.trusted && f.cfg.Mesh.IsValid() && f.cfg.Mesh.Contains(s.Addr().WithZone("")) {
			continue
		}
		servers = append(servers, s)
	}
	if good := r.good.Load(); good != nil {
		if i := slices.Index(servers, *good); i > 0 {
			servers = slices.Concat([]netip.AddrPort{*good}, servers[:i], servers[i+1:])
		}
	}
	return servers
}

// forward answers r from the cache or from upstreams. It returns in any case, after
// Timeout at the latest, with SERVFAIL if nobody answered and nothing is kept. An
// answer whose time is over is given at once if the last question had no answer, and
// otherwise when the upstreams take long; they are asked all the same.
//
// Equal questions at one time are one question upstream. That also bounds a loop:
// a query that comes back to us joins the one it came from and ends with it.
func (f *Forwarder) forward(ctx context.Context, r *request) *dns.Msg {
	q := r.question()
	labels, ok := splitName(q.Name)
	if !ok {
		return r.reply(FormatError, true)
	}
	to := f.route(labels)
	if to == nil {
		return r.reply(Refused, true)
	}
	if f.cameBack(r) {
		return r.reply(ServerFailure, true)
	}
	do := r.edns != nil && r.edns.Do()
	key := fmt.Sprintf("%s %d %t %t", lower(q.Name), q.Qtype, do, r.msg.CheckingDisabled)
	kept, fresh := f.cache.get(key)
	if fresh {
		f.hits.Add(1)
		return r.pass(kept)
	}
	up := f.fly(ctx, to, upstreamQuery{Question: q, do: do, cd: r.msg.CheckingDisabled, key: key})
	return f.wait(r, up, kept, to.down.Load())
}

// errLeft says that who asked first is gone, and the question with it.
var errLeft = errors.New("whoever asked has gone")

// fly asks a question upstream, together with all who ask the same at this time. It
// returns where the answer comes; nil: there is none. If the one whose question it
// was goes, another one's takes its place.
func (f *Forwarder) fly(ctx context.Context, to *route, q upstreamQuery) <-chan *dns.Msg {
	start := func() <-chan singleflight.Result {
		return f.flights.DoChan(q.key, func() (any, error) {
			bounded, cancel := context.WithTimeout(ctx, f.cfg.Timeout)
			defer cancel()
			m, err := f.ask(bounded, to, q)
			switch {
			case errors.Is(err, errRemembered):
				f.remembered.Add(1)
				return nil, err
			case err != nil && ctx.Err() != nil:
				return nil, errLeft
			}
			if to.down.Store(err != nil); err == nil && !to.trusted {
				f.cache.put(q.key, m)
			}
			return m, err
		})
	}
	f.asking.add(1)
	up := make(chan *dns.Msg, 1)
	answered := start()
	go func() {
		defer f.asking.add(-1)
		defer close(up)
		got := <-answered
		for errors.Is(got.Err, errLeft) && ctx.Err() == nil {
			got = <-start()
		}
		if got.Err == nil {
			up <- got.Val.(*dns.Msg)
		}
	}()
	return up
}

// stalePatience is how long upstreams are waited for when there is an old answer
// to give.
const stalePatience = 700 * time.Millisecond

// wait takes the upstreams' answer, or the one that is kept if that does not come
// in time.
func (f *Forwarder) wait(r *request, up <-chan *dns.Msg, kept *dns.Msg, down bool) *dns.Msg {
	var late <-chan time.Time
	if kept != nil {
		patience := stalePatience
		if down {
			patience = 0
		}
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	var m *dns.Msg
	select {
	case m = <-up:
	case <-late:
	}
	useless := m == nil || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
	switch {
	case useless && kept != nil:
		f.stale.Add(1)
		m = kept
	case m == nil:
		f.failed.Add(1)
		return r.reply(ServerFailure, true)
	default:
		f.misses.Add(1)
	}
	return r.pass(m)
}

// settle waits until nothing is asked any more. The questions end with the context
// that they were asked with.
func (f *Forwarder) settle() { f.asking.wait() }

// pass makes the asker's answer of an upstream's, which is shared and only read.
func (r *request) pass(up *dns.Msg) *dns.Msg {
	m := r.reply(Rcode(up.Rcode), true)
	m.Answer, m.Ns = slices.Clone(up.Answer), slices.Clone(up.Ns)
	m.Extra = append(slices.Clone(up.Extra), m.Extra...)
	return m
}

// cameBack recognises a query of our own, which an upstream sent to us.
func (f *Forwarder) cameBack(r *request) bool {
	if r.edns == nil {
		return false
	}
	for _, o := range r.edns.Option {
		if o, ok := o.(*dns.EDNS0_LOCAL); ok && o.Code == loopOption && slices.Equal(o.Data, f.nonce) {
			if !f.looped.Swap(true) {
				f.cfg.Log.Warn("a forwarded query came back: an upstream resolver forwards to this one", "name", r.question().Name)
			}
			return true
		}
	}
	return false
}
