package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// counting notes the most operations in one transaction, and ends by dying at the
// transaction with number last.
type counting struct {
	clientv3.KV
	most, done atomic.Int64
	last       int64
	die        context.CancelFunc
}

func (c *counting) Txn(ctx context.Context) clientv3.Txn {
	return &countingTxn{Txn: c.KV.Txn(ctx), kv: c}
}

type countingTxn struct {
	clientv3.Txn
	kv       *counting
	ops, ifs int
}

func (t *countingTxn) If(c ...clientv3.Cmp) clientv3.Txn {
	t.ifs += len(c)
	t.Txn = t.Txn.If(c...)
	return t
}

func (t *countingTxn) Then(o ...clientv3.Op) clientv3.Txn {
	t.ops += len(o)
	t.Txn = t.Txn.Then(o...)
	return t
}

func (t *countingTxn) Commit() (*clientv3.TxnResponse, error) {
	n := int64(max(t.ops, t.ifs))
	for most := t.kv.most.Load(); n > most && !t.kv.most.CompareAndSwap(most, n); most = t.kv.most.Load() {
	}
	if t.kv.last > 0 && t.kv.done.Add(1) >= t.kv.last {
		t.kv.die()
		return nil, errDied
	}
	return t.Txn.Commit()
}

// populate puts an org's objects, many in one transaction: n machines, and of all
// else in proportion.
func populate(t testing.TB, s *Store, o mesh.Org, h mesh.Host, n int) {
	t.Helper()
	var ops []clientv3.Op
	flush := func() {
		if len(ops) > 0 {
			if _, err := s.commit(t.Context(), nil, ops); err != nil {
				t.Fatal(err)
			}
		}
		ops = nil
	}
	put := func(key string, v any) {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if ops = append(ops, clientv3.OpPut(s.root+key, string(text))); len(ops) == maxOps {
			flush()
		}
	}
	slot := uint16(0)
	endpoint := func() mesh.Machine {
		slot++
		return mesh.Machine{Endpoint: s.plan().Endpoint(o.Network, h.Position(), slot)}
	}
	for i := range n {
		m := endpoint()
		m.Org, m.ID, m.App, m.Host, m.State = o.Name, fmt.Sprint("m", i), fmt.Sprint("app", i%100), h.Name, mesh.StateStarted
		put(machineKey(o.Name, m.ID), m)
		if i < 100 {
			put(appKey(o.Name, m.App), mesh.App{Org: o.Name, Name: m.App})
		}
		if i%4 == 0 {
			c := mesh.Client{Org: o.Name, Name: fmt.Sprint("c", i), Key: key(fmt.Sprint(o.Name, "/", i)), TLSKey: fmt.Sprint(o.Name, "/", i), Endpoint: endpoint().Endpoint, Home: h.Name, Gateway: h.Name}
			put(clientKey(o.Name, c.Name), c)
			put(wireguardKey(c.Key), "client/"+o.Name+"/"+c.Name)
			put(tlsKey(c.TLSKey), "client/"+o.Name+"/"+c.Name)
		}
		if i%5 == 0 {
			r := mesh.Reservation{Org: o.Name, Kind: mesh.KindMachine, Name: fmt.Sprint("kept", i), Endpoint: endpoint().Endpoint, Until: s.now().Add(time.Hour)}
			put(reservationKey(o.Name, r.Kind, r.Name), r)
		}
		if i%10 == 0 {
			slot++
			put(restingKey(restingSlots(o.Network, h.Number), s.now(), uint64(slot)), struct{}{})
			put(tokenKey(fmt.Sprint("t", o.Network, "-", i)), mesh.Token{ID: fmt.Sprint("t", o.Network, "-", i), Hash: hash("x"), Kind: mesh.KindClient, Org: o.Name, Uses: 1, Expires: s.now().Add(time.Hour)})
		}
	}
	put(nextSlotKey(o.Network, h.Number), uint64(slot)+1)
	flush()
}

