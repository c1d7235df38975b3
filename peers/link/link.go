// Package link gives a WireGuard link its addresses, routes, MTU and the
// unreachable route behind them, and a host's data plane its sysctls. Like the
// firewall it is told the whole, asks the kernel what is, and changes only the
// difference. Making the link and talking to WireGuard is the Device's business;
// machines' links are mesh/attach's.
package link

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/weftmesh/weft/peers/netns"
)

// Protocol marks the routes that are ours (rtm_protocol; `ip route show proto
// 119`). Routes with another protocol are never touched.
const Protocol = 0x77

// unreachableMetric is far behind the kernel's default of 1024, so that a real
// route for exactly the same prefix wins.
const unreachableMetric = 1 << 30

// minMTU is IPv6's least (RFC 8200 section 5). Below it the kernel takes IPv6 off
// the link.
const minMTU = 1280

// maxAlias is the kernel's bound (IFALIASZ), without the zero at the end.
const maxAlias = 255

// Config is the whole of what Set looks after.
type Config struct {
	Link        string    // the WireGuard link; "" if there is none yet: its MTU, state and routes are left out
	AddressesOn string    // link that holds Addresses: lo in a host's plane; "" means Link
	Alias       string    // of Link, by which Recall finds it: at most 255 bytes; "" leaves it as it is
	MTU         int       // bytes, at least 1280; 0 leaves it as it is
	Addresses   []Address // in any order
	Routes      []Route   // over Link, in any order

	// Unreachable is the mesh's prefix. All of it that no route covers is refused
	// with an error instead of leaving by another link in clear text. Only addresses
	// inside it are taken away. Required.
	Unreachable netip.Prefix

	Up bool // bring the links up; false leaves them as they are
	// OwnRules says that the namespace is the mesh's alone: it gets the kernel's own
	// rules (ip-rule(8)) of IPv6 and no others.
	OwnRules bool
}

// Address is one address on AddressesOn.
type Address struct {
	Prefix netip.Prefix // with the bits of the address, as /128
	// Deprecated addresses answer, but are not chosen as a source.
	Deprecated bool
}

// Route is one prefix that leaves over the link.
type Route struct {
	Prefix netip.Prefix // masked
	MTU    int          // bytes; 0: the link's
	// Source is what packets of the host's own have as a source, ICMPv6 errors too: one
	// of its addresses. The zero Addr: the kernel chooses.
	Source netip.Addr
}

func (c Config) addressesOn() string {
	if c.AddressesOn != "" {
		return c.AddressesOn
	}
	return c.Link
}

func (c Config) validate() error {
	switch {
	case !c.Unreachable.IsValid() || c.Unreachable != c.Unreachable.Masked() || !is6(c.Unreachable):
		return fmt.Errorf("mesh prefix %s: want an IPv6 prefix without host bits", c.Unreachable)
	case len(c.Addresses) > 0 && c.addressesOn() == "":
		return errors.New("there are addresses but no link to hold them")
	case len(c.Routes) > 0 && c.Link == "":
		return errors.New("there are routes but no link")
	case len(c.Alias) > maxAlias:
		return fmt.Errorf("alias %q: longer than %d bytes", c.Alias, maxAlias)
	case c.MTU != 0 && c.MTU < minMTU:
		return fmt.Errorf("MTU %d: IPv6 needs at least %d", c.MTU, minMTU)
	}
	for _, a := range c.Addresses {
		if !c.Unreachable.Contains(a.Prefix.Addr()) || a.Prefix.Bits() < c.Unreachable.Bits() {
			return fmt.Errorf("address %s: it is outside the mesh's %s", a.Prefix, c.Unreachable)
		}
	}
	for _, r := range c.Routes {
		switch {
		case !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() || !is6(r.Prefix):
			return fmt.Errorf("route %s: want an IPv6 prefix without host bits", r.Prefix)
		case r.MTU != 0 && r.MTU < minMTU:
			return fmt.Errorf("route %s: MTU %d: IPv6 needs at least %d", r.Prefix, r.MTU, minMTU)
		}
	}
	return nil
}

func is6(p netip.Prefix) bool { return p.Addr().Is6() && !p.Addr().Is4In6() }

// maxPasses bounds how often Set looks again. One pass is the rule; a second one
// puts right what the first one's changes undid (a new MTU rewrites the MTU of the
// link's routes), a third finds nothing.
const maxPasses = 4

