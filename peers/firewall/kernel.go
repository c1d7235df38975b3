package firewall

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// chunk is how many elements go into one message: a netlink attribute holds 64
// KiB.
const chunk = 500

// kernel is one conversation with nftables.
type kernel struct{ conn *nftables.Conn }

func (k *kernel) Close() error { return k.conn.CloseLasting() }

// found is the table as the kernel holds it.
type found struct {
	exists  bool
	dormant bool // switched off: its chains see no packets
	sets    map[string]foundSet
	chains  map[string]foundChain
}

type foundSet struct {
	shape    string
	elements []Element // sorted
}

type foundChain struct {
	shape string
	marks []string // of the rules, in order
}

// shape is what cannot be changed about a set once it is made.
func setShape(s *nftables.Set) string {
	return fmt.Sprint(s.KeyType.Bytes, s.Interval, s.Concatenation, s.IsMap, s.HasTimeout, s.Constant, s.Dynamic, s.Anonymous)
}

func chainShape(c *nftables.Chain) string {
	if c.Hooknum == nil || c.Priority == nil || c.Policy == nil {
		return "no hook"
	}
	return fmt.Sprint(c.Type, *c.Hooknum, *c.Priority, *c.Policy)
}

// table returns nil without an error if there is none.
func (k *kernel) table() (*nftables.Table, error) {
	tables, err := k.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == tableName {
			return t, nil
		}
	}
	return nil, nil
}

// read asks for all of the table.
func (k *kernel) read() (found, error) {
	f := found{sets: map[string]foundSet{}, chains: map[string]foundChain{}}
	t, err := k.table()
	if err != nil || t == nil {
		return f, err
	}
	f.exists, f.dormant = true, t.Flags != 0
	sets, err := k.conn.GetSets(t)
	if err != nil {
		return f, fmt.Errorf("list sets of table inet %s: %w", tableName, err)
	}
	for _, s := range sets {
		if s.Dynamic { // the kernel's own
			f.sets[s.Name] = foundSet{shape: setShape(s)}
			continue
		}
		got, err := k.conn.GetSetElements(s)
		if err != nil {
			return f, fmt.Errorf("list elements of set %s: %w", s.Name, err)
		}
		x := foundSet{shape: setShape(s), elements: make([]Element, 0, len(got))}
		for _, e := range got {
			x.elements = append(x.elements, element(e))
		}
		x.elements = sortElements(x.elements)
		f.sets[s.Name] = x
	}
	chains, err := k.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return f, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Table == nil || c.Table.Name != tableName {
			continue
		}
		rules, err := k.conn.GetRules(t, c)
		if err != nil {
			return f, fmt.Errorf("list rules of chain %s: %w", c.Name, err)
		}
		x := foundChain{shape: chainShape(c)}
		for _, r := range rules {
			x.marks = append(x.marks, string(r.UserData))
		}
		f.chains[c.Name] = x
	}
	return f, nil
}

// difference is what leads from the kernel's table to the wanted one.
type difference struct {
	why    string // not "": the whole table has to be replaced, because of this
	deltas []delta
	grants boxes // of the wanted table
}

type delta struct {
	set         Set
	plus, minus []Element
}

func (d difference) empty() bool { return d.why == "" && len(d.deltas) == 0 }

func (d difference) added() (n int) {
	for _, x := range d.deltas {
		n += len(x.plus)
	}
	return n
}

func (d difference) removed() (n int) {
	for _, x := range d.deltas {
		n += len(x.minus)
	}
	return n
}

func (d difference) String() string {
	out := []string{}
	if d.why != "" {
		out = append(out, d.why)
	}
	for _, x := range d.deltas {
		out = append(out, fmt.Sprintf("set %s lacks %d elements and has %d too many", x.set.Name, len(x.plus), len(x.minus)))
	}
	return strings.Join(out, ", ")
}

