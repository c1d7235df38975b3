package dns

import (
	"net/netip"
	"slices"
	"strings"
)

// Names come in presentation form (RFC 1035 section 5.1). They are taken apart
// into labels of raw bytes, in lower case, before anything is decided about them:
// canonicalise, match whole labels, then authorise. So neither `\105nternal` nor a
// dot inside a label can pass for something else.

// maxLabels bounds a name: 255 bytes hold at most 127 labels.
const maxLabels = 127

// splitName returns a name's labels, leftmost first. ok is false if name is no
// domain name. A final dot may be missing.
func splitName(name string) (labels []string, ok bool) {
	if name == "." {
		return nil, true
	}
	if name == "" {
		return nil, false
	}
	if !strings.Contains(name, `\`) { // as nearly all are: labels are parts of name
		labels = strings.Split(lower(strings.TrimSuffix(name, ".")), ".")
	} else if labels, ok = splitEscaped(name); !ok {
		return nil, false
	}
	length := 1
	for _, l := range labels {
		if l == "" || len(l) > 63 {
			return nil, false
		}
		length += len(l) + 1
	}
	return labels, length <= 255 && len(labels) <= maxLabels
}

func splitEscaped(name string) (labels []string, ok bool) {
	var label []byte
	dot := false
	for i := 0; i < len(name); i++ {
		c := name[i]
		dot = false
		switch {
		case c == '.':
			labels, label, dot = append(labels, lower(string(label))), nil, true
			continue
		case c == '\\' && i+3 < len(name) && isDigit(name[i+1]) && isDigit(name[i+2]) && isDigit(name[i+3]):
			n := int(name[i+1]-'0')*100 + int(name[i+2]-'0')*10 + int(name[i+3]-'0')
			if n > 255 {
				return nil, false
			}
			c, i = byte(n), i+3
		case c == '\\' && i+1 < len(name) && !isDigit(name[i+1]):
			c, i = name[i+1], i+1
		case c == '\\':
			return nil, false
		}
		label = append(label, c)
	}
	if !dot {
		labels = append(labels, lower(string(label)))
	}
	return labels, true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// validLabel reports whether s, in lower case, can name a thing: RFC 1123.
func validLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && !isDigit(c) && (c < 'a' || 'z' < c) {
			return false
		}
	}
	return true
}

// Words with a meaning of their own, which therefore name no app and no region.
var (
	// passedOn are zones under internal. that belong to clouds and to Docker.
	passedOn = []string{"google", "compute", "ec2", "docker"}
	// kept are names under internal. for other purposes than apps.
	kept = []string{"c", "org", "host"}
	// qualifiers stand before an app's name.
	qualifiers = []string{"all", "global", "regions", "vms", "vm", "process", "kv", "nearest", "of"}
)

func usableApp(s string) bool {
	return validLabel(s) && !slices.Contains(passedOn, s) && !slices.Contains(kept, s)
}

func usableRegion(s string) bool {
	_, top := topCount(s)
	return validLabel(s) && !slices.Contains(qualifiers, s) && !top
}

// foreign reports whether the name of these labels before internal. belongs to
// somebody else: a cloud, or Docker. c.PROJECT.internal. is Google's, unless PROJECT
// is an app of the org that asks.
func foreign(labels []string) bool {
	n := len(labels)
	if n == 0 {
		return false
	}
	return slices.Contains(passedOn, labels[n-1]) ||
		n > 1 && labels[n-2] == "c" && validLabel(labels[n-1]) && !slices.Contains(kept, labels[n-1])
}

// topCount reads N of "topN": 1 to 999999, without leading zeros.
func topCount(s string) (n int, ok bool) {
	digits, ok := strings.CutPrefix(s, "top")
	if !ok || digits == "" || len(digits) > 6 || digits[0] == '0' {
		return 0, false
	}
	for i := range len(digits) {
		if !isDigit(digits[i]) {
			return 0, false
		}
		n = n*10 + int(digits[i]-'0')
	}
	return n, true
}

// reverseSuffix are the labels at which names of IPv6 addresses end (RFC 3596).
var reverseSuffix = []string{"ip6", "arpa"}

// hasSuffix reports whether the last labels are suffix.
func hasSuffix(labels []string, suffix ...string) bool {
	return len(labels) >= len(suffix) && slices.Equal(labels[len(labels)-len(suffix):], suffix)
}

// nibbles reads the labels before ip6.arpa as the prefix they stand for. ok is
// false if one is no hexadecimal digit or there are more than 32.
func nibbles(labels []string) (p netip.Prefix, ok bool) {
	if len(labels) > 32 {
		return netip.Prefix{}, false
	}
	var a [16]byte
	for i := range labels {
		l := labels[len(labels)-1-i]
		if len(l) != 1 {
			return netip.Prefix{}, false
		}
		n := strings.IndexByte(hexDigits, l[0])
		if n < 0 {
			return netip.Prefix{}, false
		}
		a[i/2] |= byte(n) << (4 * (1 - i%2))
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), 4*len(labels)), true
}

const hexDigits = "0123456789abcdef"

// ReverseName returns the name under ip6.arpa. that PTR records of addr, an IPv6
// address, stand at.
func ReverseName(addr netip.Addr) string { return reverseZone(addr, 32) }

func reverseZone(addr netip.Addr, digits int) string {
	a := addr.As16()
	b := make([]byte, 0, 2*digits+9)
	for i := digits - 1; i >= 0; i-- {
		b = append(b, hexDigits[a[i/2]>>(4*(1-i%2))&15], '.')
	}
	return string(append(b, "ip6.arpa."...))
}

// ReverseZones returns the zones under ip6.arpa. that together are an IPv6 prefix:
// one, or up to eight if its length is not a multiple of four.
func ReverseZones(p netip.Prefix) []string {
	if !p.IsValid() || !p.Addr().Is6() {
		return nil
	}
	digits := (p.Bits() + 3) / 4
	spare := 4*digits - p.Bits()
	var zones []string
	for i := range 1 << spare {
		a := p.Masked().Addr().As16()
		if spare > 0 {
			d := digits - 1
			a[d/2] |= byte(i) << (4 * (1 - d%2))
		}
		zones = append(zones, reverseZone(netip.AddrFrom16(a), digits))
	}
	return zones
}
