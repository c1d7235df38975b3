package history

import (
	"github.com/anishathalye/porcupine"
)

// mirrors is the model of one name in the order of revisions. It is that of names,
// without what depends on real time.
func mirrors() porcupine.Model { return names(Rules{}) }

// mirrors lists by name what was done, and what mirrors showed, in the order of
// revisions: a change is of its revision, a read of the moment after the revision
// that it has. A change that nobody knows the revision of is later than all that
// was known before it.
func (h *history) mirrors() map[string]*trial {
	out := map[string]*trial{}
	for _, o := range h.ops {
		if o.Action == Read || o.Result != OK && o.Result != Unknown || o.Result == OK && o.Revision == 0 {
			continue
		}
		from, to := 2*o.Floor+1, int64(never)
		switch {
		case o.Result == OK && o.Exact:
			from, to = 2*o.Revision, 2*o.Revision
		case o.Result == OK:
			to = max(from, 2*o.Revision)
			if from > 2*o.Revision {
				from = 2 * o.Revision
			}
		}
		add(out, o.Key, o, step{what: string(o.Action), maybe: o.Result == Unknown}, from, to)
		h.fades(out, o, from)
		if o.Action == Remove {
			for _, key := range h.follows(o.Key) {
				add(out, key, o, step{what: wordRemove, maybe: true}, 2*o.Floor+1, never)
			}
		}
	}
	for key, reads := range telling(h.reads(func(o Operation) bool { return o.Revision != 0 }, revisionOf), out) {
		for _, o := range reads {
			as, seen := o.State[key]
			add(out, key, o, step{what: wordRead, seen: seen && !as.Ending, as: as}, 2*o.Revision+1, 2*o.Revision+1)
		}
	}
	return out
}

func revisionOf(o Operation) int64 { return 2*o.Revision + 1 }
