package agent

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
)

// candidate is a host that a laptop could go through.
type candidate struct {
	name    string
	region  string
	addr    netip.Addr // of the underlay
	present bool       // a controller holds its stream
	rtt     time.Duration
	rests   time.Time // it failed as a gateway again and again: not before this, if another will do
}

// candidates lists the hosts of a client's view that can be reached.
func candidates(v *mesh.View) []candidate {
	var out []candidate
	for _, h := range v.Hosts {
		if len(h.Endpoints) > 0 && !h.NAT && (!h.Cordoned || h.Name == v.Client.Gateway) {
			out = append(out, candidate{name: h.Name, region: h.Region, addr: h.Endpoints[0].Addr().Unmap(), present: h.Present})
		}
	}
	return out
}

// Changing the gateway costs every open connection a moment, so another one must
// be better by both.
const (
	betterBy      = 5 * time.Millisecond
	betterPortion = 5 // by more than a fifth
)

// chooseGateway returns the gateway to use: the nearest by measurement, but the
// current one as long as no other is clearly better. out says that the current one
// has stopped answering; then any other will do. One that no controller sees is
// taken only if nobody else answered, and before it one that rests.
func chooseGateway(current string, out bool, all []candidate) string {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(rank(a), rank(b)) })
	now := slices.IndexFunc(all, func(c candidate) bool { return c.name == current })
	for _, c := range all {
		switch {
		case now < 0: // none yet, or it is no candidate any more
			return c.name
		case out && c.name == current:
		case out:
			return c.name
		case c.rtt == 0 || all[now].rtt == 0 || !c.present || !c.rests.IsZero(): // nothing to compare
			return current
		case all[now].rtt-c.rtt > betterBy && all[now].rtt-c.rtt > all[now].rtt/betterPortion:
			return c.name
		default:
			return current
		}
	}
	return current
}

// rank orders candidates: those that answered and are present, those that
// answered, the present, the others; the nearest first. Those that rest come after
// present ones that answered.
func rank(c candidate) time.Duration {
	r := c.rtt
	if c.rtt == 0 {
		r = 2 * time.Hour
	}
	if !c.rests.IsZero() {
		r += time.Minute
	}
	if !c.present {
		r += time.Hour
	}
	return r
}

// gatewayStates is what Status shows, nearest first.
func gatewayStates(all []candidate) []local.GatewayState {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(rank(a), rank(b)) })
	var out []local.GatewayState
	for _, c := range all {
		out = append(out, local.GatewayState{Name: c.name, Region: c.region, RTT: c.rtt, Rests: c.rests})
	}
	return out
}

// outages are when gateways stopped answering through the tunnel, by name. An echo of the
// underlay does not show what is wrong with one: a laptop that went back to it at once
// would be cut off again and again.
type outages map[string][]time.Time

const (
	// outageCounts is how long one is remembered.
	outageCounts = time.Hour
	// outageFree is how many cost nothing: a host that was restarted has its laptops back
	// as soon as they measure.
	outageFree = 1
	// outageRest is how long a host rests after the first one more, and doubles.
	outageRest = 2 * time.Minute
	outageMost = 30 * time.Minute
)

// add notes an outage.
func (o outages) add(name string, now time.Time) {
	o[name] = append(slices.DeleteFunc(o[name], func(t time.Time) bool { return now.Sub(t) >= outageCounts }), now)
}

// rests is until when a host is not chosen if another will do; the zero time: it is.
func (o outages) rests(name string, now time.Time) time.Time {
	all, more := o[name], -outageFree
	for _, t := range all {
		if now.Sub(t) < outageCounts {
			more++
		}
	}
	if more <= 0 {
		return time.Time{}
	}
	until := all[len(all)-1].Add(min(outageRest<<min(more-1, 10), outageMost))
	if !now.Before(until) {
		return time.Time{}
	}
	return until
}

const (
	echoes       = 3 // to each candidate; the fastest counts
	echoInterval = 50 * time.Millisecond
	echoWait     = time.Second // for the last answer
	echoHosts    = 64          // measured at a time
)

// measureGateways fills in the candidates' round trips over the underlay, by ICMP
// echo. A host that does not answer keeps 0.
func measureGateways(ctx context.Context, all []candidate) []candidate {
	all = slices.Clone(all)
	var wg sync.WaitGroup
	for i := range all[:min(len(all), echoHosts)] {
		wg.Go(func() { all[i].rtt = echoUnderlay(ctx, all[i].addr) })
	}
	wg.Wait()
	return all
}

// echoUnderlay returns the least of a few echoes to addr, 0 if none came back.
func echoUnderlay(ctx context.Context, addr netip.Addr) time.Duration {
	network, listen, protocol, request := "ip4:icmp", "0.0.0.0", 1, icmp.Type(ipv4.ICMPTypeEcho)
	reply := icmp.Type(ipv4.ICMPTypeEchoReply)
	if addr.Is6() {
		network, listen, protocol, request, reply = "ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	conn, err := icmp.ListenPacket(network, listen)
	if err != nil {
		return 0
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	id := rand.N(1 << 16)
	var mu sync.Mutex // guards sent
	var sent [echoes]time.Time
	go func() {
		for seq := range echoes {
			m := icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("weft gateway")}}
			b, err := m.Marshal(nil)
			if err != nil {
				return
			}
			mu.Lock()
			sent[seq] = time.Now()
			mu.Unlock()
			if _, err := conn.WriteTo(b, &net.IPAddr{IP: addr.AsSlice()}); err != nil || !wait(ctx, echoInterval, nil) {
				return
			}
		}
	}()
	conn.SetReadDeadline(time.Now().Add(echoes*echoInterval + echoWait))
	buf := make([]byte, 1500)
	var least time.Duration
	for got := 0; got < echoes; {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			break
		}
		m, err := icmp.ParseMessage(protocol, buf[:n])
		if err != nil || m.Type != reply {
			continue
		}
		body, ok := m.Body.(*icmp.Echo)
		src, isIP := from.(*net.IPAddr)
		if !ok || !isIP || body.ID != id || body.Seq < 0 || body.Seq >= echoes || !src.IP.Equal(addr.AsSlice()) {
			continue
		}
		got++
		mu.Lock()
		rtt := time.Since(sent[body.Seq])
		mu.Unlock()
		if least == 0 || rtt < least {
			least = rtt
		}
	}
	return least
}
