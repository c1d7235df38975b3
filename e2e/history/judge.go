package history

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Rules are the times that the state's promises depend on.
type Rules struct {
	SlotRest    time.Duration  // between the end of an endpoint and its next use
	HostRest    time.Duration  // the same of a host's number
	AddressRest time.Duration  // how long a name keeps its endpoint
	Machines    map[string]int // how many machines an org may have, by its key
	TokenGrace  time.Duration  // after a token's expiry, before it is removed by itself; 0: never
	Settles     time.Duration  // a server shows a change of its own from then on that it answered within this; 0: always
	Patience    time.Duration  // for all judgements together; default half a minute
}

// Finding is a promise that was broken.
type Finding struct {
	Law     string // which promise
	Subject string // about what
	Why     string
	Around  []Operation // all that was done to the subject
}

// maxAround bounds how many operations a finding prints.
const maxAround = 40

func (f Finding) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s: %s: %s", f.Law, f.Subject, f.Why)
	ops := f.Around
	if len(ops) > maxAround {
		fmt.Fprintf(&s, "\n    (the last %d of %d)", maxAround, len(ops))
		ops = ops[len(ops)-maxAround:]
	}
	for _, o := range ops {
		fmt.Fprintf(&s, "\n    %s", o)
	}
	return s.String()
}

// Laws, as findings name them.
const (
	LawNames    = "one object a name, and none is lost"
	LawAddress  = "one holder an address"
	LawNetworks = "a network is given once"
	LawNumbers  = "one host a number"
	LawKeys     = "one node a key"
	LawTokens   = "a token is spent as often as it may be"
	LawOrder    = "revisions are in order"
	LawMirror   = "a mirror is the state at its revision"
	LawSnapshot = "no two of a state have the same"
	LawLimits   = "no org has more than it may"
)

// Rounds shares out a time among histories that last at most so long each. What a
// history takes to keep and to judge grows faster than it does.
func Rounds(whole, most time.Duration) (out []time.Duration) {
	n := max(1, (whole+most-1)/most)
	return slices.Repeat([]time.Duration{whole / n}, int(n))
}

// enough is how many findings end the search for more: to show that there is no
// order takes long.
const enough = 5

// Judge returns promises that the operations show to be broken, none if they can
// all have been kept.
func Judge(ops []Operation, rules Rules) []Finding {
	deadline := time.Now().Add(cmp.Or(rules.Patience, 30*time.Second))
	h := newHistory(ops, rules)
	out := slices.Concat(h.order(), h.snapshots())
	if len(out) > 0 {
		return out[:min(len(out), enough)] // these are plain, and the others take long to find
	}
	for _, law := range []struct {
		name  string
		model porcupine.Model
		cases map[string]*trial
	}{
		{LawNames, names(rules), h.names()},
		{LawAddress, space(rules.SlotRest, rules.AddressRest, true), h.endpoints()},
		{LawNetworks, space(forever, 0, false), h.numbers("orgs")},
		{LawNumbers, space(rules.HostRest, 0, true), h.numbers("hosts")},
		{LawKeys, space(0, 0, true), h.keys()},
		{LawTokens, tokens(), h.tokens()},
		{LawMirror, mirrors(), h.mirrors()},
	} {
		for _, subject := range slices.Sorted(maps.Keys(law.cases)) {
			if len(out) >= enough {
				return out
			}
			c := law.cases[subject]
			switch porcupine.CheckOperationsTimeout(law.model, c.ops, max(time.Until(deadline), time.Millisecond)) {
			case porcupine.Illegal:
				out = append(out, Finding{law.name, subject, "there is no order in which this can be", c.around})
			case porcupine.Unknown:
				out = append(out, Finding{law.name, subject, "it could not be judged in time", c.around})
			}
		}
	}
	return out
}

// trial is what was done to one subject.
type trial struct {
	ops    []porcupine.Operation
	around []Operation
}

// never is the return of an operation that may happen at any time after its call.
const never = math.MaxInt64

// add adds op to the trial of subject, as a step of its model.
func add(trials map[string]*trial, subject string, op Operation, s step, from, to int64) {
	c := trials[subject]
	if c == nil {
		c = &trial{}
		trials[subject] = c
	}
	s.op = op
	c.ops = append(c.ops, porcupine.Operation{ClientId: op.Client, Input: s, Call: from, Output: op.Result, Return: to})
	if op.Action != Read {
		c.around = append(c.around, op)
	}
}

