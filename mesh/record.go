package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Record is one of an org's own records: all values of one type at one name under
// internal. A name may have several types, but an alias stands alone.
type Record struct {
	Org    string   `json:"org"`
	Name   string   `json:"name"`          // under internal.: "db", "_sip._tcp.phone"
	Type   string   `json:"type"`          // RecordAAAA, RecordTXT, RecordSRV or RecordAlias
	TTL    int      `json:"ttl,omitempty"` // seconds; 0: DefaultTTL
	Values []string `json:"values"`
}

// Types of own records.
const (
	RecordAAAA  = "AAAA"
	RecordTXT   = "TXT"
	RecordSRV   = "SRV"   // values are "PRIORITY WEIGHT PORT TARGET"
	RecordAlias = "alias" // the one value is another name of the mesh; it is answered with what is there, never with a CNAME
)

var recordTypes = []string{RecordAAAA, RecordTXT, RecordSRV, RecordAlias}

// Bounds of a record: it goes to every host that carries the org.
const (
	maxRecordName   = 200 // bytes
	maxRecordValues = 64
	maxRecordText   = 4096 // bytes of one value
	maxRecordSize   = 16 << 10
)

// ReservedRecords are words under internal. that no record can be named, nor be
// named under: what the mesh answers itself, and somebody else's zones.
var ReservedRecords = []string{"_api", "_apps", "_peer", "_instances"}

var recordLabel = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)

// App is the word of a record's name that would be an app's: if there is such an
// app, all names under it are its own.
func (r Record) App() string { return r.Name[strings.LastIndexByte(r.Name, '.')+1:] }

// CheckRecordName reports what cannot be the name of a record: labels of a-z, 0-9,
// '-' and '_', the last one not reserved.
func CheckRecordName(name string) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("record name %q: "+format, append([]any{name}, args...)...)
	}
	labels := strings.Split(name, ".")
	last := labels[len(labels)-1]
	before := ""
	if len(labels) > 1 {
		before = labels[len(labels)-2]
	}
	reserved := slices.Concat(ReservedApps, ReservedRecords)
	switch {
	case len(name) > maxRecordName:
		return fail("it has more than %d bytes", maxRecordName)
	case last == "internal":
		return WithHint(fail("names of the mesh end in .internal by themselves"), "leave the ending out")
	case slices.ContainsFunc(labels, func(l string) bool { return !recordLabel.MatchString(l) }):
		return fail("use labels of 1 to 63 of a-z, 0-9, '-' and '_', with dots between them")
	case slices.Contains(reserved, last):
		return fail("%s is reserved (%s); choose another", last, strings.Join(reserved, ", "))
	case before == "c":
		return fail("c.%s.internal is a cloud's and is asked there; choose another", last)
	}
	return nil
}

// RecordType returns the type of that name, in whatever letters: "aaaa" is AAAA.
func RecordType(s string) (string, error) {
	for _, t := range recordTypes {
		if strings.EqualFold(s, t) {
			return t, nil
		}
	}
	return "", fmt.Errorf("record type %q: want %s", s, strings.Join(recordTypes, ", "))
}

// Canonical returns r as it is stored, or says why it cannot be a record: names in
// lower case without a final dot, addresses in their shortest form, values in order
// and each once.
func (r Record) Canonical() (Record, error) {
	var err error
	if r.Type, err = RecordType(r.Type); err != nil {
		return r, err
	}
	r.Name = canonicalName(r.Name)
	if err := errors.Join(CheckRecordName(r.Name), checkTTL("record "+r.Name, r.TTL)); err != nil {
		return r, err
	}
	values := make([]string, len(r.Values))
	size := 0
	for i, v := range r.Values {
		if values[i], err = canonicalValue(r.Type, v); err != nil {
			return r, fmt.Errorf("record %s %s: %w", r.Name, r.Type, err)
		}
		size += len(values[i])
	}
	slices.Sort(values)
	r.Values = slices.Compact(values)
	switch n := len(r.Values); {
	case n == 0:
		err = fmt.Errorf("record %s %s: it has no value", r.Name, r.Type)
	case r.Type == RecordAlias && n > 1:
		err = fmt.Errorf("record %s: an alias stands for one name, not %d", r.Name, n)
	case r.Type == RecordAlias && r.Values[0] == r.Name+".internal":
		err = fmt.Errorf("record %s: an alias of itself", r.Name)
	case n > maxRecordValues:
		err = fmt.Errorf("record %s %s: it has %d values, and may have %d", r.Name, r.Type, n, maxRecordValues)
	case size > maxRecordSize:
		err = fmt.Errorf("record %s %s: its values have %d bytes together, and may have %d", r.Name, r.Type, size, maxRecordSize)
	}
	return r, err
}

func canonicalName(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

func canonicalValue(kind, value string) (string, error) {
	switch kind {
	case RecordAAAA:
		a, err := netip.ParseAddr(value)
		if err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return "", fmt.Errorf("%q: want an IPv6 address", value)
		}
		return a.String(), nil
	case RecordTXT:
		if len(value) > maxRecordText {
			return "", fmt.Errorf("a text of %d bytes: at most %d", len(value), maxRecordText)
		}
		return strings.ToValidUTF8(value, "\uFFFD"), nil
	case RecordSRV:
		s, err := ParseService(value)
		return s.String(), err
	}
	name := canonicalName(value)
	if err := checkTarget(name); err != nil {
		return "", err
	}
	if !strings.HasSuffix(name, ".internal") {
		return "", fmt.Errorf("%q: an alias stands for a name of the mesh, such as web.internal", value)
	}
	return name, nil
}

// Service is the value of an SRV record (RFC 2782).
type Service struct {
	Priority, Weight, Port uint16
	Target                 string // without a final dot
}

func (s Service) String() string {
	return fmt.Sprintf("%d %d %d %s", s.Priority, s.Weight, s.Port, s.Target)
}

// ParseService reads "PRIORITY WEIGHT PORT TARGET".
func ParseService(text string) (s Service, err error) {
	fields := strings.Fields(text)
	if len(fields) != 4 {
		return s, fmt.Errorf("%q: want PRIORITY WEIGHT PORT TARGET, such as \"0 1 5432 db.internal\"", text)
	}
	for i, to := range []*uint16{&s.Priority, &s.Weight, &s.Port} {
		n, err := strconv.ParseUint(fields[i], 10, 16)
		if err != nil {
			return s, fmt.Errorf("%q: %s is not a number of 0 to 65535", text, fields[i])
		}
		*to = uint16(n)
	}
	if s.Port == 0 {
		return s, fmt.Errorf("%q: port 0 is none", text)
	}
	s.Target = canonicalName(fields[3])
	return s, checkTarget(s.Target)
}

// checkTarget reports what is no domain name.
func checkTarget(name string) error {
	for _, l := range strings.Split(name, ".") {
		if !recordLabel.MatchString(l) {
			return fmt.Errorf("%q: it is not a domain name", name)
		}
	}
	if len(name) > 253 {
		return fmt.Errorf("%q: a domain name has at most 253 bytes", name)
	}
	return nil
}
