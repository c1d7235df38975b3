package probe

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func TestHearingIsWrittenAndRead(t *testing.T) {
	for _, tt := range []struct{ in, want Hearing }{
		{Hearing{}, Hearing{Age: Never}},
		{Hearing{Said: true, Age: Never}, Hearing{Said: true, Age: Never}},
		{Hearing{Said: true, Age: 0}, Hearing{Said: true}},
		{Hearing{Said: true, Age: 1234 * ms, Decrypts: true}, Hearing{Said: true, Age: 1200 * ms, Decrypts: true}},
		{Hearing{Said: true, Age: time.Hour}, Hearing{Said: true, Age: (ageNever - 1) * ageUnit}},
	} {
		if got := HearingOf(FlagHoldsData | tt.in.Flags()); got != tt.want {
			t.Errorf("%+v: %+v, want %+v", tt.in, got, tt.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		h := Hearing{Said: true, Age: time.Duration(rapid.IntRange(-1, 1<<40).Draw(t, "age")), Decrypts: rapid.Bool().Draw(t, "decrypts")}
		if got := HearingOf(h.Flags()); HearingOf(got.Flags()) != got || (got.Age == Never) != (h.Age == Never) {
			t.Fatalf("%+v is read as %+v", h, got)
		}
	})
}

// Fly.io 2026-04: tunnels went one-way although handshakes succeeded. What is known of
// the two directions, and what follows.
func TestWay(t *testing.T) {
	const s = time.Second
	hears := func(age time.Duration) Hearing { return Hearing{Said: true, Age: age} }
	for _, tt := range []struct {
		name string
		x    Exchange
		want Way
	}{
		{"all well", Exchange{false, 100 * ms, 100 * ms, hears(200 * ms)}, WayBoth},
		{"well, with an older agent", Exchange{false, 100 * ms, Never, Hearing{Age: Never}}, WayBoth},
		{"the first packets are still under way", Exchange{false, Never, Never, Hearing{Age: Never}}, WayUnknown},
		{"just fallen silent", Exchange{false, 2 * s, 2 * s, hears(0)}, WayUnknown},
		{"gone", Exchange{true, 10 * s, 10 * s, hears(100 * ms)}, WayUnknown},
		{"never was there", Exchange{true, Never, Never, Hearing{Age: Never}}, WayUnknown},
		{"they come, and hear nothing for 3 s", Exchange{true, 100 * ms, 100 * ms, hears(3 * s)}, WayLostOut},
		{"they come, and never heard anything", Exchange{true, 100 * ms, 100 * ms, hears(Never)}, WayLostOut},
		{"they come, from an older agent", Exchange{true, 100 * ms, Never, Hearing{Age: Never}}, WayLostOut},
		{"they come, hear us, and do not answer", Exchange{true, 100 * ms, 100 * ms, hears(100 * ms)}, WayUnknown},
		{"nothing comes, a third host says they hear us", Exchange{true, 10 * s, 300 * ms, hears(100 * ms)}, WayLostIn},
		{"nothing ever came, a third host says they hear us", Exchange{true, Never, 300 * ms, hears(100 * ms)}, WayLostIn},
		{"nothing comes, a third host says they do not hear us", Exchange{true, 10 * s, 300 * ms, hears(5 * s)}, WayUnknown},
		{"nothing comes, and what a third host said is old", Exchange{true, 10 * s, 5 * s, hears(100 * ms)}, WayUnknown},
	} {
		if got := tt.x.Way(1500 * ms); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// Three hosts, and one direction between two of them is cut: both ends say so within
// three seconds, with the direction right, also the end that hears nothing, which the
// third host tells. Healed, nobody says so any more.
func TestOneWayIsSeenAtBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := map[string]netip.Addr{"a": netip.MustParseAddr("fd00::a"), "b": netip.MustParseAddr("fd00::b"), "c": netip.MustParseAddr("fd00::c")}
		for _, tt := range []struct {
			name  string
			cut   [2]string // from, to
			old   string
			third bool
			a, b  Way // of b at a, of a at b
		}{
			{"from a to b", [2]string{"a", "b"}, "", true, WayLostOut, WayLostIn},
			{"from b to a", [2]string{"b", "a"}, "", true, WayLostIn, WayLostOut},
			{"no third host", [2]string{"b", "a"}, "", false, WayUnknown, WayLostOut},
			{"an older agent does not hear", [2]string{"a", "b"}, "b", true, WayLostOut, WayUnknown},
			{"an older agent is not heard", [2]string{"b", "a"}, "b", true, WayUnknown, WayLostOut},
			{"the third host's agent is older", [2]string{"b", "a"}, "c", true, WayUnknown, WayLostOut},
			{"nothing is cut", [2]string{"c", "c"}, "", true, WayBoth, WayBoth},
		} {
			w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: 20 * ms, cut: map[netip.Addr]bool{}, from: map[[2]netip.Addr]bool{}, old: map[netip.Addr]bool{}}
			if tt.old != "" {
				w.old[names[tt.old]] = true
			}
			probers := map[string]*Prober{}
			for name, addr := range names {
				probers[name] = start(t, Config{Conn: w.listen(addr.String()), Allowed: everybody})
			}
			for name, p := range probers {
				var targets []Target
				for other, addr := range names {
					if other != name && (tt.third || (name != "c" && other != "c")) {
						targets = append(targets, Target{Name: other, Addr: addr})
					}
				}
				p.Set(targets)
			}
			check := func(when string, a, b Way) {
				t.Helper()
				if got := probers["a"].Results()["b"].Way; got != a {
					t.Errorf("%s, %s: a says %d, want %d", tt.name, when, got, a)
				}
				if got := probers["b"].Results()["a"].Way; got != b && tt.old != "b" { // what is simulated at b is no older agent
					t.Errorf("%s, %s: b says %d, want %d", tt.name, when, got, b)
				}
				for _, n := range []string{"a", "b"} {
					if r := probers[n].Results()["c"]; tt.third && r.Way != WayBoth {
						t.Errorf("%s, %s: %s says %d of c", tt.name, when, n, r.Way)
					}
				}
			}
			pass(8 * time.Second)
			check("at first", WayBoth, WayBoth)
			w.set(func(w *wire) { w.from[[2]netip.Addr{names[tt.cut[0]], names[tt.cut[1]]}] = true })
			pass(3 * time.Second)
			check("3 s after the cut", tt.a, tt.b)
			pass(30 * time.Second)
			check("much later", tt.a, tt.b)
			w.set(func(w *wire) { clear(w.from) })
			pass(3 * time.Second)
			check("3 s after it is healed", WayBoth, WayBoth)
		}
	})
}

