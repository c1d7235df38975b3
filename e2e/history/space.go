package history

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// forever is the rest of what is never given again.
const forever = math.MaxInt64

// place is the state of one address, number or key.
type place struct {
	holder string
	was    bool
	due    time.Time // from when on it can be given again
	kept   string    // whose it stays
	until  time.Time
}

// space is the model of one address, number or key: it has one holder at a time,
// and rests in between. keeps says whether it can be kept for a name for a while;
// again, whether it is ever given again.
func space(rest, keep time.Duration, again bool) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return place{} },
		Step: func(state, input, _ any) (bool, any) {
			p, s := state.(place), input.(step)
			if s.what == wordGive {
				return true, p.give(s, rest, keep)
			}
			if p.holder == s.by {
				return true, p // the same request again
			}
			if !p.free(s, again) {
				return s.maybe, p
			}
			return true, place{holder: s.by, was: true}
		},
	}
}

func (p place) free(s step, again bool) bool {
	now := s.op.After.Unix()
	switch {
	case p.holder != "" || p.was && !again:
		return false
	case p.kept == name(s.by):
		return true
	case p.kept != "" && now < p.until.Unix():
		return false
	}
	return !p.was || now >= p.due.Unix() // rest is counted in whole seconds
}

func (p place) give(s step, rest, keep time.Duration) place {
	if name(p.holder) != name(s.by) {
		return p
	}
	out := place{was: true, due: s.op.Before}
	if rest != forever {
		out.due = s.op.Before.Add(rest)
	}
	if s.keeps && keep > 0 {
		out.kept, out.until = name(s.by), s.op.Before.Add(keep)
	}
	return out
}

// A holder is a name and the node that registered it; a later node of the same name
// is another holder.
func holder(o Operation) string { return o.Key + " " + o.Node }

func name(holder string) string {
	for i := range len(holder) {
		if holder[i] == ' ' {
			return holder[:i]
		}
	}
	return holder
}

// endpoints lists by endpoint who took and gave it.
func (h *history) endpoints() map[string]*trial {
	return h.places(func(key string) bool { return kind(key) == "machines" || kind(key) == "clients" }, func(o Object) string { return o.Endpoint })
}

// numbers lists by number which org or host took and gave it.
func (h *history) numbers(of string) map[string]*trial {
	return h.places(func(key string) bool { return kind(key) == of }, func(o Object) string {
		if o.Number == 0 {
			return ""
		}
		return fmt.Sprint(o.Number)
	})
}

func (h *history) places(mine func(key string) bool, what func(Object) string) map[string]*trial {
	out := map[string]*trial{}
	give := func(o Operation, key string, maybe bool) {
		from, to := span(o)
		if maybe {
			to = never
		}
		for _, place := range slices.Sorted(maps.Keys(h.held[key])) {
			add(out, place, o, step{what: wordGive, by: key, keeps: h.keeps[key], maybe: maybe}, from, to)
		}
	}
	for _, o := range h.ops {
		from, to := span(o)
		switch {
		case o.Action == Create && o.Result == OK && mine(o.Key) && what(o.Object) != "":
			add(out, what(o.Object), o, step{what: wordTake, by: holder(o)}, from, to)
		case o.Action == Create && (o.Result == Unknown || o.Result == OK) && mine(o.Key):
			// What it got, if it got something, is what the name was seen to have.
			for _, place := range slices.Sorted(maps.Keys(h.held[o.Key])) {
				s, to := step{what: wordTake, by: holder(o), maybe: true}, to
				if seen, ok := h.evidence(o.Key, place); ok {
					s.maybe, to = false, max(from, seen)
				}
				add(out, place, o, s, from, to)
			}
		case o.removes():
			if mine(o.Key) {
				give(o, o.Key, o.Result == Unknown)
			}
			for _, key := range h.follows(o.Key) {
				if mine(key) {
					give(o, key, true)
				}
			}
		}
	}
	for _, c := range out {
		c.ops = effective(c.ops)
	}
	return out
}

// effective leaves out what says nothing about a place, which is most and takes longest to
// judge. Who may have taken it, and gave it again or not, forbids nothing, for he may have
// not; and he allows nothing, for nobody else needs that he has. Who gives what he has not
// taken yet changes nothing. Of those that may have given it at any later time, no more
// than have taken it can have had an effect, and the ones that began first can have had
// that of any other.
func effective(ops []porcupine.Operation) []porcupine.Operation {
	takes, first := map[string]int{}, map[string]int64{}
	for _, o := range ops {
		if s := o.Input.(step); s.what == wordTake && !s.maybe {
			by := name(s.by)
			if takes[by]++; takes[by] == 1 || o.Call < first[by] {
				first[by] = o.Call
			}
		}
	}
	ops = slices.Clone(ops)
	slices.SortStableFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	maybe := map[string]int{}
	return slices.DeleteFunc(ops, func(o porcupine.Operation) bool {
		s := o.Input.(step)
		by := name(s.by)
		switch {
		case s.what != wordGive:
			return s.maybe
		case takes[by] == 0, o.Return < first[by]:
			return true
		case o.Return == never:
			maybe[by]++
			return maybe[by] > takes[by]
		}
		return false
	})
}

// evidence is when a read had shown that an object has a place, if there is only
// one operation that can have given it to it.
func (h *history) evidence(key, place string) (at int64, ok bool) {
	at, ok = h.seen[sight{key, place}]
	return at, ok && h.blind[key]+h.givers[sight{key, place}] == 1
}

// keys lists by WireGuard key which node claimed it and gave it up.
func (h *history) keys() map[string]*trial {
	out := map[string]*trial{}
	nodes := map[string][]string{} // keys that a node had, by its name
	for _, o := range h.ops {
		if o.Action == Create && o.Node != "" && !slices.Contains(nodes[o.Key], o.Node) {
			nodes[o.Key] = append(nodes[o.Key], o.Node)
		}
	}
	for _, o := range h.ops {
		from, to := span(o)
		switch {
		case o.Action == Create && o.Node != "" && (o.Result == OK || o.Result == Unknown):
			add(out, o.Node, o, step{what: wordTake, by: holder(o), maybe: o.Result == Unknown}, from, to)
		case o.removes():
			for _, key := range append(h.follows(o.Key), o.Key) {
				maybe := o.Result == Unknown || key != o.Key
				if maybe {
					to = never
				}
				for _, node := range nodes[key] {
					add(out, node, o, step{what: wordGive, by: key, maybe: maybe}, from, to)
				}
			}
		}
	}
	return out
}
