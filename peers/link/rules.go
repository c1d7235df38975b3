package link

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// Rule is a rule of IPv6's routing policy (ip-rule(8)).
type Rule struct {
	Priority uint32
	Table    uint32
	// Special rules look at more than the priority, or do something else than to look
	// up a table.
	Special bool
	message string // as the kernel tells it, and takes it; "": it follows from the rest
}

// String is the rule as ip-rule shows it, as far as it is known here.
func (r Rule) String() string {
	if r.Special {
		return fmt.Sprintf("%d (of somebody else)", r.Priority)
	}
	table := fmt.Sprint(r.Table)
	switch r.Table {
	case unix.RT_TABLE_LOCAL:
		table = "local"
	case unix.RT_TABLE_MAIN:
		table = "main"
	}
	return fmt.Sprintf("%d lookup %s", r.Priority, table)
}

// Own reports whether the rule is one of the kernel's own, which a namespace is born
// with.
func (r Rule) Own() bool {
	return slices.ContainsFunc(ownRules(), r.same)
}

func (r Rule) same(other Rule) bool {
	return r.Priority == other.Priority && r.Table == other.Table && r.Special == other.Special
}

// ownRules are those of net/ipv6/fib6_rules.c.
func ownRules() []Rule {
	return []Rule{{Priority: 0, Table: unix.RT_TABLE_LOCAL}, {Priority: 0x7ffe, Table: unix.RT_TABLE_MAIN}}
}

func diffRules(have []Rule) []Change {
	var out []Change
	for _, own := range ownRules() {
		if !slices.ContainsFunc(have, own.same) {
			out = append(out, Change{Op: AddRule, Rule: own})
		}
	}
	for _, r := range have {
		if !r.Own() {
			out = append(out, Change{Op: DropRule, Rule: r})
		}
	}
	return out
}

// What linux/fib_rules.h calls them.
const (
	ruleHeader = 12 // struct fib_rule_hdr
	actToTable = 1  // FR_ACT_TO_TBL
	ruleInvert = 2  // FIB_RULE_INVERT

	fraPriority       = 6
	fraSuppressLength = 14
	fraTable          = 15
	fraProtocol       = 21
)

// ruleOf reads a rule of IPv6; ok is false if it is none.
func ruleOf(b []byte) (r Rule, ok bool) {
	list, ok := attributes(b, ruleHeader)
	if !ok || b[0] != unix.AF_INET6 {
		return r, false
	}
	r.message = string(b)
	r.Table = uint32(b[4])
	r.Special = b[1] != 0 || b[2] != 0 || b[3] != 0 || b[7] != actToTable || binary.NativeEndian.Uint32(b[8:])&ruleInvert != 0
	for _, a := range list {
		value := uint32(0)
		if len(a.Data) == 4 {
			value = binary.NativeEndian.Uint32(a.Data)
		}
		switch a.Type {
		case fraPriority:
			r.Priority = value
		case fraTable:
			r.Table = value
		case fraProtocol:
		case fraSuppressLength:
			r.Special = r.Special || int32(value) != -1
		default:
			r.Special = true
		}
	}
	return r, true
}

// encode is the message about a rule.
func (r Rule) encode() ([]byte, error) {
	if r.message != "" {
		return []byte(r.message), nil
	}
	header := make([]byte, ruleHeader)
	header[0], header[4], header[7] = unix.AF_INET6, byte(r.Table), actToTable
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: fraPriority, Data: binary.NativeEndian.AppendUint32(nil, r.Priority)},
		{Type: fraTable, Data: binary.NativeEndian.AppendUint32(nil, r.Table)},
		{Type: fraProtocol, Data: []byte{unix.RTPROT_KERNEL}},
	})
	return append(header, attrs...), err
}

func dialRoute(plane *netns.Handle) (*netlink.Conn, error) {
	c := &netlink.Config{}
	if plane != nil {
		c.NetNS = plane.Fd()
	}
	return netlink.Dial(unix.NETLINK_ROUTE, c)
}

// readRules returns the rules of IPv6, in the order in which they are followed.
func readRules(plane *netns.Handle) ([]Rule, error) {
	conn, err := dialRoute(plane)
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	defer conn.Close()
	header := make([]byte, ruleHeader)
	header[0] = unix.AF_INET6
	got, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETRULE, Flags: netlink.Request | netlink.Dump}, Data: header,
	})
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	out := []Rule{}
	for _, m := range got {
		if r, ok := ruleOf(m.Data); ok && m.Header.Type == unix.RTM_NEWRULE {
			out = append(out, r)
		}
	}
	return out, nil
}

// changeRule sends one message about a rule.
func changeRule(plane *netns.Handle, kind netlink.HeaderType, r Rule) error {
	data, err := r.encode()
	if err != nil {
		return err
	}
	conn, err := dialRoute(plane)
	if err != nil {
		return err
	}
	defer conn.Close()
	flags := netlink.Request | netlink.Acknowledge
	if kind == unix.RTM_NEWRULE {
		flags |= netlink.Create | netlink.Excl
	}
	_, err = conn.Execute(netlink.Message{Header: netlink.Header{Type: kind, Flags: flags}, Data: data})
	return err
}
