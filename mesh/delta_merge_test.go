package mesh

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// Several deltas are one, for every sequence of views.
func TestMergeDeltas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func() View {
			v := View{Self: Node{Kind: KindHost, Name: "self"}, Revision: Revision{1, rapid.Int64Range(1, 99).Draw(t, "revision")}}
			for _, id := range []string{"a", "b", "c", "d"} {
				if rapid.Bool().Draw(t, "there") {
					v.Machines = append(v.Machines, Machine{Org: "o", ID: id, Host: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "host")})
				}
				if rapid.Bool().Draw(t, "there") {
					v.Hosts = append(v.Hosts, ViewHost{Name: id, Present: rapid.Bool().Draw(t, "present")})
				}
				if rapid.Bool().Draw(t, "there") {
					v.Health = append(v.Health, Health{Org: "o", Machine: id, Passing: rapid.Bool().Draw(t, "passing")})
				}
				if rapid.Bool().Draw(t, "there") {
					v.Grants = append(v.Grants, Grant{ID: id, FirstPort: rapid.Uint16Range(1, 2).Draw(t, "port")})
				}
				if rapid.Bool().Draw(t, "there") {
					v.Records = append(v.Records, Record{Org: "o", Name: id, Type: RecordTXT, Values: []string{rapid.SampledFrom([]string{"x", "y"}).Draw(t, "value")}})
				}
			}
			if rapid.Bool().Draw(t, "there") {
				v.Coordinate = &Coordinate{Error: float64(rapid.IntRange(0, 1).Draw(t, "error"))}
			}
			v.Controllers = []string{rapid.SampledFrom([]string{"x", "y"}).Draw(t, "controller")}
			return v
		}
		first := draw()
		at, one := first, first
		var list []Delta
		for range rapid.IntRange(1, 5).Draw(t, "deltas") {
			next := draw()
			list = append(list, DiffViews(at, next))
			at, one = next, one.Apply(list[len(list)-1])
		}
		if got := first.Apply(MergeDeltas(list)); !reflect.DeepEqual(got, one) {
			t.Fatalf("got\n%+v\nwant\n%+v", got, one)
		}
	})
}

// Nothing that a delta can hold is forgotten: one that has something of every kind
// comes out as it was.
func TestMergeDeltasKnowsEveryKind(t *testing.T) {
	var d Delta
	v := reflect.ValueOf(&d).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
		case reflect.Int:
			f.SetInt(1)
		case reflect.Struct:
		default:
			t.Fatalf("field %s: a kind that this test does not know", v.Type().Field(i).Name)
		}
	}
	d.Removed = []string{"machines/o/gone"}
	if got := MergeDeltas([]Delta{{}, d, {}}); !reflect.DeepEqual(got, d) {
		t.Errorf("got\n%+v\nwant\n%+v", got, d)
	}
}
