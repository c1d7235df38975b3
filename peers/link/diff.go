package link

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftmesh/weft/peers"
)

// State is what the kernel holds of the things that Set looks after.
type State struct {
	Missing     bool // there is no such link: MTU, Up, LinkLocal, Strays and Routes say nothing
	Alias       string
	MTU         int
	Up          bool
	LinkLocal   bool           // the kernel gives the link an address of its own when it comes up
	Strays      []netip.Prefix // link-local addresses on the link
	Addresses   []Address      // inside the mesh's prefix, on AddressesOn
	Routes      []Route        // ours, over the link
	Unreachable []netip.Prefix // ours
	HolderDown  bool           // the link that holds the addresses is another one, and down
	Rules       []Rule         // nil: not asked for
}

// Op says what a Change does.
type Op uint8

// The changes, in the order in which Diff yields them. What refuses comes before
// what lets through, and what is added before what is taken away: removing the
// last address of a link would also drop its routes.
const (
	AddRule Op = iota
	DropRule
	AddUnreachable
	NoLinkLocal // the link gets no address by itself
	SetAlias
	SetMTU
	SetUp
	SetAddress // new, or with another Deprecated
	AddRoute
	ChangeRoute // its MTU or its source
	DropRoute
	DropAddress
	DropUnreachable
)

// Change is one step from a State to a Config.
type Change struct {
	Op         Op
	Link       string       // not with AddUnreachable and DropUnreachable
	Prefix     netip.Prefix // of an address or a route
	Alias      string       // SetAlias
	MTU        int          // SetMTU, AddRoute, ChangeRoute
	Deprecated bool         // SetAddress
	Source     netip.Addr   // AddRoute, ChangeRoute
	Rule       Rule         // AddRule, DropRule
}

// String is one line for a log.
func (c Change) String() string {
	mtu := ""
	if c.MTU != 0 {
		mtu = fmt.Sprintf(" mtu %d", c.MTU)
	}
	if c.Source.IsValid() {
		mtu += " src " + c.Source.String()
	}
	switch c.Op {
	case AddRule:
		return fmt.Sprintf("add rule %s", c.Rule)
	case DropRule:
		return fmt.Sprintf("drop rule %s", c.Rule)
	case AddUnreachable:
		return fmt.Sprintf("add unreachable %s", c.Prefix)
	case NoLinkLocal:
		return fmt.Sprintf("set no link-local address on %s", c.Link)
	case SetAlias:
		return fmt.Sprintf("set alias %q on %s", c.Alias, c.Link)
	case SetMTU:
		return fmt.Sprintf("set%s on %s", mtu, c.Link)
	case SetUp:
		return fmt.Sprintf("set %s up", c.Link)
	case SetAddress:
		if c.Deprecated {
			return fmt.Sprintf("set address %s deprecated on %s", c.Prefix, c.Link)
		}
		return fmt.Sprintf("set address %s on %s", c.Prefix, c.Link)
	case AddRoute:
		return fmt.Sprintf("add route %s dev %s%s", c.Prefix, c.Link, mtu)
	case ChangeRoute:
		return fmt.Sprintf("change route %s dev %s%s", c.Prefix, c.Link, mtu)
	case DropRoute:
		return fmt.Sprintf("drop route %s dev %s", c.Prefix, c.Link)
	case DropAddress:
		return fmt.Sprintf("drop address %s on %s", c.Prefix, c.Link)
	case DropUnreachable:
		return fmt.Sprintf("drop unreachable %s", c.Prefix)
	}
	return fmt.Sprintf("change %d", c.Op)
}

