package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/churn"
	"github.com/weftmesh/weft/mesh/agent/local"
)

// A mesh of three orgs is churned: machines start, stop, crash and move, agents and
// controllers are killed, hosts reboot, links are cut and bad, laptops come and go,
// what agents have set is changed by hand. At every quiet moment all allowed pairs
// talk and all names are right; at no moment at all a forbidden pair does. In the end
// nothing has grown. It lasts WEFT_SECONDS, in rounds, with WEFT_CONTROLLERS.
func TestChurn(t *testing.T) {
	need(t, "ip", "nft", "wg")
	t.Parallel()
	if seconds := churnNumber(t, "WEFT_SECONDS"); seconds > 0 {
		longChurn(t, time.Duration(seconds)*time.Second, churnNumber(t, "WEFT_CONTROLLERS"))
		return
	}
	c := newChurned(t, smallChurn, churnSeed(t, 0))
	c.rounds(func(done int) bool { return done < 2 }, 4)
}

// churnNumber is what a variable of the environment says, 0 if it is not set.
func churnNumber(t *testing.T, name string) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number, at least 1", name, text)
	}
	return n
}

// largeChurn is what long soaks are of.
var largeChurn = churnSize{
	hosts: []string{"fra1", "fra2", "fra3", "ams1", "ams2", "nrt1"},
	machines: append(slices.Clone(smallChurn.machines),
		"acme/web-3 fra3", "acme/api-1 ams2", "globex/web-2 fra3", "globex/shop-2 ams1", "initech/tps-2 ams2", "initech/web-2 fra3"),
	laptops:     []string{"acme/laptop", "globex/phone"},
	controllers: 1,
}

// longChurn churns one mesh after the other, each for some minutes: with so many
// controllers, which have a cluster of etcd if they are several; 0: with one and with
// three in turn.
func longChurn(t *testing.T, lasts time.Duration, controllers int) {
	end := time.Now().Add(lasts)
	for i := 0; time.Now().Before(end); i++ {
		until := time.Now().Add(max(min(4*time.Minute, time.Until(end)), time.Second))
		size := largeChurn
		if size.controllers = controllers; controllers == 0 {
			size.controllers = 1 + 2*(i%2)
		}
		t.Run(fmt.Sprint("mesh ", i+1), func(t *testing.T) {
			c := newChurned(t, size, churnSeed(t, uint64(i)))
			c.rounds(func(done int) bool { return done < 2 || time.Now().Before(until) }, 6)
		})
		if t.Failed() {
			return
		}
	}
}

// rounds churns as long as more says so, with a quiet moment after each burst of
// operations and another one when all are home again. What is in use then is compared
// with what it was after the first round.
func (c *churned) rounds(more func(done int) bool, burst int) {
	ctx := c.t.Context()
	took, err := c.quiet(ctx)
	if err != nil {
		c.fail(err)
	}
	c.t.Logf("all is there after %s", took.Round(time.Millisecond))
	watching, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	group.Go(func() { c.watch(watching) })

	var first churn.Census
	var waits []time.Duration
	kinds := map[churn.Kind]int{}
	for done := 0; more(done); done++ {
		for _, op := range c.burst(ctx, burst) {
			kinds[op.Kind]++
		}
		for _, home := range []bool{false, true} {
			if home {
				c.homeward(ctx)
			}
			if took, err = c.quiet(ctx); err != nil {
				c.fail(err)
			}
			waits = append(waits, took)
			c.note("quiet after %s", took.Round(time.Millisecond))
		}
		if done == 0 {
			if first, err = c.census(ctx); err != nil {
				c.fail(err)
			}
		} else {
			c.compare(ctx, first, done)
		}
	}
	var own runtime.MemStats
	runtime.ReadMemStats(&own)
	slices.Sort(waits)
	c.mu.Lock()
	tried := c.tried // the watch goes on
	c.mu.Unlock()
	c.t.Logf("%v; %d questions answered; quiet moments after %s, %s at the most; this test itself: heap %d MiB, %d goroutines", kinds, tried, waits[len(waits)/2].Round(time.Millisecond), waits[len(waits)-1].Round(time.Millisecond), own.HeapInuse>>20, runtime.NumGoroutine())
}

