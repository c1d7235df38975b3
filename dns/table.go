package dns

import (
	"iter"
	"slices"
	"strings"
)

// table is an immutable map in key order: a B-tree whose nodes are shared by all
// tables that came from each other. What changes is copied, from the leaf to the
// root, so a change costs the same whatever the size. The zero table is empty.
//
// A node goes when it is empty, and is not merged before: under inserts and
// deletes in any mixture that keeps nodes about as full (Johnson and Shasha, 1993).
type table[V any] struct {
	root *branch[V]
	size int
}

// branch is a node: a leaf has values, the others have kids, and keys[i] is the key
// of values[i], or no greater than any key below kids[i].
type branch[V any] struct {
	made   *edition
	keys   []string
	values []V
	kids   []*branch[V]
}

// edition is a number of changes that are made together: the nodes that it made are
// changed in place, since nobody else has seen them. nil: each change for itself.
type edition struct{ _ byte }

// width is how many keys a node has at most.
const width = 16

func (t table[V]) get(key string) (value V, ok bool) {
	n := t.root
	if n == nil {
		return value, false
	}
	for n.kids != nil {
		i := n.below(key)
		if i < 0 {
			return value, false
		}
		n = n.kids[i]
	}
	if i, found := slices.BinarySearch(n.keys, key); found {
		return n.values[i], true
	}
	return value, false
}

func (t table[V]) has(key string) bool { _, ok := t.get(key); return ok }

// same reports whether nothing was changed between the two. It may be false where
// what was changed was changed back.
func (t table[V]) same(o table[V]) bool { return t.root == o.root }

// set returns the table with value at key.
func (t table[V]) set(b *edition, key string, value V) table[V] {
	if t.root == nil {
		return table[V]{&branch[V]{made: b, keys: []string{key}, values: []V{value}}, 1}
	}
	left, right, added := t.root.set(b, key, value)
	if right != nil {
		left = &branch[V]{made: b, keys: []string{left.keys[0], right.keys[0]}, kids: []*branch[V]{left, right}}
	}
	return table[V]{left, t.size + added}
}

// without returns the table without key.
func (t table[V]) without(b *edition, key string) table[V] {
	if !t.has(key) {
		return t
	}
	root := t.root.without(b, key)
	for root != nil && len(root.kids) == 1 {
		root = root.kids[0]
	}
	return table[V]{root, t.size - 1}
}

// all iterates in key order.
func (t table[V]) all() iter.Seq2[string, V] { return t.from("") }

// from iterates over key and those after it, in order.
func (t table[V]) from(key string) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		if t.root != nil {
			t.root.walk(key, yield)
		}
	}
}

// below is the last of n's kids that may hold key, -1 if none does.
func (n *branch[V]) below(key string) int {
	i, found := slices.BinarySearch(n.keys, key)
	if found {
		return i
	}
	return i - 1
}

// own returns n, or a copy of it, that the edition may change.
func (n *branch[V]) own(b *edition) *branch[V] {
	if b != nil && n.made == b {
		return n
	}
	return &branch[V]{b, slices.Clone(n.keys), slices.Clone(n.values), slices.Clone(n.kids)}
}

func (n *branch[V]) set(b *edition, key string, value V) (left, right *branch[V], added int) {
	n = n.own(b)
	if n.kids == nil {
		i, found := slices.BinarySearch(n.keys, key)
		if found {
			n.values[i] = value
			return n, nil, 0
		}
		left, right, n, i = n.room(b, i)
		n.keys, n.values = slices.Insert(n.keys, i, key), slices.Insert(n.values, i, value)
		return left, right, 1
	}
	i := max(n.below(key), 0)
	kid, more, added := n.kids[i].set(b, key, value)
	n.kids[i], n.keys[i] = kid, min(key, n.keys[i])
	if more == nil {
		return n, nil, added
	}
	left, right, n, i = n.room(b, i+1)
	n.keys, n.kids = slices.Insert(n.keys, i, more.keys[0]), slices.Insert(n.kids, i, more)
	return left, right, added
}

// room makes room for one more at i. n is left, or what was split off it (right);
// there is room in at, at index j. One that is added to at its end is left full:
// what comes in order needs no more nodes than it must.
func (n *branch[V]) room(b *edition, i int) (left, right, at *branch[V], j int) {
	if len(n.keys) < width {
		return n, nil, n, i
	}
	half := width / 2
	if i == width {
		half = width
	}
	right = &branch[V]{made: b, keys: slices.Clone(n.keys[half:])}
	clear(n.keys[half:])
	n.keys = n.keys[:half]
	if n.kids == nil {
		right.values = slices.Clone(n.values[half:])
		clear(n.values[half:])
		n.values = n.values[:half]
	} else {
		right.kids = slices.Clone(n.kids[half:])
		clear(n.kids[half:])
		n.kids = n.kids[:half]
	}
	if i >= half {
		return n, right, right, i - half
	}
	return n, right, n, i
}

// without removes key, which is there. It returns nil if nothing is left.
func (n *branch[V]) without(b *edition, key string) *branch[V] {
	if len(n.keys) == 1 && n.kids == nil {
		return nil
	}
	n = n.own(b)
	if n.kids == nil {
		i, _ := slices.BinarySearch(n.keys, key)
		n.keys, n.values = slices.Delete(n.keys, i, i+1), slices.Delete(n.values, i, i+1)
		return n
	}
	i := n.below(key)
	if kid := n.kids[i].without(b, key); kid != nil {
		n.kids[i] = kid
		return n
	}
	if len(n.kids) == 1 {
		return nil
	}
	n.keys, n.kids = slices.Delete(n.keys, i, i+1), slices.Delete(n.kids, i, i+1)
	return n
}

func (n *branch[V]) walk(from string, yield func(string, V) bool) bool {
	if n.kids == nil {
		i, _ := slices.BinarySearch(n.keys, from)
		for ; i < len(n.keys); i++ {
			if !yield(n.keys[i], n.values[i]) {
				return false
			}
		}
		return true
	}
	for i := max(n.below(from), 0); i < len(n.kids); i++ {
		if !n.kids[i].walk(from, yield) {
			return false
		}
	}
	return true
}

// prefixed iterates over the keys that begin with prefix, in order.
func (t table[V]) prefixed(prefix string) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for k, v := range t.from(prefix) {
			if !strings.HasPrefix(k, prefix) || !yield(k, v) {
				return
			}
		}
	}
}
