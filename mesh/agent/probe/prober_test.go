package probe

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// wire is a network in memory. It carries packets between its conns after delay,
// unless the destination is cut off.
type wire struct {
	mu    sync.Mutex
	conns map[netip.AddrPort]*memConn
	delay time.Duration
	cut   map[netip.Addr]bool
	from  map[[2]netip.Addr]bool        // one way: from, to
	mtu   map[netip.Addr]int            // of the way to, as packets with their headers
	lost  func() bool                   // nil: nothing is
	old   map[netip.Addr]bool           // agents of former times: they understand no flags but the first
	seen  func(to netip.Addr, b []byte) // each packet that is sent
	sent  int
}

type memConn struct {
	wire   *wire
	addr   netip.AddrPort
	in     chan datagram
	closed chan struct{}
	once   sync.Once
}

type datagram struct {
	bytes []byte
	from  netip.AddrPort
}

func (w *wire) listen(addr string) *memConn {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &memConn{wire: w, addr: netip.AddrPortFrom(netip.MustParseAddr(addr), DefaultPort), in: make(chan datagram, 100), closed: make(chan struct{})}
	w.conns[c.addr] = c
	return c
}

func (c *memConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case d := <-c.in:
		return copy(b, d.bytes), d.from, nil
	case <-c.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (c *memConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	w := c.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent++
	dst := w.conns[to]
	if w.seen != nil {
		w.seen(to.Addr(), b)
	}
	if dst == nil || w.cut[to.Addr()] || w.cut[c.addr.Addr()] || w.from[[2]netip.Addr{c.addr.Addr(), to.Addr()}] ||
		w.lost != nil && w.lost() || w.mtu[to.Addr()] != 0 && len(b)+headers > w.mtu[to.Addr()] {
		return len(b), nil
	}
	if w.old[to.Addr()] && (len(b) != Size || b[5] > 2) {
		return len(b), nil
	}
	if w.old[c.addr.Addr()] {
		b = append([]byte(nil), b...)
		b[6], b[7] = 0, b[7]&1
	}
	d := datagram{append([]byte(nil), b...), c.addr}
	time.AfterFunc(w.delay/2, func() {
		select {
		case dst.in <- d:
		default:
		}
	})
	return len(b), nil
}

func (c *memConn) Close() error { c.once.Do(func() { close(c.closed) }); return nil }

func (w *wire) set(change func(w *wire)) { w.mu.Lock(); defer w.mu.Unlock(); change(w) }

func start(t *testing.T, cfg Config) *Prober {
	p := New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return p
}

// pass lets time go by on the bubble's clock.
func pass(d time.Duration) { <-time.After(d); synctest.Wait() }

func everybody(netip.Addr) bool { return true }

// Two probers over a wire with delay: measured, cut, suspect, mended, well.
func TestProber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: 20 * ms, cut: map[netip.Addr]bool{}}
		var changes atomic.Int32
		a := start(t, Config{Conn: w.listen("fd00::a"), Allowed: everybody, Changed: func() { changes.Add(1) }})
		start(t, Config{Conn: w.listen("fd00::b"), Allowed: everybody})
		b := netip.MustParseAddr("fd00::b")
		a.Set([]Target{{Name: "b", Region: "fra", Addr: b}, {Name: "nobody", Addr: netip.MustParseAddr("fd00::c")}})

		after := func(d time.Duration, want map[string]Result) {
			t.Helper()
			pass(d)
			got := a.Results()
			for name, r := range want {
				if got[name].RTT != r.RTT || got[name].Suspect != r.Suspect {
					t.Errorf("%s: %+v, want %+v", name, got[name], r)
				}
			}
		}
		after(500*ms, map[string]Result{"b": {RTT: 20 * ms}, "nobody": {}})
		if changes.Load() == 0 {
			t.Error("nobody was told of the first measurement")
		}
		after(7*time.Second, map[string]Result{"b": {RTT: 20 * ms}, "nobody": {Suspect: true}})
		w.set(func(w *wire) { w.delay = 240 * ms })
		after(5*time.Second, map[string]Result{"b": {RTT: 240 * ms}})
		w.set(func(w *wire) { w.cut[b] = true })
		after(1700*ms, map[string]Result{"b": {RTT: 240 * ms, Suspect: true}})
		w.set(func(w *wire) { delete(w.cut, b) })
		after(1500*ms, map[string]Result{"b": {RTT: 240 * ms}})
		a.Set(nil)
		after(time.Second, nil)
		if len(a.Results()) != 0 {
			t.Errorf("results of nobody: %v", a.Results())
		}
	})
}

