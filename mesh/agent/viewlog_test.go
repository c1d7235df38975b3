package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weftmesh/weft/mesh"
)

// history is a view and changes of it: machines come, change and go, and hosts.
func history(t testing.TB, seed uint64, changes int) (views []*mesh.View, deltas []mesh.Delta) {
	r := rand.New(rand.NewPCG(seed, seed))
	v := sampleView(t)
	views = append(views, v)
	for i := range changes {
		next := *v
		next.Revision.Revision += int64(1 + r.IntN(3))
		switch r.IntN(4) {
		case 0:
			next.Machines = append(next.Machines[:0:0], v.Machines...)
			m := v.Machines[0]
			m.ID = fmt.Sprintf("new-%03d", i)
			m.Endpoint = v.Plan.Endpoint(1, v.Host.Position(), uint16(100+i))
			next.Machines = append(next.Machines, m)
		case 1:
			if len(v.Machines) > 1 {
				at := 1 + r.IntN(len(v.Machines)-1)
				next.Machines = append(v.Machines[:at:at], v.Machines[at+1:]...)
			}
		case 2:
			next.Hosts = append(next.Hosts[:0:0], v.Hosts...)
			if len(next.Hosts) > 0 {
				next.Hosts[0].Cordoned = !next.Hosts[0].Cordoned
			}
		default:
			next.Controllers = []string{fmt.Sprintf("https://192.0.2.%d:7443", 1+r.IntN(200))}
		}
		sortView(&next)
		d := mesh.DiffViews(*v, next)
		views, deltas, v = append(views, &next), append(deltas, d), &next
	}
	return views, deltas
}

// filesOf are a base and its log of a history, and where each record of the log ends.
func filesOf(t testing.TB, views []*mesh.View, deltas []mesh.Delta) (base, log []byte, ends []int) {
	base, own, err := encodeBase(views[0], true, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	log = logHeader(own)
	last := sum(log[headerSize-len(own):])
	for i, d := range deltas {
		if log, last, err = appendLogged(log, last, logged{Saved: time.Unix(int64(i+1), 0), Format: views[i+1].Format, Delta: d}); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, len(log))
	}
	return base, log, ends
}

// Wherever the log ends, the view is the one of the last whole record; and where the
// file system left zeros instead of what was written, too.
func TestLogIsCutAnywhere(t *testing.T) {
	t.Parallel()
	views, deltas := history(t, 1, 12)
	base, log, ends := filesOf(t, views, deltas)
	for n := range len(log) + 1 {
		whole := 0
		for whole < len(ends) && ends[whole] <= n {
			whole++
		}
		atEnd := n == 0 || n == headerSize || whole > 0 && ends[whole-1] == n
		for what, text := range map[string][]byte{"cut": log[:n], "zeros": append(bytes.Clone(log[:n]), make([]byte, len(log)-n)...)} {
			k, err := decodeKept(base, text, views[0].Self)
			if err != nil {
				t.Fatalf("%s at %d of %d: %v", what, n, len(log), err)
			}
			// A record that ends in zeros by itself would be whole, which JSON does not.
			if got, want := viewText(*k.view), viewText(*views[whole]); got != want {
				t.Fatalf("%s at %d: revision %s, want %s", what, n, k.view.Revision, views[whole].Revision)
			}
			if told := k.dropped != ""; what == "cut" && told == atEnd || what == "zeros" && n < len(log) && !told {
				t.Fatalf("%s at %d: told %q", what, n, k.dropped)
			}
			if !k.whole {
				t.Fatalf("%s at %d: it cannot be resumed from", what, n)
			}
		}
	}
}

