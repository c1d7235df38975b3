package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// together calls f for 0 to n-1 at once.
func together(n int, f func(i int)) {
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		all.Go(func() { <-begin; f(i) })
	}
	close(begin)
	all.Wait()
}

// parts takes an endpoint's address apart.
func parts(t testing.TB, endpoint netip.Prefix) ipam.Parts {
	t.Helper()
	p, ok := testPlan(t).Parts(endpoint.Addr())
	if !ok {
		t.Fatalf("%s is not of the mesh", endpoint)
	}
	return p
}

func slot(t testing.TB, m mesh.Machine) uint16 { return parts(t, m.Endpoint).Slot }

// unique collects what must not be given twice.
type unique struct {
	mu   sync.Mutex
	seen map[uint64]string
}

func (u *unique) add(t testing.TB, n uint64, by string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.seen == nil {
		u.seen = map[uint64]string{}
	}
	if other, taken := u.seen[n]; taken {
		t.Errorf("%d was given to %s and to %s", n, other, by)
	}
	u.seen[n] = by
}

// Fly.io 2026-04, Miren 2026-03: one address was given twice. Here two
// controllers with 32 callers each allocate in the same spaces at the same time.
func TestFly202604NoNumberIsGivenTwice(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{})
	stores := []*Store{one, again(t, one)}
	org(t, one, "acme")
	host(t, one, "fra1")
	joining := token(t, one, mesh.Token{ID: "many", Kind: mesh.KindHost, Orgs: []string{"all"}, Uses: 64})
	laptops := token(t, one, mesh.Token{ID: "laptops", Kind: mesh.KindClient, Org: "acme", Uses: 64})

	var networks, hosts, slots unique
	const n = 64
	together(4*n, func(i int) {
		s, name := stores[i%2], fmt.Sprint("x", i)
		switch i / n {
		case 0:
			m, _, err := s.CreateMachine(t.Context(), "test", MachineSpec{Org: "acme", App: "web", ID: name, Host: "fra1"})
			if err != nil {
				t.Error(err)
				return
			}
			slots.add(t, uint64(slot(t, m)), "machine "+name)
		case 1:
			o, _, err := s.CreateOrg(t.Context(), "test", name)
			if err != nil {
				t.Error(err)
				return
			}
			networks.add(t, o.Network, name)
		case 2:
			h, _, err := s.EnrollHost(t.Context(), hostSpec(name), joining)
			if err != nil {
				t.Error(err)
				return
			}
			hosts.add(t, uint64(h.Number), name)
		case 3:
			c, _, err := s.EnrollClient(t.Context(), ClientSpec{Name: name, Key: key(name), TLSKey: name, Gateway: "fra1"}, laptops)
			if err != nil {
				t.Error(err)
				return
			}
			slots.add(t, uint64(parts(t, c.Endpoint).Slot), "client "+name)
		}
	})
	// Small and sequential: nothing was left out.
	for _, space := range []struct {
		name  string
		got   *unique
		first uint64
		count int
	}{{"networks", &networks, 2, n}, {"hosts", &hosts, 2, n}, {"slots", &slots, 1, 2 * n}} {
		for i := range space.count {
			if _, ok := space.got.seen[space.first+uint64(i)]; !ok {
				t.Errorf("%s: %d was not given", space.name, space.first+uint64(i))
			}
		}
	}
}

func TestSlotsRestAnHourAndTheLowestComesFirst(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := run(t, newMesh(t, Config{Now: c.Now, AddressRest: time.Nanosecond}))
	org(t, s, "acme")
	host(t, s, "fra1")
	for i := range 5 {
		if m := machine(t, s, "acme", "web", fmt.Sprint("m", i+1), "fra1"); int(slot(t, m)) != i+1 {
			t.Fatalf("machine %d has slot %d", i+1, slot(t, m))
		}
	}
	client(t, s, "acme", "laptop", "fra1") // slot 6
	remove := func(id string) {
		t.Helper()
		done(s.RemoveMachine(t.Context(), "test", MachineRef{Org: "acme", ID: id}))(t)
	}
	remove("m4")
	c.add(10 * time.Minute)
	remove("m2")
	mirroredAt(t, s, done(s.RemoveClient(t.Context(), "test", "acme", "laptop"))(t))
	c.add(time.Nanosecond)
	if err := s.FreeReservations(t.Context()); err != nil { // it was kept for the client, and rests from now on
		t.Fatal(err)
	}
	next := func(want uint16) {
		t.Helper()
		m := machine(t, s, "acme", "web", "", "fra1")
		if got := slot(t, m); got != want {
			t.Errorf("slot %d, want %d", got, want)
		}
	}
	next(7)                             // all freed ones rest
	c.add(50*time.Minute - time.Second) //
	next(8)                             // to the second
	c.add(time.Second)                  // m4's hour is over
	next(4)                             //
	next(9)                             //
	c.add(5 * time.Minute)              //
	remove("m1")                        //
	c.add(time.Hour)                    // the others' too; the lowest came last
	next(1)                             //
	next(2)                             //
	next(6)                             // a client's slot is one like any other
	next(10)                            //
	if left := keysBelow(t, s, "next/resting/"); len(left) > 0 {
		t.Errorf("left resting: %q", left)
	}
}

