package firewall

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Table is the whole of an nftables table as data: what Render computes.
type Table struct {
	Sets   []Set
	Chains []Chain
	// Refused are grants that could not be put into the table, sorted. They hinder
	// nothing else.
	Refused []Refused

	grants boxes // what sets wide and narrow hold
}

// SetKind says what the elements of a set are.
type SetKind uint8

// The kinds of sets.
const (
	LinkSet     SetKind = iota // names of links, 16 bytes filled up with zeros
	AddressSet                 // addresses
	PairSet                    // a source's /64 and a destination's /64 in one key, hashed
	SourceSet                  // name of a link and the first address of a /112 in one key, hashed
	BoxSet                     // source, destination, protocol, port: the lowest key, then the highest
	CountSet                   // endpoints and their flows: the kernel fills it
	RateSet                    // endpoints and what they have said or were told of late: the kernel fills it
	LinkRateSet                // the same of links
)

// Set is a named set.
type Set struct {
	Name     string
	Kind     SetKind
	Elements []Element // sorted, each once
}

// Element is one element of a set: the bytes of its key.
type Element string

// Chain is a base chain, or with the zero Hook one that others go to.
type Chain struct {
	Name     string
	Hook     string // prerouting, input, forward, output; "" for none
	Priority int
	Accept   bool // the policy: what befalls a packet that no rule decided on
	Rules    []Rule
}

// Rule is one rule.
type Rule struct {
	Name  string // what it is for, three words
	Text  string // what it says, as nft(8) would
	exprs []expr.Any
}

// String is the table as text, close to what `nft list table inet weft` prints.
func (t Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", tableName)
	for _, s := range t.Sets {
		fmt.Fprintf(&b, "\tset %s { # %s\n", s.Name, s.Kind)
		for _, e := range s.Elements {
			fmt.Fprintf(&b, "\t\t%s\n", s.Kind.text(string(e)))
		}
		b.WriteString("\t}\n")
	}
	for _, c := range t.Chains {
		fmt.Fprintf(&b, "\tchain %s {", c.Name)
		if c.Hook != "" {
			policy := "drop"
			if c.Accept {
				policy = "accept"
			}
			fmt.Fprintf(&b, " # %s %d, policy %s", c.Hook, c.Priority, policy)
		}
		b.WriteByte('\n')
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s  # %s\n", r.Text, r.Name)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func (k SetKind) String() string {
	return [...]string{"links", "addresses", "networks", "links and their sources", "flows", "numbers of flows", "rates of endpoints", "rates of links"}[k]
}

// text is a key as a person reads it.
func (k SetKind) text(key string) string {
	switch k {
	case LinkSet:
		return strings.TrimRight(key, "\x00")
	case AddressSet:
		a, _ := netip.AddrFromSlice([]byte(key))
		return a.String()
	case PairSet:
		return pairHalf(key[:8]) + " -> " + pairHalf(key[8:])
	case SourceSet:
		a, _ := netip.AddrFromSlice([]byte(key[16:]))
		return fmt.Sprintf("%s . %s", strings.TrimRight(key[:16], "\x00"), netip.PrefixFrom(a, endpointBits))
	case BoxSet:
		return boxText(key)
	}
	return fmt.Sprintf("%x", key)
}

// boxText is box.String, of an element.
func boxText(key string) string {
	low, high := key[:boxKey], key[boxKey:]
	prefix := func(at int) netip.Prefix {
		a, _ := netip.AddrFromSlice([]byte(low[at : at+16]))
		if low[at:at+8] == high[at:at+8] && low[at+8:at+14] != high[at+8:at+14] {
			return netip.PrefixFrom(a, networkBits)
		}
		return netip.PrefixFrom(a, endpointBits)
	}
	port := func(s string) uint16 { return binary.BigEndian.Uint16([]byte(s[36:])) }
	return box{prefix(0), prefix(16), low[32], port(low), port(high)}.String()
}

// boxKey is the length of one of a box's two keys: each field fills up words of 4
// bytes.
const boxKey = 16 + 16 + 4 + 4

func pairHalf(s string) string {
	var a [16]byte
	copy(a[:], s)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64).String()
}

// mark is what a rule carries in the kernel: its name and a hash of all that it
// says, in the form of an nft comment. The library cannot read every expression
// back, so this is how we know a rule for the one that we would write now.
func (r Rule) mark() ([]byte, error) {
	h := sha256.New()
	fmt.Fprintln(h, r.Text)
	for _, e := range r.exprs {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", r.Name, err)
		}
		fmt.Fprintf(h, "%T %x\n", e, b)
	}
	return userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("%s [%x]", r.Name, h.Sum(nil)[:8])), nil
}

// spec is the set as the library wants it.
func (s Set) spec(table *nftables.Table) *nftables.Set {
	out := &nftables.Set{Table: table, Name: s.Name}
	switch s.Kind {
	case LinkSet:
		out.KeyType, out.KeyByteOrder = nftables.TypeIFName, binaryutil.NativeEndian
	case AddressSet, PairSet: // both 16 bytes
		out.KeyType = nftables.TypeIP6Addr
	case SourceSet:
		out.KeyType = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr)
		out.Concatenation = true
	case BoxSet:
		out.KeyType = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService)
		out.Concatenation, out.Interval = true, true
	case CountSet:
		out.KeyType, out.Dynamic, out.Size = nftables.TypeIP6Addr, true, maxCounted
	case RateSet:
		out.KeyType, out.Dynamic, out.Size, out.HasTimeout, out.Timeout = nftables.TypeIP6Addr, true, maxCounted, true, forgetRate
	case LinkRateSet:
		out.KeyType, out.Dynamic, out.Size, out.HasTimeout, out.Timeout = nftables.TypeIFName, true, maxCounted, true, forgetRate
		out.KeyByteOrder = binaryutil.NativeEndian
	}
	return out
}

const (
	// maxCounted is how many endpoints, or links, a host can tell apart in such a set.
	maxCounted = 65536
	// forgetRate is how long one that is silent is remembered.
	forgetRate = 10 * time.Second
)

func (s Set) elements(in []Element) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(in))
	for _, e := range in {
		if s.Kind == BoxSet {
			out = append(out, nftables.SetElement{Key: []byte(e[:boxKey]), KeyEnd: []byte(e[boxKey:])})
			continue
		}
		out = append(out, nftables.SetElement{Key: []byte(e)})
	}
	return out
}

// element is one that was read.
func element(e nftables.SetElement) Element { return Element(string(e.Key) + string(e.KeyEnd)) }

func sortElements(in []Element) []Element {
	slices.Sort(in)
	return slices.Compact(in)
}

// spec is the chain as the library wants it.
func (c Chain) spec(table *nftables.Table) *nftables.Chain {
	out := &nftables.Chain{Table: table, Name: c.Name}
	if c.Hook == "" {
		return out
	}
	out.Type = nftables.ChainTypeFilter
	out.Hooknum = map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput,
		"forward": nftables.ChainHookForward, "output": nftables.ChainHookOutput,
	}[c.Hook]
	out.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	policy := nftables.ChainPolicyDrop
	if c.Accept {
		policy = nftables.ChainPolicyAccept
	}
	out.Policy = &policy
	return out
}
