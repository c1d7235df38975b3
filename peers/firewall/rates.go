package firewall

import (
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

// What the host itself does for one is bounded, so that something is left for the
// others. What a host passes on is not: that is the business of links and processors.

// tooMany names the rules that matter to those alone who go too far.
const tooMany = "too many"

// ratesOf fills in the defaults. A machine's kernel asks for its gateway once a second.
func ratesOf(p peers.Policy) peers.Rates {
	or := func(n, otherwise uint32) uint32 {
		if n == 0 {
			return otherwise
		}
		return n
	}
	return peers.Rates{Neighbour: or(p.Rates.Neighbour, 20), Echo: or(p.Rates.Echo, 200), Errors: or(p.Rates.Errors, 1000), Queries: or(p.Rates.Queries, 10000)}
}

func renderRates() []Set {
	return []Set{{discovery, LinkRateSet, nil}, {echoes, RateSet, nil}, {complaints, RateSet, nil}, {questions, RateSet, nil}}
}

// perLink matches as long as the packet's link keeps to the rate.
func perLink(set string, rate uint32) part {
	return rated(set, "iifname", false, rate, 2*rate, []expr.Any{meta(expr.MetaKeyIIFNAME)})
}

// perSource matches as long as the /112 that the packet comes from keeps to the rate.
func perSource(set string, rate uint32) part {
	return rated(set, "ip6 saddr/112", false, rate, 2*rate, append(ipv6().exprs, header(sourceOffset, endpointBits/8, reg1)))
}

// tooManyFor matches what is beyond the rate for the /112 that the packet goes to. It
// does not match if the set is full.
func tooManyFor(set string, rate uint32) part {
	return rated(set, "ip6 daddr/112", true, rate, 2*rate, append(ipv6().exprs, header(destOffset, endpointBits/8, reg1)))
}

// tooManyFrom matches what is beyond the rate for the /112 that the packet comes from,
// or all at once is more than a tenth of a second's. It does not match if the set is full.
func tooManyFrom(set string, rate uint32) part {
	return rated(set, "ip6 saddr/112", true, rate, max(rate/10, 1), append(ipv6().exprs, header(sourceOffset, endpointBits/8, reg1)))
}

func rated(set, key string, over bool, rate, burst uint32, load []expr.Any) part {
	word := ""
	if over {
		word = "over "
	}
	return part{
		fmt.Sprintf("update @%s { %s limit rate %s%d/second burst %d packets }", set, key, word, rate, burst),
		slices.Concat(load, []expr.Any{&expr.Dynset{
			SrcRegKey: reg1, SetName: set, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: forgetRate,
			Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(rate), Over: over, Unit: expr.LimitTimeSecond, Burst: burst}},
		}}),
	}
}
