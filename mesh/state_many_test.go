package mesh

import (
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// Many changes at once lead where one after the other does, and leave alone what
// they come from.
func TestWithManyEqualsOneByOne(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		from := drawState(t)
		before := text(t, objects(from)) + text(t, answers(from))
		changes := rapid.SliceOfN(rapid.Custom(drawAnyChange), many, 2*many).Draw(t, "changes")
		want := from
		for _, c := range changes {
			want = want.With(c)
		}
		got := from.With(changes...)
		if diff := cmp.Diff(text(t, objects(want))+text(t, answers(want)), text(t, objects(got))+text(t, answers(got))); diff != "" {
			t.Fatalf("(-one by one +at once):\n%s", diff)
		}
		if now := text(t, objects(from)) + text(t, answers(from)); now != before {
			t.Fatalf("the state that they come from changed:\n%s", cmp.Diff(before, now))
		}
		if got.With(Change{Key: "orgs/a"}); text(t, objects(got)) != text(t, objects(want)) {
			t.Fatal("the state that they lead to is still being changed")
		}
	})
}

// A table that withMany forgot would be slow, and nobody would notice.
func TestAllTablesAreBatched(t *testing.T) {
	t.Parallel()
	s, n := State{}, 0
	for _, f := range reflect.VisibleFields(reflect.TypeOf(s)) {
		if strings.HasPrefix(f.Type.Name(), "Table[") {
			n++
		}
	}
	if got := len(s.tables()); got != n {
		t.Errorf("%d tables are batched, a State has %d", got, n)
	}
}