// A host that comes back is not taken for one whose tunnel is one-way, only because it
// has not been asked yet: not where all are asked often, and not where few are.
func TestComingBackIsNotOneWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, budget := range []int{200, 24} {
			w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: 40 * ms, cut: map[netip.Addr]bool{}}
			a, b := netip.MustParseAddr("fd00::a"), netip.MustParseAddr("fd00::b")
			listen := Config{Conn: w.listen("fd00::a"), Allowed: everybody, Budget: budget}
			told := 0
			p := watched(t, listen, func(p *Prober) {
				for _, r := range p.Results() {
					if r.Way.OneWay() {
						told++
					}
				}
			})
			targets := []Target{{Name: "b", Addr: b}}
			for i := range 20 {
				addr := netip.AddrFrom16([16]byte{0xfd, 15: byte(i), 14: 1})
				targets = append(targets, Target{Name: string(rune('c' + i)), Addr: addr})
				if i < 8 { // they take all seats in the fast lane
					start(t, Config{Conn: w.listen(addr.String()), Allowed: everybody})
				}
			}
			p.Set(targets)
			pass(40 * time.Second)
			if !p.Results()["b"].Suspect {
				t.Fatal("b is not there and not suspect")
			}
			back := start(t, Config{Conn: w.listen("fd00::b"), Allowed: everybody})
			back.Set([]Target{{Name: "a", Addr: a}})
			pass(40 * time.Second)
			if r := p.Results()["b"]; r.Way != WayBoth || told > 0 {
				t.Errorf("budget %d: told %d times of a one-way tunnel; now %+v", budget, told, r)
			}
		}
	})
}

// Only a host that is probed is believed, and only of others that are.
func TestStrangersTellNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{conns: map[netip.AddrPort]*memConn{}, delay: 2 * ms, cut: map[netip.Addr]bool{}}
		b := netip.MustParseAddr("fd00::b")
		a := start(t, Config{Conn: w.listen("fd00::a"), Allowed: everybody})
		a.Set([]Target{{Name: "b", Addr: b}})
		pass(7 * time.Second)
		bad := w.listen("fd00::bad")
		defer bad.Close()
		to := netip.AddrPortFrom(netip.MustParseAddr("fd00::a"), DefaultPort)
		fresh := Hearing{Said: true}.Flags()
		for _, p := range []Packet{about(Told, b, fresh), about(Tell, b, fresh), about(Told, netip.MustParseAddr("fd00::bad"), fresh)} {
			bad.WriteToUDPAddrPort(p.Append(nil), to)
		}
		sent := 0
		w.set(func(w *wire) {
			w.seen = func(_ netip.Addr, b []byte) {
				if p, err := Parse(b); err == nil && p.Kind >= Tell {
					sent++
				}
			}
		})
		pass(100 * ms)
		if r := a.Results()["b"]; r.Way != WayUnknown || !r.Suspect {
			t.Errorf("a stranger was believed: %+v", r)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if sent > 0 {
			t.Errorf("%d packets were passed on for a stranger", sent)
		}
	})
}
