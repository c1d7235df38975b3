package history

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/etcd"
	"github.com/weftmesh/weft/mesh/store"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The etcd library starts these once for the process and never ends them.
		goleak.IgnoreTopFunction("go.etcd.io/etcd/pkg/v3/logutil.(*MergeLogger).outputLoop"),
	)
}

// What the stores of these tests go by. Hours pass by the clock's hand.
var rules = Rules{SlotRest: time.Hour, HostRest: 3 * time.Hour, AddressRest: 30 * 24 * time.Hour, TokenGrace: 24 * time.Hour, Machines: map[string]int{"orgs/few": 4}}

// seed is WEFT_SEED, or another one each time. It is printed.
func seed(t testing.TB) uint64 {
	t.Helper()
	s := rand.Uint64N(1_000_000)
	if text := os.Getenv("WEFT_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("WEFT_SEED: %v", err)
		}
	}
	t.Logf("seed %d (WEFT_SEED=%d repeats what is drawn, though not who is faster)", s, s)
	return s
}

// lasts is for how long clients are at work: WEFT_SECONDS, or the default.
func lasts(t testing.TB, usual time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("WEFT_SECONDS")
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("WEFT_SECONDS=%q: want a number of seconds", text)
	}
	return time.Duration(n) * time.Second
}

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// controller is a store on a wire of its own, which can be closed and opened again.
type controller struct {
	wire *wire

	mu    sync.Mutex // guards what follows
	store *store.Store
	stop  func()
}

func (c *controller) get() *store.Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.store
}

// bench is an etcd with controllers.
type bench struct {
	t           *testing.T
	clock       *clock
	socket      string
	config      etcd.Config
	server      *etcd.Server
	direct      *clientv3.Client // on no wire
	controllers []*controller
	rec         *Recorder
}

