package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/etcd"
	"github.com/weftmesh/weft/mesh/store"
)

// Allocations against the least that one can be: a transaction that puts a key of
// the same size if it is not there. Both on one etcd, embedded as in a controller,
// with its mirror running, in turns.

const (
	allocRounds  = 15
	allocCallers = 64
	allocSpread  = 8 // orgs, and hosts
)

func TestBenchAlloc(t *testing.T) {
	benchmark(t)
	server, err := etcd.Start(t.Context(), etcd.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	b := &allocBench{t: t, client: server.Client(), store: allocStore(t, server.Client(), "/weft/", allocSpread, allocSpread)}
	for _, x := range []struct {
		name    string
		callers int
		count   int // a round
		place   func(caller int) (org, host string)
		aim     string
	}{
		{"1_caller", 1, 300, func(int) (string, string) { return "org0", "host0" }, ""},
		{"64_callers_one_host", allocCallers, 600, func(int) (string, string) { return "org0", "host0" }, ""},
		{"spread", allocCallers, 640, func(i int) (string, string) {
			return fmt.Sprint("org", i%allocSpread), fmt.Sprint("host", i/allocSpread%allocSpread)
		}, ">= 0.5"},
	} {
		ours, bare := b.inTurns(
			func() allocCost { return b.round(x.callers, x.count, b.allocate(x.place)) },
			func() allocCost { return b.round(x.callers, x.count, b.bare) })
		figure("alloc_"+x.name, float64(x.count)/ours.took.Seconds(), "allocations/s", "")
		figure("alloc_"+x.name+"_bare", float64(x.count)/bare.took.Seconds(), "transactions/s", "")
		figure("alloc_"+x.name+"_cpu_vs_bare", ours.cpu.Seconds()/bare.cpu.Seconds(), "ratio", "")
		figure("alloc_"+x.name+"_vs_bare", bare.took.Seconds()/ours.took.Seconds(), "ratio", x.aim)
	}
}

// The cost of one address in a network that holds many, against one in an empty
// mesh on the same etcd.
func TestBenchAllocHeld(t *testing.T) {
	benchmark(t)
	server, err := etcd.Start(t.Context(), etcd.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	first := func(int) (string, string) { return "org0", "host0" }
	empty := &allocBench{t: t, client: server.Client(), store: allocStore(t, server.Client(), "/empty/", 1, 1)}
	full := &allocBench{t: t, client: server.Client(), store: allocStore(t, server.Client(), "/weft/", 1, 1)}
	const count = 200
	for _, held := range []int{0, 20000, 60000} {
		full.hold(held)
		cost, base := full.inTurns(
			func() allocCost { return full.round(1, count, full.allocate(first)) },
			func() allocCost { return empty.round(1, count, empty.allocate(first)) })
		figure(fmt.Sprint("alloc_cost_", held), cost.took.Seconds()*1000/count, "ms", "")
		aim := ""
		if held == 60000 {
			aim = "<= 1.2"
		}
		figure(fmt.Sprintf("alloc_cost_%d_vs_0", held), cost.took.Seconds()/base.took.Seconds(), "ratio", aim)
	}
}

type allocBench struct {
	t      *testing.T
	client *clientv3.Client
	store  *store.Store
	drawn  int
	names  sync.Mutex
}

// allocStore is a mesh with orgs org0… that may have very many machines, and hosts
// host0….
func allocStore(t *testing.T, client *clientv3.Client, root string, orgs, hosts int) *store.Store {
	t.Helper()
	s, err := store.New(store.Config{Client: client, Root: root})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := ipam.NewPlan(netip.MustParsePrefix("fd12:3456:789a::/48"))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	ctx, secret := t.Context(), make([]byte, 32)
	_, err = s.Init(ctx, store.Genesis{
		Mesh:     mesh.Mesh{Plan: plan},
		CA:       store.CARecord{ID: "ca", Certificate: []byte("c"), SealedKey: []byte("k")},
		Operator: mesh.Operator{ID: "admin", Hash: secret, Role: mesh.RoleOperator},
	})
	must(err)
	_, _, err = s.CreateRegion(ctx, "", "fra", nil)
	must(err)
	_, _, err = s.CreateToken(ctx, "", mesh.Token{
		ID: "hosts", Hash: secret, Kind: mesh.KindHost, Orgs: []string{mesh.AllOrgs}, Uses: hosts, Expires: time.Now().Add(time.Hour),
	})
	must(err)
	for i := range orgs {
		name := fmt.Sprint("org", i)
		_, _, err = s.CreateOrg(ctx, "", name)
		must(err)
		_, _, err = s.UpdateOrg(ctx, "", name, mesh.Limits{Machines: 1000000})
		must(err)
	}
	for i := range hosts {
		_, _, err = s.EnrollHost(ctx, store.HostSpec{
			Name: fmt.Sprint("host", i), Region: "fra", Key: mesh.Key{1, byte(i)}, TLSKey: fmt.Sprint("tls", i), NAT: true,
		}, store.TokenUse{ID: "hosts", Hash: secret})
		must(err)
	}
	running, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(running) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	select {
	case <-s.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("the mirror is not ready")
	}
	return s
}

func (b *allocBench) name() string {
	b.names.Lock()
	defer b.names.Unlock()
	b.drawn++
	return fmt.Sprint("m", b.drawn)
}

// allocate is one named machine.
func (b *allocBench) allocate(place func(int) (string, string)) func(int) error {
	return func(caller int) error {
		org, host := place(caller)
		_, _, err := b.store.CreateMachine(context.Background(), "host/"+host, store.MachineSpec{
			Org: org, App: "web", ID: b.name(), Host: host, Stable: true, Meta: map[string]string{"version": "1.2.3"},
		})
		return err
	}
}

// bare creates a key that is not there, as long as a machine's record.
func (b *allocBench) bare(int) error {
	key := "/bare/machines/org0/" + b.name()
	r, err := b.client.Txn(context.Background()).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, strings.Repeat("x", 260))).Commit()
	if err == nil && !r.Succeeded {
		err = errors.New("the key is there")
	}
	return err
}

