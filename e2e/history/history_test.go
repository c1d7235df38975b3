package history

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// Clients do all that allocates or spends, at three controllers at once, of which
// two are cut off from etcd, lag, lose answers and are started anew, while etcd is
// compacted and started anew. Whatever they were told can be told of one state.
func TestHistory(t *testing.T) {
	t.Parallel()
	seed := seed(t)
	for i, d := range Rounds(lasts(t, 5*time.Second), 10*time.Second) {
		t.Run(fmt.Sprint("round ", i+1), func(t *testing.T) { oneHistory(t, seed+uint64(i), d) })
	}
}

func oneHistory(t *testing.T, seed uint64, d time.Duration) {
	b := newBench(t, seed, 3)
	shared := &crowd{b: b, orgs: map[string]string{}}
	first := &worker{crowd: shared, r: rand.New(rand.NewPCG(seed, 0))}
	first.settle()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go b.enough(ctx, cancel, d)
	var busy sync.WaitGroup
	for i := range 8 {
		w := &worker{crowd: shared, n: i + 1, r: rand.New(rand.NewPCG(seed, uint64(i+1)))}
		busy.Go(func() {
			for ctx.Err() == nil {
				w.step()
			}
		})
	}
	n := &nemesis{b: b, r: rand.New(rand.NewPCG(seed, 99)), did: map[string]int{}}
	n.run(ctx)
	busy.Wait()
	n.heal()
	b.rest()
	b.judge(max(30*time.Second, d))
	t.Logf("what went wrong meanwhile: %v", n.did)
	for _, c := range b.controllers {
		c.wire.mu.Lock()
		t.Logf("a controller lost %d requests and %d answers", c.wire.lost, c.wire.unsolved)
		c.wire.mu.Unlock()
	}
	b.provesSomething()
}

// nemesis is what goes wrong.
type nemesis struct {
	b   *bench
	r   *rand.Rand
	did map[string]int
}

// run does one bad thing after the other until ctx ends.
func (n *nemesis) run(ctx context.Context) {
	for ctx.Err() == nil {
		n.act(ctx)
		pause(ctx, time.Duration(50+n.r.IntN(200))*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (n *nemesis) act(ctx context.Context) {
	c := n.b.controllers[n.r.IntN(len(n.b.controllers))]
	x := n.r.IntN(100)
	switch {
	case x < 25:
		n.did["cut"]++
		c.wire.partition(true)
		pause(ctx, time.Duration(20+n.r.IntN(250))*time.Millisecond)
		c.wire.partition(false)
	case x < 40:
		n.did["cut and compacted"]++
		c.wire.partition(true)
		pause(ctx, time.Duration(50+n.r.IntN(150))*time.Millisecond)
		n.compact()
		c.wire.partition(false)
	case x < 55:
		n.did["loss"]++
		c.wire.set(0.1, 0)
		pause(ctx, 200*time.Millisecond)
		c.wire.set(0, 0)
	case x < 75:
		n.did["delay"]++
		c.wire.set(0, 10*time.Millisecond)
		pause(ctx, 300*time.Millisecond)
		c.wire.set(0, 0)
	case x < 84:
		n.did["controller restarted"]++
		n.b.close(c)
		n.b.open(c)
	case x < 90:
		n.did["etcd restarted"]++
		if err := n.b.server.Close(); err != nil {
			n.b.t.Error(err)
		}
		n.b.startEtcd()
	default:
		n.did["clock"]++
		n.b.clock.add(time.Duration(10+n.r.IntN(60)) * time.Minute)
	}
}

func (n *nemesis) compact() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r, err := n.b.direct.Get(ctx, "none")
	if err == nil {
		_, err = n.b.direct.Compact(ctx, r.Header.Revision)
	}
	if err != nil {
		n.b.t.Logf("compact: %v", err)
	}
}

func (n *nemesis) heal() {
	for _, c := range n.b.controllers {
		c.wire.partition(false)
		c.wire.set(0, 0)
	}
}

// rest waits until every controller can be asked, and reads all of them once more,
// and once without them.
func (b *bench) rest() {
	b.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for i, c := range b.controllers {
		b.ready(c)
		for !b.read(100+i, c.get(), true) {
			if time.Now().After(deadline) {
				b.t.Fatalf("controller %d does not come to know revision %d", i, b.rec.Floor())
			}
		}
	}
	s := b.fresh()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if !b.read(200, s, true) {
		b.t.Fatal("the state cannot be read")
	}
}

// operations is how many make races likely.
const operations = 1500

// enough ends the run by cancel when it has lasted for d and has shown what it is to
// show. On a machine that is busy otherwise, that takes longer.
func (b *bench) enough(ctx context.Context, cancel func(), d time.Duration) {
	pause(ctx, d)
	for range 150 {
		if ctx.Err() != nil || b.rec.Len() >= operations && len(b.unproved()) == 0 {
			break
		}
		pause(ctx, 200*time.Millisecond)
	}
	cancel()
}

// provesSomething makes sure that what can go wrong was tried.
func (b *bench) provesSomething() {
	b.t.Helper()
	if never := b.unproved(); len(never) > 0 {
		b.t.Errorf("this run proves little: none of %q", never)
	}
}

// unproved is what did not happen, and should have.
func (b *bench) unproved() (never []string) {
	seen := map[string]bool{}
	given := map[string]bool{}
	for _, o := range b.rec.Operations() {
		seen[fmt.Sprintf("%s %s %s", o.Action, kind(o.Key), o.Result)] = true
		seen[string(o.Result)] = true
		if place := o.Object.Endpoint; o.Action == Create && o.Exact && o.Result == OK && place != "" {
			seen["an address again"] = seen["an address again"] || given[place]
			given[place] = true
		}
	}
	for _, what := range []string{
		"create machines ok", "create orgs ok", "create hosts ok", "create clients ok", "create tokens ok",
		"remove machines ok", "remove orgs ok", "remove hosts ok", "remove clients ok", "move machines ok",
		string(Exists), string(Missing), string(Token), string(Unknown), "an address again",
	} {
		if !seen[what] {
			never = append(never, what)
		}
	}
	return never
}
