package history

import (
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// purse is the state of a token.
type purse struct {
	there   bool
	uses    int
	expires time.Time
	spent   string // by whom, each followed by a newline
}

// tokens is the model of one token: each use of it lets one node in. The same node
// may ask again, and spends nothing. Nodes are never used again after their end.
func tokens() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return purse{} },
		Step: func(state, input, output any) (bool, any) {
			p, s := state.(purse), input.(step)
			switch s.what {
			case wordRead:
				return p.there == s.seen && (!p.there || p.uses == s.as.Uses), p
			case wordCreate:
				if p.there {
					return s.maybe || output == Exists, p
				}
				if output == Exists {
					return false, p
				}
				return true, purse{there: true, uses: s.op.Uses, expires: s.op.Expires, spent: p.spent}
			case wordRemove:
				if output == Missing {
					return !p.there, p
				}
				ok := p.there || s.maybe || output == Gone
				p.there = false
				return ok, p
			}
			return p.spend(s, output.(Result))
		},
	}
}

func (p purse) spend(s step, result Result) (bool, any) {
	by := holder(s.op) + "\n"
	again := strings.Contains("\n"+p.spent, "\n"+by)
	// The clock stood somewhere between Before and After.
	mayBeValid := p.expires.IsZero() || s.op.Before.Before(p.expires)
	mayBeExpired := !p.expires.IsZero() && !s.op.After.Before(p.expires)
	left := p.there && p.uses > 0
	switch {
	case result == Token:
		return !left || mayBeExpired, p
	case again && p.there:
		return true, p
	case !left || !mayBeValid:
		return s.maybe, p
	}
	p.uses--
	p.spent += by
	return true, p
}

// tokens lists by token how it was spent.
func (h *history) tokens() map[string]*trial {
	out := map[string]*trial{}
	for _, o := range h.ops {
		from, to := span(o)
		maybe := o.Result == Unknown
		switch {
		case o.Token != "" && (o.Result == OK || o.Result == Token || maybe):
			add(out, o.Token, o, step{what: wordSpend, maybe: maybe}, from, to)
		case kind(o.Key) == "tokens" && o.Action != Read && o.Result != Refused:
			add(out, o.Key, o, step{what: string(o.Action), maybe: maybe}, from, to)
			h.fades(out, o, from)
		}
	}
	for _, o := range h.ops {
		if o.Action != Read || !o.Current || o.Result != OK {
			continue
		}
		for key := range out {
			if o.covers(key) {
				as, seen := o.State[key]
				add(out, key, o, step{what: wordRead, seen: seen, as: as}, int64(o.Call), int64(o.Return))
			}
		}
	}
	return out
}
