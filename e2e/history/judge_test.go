package history

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

var noon = time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)

// at makes op one that lasted from call to end, in seconds, while the clock stood
// at noon and as many seconds.
func at(call, end int, op Operation) Operation {
	op.Call, op.Return = time.Duration(call)*time.Second, time.Duration(end)*time.Second
	op.Before, op.After = noon.Add(op.Call), noon.Add(op.Return)
	if op.Result == "" {
		op.Result = OK
	}
	return op
}

func create(key string, o Object) Operation { return Operation{Action: Create, Key: key, Object: o} }
func remove(key string) Operation           { return Operation{Action: Remove, Key: key} }
func unknown(o Operation) Operation         { o.Result, o.Object = Unknown, Object{}; return o }
func with(o Operation, r Result) Operation  { o.Result, o.Object = r, Object{}; return o }
func rev(o Operation, floor, r int64) Operation {
	o.Floor, o.Revision, o.Exact = floor, r, o.Action != Read
	return o
}
func keeps(o Operation) Operation { o.Keeps = true; return o }
func node(o Operation, key string) Operation {
	o.Node = key
	return o
}
func by(o Operation, token string) Operation { o.Token = token; return o }

func read(state map[string]Object) Operation {
	return Operation{Action: Read, State: state, Current: true}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	rules := Rules{SlotRest: time.Minute, HostRest: time.Hour, AddressRest: 24 * time.Hour, Machines: map[string]int{"orgs/few": 1}}
	slot := func(s string) Object { return Object{Endpoint: s, Host: "h"} }
	base := []Operation{
		at(0, 1, create("orgs/a", Object{Number: 1})),
		at(0, 1, node(create("hosts/h", Object{Number: 1}), "kh")),
	}
	m1, m2 := create("machines/a/m1", slot("fd::1")), create("machines/a/m2", slot("fd::1"))
	other := create("machines/a/m1", slot("fd::2"))
	token := Operation{Action: Create, Key: "tokens/t", Uses: 1, Expires: noon.Add(time.Hour)}
	spend := func(host string) Operation {
		return by(node(create("hosts/"+host, Object{}), "k"+host), "tokens/t")
	}
	again := func(g uint64) Operation {
		return keeps(create("machines/a/m1", Object{Endpoint: "fd::1", Host: "h", Generation: g}))
	}
	whole := map[string]Object{"orgs/a": {Number: 1}, "hosts/h": {Number: 1}, "machines/a/m1": slot("fd::1")}
	without := map[string]Object{"orgs/a": {Number: 1}, "hosts/h": {Number: 1}}

	for _, tt := range []struct {
		name string
		ops  []Operation
		want []string // laws that are broken
	}{
		{"nothing", nil, nil},
		{"one machine", []Operation{at(2, 3, m1)}, nil},
		{"an address twice", []Operation{at(2, 3, m1), at(4, 5, m2)}, []string{LawAddress}},
		{"an address twice at once", []Operation{at(2, 5, m1), at(2, 5, m2)}, []string{LawAddress}},
		{"an address after its rest", []Operation{at(2, 3, m1), at(4, 5, remove(m1.Key)), at(70, 71, m2)}, nil},
		{"an address in its rest", []Operation{at(2, 3, m1), at(4, 5, remove(m1.Key)), at(50, 60, m2)}, []string{LawAddress}},
		{"an address before it is given back", []Operation{at(2, 3, m1), at(70, 71, m2), at(80, 81, remove(m1.Key))}, []string{LawAddress}},
		{"an address after a removal that nobody knows of", []Operation{at(2, 3, m1), at(4, 5, unknown(remove(m1.Key))), at(70, 71, m2)}, nil},
		{"an address after its host's removal", []Operation{at(2, 3, m1), at(4, 5, remove("hosts/h")), at(70, 71, create("machines/a/m2", Object{Endpoint: "fd::1"}))}, nil},
		{"an address of one that nobody knows to exist, and a read that does", []Operation{
			at(2, 3, unknown(m1)), at(4, 5, read(whole)), at(100, 101, m2)}, []string{LawAddress}},
		{"an address of one that nobody knows to exist", []Operation{at(2, 3, unknown(m1)), at(100, 101, m2)}, nil},
		{"two of one state have an address", []Operation{at(2, 3, Operation{Action: Read, State: map[string]Object{
			"machines/a/m1": slot("fd::1"), "clients/a/c": slot("fd::1")}})}, []string{LawSnapshot}},

		{"an org with more than it may have", []Operation{at(2, 3, Operation{Action: Read, State: map[string]Object{
			"machines/few/m1": slot("fd::1"), "machines/few/m2": slot("fd::2")}})}, []string{LawLimits}},

		{"a name twice", []Operation{at(2, 3, m1), at(4, 5, other)}, []string{LawNames}},
		{"a name twice, and refused", []Operation{at(2, 3, m1), at(4, 5, with(other, Exists))}, nil},
		{"a name twice, refused before it is there", []Operation{at(2, 3, with(other, Exists)), at(4, 5, m1)}, []string{LawNames}},
		{"a name is taken by one that nobody knows of", []Operation{at(2, 3, unknown(m1)), at(4, 5, with(other, Exists))}, nil},
		{"a lost write", []Operation{at(2, 3, m1), at(9, 10, read(without))}, []string{LawNames}},
		{"a lost write, as a removal sees it", []Operation{at(2, 3, m1), at(9, 10, with(remove(m1.Key), Missing))}, []string{LawNames}},
		{"a write that was kept", []Operation{at(2, 3, m1), at(9, 10, read(whole))}, nil},
		{"a write that nobody knows of is there", []Operation{at(2, 3, unknown(m1)), at(9, 10, read(whole))}, nil},
		{"a write that nobody knows of is not there", []Operation{at(2, 3, unknown(m1)), at(9, 10, read(without))}, nil},
		{"removed twice", []Operation{at(2, 3, m1), at(4, 5, remove(m1.Key)), at(6, 7, remove(m1.Key))}, []string{LawNames}},
		{"removed twice, and nobody knows by whom", []Operation{at(2, 3, m1), at(4, 5, with(remove(m1.Key), Gone)), at(6, 7, with(remove(m1.Key), Gone))}, nil},
		{"gone, and there", []Operation{at(2, 3, m1), at(4, 5, with(remove(m1.Key), Gone)), at(9, 10, read(whole))}, []string{LawNames}},
		{"removed, and there", []Operation{at(2, 3, m1), at(4, 5, remove(m1.Key)), at(9, 10, read(whole))}, []string{LawNames}},
		{"in an org that was removed", []Operation{at(2, 3, remove("orgs/a")), at(4, 5, m1)}, []string{LawNames}},
		{"in an org that is removed meanwhile", []Operation{at(2, 5, remove("orgs/a")), at(4, 7, m1)}, nil},
		{"on a host that was removed", []Operation{at(2, 3, remove("hosts/h")), at(4, 5, m1)}, []string{LawNames}},
		{"the name has its address again", []Operation{at(2, 3, again(1)), at(4, 5, remove(m1.Key)), at(6, 7, again(2))}, nil},
		{"the name has another address", []Operation{at(2, 3, again(1)), at(4, 5, remove(m1.Key)), at(6, 7, keeps(other))}, []string{LawNames}},
		{"the name's generation stays", []Operation{at(2, 3, again(1)), at(4, 5, remove(m1.Key)), at(6, 7, again(1))}, []string{LawNames}},
		{"another has the name's address", []Operation{at(2, 3, again(1)), at(4, 5, remove(m1.Key)), at(200, 201, m2)}, []string{LawAddress}},
		{"moved", []Operation{at(2, 3, again(1)), at(4, 5, Operation{Action: Move, Key: m1.Key, Object: Object{Endpoint: "fd::1", Host: "h", Generation: 2}})}, nil},
		{"moved what was removed", []Operation{at(2, 3, again(1)), at(4, 5, remove(m1.Key)), at(6, 7, Operation{Action: Move, Key: m1.Key, Object: again(2).Object})}, []string{LawNames}},

		{"a network again", []Operation{at(2, 3, remove("orgs/a")), at(99999, 99999, create("orgs/b", Object{Number: 1}))}, []string{LawNetworks}},
		{"a host number in its rest", []Operation{at(2, 3, remove("hosts/h")), at(99, 99, node(create("hosts/i", Object{Number: 1}), "ki"))}, []string{LawNumbers}},
		{"a host number after its rest", []Operation{at(2, 3, remove("hosts/h")), at(4000, 4001, node(create("hosts/i", Object{Number: 1}), "ki"))}, nil},
		{"a key twice", []Operation{at(2, 3, node(create("clients/a/c", Object{}), "kh"))}, []string{LawKeys}},
		{"a key after its node", []Operation{at(2, 3, remove("hosts/h")), at(4, 5, node(create("clients/a/c", Object{}), "kh"))}, nil},
		{"enrolled twice, the same request", []Operation{at(2, 3, base[1])}, nil},

		{"a token once", []Operation{at(1, 2, token), at(3, 4, spend("x"))}, nil},
		{"a token twice", []Operation{at(1, 2, token), at(3, 6, spend("x")), at(3, 6, spend("y"))}, []string{LawTokens}},
		{"a token twice, the same request", []Operation{at(1, 2, token), at(3, 4, spend("x")), at(5, 6, spend("x"))}, nil},
		{"a token that was not there yet", []Operation{at(3, 4, spend("x")), at(5, 6, token)}, []string{LawTokens}},
		{"a token that was removed", []Operation{at(1, 2, token), at(3, 4, remove("tokens/t")), at(5, 6, spend("x"))}, []string{LawTokens}},
		{"a token that has expired", []Operation{at(1, 2, token), at(4000, 4001, spend("x"))}, []string{LawTokens}},
		{"a token refused without a reason", []Operation{at(1, 2, token), at(3, 4, with(spend("x"), Token))}, []string{LawTokens}},
		{"a token refused, for somebody may have spent it", []Operation{at(1, 2, token), at(2, 3, unknown(spend("x"))), at(3, 4, with(spend("y"), Token))}, nil},
		{"a token spent, for nobody else has", []Operation{at(1, 2, token), at(2, 3, unknown(spend("x"))), at(3, 4, spend("y"))}, nil},
		{"a token that was spent and has all its uses", []Operation{at(1, 2, token), at(3, 4, spend("x")), at(9, 10,
			Operation{Action: Read, Key: "tokens/", Current: true, State: map[string]Object{"tokens/t": {Uses: 1}}})}, []string{LawTokens}},

		{"a revision that was known", []Operation{at(2, 3, rev(m1, 10, 10))}, []string{LawOrder}},
		{"one revision for two", []Operation{at(2, 5, rev(m1, 10, 11)), at(2, 5, rev(create("machines/a/m2", slot("fd::2")), 10, 11))}, nil},
		{"one revision for two of an object", []Operation{at(2, 5, rev(m1, 10, 11)), at(2, 5, rev(remove(m1.Key), 10, 11))}, []string{LawOrder}},
		{"a wait that ends early", []Operation{at(2, 3, rev(m1, 10, 11)), at(4, 5, Operation{Action: Read, Wait: 11, Revision: 10})}, []string{LawOrder}},
		{"a mirror that lags", []Operation{at(2, 3, rev(m1, 10, 11)), at(4, 5, Operation{Action: Read, Revision: 10, Wait: 10})}, nil},
		{"a stale read", []Operation{at(2, 3, rev(m1, 10, 11)), at(4, 5, Operation{Action: Read, Revision: 11})}, []string{LawMirror}},
		{"a read of the future", []Operation{at(2, 9, rev(m1, 10, 12)), at(4, 5, Operation{Action: Read, Revision: 11, State: whole})}, []string{LawMirror}},
		{"a read that holds on to what is gone", []Operation{at(2, 3, rev(m1, 10, 11)), at(4, 5, rev(remove(m1.Key), 11, 12)),
			at(6, 7, Operation{Action: Read, Revision: 12, State: whole})}, []string{LawMirror}},
		{"a server forgets its own change", []Operation{at(2, 3, Operation{Action: Create, Key: m1.Key, Object: m1.Object, Server: "ctl"}),
			at(4, 5, Operation{Action: Read, Key: "machines/a/", Server: "ctl"})}, []string{LawNames}},
		{"a server does not know another's change yet", []Operation{at(2, 3, Operation{Action: Create, Key: m1.Key, Object: m1.Object, Server: "ctl2"}),
			at(4, 5, Operation{Action: Read, Key: "machines/a/", Server: "ctl"})}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			findings := Judge(append(slices.Clone(base), tt.ops...), rules)
			for _, f := range findings {
				if !slices.Contains(got, f.Law) {
					got = append(got, f.Law)
				}
			}
			slices.Sort(got)
			slices.Sort(tt.want)
			if !slices.Equal(got, tt.want) {
				t.Errorf("broken: %q, want %q\n%s", got, tt.want, fmt.Sprint(findings))
			}
		})
	}
}

