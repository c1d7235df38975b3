package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// Two controllers, eight callers each, change few things at once, so that most
// changes meet another one. Whatever the order was, what is left holds together.
func TestWhatIsLeftHoldsTogether(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{SlotRest: time.Nanosecond, HostRest: time.Nanosecond, AddressRest: time.Millisecond})
	stores := []*Store{run(t, one), run(t, again(t, one))}
	joining := token(t, one, mesh.Token{ID: "joining", Kind: mesh.KindHost, Orgs: []string{"all"}, Uses: 100000})
	ctx := t.Context()

	var busy sync.WaitGroup
	for w := range 16 {
		s, r := stores[w%2], rand.New(rand.NewPCG(1, uint64(w)))
		pick := func(names ...string) string { return names[r.IntN(len(names))] }
		busy.Go(func() {
			for i := range 60 {
				org, host, id := pick("a", "ab"), pick("h", "h1", "h2"), pick("1", "2", "3")
				var err error
				switch r.IntN(16) {
				case 0, 1:
					_, _, err = s.CreateOrg(ctx, "", org)
				case 2:
					_, err = s.RemoveOrg(ctx, "", org)
				case 3, 4:
					spec := hostSpec(host)
					spec.Region = pick("fra", "nrt")
					_, _, err = s.EnrollHost(ctx, spec, joining)
				case 5:
					_, err = s.RemoveHost(ctx, "", host)
				case 6, 7:
					_, _, err = s.CreateMachine(ctx, "", MachineSpec{Org: org, App: "web", ID: id, Host: host})
				case 8:
					_, err = s.RemoveMachine(ctx, "", MachineRef{Org: org, ID: id})
				case 9:
					_, _, err = s.CreateClient(ctx, "", ClientSpec{Org: org, Name: id, Key: key(org + "/" + id), TLSKey: org + "/" + id, Gateway: pick("", host)})
				case 10:
					if i%2 == 0 {
						_, err = s.RemoveClient(ctx, "", org, id)
					} else {
						_, _, err = s.SetGateway(ctx, "", org, id, host)
					}
				case 12:
					_, _, err = s.CreateMachine(ctx, "", MachineSpec{Org: org, App: "web", ID: id, Host: host, Stable: true, Move: i%2 == 0})
				case 13:
					var m mesh.Machine
					if m, _, err = s.CreateMachine(ctx, "", MachineSpec{Org: org, App: "web", ID: id, Host: host, Stable: true, Move: true}); err == nil {
						_, _, err = s.MoveMachine(ctx, "", MachineRef{Org: org, ID: id}, host, m.Generation)
					}
				case 14:
					_, err = s.CancelMove(ctx, "", MachineRef{Org: org, ID: id}, host)
				case 15:
					if err = s.FreeReservations(ctx); i%2 == 0 {
						held := one.plan().Endpoint(uint64(1+r.IntN(4)), ipam.Host{Region: 1, Number: uint32(1 + r.IntN(3))}, uint16(1+r.IntN(5)))
						_, _, err = s.CreateMachine(ctx, "", MachineSpec{Org: org, App: "web", ID: id, Host: host, Stable: true, Endpoint: held})
					}
				case 11:
					switch i % 3 {
					case 0:
						_, err = s.RemoveApp(ctx, "", org, "web")
					case 1:
						_, err = s.RemoveRegion(ctx, "", "nrt")
					case 2:
						_, _, err = s.CreateRegion(ctx, "", "nrt", nil)
					}
				}
				if err != nil && !errors.Is(err, ErrExists) && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConflict) {
					t.Error(err)
				}
			}
		})
	}
	busy.Wait()
	eventually(t, one, "removals are complete", func(state mesh.State) bool {
		for _, o := range state.Orgs.All() {
			if o.Tombstone {
				return false
			}
		}
		return len(keysBelow(t, one, keyRemoving)) == 0
	})
	for _, s := range stores {
		sameAsFresh(t, s)
	}
	holdsTogether(t, one, fresh(t, one))
}

