package userspace

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// At most limit packets and a batch are inside; who waits goes on when half of them
// came out.
func TestGateBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(4)
		for range 4 {
			g.wait()
			g.enter(1)
		}
		began := time.Now()
		var passed sync.WaitGroup
		for range 2 {
			passed.Go(g.wait)
		}
		synctest.Wait()
		if g.full(time.Now()) <= 0 {
			t.Fatal("the gate is open with 4 inside")
		}
		g.leave(2)
		passed.Wait()
		if took := time.Since(began); took != 0 {
			t.Errorf("it opened after %s, not at once", took)
		}
	})
}

// What never comes out, because wireguard-go dropped it, is forgotten: nobody waits
// for ever, and what came in later still counts.
func TestGateForgets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(4)
		g.enter(3)
		time.Sleep(forgotten / 2)
		g.enter(3)
		began := time.Now()
		g.wait()
		if took := time.Since(began); took != forgotten/2 {
			t.Errorf("it opened after %s, want %s", took, forgotten/2)
		}
		if g.inside != 3 {
			t.Errorf("%d inside, want the 3 that are younger", g.inside)
		}
		g.leave(100) // more than were counted
		if g.inside != 0 || len(g.entries) != 0 {
			t.Errorf("%d inside, in %d entries", g.inside, len(g.entries))
		}
	})
}
