package dns

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const ms = time.Millisecond

// set makes candidates "a", "b", ... at the given distances.
func set(distances ...time.Duration) []candidate {
	var cs []candidate
	for i, d := range distances {
		cs = append(cs, candidate{machine: &machine{instance: &instance{id: string(rune('a' + i))}}, distance: d})
	}
	return cs
}

func ids(cs []candidate) string {
	var s string
	for _, c := range cs {
		s += c.id
	}
	return s
}

func TestNearSet(t *testing.T) {
	for _, tt := range []struct {
		name      string
		distances []time.Duration
		want      string
	}{
		{"one far away", []time.Duration{240 * ms}, "a"},
		{"within 5 ms of a near one", []time.Duration{0, 5 * ms, 5*ms + 1}, "ab"},
		{"half again of a far one", []time.Duration{100 * ms, 150 * ms, 150*ms + 1}, "ab"},
		{"5 ms is more than half of 8", []time.Duration{8 * ms, 13 * ms, 14 * ms}, "ab"},
		{"half of 12 is more than 5 ms", []time.Duration{12 * ms, 18 * ms, 19 * ms}, "ab"},
		{"unknown ones are left when others are known", []time.Duration{240 * ms, unknownDistance}, "a"},
		{"all unknown", []time.Duration{unknownDistance, unknownDistance}, "ab"},
		{"none", nil, ""},
	} {
		cs := set(tt.distances...)
		nearestFirst(cs, rand.New(rand.NewPCG(1, 1)))
		got := []byte(ids(nearSet(cs)))
		slices.Sort(got)
		if string(got) != tt.want {
			t.Errorf("%s: near set %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Equals take turns in front, and so in what a cut leaves; what is not equal never does.
func TestEqualsAreShuffled(t *testing.T) {
	for _, tt := range []struct {
		distances []time.Duration
		first     string // who can come first
	}{
		{[]time.Duration{8 * ms, 8 * ms, 8*ms + ms/2, 9 * ms}, "abc"},
		{[]time.Duration{0, ms / 2, ms / 2}, "a"}, // the own host has no equals elsewhere
		{[]time.Duration{0, 0, ms / 10}, "ab"},
	} {
		seen := map[string]bool{}
		rnd := rand.New(rand.NewPCG(3, 4))
		for range 200 {
			cs := set(tt.distances...)
			nearestFirst(cs, rnd)
			seen[cs[0].id] = true
		}
		var got string
		for _, c := range set(tt.distances...) {
			if seen[c.id] {
				got += c.id
			}
		}
		if got != tt.first {
			t.Errorf("distances %v: first were %s, want %s", tt.distances, got, tt.first)
		}
	}
}

func TestEstimate(t *testing.T) {
	fra, nrt, ams := &Place{50.1, 8.7}, &Place{35.8, 140.4}, &Place{52.4, 4.9}
	for _, tt := range []struct {
		name     string
		from, to string
		a, b     *Place
		low      time.Duration
		high     time.Duration
	}{
		{"same region", "fra", "fra", nil, nil, ms, ms},
		{"fra to ams, 365 km", "fra", "ams", fra, ams, 8 * ms, 9 * ms},
		{"fra to nrt, 9,300 km", "fra", "nrt", fra, nrt, 180 * ms, 195 * ms},
		{"half round the world", "a", "b", &Place{0, 0}, &Place{0, 180}, 400 * ms, 403 * ms},
		{"over the date line", "a", "b", &Place{0, 179.5}, &Place{0, -179.5}, 3 * ms, 4 * ms},
		{"no place", "fra", "xxx", fra, nil, unknownDistance, unknownDistance},
	} {
		if got := estimate(tt.from, tt.to, tt.a, tt.b); got < tt.low || got > tt.high {
			t.Errorf("%s: %s, want %s to %s", tt.name, got, tt.low, tt.high)
		}
	}
}

// Unmeasured hosts have their estimate; those of which nothing is known come last.
func TestUnmeasuredHosts(t *testing.T) {
	s := testServer(fixture(), Facts{"nrt-1": {RTT: 2 * ms}})
	row{ask: "global.web.internal. AAAA", from: d1, want: `
		global.web.internal. 5 IN AAAA ` + w1 + `
		global.web.internal. 5 IN AAAA ` + w3 + `
		global.web.internal. 5 IN AAAA ` + w2}.check(t, s)

	lost := with(func(d *Data) { d.Orgs[0].Machines[0].Host = "gone" })
	row{ask: "global.web.internal. AAAA", from: d1, want: `
		global.web.internal. 5 IN AAAA ` + w2 + `
		global.web.internal. 5 IN AAAA ` + w3 + `
		global.web.internal. 5 IN AAAA ` + w1}.check(t, testServer(lost, fixtureFacts()))
}

// What a distance rests on: a measurement before an estimate before the map.
func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		fact     Fact
		estimate time.Duration // by geography
		want     time.Duration
		basis    Basis
	}{
		{Fact{RTT: 3 * ms, Estimate: 50 * ms}, 90 * ms, 3 * ms, Measured},
		{Fact{Estimate: 50 * ms}, 90 * ms, 50 * ms, Coordinates},
		{Fact{}, 90 * ms, 90 * ms, Geography},
		{Fact{}, unknownDistance, unknownDistance, Unknown},
		{Fact{Estimate: 50 * ms}, unknownDistance, 50 * ms, Coordinates},
		{Fact{RTT: -1, Estimate: -1}, unknownDistance, unknownDistance, Unknown},
		{Fact{RTT: math.MaxInt64}, ms, unknownDistance, Measured},
		{Fact{Estimate: math.MaxInt64}, ms, unknownDistance, Coordinates},
	} {
		if got, basis := tt.fact.distance(tt.estimate); got != tt.want || basis != tt.basis {
			t.Errorf("%+v, geography %s: %s by %s, want %s by %s", tt.fact, tt.estimate, got, basis, tt.want, tt.basis)
		}
	}
}

// Coordinates decide where nothing is measured, whatever the map says: Tokyo is
// nearer than Amsterdam here.
func TestEstimatesAreBeforeGeography(t *testing.T) {
	s := testServer(fixture(), Facts{"ams-1": {Estimate: 90 * ms}, "nrt-1": {Estimate: 12 * ms}})
	row{ask: "global.web.internal. AAAA", from: d1, want: `
		global.web.internal. 5 IN AAAA ` + w1 + `
		global.web.internal. 5 IN AAAA ` + w3 + `
		global.web.internal. 5 IN AAAA ` + w2}.check(t, s)
	without := with(func(d *Data) { d.Orgs[0].Machines[0].Started = false })
	row{ask: "web.internal. AAAA", from: d1, want: "web.internal. 5 IN AAAA " + w3}.
		check(t, testServer(without, Facts{"ams-1": {RTT: 90 * ms}, "nrt-1": {Estimate: 12 * ms}}))
}

func TestBadPlacesAndRoundTrips(t *testing.T) {
	d := with(func(d *Data) { d.Regions[1].Place = &Place{math.NaN(), 400} })
	row{ask: "web.internal. AAAA", from: d1, want: "web.internal. 5 IN AAAA " + w1}.
		check(t, testServer(d, Facts{"ams-1": {RTT: -5}, "nrt-1": {RTT: math.MaxInt64}}))
}

func TestSettle(t *testing.T) {
	was := Facts{
		"a": {RTT: 8 * ms}, "b": {RTT: 240 * ms}, "c": {RTT: 100 * ms}, "gone": {RTT: ms}, "e": {RTT: 5 * ms},
		"f": {Estimate: 40 * ms}, "g": {Estimate: 40 * ms}, "h": {Estimate: 40 * ms},
	}
	now := Facts{
		"a": {RTT: 9 * ms},                  // jitter
		"b": {RTT: 265 * ms, Suspect: true}, // jitter, but suspect at once
		"c": {RTT: 85 * ms},                 // nearer by more than an eighth
		"d": {RTT: 3 * ms},                  // new
		"e": {},                             // not measured any more
		"f": {Estimate: 44 * ms},            // the coordinate moves a little
		"g": {Estimate: 46 * ms},            // and farther
		"h": {RTT: 41 * ms},                 // measured at last: no estimate is kept
	}
	want := Facts{
		"a": {RTT: 8 * ms}, "b": {RTT: 240 * ms, Suspect: true}, "c": {RTT: 85 * ms}, "d": {RTT: 3 * ms}, "e": {},
		"f": {Estimate: 40 * ms}, "g": {Estimate: 46 * ms}, "h": {RTT: 41 * ms},
	}
	var settler Settler
	at := time.Unix(1_000_000, 0)
	settler.Settle(was, at)
	if diff := cmp.Diff(want, settler.Settle(now, at.Add(time.Second))); diff != "" {
		t.Errorf("Settle (-want +got):\n%s", diff)
	}
}

// Jitter around a threshold changes nothing once the facts are settled.
func TestSettledFactsDoNotFlap(t *testing.T) {
	var settler Settler
	at := time.Unix(1_000_000, 0)
	var first string
	for i := range 100 {
		jitter := time.Duration(i%7-3) * 100 * time.Microsecond
		facts := settler.Settle(Facts{"ams-1": {RTT: 8*ms + jitter}, "nrt-1": {RTT: 13*ms - jitter}}, at.Add(time.Duration(i)*time.Second))
		s := testServer(with(func(d *Data) { d.Orgs[0].Machines[0].Started = false }), facts)
		m := ask(t, s, "web.internal.", "AAAA", d1, Role{}, false)
		got := fmt.Sprint(records(t, m.Answer))
		if i == 0 {
			first = got
		}
		if got != first {
			t.Fatalf("round %d: %s, before %s", i, got, first)
		}
	}
}

// A first round trip that was too long does not stay: the nearest host, at 320 ms, was
// measured at 365 ms first, on a busy machine, which made one at 540 ms near as well.
func TestFirstRoundTripsDoNotStay(t *testing.T) {
	var settler Settler
	at := time.Unix(1_000_000, 0)
	near := func(nrt time.Duration, after time.Duration) string {
		f := settler.Settle(Facts{"ams-1": {RTT: 540 * ms}, "nrt-1": {RTT: nrt}}, at.Add(after))
		cs := set(f["ams-1"].RTT, f["nrt-1"].RTT)
		nearestFirst(cs, rand.New(rand.NewPCG(1, 1)))
		return ids(nearSet(cs))
	}
	if got := near(365*ms, 0); got != "ba" {
		t.Fatalf("measured too long: near are %s; this test proves nothing", got)
	}
	for second := 1; second < 30; second++ {
		got := near(320*ms, time.Duration(second)*time.Second)
		if want := "b"; second > 6 && got != want {
			t.Fatalf("after %d s: near are %s, want %s", second, got, want)
		}
	}
}

// What lasts is taken after five seconds, and only so much of it as was there all the
// time; what goes to and fro is not. Measured once a second.
func TestSettlerTakesWhatLasts(t *testing.T) {
	for _, tt := range []struct{ name, measured, given string }{
		{"it lasts", "100 108 108 108 108 108 108 108", "100 100 100 100 100 100 108 108"},
		{"part of it lasts", "100 110 104 110 110 110 110 110 110 110 110 110 110", "100 100 100 100 100 100 104 104 104 104 104 104 110"},
		{"to and fro", "100 108 93 108 93 108 93 108 93 108", "100 100 100 100 100 100 100 100 100 100"},
		{"as before in between", "100 108 108 108 100 108 108 108 108 108", "100 100 100 100 100 100 100 100 100 100"},
		{"too much to wait", "100 120 120", "100 120 120"},
		{"a creep is followed at once when it is too much", "100 104 108 112 116", "100 100 100 100 116"},
		{"not measured in between", "100 0 104 104", "100 0 104 104"},
	} {
		var settler Settler
		at := time.Unix(1_000_000, 0)
		var given []string
		for _, field := range strings.Fields(tt.measured) {
			n, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			f := settler.Settle(Facts{"a": {RTT: time.Duration(n) * ms}}, at)
			given = append(given, fmt.Sprint(int64(f["a"].RTT/ms)))
			at = at.Add(time.Second)
		}
		if got := strings.Join(given, " "); got != tt.given {
			t.Errorf("%s: measured %s: given %s, want %s", tt.name, tt.measured, got, tt.given)
		}
	}
}

// Whatever is measured: what is given out is never farther off than an eighth or 1 ms,
// is soon within what was measured lately, and moves at once only by more than that.
func TestSettlerProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var settler Settler
		at, given := time.Unix(1_000_000, 0), time.Duration(0)
		base := time.Duration(rapid.IntRange(1, 400).Draw(t, "base")) * ms
		var moved []time.Time
		var lately []time.Duration
		for range rapid.IntRange(1, 200).Draw(t, "rounds") {
			measured := base + base*time.Duration(rapid.IntRange(-60, 60).Draw(t, "permille"))/1000
			got := settler.Settle(Facts{"a": {RTT: measured}}, at)["a"].RTT
			lately = append(lately, measured)
			if (got - measured).Abs() > max(got/8, ms) {
				t.Fatalf("measured %s, given %s", measured, got)
			}
			if n := len(lately); n > 12 { // twice five seconds: one to each side
				if last := lately[n-12:]; got < slices.Min(last) || got > slices.Max(last) {
					t.Fatalf("given %s, and lately measured were %v", got, last)
				}
			}
			if got != given && given != 0 {
				if moved = append(moved, at); len(moved) > 1 && moved[len(moved)-1].Sub(moved[len(moved)-2]) < 5*time.Second && (got-given).Abs() <= max(given/8, ms) {
					t.Fatalf("moved a little twice within five seconds: %v", moved)
				}
			}
			given, at = got, at.Add(time.Second)
		}
	})
}

