package mesh

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// drawStep is a step of a few changes, as they come from one revision or from
// many.
func drawStep(t *rapid.T, s State) Step {
	step := Step{Before: s, After: s}
	for range rapid.IntRange(1, 6).Draw(t, "changes of a step") {
		c := drawAnyChange(t)
		step.After = step.After.With(c)
		step.Keys = append(step.Keys, c.Key)
	}
	step.After.Revision.Revision += rapid.Int64Range(1, 5).Draw(t, "revisions of a step")
	return step
}

// drawAnyChange is drawChange with what few states have: machines that move,
// controllers, and objects that no view shows.
func drawAnyChange(t *rapid.T) Change {
	switch rapid.IntRange(0, 9).Draw(t, "any") {
	case 0:
		name := rapid.SampledFrom([]string{"c1", "c2"}).Draw(t, "controller")
		if rapid.IntRange(0, 3).Draw(t, "controller gone") == 0 {
			return Change{Key: "controllers/" + name}
		}
		urls := rapid.SliceOfN(rapid.SampledFrom([]string{"https://192.0.2.7:7443", "https://192.0.2.8:7443", deployment.Controllers[0]}), 1, 2)
		return Change{"controllers/" + name, Controller{Name: name, URLs: urls.Draw(t, "urls"), Version: rapid.SampledFrom([]string{"1", "2"}).Draw(t, "version")}}
	case 1:
		return Change{"tokens/t", Token{ID: "t", Org: rapid.SampledFrom(orgNames).Draw(t, "org of the token")}}
	case 2, 3:
		org := rapid.SampledFrom(orgNames).Draw(t, "org of the machine")
		key, m := drawMachine(t, org, rapid.SampledFrom(hostNames).Draw(t, "host of the machine"), "secret-of-"+org+".")
		m.Next = rapid.SampledFrom(hostNames).Draw(t, "next host")
		return Change{key, m}
	}
	return drawChange(t)
}

// merged is all steps as one.
func merged(steps []Step) Step {
	out := Step{Before: steps[0].Before, After: steps[len(steps)-1].After}
	for _, s := range steps {
		out.Keys = append(out.Keys, s.Keys...)
	}
	return out
}

// concerned reports whether node is in an audience, by the words of its contract.
func (x Audience) concerned(node Node, before, after State) bool {
	if x.All || slices.Contains(x.Nodes, node) {
		return true
	}
	if node.Kind == KindClient {
		return x.AllClients || slices.Contains(x.Clients, node.Org)
	}
	for _, org := range x.Orgs {
		if slices.Contains(before.OrgsOf(node.Name), org) || slices.Contains(after.OrgsOf(node.Name), org) {
			return true
		}
	}
	return false
}

// The law of Advance, for one step and for many that are taken as one: its deltas
// are the differences of whole views, nobody outside the audience has one, and a
// common one is that of each host that carries the org.
func TestAdvanceEqualsTheDifferenceOfViews(t *testing.T) {
	t.Parallel()
	common, own := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		var steps []Step
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			step := drawStep(t, s)
			steps, s = append(steps, step), step.After
		}
		for _, step := range append(steps, merged(steps)) {
			a := NewAdvance(step, deployment)
			all := map[Node]bool{}
			for _, n := range append(nodes(step.Before), nodes(step.After)...) {
				all[n] = true
			}
			for node := range all {
				checkDelta(t, a, step, node)
			}
			if c, ok := a.Common(); ok {
				common++
				checkCommon(t, a, c, step)
			} else {
				own++
			}
		}
	})
	if common == 0 || own == 0 {
		t.Errorf("%d steps had a common delta, %d had not: this proves nothing", common, own)
	}
}

func checkDelta(t *rapid.T, a *Advance, step Step, node Node) {
	before, was := step.Before.View(node, deployment)
	after, is := step.After.View(node, deployment)
	got, ok := a.Delta(node)
	if step.Before.HasView(node) != was || step.After.HasView(node) != is {
		t.Fatalf("%s: HasView and View do not agree", node)
	}
	if ok != (was && is) {
		t.Fatalf("%s: a delta %v, a view before %v, after %v", node, ok, was, is)
	}
	if !ok {
		return
	}
	if want := DiffViews(before, after); !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: delta of %v (-want +got):\n%s", node, step.Keys, cmp.Diff(text(t, want), text(t, got)))
	}
	if v := before.Apply(got); !reflect.DeepEqual(v, after) {
		t.Fatalf("%s: view (-want +got):\n%s", node, cmp.Diff(text(t, after), text(t, v)))
	}
	if !got.Empty() && !a.Audience().concerned(node, step.Before, step.After) {
		t.Fatalf("%s is not in the audience %+v of %v, and has a delta:\n%s", node, a.Audience(), step.Keys, text(t, got))
	}
}