// Whatever is changed in the files, they are refused or hold a view that was once in
// force. In the middle of the log nothing is passed over.
func TestLogChecksums(t *testing.T) {
	t.Parallel()
	views, deltas := history(t, 2, 12)
	base, log, ends := filesOf(t, views, deltas)
	middle := ends[len(ends)-2]
	rapid.Check(t, func(t *rapid.T) {
		bad := bytes.Clone(log)
		i := rapid.IntRange(0, len(bad)-1).Draw(t, "at")
		bad[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		k, err := decodeKept(base, bad, views[0].Self)
		switch {
		case i < middle && !errors.Is(err, errDamaged):
			t.Fatalf("byte %d of %d: %v, revision %s", i, len(bad), err, k.view.Revision)
		case i >= middle && err == nil && viewText(*k.view) != viewText(*views[len(views)-2]):
			t.Fatalf("byte %d of %d: accepted as revision %s", i, len(bad), k.view.Revision)
		}
	})
}

// Records that are whole but not where they belong are damage.
func TestLogOfOthers(t *testing.T) {
	t.Parallel()
	views, deltas := history(t, 3, 6)
	base, log, ends := filesOf(t, views, deltas)
	other, _, err := encodeBase(views[3], true, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	held, _, err := encodeBase(views[0], false, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	splice := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	first, second, third := log[headerSize:ends[0]], log[ends[0]:ends[1]], log[ends[1]:ends[2]]
	header := log[:headerSize]
	for _, tt := range []struct {
		name      string
		base, log []byte
		rev       *mesh.View // nil: refused
		dropped   string
	}{
		{"as written", base, log, views[6], ""},
		{"no log", base, nil, views[0], ""},
		{"an empty log", base, header, views[0], ""},
		{"the log of the base before", other, log, views[3], "of an earlier view"},
		{"a record twice", base, splice(header, first, first, second), nil, ""},
		{"a record left out", base, splice(header, first, third, log[ends[2]:]), nil, ""},
		{"two in another order", base, splice(header, second, first), nil, ""},
		{"a log of another version", base, splice([]byte("weftlog2"), log[8:]), nil, ""},
		{"something behind", base, splice(log, []byte(strings.Repeat("x", 100))), nil, ""},
		{"a base that nothing leads on from", held, log, nil, ""},
	} {
		k, err := decodeKept(tt.base, tt.log, views[0].Self)
		if tt.rev == nil {
			if !errors.Is(err, errDamaged) {
				t.Errorf("%s: %v, want refused", tt.name, err)
			}
			continue
		}
		if err != nil || viewText(*k.view) != viewText(*tt.rev) || !strings.Contains(k.dropped, tt.dropped) || (tt.dropped == "") != (k.dropped == "") {
			t.Errorf("%s: %v, dropped %q", tt.name, err, k.dropped)
		}
	}
}

// What the keeper writes is, after each write, what the next agent reads; a change
// costs what it is, and the log does not grow for ever.
func TestKeeper(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	views, deltas := history(t, 4, 400)
	k := &keeper{dir: dir}
	defer k.close()
	check := func(i int) {
		t.Helper()
		got, err := readCache(dir, views[0].Self)
		if err != nil || viewText(*got.view) != viewText(*views[i]) || got.dropped != "" || !got.whole {
			t.Fatalf("after change %d: %v, dropped %q", i, err, got.dropped)
		}
	}
	v := versionOf(views[0])
	if err := k.keep(v, true, true, nil); err != nil {
		t.Fatal(err)
	}
	check(0)
	bases, most := 0, 0
	base := k.base
	for i, d := range deltas {
		v = v.with(d)
		if err := k.keep(v, true, false, []mesh.Delta{d}); err != nil {
			t.Fatal(err)
		}
		if k.base == base && v.made.Load() != nil {
			t.Fatalf("change %d: the whole view was made to keep what changed", i)
		}
		if i%7 == 0 || k.base != base {
			check(i + 1)
		}
		if k.base != base {
			base = k.base
			bases++
		}
		most = max(most, k.size)
	}
	check(len(deltas))
	if bases == 0 || most > leastLog+10_000 {
		t.Errorf("%d new bases, the log had %d bytes", bases, most)
	}
	// After a view that no step leads to, and one with more than the controllers said.
	held := *views[1]
	held.Revision.Revision += 10_000
	if err := k.keep(versionOf(&held), false, true, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := readCache(dir, held.Self); err != nil || viewText(*got.view) != viewText(held) || got.whole {
		t.Errorf("held back: %v, whole %t", err, got.whole)
	}
	// A write that fails leaves what was there, and the next one is whole.
	k.dir = filepath.Join(dir, "gone")
	if err := k.keep(v, true, true, nil); err == nil || !strings.Contains(err.Error(), "keep the view in") {
		t.Errorf("a directory that is not there: %v", err)
	}
	k.dir = dir
	if err := k.keep(v, true, false, nil); err != nil {
		t.Fatal(err)
	}
	check(len(deltas))
}

// benchView is a view of 100,000 machines on 200 hosts.
func benchView(b *testing.B) *mesh.View {
	v := sampleView(b)
	m := v.Machines[0]
	v.Machines = nil
	for i := range 100_000 {
		m.ID = fmt.Sprintf("machine-%06d", i)
		m.Endpoint = v.Plan.Endpoint(1, mesh.Host{Number: uint32(i/500 + 1), RegionNumber: 129}.Position(), uint16(i%500+1))
		v.Machines = append(v.Machines, m)
	}
	return v
}

// What one change of a large view costs the disk.
func BenchmarkKeepChange(b *testing.B) {
	v := versionOf(benchView(b))
	k := &keeper{dir: b.TempDir()}
	defer k.close()
	if err := k.keep(v, true, true, nil); err != nil {
		b.Fatal(err)
	}
	before := k.size
	for i := 0; b.Loop(); i++ {
		m := v.View().Machines[0]
		m.Group = fmt.Sprint(i)
		d := mesh.Delta{Revision: mesh.Revision{Epoch: 1, Revision: int64(100 + i)}, Machines: []mesh.Machine{m}}
		if err := k.keep(v.with(d), true, false, []mesh.Delta{d}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(k.base), "base-bytes")
	b.ReportMetric(float64(k.size-before)/float64(b.N), "written-bytes/op")
}

// What a start from the disk costs, with a log of 10,000 changes.
func BenchmarkReadCache(b *testing.B) {
	v := benchView(b)
	base, own, err := encodeBase(v, true, time.Unix(0, 0))
	if err != nil {
		b.Fatal(err)
	}
	log := logHeader(own)
	last := sum(log[headerSize-len(own):])
	for i := range 10_000 {
		m := v.Machines[i]
		m.Group = fmt.Sprint(i)
		d := mesh.Delta{Revision: mesh.Revision{Epoch: 1, Revision: int64(100 + i)}, Machines: []mesh.Machine{m}}
		if log, last, err = appendLogged(log, last, logged{Delta: d}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := decodeKept(base, log, v.Self); err != nil {
			b.Fatal(err)
		}
	}
}

// A crash between a new base and the end of the old log: the base alone counts.
func TestCrashBetweenBaseAndLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	views, deltas := history(t, 5, 5)
	_, log, _ := filesOf(t, views, deltas)
	base, err := encodeView(views[5], true, time.Unix(9, 0))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{cacheFile: base, logFile: log} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	logText, text := newLog(t)
	var p problems
	f := newFollower(views[5].Self, dir, quick(), nil, &p, logText)
	f.load()
	if v := f.View(); v == nil || v.Revision != views[5].Revision || len(p.list()) > 0 || !text.contains("of an earlier view") {
		t.Errorf("view %v, problems %v, log %s", v, p.list(), text)
	}
}

// A damaged log takes its base with it: both are put aside, and what that means is said.
func TestDamagedLogIsExplained(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	views, deltas := history(t, 6, 5)
	base, log, ends := filesOf(t, views, deltas)
	log[ends[1]+recordHead+3] ^= 1
	for name, text := range map[string][]byte{cacheFile: base, logFile: log} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := readCache(dir, views[0].Self)
	for _, want := range []string{
		filepath.Join(dir, cacheFile) + ": damaged: the checksum is another one", fmt.Sprintf("record at byte %d of the log", ends[1]),
		filepath.Join(dir, cacheFile) + ".damaged and " + filepath.Join(dir, logFile) + ".damaged", "Until a controller answers",
	} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("it does not say %q: %v", want, err)
		}
	}
	if hint := mesh.HintOf(err); !strings.Contains(hint, "controller") {
		t.Errorf("hint %q", hint)
	}
	if k, err := readCache(dir, views[0].Self); k.view != nil || err != nil {
		t.Errorf("met again: %v", err)
	}
}

// Any bytes in the two files: refused, or a view that was once in force. And records
// with right sums about anything at all do no harm.
func FuzzKept(f *testing.F) {
	// Small ones: Go's fuzzer spends its time on making large inputs smaller.
	v := sampleView(f)
	v.Hosts, v.Machines, v.Clients, v.Apps, v.Regions, v.Orgs, v.Health = nil, nil, nil, nil, nil, nil, nil
	views, deltas := []*mesh.View{v}, []mesh.Delta(nil)
	for i := range 3 {
		d := mesh.Delta{Revision: mesh.Revision{Epoch: 1, Revision: int64(10 + i)}, Controllers: []string{fmt.Sprint(i)}}
		next := views[i].Apply(d)
		views, deltas = append(views, &next), append(deltas, d)
	}
	base, log, ends := filesOf(f, views, deltas)
	once := map[string]bool{}
	for _, v := range views {
		once[viewText(*v)] = true
	}
	f.Add(base, log, []byte(`{"delta":{"revision":"1.900"}}`))
	f.Add(base, log[:ends[1]+9], []byte(`{"format":9,"delta":{"revision":"1.900","removed":["hosts/b","x","machines/"],"machines":[{}]}}`))
	f.Add(base, []byte(logMagic), []byte("null"))
	f.Add([]byte(`{"version":1}`), log, []byte("{"))
	f.Fuzz(func(t *testing.T, b, l, body []byte) {
		if k, err := decodeKept(b, l, views[0].Self); (k.view == nil) == (err == nil) || k.view != nil && !once[viewText(*k.view)] {
			t.Fatalf("%v, %v", k.view, err)
		}
		last := sum(log[headerSize-len(sum{}) : headerSize])
		after := chained(last, body)
		forged := binary.BigEndian.AppendUint32(bytes.Clone(log[:headerSize]), uint32(len(body)))
		forged = binary.BigEndian.AppendUint32(forged, lengthCheck(last, uint32(len(body))))
		forged = append(append(forged, after[:]...), body...)
		if k, err := decodeKept(base, forged, views[0].Self); (k.view == nil) == (err == nil) {
			t.Fatalf("%v, %v", k.view, err)
		}
	})
}