// Membership of the near set, stated independently: exactly those within reach of
// the nearest, whatever the order and the random numbers.
func TestNearSetProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		distances := rapid.SliceOfN(rapid.Map(rapid.Int64Range(0, int64(300*ms)), func(n int64) time.Duration { return time.Duration(n) }), 1, 30).Draw(t, "distances")
		cs := make([]candidate, len(distances))
		for i, d := range distances {
			cs[i] = candidate{machine: &machine{instance: &instance{id: fmt.Sprint(i)}}, distance: d}
		}
		nearest := slices.Min(distances)
		want := map[string]bool{}
		for i, d := range distances {
			if d-nearest <= 5*ms || float64(d) <= 1.5*float64(nearest) {
				want[fmt.Sprint(i)] = true
			}
		}
		nearestFirst(cs, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)))
		for i := 1; i < len(cs); i++ {
			if cs[i-1].distance > cs[i].distance+equalSlack {
				t.Fatalf("order: %s before %s", cs[i-1].distance, cs[i].distance)
			}
		}
		got := map[string]bool{}
		for _, c := range nearSet(cs) {
			got[c.id] = true
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("near set of %v (-want +got):\n%s", distances, diff)
		}
	})
}

// With several hosts at one distance, every machine is the answer to top1 at times.
func TestTop1SpreadsOverEquals(t *testing.T) {
	d := with(func(d *Data) {
		d.Orgs[0].Machines[0].Started = false
		for i := range 4 {
			host := fmt.Sprintf("ams-x%d", i)
			d.Hosts = append(d.Hosts, Host{Name: host, Region: "ams"})
			d.Orgs[0].Machines = append(d.Orgs[0].Machines, Machine{
				ID: "x" + fmt.Sprint(i), App: "web", Host: host, Started: true, Healthy: true,
				Addr: netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:1:200:1%d:1:2", i)),
			})
		}
	})
	f := fixtureFacts()
	for i := range 4 {
		f[fmt.Sprintf("ams-x%d", i)] = Fact{RTT: 8*ms + time.Duration(i)*100*time.Microsecond}
	}
	s := testServer(d, f)
	seen := map[string]bool{}
	for range 200 {
		seen[records(t, ask(t, s, "top1.nearest.of.web.internal.", "AAAA", d1, Role{}, false).Answer)[0]] = true
	}
	if len(seen) != 5 {
		t.Errorf("top1 answered %d different machines in 200 queries, want 5: %v", len(seen), seen)
	}
}
