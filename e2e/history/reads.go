package history

import (
	"maps"
	"slices"
	"sort"
)

// view is reads that follow each other, of the same part of the state.
type view struct {
	reads []Operation
	at    func(Operation) int64 // the time that a read is not before
}

// reads are those that meet a condition, in order of the time at.
func (h *history) reads(which func(Operation) bool, at func(Operation) int64) view {
	v := view{at: at}
	for _, o := range h.ops {
		if o.Action == Read && o.Result == OK && which(o) {
			v.reads = append(v.reads, o)
		}
	}
	sort.SliceStable(v.reads, func(i, j int) bool { return at(v.reads[i]) < at(v.reads[j]) })
	return v
}

// views are the reads in real time, by what and whom they asked.
func (h *history) views() (out []view) {
	type source struct{ key, server string }
	sources := map[source]bool{}
	for _, o := range h.ops {
		if o.Action == Read && (o.Current || o.Server != "") {
			sources[source{o.Key, o.Server}] = true
		}
	}
	for s := range sources {
		out = append(out, h.reads(func(o Operation) bool {
			return o.Key == s.key && o.Server == s.server && (o.Current || o.Server != "")
		}, h.since))
	}
	return out
}

// since is when a read may have been made at the earliest. What a server answers
// from memory may be as old as its last change of its own, unless everything has
// come to rest.
func (h *history) since(o Operation) int64 {
	if o.Server == "" {
		return int64(o.Call)
	}
	own := h.served[o.Server]
	n, _ := slices.BinarySearch(own, int64(o.Call))
	if n == 0 {
		return 0
	}
	return own[n-1] + 1
}

// covers says whether a read would have shown key: an empty Key is the whole state,
// otherwise it is a prefix.
func (o Operation) covers(key string) bool {
	return len(key) >= len(o.Key) && key[:len(o.Key)] == o.Key
}

// telling picks, for each subject that trials has, the reads that say something of
// it: the first and the last, those before and after it looks different, and after
// each operation the next one. There are many more that say nothing new.
func telling(v view, trials map[string]*trial) map[string][]Operation {
	if len(v.reads) == 0 {
		return nil
	}
	picked := map[string]map[int]bool{}
	pick := func(key string, i int) {
		if trials[key] == nil || i < 0 || i >= len(v.reads) || !v.reads[i].covers(key) {
			return
		}
		if picked[key] == nil {
			picked[key] = map[int]bool{}
		}
		picked[key][i] = true
	}
	for key, c := range trials {
		pick(key, 0)
		pick(key, len(v.reads)-1)
		for _, o := range c.ops {
			for _, moment := range []int64{o.Call, o.Return} {
				pick(key, v.after(moment))
			}
		}
	}
	for i := range v.reads {
		if i == 0 {
			continue
		}
		before, after := v.reads[i-1].State, v.reads[i].State
		for key, object := range after {
			if was, there := before[key]; !there || was != object {
				pick(key, i-1)
				pick(key, i)
			}
		}
		for key := range before {
			if _, there := after[key]; !there {
				pick(key, i-1)
				pick(key, i)
			}
		}
	}
	out := map[string][]Operation{}
	for key, which := range picked {
		for _, i := range slices.Sorted(maps.Keys(which)) {
			out[key] = append(out[key], v.reads[i])
		}
	}
	return out
}

// after is the index of the first read that is later than moment.
func (v view) after(moment int64) int {
	return sort.Search(len(v.reads), func(i int) bool { return v.at(v.reads[i]) > moment })
}