// mine are the stored keys and values that have to do with an org, but for the
// audit log: under its name, its network, or naming it.
func mine(t testing.TB, s *Store, o mesh.Org) (out []string) {
	t.Helper()
	for k, v := range stored(t, s) {
		if strings.HasPrefix(k, keyAudit) {
			continue
		}
		parts := strings.Split(k, "/")
		if slices.Contains(parts[1:], o.Name) || strings.HasPrefix(k, fmt.Sprintf("next/slots/%d/", o.Network)) ||
			strings.HasPrefix(k, fmt.Sprintf("next/resting/slots/%d/", o.Network)) || strings.Contains(v, fmt.Sprintf("/%s/", o.Name)) ||
			strings.Contains(v, fmt.Sprintf("%q", o.Name)) {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

// An org of thousands goes: its host sees nothing of it within moments, whoever
// cleans up is killed in the middle, another completes it, no transaction is larger
// than etcd takes, its neighbours by name keep all they have, and its numbers are
// never given again.
func TestRemovalOfALargeOrg(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{AddressRest: time.Hour})
	h := host(t, s, "h")
	const machines = 3000
	orgs := map[string]mesh.Org{}
	for _, name := range []string{"ab", "a", "a-b", "twenty"} {
		if name == "twenty" { // of a number that begins as that of a does, which is 2
			if _, err := s.client.Put(t.Context(), s.root+keyNextNetwork, "20"); err != nil {
				t.Fatal(err)
			}
		}
		orgs[name] = org(t, s, name)
		n := 40
		if name == "a" {
			n = machines
		}
		populate(t, s, orgs[name], h, n)
	}
	if a, twenty := orgs["a"].Network, orgs["twenty"].Network; a != 2 || twenty != 20 {
		t.Fatalf("the networks are %d and %d", a, twenty)
	}
	before := map[string][]string{}
	for _, name := range []string{"ab", "a-b", "twenty"} {
		before[name] = mine(t, s, orgs[name])
	}
	if n := len(mine(t, s, orgs["a"])); n < 2*machines {
		t.Fatalf("only %d keys are of the org", n)
	}
	dying := again(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := &counting{KV: s.client.KV, last: 40, die: cancel}
	dying.client = withKV(s.client, &faultyKV{KV: first})

	// Another controller, which shows the host its view, and is to complete it.
	other := again(t, s)
	second := &counting{KV: s.client.KV}
	other.client = withKV(s.client, &faultyKV{KV: second})
	run(t, other)
	view := func(state mesh.State) mesh.View {
		v, _ := state.View(mesh.Node{Kind: mesh.KindHost, Name: "h"}, mesh.Deployment{})
		return v
	}
	if n := len(view(other.State()).Machines); n != machines+120 {
		t.Fatalf("the host sees %d machines", n)
	}
	began := time.Now()
	dying.RemoveOrg(ctx, "test", "a") // it dies
	eventually(t, other, "the host sees nothing of it", func(state mesh.State) bool {
		v := view(state)
		return len(v.Machines) == 120 && !slices.ContainsFunc(v.Orgs, func(o mesh.Org) bool { return o.Name == "a" })
	})
	cut := time.Since(began)
	if first.done.Load() < first.last {
		t.Error("it did not die")
	}
	if n := len(mine(t, s, orgs["a"])); n < machines {
		t.Errorf("only %d keys are left by the one that died: it should have died earlier", n)
	}
	other.cleaning <- struct{}{} // Run looks every few seconds
	eventually(t, other, "it is gone", func(state mesh.State) bool { return !state.Orgs.Has("a") })
	t.Logf("out of the view after %s, gone after %s", cut.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))

	if left := mine(t, s, orgs["a"]); len(left) > 0 {
		t.Errorf("%d keys are left, such as %q", len(left), left[0])
	}
	for name, was := range before {
		if diff := cmp.Diff(was, mine(t, s, orgs[name])); diff != "" {
			t.Errorf("%s (-before +after):\n%s", name, diff)
		}
	}
	if most := max(first.most.Load(), second.most.Load()); most > 128 {
		t.Errorf("a transaction of %d operations", most)
	}
	next := org(t, s, "a")
	if next.Network == orgs["a"].Network {
		t.Errorf("network %d is given again", next.Network)
	}
	m := machine(t, s, "a", "web", "m0", "h")
	if parts, _ := s.plan().Parts(m.Address()); parts.Network != next.Network {
		t.Errorf("a machine of the later org is at %s", ipam.MainAddr(m.Endpoint))
	}
}
