package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// EventKind says what an Event is about.
type EventKind uint8

// The kinds of events.
const (
	LinkEvent    EventKind = iota // a link came, went, or is another one: MTU, Up, Alias
	AddressEvent                  // an IPv6 address: Prefix with the address's bits
	RouteEvent                    // a route of IPv6's main table: Prefix, Protocol
	RenameEvent                   // a link has another name now: Link is the one that it had
	RuleEvent                     // a rule of IPv6: Rule
	SysctlEvent                   // whether the namespace forwards IPv6: Gone if it does not
	LostEvent                     // the kernel told more than could be read
)

// Event is something that somebody, we too, changed in a namespace.
type Event struct {
	Kind     EventKind
	Gone     bool   // it was removed; else it is new, or another one
	Link     string // its name; "": a route over none
	MTU      int
	Alias    string
	Up       bool
	Prefix   netip.Prefix
	Protocol int
	Rule     Rule

	index int // of the link
}

// Watch calls seen with what changes in the namespace, in order, until ctx ends.
func Watch(ctx context.Context, plane *netns.Handle, seen func(Event)) error {
	conn, err := dialRoute(plane)
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetReadBuffer(4 << 20); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	for _, group := range []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_NETCONF} {
		if err := conn.JoinGroup(group); err != nil {
			return fmt.Errorf("watch links: %w", err)
		}
	}
	names, err := namesOf(plane)
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	for {
		got, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			seen(Event{Kind: LostEvent})
			continue
		case err != nil:
			return fmt.Errorf("watch links: %w", err)
		}
		for _, m := range got {
			e, ok := eventOf(m)
			if !ok {
				continue
			}
			switch {
			case e.Kind == SysctlEvent, e.Kind == RuleEvent:
			case e.Kind != LinkEvent:
				e.Link = names[e.index]
			case e.Gone:
				delete(names, e.index)
			default:
				if was := names[e.index]; was != "" && was != e.Link {
					seen(Event{Kind: RenameEvent, Link: was, index: e.index})
				}
				names[e.index] = e.Link
			}
			seen(e)
		}
	}
}

// Rename gives the link of a RenameEvent its name back. The error wraps os.ErrExist if
// another link has it now.
func Rename(plane *netns.Handle, e Event) error {
	k, err := openKernel(plane)
	if err != nil {
		return err
	}
	defer k.Close()
	l, err := k.nl.LinkByIndex(e.index)
	if err != nil {
		return fmt.Errorf("name link %s: %w", e.Link, err)
	}
	return k.rename(l, e.Link)
}

// namesOf are the links that are there, by index.
func namesOf(plane *netns.Handle) (map[int]string, error) {
	nl, err := plane.Netlink()
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	links, err := netns.List(nl.LinkList)
	if err != nil {
		return nil, err
	}
	out := make(map[int]string, len(links))
	for _, l := range links {
		out[l.Attrs().Index] = l.Attrs().Name
	}
	return out, nil
}

// The lengths of what stands before the attributes of a message.
const (
	confHeader    = 4 // struct netconfmsg, padded
	linkHeader    = unix.SizeofIfInfomsg
	addressHeader = unix.SizeofIfAddrmsg
	routeHeader   = unix.SizeofRtMsg
)

// eventOf reads a message; ok is false if it is about nothing that Set looks after.
func eventOf(m netlink.Message) (e Event, ok bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		e.Kind, e.Gone = LinkEvent, m.Header.Type == unix.RTM_DELLINK
		return e, e.readLink(m.Data)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		e.Kind, e.Gone = AddressEvent, m.Header.Type == unix.RTM_DELADDR
		return e, e.readAddress(m.Data)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		e.Kind, e.Gone = RouteEvent, m.Header.Type == unix.RTM_DELROUTE
		return e, e.readRoute(m.Data)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		e.Kind, e.Gone = RuleEvent, m.Header.Type == unix.RTM_DELRULE
		e.Rule, ok = ruleOf(m.Data)
		return e, ok
	case unix.RTM_NEWNETCONF:
		e.Kind = SysctlEvent
		return e, e.readForwarding(m.Data)
	}
	return e, false
}

func (e *Event) readLink(b []byte) bool {
	list, ok := attributes(b, linkHeader)
	// A bridge tells of its ports in a family of its own.
	if !ok || b[0] != unix.AF_UNSPEC {
		return false
	}
	e.index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	e.Up = binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0
	for _, a := range list {
		switch {
		case a.Type == unix.IFLA_IFNAME:
			e.Link = string(bytes.TrimRight(a.Data, "\x00"))
		case a.Type == unix.IFLA_IFALIAS:
			e.Alias = string(bytes.TrimRight(a.Data, "\x00"))
		case a.Type == unix.IFLA_MTU && len(a.Data) == 4:
			e.MTU = int(binary.NativeEndian.Uint32(a.Data))
		}
	}
	return e.Link != ""
}

func (e *Event) readAddress(b []byte) bool {
	list, ok := attributes(b, addressHeader)
	if !ok || b[0] != unix.AF_INET6 {
		return false
	}
	e.index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.Data); ok && a.Type == unix.IFA_ADDRESS {
			e.Prefix = netip.PrefixFrom(addr, int(b[1]))
		}
	}
	return e.Prefix.IsValid()
}

func (e *Event) readRoute(b []byte) bool {
	list, ok := attributes(b, routeHeader)
	if !ok || b[0] != unix.AF_INET6 || b[4] != unix.RT_TABLE_MAIN {
		return false
	}
	e.Protocol = int(b[5])
	for _, a := range list {
		switch {
		case a.Type == unix.RTA_OIF && len(a.Data) == 4:
			e.index = int(int32(binary.NativeEndian.Uint32(a.Data)))
		case a.Type == unix.RTA_DST:
			if addr, ok := netip.AddrFromSlice(a.Data); ok {
				e.Prefix = netip.PrefixFrom(addr, int(b[1]))
			}
		}
	}
	return e.Prefix.IsValid()
}

// The attributes of a message about sysctls (linux/netconf.h).
const (
	confIndex      = 1
	confForwarding = 2
	confAll        = -1 // index: not that of one link
)

func (e *Event) readForwarding(b []byte) bool {
	list, ok := attributes(b, confHeader)
	if !ok || b[0] != unix.AF_INET6 {
		return false
	}
	all, told := false, false
	for _, a := range list {
		if len(a.Data) != 4 {
			continue
		}
		switch x := int32(binary.NativeEndian.Uint32(a.Data)); a.Type {
		case confIndex:
			all = x == confAll
		case confForwarding:
			e.Gone, told = x == 0, true
		}
	}
	return all && told
}

func attributes(b []byte, header int) ([]netlink.Attribute, bool) {
	if len(b) < header {
		return nil, false
	}
	list, err := netlink.UnmarshalAttributes(b[header:])
	return list, err == nil
}
