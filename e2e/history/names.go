package history

import (
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"
)

// record is the state of a name: what is registered under it.
type record struct {
	there bool
	node  string
	is    Object
	last  Object    // what was there before, if its name keeps its endpoint
	until time.Time // how long at least
	was   bool      // something was there before, and its removal may be going on
}

// names is the model of one name: created once until it is removed; what needs it
// finds it; who keeps an endpoint gets it back, with the next generation.
func names(rules Rules) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return record{} },
		Step: func(state, input, output any) (bool, any) {
			r, s := state.(record), input.(step)
			switch {
			case s.what == wordUse:
				return r.there, r
			case s.what == wordRead:
				return r.shows(s), r
			case s.maybe:
				return true, r.maybe(s)
			case s.what == wordCreate:
				return r.create(s, output.(Result))
			case s.what == wordMove:
				if !r.moves(s.op) {
					return output != OK, r
				}
				r.is = s.op.Object
				return true, r
			}
			return r.remove(s, output.(Result), rules)
		},
	}
}

// repeats says whether a request was answered with what is there: by its key it is
// the same node, or it is a machine that is on that host.
func (r record) repeats(o Operation) bool {
	switch {
	case o.Node != "" && o.Node == r.node:
	case kind(o.Key) == "machines":
	default:
		return false
	}
	return known(r.is, o.Object)
}

// moves says whether a machine can have moved as it was answered: from generation to
// generation. The same request again is answered with what is there.
func (r record) moves(o Operation) bool {
	return r.there && (r.is.Generation == 0 || o.Object.Generation == r.is.Generation+1 || known(r.is, o.Object))
}

// known says whether what is seen is what is there, as far as that is known.
func known(have, seen Object) bool {
	return (have.Endpoint == "" || have.Endpoint == seen.Endpoint) && (have.Number == 0 || have.Number == seen.Number) &&
		(have.Host == "" || have.Host == seen.Host) && (have.Generation == 0 || have.Generation == seen.Generation)
}

// shows says whether a read can have seen what it says of the name.
func (r record) shows(s step) bool {
	if r.there != s.seen {
		return false
	}
	return !r.there || known(r.is, s.as)
}

func (r record) create(s step, result Result) (bool, any) {
	switch {
	case result == Exists:
		return r.there, r
	case r.there:
		// The same request again is answered with what is there.
		if !r.repeats(s.op) {
			return false, r
		}
		r.is = s.op.Object
		return true, r
	case r.last.Endpoint != "" && s.op.After.Before(r.until):
		if s.op.Object.Endpoint != r.last.Endpoint || s.op.Object.Generation != 0 && s.op.Object.Generation <= r.last.Generation {
			return false, r
		}
	}
	return true, record{there: true, node: s.op.Node, is: s.op.Object}
}

func (r record) remove(s step, result Result, rules Rules) (bool, any) {
	if result == Missing {
		return !r.there, r
	}
	if !r.there && result == Gone {
		return true, r
	}
	if !r.there {
		// Asking twice for the end of an org is no mistake while it goes on.
		return r.was && kind(s.op.Key) == "orgs", r
	}
	out := record{was: true}
	if s.keeps && rules.AddressRest > 0 {
		out.last, out.until = r.is, s.op.Before.Add(rules.AddressRest)
	}
	return true, out
}

// maybe is the record after an operation whose answer nobody knows, if it happened.
func (r record) maybe(s step) record {
	switch {
	case s.what == wordCreate && !r.there:
		return record{there: true, node: s.op.Node}
	case s.what == wordRemove && r.there:
		return record{was: true}
	case s.what == wordMove && r.there:
		r.is.Host, r.is.Generation = "", 0
	}
	return r
}

// names lists by name what was done in real time.
func (h *history) names() map[string]*trial {
	out := map[string]*trial{}
	for _, o := range h.ops {
		from, to := span(o)
		s := step{what: string(o.Action), keeps: h.keeps[o.Key], maybe: o.Result == Unknown}
		switch {
		case o.Action == Read || o.Result == Refused || o.Result == Token:
		default:
			add(out, o.Key, o, s, from, to)
			h.fades(out, o, from)
		}
		if o.removes() {
			for _, key := range h.follows(o.Key) {
				add(out, key, o, step{what: wordRemove, maybe: true}, from, never)
			}
		}
		if (o.Action == Create || o.Action == Move) && o.Result == OK {
			for _, needed := range needs(o) {
				add(out, needed, o, step{what: wordUse}, from, to)
			}
		}
	}
	for _, view := range h.views() {
		for key, reads := range telling(view, out) {
			for _, o := range reads {
				as, seen := o.State[key]
				add(out, key, o, step{what: wordRead, seen: seen && !as.Ending, as: as}, h.since(o), int64(o.Return))
			}
		}
	}
	return out
}

// fades adds that a token may be removed by itself, if that much time has passed.
func (h *history) fades(out map[string]*trial, o Operation, from int64) {
	if o.Action == Create && kind(o.Key) == "tokens" && h.rules.TokenGrace > 0 && !h.last.Before(o.Expires.Add(h.rules.TokenGrace)) {
		add(out, o.Key, o, step{what: wordRemove, maybe: true}, from, never)
	}
}

// needs are the objects that must have been there when o was done.
func needs(o Operation) []string {
	out := append([]string(nil), o.Told...)
	if org := orgOf(o.Key); org != "" {
		out = append(out, org)
	}
	if kind(o.Key) == "machines" && o.Object.Host != "" {
		out = append(out, "hosts/"+o.Object.Host)
	}
	return out
}

// order checks what revisions say by themselves.
func (h *history) order() (out []Finding) {
	by := map[string]Operation{} // changes may share a revision, but not of one object
	for _, o := range h.ops {
		if o.Result != OK || o.Revision == 0 {
			continue
		}
		switch {
		case o.Action == Read && o.Revision < o.Wait:
			out = append(out, Finding{LawOrder, "a read", fmt.Sprintf("it waited for revision %d and got %d", o.Wait, o.Revision), []Operation{o}})
		case o.Action != Read && o.Exact && o.Revision <= o.Floor:
			out = append(out, Finding{LawOrder, o.Key, "it is of a revision that was known before it began", []Operation{o}})
		case o.Action != Read && o.Exact:
			at := fmt.Sprint(o.Revision, " ", o.Key)
			if other, twice := by[at]; twice {
				out = append(out, Finding{LawOrder, o.Key, "two changes of it are of one revision", []Operation{other, o}})
			}
			by[at] = o
		}
	}
	return out
}

// snapshots checks what one state says by itself.
func (h *history) snapshots() (out []Finding) {
	for _, o := range h.ops {
		holder, machines := map[string]string{}, map[string]int{}
		for key, object := range o.State {
			if kind(key) == "machines" {
				machines[orgOf(key)]++
			}
			what := object.Endpoint
			if object.Number != 0 {
				what = fmt.Sprintf("%s number %d", kind(key), object.Number)
			}
			if what == "" {
				continue
			}
			if other, twice := holder[what]; twice {
				out = append(out, Finding{LawSnapshot, what, fmt.Sprintf("%s and %s have it in a state at revision %d", min(key, other), max(key, other), o.Revision), nil})
			}
			holder[what] = key
		}
		for org, limit := range h.rules.Machines {
			if n := machines[org]; n > limit {
				out = append(out, Finding{LawLimits, org, fmt.Sprintf("it has %d machines in a state at revision %d, and may have %d", n, o.Revision, limit), nil})
			}
		}
	}
	return out
}
