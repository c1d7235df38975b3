package store

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// restingLimit bounds how many numbers that are due are looked at: the lowest of
// those that have rested longest is taken.
const restingLimit = 64

// numbers is one space of numbers from 1 to max. It is kept as a counter, the
// next number that was never given, and a key for each number that was given back.
// The cost of taking one does not depend on how many are in use.
type numbers struct {
	what    func() string // for errors
	hint    string        // what to do when there are none left
	counter string        // key
	resting string        // key prefix; "" if none is ever given back
	max     uint64
	usable  func(number uint64, since int64) bool      // of one that was given back at revision since; nil: any
	first   func(context.Context, *tx) (uint64, error) // where it begins without a counter; nil: at 1
}

func (s *Store) networks(plan ipam.Plan) numbers {
	return numbers{what: func() string { return "network" }, hint: "a network is never used again; a mesh of a shorter prefix has more: weft-controller run --prefix", counter: keyNextNetwork, max: plan.MaxNetwork()}
}

func (s *Store) hostNumbers() numbers {
	return numbers{what: func() string { return "host number" }, hint: "the numbers of hosts that were removed can be used again after a while", counter: keyNextHost, resting: keyRestingHosts, max: ipam.MaxHost, usable: s.nothingHomed}
}

func slots(network uint64, host uint32) numbers {
	return numbers{
		what:    func() string { return fmt.Sprintf("address of network %d at host %d", network, host) },
		hint:    "run it on another host; the addresses of machines that were removed can be used again after a while",
		counter: nextSlotKey(network, host), resting: restingSlots(network, host), max: ipam.MaxSlot,
		first: func(ctx context.Context, t *tx) (uint64, error) { return t.firstSlot(ctx, network, host) },
	}
}

// take gives a number: the lowest one that has rested, else the next one. The
// caller holds a lock (tx.alone) named for the space.
func (t *tx) take(ctx context.Context, n numbers) (uint64, error) {
	due := restingKey(n.resting, t.s.now().Add(time.Second), 0) // whole seconds, this one included
	var counter []*mvccpb.KeyValue
	if n.resting != "" && t.recalled(n.counter) && t.recalledEmpty(n.resting, due) {
		counter = []*mvccpb.KeyValue{t.seen[n.counter]}
	} else {
		ops := []clientv3.Op{clientv3.OpGet(t.s.root + n.counter)}
		if n.resting != "" {
			ops = append(ops, clientv3.OpGet(t.s.root+n.resting,
				clientv3.WithRange(t.s.root+due), clientv3.WithLimit(restingLimit), clientv3.WithKeysOnly()))
		}
		r, err := t.read(ctx, ops...)
		if err != nil {
			return 0, err
		}
		if n.resting != "" {
			if number, key, kv := t.lowest(n, r[1].Kvs); key != "" {
				t.s.recall.forget(n.resting)
				t.seen[key] = kv
				t.delete(key)
				return number, nil
			}
			t.s.recall.set(n.resting, nil, nil)
			if len(r[0].Kvs) > 0 {
				t.s.recall.set(n.counter, r[0].Kvs[0], nil)
			}
		}
		counter = r[0].Kvs
	}
	next, err := t.next(ctx, n, counter)
	if err != nil {
		return 0, err
	}
	if next == 0 || next > n.max {
		return 0, mesh.WithHint(fmt.Errorf("%s: %w (%d were given)", n.what(), ErrFull, n.max), "%s", n.hint)
	}
	return next, t.put(n.counter, next+1)
}

// next is the number that a counter, as read, gives next.
func (t *tx) next(ctx context.Context, n numbers, counter []*mvccpb.KeyValue) (uint64, error) {
	next := uint64(1)
	t.seen[n.counter] = nil
	if len(counter) == 0 || counter[0] == nil {
		if n.first == nil {
			return next, nil
		}
		return n.first(ctx, t)
	}
	t.seen[n.counter] = counter[0]
	return next, unmarshal(n.counter, counter[0].Value, &next)
}

// lowest picks the lowest number that can be used of those that rest.
func (t *tx) lowest(n numbers, kvs []*mvccpb.KeyValue) (number uint64, key string, found *mvccpb.KeyValue) {
	for _, kv := range kvs {
		k, x := t.resting(n, kv)
		if x == 0 || n.usable != nil && !n.usable(x, kv.ModRevision) {
			continue
		}
		if key == "" || x < number {
			number, key, found = x, k, kv
		}
	}
	return number, key, found
}

// resting returns the key of a number that rests, and the number; 0 if it is none.
func (t *tx) resting(n numbers, kv *mvccpb.KeyValue) (key string, number uint64) {
	key = strings.TrimPrefix(string(kv.Key), t.s.root)
	_, text, _ := strings.Cut(strings.TrimPrefix(key, n.resting), "-")
	x, err := strconv.ParseUint(text, 10, 64)
	if err != nil || x > n.max {
		return key, 0
	}
	return key, x
}

// giveSlot lets the slot of an endpoint rest.
func (t *tx) giveSlot(parts ipam.Parts) error {
	due := t.s.now().Add(t.s.config.SlotRest)
	return t.put(restingKey(restingSlots(parts.Network, parts.Host.Number), due, uint64(parts.Slot)), struct{}{})
}

// giveHost lets a host's number rest.
func (t *tx) giveHost(number uint32) error {
	return t.put(restingKey(keyRestingHosts, t.s.now().Add(t.s.config.HostRest), uint64(number)), struct{}{})
}

// nothingHomed reports that no address, in use or kept for a name, is homed at the
// number of a host that was removed at revision since. It asks the mirror: nothing new can be homed at a host
// that is gone, so a mirror of any time after that can only be too careful. Without
// such a mirror the answer is no, and the number rests on.
func (s *Store) nothingHomed(number uint64, since int64) bool {
	state := s.State()
	if state.Revision.Revision < since {
		return false
	}
	at := func(endpoint netip.Prefix) bool {
		parts, _ := state.Mesh.Plan.Parts(endpoint.Addr())
		return uint64(parts.Host.Number) == number
	}
	for _, m := range state.Machines.All() {
		if at(m.Endpoint) {
			return false
		}
	}
	for _, c := range state.Clients.All() {
		if at(c.Endpoint) {
			return false
		}
	}
	for _, r := range state.Reserved.All() {
		if at(r.Endpoint) {
			return false
		}
	}
	return true
}
