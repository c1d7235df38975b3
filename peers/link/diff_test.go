package link

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func mesh() netip.Prefix { return netip.MustParsePrefix("fd12:3456:789a::/48") }

// pfx completes a prefix of the test's mesh.
func pfx(s string) netip.Prefix { return netip.MustParsePrefix("fd12:3456:789a:" + s) }

func TestDiff(t *testing.T) {
	t.Parallel()
	right := State{
		MTU: 1420, Up: true, Unreachable: []netip.Prefix{mesh()},
		Addresses: []Address{{pfx("1:100:5:0:1/128"), false}, {pfx("1::3/128"), true}},
		Routes:    []Route{{Prefix: pfx("1:200:6::/96"), MTU: 0}, {Prefix: pfx("1:200:7::/96"), MTU: 1380}},
	}
	want := Config{
		Link: "weft0", AddressesOn: "lo", MTU: 1420, Unreachable: mesh(), Up: true,
		Addresses: right.Addresses, Routes: right.Routes,
	}
	tests := []struct {
		name   string
		change func(have *State, want *Config)
		out    string
	}{
		{"all right", func(*State, *Config) {}, ""},
		{"nothing is there", func(h *State, _ *Config) { *h = State{LinkLocal: true, MTU: 1500} }, `
			add unreachable fd12:3456:789a::/48
			set no link-local address on weft0
			set mtu 1420 on weft0
			set weft0 up
			set address fd12:3456:789a:1::3/128 deprecated on lo
			set address fd12:3456:789a:1:100:5:0:1/128 on lo
			add route fd12:3456:789a:1:200:6::/96 dev weft0
			add route fd12:3456:789a:1:200:7::/96 dev weft0 mtu 1380`},
		{"no link yet", func(h *State, _ *Config) { *h = State{Missing: true} }, `
			add unreachable fd12:3456:789a::/48
			set address fd12:3456:789a:1::3/128 deprecated on lo
			set address fd12:3456:789a:1:100:5:0:1/128 on lo`},
		{"another address: added before the old one goes", func(_ *State, w *Config) {
			w.Addresses = []Address{{pfx("1:100:5:0:1/128"), false}, {pfx("2::3/128"), true}}
		}, `
			set address fd12:3456:789a:2::3/128 deprecated on lo
			drop address fd12:3456:789a:1::3/128 on lo`},
		{"no longer deprecated", func(_ *State, w *Config) {
			w.Addresses = []Address{{pfx("1:100:5:0:1/128"), true}, {pfx("1::3/128"), false}}
		}, `
			set address fd12:3456:789a:1::3/128 on lo
			set address fd12:3456:789a:1:100:5:0:1/128 deprecated on lo`},
		{"another alias", func(h *State, w *Config) { h.Alias, w.Alias = "other", "weft device weft0" }, `
			set alias "weft device weft0" on weft0`},
		{"the alias is left alone", func(h *State, _ *Config) { h.Alias = "other" }, ""},
		{"a route's MTU", func(_ *State, w *Config) {
			w.Routes = []Route{{Prefix: pfx("1:200:6::/96"), MTU: 1300}, {Prefix: pfx("1:200:7::/96"), MTU: 0}}
		}, `
			change route fd12:3456:789a:1:200:6::/96 dev weft0 mtu 1300
			change route fd12:3456:789a:1:200:7::/96 dev weft0`},
		{"a route's source", func(_ *State, w *Config) {
			w.Routes = []Route{{Prefix: pfx("1:200:6::/96"), Source: pfx("1:200:5:0:1/128").Addr()}, {Prefix: pfx("1:200:7::/96"), MTU: 1380}}
		}, `
			change route fd12:3456:789a:1:200:6::/96 dev weft0 src fd12:3456:789a:1:200:5:0:1`},
		{"a stray link-local address", func(h *State, _ *Config) { h.Strays = []netip.Prefix{netip.MustParsePrefix("fe80::5/64")} }, `
			drop address fe80::5/64 on weft0`},
		{"the MTU is left alone", func(_ *State, w *Config) { w.MTU = 0 }, ""},
		{"the link is not taken down", func(_ *State, w *Config) { w.Up = false }, ""},
		{"another mesh", func(h *State, _ *Config) { h.Unreachable = []netip.Prefix{netip.MustParsePrefix("fd99::/48")} }, `
			add unreachable fd12:3456:789a::/48
			drop unreachable fd99::/48`},
		{"all routes go", func(_ *State, w *Config) { w.Routes = nil }, `
			drop route fd12:3456:789a:1:200:6::/96 dev weft0
			drop route fd12:3456:789a:1:200:7::/96 dev weft0`},
	}
	for _, tt := range tests {
		h, w := right, want
		tt.change(&h, &w)
		var got strings.Builder
		for _, c := range Diff(h, w) {
			fmt.Fprintf(&got, "\n%s", c)
		}
		if diff := cmp.Diff(strings.ReplaceAll(tt.out, "\t", ""), got.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// model is what a State is after changes: what the kernel is held to be.
func model(s State, changes []Change) State {
	drop := func(list []netip.Prefix, p netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(list), func(x netip.Prefix) bool { return x == p })
	}
	for _, c := range changes {
		address := func(a Address) bool { return a.Prefix == c.Prefix }
		route := func(r Route) bool { return r.Prefix == c.Prefix }
		switch c.Op {
		case AddUnreachable:
			s.Unreachable = append(slices.Clone(s.Unreachable), c.Prefix)
		case DropUnreachable:
			s.Unreachable = drop(s.Unreachable, c.Prefix)
		case NoLinkLocal:
			s.LinkLocal = false
		case SetAlias:
			s.Alias = c.Alias
		case SetMTU:
			s.MTU = c.MTU
		case SetUp:
			s.Up = true
		case SetAddress:
			s.Addresses = append(slices.DeleteFunc(slices.Clone(s.Addresses), address), Address{c.Prefix, c.Deprecated})
		case DropAddress:
			s.Addresses = slices.DeleteFunc(slices.Clone(s.Addresses), address)
			s.Strays = drop(s.Strays, c.Prefix)
		case AddRoute, ChangeRoute:
			if there := slices.ContainsFunc(s.Routes, route); there != (c.Op == ChangeRoute) {
				panic(c.String() + ": the kernel would refuse it")
			}
			s.Routes = append(slices.DeleteFunc(slices.Clone(s.Routes), route), Route{c.Prefix, c.MTU, c.Source})
		case DropRoute:
			s.Routes = slices.DeleteFunc(slices.Clone(s.Routes), route)
		}
	}
	return s
}

func states() *rapid.Generator[State] {
	return rapid.Custom(func(t *rapid.T) State {
		s := State{
			Missing: rapid.IntRange(0, 5).Draw(t, "missing") == 0,
			MTU:     rapid.IntRange(1280, 1283).Draw(t, "mtu"), Up: rapid.Bool().Draw(t, "up"), LinkLocal: rapid.Bool().Draw(t, "ll"),
		}
		for _, n := range rapid.SliceOfDistinct(rapid.IntRange(0, 5), rapid.ID).Draw(t, "addresses") {
			s.Addresses = append(s.Addresses, Address{pfx(fmt.Sprintf("%d::1/128", n)), rapid.Bool().Draw(t, "deprecated")})
		}
		for _, n := range rapid.SliceOfDistinct(rapid.IntRange(0, 5), rapid.ID).Draw(t, "routes") {
			s.Routes = append(s.Routes, Route{pfx(fmt.Sprintf("%d::/96", n)), rapid.SampledFrom([]int{0, 1280, 1300}).Draw(t, "route mtu"), rapid.SampledFrom([]netip.Addr{{}, pfx("1:200:5:0:1/128").Addr()}).Draw(t, "source")})
		}
		for _, n := range rapid.SliceOfDistinct(rapid.IntRange(0, 2), rapid.ID).Draw(t, "unreachable") {
			s.Unreachable = append(s.Unreachable, []netip.Prefix{mesh(), netip.MustParsePrefix("fd99::/48"), netip.MustParsePrefix("fd98::/48")}[n])
		}
		return s
	})
}

// Diff leads there, in one step, and takes nothing away before what replaces it.
func TestDiffLeadsThere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		have, other := states().Draw(t, "have"), states().Draw(t, "want")
		want := Config{
			Link: "weft0", AddressesOn: "lo", MTU: other.MTU, Up: other.Up, Unreachable: mesh(),
			Addresses: other.Addresses, Routes: other.Routes,
		}
		if rapid.Bool().Draw(t, "alias") {
			want.Alias = "mine"
		}
		if rapid.Bool().Draw(t, "keep mtu") {
			want.MTU = 0
		}
		changes := Diff(have, want)
		for i, c := range changes[:max(len(changes)-1, 0)] {
			if c.Op > changes[i+1].Op {
				t.Fatalf("%q before %q", c, changes[i+1])
			}
		}
		after := model(have, changes)
		if left := Diff(after, want); len(left) > 0 {
			t.Fatalf("left to do: %v", left)
		}
		if !have.Missing && !slices.Equal(sortRoutes(after.Routes), sortRoutes(want.Routes)) {
			t.Fatalf("routes %v, want %v", after.Routes, want.Routes)
		}
		if got := model(after, diffRemove(after, want)); len(got.Addresses)+len(got.Unreachable) > 0 || !have.Missing && len(got.Routes) > 0 {
			t.Fatalf("removed, and left: %+v", got)
		}
	})
}