// allocCost is what a round took: time, and that of processors, etcd's included.
type allocCost struct{ took, cpu time.Duration }

func cpuTime() time.Duration {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// round has callers do count things in all.
func (b *allocBench) round(callers, count int, do func(caller int) error) allocCost {
	b.t.Helper()
	var all sync.WaitGroup
	began, before := time.Now(), cpuTime()
	for i := range callers {
		all.Go(func() {
			for range count / callers {
				if err := do(i); err != nil {
					b.t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	return allocCost{time.Since(began), cpuTime() - before}
}

// inTurns returns the medians of two kinds of rounds, after one of each that does
// not count.
func (b *allocBench) inTurns(one, other func() allocCost) (allocCost, allocCost) {
	var ones, others []allocCost
	for i := range allocRounds + 1 {
		x, y := one(), other()
		if i > 0 {
			ones, others = append(ones, x), append(others, y)
		}
	}
	less := func(a, b allocCost) int { return cmp.Compare(a.took, b.took) }
	slices.SortFunc(ones, less)
	slices.SortFunc(others, less)
	return ones[allocRounds/2], others[allocRounds/2]
}

// hold fills the first org's space at the first host up to n addresses, by writing
// what as many machines would have left.
func (b *allocBench) hold(n int) {
	b.t.Helper()
	st := b.store.State()
	plan := st.Mesh.Plan
	org, _ := st.Orgs.Get("org0")
	host, _ := st.Hosts.Get("host0")
	at := st.Count("machines", "org0")
	for from := at + 1; from <= n; from += 100 {
		to := min(from+99, n)
		ops := []clientv3.Op{clientv3.OpPut(fmt.Sprintf("/weft/next/slots/%d/%d", org.Network, host.Number), fmt.Sprint(to+1))}
		for slot := from; slot <= to; slot++ {
			m := mesh.Machine{
				Org: "org0", ID: fmt.Sprint("held", slot), App: "web", Host: "host0", Stable: true, State: mesh.StateStarted,
				Endpoint: plan.Endpoint(org.Network, host.Position(), uint16(slot)),
			}
			text, err := json.Marshal(m)
			if err != nil {
				b.t.Fatal(err)
			}
			ops = append(ops, clientv3.OpPut("/weft/machines/org0/"+m.ID, string(text)))
		}
		r, err := b.client.Txn(b.t.Context()).Then(ops...).Commit()
		if err != nil {
			b.t.Fatal(err)
		}
		if to == n {
			ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
			defer cancel()
			if err := b.store.Wait(ctx, r.Header.Revision); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}
