// Package backup is the file format of a mesh's backup: text, one JSON object a
// line, that ends in a checksum. Taking one and putting it back is mesh/store's;
// this package knows neither etcd nor what the values mean.
//
//	{"weft":"backup","format":1,"root":"/weft/","prefix":"fd12:3456:789a::/48",...}
//	{"key":"apps/acme/web","value":{"org":"acme","name":"web"}}
//	...
//	{"keys":1234,"sha256":"9f86d081..."}
//
// Keys are below the root, in ascending order. A value is the stored text as it is,
// or base64 under "base64" if it is not JSON on one line. The checksum is of all
// bytes before the last line. A file may be compressed by gzip as a whole.
package backup

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/flate"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Format is the version that Writer writes and Reader reads.
const Format = 1

// SealNote says in every header what else is needed.
const SealNote = "the certificate authority's key is sealed: a controller needs the seal.key of this mesh to use it"

// Header is the first line.
type Header struct {
	Weft    string      `json:"weft"` // "backup"
	Format  int         `json:"format"`
	Root    string      `json:"root"` // prefix of the keys where they were read
	Prefix  string      `json:"prefix"`
	CAs     []Authority `json:"cas"`
	Epoch   uint32      `json:"epoch"`
	At      int64       `json:"revision"` // of etcd, at which all keys were read
	Schema  int         `json:"schema"`   // version of the stored values
	Created time.Time   `json:"created"`  // the mesh
	Taken   time.Time   `json:"taken"`
	Note    string      `json:"note"`
}

// Authority is one certificate authority of the mesh.
type Authority struct {
	ID  string `json:"id"`
	Pin string `json:"pin,omitempty"` // as in join tokens
}

// Record is one key and its value.
type Record struct {
	Key   string // below the root
	Value []byte
}

// Summary says what a whole backup holds.
type Summary struct {
	Header Header         `json:"header"`
	Keys   int            `json:"keys"`
	Kinds  map[string]int `json:"kinds"`  // keys by the first part of their name
	Bytes  int64          `json:"bytes"`  // of the text
	SHA256 string         `json:"sha256"` // of all but the last line, hexadecimal
}

type line struct {
	Key    string          `json:"key"`
	Value  json.RawMessage `json:"value,omitempty"`
	Base64 *[]byte         `json:"base64,omitempty"`
}

type trailer struct {
	Keys   *int   `json:"keys"`
	SHA256 string `json:"sha256"`
}

// maxLine bounds a line: etcd takes requests of up to 1.5 MiB.
const maxLine = 4 << 20

// ErrDamaged says that something is no backup, or not a whole one, or was changed.
var ErrDamaged = errors.New("not a whole backup")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

// tally is what Writer and Reader have in common: both see the same lines.
type tally struct {
	summary Summary
	hash    hash.Hash
	last    string // key
}

func newTally() tally { return tally{summary: Summary{Kinds: map[string]int{}}, hash: sha256.New()} }

// line counts a line with its line feed.
func (t *tally) line(text []byte) {
	t.hash.Write(text)
	t.summary.Bytes += int64(len(text))
}

// record counts a key, which must come after all before it.
func (t *tally) record(key string) error {
	if key == "" || !utf8.ValidString(key) {
		return fmt.Errorf("key %q cannot be in a backup", key)
	}
	if key <= t.last {
		return fmt.Errorf("key %q comes after %q", key, t.last)
	}
	t.last = key
	t.summary.Keys++
	kind, _, _ := strings.Cut(key, "/")
	t.summary.Kinds[kind]++
	return nil
}

func (t *tally) sum() string { return hex.EncodeToString(t.hash.Sum(nil)) }

// Writer writes a backup. Without Close it is not whole, and every Reader says so.
type Writer struct {
	w *bufio.Writer
	tally
}

// NewWriter writes the header. Weft, Format and Note are filled in.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	h.Weft, h.Format, h.Note = "backup", Format, cmp.Or(h.Note, SealNote)
	out := &Writer{bufio.NewWriterSize(w, 64<<10), newTally()}
	out.summary.Header = h
	return out, out.put(h)
}

func (w *Writer) put(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	return w.write(b.Bytes())
}

func (w *Writer) write(text []byte) error {
	if len(text) > maxLine {
		return fmt.Errorf("a line of %d bytes is too long for a backup", len(text))
	}
	w.line(text)
	_, err := w.w.Write(text)
	return err
}

