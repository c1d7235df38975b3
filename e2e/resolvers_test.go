package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftmesh/weft/e2e/world"
)

// stockWorld is the world of TestStockResolvers: in every region a machine that asks
// and one of app web, and for each pair of regions an app with a machine in both.
type stockWorld struct {
	*world.World
	matrix matrix
	askers map[string]*world.Machine            // by region
	apps   map[string]map[string]*world.Machine // name of the app, region
	dead   map[netip.Addr]bool
	static string // the program of testdata/clients/reach.c, with musl
	script string // testdata/clients/lookup.js
}

func newStockWorld(t *testing.T, disable ...string) *stockWorld {
	t.Helper()
	s := &stockWorld{askers: map[string]*world.Machine{}, apps: map[string]map[string]*world.Machine{}, dead: map[netip.Addr]bool{}}
	s.World = newWorld(t, world.Config{Disable: disable})
	for _, p := range cities {
		weft(t, s.World, "region", "create", p.name, "--at", fmt.Sprintf("%.1f,%.1f", p.lat, p.lon))
		if _, err := s.AddHost(t.Context(), p.name+"1", p.name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, a := range cities {
		s.askers[a.name] = start(t, s.World, a.name+"1", "acme", "shell", "shell-"+a.name)
		s.add(t, "web", a.name)
		for _, b := range cities[:i] {
			s.add(t, b.name+"-"+a.name, a.name)
			s.add(t, b.name+"-"+a.name, b.name)
		}
	}
	s.static = staticClient(t, s.Lab().Dir())
	var err error
	if s.script, err = filepath.Abs("testdata/clients/lookup.js"); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stockWorld) add(t *testing.T, app, region string) {
	t.Helper()
	if s.apps[app] == nil {
		s.apps[app] = map[string]*world.Machine{}
	}
	s.apps[app][region] = start(t, s.World, region+"1", "acme", app, app+"-in-"+region)
}

// staticClient builds the C program with musl and returns its path.
func staticClient(t *testing.T, dir string) string {
	t.Helper()
	out := filepath.Join(dir, "reach")
	if b, err := exec.CommandContext(t.Context(), "musl-gcc", "-static", "-O1", "-o", out, "testdata/clients/reach.c").CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc: %v\n%s", err, b)
	}
	return out
}

// wanted is the machine that must answer at each name, asked from a region.
func (s *stockWorld) wanted(from string) map[string]*world.Machine {
	want := map[string]*world.Machine{}
	for app, in := range s.apps {
		var alive []string
		for region, m := range in {
			if !s.dead[m.Address] {
				alive = append(alive, region)
			}
		}
		if len(alive) > 0 {
			want[app+".internal"] = in[s.matrix.nearest(from, alive)]
		}
	}
	return want
}

// settle waits until dig says, in all regions, what must be.
func (s *stockWorld) settle(t *testing.T, what string, within time.Duration, regions []string) {
	t.Helper()
	began := time.Now()
	await(t, what, within, func(ctx context.Context) error {
		group, ctx := errgroup.WithContext(ctx)
		for _, r := range regions {
			group.Go(func() error {
				for name, m := range s.wanted(r) {
					if err := nameIs(s.askers[r], name, m.Address.String())(ctx); err != nil {
						return fmt.Errorf("in %s: %w", r, err)
					}
				}
				return nil
			})
		}
		return group.Wait()
	})
	t.Logf("%s: after %s", what, time.Since(began).Round(time.Millisecond))
}

// check lets every client reach every name from every one of the regions. A busy
// machine may shift what is measured for a moment: then the names are waited for and
// all is done again, but not for an address of a dead host, which nobody may be given.
func (s *stockWorld) check(t *testing.T, when string, regions []string) {
	t.Helper()
	const attempts = 3
	for attempt := 1; ; attempt++ {
		began := time.Now()
		reaches, err := s.reachAll(t.Context(), regions)
		if err == nil {
			t.Logf("%s: %d names reached, each by its nearest, in %s", when, reaches, time.Since(began).Round(time.Millisecond))
			return
		}
		if attempt == attempts || errors.Is(err, errDead) {
			t.Fatalf("%s: %v", when, err)
		}
		t.Logf("%s: again, for %v", when, err)
		s.settle(t, "the names to be as measured", 10*time.Second, regions)
	}
}

// reachAll returns how many names were reached, and all that went wrong.
func (s *stockWorld) reachAll(ctx context.Context, regions []string) (reaches int, err error) {
	var mu sync.Mutex // guards errs
	var errs []error
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(12) // they mostly wait
	for _, r := range regions {
		want := s.wanted(r)
		names := slices.Collect(maps.Keys(want))
		reaches += len(names) * len(stockClients)
		for _, c := range stockClients {
			group.Go(func() error {
				got, err := c.run(ctx, s, s.askers[r], names)
				if err != nil {
					return fmt.Errorf("%s in %s: %w", c.name, r, err)
				}
				mu.Lock()
				defer mu.Unlock()
				for name, m := range want {
					if err := s.judge(got[name], m); err != nil {
						errs = append(errs, fmt.Errorf("%s in %s: %s: %w", c.name, r, name, err))
					}
				}
				return nil
			})
		}
	}
	err = group.Wait()
	return reaches, errors.Join(append(errs, err)...)
}

var errDead = errors.New("it is dead")

func (s *stockWorld) judge(got reached, want *world.Machine) error {
	if len(got.given) == 0 {
		return errors.New("no address was given")
	}
	for _, a := range got.given {
		if s.dead[a] {
			return fmt.Errorf("given %v: %s: %w", got.given, a, errDead)
		}
	}
	if got.given[0] != want.Address {
		return fmt.Errorf("given %v, want %s (%s) first", got.given, want.Address, want.ID)
	}
	if got.by != "" && got.by != want.ID {
		return fmt.Errorf("answered by %s, want %s", got.by, want.ID)
	}
	return nil
}

// Whoever asks, with whatever C library or runtime, which re-sort what they are told,
// reaches the machine that is nearest as measured, also when it is neither the
// nearest on the map nor the one whose address looks nearest, and never a dead one.
func TestStockResolvers(t *testing.T) {
	need(t, "dig", "getent", "curl", "node", "musl-gcc", "nsenter")
	t.Parallel()
	seed := rand.Uint64()
	if v := os.Getenv("WEFT_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("WEFT_SEED: %v", err)
		}
	}
	t.Logf("seed %d (WEFT_SEED repeats)", seed)
	s := newStockWorld(t)
	s.spread(t, rand.New(rand.NewPCG(seed, 0)))
	all := make([]string, len(cities))
	for i, c := range cities {
		all[i] = c.name
	}
	s.settle(t, "the names to be as measured", 20*time.Second, all)
	s.mustResort(t)
	s.check(t, "all alive", all)

	// The nearest one dies: for each region that is so at one name at least. far is
	// left out here: its host dies next.
	far := s.matrix.nearest("fra", all[1:])
	others := slices.DeleteFunc(slices.Clone(all), func(r string) bool { return r == far || r == "fra" })
	lost := map[string]bool{}
	before := map[string]map[string]*world.Machine{}
	for _, r := range all {
		before[r] = s.wanted(r)
	}
	a, b := others[0], others[1]
	for _, victim := range []*world.Machine{s.apps["web"]["fra"], s.pair("fra", a)["fra"], s.pair(a, b)[a], s.pair(b, "fra")[b]} {
		if err := victim.Kill(); err != nil {
			t.Fatal(err)
		}
		s.dead[victim.Address] = true
		for _, r := range all {
			lost[r] = lost[r] || before[r][victim.App+".internal"] == victim
		}
	}
	if len(lost) != len(all) || slices.ContainsFunc(all, func(r string) bool { return !lost[r] }) {
		t.Fatalf("not every region has lost a nearest machine: %v; this test kills the wrong ones", lost)
	}
	s.settle(t, "the killed machines to be out of all names", 5*time.Second, all)
	s.check(t, "some killed", all)

	// A host dies, and with it the next nearest web of fra.
	next := s.wanted("fra")["web.internal"]
	if next.Host.Region != far {
		t.Fatalf("the next web of fra is %s, not in %s", next.ID, far)
	}
	for _, in := range s.apps {
		if m := in[far]; m != nil {
			s.dead[m.Address] = true
		}
	}
	left := slices.DeleteFunc(slices.Clone(all), func(r string) bool { return r == far })
	s.silence(t, far, left)
	s.settle(t, "the names to be without the silent host", 3*time.Second, left)
	s.check(t, "a host silent", left)
}

