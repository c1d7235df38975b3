package mesh

import (
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestCanonicalRecords(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 64)
	for _, tt := range []struct {
		name, kind string
		ttl        int
		values     []string
		want       string // "NAME TYPE VALUE|VALUE", or of what is refused a part of why
		refused    bool
	}{
		{"db", "aaaa", 0, []string{"FD12::0:1"}, "db AAAA fd12::1", false},
		{"DB.", "AAAA", 3600, []string{"fd12::2", "fd12::1", "fd12:0::1"}, "db AAAA fd12::1|fd12::2", false},
		{"_sip._tcp.phone", "srv", 1, []string{"0  1 5060 Phone-1.vm.phone.internal."}, "_sip._tcp.phone SRV 0 1 5060 phone-1.vm.phone.internal", false},
		{"motd", "txt", 0, []string{"b", "a", "b", ""}, "motd TXT |a|b", false},
		{"api", "ALIAS", 0, []string{"Web.internal."}, "api alias web.internal", false},
		{"c", "TXT", 0, []string{"x"}, "c is reserved", true},
		{"x.google", "TXT", 0, []string{"x"}, "google is reserved", true},
		{"c.anything", "TXT", 0, []string{"x"}, "c.anything.internal is a cloud's", true},
		{"a.c.b", "TXT", 0, []string{"x"}, "is a cloud's", true},
		{"x._peer", "TXT", 0, []string{"x"}, "_peer is reserved", true},
		{"_apps", "TXT", 0, []string{"x"}, "_apps is reserved", true},
		{"db.internal", "TXT", 0, []string{"x"}, "end in .internal by themselves", true},
		{"", "TXT", 0, []string{"x"}, "use labels", true},
		{"a..b", "TXT", 0, []string{"x"}, "use labels", true},
		{"*", "TXT", 0, []string{"x"}, "use labels", true},
		{"a/b", "TXT", 0, []string{"x"}, "use labels", true},
		{"-a", "TXT", 0, []string{"x"}, "use labels", true},
		{long, "TXT", 0, []string{"x"}, "use labels", true},
		{strings.Repeat("a.", 101) + "a", "TXT", 0, []string{"x"}, "more than 200 bytes", true},
		{"db", "CNAME", 0, []string{"x"}, `record type "CNAME": want AAAA, TXT, SRV, alias`, true},
		{"db", "TXT", 3601, []string{"x"}, "a TTL of 3601 s: want 1 to 3600", true},
		{"db", "TXT", -1, []string{"x"}, "a TTL of -1 s", true},
		{"db", "TXT", 0, nil, "it has no value", true},
		{"db", "TXT", 0, []string{strings.Repeat("x", 4097)}, "at most 4096", true},
		{"db", "TXT", 0, many64("x", 4000), "together", true},
		{"db", "AAAA", 0, many64("fd12::1:", 0), "it has 65 values", true},
		{"db", "AAAA", 0, []string{"192.0.2.1"}, "want an IPv6 address", true},
		{"db", "AAAA", 0, []string{"::ffff:192.0.2.1"}, "want an IPv6 address", true},
		{"db", "AAAA", 0, []string{"fe80::1%eth0"}, "want an IPv6 address", true},
		{"db", "AAAA", 0, []string{"::"}, "want an IPv6 address", true},
		{"db", "SRV", 0, []string{"0 1 5432"}, "want PRIORITY WEIGHT PORT TARGET", true},
		{"db", "SRV", 0, []string{"0 1 0 db.internal"}, "port 0", true},
		{"db", "SRV", 0, []string{"0 1 65536 db.internal"}, "not a number", true},
		{"db", "SRV", 0, []string{"0 1 1 db..internal"}, "not a domain name", true},
		{"db", "alias", 0, []string{"example.com"}, "a name of the mesh", true},
		{"db", "alias", 0, []string{"internal"}, "a name of the mesh", true},
		{"db", "alias", 0, []string{"a.internal", "b.internal"}, "one name, not 2", true},
		{"db", "alias", 0, []string{"db.internal"}, "of itself", true},
	} {
		r, err := Record{Name: tt.name, Type: tt.kind, TTL: tt.ttl, Values: tt.values}.Canonical()
		got := r.Name + " " + r.Type + " " + strings.Join(r.Values, "|")
		if err != nil {
			got = err.Error()
		}
		if (err != nil) != tt.refused || got != tt.want && !(tt.refused && strings.Contains(got, tt.want)) {
			t.Errorf("%.20q %s %.50q: %q, want %q", tt.name, tt.kind, tt.values, got, tt.want)
		}
	}
}

// many64 are 65 values: of that many bytes, or with a number at the end.
func many64(begin string, size int) (out []string) {
	for i := range 65 {
		number := strings.Repeat("1", i%4+1) + string(rune('0'+i%10)) + string(rune('a'+i/10%6))
		if size > 0 {
			out = append(out, strings.Repeat(begin, size)+number)
			continue
		}
		out = append(out, begin+string("0123456789abcdef"[i/16])+string("0123456789abcdef"[i%16]))
	}
	return out
}

// FuzzRecord: what is canonical stays so, and its name and values are what a decoder
// of keys takes.
func FuzzRecord(f *testing.F) {
	f.Add("db", "AAAA", 5, "fd12::1", "fd12::2")
	f.Add("_a._tcp.b", "srv", 0, "0 1 2 x.internal", "")
	f.Add("A.B.", "alias", 60, "web.internal.", "web.internal")
	f.Add("motd", "TXT", 1, "\xff", "ä")
	f.Fuzz(func(t *testing.T, name, kind string, ttl int, a, b string) {
		r, err := Record{Org: "o", Name: name, Type: kind, TTL: ttl, Values: []string{a, b}}.Canonical()
		if err != nil {
			return
		}
		again, err := r.Canonical()
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Fatalf("%+v is not stable: %+v %v", r, again, err)
		}
		if strings.ContainsAny(r.Name, "/ \\") || r.App() == "" || CheckRecordName(r.Name) != nil {
			t.Fatalf("name %q", r.Name)
		}
	})
}

func TestAppSettings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		answer string
		ttl    int
		ok     bool
	}{
		{"", 0, true}, {"near", 1, true}, {"all", 3600, true}, {"1", 5, true}, {"10000", 5, true},
		{"0", 5, false}, {"-1", 5, false}, {"01", 5, false}, {"10001", 5, false}, {"some", 5, false}, {"ALL", 5, false}, {"1.5", 5, false},
		{"near", 3601, false}, {"near", -1, false},
	} {
		if err := (App{Name: "web", Answer: tt.answer, TTL: tt.ttl}).Validate(); (err == nil) != tt.ok {
			t.Errorf("answer %q, TTL %d: %v, want ok %v", tt.answer, tt.ttl, err, tt.ok)
		}
	}
	if (App{Name: "google"}).Validate() == nil {
		t.Error("an app of a name that is reserved")
	}
}

// A view of records that were read from JSON is what was written.
func TestDurationText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := Check{Kind: CheckTCP, Port: 1, Interval: Duration(rapid.Int64().Draw(t, "interval"))}
		if got := wire(t, want); got != want {
			t.Fatalf("%+v, then %+v", want, got)
		}
	})
	if err := new(Duration).UnmarshalText([]byte("5")); err == nil {
		t.Error("5 of what?")
	}
}