// holdsTogether checks what must be true between objects.
func holdsTogether(t testing.TB, s *Store, state mesh.State) {
	t.Helper()
	plan := state.Mesh.Plan
	endpoints, numbers := map[string]string{}, map[uint32]string{}
	var keys []string
	once := func(m map[string]string, what, by string) {
		if other, taken := m[what]; taken {
			t.Errorf("%s is %s's and %s's", what, other, by)
		}
		m[what] = by
	}
	for name, h := range state.Hosts.All() {
		if other, taken := numbers[h.Number]; taken {
			t.Errorf("hosts %s and %s have number %d", other, name, h.Number)
		}
		numbers[h.Number] = name
		if r, ok := state.Regions.Get(h.Region); !ok || r.Number != h.RegionNumber {
			t.Errorf("host %s is in region %s, which is not there or another one", name, h.Region)
		}
		keys = append(keys, wireguardKey(h.Key), tlsKey(h.TLSKey))
	}
	for k, m := range state.Machines.All() {
		once(endpoints, m.Endpoint.String(), "machine "+k)
		o, orgThere := state.Orgs.Get(m.Org)
		if p, _ := plan.Parts(m.Endpoint.Addr()); !orgThere || p.Network != o.Network {
			t.Errorf("machine %s has %s, not of its org's network %d", k, m.Endpoint, o.Network)
		}
		h, hostThere := state.Hosts.Get(m.Host)
		if p, _ := plan.Parts(m.Endpoint.Addr()); !hostThere || p.Host.Number != h.Number && !m.Stable || !h.MayCarry(m.Org) {
			t.Errorf("machine %s is on host %s, which is not there or may not have it", k, m.Host)
		}
		if m.Next != "" && (m.Next == m.Host || !m.Stable || !state.Hosts.Has(m.Next)) {
			t.Errorf("machine %s on host %s (stable %t) is about to move to %s", k, m.Host, m.Stable, m.Next)
		}
		if !state.Apps.Has(m.Org + "/" + m.App) {
			t.Errorf("machine %s is of app %s, which is not there", k, m.App)
		}
	}
	for k, c := range state.Clients.All() {
		once(endpoints, c.Endpoint.String(), "client "+k)
		if !state.Orgs.Has(c.Org) || c.Gateway != "" && !state.Hosts.Has(c.Gateway) {
			t.Errorf("client %s of org %s at gateway %s: one is not there", k, c.Org, c.Gateway)
		}
		if keys = append(keys, wireguardKey(c.Key)); c.TLSKey != "" {
			keys = append(keys, tlsKey(c.TLSKey))
		}
	}
	for k, r := range state.Reserved.All() {
		once(endpoints, r.Endpoint.String(), "reserved for "+k)
		o, orgThere := state.Orgs.Get(r.Org)
		if p, _ := plan.Parts(r.Endpoint.Addr()); !orgThere || p.Network != o.Network {
			t.Errorf("%s is kept for %s, not of its org's network %d", r.Endpoint, k, o.Network)
		}
	}
	slices.Sort(keys)
	if got := keysBelow(t, s, "keys/"); !slices.Equal(got, keys) {
		t.Errorf("keys that are taken: %q, of nodes: %q", got, keys)
	}
	// What rests is not in use, and does not rest twice. The region counts for nothing:
	// a host's number is unique in the mesh.
	places := map[string]string{}
	for e, by := range endpoints {
		p, _ := plan.Parts(netip.MustParsePrefix(e).Addr())
		once(places, fmt.Sprintf("%d/%d/%d", p.Network, p.Host.Number, p.Slot), by)
	}
	for _, k := range keysBelow(t, s, "next/resting/") {
		var network uint64
		var number, slot uint32
		var due int64
		if n, _ := fmt.Sscanf(k, "next/resting/slots/%d/%d/%d-%d", &network, &number, &due, &slot); n == 4 {
			once(places, fmt.Sprintf("%d/%d/%d", network, number, slot), k)
		}
		if n, _ := fmt.Sscanf(k, "next/resting/hosts/%d-%d", &due, &number); n == 2 {
			if h, used := numbers[number]; used {
				t.Errorf("%s rests and is host %s's", k, h)
			}
		}
	}
	operators := 0
	for k, o := range state.Operators.All() {
		if o.Role == mesh.RoleOperator {
			operators++
		}
		if o.Org != "" && !state.Orgs.Has(o.Org) {
			t.Errorf("operator %s is of an org that is gone", k)
		}
	}
	if operators == 0 {
		t.Error("nobody can administer the mesh")
	}
	for k, x := range state.Tokens.All() {
		for _, o := range append(x.Orgs, x.Org) {
			if o != "" && o != mesh.AllOrgs && !state.Orgs.Has(o) {
				t.Errorf("token %s is for org %s, which is gone", k, o)
			}
		}
	}
	regions := map[uint8]string{}
	for k, r := range state.Regions.All() {
		if other, taken := regions[r.Number]; taken {
			t.Errorf("regions %s and %s have number %d", other, k, r.Number)
		}
		regions[r.Number] = k
	}
	for k := range state.Apps.All() {
		if org, _, _ := strings.Cut(k, "/"); !state.Orgs.Has(org) {
			t.Errorf("app %s is left of an org that is gone", k)
		}
	}
}

// A token with many uses, spent by many at once, at two controllers: each use
// counts once.
func TestUsesAreCounted(t *testing.T) {
	t.Parallel()
	one := newMesh(t, Config{})
	stores := []*Store{one, again(t, one)}
	use := token(t, one, mesh.Token{ID: "five", Kind: mesh.KindHost, Orgs: []string{"all"}, Uses: 5})
	var mu sync.Mutex
	in := 0
	together(12, func(i int) {
		_, _, err := stores[i%2].EnrollHost(context.Background(), hostSpec(fmt.Sprint("h", i)), use)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			in++
		} else if !errors.Is(err, ErrToken) {
			t.Error(err)
		}
	})
	if in != 5 {
		t.Errorf("%d got in with 5 uses", in)
	}
}