// compare computes the difference.
func compare(have found, want Table) difference {
	switch {
	case !have.exists:
		return difference{why: "there was none"}
	case have.dormant:
		return difference{why: "somebody switched it off"}
	case len(have.sets) != len(want.Sets):
		return difference{why: fmt.Sprintf("it had %d sets, not %d", len(have.sets), len(want.Sets))}
	case len(have.chains) != len(want.Chains):
		return difference{why: fmt.Sprintf("it had %d chains, not %d", len(have.chains), len(want.Chains))}
	}
	for _, c := range want.Chains {
		got, ok := have.chains[c.Name]
		if !ok || got.shape != chainShape(c.spec(nil)) {
			return difference{why: fmt.Sprintf("chain %s was missing or hooked otherwise", c.Name)}
		}
		if why := compareRules(got.marks, c.Rules); why != "" {
			return difference{why: fmt.Sprintf("chain %s %s", c.Name, why)}
		}
	}
	var d difference
	for _, s := range want.Sets {
		got, ok := have.sets[s.Name]
		if !ok || got.shape != setShape(s.spec(nil)) {
			return difference{why: fmt.Sprintf("set %s was missing or of another kind", s.Name)}
		}
		plus, minus := subtract(s.Elements, got.elements), subtract(got.elements, s.Elements)
		if len(plus)+len(minus) > 0 {
			d.deltas = append(d.deltas, delta{s, plus, minus})
		}
	}
	return d
}

func compareRules(have []string, want []Rule) (why string) {
	if len(have) != len(want) {
		return fmt.Sprintf("had %d rules, not %d", len(have), len(want))
	}
	for i, r := range want {
		if mark, err := r.mark(); err != nil || have[i] != string(mark) {
			return fmt.Sprintf("had another rule for %q", r.Name)
		}
	}
	return ""
}

// difference asks the kernel and compares. When elements seem to be missing it asks
// until it gets the same answer twice: see verify.
func (k *kernel) difference(want Table) (d difference, err error) {
	last := ""
	for range 5 {
		have, err := k.read()
		if err != nil {
			return d, err
		}
		d = compare(have, want)
		if d.empty() || d.why != "" || d.String() == last {
			break
		}
		last = d.String()
	}
	return d, nil
}

// subtract returns what is in a and not in b; both are sorted.
func subtract(a, b []Element) []Element {
	in := make(map[Element]struct{}, len(b))
	for _, e := range b {
		in[e] = struct{}{}
	}
	var out []Element
	for _, e := range a {
		if _, ok := in[e]; !ok {
			out = append(out, e)
		}
	}
	return out
}

func ourTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// update adds and deletes elements, in one transaction.
func (k *kernel) update(d difference) error {
	t := ourTable()
	for _, x := range d.deltas {
		s := x.set.spec(t)
		for part := range slices.Chunk(x.set.elements(x.minus), chunk) {
			if err := k.conn.SetDeleteElements(s, part); err != nil {
				return fmt.Errorf("remove elements of set %s: %w", s.Name, err)
			}
		}
		for part := range slices.Chunk(x.set.elements(x.plus), chunk) {
			if err := k.conn.SetAddElements(s, part); err != nil {
				return fmt.Errorf("add elements to set %s: %w", s.Name, err)
			}
		}
	}
	if err := k.conn.Flush(); err != nil {
		return fmt.Errorf("update sets: %w", err)
	}
	return nil
}

// replace puts the table in place of whatever is there, in one transaction.
func (k *kernel) replace(want Table) error {
	t := ourTable()
	// Deleting fails if there is none; adding does not if there is one.
	k.conn.AddTable(t)
	k.conn.DelTable(t)
	k.conn.AddTable(t)
	for i, s := range want.Sets {
		spec := s.spec(t)
		// Unique within the batch. Left at zero the library would draw it from a counter
		// that all connections share without a lock.
		spec.ID = uint32(i + 1)
		if err := k.conn.AddSet(spec, nil); err != nil {
			return fmt.Errorf("add set %s: %w", s.Name, err)
		}
		for part := range slices.Chunk(s.elements(s.Elements), chunk) {
			if err := k.conn.SetAddElements(spec, part); err != nil {
				return fmt.Errorf("add elements to set %s: %w", s.Name, err)
			}
		}
	}
	// All chains before any rule: rules name chains.
	chains := make([]*nftables.Chain, len(want.Chains))
	for i, c := range want.Chains {
		chains[i] = k.conn.AddChain(c.spec(t))
	}
	for i, c := range want.Chains {
		for _, r := range c.Rules {
			mark, err := r.mark()
			if err != nil {
				return err
			}
			k.conn.AddRule(&nftables.Rule{Table: t, Chain: chains[i], Exprs: r.exprs, UserData: mark})
		}
	}
	return k.conn.Flush()
}

// remove deletes the table if there is one.
func (k *kernel) remove() error {
	t := ourTable()
	k.conn.AddTable(t)
	k.conn.DelTable(t)
	return k.conn.Flush()
}