// burst does operations one after the other, without waiting for what comes of them.
func (c *churned) burst(ctx context.Context, n int) (done []churn.Operation) {
	without := map[churn.Kind]bool{churn.CreateGrant: !c.grants}
	for range n {
		op := churn.Draw(c.r, c.state, without)
		if err := c.do(ctx, op); err != nil {
			c.fail(err)
		}
		done = append(done, op)
		pause(ctx, time.Duration(c.r.IntN(400))*time.Millisecond)
	}
	return done
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// homeward brings everything back to where it began. A laptop that has taken another
// gateway meanwhile stays with it, and takes the nearest when it is started again.
func (c *churned) homeward(ctx context.Context) {
	for _, op := range c.state.Homeward() {
		if err := c.do(ctx, op); err != nil {
			c.fail(err)
		}
	}
	for _, l := range c.lives {
		if l.up == nil || l.up.Exited() {
			continue
		}
		var s local.Status
		out, err := l.host.Run(ctx, filepath.Join(c.w.Bin(), "weft"), "status", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &s)
		}
		if err != nil || s.Gateway == "" || s.Gateway == l.gateway {
			continue // it has just been started, or is where it began
		}
		c.note("%s has gateway %s, and is started again", l.key, s.Gateway)
		if err := l.up.Stop(); err != nil {
			c.fail(err)
		}
	}
}

// sample is n of the list, in any order, or all of it.
func sample[T any](list []T, n int) []T {
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[:min(n, len(list))]
}

// The checker notices what it is there for: that hosts isolate nothing, that names are
// not answered, that gateways have no tunnels to laptops, that who has ended stays on
// record.
func TestChurnNotices(t *testing.T) {
	need(t, "ip", "nft", "wg")
	for _, tt := range []struct {
		disable string
		want    []string // of findings
	}{
		{"firewall", []string{churn.Forbidden + ": ", churn.Spoofed + ": "}},
		{"dns,clients", []string{churn.Misnamed + ": ", churn.Unreached + ": acme/laptop"}},
		{"leave", []string{"the controllers list"}},
	} {
		t.Run("without "+strings.ReplaceAll(tt.disable, ",", " and "), func(t *testing.T) {
			t.Parallel()
			size := churnSize{hosts: []string{"fra1", "ams1"}, controllers: 1, laptops: []string{"acme/laptop"}, disable: strings.Split(tt.disable, ","),
				machines: []string{"acme/web-1 fra1", "acme/web-2 ams1", "acme/db-1 fra1", "globex/web-1 fra1", "globex/shop-1 ams1"}}
			c := newChurned(t, size, churnSeed(t, 0))
			await(t, "all to be there", quietWithin, func(ctx context.Context) error {
				if err := c.revive(ctx); err != nil {
					return err
				}
				return c.look(ctx, true)
			})
			if err := c.do(t.Context(), churn.Operation{Kind: churn.KillMachine, On: "acme/db-1"}); err != nil {
				t.Fatal(err)
			}
			// What is only slow is not what is to be noticed.
			early := time.Now().Add(3 * time.Second)
			await(t, "the checker to notice", quietWithin, func(ctx context.Context) error {
				if time.Now().Before(early) {
					return errors.New("it is too early to tell")
				}
				if err := c.look(ctx, true); err != nil {
					return err
				}
				findings, err := c.ask(ctx, true, func(from churn.Endpoint, s churn.Scene) []churn.Case {
					return append(s.Cases(from), s.NameCases(from)...)
				})
				if err != nil {
					return err
				}
				said := fmt.Sprint(append(findings, c.findings...), c.recorded(ctx))
				for _, want := range tt.want {
					if !strings.Contains(said, want) {
						return fmt.Errorf("there is no %q in %s", want, said)
					}
				}
				return nil
			})
		})
	}
}
