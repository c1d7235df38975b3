package backup

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var header = Header{
	Root: "/weft/", Prefix: "fd12:3456:789a::/48", CAs: []Authority{{ID: "1", Pin: "abc"}}, Epoch: 7, At: 42, Schema: 1,
	Created: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Taken: time.Date(2030, 2, 2, 3, 4, 5, 0, time.UTC),
}

// records hold what values can be: JSON of any layout, and what is none.
var records = []Record{
	{"apps/acme/web", []byte(`{"org":"acme","name":"web","html":"<&>","spaced": 1}`)},
	{"audit/1", []byte(`{"note":"a\nb"}`)},
	{"next/network", []byte("3")},
	{"odd/control", []byte("{\"a\":\n1}")},
	{"odd/empty", []byte{}},
	{"odd/latin", []byte("\"\xe9\"")},
	{"odd/null", []byte("null")},
	{"odd/padded", []byte(" 1 ")},
	{"odd/text", []byte("hello")},
	{"odd/\u2028\"\\", []byte("1")},
}

func write(t testing.TB, h Header, records ...Record) (text []byte, s Summary) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), s
}

// read returns all that a backup gives before it ends or errs.
func read(from io.Reader) (out []Record, s Summary, err error) {
	r, err := NewReader(from)
	if err != nil {
		return nil, s, err
	}
	for {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out, r.Summary(), nil
		}
		if err != nil {
			return out, s, err
		}
		out = append(out, record)
	}
}

func TestReadGivesWhatWasWritten(t *testing.T) {
	t.Parallel()
	text, written := write(t, header, records...)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(text)
	z.Close()
	for name, from := range map[string][]byte{"plain": text, "compressed": packed.Bytes()} {
		got, s, err := read(bytes.NewReader(from))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(records, got); diff != "" {
			t.Errorf("%s: records (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(written, s); diff != "" {
			t.Errorf("%s: summary (-written +read):\n%s", name, diff)
		}
	}
	if written.Keys != len(records) || written.Kinds["odd"] != 7 || written.Bytes != int64(len(text)) {
		t.Errorf("summary: %+v, the text has %d bytes", written, len(text))
	}
	if h := written.Header; h.Weft != "backup" || h.Format != Format || h.Note != SealNote {
		t.Errorf("header: %+v", h)
	}
}

// The text is for people with grep, too: one key a line, values as they are.
func TestText(t *testing.T) {
	t.Parallel()
	text, _ := write(t, Header{Root: "/weft/", Prefix: "fd12:3456:789a::/48", Epoch: 1, At: 2, Schema: 1},
		Record{"orgs/acme", []byte(`{"name":"acme","network":1}`)}, Record{"x", []byte("\x00")})
	want := `{"weft":"backup","format":1,"root":"/weft/","prefix":"fd12:3456:789a::/48","cas":null,"epoch":1,"revision":2,"schema":1,"created":"0001-01-01T00:00:00Z","taken":"0001-01-01T00:00:00Z","note":"the certificate authority's key is sealed: a controller needs the seal.key of this mesh to use it"}
{"key":"orgs/acme","value":{"name":"acme","network":1}}
{"key":"x","base64":"AA=="}
{"keys":2,"sha256":"SUM"}
`
	lines := strings.SplitAfter(string(text), "\n")
	_, sum, _ := strings.Cut(lines[3], `"sha256":"`)
	if diff := cmp.Diff(strings.Replace(want, "SUM", strings.TrimSuffix(sum, "\"}\n"), 1), string(text)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWriterRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		keys []string
	}{
		{"no key", []string{""}}, {"not text", []string{"a\xff"}}, {"twice", []string{"a", "a"}}, {"out of order", []string{"b", "a"}},
	} {
		w, err := NewWriter(io.Discard, header)
		for _, k := range tt.keys {
			if err == nil {
				err = w.Write(Record{k, []byte("1")})
			}
		}
		if err == nil {
			t.Errorf("%s: taken", tt.name)
		}
	}
}

// A backup of which a byte is missing, added or another one is refused, wherever.
func TestDamageIsNoticed(t *testing.T) {
	t.Parallel()
	text, _ := write(t, header, records...)
	check := func(what string, damaged []byte) {
		t.Helper()
		if _, _, err := read(bytes.NewReader(damaged)); !refused(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range text {
		check(fmt.Sprint("cut at ", i), text[:i])
		for _, bit := range []byte{1, 0x10, 0x20, 0x80} {
			changed := bytes.Clone(text)
			changed[i] ^= bit
			if harmless(text, changed, i) {
				continue
			}
			check(fmt.Sprintf("byte %d (%q) became %q", i, text[i], changed[i]), changed)
		}
		check(fmt.Sprint("byte added at ", i), append(append(bytes.Clone(text[:i]), 'x'), text[i:]...))
	}
	check("line added", append(bytes.Clone(text), "{}\n"...))
	lines := bytes.SplitAfter(text, []byte("\n"))
	check("line missing", bytes.Join(append(lines[:2:2], lines[3:]...), nil))
	check("nothing", nil)
	check("other text", []byte("hello\n"))
	check("long line", bytes.Repeat([]byte{'x'}, maxLine+1))
}

// refused: what was changed may be the number of the format.
func refused(err error) bool {
	return errors.Is(err, ErrDamaged) || strings.Contains(fmt.Sprint(err), "has format")
}

// harmless reports whether a change within the last line leaves its meaning: names
// of fields are read in either case.
func harmless(text, changed []byte, at int) bool {
	last := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
	return at >= last && bytes.EqualFold(text[last:], changed[last:])
}

func TestCompressedDamageIsNoticed(t *testing.T) {
	t.Parallel()
	text, _ := write(t, header, records...)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(text)
	z.Close()
	whole := packed.Bytes()
	for i := range whole {
		if _, _, err := read(bytes.NewReader(whole[:i])); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d: %v", i, err)
		}
		changed := bytes.Clone(whole)
		changed[i] ^= 4
		// gzip's own header has bytes without meaning.
		if got, _, err := read(bytes.NewReader(changed)); i >= 10 && !refused(err) || err == nil && !cmp.Equal(got, records) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	if _, _, err := read(bytes.NewReader(append(bytes.Clone(whole), 'x'))); !errors.Is(err, ErrDamaged) {
		t.Errorf("byte added: %v", err)
	}
}

func TestNewerFormat(t *testing.T) {
	t.Parallel()
	text, _ := write(t, header)
	newer := bytes.Replace(text, []byte(`"format":1`), []byte(`"format":2`), 1)
	if _, err := Verify(bytes.NewReader(newer)); err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("got %v", err)
	}
}

// Any bytes are refused, or are a backup that can be written again and is the same.
func FuzzReadBackup(f *testing.F) {
	whole, _ := write(f, header, records...)
	f.Add(whole)
	small, _ := write(f, Header{})
	f.Add(small)
	f.Add([]byte("{\"weft\":\"backup\",\"format\":1}\n{\"keys\":0,\"sha256\":\"\"}\n"))
	f.Add([]byte{0x1f, 0x8b, 8})
	f.Fuzz(func(t *testing.T, text []byte) {
		got, s, err := read(bytes.NewReader(text))
		if err != nil {
			return
		}
		if len(got) != s.Keys {
			t.Fatalf("%d records, the summary says %d", len(got), s.Keys)
		}
		again, written := write(t, s.Header, got...)
		once, _, err := read(bytes.NewReader(again))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, once); diff != "" || written.Keys != s.Keys {
			t.Fatalf("written again (-first +second):\n%s", diff)
		}
	})
}