func sortRoutes(in []Route) []Route {
	out := slices.Clone(in)
	slices.SortFunc(out, func(a, b Route) int { return strings.Compare(a.Prefix.String(), b.Prefix.String()) })
	return out
}

func TestSetRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		c    Config
		want string
	}{
		{"no mesh prefix", Config{Link: "x"}, "want an IPv6 prefix without host bits"},
		{"host bits", Config{Link: "x", Unreachable: netip.MustParsePrefix("fd12::1/48")}, "without host bits"},
		{"address outside", Config{Link: "x", Unreachable: mesh(), Addresses: []Address{{netip.MustParsePrefix("2001:db8::1/128"), false}}}, "outside the mesh's"},
		{"route with host bits", Config{Link: "x", Unreachable: mesh(), Routes: []Route{{Prefix: pfx("1::1/64"), MTU: 0}}}, "without host bits"},
		{"long alias", Config{Link: "x", Unreachable: mesh(), Alias: strings.Repeat("x", 256)}, "longer than 255 bytes"},
		{"small MTU", Config{Link: "x", Unreachable: mesh(), MTU: 1279}, "at least 1280"},
		{"small MTU of a route", Config{Link: "x", Unreachable: mesh(), Routes: []Route{{Prefix: pfx("1::/64"), MTU: 1000}}}, "at least 1280"},
		{"nowhere for addresses", Config{Unreachable: mesh(), Addresses: []Address{{pfx("1::1/128"), false}}}, "no link to hold them"},
		{"nowhere for routes", Config{Unreachable: mesh(), Routes: []Route{{Prefix: pfx("1::/64"), MTU: 0}}}, "no link"},
	}
	for _, tt := range tests {
		if _, err := Set(nil, tt.c); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func FuzzDiff(f *testing.F) {
	f.Add([]byte{1, 2, 3}, []byte{2, 3, 4})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		read := func(in []byte) (s State) {
			seen := map[byte]bool{}
			for _, x := range in {
				if seen[x] {
					continue
				}
				seen[x] = true
				s.Routes = append(s.Routes, Route{Prefix: pfx(fmt.Sprintf("%x::/96", x>>2)), MTU: int(x&1) * 1280})
				s.Addresses = append(s.Addresses, Address{pfx(fmt.Sprintf("%x::1/128", x>>2)), x&2 != 0})
			}
			slices.SortFunc(s.Routes, func(a, b Route) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
			s.Routes = slices.CompactFunc(s.Routes, func(a, b Route) bool { return a.Prefix == b.Prefix })
			return s
		}
		have, other := read(a), read(b)
		want := Config{Link: "w", Unreachable: mesh(), Routes: other.Routes, Addresses: other.Addresses}
		if left := Diff(model(have, Diff(have, want)), want); len(left) > 0 {
			t.Fatalf("left to do: %v", left)
		}
	})
}