// Diff computes the changes that lead from what the kernel has to what is wanted,
// and nothing else: an empty result means there is nothing to do.
func Diff(have State, want Config) []Change {
	var out []Change
	for _, u := range have.Unreachable {
		if u != want.Unreachable {
			out = append(out, Change{Op: DropUnreachable, Prefix: u})
		}
	}
	if !slices.Contains(have.Unreachable, want.Unreachable) {
		out = append(out, Change{Op: AddUnreachable, Prefix: want.Unreachable})
	}
	if want.OwnRules {
		out = append(out, diffRules(have.Rules)...)
	}
	if have.HolderDown && want.Up {
		out = append(out, Change{Op: SetUp, Link: want.AddressesOn})
	}
	out = append(out, diffAddresses(have.Addresses, want.Addresses, want.addressesOn())...)
	if want.Link != "" && !have.Missing {
		out = append(out, diffLink(have, want)...)
		out = append(out, diffRoutes(have.Routes, want.Routes, want.Link)...)
	}
	Sort(out)
	return out
}

func diffLink(have State, want Config) []Change {
	var out []Change
	if have.LinkLocal {
		out = append(out, Change{Op: NoLinkLocal, Link: want.Link})
	}
	if want.Alias != "" && have.Alias != want.Alias {
		out = append(out, Change{Op: SetAlias, Link: want.Link, Alias: want.Alias})
	}
	if want.MTU != 0 && have.MTU != want.MTU {
		out = append(out, Change{Op: SetMTU, Link: want.Link, MTU: want.MTU})
	}
	if want.Up && !have.Up {
		out = append(out, Change{Op: SetUp, Link: want.Link})
	}
	for _, s := range have.Strays {
		out = append(out, Change{Op: DropAddress, Link: want.Link, Prefix: s})
	}
	return out
}

func diffAddresses(have, want []Address, link string) []Change {
	had := make(map[netip.Prefix]bool, len(have))
	for _, a := range have {
		had[a.Prefix] = a.Deprecated
	}
	var out []Change
	wanted := make(map[netip.Prefix]bool, len(want))
	for _, a := range want {
		deprecated, there := had[a.Prefix]
		if !wanted[a.Prefix] && (!there || deprecated != a.Deprecated) {
			out = append(out, Change{Op: SetAddress, Link: link, Prefix: a.Prefix, Deprecated: a.Deprecated})
		}
		wanted[a.Prefix] = true
	}
	for _, a := range have {
		if !wanted[a.Prefix] {
			out = append(out, Change{Op: DropAddress, Link: link, Prefix: a.Prefix})
		}
	}
	return out
}

func diffRoutes(have, want []Route, link string) []Change {
	had := make(map[netip.Prefix]Route, len(have))
	for _, r := range have {
		had[r.Prefix] = r
	}
	var out []Change
	wanted := make(map[netip.Prefix]bool, len(want))
	for _, r := range want {
		was, there := had[r.Prefix]
		switch {
		case wanted[r.Prefix]: // stands twice: the first one counts
		case !there:
			out = append(out, Change{Op: AddRoute, Link: link, Prefix: r.Prefix, MTU: r.MTU, Source: r.Source})
		case was != r:
			out = append(out, Change{Op: ChangeRoute, Link: link, Prefix: r.Prefix, MTU: r.MTU, Source: r.Source})
		}
		wanted[r.Prefix] = true
	}
	for _, r := range have {
		if !wanted[r.Prefix] {
			out = append(out, Change{Op: DropRoute, Link: link, Prefix: r.Prefix})
		}
	}
	return out
}

// diffRemove computes the changes that take away all that is ours.
func diffRemove(have State, c Config) []Change {
	out := diffAddresses(have.Addresses, nil, c.addressesOn())
	if !have.Missing {
		out = append(out, diffRoutes(have.Routes, nil, c.Link)...)
	}
	for _, u := range have.Unreachable {
		out = append(out, Change{Op: DropUnreachable, Prefix: u})
	}
	Sort(out)
	return out
}

// Sort puts changes in the order in which Diff yields them.
func Sort(changes []Change) {
	slices.SortFunc(changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Op, b.Op), cmp.Compare(a.Rule.Priority, b.Rule.Priority), peers.ComparePrefix(a.Prefix, b.Prefix))
	})
}
