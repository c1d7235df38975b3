// Package attach puts machines into the data plane. The agent's half (Attach,
// Detach, List) ties a network namespace to the plane by a veth pair; the half of
// `weft run` (Run, Init) makes such a namespace, with its own resolver and
// processes, and runs a command in it.
//
//	plane                                        machine
//	  m-xxxxxxxxxxxxx  fe80::1/64   <---veth--->   eth0  <endpoint>:2/128, fe80::2/64
//	  <endpoint>/112 via fe80::2                   default via fe80::1
//
// The namespace gets no name, so the kernel cleans up whatever dies. Who may be a
// machine, its address and its firewall entry are decided elsewhere; that entry is
// to be in force before Attach.
package attach

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/peers/netns"
)

const (
	// RouteProtocol marks the routes that are ours (`ip route show proto 120`).
	RouteProtocol = 0x78

	linkPrefix  = "m-"
	machineLink = "eth0"
)

// Gateway is where every machine sends what is not its own.
func Gateway() netip.Addr { return netip.MustParseAddr("fe80::1") }

// machineLocal is the machine's link-local address: fixed, so that it needs no
// duplicate detection, which would hold up the first packet for a second.
func machineLocal() netip.Addr { return netip.MustParseAddr("fe80::2") }

// Machine is one attachment as wanted.
type Machine struct {
	Link     string       // name of the plane's end; see LinkName
	Alias    string       // its alias, for people: at most 255 bytes
	Endpoint netip.Prefix // the machine's /112; it gets the main address of it
	MTU      int          // bytes, of both ends: the WireGuard link's
	// Unrouted: the machine can send, and nothing is sent to it before Route says so.
	Unrouted bool
}

// Found is one attachment as it is.
type Found struct {
	Link     string
	Alias    string
	Endpoint netip.Prefix // invalid if its route is missing
	MTU      int
	// PeerAlive: the machine's end is up. (When the machine's namespace ends, the
	// whole pair goes.)
	PeerAlive bool
}

// LinkName returns the name of the plane's end for a machine: the same for the
// same org and id, 15 bytes.
func LinkName(org, id string) string {
	sum := sha256.Sum256([]byte(org + "/" + id))
	return linkPrefix + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:8]))
}

// IsLinkName reports whether a link in the plane is a machine's by its name.
func IsLinkName(link string) bool { return strings.HasPrefix(link, linkPrefix) }

func (m Machine) validate() error {
	switch {
	case m.Link == "" || len(m.Link) > 15 || strings.ContainsAny(m.Link, "/ \t\n"):
		return fmt.Errorf("link name %q: want 1 to 15 bytes without spaces", m.Link)
	case !m.Endpoint.IsValid() || m.Endpoint.Bits() != ipam.EndpointBits || m.Endpoint != m.Endpoint.Masked():
		return fmt.Errorf("endpoint %s: want a /%d", m.Endpoint, ipam.EndpointBits)
	case m.MTU < 1280 || m.MTU > 65535:
		return fmt.Errorf("MTU %d: want 1280 to 65535", m.MTU)
	case len(m.Alias) > 255:
		return fmt.Errorf("alias %q: longer than 255 bytes", m.Alias)
	}
	return nil
}

// Attach ties machine to plane. It is idempotent: a pair that is there and leads
// to this machine is kept, with what is missing put back; one that leads elsewhere
// (left over from a machine that ended a moment ago) is replaced.
func Attach(plane, machine *netns.Handle, m Machine) error {
	if err := attach(plane, machine, m); err != nil {
		return fmt.Errorf("attach %s as %s: %w", m.Endpoint, m.Link, err)
	}
	return nil
}

func attach(plane, machine *netns.Handle, m Machine) error {
	if err := m.validate(); err != nil {
		return err
	}
	if machine == nil {
		return errors.New("a machine needs a network namespace of its own")
	}
	out, err := openSide(plane)
	if err != nil {
		return err
	}
	defer out.nl.Close()
	in, err := openSide(machine)
	if err != nil {
		return err
	}
	defer in.nl.Close()

	outer, inner, err := ensurePair(out, in, m)
	if err != nil {
		return err
	}
	// The machine's end comes first: when the plane sends it something, it answers.
	if err := in.configureMachine(inner, m, outer.Attrs().HardwareAddr); err != nil {
		return fmt.Errorf("in the machine: %w", err)
	}
	if err := out.configurePlane(outer, m); err != nil {
		return err
	}
	if !m.Unrouted {
		if err := out.onlyRoute(outer, m.Endpoint); err != nil {
			return err
		}
	}
	return waitReady(func() (bool, error) {
		ok, err := in.ready(inner, machineLocal(), ipam.MainAddr(m.Endpoint))
		if err == nil && ok {
			ok, err = out.ready(outer, Gateway())
		}
		return ok, err
	})
}

