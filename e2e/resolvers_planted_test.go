package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftmesh/weft/e2e/world"
)

// That TestStockResolvers passes says something only if it can fail: with distances
// switched off, each of its clients is taken somewhere to a machine that is not the
// nearest, and with silence switched off too, addresses of a dead host are given out.
func TestStockResolversNotice(t *testing.T) {
	need(t, "dig", "getent", "curl", "node", "musl-gcc", "nsenter")
	t.Parallel()
	s := newStockWorld(t, "near", "suspect")
	s.spread(t, rand.New(rand.NewPCG(1, 0)))
	var all []string
	for _, c := range cities {
		all = append(all, c.name)
	}
	s.mustNotice(t, "a machine that is not the nearest", stockClients, all, func(err error) bool { return err != nil && !errors.Is(err, errDead) })

	const far = "syd"
	for _, in := range s.apps {
		if m := in[far]; m != nil {
			s.dead[m.Address] = true
		}
	}
	if err := s.Lab().Switch().CutHost(far + "1"); err != nil {
		t.Fatal(err)
	}
	<-time.After(3 * time.Second) // that its names do not go can only be waited for
	// Who connects may wait for the dead one longer than is worth it here.
	asks := slices.DeleteFunc(slices.Clone(stockClients), func(c stockClient) bool { return c.name != "getent" })
	left := slices.DeleteFunc(all, func(r string) bool { return r == far })
	s.mustNotice(t, "a dead host", asks, left, func(err error) bool { return errors.Is(err, errDead) })
}

// mustNotice fails unless each client in some region is judged as it should be.
func (s *stockWorld) mustNotice(t *testing.T, what string, clients []stockClient, regions []string, is func(error) bool) {
	t.Helper()
	noticed := map[string]*atomic.Int64{}
	var group errgroup.Group
	group.SetLimit(12) // they mostly wait
	for _, c := range clients {
		by := new(atomic.Int64)
		noticed[c.name] = by
		for _, r := range regions {
			group.Go(func() error {
				for err := range s.judged(t.Context(), c, r, s.wanted(r)) {
					if is(err) {
						by.Add(1)
					}
				}
				return nil
			})
		}
	}
	_ = group.Wait() // what is wrong is what is counted
	for name, by := range noticed {
		t.Logf("%s: %s noticed %d times", what, name, by.Load())
		if by.Load() == 0 {
			t.Errorf("%s: %s was never noticed", name, what)
		}
	}
}

// judged yields what is wrong with what a client reaches in a region; nil where nothing
// is. A client that gets nowhere is wrong, too, but says nothing.
func (s *stockWorld) judged(ctx context.Context, c stockClient, region string, want map[string]*world.Machine) func(yield func(error) bool) {
	return func(yield func(error) bool) {
		names := slices.Collect(maps.Keys(want))
		got, err := c.run(ctx, s, s.askers[region], names)
		if err != nil {
			yield(fmt.Errorf("%s in %s: %w", c.name, region, err))
			return
		}
		for name, m := range want {
			if !yield(s.judge(got[name], m)) {
				return
			}
		}
	}
}
