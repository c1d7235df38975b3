package ipam

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func mustPlan(t testing.TB, s string) Plan {
	t.Helper()
	p, err := NewPlan(netip.MustParsePrefix(s))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewPlan(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		ok     bool
	}{
		{"fd12:3456:789a::/48", true},
		{"fd00::/16", true},
		{"fd12:3400::/24", true},
		{"fd12::/15", false},
		{"fd12:3456:789a:1::/49", false},
		{"fd12:3456:789a:1::/48", false},
		{"fc00::/48", false},
		{"2001:db8::/48", false},
		{"10.0.0.0/8", false},
		{"::ffff:10.0.0.0/104", false},
	} {
		_, err := NewPlan(netip.MustParsePrefix(tt.prefix))
		if (err == nil) != tt.ok || (err != nil && !errors.Is(err, ErrPrefix)) {
			t.Errorf("NewPlan(%s) = %v, want ok %v", tt.prefix, err, tt.ok)
		}
	}
	if _, err := NewPlan(netip.Prefix{}); !errors.Is(err, ErrPrefix) {
		t.Errorf("NewPlan(zero) = %v, want ErrPrefix", err)
	}
}

func TestPlanByHand(t *testing.T) {
	p := mustPlan(t, "fd12:3456:789a::/48")
	h := Host{Region: 3, Number: 5}
	for _, tt := range []struct{ got, want string }{
		{p.Addr(Parts{1, h, 1, 2}).String(), "fd12:3456:789a:1:300:5:1:2"},
		{p.Network(1).String(), "fd12:3456:789a:1::/64"},
		{p.Home(1, h).String(), "fd12:3456:789a:1:300:5::/96"},
		{p.Endpoint(1, h, 1).String(), "fd12:3456:789a:1:300:5:1:0/112"},
		{p.HostAddr(1, h).String(), "fd12:3456:789a:1:300:5:0:1"},
		{p.HostAddr(0, h).String(), "fd12:3456:789a:0:300:5:0:1"},
		{p.Resolver(0).String(), "fd12:3456:789a::3"},
		{p.Resolver(7).String(), "fd12:3456:789a:7::3"},
		{MainAddr(p.Endpoint(1, h, 1)).String(), "fd12:3456:789a:1:300:5:1:2"},
		{ProbeAddr(p.Endpoint(1, h, 1)).String(), "fd12:3456:789a:1:300:5:1:1"},
		{EndpointOf(p.Addr(Parts{1, h, 1, 2})).String(), "fd12:3456:789a:1:300:5:1:0/112"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %s, want %s", tt.got, tt.want)
		}
	}
	if got, want := mustPlan(t, "fd12::/16").Network(0xabcd_0000_0001).String(), "fd12:abcd:0:1::/64"; got != want {
		t.Errorf("network of a /16 mesh: got %s, want %s", got, want)
	}
}

func TestAddrRefusesNumbersOutsideTheirField(t *testing.T) {
	p := mustPlan(t, "fd12:3456:789a::/48")
	for _, x := range []Parts{{Network: 1 << 16}, {Host: Host{Number: 1 << 24}}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Addr(%+v) did not panic", x)
				}
			}()
			p.Addr(x)
		}()
	}
}

func drawPlan(t *rapid.T) Plan {
	bits := rapid.IntRange(16, 48).Draw(t, "bits")
	var a [16]byte
	copy(a[:], rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "prefix"))
	a[0] = 0xfd
	p, err := NewPlan(netip.PrefixFrom(netip.AddrFrom16(a), bits).Masked())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func drawParts(t *rapid.T, p Plan) Parts {
	return Parts{
		Network: rapid.Uint64Range(0, p.MaxNetwork()).Draw(t, "network"),
		Host: Host{
			Region: rapid.Uint8().Draw(t, "region"),
			Number: rapid.Uint32Range(0, MaxHost).Draw(t, "host"),
		},
		Slot: rapid.Uint16().Draw(t, "slot"),
		Sub:  rapid.Uint16().Draw(t, "sub"),
	}
}