// readyTimeout is far beyond what the kernel needs: a few milliseconds.
const readyTimeout = 5 * time.Second

// waitReady waits until ok. The kernel takes a link into use, and receives for an
// address, in work of its own after it has accepted both; a packet before that is
// lost, and the next try of neighbour discovery comes a second later.
func waitReady(ok func() (bool, error)) error {
	deadline := time.NewTimer(readyTimeout)
	defer deadline.Stop()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		if is, err := ok(); is || err != nil {
			return err
		}
		select {
		case <-again.C:
		case <-deadline.C:
			return fmt.Errorf("the veth pair is not ready after %s", readyTimeout)
		}
	}
}

// ready reports whether a link carries packets and what comes in by it for the
// given addresses is received.
func (s side) ready(l netlink.Link, addrs ...netip.Addr) (bool, error) {
	now, err := s.nl.LinkByIndex(l.Attrs().Index)
	if err != nil {
		return false, fmt.Errorf("find link %s: %w", l.Attrs().Name, err)
	}
	if now.Attrs().OperState != netlink.OperUp {
		return false, nil
	}
	for _, a := range addrs {
		routes, err := s.nl.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{IifIndex: l.Attrs().Index})
		if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return false, nil // the kernel's error is that there is no such route yet
		}
	}
	return true, nil
}

// Detach removes the pair by the plane's end. No such link is not an error; a link
// that is not a machine's is never removed.
func Detach(plane *netns.Handle, link string) error {
	if !IsLinkName(link) {
		return fmt.Errorf("detach %s: it is not a machine's link", link)
	}
	s, err := openSide(plane)
	if err != nil {
		return err
	}
	defer s.nl.Close()
	l, err := s.find(link)
	if err != nil {
		return fmt.Errorf("detach %s: %w", link, err)
	}
	if l == nil {
		return nil
	}
	if err := s.delete(l); err != nil {
		return fmt.Errorf("detach %s: %w", link, err)
	}
	return nil
}

// List returns the machines that are attached to plane, sorted by link.
func List(plane *netns.Handle) ([]Found, error) {
	s, err := openSide(plane)
	if err != nil {
		return nil, err
	}
	defer s.nl.Close()
	links, err := netns.List(s.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	routes, err := netns.List(func() ([]netlink.Route, error) {
		return s.nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list attachments: routes: %w", err)
	}
	endpoint := map[int]netip.Prefix{} // by link index
	for _, r := range routes {
		if p, ok := netns.Prefix(r.Dst); ok && p.Bits() == ipam.EndpointBits {
			endpoint[r.LinkIndex] = p
		}
	}
	var out []Found
	for _, l := range links {
		a := l.Attrs()
		if l.Type() != "veth" || !IsLinkName(a.Name) {
			continue
		}
		out = append(out, Found{
			Link: a.Name, Alias: a.Alias, Endpoint: endpoint[a.Index], MTU: a.MTU,
			PeerAlive: a.RawFlags&unix.IFF_LOWER_UP != 0,
		})
	}
	slices.SortFunc(out, func(a, b Found) int { return strings.Compare(a.Link, b.Link) })
	return out, nil
}

// side is one namespace at work.
type side struct {
	ns *netns.Handle
	nl *netlink.Handle
}

func openSide(ns *netns.Handle) (side, error) {
	nl, err := ns.Netlink()
	return side{ns, nl}, err
}

// find returns nil without an error if there is no such link.
func (s side) find(name string) (netlink.Link, error) {
	l, err := s.nl.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return l, nil
}

func (s side) delete(l netlink.Link) error {
	if err := s.nl.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// ensurePair returns the two ends of the veth pair, made anew if there is none
// between the two.
func ensurePair(out, in side, m Machine) (outer, inner netlink.Link, err error) {
	// More than one round only if the kernel is just then removing the old pair.
	for range 5 {
		if outer, err = out.find(m.Link); err != nil {
			return nil, nil, err
		}
		if inner, err = in.find(machineLink); err != nil {
			return nil, nil, err
		}
		if outer != nil && inner != nil {
			if ok, err := arePair(out, in, outer, inner); err != nil || ok {
				return outer, inner, err
			}
		}
		if outer != nil {
			if err := out.delete(outer); err != nil {
				return nil, nil, err
			}
		} else if inner != nil {
			return nil, nil, fmt.Errorf("the machine has another %s already", machineLink)
		}
		err = out.nl.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: m.Link, MTU: m.MTU, TxQLen: -1},
			PeerName:  machineLink, PeerNamespace: netlink.NsFd(in.ns.Fd()), PeerTxQLen: -1,
			PeerHardwareAddr: machineMAC(m.Link),
		})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, nil, fmt.Errorf("make the veth pair: %w", err)
		}
	}
	return nil, nil, fmt.Errorf("make the veth pair: link %s keeps coming back", m.Link)
}

