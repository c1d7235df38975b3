package agent

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// rewrite walks the objects of a JSON text and lets change do something to each.
func rewrite(t *testing.T, text []byte, change func(object map[string]any)) []byte {
	t.Helper()
	var whole any
	if err := json.Unmarshal(text, &whole); err != nil {
		t.Fatal(err)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, inner := range v {
				walk(inner)
			}
			change(v)
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(whole)
	out, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fromTheFuture adds what no program knows to every object, but for the one that is a
// map of the user's.
func fromTheFuture(object map[string]any) {
	if len(object) == 1 && object["k"] == "v" {
		return
	}
	object["of_a_later_version"] = map[string]any{"x": []any{1, "two", nil}}
}

// A newer controller says more than this agent knows: what it does know arrives. The
// same holds for what a newer agent has left on disk.
func TestViewsOfLaterVersions(t *testing.T) {
	t.Parallel()
	v := sampleView(t)
	views, deltas := history(t, 8, 40)
	got := mesh.View{}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(rewrite(t, text, fromTheFuture), &got); err != nil {
		t.Fatal(err)
	}
	if viewText(got) != viewText(*v) {
		t.Errorf("a view with unknown fields:\n%s\nwant\n%s", viewText(got), viewText(*v))
	}
	c := current{}
	if !c.snapshot(&got, time.Unix(0, 0)) {
		t.Fatal("the view is not taken")
	}
	for i, d := range deltas {
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var again mesh.Delta
		if err := json.Unmarshal(rewrite(t, text, fromTheFuture), &again); err != nil {
			t.Fatal(err)
		}
		again.Removed = append(again.Removed, "of-a-later-version/x")
		if !c.delta(again, time.Unix(0, 0)) {
			t.Fatalf("change %d is not taken", i)
		}
		if viewText(*c.effective.View()) != viewText(*views[i+1]) {
			t.Fatalf("after change %d the view is another one", i)
		}
	}
}

// An older controller says less: whatever it leaves out but for the node itself and
// the mesh's numbers, the view is taken, and so is a change.
func TestViewsOfEarlierVersions(t *testing.T) {
	t.Parallel()
	v := sampleView(t)
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	needed := []string{"revision", "prefix", "self", "host"}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		less := maps.Clone(fields)
		delete(less, field)
		b, err := json.Marshal(less)
		if err != nil {
			t.Fatal(err)
		}
		var got mesh.View
		err = json.Unmarshal(b, &got)
		if err == nil {
			err = checkView(&got, v.Self)
		}
		if want := slices.Contains(needed, field); !want && err != nil {
			t.Errorf("a view without %q: %v", field, err)
		}
	}
	// What an older controller's objects lack is as if it were not set.
	var got mesh.View
	if err := json.Unmarshal(rewrite(t, text, func(o map[string]any) {
		for _, field := range []string{"format", "health", "records", "coordinate", "generation", "checks", "unlisted", "cordoned", "grants"} {
			delete(o, field)
		}
	}), &got); err != nil {
		t.Fatal(err)
	}
	if err := checkView(&got, v.Self); err != nil || len(got.Hosts) != len(v.Hosts) || len(got.Machines) != len(v.Machines) {
		t.Errorf("%v; %d hosts, %d machines", err, len(got.Hosts), len(got.Machines))
	}
	c := current{}
	if !c.snapshot(&got, time.Unix(0, 0)) || c.resume() != (mesh.Revision{}) {
		t.Errorf("of format %d, a change from %s on would not bring what it lacks", got.Format, c.resume())
	}
}
