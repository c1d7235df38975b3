package mesh

import (
	"iter"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// Table is an immutable map in key order. Set and Delete return a new Table that
// shares what did not change: their cost is the key's length, not the table's
// size. The zero Table is empty.
type Table[T any] struct {
	tree *iradix.Tree[T]
	txn  *iradix.Txn[T] // while many changes are made, see withMany
}

// Get returns the value at key.
func (t Table[T]) Get(key string) (value T, ok bool) {
	if t.txn != nil {
		return t.txn.Get([]byte(key))
	}
	if t.tree == nil {
		return value, false
	}
	return t.tree.Get([]byte(key))
}

// Has reports whether there is a value at key.
func (t Table[T]) Has(key string) bool { _, ok := t.Get(key); return ok }

// Len returns the number of values.
func (t Table[T]) Len() int {
	if t.tree == nil {
		return 0
	}
	return t.tree.Len()
}

// Set returns a Table with value at key.
func (t Table[T]) Set(key string, value T) Table[T] {
	if t.txn != nil {
		t.txn.Insert([]byte(key), value)
		return t
	}
	tree := t.tree
	if tree == nil {
		tree = iradix.New[T]()
	}
	tree, _, _ = tree.Insert([]byte(key), value)
	return Table[T]{tree: tree}
}

// Delete returns a Table without key.
func (t Table[T]) Delete(key string) Table[T] {
	if t.txn != nil {
		t.txn.Delete([]byte(key))
		return t
	}
	if t.tree == nil {
		return t
	}
	tree, _, _ := t.tree.Delete([]byte(key))
	return Table[T]{tree: tree}
}

// All iterates in key order.
func (t Table[T]) All() iter.Seq2[string, T] { return t.Prefix("") }

// Prefix iterates over the keys that begin with prefix, in key order.
func (t Table[T]) Prefix(prefix string) iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		if t.tree == nil {
			return
		}
		it := t.tree.Root().Iterator()
		it.SeekPrefix([]byte(prefix))
		for k, v, ok := it.Next(); ok; k, v, ok = it.Next() {
			if !yield(string(k), v) {
				return
			}
		}
	}
}
