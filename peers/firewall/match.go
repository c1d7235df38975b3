package firewall

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// part is a piece of a rule: what it says, and the expressions that do it.
type part struct {
	text  string
	exprs []expr.Any
}

// rule puts parts together. All of them must match, left to right.
func rule(name string, parts ...part) Rule {
	r := Rule{Name: name}
	var text []string
	for _, p := range parts {
		text = append(text, p.text)
		r.exprs = append(r.exprs, p.exprs...)
	}
	r.Text = strings.Join(text, " ")
	return r
}

// Registers: 1 and 2 hold 16 bytes each; the same room is also four registers of 4
// bytes each, from reg32 on.
const (
	reg1  = unix.NFT_REG_1
	reg2  = unix.NFT_REG_2
	reg32 = unix.NFT_REG32_00
)

// Offsets in the IPv6 header.
const (
	hopLimitOffset = 7
	sourceOffset   = 8
	destOffset     = 24
)

func load(base expr.PayloadBase, offset, length, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}
}

func header(offset, length, reg uint32) expr.Any {
	return load(expr.PayloadBaseNetworkHeader, offset, length, reg)
}

func transport(offset, length uint32) expr.Any {
	return load(expr.PayloadBaseTransportHeader, offset, length, reg1)
}

func equal(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: data} }

func notEqual(data ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: data}
}

func lookup(set string) expr.Any { return &expr.Lookup{SourceRegister: reg1, SetName: set} }

func linkName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: reg1} }

// ipv6 stands before every match of an address, so that it is not taken of
// something else; the text leaves it out there, as nft does.
func ipv6() part {
	return part{"meta nfproto ipv6", []expr.Any{meta(expr.MetaKeyNFPROTO), equal(unix.NFPROTO_IPV6)}}
}

func from(link string) part {
	return part{fmt.Sprintf("iifname %q", link), []expr.Any{meta(expr.MetaKeyIIFNAME), equal(linkName(link)...)}}
}

// notFrom matches everything if link is "".
func notFrom(link string) part {
	if link == "" {
		return ipv6()
	}
	return part{fmt.Sprintf("iifname != %q", link), []expr.Any{meta(expr.MetaKeyIIFNAME), notEqual(linkName(link)...)}}
}

func fromAny(set string) part {
	return part{"iifname @" + set, []expr.Any{meta(expr.MetaKeyIIFNAME), lookup(set)}}
}

// ownSource matches what comes from a link with a source in the /112 that the link
// may use. An exact key, the name and the first 14 bytes of the source (the kernel
// fills the register up with zeros), so that the set can be a hash: a look-up costs
// the same with any number of machines, and so does taking one out. A set of ranges
// takes milliseconds for each that goes.
func ownSource(set string) part {
	return part{"iifname . ip6 saddr/112 @" + set, append(ipv6().exprs,
		meta(expr.MetaKeyIIFNAME), header(sourceOffset, endpointBits/8, reg2), lookup(set))}
}

func saddr(a netip.Addr) part {
	return part{"ip6 saddr " + a.String(), append(ipv6().exprs, header(sourceOffset, 16, reg1), equal(a.AsSlice()...))}
}

func daddr(a netip.Addr) part {
	return part{"ip6 daddr " + a.String(), append(ipv6().exprs, header(destOffset, 16, reg1), equal(a.AsSlice()...))}
}

func saddrIn(set string) part {
	return part{"ip6 saddr @" + set, append(ipv6().exprs, header(sourceOffset, 16, reg1), lookup(set))}
}

func daddrIn(set string) part {
	return part{"ip6 daddr @" + set, append(ipv6().exprs, header(destOffset, 16, reg1), lookup(set))}
}

// saddrLike compares the bits of the source that are set in mask.
func saddrLike(value, mask netip.Addr) part {
	v, m := value.As16(), mask.As16()
	for i := range v {
		v[i] &= m[i]
	}
	return part{
		fmt.Sprintf("ip6 saddr & %s == %s", mask, netip.AddrFrom16(v)),
		append(ipv6().exprs, header(sourceOffset, 16, reg1),
			&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 16, Mask: m[:], Xor: make([]byte, 16)}, equal(v[:]...)),
	}
}