// Write adds a record. Keys come in ascending order.
func (w *Writer) Write(r Record) error {
	if err := w.record(r.Key); err != nil {
		return err
	}
	if !plain(r.Value) {
		value := append([]byte{}, r.Value...) // nil would be null
		return w.put(line{Key: r.Key, Base64: &value})
	}
	// By hand: the encoder would change the value's text.
	key, err := json.Marshal(r.Key)
	if err != nil {
		return err
	}
	text := make([]byte, 0, len(key)+len(r.Value)+20)
	text = append(append(text, `{"key":`...), key...)
	text = append(append(text, `,"value":`...), r.Value...)
	return w.write(append(text, "}\n"...))
}

// plain reports whether a value can stand in a line as it is.
func plain(v []byte) bool {
	return json.Valid(v) && utf8.Valid(v) && !bytes.ContainsAny(v, "\n\r") && len(bytes.TrimSpace(v)) == len(v)
}

// Close writes the last line and whatever is buffered. It does not close what is
// below.
func (w *Writer) Close() (Summary, error) {
	w.summary.SHA256 = w.sum()
	keys := w.summary.Keys
	if err := w.put(trailer{&keys, w.summary.SHA256}); err != nil {
		return Summary{}, err
	}
	return w.summary, w.w.Flush()
}

// Reader reads a backup and checks it meanwhile: what Next gave is known to be
// right only when Next has returned io.EOF.
type Reader struct {
	r *bufio.Reader
	tally
	done bool
}

// NewReader reads the header. Every error of a Reader wraps ErrDamaged, but for
// those of reading itself and of a format that is newer than this program.
func NewReader(r io.Reader) (*Reader, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, damaged("%w", err)
		}
		in = bufio.NewReaderSize(z, 64<<10)
	}
	out := &Reader{r: in, tally: newTally()}
	text, err := out.next()
	if err != nil {
		return nil, err
	}
	h := &out.summary.Header
	if json.Unmarshal(text, h) != nil || h.Weft != "backup" {
		return nil, damaged("it does not begin as a backup does")
	}
	if h.Format != Format {
		return nil, fmt.Errorf("the backup has format %d, and this program reads format %d", h.Format, Format)
	}
	out.line(text)
	return out, nil
}

// Header is the first line.
func (r *Reader) Header() Header { return r.summary.Header }

// next returns a line with its line feed.
func (r *Reader) next() ([]byte, error) {
	var text []byte
	for {
		part, err := r.r.ReadSlice('\n')
		if text = append(text, part...); len(text) > maxLine {
			return nil, damaged("a line is longer than %d bytes", maxLine)
		}
		switch {
		case err == nil:
			return text, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, damaged("it ends in the middle, after %d keys", r.summary.Keys)
		case errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader), errors.As(err, new(flate.CorruptInputError)):
			return nil, damaged("%w", err)
		default:
			return nil, fmt.Errorf("read the backup: %w", err)
		}
	}
}

// Next returns the next record, or io.EOF after the last one of a backup that is
// whole and as it was written.
func (r *Reader) Next() (Record, error) {
	if r.done {
		return Record{}, io.EOF
	}
	text, err := r.next()
	if err != nil {
		return Record{}, err
	}
	var l struct {
		line
		trailer
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil || d.More() {
		return Record{}, damaged("line %d is none of a backup", r.summary.Keys+2)
	}
	if l.trailer.Keys != nil {
		return Record{}, r.end(text, l.trailer)
	}
	r.line(text)
	if err := r.record(l.Key); err != nil {
		return Record{}, damaged("%w", err)
	}
	switch {
	case l.Base64 != nil && l.Value == nil:
		return Record{l.Key, *l.Base64}, nil
	case l.Base64 == nil && l.Value != nil:
		return Record{l.Key, l.Value}, nil
	}
	return Record{}, damaged("key %q has no value", l.Key)
}

// end checks the last line against all before it. It returns io.EOF if they fit.
func (r *Reader) end(text []byte, t trailer) error {
	if *t.Keys != r.summary.Keys {
		return damaged("it should hold %d keys, and holds %d", *t.Keys, r.summary.Keys)
	}
	if got := r.sum(); got != t.SHA256 {
		return damaged("its checksum is %s, and should be %s: it was changed", got, t.SHA256)
	}
	r.summary.SHA256 = t.SHA256
	r.summary.Bytes += int64(len(text))
	switch _, err := r.r.ReadByte(); {
	case err == nil:
		return damaged("something follows its end")
	case !errors.Is(err, io.EOF):
		return damaged("%w", err)
	}
	r.done = true
	return io.EOF
}

// Summary is complete when Next has returned io.EOF.
func (r *Reader) Summary() Summary { return r.summary }

// Verify reads a backup to its end.
func Verify(r io.Reader) (Summary, error) {
	in, err := NewReader(r)
	if err != nil {
		return Summary{}, err
	}
	for {
		if _, err := in.Next(); errors.Is(err, io.EOF) {
			return in.Summary(), nil
		} else if err != nil {
			return in.Summary(), err
		}
	}
}