func TestHostNumbersRest30DaysAndUntilNothingIsHomedThere(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := run(t, newMesh(t, Config{Now: c.Now}))
	org(t, s, "acme")
	host(t, s, "a")
	host(t, s, "b")
	host(t, s, "c")
	client(t, s, "acme", "laptop", "a") // homed at a for good
	done(s.RemoveHost(t.Context(), "test", "a"))(t)
	done(s.RemoveHost(t.Context(), "test", "b"))(t)
	next := func(name string, want uint32) {
		t.Helper()
		if h := host(t, s, name); h.Number != want {
			t.Errorf("host %s has number %d, want %d", name, h.Number, want)
		}
	}
	c.add(30*24*time.Hour - time.Second)
	next("d", 4)
	c.add(time.Second)
	next("e", 2) // b's; a's is the home of a client
	next("f", 5)
	rev := done(s.RemoveClient(t.Context(), "test", "acme", "laptop"))(t)
	mirroredAt(t, s, rev)
	next("g", 6) // the client's address is kept for it
	c.add(30 * 24 * time.Hour)
	if err := s.FreeReservations(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, s, "nothing is kept any more", func(state mesh.State) bool { return state.Reserved.Len() == 0 })
	next("i", 1)
}

func TestANumberSpaceEnds(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	o := org(t, s, "acme")
	h := host(t, s, "fra1")
	if _, err := s.client.Put(t.Context(), s.root+nextSlotKey(o.Network, h.Number), fmt.Sprint(ipam.MaxSlot)); err != nil {
		t.Fatal(err)
	}
	if m := machine(t, s, "acme", "web", "last", "fra1"); slot(t, m) != ipam.MaxSlot {
		t.Errorf("the last slot is %d", slot(t, m))
	}
	_, _, err := s.CreateMachine(t.Context(), "test", MachineSpec{Org: "acme", App: "web", ID: "over", Host: "fra1"})
	if !errors.Is(err, ErrFull) {
		t.Errorf("one more: %v", err)
	}
	if !strings.Contains(fmt.Sprint(err), "create machine acme/over: address of network 1 at host 1: none left (65535 were given)") {
		t.Errorf("the error: %v", err)
	}
}

// Whatever runs out says so, and what can be done.
func TestWhatRunsOutSaysSo(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	o := org(t, s, "acme")
	h := host(t, s, "h")
	for key, last := range map[string]uint64{
		keyNextNetwork: testPlan(t).MaxNetwork(), keyNextHost: ipam.MaxHost, nextSlotKey(o.Network, h.Number): ipam.MaxSlot,
	} {
		if _, err := s.client.Put(t.Context(), s.root+key, fmt.Sprint(last+1)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 253 {
		must(s.CreateRegion(t.Context(), "", fmt.Sprint("r", i), nil))(t)
	}
	spare := token(t, s, mesh.Token{ID: "spare", Kind: mesh.KindHost, Orgs: []string{"all"}})
	for _, tt := range []struct {
		err        error
		says, hint string
	}{
		{third(s.CreateOrg(t.Context(), "", "beta")), "create org beta: network: none left (65535 were given)", "a mesh of a shorter prefix has more: weft-controller run --prefix"},
		{third(s.EnrollHost(t.Context(), hostSpec("h2"), spare)), "enroll host h2: host number: none left (16777215 were given)", "can be used again after a while"},
		{third(s.CreateRegion(t.Context(), "", "mars", nil)), "create region mars: none left: region number", "weft region remove NAME"},
		{third(s.CreateClient(t.Context(), "", ClientSpec{Org: "acme", Name: "x", Key: key("x"), Gateway: "h"})), "address of network 1 at host 1: none left", "run it on another host"},
	} {
		if !errors.Is(tt.err, ErrFull) || !strings.Contains(fmt.Sprint(tt.err), tt.says) || !strings.Contains(mesh.HintOf(tt.err), tt.hint) {
			t.Errorf("%v, hint %q; want %q, hint %q", tt.err, mesh.HintOf(tt.err), tt.says, tt.hint)
		}
	}
	// The token was not spent on it.
	if tok, _, err := read[mesh.Token](t, s, tokenKey("spare")); err != nil || tok.Uses != 1 {
		t.Errorf("the token has %d uses left: %v", tok.Uses, err)
	}
}

func TestNetworksAreNeverUsedAgain(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := newMesh(t, Config{Now: c.Now})
	var got []uint64
	for range 3 {
		got = append(got, org(t, s, "acme").Network)
		done(s.RemoveOrg(t.Context(), "test", "acme"))(t)
		c.add(365 * 24 * time.Hour)
	}
	if !slices.Equal(got, []uint64{1, 2, 3}) {
		t.Errorf("networks %v, want 1 2 3", got)
	}
}

// BenchmarkCreateMachine: 64 callers on one org and host, and one caller.
func BenchmarkCreateMachine(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint("callers-", callers), func(b *testing.B) {
			s := newMesh(b, Config{})
			org(b, s, "acme")
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				name := fmt.Sprint("h", n)
				n++
				b.StopTimer()
				host(b, s, name)
				b.StartTimer()
				together(callers, func(i int) {
					if _, _, err := s.CreateMachine(context.Background(), "test", MachineSpec{Org: "acme", App: "web", Host: name}); err != nil {
						b.Error(err)
					}
				})
			}
			b.ReportMetric(float64(callers*b.N)/b.Elapsed().Seconds(), "machines/s")
		})
	}
}