// Parts is the inverse of Addr, for every plan, and so no two sets of numbers
// share an address; each wider prefix contains the narrower one.
func TestAddrAndPartsAreInverse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPlan(t)
		x := drawParts(t, p)
		addr := p.Addr(x)
		if got, ok := p.Parts(addr); !ok || got != x {
			t.Fatalf("Parts(%s) = %+v %v, want %+v", addr, got, ok, x)
		}
		if !p.Prefix().Contains(addr) || !p.Network(x.Network).Contains(addr) ||
			!p.Home(x.Network, x.Host).Contains(addr) || !p.Endpoint(x.Network, x.Host, x.Slot).Contains(addr) {
			t.Fatalf("%s lies outside a prefix of its own", addr)
		}
		if EndpointOf(addr) != p.Endpoint(x.Network, x.Host, x.Slot) {
			t.Fatalf("EndpointOf(%s) = %s", addr, EndpointOf(addr))
		}
		y := drawParts(t, p)
		if x != y && p.Addr(y) == addr {
			t.Fatalf("%+v and %+v share %s", x, y, addr)
		}
	})
}

func TestPlanText(t *testing.T) {
	p := mustPlan(t, "fd12:3456:789a::/48")
	b, err := json.Marshal(p)
	if err != nil || string(b) != `"fd12:3456:789a::/48"` {
		t.Fatalf("marshal: %s %v", b, err)
	}
	var q Plan
	if err := json.Unmarshal(b, &q); err != nil || q != p {
		t.Fatalf("unmarshal: %v %v", q, err)
	}
	if err := json.Unmarshal([]byte(`"10.0.0.0/8"`), &q); !errors.Is(err, ErrPrefix) {
		t.Fatalf("unmarshal of an IPv4 prefix: %v", err)
	}
}

func TestRandomPrefix(t *testing.T) {
	got, err := RandomPrefix(bytes.NewReader([]byte{1, 2, 3, 4, 5}))
	if err != nil || got.String() != "fd01:203:405::/48" {
		t.Fatalf("RandomPrefix = %s, %v", got, err)
	}
	if _, err := RandomPrefix(bytes.NewReader(nil)); err == nil {
		t.Fatal("RandomPrefix of an empty source did not fail")
	}
}

func TestContinentOf(t *testing.T) {
	for _, tt := range []struct {
		name     string
		lat, lon float64
		want     Continent
	}{
		{"Frankfurt", 50.1, 8.7, Europe},
		{"Johannesburg", -26.2, 28, Europe},
		{"Dubai", 25.2, 55.3, Europe},
		{"Tokyo", 35.7, 139.7, AsiaPacific},
		{"Mumbai", 19.1, 72.9, AsiaPacific},
		{"Sydney", -33.9, 151.2, AsiaPacific},
		{"Auckland", -36.8, 174.8, AsiaPacific},
		{"Chicago", 41.9, -87.6, NorthAmerica},
		{"Sao Paulo", -23.5, -46.6, SouthAmerica},
	} {
		if got := ContinentOf(tt.lat, tt.lon); got != tt.want {
			t.Errorf("ContinentOf(%s) = %d, want %d", tt.name, got, tt.want)
		}
	}
}

// Every number but 0 is given exactly once, a continent's own first.
func TestNextRegion(t *testing.T) {
	used := map[uint8]bool{}
	for i := range 255 {
		n, err := NextRegion(Europe, func(n uint8) bool { return used[n] })
		if err != nil || n == 0 || used[n] {
			t.Fatalf("draw %d: %d, %v (used %v)", i, n, err, used[n])
		}
		if i < regionsPerContinent && Continent(n>>6) != Europe {
			t.Fatalf("draw %d: %d is not of the continent asked for", i, n)
		}
		used[n] = true
	}
	if _, err := NextRegion(Europe, func(n uint8) bool { return used[n] }); !errors.Is(err, ErrFull) {
		t.Fatalf("draw 256: %v, want ErrFull", err)
	}
}

// FuzzParts: any 16 bytes are either of the mesh, and then survive the round
// trip, or are not.
func FuzzParts(f *testing.F) {
	f.Add([]byte("\xfd\x12\x34\x56\x78\x9a\x00\x01\x03\x00\x00\x05\x00\x01\x00\x02"), 48)
	f.Fuzz(func(t *testing.T, b []byte, bits int) {
		addr, ok := netip.AddrFromSlice(b)
		if !ok || bits < 16 || bits > 48 {
			return
		}
		p := mustPlan(t, netip.PrefixFrom(netip.MustParseAddr("fd12:3456:789a::"), bits).Masked().String())
		x, ok := p.Parts(addr)
		if ok != p.Prefix().Contains(addr) {
			t.Fatalf("Parts(%s) ok = %v", addr, ok)
		}
		if ok && p.Addr(x) != addr {
			t.Fatalf("Addr(Parts(%s)) = %s", addr, p.Addr(x))
		}
	})
}
