package dns

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A table is a map; what was made from it stays what it was.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var now table[int]
		model := map[string]int{}
		type kept struct {
			table table[int]
			model map[string]int
		}
		var all []kept
		keys := rapid.SampledFrom([]int{3, 40, 3000}).Draw(t, "keys")
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			var b *edition
			if rapid.Bool().Draw(t, "batch") {
				b = new(edition)
			}
			for i := range rapid.IntRange(1, 300).Draw(t, "changes") {
				n := rapid.IntRange(0, keys).Draw(t, "key")
				if rapid.Bool().Draw(t, "in order") {
					n = i
				}
				key := fmt.Sprintf("%04d", n)
				if rapid.IntRange(0, 2).Draw(t, "what") == 0 {
					now = now.without(b, key)
					delete(model, key)
				} else {
					now = now.set(b, key, i)
					model[key] = i
				}
			}
			all = append(all, kept{now, maps.Clone(model)})
		}
		for _, k := range all {
			if got := maps.Collect(k.table.all()); !maps.Equal(got, k.model) || k.table.size != len(k.model) {
				t.Fatalf("%d keys, size %d, want %d", len(got), k.table.size, len(k.model))
			}
			from := fmt.Sprintf("%03d", rapid.IntRange(0, 999).Draw(t, "from"))
			var got, want []string
			for key := range k.table.from(from) {
				got = append(got, key)
			}
			for _, key := range slices.Sorted(maps.Keys(k.model)) {
				if v, ok := k.table.get(key); !ok || v != k.model[key] {
					t.Fatalf("%s: %d, %v", key, v, ok)
				}
				if key >= from {
					want = append(want, key)
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("from %s: %v, want %v", from, got, want)
			}
		}
	})
}

// What comes in order fills its nodes, and they go when they are empty.
func TestTableStaysSmall(t *testing.T) {
	var now table[int]
	b := new(edition)
	for i := range 10000 {
		now = now.set(b, fmt.Sprintf("%06d", i), i)
	}
	leaves := func() int { return leavesOf(now.root) }
	if n := leaves(); n > 10000/width+1 {
		t.Errorf("%d leaves for 10000 keys", n)
	}
	for i := range 10000 { // names that come and go for ever
		now = now.without(nil, fmt.Sprintf("%06d", i))
		now = now.set(nil, fmt.Sprintf("%06d", 10000+i), i)
	}
	if n := leaves(); n > 2*10000/width {
		t.Errorf("%d leaves for 10000 keys after 20000 changes", n)
	}
	for i := range 10000 {
		now = now.without(nil, fmt.Sprintf("%06d", 10000+i))
	}
	if now.root != nil || now.size != 0 {
		t.Errorf("not empty: %d", now.size)
	}
}

func leavesOf(n *branch[int]) (count int) {
	if n.kids == nil {
		return 1
	}
	for _, k := range n.kids {
		count += leavesOf(k)
	}
	return count
}