func checkCommon(t *rapid.T, a *Advance, c Common, step Step) {
	for _, host := range step.After.HostsOf(c.Org) {
		got, ok := a.Delta(Node{Kind: KindHost, Name: host})
		if !ok || slices.Contains(c.Except, host) {
			continue
		}
		if !reflect.DeepEqual(got, c.Delta) {
			t.Fatalf("%s: of %v (-common +its own):\n%s", host, step.Keys, cmp.Diff(text(t, c.Delta), text(t, got)))
		}
	}
	for _, key := range c.Delta.Clients {
		if key.Key != nil {
			t.Fatalf("a common delta holds a client's key:\n%s", text(t, c.Delta))
		}
	}
}

// Only what is said to be carried or no longer is.
func TestCarryIsTheDifferenceOfOrgsOf(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		step := drawStep(t, drawState(t))
		want, got := map[string]bool{}, map[string]bool{}
		for _, host := range hostNames {
			before, after := step.Before.OrgsOf(host), step.After.OrgsOf(host)
			for _, org := range orgNames {
				if was, is := slices.Contains(before, org), slices.Contains(after, org); was != is {
					want[host+" "+org] = is
				}
			}
		}
		NewAdvance(step, deployment).Carry(func(host, org string, now bool) { got[host+" "+org] = now })
		if !maps.Equal(got, want) {
			t.Fatalf("of %v: %v, want %v", step.Keys, got, want)
		}
	})
}

// What a step's undoing leads back to is where it came from.
func TestUndoLeadsBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		first := drawStep(t, s)
		second := drawStep(t, first.After)
		back := second.After.With(second.Undo()...).With(first.Undo()...)
		back.Revision.Revision = s.Revision.Revision
		if diff := cmp.Diff(text(t, objects(s)), text(t, objects(back))); diff != "" {
			t.Fatalf("(-before +back):\n%s", diff)
		}
		for _, node := range nodes(s) {
			want, _ := s.View(node, deployment)
			if got, _ := back.View(node, deployment); !reflect.DeepEqual(got, want) {
				t.Fatalf("%s (-before +back):\n%s", node, cmp.Diff(text(t, want), text(t, got)))
			}
		}
	})
}

// Another epoch has no deltas: its revisions are of another history.
func TestAnotherEpochHasNoDeltas(t *testing.T) {
	t.Parallel()
	s := threeHosts()
	next := s.With(Change{"mesh", Mesh{Plan: s.Mesh.Plan, Epoch: s.Revision.Epoch + 1}})
	a := NewAdvance(Step{Before: s, After: next, Keys: []string{"mesh"}}, deployment)
	if _, ok := a.Delta(Node{Kind: KindHost, Name: "fra1"}); ok || !a.Resync() || !a.Audience().All {
		t.Error("a delta leads to another epoch")
	}
}

func TestControllersOfAView(t *testing.T) {
	t.Parallel()
	s := threeHosts().With(
		Change{"controllers/b", Controller{Name: "b", URLs: []string{"https://192.0.2.2:7443", "https://192.0.2.9:7443"}}},
		Change{"controllers/a", Controller{Name: "a", URLs: []string{"https://192.0.2.3:7443"}}},
	)
	v, _ := s.View(Node{Kind: KindHost, Name: "fra1"}, deployment)
	want := []string{"https://192.0.2.2:7443", "https://192.0.2.3:7443", "https://192.0.2.9:7443"}
	if !slices.Equal(v.Controllers, want) {
		t.Errorf("controllers %v, want %v", v.Controllers, want)
	}
}

// A change of a machine costs the same at any size of the mesh.
func BenchmarkAdvance(b *testing.B) {
	for _, n := range []int{1000, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := threeHosts()
			for i := range n {
				s = s.With(Change{fmt.Sprintf("machines/other/m%d", i), Machine{Org: "other", ID: fmt.Sprint("m", i), Host: "x"}})
			}
			m := Machine{Org: "acme", ID: "new", App: "web", Host: "fra1", State: StateStarted}
			key := "machines/acme/new"
			on := s.With(Change{key, m})
			m.State = StateStopped
			off := on.With(Change{key, m})
			step := Step{Before: on, After: off, Keys: []string{key}}
			b.ReportAllocs()
			for b.Loop() {
				if c, ok := NewAdvance(step, deployment).Common(); !ok || c.Delta.Empty() {
					b.Fatal("no common delta")
				}
			}
		})
	}
}