// pair matches what goes from one network to another, or to itself, as the set says.
func pair(set string) part {
	return part{"ip6 saddr/64 . ip6 daddr/64 @" + set, append(ipv6().exprs,
		header(sourceOffset, 8, reg32), header(destOffset, 8, reg32+2), lookup(set))}
}

// carriedSource matches what comes from a carried network, wherever it goes.
func carriedSource(set string) part {
	return part{"ip6 saddr/64 . ip6 saddr/64 @" + set, append(ipv6().exprs,
		header(sourceOffset, 8, reg32), header(sourceOffset, 8, reg32+2), lookup(set))}
}

// quoted matches an ICMPv6 error about a packet to the network where the error comes
// from. The packet it is about stands behind 8 bytes of ICMPv6.
func quoted(set string) part {
	return part{"ip6 saddr/64 . icmpv6 inner daddr/64 @" + set, append(ipv6().exprs,
		header(sourceOffset, 8, reg32), load(expr.PayloadBaseTransportHeader, 8+destOffset, 8, reg32+2), lookup(set))}
}

func hopLimit(n byte) part {
	return part{fmt.Sprintf("ip6 hoplimit %d", n), append(ipv6().exprs, header(hopLimitOffset, 1, reg1), equal(n))}
}

// protocol looks behind extension headers: meta l4proto, not the header's field.
func protocol(n byte) part {
	return part{"meta l4proto " + protocolName(n), []expr.Any{meta(expr.MetaKeyL4PROTO), equal(n)}}
}

func notProtocol(n byte) part {
	return part{"meta l4proto != " + protocolName(n), []expr.Any{meta(expr.MetaKeyL4PROTO), notEqual(n)}}
}

func notICMP() part { return notProtocol(unix.IPPROTO_ICMPV6) }

func protocolName(n byte) string {
	return map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMPV6: "icmpv6"}[n]
}

func sport(port uint16) part {
	return part{fmt.Sprintf("th sport %d", port), []expr.Any{transport(0, 2), equal(binaryutil.BigEndian.PutUint16(port)...)}}
}

func dport(port uint16) part {
	return part{fmt.Sprintf("th dport %d", port), []expr.Any{transport(2, 2), equal(binaryutil.BigEndian.PutUint16(port)...)}}
}

// icmpType matches ICMPv6 types from first to last.
func icmpType(first, last byte) part {
	p := protocol(unix.IPPROTO_ICMPV6)
	if first == last {
		return part{fmt.Sprintf("%s icmpv6 type %d", p.text, first), append(p.exprs, transport(0, 1), equal(first))}
	}
	return part{fmt.Sprintf("%s icmpv6 type %d-%d", p.text, first, last), append(p.exprs, transport(0, 1),
		&expr.Cmp{Op: expr.CmpOpGte, Register: reg1, Data: []byte{first}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: reg1, Data: []byte{last}})}
}

// clampMSS lowers the MSS that a SYN announces to what the route there and the
// route back can carry. It never raises it.
func clampMSS() part {
	const syn, rst, maxSegment = 0x02, 0x04, 2
	p := protocol(unix.IPPROTO_TCP)
	return part{p.text + " tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu", append(p.exprs,
		transport(13, 1), &expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}}, equal(syn),
		&expr.Rt{Register: reg1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: reg1, DestRegister: reg1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: reg1, Type: maxSegment, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt})}
}

func notrack() part { return part{"notrack", []expr.Any{&expr.Notrack{}}} }
func accept() part {
	return part{"accept", []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
}

func drop() part {
	return part{"counter drop", []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}}
}

// counted counts what is left to the chain's policy.
func counted() part { return part{"counter", []expr.Any{&expr.Counter{}}} }

func goTo(chain string) part {
	return part{"goto " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}}
}

func jump(chain string) part {
	return part{"jump " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}}
}

// reject tells the sender: administratively prohibited. After ipv6 only.
func reject() part {
	const adminProhibited = 1
	return part{"counter reject with icmpv6 admin-prohibited", []expr.Any{&expr.Counter{},
		&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: adminProhibited}}}
}
