package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weftmesh/weft/dns"
)

// Meshes of many sizes: orgs of at most 10,000 machines, ten of them in an app.
const (
	orgSize = 10_000
	appSize = 10
)

var sizes = []int{1_000, 10_000, 100_000}

// large is a mesh of n machines.
func large(n int) dns.Data {
	d := data()
	d.Orgs = nil
	for first := 0; first < n; first += orgSize {
		network := fmt.Sprintf("fd12:3456:789a:%x", 1+first/orgSize)
		o := dns.Org{Name: fmt.Sprintf("o%d", first/orgSize), Prefix: netip.MustParsePrefix(network + "::/64"), Resolver: netip.MustParseAddr(network + "::3")}
		for i := range min(orgSize, n-first) {
			o.Machines = append(o.Machines, largeMachine(network, i))
		}
		d.Orgs = append(d.Orgs, o)
	}
	return d
}

func largeMachine(network string, i int) dns.Machine {
	return dns.Machine{
		ID: fmt.Sprintf("machine-%05d", i), App: fmt.Sprintf("app%d", i/appSize), Host: fmt.Sprintf("h%d", i%9), Group: "web", Started: true, Healthy: true,
		Addr: netip.MustParseAddr(fmt.Sprintf("%s:100:%x:%x:2", network, 1+i%9, 1+i)),
	}
}

// change stops or starts a machine of a mesh of n.
func change(n, i int, started bool) dns.Delta {
	org := i % n / orgSize
	m := largeMachine(fmt.Sprintf("fd12:3456:789a:%x", 1+org), i%orgSize%n)
	m.Started = started
	return dns.Delta{Orgs: []dns.OrgDelta{{Name: fmt.Sprintf("o%d", org), Machines: []dns.Machine{m}}}}
}

// heap builds the zone of 100,000 machines and prints what it holds.
func heap() {
	n := sizes[len(sizes)-1]
	before := held()
	zone := dns.NewZone(large(n))
	used := held() - before
	runtime.KeepAlive(zone)
	figure("dns_heap_100000", float64(used)/1e6, "MB", "")
	figure("dns_heap_per_machine", float64(used)/float64(n), "bytes", "")
}

func held() int64 {
	var m runtime.MemStats
	for range 2 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// changes measures by the size of the mesh what one change costs: from the change to
// an answer through a socket that is another one, in processor time (of all that takes
// part: the zone, the collector, the server, the one who asks, the kernel) and by the
// clock; and of that the zone's part alone, with the collector's.
func changes(ctx context.Context, rounds int) error {
	const each = 20_000
	part, cost, took := map[int][]float64{}, map[int][]float64{}, map[int][]float64{}
	for range rounds {
		for _, n := range sizes {
			zone := new(atomic.Pointer[dns.Zone])
			zone.Store(dns.NewZone(large(n)))
			deltas := make([]dns.Delta, each) // made before: only their use counts
			for i := range deltas {
				deltas[i] = change(n, rand.IntN(n), i%2 == 0)
			}
			runtime.GC()
			start := processorTime()
			for _, d := range deltas {
				zone.Store(zone.Load().With(d))
			}
			part[n] = append(part[n], float64(processorTime()-start)/each)
			c, t, err := untilAnswered(ctx, n, zone)
			if err != nil {
				return err
			}
			cost[n], took[n] = append(cost[n], c), append(took[n], t)
		}
	}
	for _, n := range sizes {
		figure(fmt.Sprintf("dns_change_zone_cpu_%d", n), middle(part[n])/1e3, "us", "")
		figure(fmt.Sprintf("dns_change_cpu_%d", n), middle(cost[n])/1e3, "us", "")
		figure(fmt.Sprintf("dns_change_to_answer_%d", n), middle(took[n])/1e3, "us", "")
	}
	small, big := sizes[0], sizes[len(sizes)-1]
	figure("dns_change_cpu_large_vs_small", middle(cost[big])/middle(cost[small]), "ratio", "<= 1.5")
	figure("dns_change_to_answer_large_vs_small", middle(took[big])/middle(took[small]), "ratio", "<= 1.5")
	return nil
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// untilAnswered stops and starts machines, and returns what a change costs until the
// answer over UDP is the other one: processor time, and the middle of the times by the
// clock.
func untilAnswered(ctx context.Context, n int, zone *atomic.Pointer[dns.Zone]) (cost, took float64, err error) {
	const each = 2_000
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended, err := serveZone(ctx, zone.Load)
	if err != nil {
		return 0, 0, err
	}
	defer func() { cancel(); <-ended }()
	s, err := newAsker()
	if err != nil {
		return 0, 0, err
	}
	defer s.close()
	var all []float64
	for range each / 2 {
		i := rand.IntN(min(n, orgSize)) // of the first org, which the client is in
		name := fmt.Sprintf("machine-%05d.vm.app%d.internal.", i, i/appSize)
		for _, started := range []bool{false, true} {
			if _, err := s.answers(name); err != nil { // as it was, and kept packed
				return 0, 0, err
			}
			d := change(n, i, started)
			start, before := time.Now(), processorTime()
			zone.Store(zone.Load().With(d))
			for {
				count, err := s.answers(name)
				if err != nil {
					return 0, 0, err
				}
				if (count == 1) == started {
					break
				}
			}
			all = append(all, float64(time.Since(start)))
			cost += float64(processorTime()-before) / each
		}
	}
	return cost, middle(all), nil
}