// Set makes the plane as c says and returns what it changed, one line each; no
// line means that all was right. It is idempotent. A change that the kernel
// refuses does not hold up the others: the error joins all that went wrong. If
// c.Link does not exist, all that does not need it is done and the error wraps
// os.ErrNotExist.
//
// A nil plane is the namespace of the process.
func Set(plane *netns.Handle, c Config) (changes []string, err error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("configure link %s: %w", c.Link, err)
	}
	k, err := openKernel(plane)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	for range maxPasses {
		have, err := k.read(c)
		if err != nil {
			return changes, err
		}
		todo := Diff(have, c)
		if len(todo) == 0 {
			return changes, k.missing(c)
		}
		done, err := k.apply(todo)
		changes = append(changes, done...)
		if err != nil {
			return changes, errors.Join(err, k.missing(c))
		}
	}
	return changes, fmt.Errorf("configure link %s: somebody else changes it at the same time", c.Link)
}

// Apply carries out changes that are known without asking the kernel, as Diff would
// yield them, and returns those that were made, one line each. Each is one message
// to the kernel, besides one for each link that they name: the cost is that of the
// changes, however many routes there are. An error says that the kernel does not
// hold what the caller believed, or that a link is gone: Set finds out.
func Apply(plane *netns.Handle, changes []Change) (done []string, err error) {
	if len(changes) == 0 {
		return nil, nil
	}
	k, err := openKernel(plane)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	done, err = k.apply(changes)
	if err == nil && len(done) < len(changes) {
		err = fmt.Errorf("link %s: %w", changes[len(changes)-1].Link, os.ErrNotExist)
	}
	return done, err
}

// Remove takes away what Set put, and nothing else: our routes, the unreachable
// route, and the addresses inside c.Unreachable. The link itself stays; that it
// is gone already is not an error.
func Remove(plane *netns.Handle, c Config) (changes []string, err error) {
	c.Addresses, c.Routes, c.MTU, c.Up = nil, nil, 0, false
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("clear link %s: %w", c.Link, err)
	}
	k, err := openKernel(plane)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	have, err := k.read(c)
	if err != nil {
		return nil, err
	}
	return k.apply(diffRemove(have, c))
}

// sysctls of a host's data plane, in the order in which they are written:
// `default` is what links that come later start with.
func planeSysctls() [][2]string {
	return [][2]string{
		{"net/ipv6/conf/default/disable_ipv6", "0"},
		{"net/ipv6/conf/all/disable_ipv6", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv6/conf/all/accept_ra", "0"},
		{"net/ipv6/conf/default/accept_redirects", "0"},
		{"net/ipv6/conf/all/accept_redirects", "0"},
		// -1: not even the mobility header's kind of source routing.
		{"net/ipv6/conf/default/accept_source_route", "-1"},
		{"net/ipv6/conf/all/accept_source_route", "-1"},
		{"net/ipv6/conf/default/forwarding", "1"},
		{"net/ipv6/conf/all/forwarding", "1"},
		{"net/ipv4/ip_forward", "0"},
		// The kernel's limit of errors is one for all; the firewall has one for each.
		{"net/ipv6/icmp/ratemask", ""},
	}
}

// Sysctls gives a data plane its sysctls and returns what it changed, one line each.
func Sysctls(plane *netns.Handle) (changes []string, err error) {
	err = plane.Do(func() error {
		for _, s := range planeSysctls() {
			was, err := os.ReadFile(netns.Sysctl(s[0]))
			if err == nil && strings.TrimSpace(string(was)) == s[1] {
				continue
			}
			if err := netns.SetSysctl(s[0], s[1]); err != nil {
				return err
			}
			if err == nil {
				changes = append(changes, fmt.Sprintf("set sysctl %s %q", s[0], s[1]))
			}
		}
		return nil
	})
	if err != nil {
		return changes, fmt.Errorf("prepare the data plane: %w", err)
	}
	return changes, nil
}

// Prepare makes a fresh namespace fit to be a host's data plane: it forwards IPv6
// and not IPv4, takes no advice from anybody, and its lo is up. It is idempotent
// and writes only what differs. Put the firewall in force first.
func Prepare(plane *netns.Handle) error {
	k, err := openKernel(plane)
	if err != nil {
		return err
	}
	defer k.Close()
	if _, err := Sysctls(plane); err != nil {
		return err
	}
	lo, err := k.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("prepare the data plane: find lo: %w", err)
	}
	if err := k.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("prepare the data plane: bring lo up: %w", err)
	}
	return nil
}
