package firewall

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// mutant is the matrix's table with one thing missing or turned round.
type mutant struct {
	name  string
	table Table
}

// mutantsOf lacks one rule each, or one element of a set, or has one chain's policy
// the other way round.
func mutantsOf(whole Table) (out []mutant) {
	add := func(name string, change func(*Table)) {
		t := Table{Sets: slices.Clone(whole.Sets), Chains: slices.Clone(whole.Chains)}
		change(&t)
		out = append(out, mutant{name, t})
	}
	for i, c := range whole.Chains {
		for j, r := range c.Rules {
			if r.Name == tooMany {
				continue // the matrix goes nowhere too far: see TestRates
			}
			add(fmt.Sprintf("chain %s without rule %d, %s: %s", c.Name, j, r.Name, r.Text), func(t *Table) {
				t.Chains[i].Rules = slices.Delete(slices.Clone(c.Rules), j, j+1)
			})
		}
		if c.Hook != "" {
			add(fmt.Sprintf("chain %s with the policy turned round", c.Name), func(t *Table) { t.Chains[i].Accept = !c.Accept })
		}
	}
	for i, s := range whole.Sets {
		for j, e := range s.Elements {
			add(fmt.Sprintf("set %s without %s", s.Name, s.Kind.text(string(e))), func(t *Table) {
				t.Sets[i].Elements = slices.Delete(slices.Clone(s.Elements), j, j+1)
			})
		}
	}
	return out
}

// Each rule, each element and each policy is there for something: without it the
// matrix comes out differently. What is not noticed is superfluous, or the matrix
// lacks a cell.
func TestMatrixNoticesEveryRule(t *testing.T) {
	t.Parallel()
	m := newMatrixLab(t)
	cells, later := m.cells(), laterCells()
	whole := must(Render(matrixPolicy()))
	want := m.whole(t, cells, later)
	unchanged := func() {
		t.Helper()
		m.put(t, whole)
		if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(m.whole(t, cells, later), "\n")); diff != "" {
			t.Fatalf("the matrix has changed by itself (-want +got):\n%s", diff)
		}
	}
	mutants := mutantsOf(whole)
	began := time.Now()
	for i, x := range mutants {
		if i%10 == 0 {
			unchanged() // so it is the mutant that makes the difference
		}
		m.put(t, x.table)
		if m.whole(t, cells, later) == want {
			t.Errorf("%s: not noticed", x.name)
		}
	}
	unchanged()
	t.Logf("%d mutants in %s", len(mutants), time.Since(began).Round(time.Millisecond))
}
