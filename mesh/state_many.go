package mesh

import iradix "github.com/hashicorp/go-immutable-radix/v2"

// many is the number of changes from which on it pays to make them together.
// Registrations that share a transaction are some dozens, a list of everything makes
// a hundred thousand.
const many = 8

// withMany is With in one transaction for each table: nodes that were made in it are
// changed in place.
func (s State) withMany(changes []Change) State {
	for _, t := range s.tables() {
		t.begin()
	}
	s = s.with(changes)
	for _, t := range s.tables() {
		t.commit()
	}
	return s
}

// batched is a Table that many changes are made to.
type batched interface {
	begin()
	commit()
}

// tables are all of a state's.
func (s *State) tables() []batched {
	return []batched{
		&s.Orgs, &s.Apps, &s.Regions, &s.Hosts, &s.Machines, &s.Clients, &s.Tokens, &s.Operators, &s.Presence, &s.Reserved, &s.Controllers,
		&s.Records, &s.Health, &s.Coordinates, &s.Grants,
		&s.byHost, &s.carries, &s.carried, &s.byPlace, &s.counts, &s.byTLS,
		&s.grantsOf, &s.byApp, &s.stands,
	}
}

func (t *Table[T]) begin() {
	tree := t.tree
	if tree == nil {
		tree = iradix.New[T]()
	}
	t.txn = tree.Txn()
}

func (t *Table[T]) commit() { t.tree, t.txn = t.txn.Commit(), nil }
