package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// OwnRecord is one of an org's own records. What Type says is set; with TypeAlias the
// name stands for Target, a name of the mesh: it is answered with what is there, and
// never with a CNAME, which some clients cannot take.
type OwnRecord struct {
	Name string // under internal.: "db", "a.b"
	Type uint16 // TypeAAAA, TypeTXT, TypeSRV or TypeAlias
	TTL  int    // seconds; 0 or less: 5; at most 3600

	Addr                   netip.Addr
	Text                   string
	Priority, Weight, Port uint16
	Target                 string // of an SRV record or an alias
}

// TypeAlias is the Type of an OwnRecord that stands for another name.
const TypeAlias uint16 = 0

// maxAliases bounds a chain of aliases; a longer one, or a circle, has no answer.
const maxAliases = 8

// own is what an org's own records say of one name. All nil: a name in between. It
// does not change once it is made.
type own struct {
	addrs []netip.Addr
	texts []string
	ports []Service
	alias []string // labels before internal.
	ttl   uint32   // the least of its records'
}

// newOwn makes what an org's own records say of a name. What cannot be is skipped:
// names that are none, that belong to others or that the mesh gives (of a fixed
// word), an alias beside records before it, anything beside an alias before it, an
// alias out of the mesh. nil: nothing is left. An app of that name comes first, and
// all names under it are its own.
func newOwn(n OwnName) (key string, set *own) {
	labels, ok := splitName(n.Name)
	if !ok {
		return "", nil
	}
	key = ownKey(labels)
	if !mayOwn(labels) {
		return key, nil
	}
	for _, r := range n.Records {
		s := cmp.Or(set, &own{})
		if s.add(r) {
			set = s
		}
	}
	return key, set
}

// ownKey has the labels from the right, so that what is under a name follows it.
func ownKey(labels []string) string {
	var b strings.Builder
	for _, l := range slices.Backward(labels) {
		b.WriteString(l)
		b.WriteByte('.')
	}
	return b.String()
}

// ownNames puts together the records of each name, in their order.
func ownNames(records []OwnRecord) []OwnName {
	var out []OwnName
	at := map[string]int{}
	for _, r := range records {
		labels, ok := splitName(r.Name)
		if !ok {
			continue
		}
		key := ownKey(labels)
		i, there := at[key]
		if !there {
			i = len(out)
			at[key] = i
			out = append(out, OwnName{Name: r.Name})
		}
		out[i].Records = append(out[i].Records, r)
	}
	return out
}

// mayOwn reports whether labels can be the name of an own record.
func mayOwn(labels []string) bool {
	if len(labels) == 0 || foreign(labels) {
		return false
	}
	for _, l := range labels {
		if l == "" || strings.Contains(l, ".") {
			return false
		}
	}
	last := labels[len(labels)-1]
	return !slices.Contains(kept, last) && !slices.Contains([]string{"_api", "_apps", "_peer", "_instances"}, last)
}

// add takes one record; ok is false if it cannot be.
func (s *own) add(r OwnRecord) (ok bool) {
	ttl := uint32(defaultTTL)
	if r.TTL > 0 {
		ttl = uint32(min(r.TTL, maxTTL))
	}
	only := len(s.addrs) == 0 && len(s.texts) == 0 && len(s.ports) == 0
	switch {
	case s.alias != nil:
		return false
	case r.Type == TypeAAAA && r.Addr.Is6() && r.Addr.Zone() == "":
		s.addrs = append(s.addrs, r.Addr)
	case r.Type == TypeTXT && len(r.Text) <= maxText:
		s.texts = append(s.texts, r.Text)
	case r.Type == TypeSRV:
		target, ok := splitName(r.Target)
		if !ok || r.Port == 0 {
			return false
		}
		s.ports = append(s.ports, Service{Priority: r.Priority, Weight: r.Weight, Port: r.Port, Target: presentation(target)})
	case r.Type == TypeAlias && only:
		target, ok := splitName(r.Target)
		if !ok || !hasSuffix(target, "internal") || len(target) < 2 {
			return false
		}
		s.alias = target[:len(target)-1]
	default:
		return false
	}
	if s.ttl == 0 || ttl < s.ttl {
		s.ttl = ttl
	}
	return true
}

// presentation writes labels as a name, escaping what RFC 1035 section 5.1 asks for.
func presentation(labels []string) string {
	var b strings.Builder
	for _, l := range labels {
		for i := range len(l) {
			switch c := l[i]; {
			case c == '.' || c == '\\':
				b.WriteByte('\\')
				b.WriteByte(c)
			case c < '!' || c > '~':
				b.Write([]byte{'\\', '0' + c/100, '0' + c/10%10, '0' + c%10})
			default:
				b.WriteByte(c)
			}
		}
		b.WriteByte('.')
	}
	if len(labels) == 0 {
		return "."
	}
	return b.String()
}

// owned finds what an org's own records say of a name; labels are those before
// internal. ok is false if they say nothing.
func (v view) owned(labels []string, aliases int) (t thing, ok bool) {
	if slices.ContainsFunc(labels, func(l string) bool { return strings.Contains(l, ".") }) {
		return thing{}, false
	}
	key := ownKey(labels)
	set, there := v.own.get(key)
	if !there {
		for range v.own.prefixed(key) { // a name in between
			return thing{kind: ownRecords, own: &own{}}, true
		}
		return thing{}, false
	}
	switch {
	case set.alias == nil:
		return thing{kind: ownRecords, own: set}, true
	case aliases >= maxAliases:
		return thing{kind: empty}, true
	}
	t = v.under(set.alias, aliases+1)
	if t.kind == nothing || t.kind == forwarded { // the name itself exists
		t = thing{kind: empty}
	}
	if t.atMost == 0 || set.ttl < t.atMost {
		t.atMost = set.ttl
	}
	return t, true
}