// A history in which many operations are under way at once is still judged soon.
func TestJudgeIsQuick(t *testing.T) {
	t.Parallel()
	ops := []Operation{at(0, 1, create("orgs/a", Object{Number: 1})), at(0, 1, node(create("hosts/h", Object{Number: 1}), "kh")),
		at(0, 1, Operation{Action: Create, Key: "tokens/t", Uses: 8})}
	for i := range 600 {
		key := fmt.Sprintf("machines/a/m%d", i%20)
		o := create(key, Object{Endpoint: fmt.Sprint("fd::", i), Host: "h"})
		switch {
		case i%7 == 0:
			o = unknown(o)
		case i >= 20 && i%20 == 1:
			o = with(o, Exists)
		case i >= 20:
			o = remove(key)
			o.Result = Unknown
		}
		ops = append(ops, at(2+i/8, 4+i/8, o))
		if i < 16 {
			spend := by(node(create(fmt.Sprint("hosts/x", i), Object{Number: uint64(100 + i)}), fmt.Sprint("k", i)), "tokens/t")
			if i >= 8 {
				spend = with(spend, Token)
			}
			ops = append(ops, at(2, 40, spend))
		}
	}
	start := time.Now()
	for _, f := range Judge(ops, Rules{}) {
		if f.Why != "there is no order in which this can be" {
			t.Error(f)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestRounds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		whole, most time.Duration
		want        []time.Duration
	}{
		{5, 10, []time.Duration{5}}, {10, 10, []time.Duration{10}}, {30, 10, []time.Duration{10, 10, 10}}, {24, 10, []time.Duration{8, 8, 8}},
	} {
		if got := Rounds(tt.whole, tt.most); !slices.Equal(got, tt.want) {
			t.Errorf("%d of at most %d: %d, want %d", tt.whole, tt.most, got, tt.want)
		}
	}
}
