package agent

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/weftmesh/weft/mesh/agent/probe"
)

// oneWay is what is known of a tunnel that carries one direction only.
type oneWay struct {
	host      string // the other end
	way       probe.Way
	since     time.Duration // it has been so
	handshake time.Duration // since the last one; probe.Never: none
	decrypts  bool          // this end decrypts packets of the other end
	theyDo    bool          // the other end decrypts packets of this one
	endpoint  netip.AddrPort
	port      uint16 // of WireGuard, here
}

// A broken direction lets no handshake through either, so an end that sends tries a new
// one after this. One that succeeded later says that the way is open.
const newHandshakeAfter = 20 * time.Second

// handshakes reports whether one succeeded although the tunnel has been one-way for
// long enough.
func (o oneWay) handshakes() bool {
	return o.handshake >= 0 && o.since > newHandshakeAfter && o.handshake < o.since-newHandshakeAfter/2
}

// sentence says what is wrong, the likely cause, and what to look at.
//
//	lost   who decrypts     handshakes   cause
//	out    they             any          they drop what they decrypt: allowed IPs, firewall of the plane
//	out    nobody, no say   succeed      something lets handshakes through and not the data, or the same
//	out    nobody           do not       the underlay from here to there
//	in     we               any          we drop what we decrypt
//	in     nobody           succeed      as above, the other way round
//	in     nobody           do not       the underlay from there to here
func (o oneWay) sentence() string {
	what := fmt.Sprintf("tunnel to host %s is one-way: what host %s sends arrives here, what is sent to it is lost", o.host, o.host)
	from, to := "this host", "host "+o.host
	dropper, decrypted := "host "+o.host, o.theyDo
	if o.way == probe.WayLostIn {
		what = fmt.Sprintf("tunnel to host %s is one-way: what is sent arrives at host %s, what it sends is lost", o.host, o.host)
		from, to = to, from
		dropper, decrypted = "this host", o.decrypts
	}
	switch {
	case decrypted:
		return fmt.Sprintf("%s; %s decrypts it and then drops it: the allowed IPs of the peer or the firewall there are wrong; look on %s at \"wg show all allowed-ips\" and \"weft status\"", what, dropper, dropper)
	case o.handshakes():
		return fmt.Sprintf("%s, although handshakes succeed (the last one %s ago); likely %s drops what it decrypts (look there at \"wg show all allowed-ips\"), or something on the way lets handshakes pass and not the data", what, o.handshake.Round(time.Second), dropper)
	}
	return fmt.Sprintf("%s; likely a firewall, a security group or a route of the underlay from %s to %s; %s", what, from, to, o.look())
}

// look says where the packets that are lost would be seen.
func (o oneWay) look() string {
	if o.way == probe.WayLostIn {
		return fmt.Sprintf("look whether UDP packets of %s reach port %d here", o.underlay(), o.port)
	}
	return fmt.Sprintf("look on host %s whether UDP packets of this host reach %s", o.host, o.underlay())
}

func (o oneWay) underlay() string {
	if !o.endpoint.IsValid() {
		return "its endpoint"
	}
	return o.endpoint.String()
}

// narrowSentence warns of a path on which large packets are lost.
func narrowSentence(host string, s hostSize, endpoint netip.AddrPort) string {
	route := "there is no route of the underlay to it"
	if s.underlay != 0 {
		route = fmt.Sprintf("the underlay's route says %d", s.underlay)
	}
	to := "the underlay's path"
	if endpoint.IsValid() {
		to += " to " + endpoint.Addr().String()
	}
	look := "look at the MTUs on " + to + ", and whether ICMP \"too big\" is filtered there"
	if s.tiny {
		return fmt.Sprintf("packets of %d bytes to host %s do not arrive, and IPv6 allows no smaller MTU; %s; %s", minMTU, host, route, look)
	}
	return fmt.Sprintf("packets over %d bytes to host %s do not arrive; MTU lowered to %d; %s; %s", s.mtu, host, s.mtu, route, look)
}