// spread moves the regions as far from each other as a matrix says that contradicts
// the map and the addresses: if either gave the right answers by itself, the test would
// prove nothing.
func (s *stockWorld) spread(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	var err error
	if s.matrix, err = drawMatrix(rnd, byMap, s.byAddress); err != nil {
		t.Fatal(err)
	}
	for _, a := range cities {
		row := ""
		for _, b := range cities {
			ms := s.matrix[[2]string{a.name, b.name}]
			row += fmt.Sprintf(" %s %d ms", b.name, ms)
			if a == b {
				continue
			}
			if err := s.Lab().Switch().SetRTT(a.name+"1", b.name+"1", time.Duration(ms)*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		m, d := s.matrix.against(a, byMap), s.matrix.against(a, s.byAddress)
		if m == 0 || d == 0 {
			t.Fatalf("from %s the delays agree with the map or with the addresses", a.name)
		}
		t.Logf("from %s (%s):%s; against the map in %d of 3 pairs, against the addresses in %d", a.name, s.askers[a.name].Address, row, m, d)
	}
}

// mustResort fails if the C library takes addresses as they come: given both machines
// of a pair, the nearer one first, it must somewhere prefer the other one.
func (s *stockWorld) mustResort(t *testing.T) {
	t.Helper()
	preferred := 0
	for _, from := range cities {
		for app, in := range s.apps {
			got, err := viaGetent(t.Context(), s, s.askers[from.name], []string{"global." + app + ".internal"})
			if err != nil {
				t.Fatal(err)
			}
			near := in[s.matrix.nearest(from.name, slices.Collect(maps.Keys(in)))]
			if given := got["global."+app+".internal"].given; len(given) != len(in) {
				t.Fatalf("getent in %s: all of %s are %v", from.name, app, given)
			} else if given[0] != near.Address {
				preferred++
			}
		}
	}
	if preferred == 0 {
		t.Fatal("the C library never prefers a farther machine: this test proves nothing about it")
	}
	t.Logf("given all machines of a name, the C library prefers a farther one %d times", preferred)
}

func (s *stockWorld) pair(a, b string) map[string]*world.Machine {
	if in := s.apps[a+"-"+b]; in != nil {
		return in
	}
	return s.apps[b+"-"+a]
}