// Sights say when a target was last asked and when it last answered.
func TestSights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: 20 * ms, cut: map[netip.Addr]bool{}}
		a := start(t, Config{Conn: w.listen("fd00::a")})
		start(t, Config{Conn: w.listen("fd00::b"), Allowed: everybody})
		b := netip.MustParseAddr("fd00::b")
		a.Set([]Target{{Name: "b", Addr: b}, {Name: "nobody", Addr: netip.MustParseAddr("fd00::c")}, {Name: "later", Addr: netip.MustParseAddr("fd00::d"), Wait: time.Hour}})
		pass(5 * time.Second)
		cut := time.Now()
		w.set(func(w *wire) { w.cut[b] = true })
		pass(time.Minute)
		got := a.Sights()
		if d := cut.Sub(got["b"].Answered); d < -20*ms || d > 400*ms {
			t.Errorf("b: answered %s before it was cut", d)
		}
		for _, name := range []string{"b", "nobody"} {
			if d := time.Since(got[name].Asked); d > 400*ms {
				t.Errorf("%s: asked %s ago", name, d)
			}
		}
		if !got["nobody"].Answered.IsZero() || !got["later"].Asked.IsZero() || len(got) != 3 {
			t.Errorf("%+v", got)
		}
	})
}

// Strangers get no answer, and what they say is not believed.
func TestProberRefusesStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: 2 * ms, cut: map[netip.Addr]bool{}}
		friend := netip.MustParseAddr("fd00::b")
		a := start(t, Config{Conn: w.listen("fd00::a"), Allowed: func(x netip.Addr) bool { return x == friend }})
		a.Set([]Target{{Name: "b", Addr: friend}})
		ask := func(from string) bool {
			c := w.listen(from)
			defer c.Close()
			c.WriteToUDPAddrPort(Packet{Nonce: 1}.Append(nil), netip.AddrPortFrom(netip.MustParseAddr("fd00::a"), DefaultPort))
			pass(100 * ms)
			for {
				select {
				case d := <-c.in:
					if p, err := Parse(d.bytes); err == nil && p.Kind == Reply {
						return true
					}
				default:
					return false
				}
			}
		}
		if !ask("fd00::b") {
			t.Error("a friend got no answer")
		}
		if ask("fd00::bad") {
			t.Error("a stranger got an answer")
		}
		// A forged reply from the right address with a nonce that was never sent.
		forger := w.listen("fd00::b")
		defer forger.Close()
		forger.WriteToUDPAddrPort(Packet{Kind: Reply, Nonce: 42}.Append(nil), netip.AddrPortFrom(netip.MustParseAddr("fd00::a"), DefaultPort))
		pass(100 * ms)
		if r := a.Results()["b"]; r.RTT != 0 {
			t.Errorf("a forged reply was believed: %+v", r)
		}
	})
}

// Of many targets the packets sent stay within the budget.
func TestProberKeepsItsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: 2 * ms, cut: map[netip.Addr]bool{}}
		p := start(t, Config{Conn: w.listen("fd00::a"), Budget: 50})
		var targets []Target
		for i := range 300 {
			targets = append(targets, Target{Name: string(rune('a'+i%26)) + string(rune('a'+i/26)), Region: "fra", Addr: netip.AddrFrom16([16]byte{0xfd, 15: byte(i), 14: byte(i>>8 + 1)})})
		}
		p.Set(targets)
		pass(10 * time.Second) // the first round goes to everybody
		w.set(func(w *wire) { w.sent = 0 })
		pass(20 * time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.sent < 500 || w.sent > 1150 {
			t.Errorf("%d packets in 20 s with a budget of 50 a second", w.sent)
		}
	})
}

// A prober that is silent still answers.
func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: 2 * ms, cut: map[netip.Addr]bool{}}
		a := start(t, Config{Conn: w.listen("fd00::a"), Silent: true, Allowed: everybody})
		b := start(t, Config{Conn: w.listen("fd00::b"), Allowed: everybody})
		a.Set([]Target{{Name: "b", Addr: netip.MustParseAddr("fd00::b")}})
		b.Set([]Target{{Name: "a", Addr: netip.MustParseAddr("fd00::a")}})
		pass(8 * time.Second)
		if r := a.Results()["b"]; r != (Result{}) {
			t.Errorf("the silent one knows %+v", r)
		}
		if r := b.Results()["a"]; r.RTT == 0 {
			t.Error("the silent one did not answer")
		}
	})
}

// Over real sockets, once.
func TestProberOverUDP(t *testing.T) {
	a, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	port := a.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	b, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), port)))
	if err != nil {
		a.Close()
		t.Skipf("no second loopback address here: %v", err)
	}
	measured := make(chan struct{}, 16)
	p := start(t, Config{Conn: a, Port: port, Changed: func() { measured <- struct{}{} }})
	start(t, Config{Conn: b, Port: port, Allowed: everybody})
	p.Set([]Target{{Name: "b", Addr: netip.MustParseAddr("127.0.0.2")}})
	deadline := time.After(5 * time.Second)
	for p.Results()["b"].RTT == 0 {
		select {
		case <-measured:
		case <-deadline:
			t.Fatal("not measured in 5 s")
		}
	}
}
