package firewall

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// state matches packets whose flow is in one of the states.
func state(names string, bits uint32) part {
	return part{"ct state " + names, ctBits(expr.CtKeySTATE, bits, notEqual(0, 0, 0, 0))}
}

// established matches flows that were begun from here, and errors about them.
func established() part {
	return state("established,related", expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// related matches errors about flows.
func related() part { return state("related", expr.CtStateBitRELATED) }

// underWay matches packets of flows that both ends have spoken in.
func underWay() part { return state("established", expr.CtStateBitESTABLISHED) }

// begins matches packets of flows that only one end has spoken in.
func begins() part { return state("new", expr.CtStateBitNEW) }

// confirmed matches what belongs to a flow of which a packet has passed before.
func confirmed() part {
	const bit = 1 << 3 // IPS_CONFIRMED
	return part{"ct status confirmed", ctBits(expr.CtKeySTATUS, bit, notEqual(0, 0, 0, 0))}
}

func ctBits(key expr.CtKey, bits uint32, then expr.Any) []expr.Any {
	var mask [4]byte
	binary.NativeEndian.PutUint32(mask[:], bits)
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: mask[:], Xor: make([]byte, 4)},
		then,
	}
}

// inBox matches what begins a flow that lies in a box. Headers before the transport's
// are passed over, and fragments were put together before: no other bytes can stand for
// the port.
func inBox(set string) part {
	return part{words(notICMP().text, "ip6 saddr . ip6 daddr . meta l4proto . th dport @"+set), boxKeyFrom(notICMP(), 2, set)}
}

// echoInBox is inBox for an echo, whose port is type and code.
func echoInBox(set string) part {
	icmp := protocol(unix.IPPROTO_ICMPV6)
	return part{words(icmp.text, "ip6 saddr . ip6 daddr . meta l4proto . icmpv6 type, code @"+set), boxKeyFrom(icmp, 0, set)}
}

func boxKeyFrom(first part, portOffset uint32, set string) []expr.Any {
	return slices.Concat(first.exprs, ipv6().exprs, []expr.Any{
		header(sourceOffset, 16, reg32), header(destOffset, 16, reg32+4),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32 + 8},
		load(expr.PayloadBaseTransportHeader, portOffset, 2, reg32+9),
		lookup(set),
	})
}

// fewFlows counts the packet's flow to the /112 that it comes from, and matches if
// that has at most limit of them. It does not match either if the set is full. It
// is for the first packet of a flow: each packet that is not confirmed counts.
func fewFlows(set string, limit uint32) part {
	return part{fmt.Sprintf("add @%s { ip6 saddr/112 ct count %d }", set, limit), slices.Concat(ipv6().exprs, []expr.Any{
		header(sourceOffset, endpointBits/8, reg1),
		&expr.Dynset{SrcRegKey: reg1, SetName: set, Operation: uint32(unix.NFT_DYNSET_OP_ADD), Exprs: []expr.Any{&expr.Connlimit{Count: limit}}},
	})}
}

func words(parts ...string) string { return strings.Join(parts, " ") }