// step is the input of all models: an operation as it concerns one subject.
type step struct {
	op    Operation
	what  string // the models' own words
	by    string // who takes or gives
	keeps bool
	maybe bool // it may have had no effect
	seen  bool // of a read: the object is there,
	as    Object
}

// Words of the models.
const (
	wordCreate = "create"
	wordRemove = "remove"
	wordMove   = "move"
	wordUse    = "use"
	wordRead   = "read"
	wordTake   = "take"
	wordGive   = "give"
	wordSpend  = "spend"
)

// span is when an operation happened, in real time.
func span(o Operation) (from, to int64) {
	if o.Result == Unknown {
		return int64(o.Call), never
	}
	return int64(o.Call), int64(o.Return)
}

// history is what the judge knows about all operations.
type history struct {
	ops   []Operation
	rules Rules
	held  map[string]map[string]bool // endpoints (or numbers) that an object was seen to have, by key
	on    map[string]map[string]bool // machines that were seen on a host, by the host's key
	in    map[string]map[string]bool // what was seen or asked for in an org, by the org's key
	keeps map[string]bool            // names that keep their endpoints
	last  time.Time                  // that the clock showed

	seen   map[sight]int64    // when a read had shown an object at a place
	givers map[sight]int      // how many creations can have put it there, those of no place apart
	blind  map[string]int     // creations of no known place, by object
	served map[string][]int64 // by server: when its own changes were answered, in order
}

func newHistory(ops []Operation, rules Rules) *history {
	h := &history{
		ops: ops, rules: rules, held: map[string]map[string]bool{}, on: map[string]map[string]bool{}, in: map[string]map[string]bool{},
		keeps: map[string]bool{}, seen: map[sight]int64{}, givers: map[sight]int{}, blind: map[string]int{}, served: map[string][]int64{},
	}
	for _, o := range ops {
		if o.After.After(h.last) {
			h.last = o.After
		}
		if o.Keeps {
			h.keeps[o.Key] = true
		}
		if o.Action == Create {
			h.meet(o.Key, o.Object)
		}
		if o.Action == Move && o.Result == OK {
			h.meet(o.Key, o.Object)
		}
		for key, object := range o.State {
			h.meet(key, object)
			for _, place := range places(object) {
				at, there := h.seen[sight{key, place}]
				if !there || int64(o.Return) < at {
					h.seen[sight{key, place}] = int64(o.Return)
				}
			}
		}
		h.note(o)
	}
	for _, own := range h.served {
		slices.Sort(own)
	}
	return h
}

// sight is an object at a place.
type sight struct{ key, place string }

// places are the address and the number that an object has, as far as it has them.
func places(o Object) (out []string) {
	if o.Endpoint != "" {
		out = append(out, o.Endpoint)
	}
	if o.Number != 0 {
		out = append(out, fmt.Sprint(o.Number))
	}
	return out
}

// note counts a change.
func (h *history) note(o Operation) {
	if o.Action == Create && (o.Result == OK || o.Result == Unknown) {
		what := places(o.Object)
		if len(what) == 0 {
			h.blind[o.Key]++
		}
		for _, place := range what {
			h.givers[sight{o.Key, place}]++
		}
	}
	quick := h.rules.Settles == 0 || o.Return-o.Call < h.rules.Settles
	if o.Action != Read && o.Result == OK && o.Server != "" && quick {
		h.served[o.Server] = append(h.served[o.Server], int64(o.Return))
	}
}

func (h *history) meet(key string, o Object) {
	note := func(m map[string]map[string]bool, k, v string) {
		if m[k] == nil {
			m[k] = map[string]bool{}
		}
		m[k][v] = true
	}
	if o.Endpoint != "" {
		note(h.held, key, o.Endpoint)
	}
	if o.Number != 0 {
		note(h.held, key, fmt.Sprint(o.Number))
	}
	if o.Host != "" && kind(key) == "machines" {
		note(h.on, "hosts/"+o.Host, key)
	}
	if org := orgOf(key); org != "" {
		note(h.in, org, key)
	}
}

// follows are the objects that may go with one that is removed.
func (h *history) follows(key string) []string {
	switch kind(key) {
	case "hosts":
		return slices.Sorted(maps.Keys(h.on[key]))
	case "orgs":
		return slices.Sorted(maps.Keys(h.in[key]))
	}
	return nil
}