func newBench(t *testing.T, seed uint64, controllers int) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft-history")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{t: t, clock: &clock{now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}, socket: filepath.Join(dir, "s")}
	b.config = etcd.Config{Dir: filepath.Join(dir, "etcd"), Listen: "unix:" + b.socket, Fast: true, UnsafeNoFsync: true, WALSegment: 1 << 20}
	b.startEtcd()
	t.Cleanup(func() { b.server.Close() })
	if b.direct, err = newWire(0).dial(b.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.direct.Close() })
	b.rec = NewRecorder(b.clock.Now)
	first := b.fresh()
	plan, err := ipam.NewPlan(netip.MustParsePrefix("fd12:3456:789a::/48"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Init(t.Context(), store.Genesis{
		Mesh:     mesh.Mesh{Plan: plan},
		CA:       store.CARecord{ID: "ca1", Certificate: []byte("certificate"), SealedKey: []byte("sealed")},
		Operator: mesh.Operator{ID: "first", Hash: secret("first"), Role: mesh.RoleOperator},
	}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := first.CreateRegion(t.Context(), "test", "fra", nil); err != nil {
		t.Fatal(err)
	}
	for i := range controllers {
		c := &controller{wire: newWire(seed + uint64(i))}
		b.controllers = append(b.controllers, c)
		b.open(c)
		t.Cleanup(func() { b.close(c) })
		b.ready(c)
	}
	return b
}

func (b *bench) startEtcd() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	server, err := etcd.Start(ctx, b.config)
	if err != nil {
		b.t.Error(err)
		return
	}
	b.server = server
}

func (b *bench) storeOn(client *clientv3.Client) *store.Store {
	s, err := store.New(store.Config{
		Client: client, Now: b.clock.Now, Timeout: time.Second, ProgressEvery: 200 * time.Millisecond,
		SlotRest: rules.SlotRest, HostRest: rules.HostRest, AddressRest: rules.AddressRest,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// fresh is a store that nothing stands in the way of, and that does not run.
func (b *bench) fresh() *store.Store { return b.storeOn(b.direct) }

// open starts a controller.
func (b *bench) open(c *controller) {
	client, err := c.wire.dial(b.socket)
	if err != nil {
		b.t.Error(err)
		return
	}
	s := b.storeOn(client)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store, c.stop = s, func() { cancel(); <-done; client.Close() }
}

// close ends a controller; those who are asking it get no answer.
func (b *bench) close(c *controller) {
	c.mu.Lock()
	stop := c.stop
	c.stop = func() {}
	c.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (b *bench) ready(c *controller) {
	b.t.Helper()
	select {
	case <-c.get().Ready():
	case <-time.After(20 * time.Second):
		b.t.Fatal("the mirror is not ready")
	}
}

// ask records one operation at a controller.
func (b *bench) ask(client int, at *store.Store, op Operation, run func(context.Context, *store.Store, *Operation) error) Operation {
	op.Client = client
	return b.rec.Do(op, func(op *Operation) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		err := run(ctx, at, op)
		op.Result = result(*op, err)
		if op.Result == "" {
			b.t.Errorf("%s %s: %v", op.Action, op.Key, err)
			op.Result = Unknown
		}
		if err != nil {
			op.Object, op.Revision, op.Exact = Object{}, 0, false
		}
	})
}

// result is what an error of the store means; "" for one that it must not give.
func result(op Operation, err error) Result {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnsure) && op.Action == Create:
		return Refused // what does not say that it may have been done has not been done
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return Unknown
	case errors.Is(err, store.ErrToken):
		return Token
	case errors.Is(err, store.ErrExists) && op.Node == "":
		return Exists // with a key it might be the key that exists
	case errors.Is(err, store.ErrNotFound) && op.Action == Remove:
		return Missing
	case errors.Is(err, store.ErrExists), errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrFull), errors.Is(err, store.ErrLimit):
		return Refused
	}
	return ""
}

// objects is a state as the judge knows it.
func objects(s mesh.State) map[string]Object {
	out := map[string]Object{}
	for k, o := range s.Orgs.All() {
		out["orgs/"+k] = Object{Number: o.Network, Ending: o.Tombstone}
	}
	for k, h := range s.Hosts.All() {
		out["hosts/"+k] = Object{Number: uint64(h.Number)}
	}
	for k, m := range s.Machines.All() {
		out["machines/"+k] = machineObject(m)
	}
	for k, c := range s.Clients.All() {
		out["clients/"+k] = clientObject(c)
	}
	for k, t := range s.Tokens.All() {
		out["tokens/"+k] = Object{Uses: t.Uses}
	}
	return out
}

func machineObject(m mesh.Machine) Object {
	return Object{Endpoint: m.Endpoint.String(), Host: m.Host, Generation: m.Generation + 1}
}

func clientObject(c mesh.Client) Object {
	return Object{Endpoint: c.Endpoint.String()}
}

func secret(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

// read records what a controller's mirror shows once it has all that anybody was
// told of.
func (b *bench) read(client int, at *store.Store, current bool) bool {
	floor := b.rec.Floor()
	wait, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	ok := true
	b.rec.Do(Operation{Client: client, Action: Read, Wait: floor, Current: current}, func(op *Operation) {
		if err := at.Wait(wait, floor); err != nil {
			op.Result, ok = Refused, false
			return
		}
		state := at.State()
		op.Result, op.State = OK, objects(state)
		// The state is complete up to the revision that was waited for, though
		// nothing of it may be that young.
		op.Revision = max(state.Revision.Revision, floor)
	})
	return ok
}

// judge checks everything that was recorded, and says how much there was.
func (b *bench) judge(patience time.Duration) {
	b.t.Helper()
	rules := rules
	rules.Patience = patience
	ops := b.rec.Operations()
	start := time.Now()
	findings := Judge(ops, rules)
	tally := map[string]int{}
	for _, o := range ops {
		tally[fmt.Sprintf("%s %s: %s", o.Action, kind(o.Key), o.Result)]++
	}
	b.t.Logf("%d operations, judged in %s: %v", len(ops), time.Since(start).Round(time.Millisecond), tally)
	for i, f := range findings {
		if i == 5 {
			b.t.Errorf("and %d more", len(findings)-i)
			break
		}
		b.t.Error(f)
	}
}