// arePair reports whether two links are the ends of one veth pair: each names the
// other's index, and the outer's peer lives in the machine's namespace.
func arePair(out, in side, outer, inner netlink.Link) (bool, error) {
	o, i := outer.Attrs(), inner.Attrs()
	if outer.Type() != "veth" || inner.Type() != "veth" || o.ParentIndex != i.Index || i.ParentIndex != o.Index {
		return false, nil
	}
	id, err := out.nl.GetNetNsIdByFd(in.ns.Fd())
	if err != nil {
		return false, fmt.Errorf("look up the machine's namespace: %w", err)
	}
	return id >= 0 && id == o.NetNsID, nil
}

func (s side) configurePlane(l netlink.Link, m Machine) error {
	if err := s.quiet(l); err != nil {
		return err
	}
	if l.Attrs().Alias != m.Alias {
		if err := s.nl.LinkSetAlias(l, m.Alias); err != nil {
			return fmt.Errorf("set the alias of %s: %w", m.Link, err)
		}
	}
	if err := s.bring(l, m.MTU, netip.PrefixFrom(Gateway(), 64)); err != nil {
		return err
	}
	return s.know(l, machineLocal(), machineMAC(m.Link))
}

func (s side) configureMachine(l netlink.Link, m Machine, gateway net.HardwareAddr) error {
	if err := s.quiet(l); err != nil {
		return err
	}
	if err := s.setMAC(l, machineMAC(m.Link)); err != nil {
		return err
	}
	err := s.ns.Do(func() error {
		return netns.SetSysctl("net/ipv6/conf/"+machineLink+"/accept_ra", "0")
	})
	if err != nil {
		return err
	}
	lo, err := s.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find link lo: %w", err)
	}
	if err := s.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	main := netip.PrefixFrom(ipam.MainAddr(m.Endpoint), 128)
	if err := s.bring(l, m.MTU, netip.PrefixFrom(machineLocal(), 64), main); err != nil {
		return err
	}
	err = s.nl.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Protocol: RouteProtocol, Dst: netns.IPNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0)), Gw: Gateway().AsSlice()})
	if err != nil {
		return fmt.Errorf("set the default route: %w", err)
	}
	return s.know(l, Gateway(), gateway)
}

// quiet keeps the kernel from giving the link an address of its own.
func (s side) quiet(l netlink.Link) error {
	if err := s.nl.LinkSetIP6AddrGenMode(l, 1); err != nil {
		return fmt.Errorf("set the address mode of %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// bring gives a link its MTU and addresses, and brings it up.
func (s side) bring(l netlink.Link, mtu int, addrs ...netip.Prefix) error {
	name := l.Attrs().Name
	if l.Attrs().MTU != mtu {
		if err := s.nl.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU %d of %s: %w", mtu, name, err)
		}
	}
	for _, a := range addrs {
		if err := s.nl.AddrReplace(l, &netlink.Addr{IPNet: netns.IPNet(a), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a, name, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := s.nl.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring %s up: %w", name, err)
		}
	}
	return nil
}
