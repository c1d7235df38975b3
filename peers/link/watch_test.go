package link

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// message is one of the kernel's: what stands first, and attributes.
func message(t *testing.T, kind int, header []byte, attrs ...netlink.Attribute) netlink.Message {
	t.Helper()
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind)}, Data: append(header, b...)}
}

func number(kind uint16, n int32) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: binary.NativeEndian.AppendUint32(nil, uint32(n))}
}

func TestEventOf(t *testing.T) {
	t.Parallel()
	linkIs := func(family byte, up uint32) []byte {
		b := binary.NativeEndian.AppendUint32([]byte{family, 0, 0, 0}, 7)
		return append(binary.NativeEndian.AppendUint32(b, up), 0, 0, 0, 0)
	}
	address := func(family byte) []byte {
		return binary.NativeEndian.AppendUint32([]byte{family, 128, 0, 0}, 7)
	}
	route := func(family, table byte) []byte {
		return []byte{family, 96, 0, 0, table, Protocol, 0, unix.RTN_UNICAST, 0, 0, 0, 0}
	}
	name := netlink.Attribute{Type: unix.IFLA_IFNAME, Data: []byte("weft0\x00")}
	one, dst := pfx("1::1/128"), pfx("1:200:6::/96")
	holds := netlink.Attribute{Type: unix.IFA_ADDRESS, Data: one.Addr().AsSlice()}
	to := netlink.Attribute{Type: unix.RTA_DST, Data: dst.Addr().AsSlice()}
	conf := []byte{unix.AF_INET6, 0, 0, 0}
	for _, tt := range []struct {
		name string
		m    netlink.Message
		want *Event // nil: nothing that Set looks after
	}{
		{"a link", message(t, unix.RTM_NEWLINK, linkIs(0, unix.IFF_UP), name, number(unix.IFLA_MTU, 1420)), &Event{Kind: LinkEvent, Link: "weft0", MTU: 1420, Up: true}},
		{"a link that goes", message(t, unix.RTM_DELLINK, linkIs(0, 0), name), &Event{Kind: LinkEvent, Gone: true, Link: "weft0"}},
		{"a bridge's port", message(t, unix.RTM_NEWLINK, linkIs(unix.AF_BRIDGE, 0), name), nil},
		{"a link without a name", message(t, unix.RTM_NEWLINK, linkIs(0, 0)), nil},
		{"an address", message(t, unix.RTM_NEWADDR, address(unix.AF_INET6), holds), &Event{Kind: AddressEvent, Prefix: one}},
		{"an address that goes", message(t, unix.RTM_DELADDR, address(unix.AF_INET6), holds), &Event{Kind: AddressEvent, Gone: true, Prefix: one}},
		{"an address of IPv4", message(t, unix.RTM_NEWADDR, address(unix.AF_INET), holds), nil},
		{"a route", message(t, unix.RTM_NEWROUTE, route(unix.AF_INET6, unix.RT_TABLE_MAIN), to, number(unix.RTA_OIF, 7)), &Event{Kind: RouteEvent, Prefix: dst, Protocol: Protocol}},
		{"a route that goes", message(t, unix.RTM_DELROUTE, route(unix.AF_INET6, unix.RT_TABLE_MAIN), to), &Event{Kind: RouteEvent, Gone: true, Prefix: dst, Protocol: Protocol}},
		{"a route of another table", message(t, unix.RTM_NEWROUTE, route(unix.AF_INET6, unix.RT_TABLE_LOCAL), to), nil},
		{"a default route", message(t, unix.RTM_NEWROUTE, route(unix.AF_INET6, unix.RT_TABLE_MAIN)), nil},
		{"no forwarding", message(t, unix.RTM_NEWNETCONF, conf, number(confIndex, confAll), number(confForwarding, 0)), &Event{Kind: SysctlEvent, Gone: true}},
		{"forwarding", message(t, unix.RTM_NEWNETCONF, conf, number(confIndex, confAll), number(confForwarding, 1)), &Event{Kind: SysctlEvent}},
		{"forwarding of one link", message(t, unix.RTM_NEWNETCONF, conf, number(confIndex, 7), number(confForwarding, 0)), nil},
		{"another sysctl", message(t, unix.RTM_NEWNETCONF, conf, number(confIndex, confAll), number(6, 0)), nil},
		{"a neighbour", message(t, unix.RTM_NEWNEIGH, linkIs(0, 0)), nil},
		{"cut short", netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWROUTE}, Data: []byte{unix.AF_INET6}}, nil},
		{"an address of three bytes", message(t, unix.RTM_NEWADDR, address(unix.AF_INET6), netlink.Attribute{Type: unix.IFA_ADDRESS, Data: []byte{1, 2, 3}}), nil},
	} {
		got, ok := eventOf(tt.m)
		if ok != (tt.want != nil) {
			t.Errorf("%s: %+v, %t", tt.name, got, ok)
			continue
		}
		if tt.want != nil {
			if diff := cmp.Diff(*tt.want, got, cmpopts.IgnoreUnexported(Event{}), cmpopts.EquateComparable(Rule{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.name, diff)
			}
		}
	}
}
