package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/peers/netns"
)

// askTimeout bounds a dig or a ping.
const askTimeout = 5 * time.Second

// dig asks the resolver of an org's network from the node's own address in it: the
// way that a member's question goes.
func dig(ctx context.Context, ns *netns.Handle, v *mesh.View, org, name, kind string) (local.Dig, error) {
	own, resolver, err := orgAddress(v, org)
	if err != nil {
		return local.Dig{}, err
	}
	if kind == "" {
		kind = "AAAA"
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reply, err := dns.Lookup(ctx, dialFrom(ns, own), netip.AddrPortFrom(resolver, dnsPort), name, kind)
	if err != nil {
		return local.Dig{}, err
	}
	d := local.Dig{Server: reply.Server, Source: own, RTT: reply.Elapsed, Rcode: reply.Rcode, Answer: []string{}, Text: reply.String()}
	for _, r := range reply.Answers {
		d.Answer = append(d.Answer, fmt.Sprintf("%s\t%d\tIN\t%s\t%s", r.Name, r.TTL, r.Type, r.Data))
	}
	return d, nil
}

// dialFrom opens connections in a namespace from an address of its own.
func dialFrom(ns *netns.Handle, own netip.Addr) dns.Dial {
	return func(ctx context.Context, network string, to netip.AddrPort) (conn net.Conn, err error) {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, 0))}
		if strings.HasPrefix(network, "tcp") {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, 0))
		}
		err = ns.Do(func() (err error) {
			conn, err = d.DialContext(ctx, network, to.String())
			return err
		})
		return conn, err
	}
}

// ping sends one echo to a name or an address of an org.
func ping(ctx context.Context, ns *netns.Handle, v *mesh.View, org, name string) (local.Ping, error) {
	own, _, err := orgAddress(v, org)
	if err != nil {
		return local.Ping{}, err
	}
	out := local.Ping{Name: name}
	if out.Address, err = netip.ParseAddr(name); err != nil {
		d, err := dig(ctx, ns, v, org, name, "AAAA")
		if err != nil {
			return local.Ping{}, err
		}
		if out.Address, err = firstAddress(d); err != nil {
			return local.Ping{}, &notFound{fmt.Sprintf("%s: %s", name, err)}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if out.RTT, err = echo(ctx, ns, own, out.Address); err != nil {
		out.Error, out.Hint = err.Error(), beyondHint(v, own, out.Address)
	}
	return out, nil
}

// beyondHint is what to do when no echo comes back from an address beyond the org that
// asks: only a grant leads there.
func beyondHint(v *mesh.View, own, to netip.Addr) string {
	asker, _ := v.Plan.Parts(own)
	asked, inside := v.Plan.Parts(to)
	switch {
	case !inside || asked.Network == asker.Network:
		return ""
	case asked.Network == 0:
		return "it is a host's own address, of no org"
	case v.Client != nil:
		return fmt.Sprintf("it is of another org, and only a grant of echo leads there: weft grant list; an operator makes one with: weft grant create --from %s/client:%s --to ORG --icmp", v.Client.Org, v.Client.Name)
	}
	return "it is of another org, and only a grant of echo leads there: weft grant list; this host itself asks, so it takes one from all of the org: ask from inside the machine that has a grant"
}

func firstAddress(d local.Dig) (netip.Addr, error) {
	for _, line := range d.Answer {
		fields := strings.Split(line, "\t")
		if a, err := netip.ParseAddr(fields[len(fields)-1]); err == nil {
			return a, nil
		}
	}
	if d.Rcode == "NOERROR" {
		return netip.Addr{}, errors.New("the name has no address now")
	}
	return netip.Addr{}, errors.New(d.Rcode)
}

// echo sends one ICMPv6 echo in a namespace and waits for what comes back.
func echo(ctx context.Context, ns *netns.Handle, from, to netip.Addr) (time.Duration, error) {
	var conn *icmp.PacketConn
	err := ns.Do(func() (err error) {
		conn, err = icmp.ListenPacket("ip6:ipv6-icmp", from.String())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", to, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	id, seq := rand.N(1<<16), 1
	m := icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("weft ping")}}
	b, err := m.Marshal(nil)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := conn.WriteTo(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return 0, fmt.Errorf("ping %s: %w", to, unwrapOp(err))
	}
	buf := make([]byte, 1500)
	for {
		n, src, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("ping %s: no answer in %s", to, time.Since(start).Round(100*time.Millisecond))
		}
		if err != nil {
			return 0, fmt.Errorf("ping %s: %w", to, err)
		}
		done, err := echoed(buf[:n], id, seq, to)
		if done && err == nil {
			return time.Since(start), nil
		}
		if err != nil {
			return 0, fmt.Errorf("ping %s: %s says: %w", to, src, err)
		}
	}
}

// echoed judges one ICMPv6 message: our reply (done), an error about our request,
// or neither.
func echoed(b []byte, id, seq int, to netip.Addr) (done bool, err error) {
	const protocol = 58
	m, parseErr := icmp.ParseMessage(protocol, b)
	if parseErr != nil {
		return false, nil
	}
	switch body := m.Body.(type) {
	case *icmp.Echo:
		return m.Type == ipv6.ICMPTypeEchoReply && body.ID == id && body.Seq == seq, nil
	case *icmp.DstUnreach:
		if about(body.Data, id, to) {
			return true, errors.New(unreachable(m.Code))
		}
	case *icmp.TimeExceeded:
		if about(body.Data, id, to) {
			return true, errors.New("hop limit exceeded: the packet goes round in circles")
		}
	}
	return false, nil
}

// about reports whether an error quotes our request: an IPv6 header with our
// destination, then an ICMPv6 header with our identifier.
func about(quoted []byte, id int, to netip.Addr) bool {
	if len(quoted) < 46 {
		return false
	}
	dst, _ := netip.AddrFromSlice(quoted[24:40])
	return dst == to && int(quoted[44])<<8|int(quoted[45]) == id
}

// unreachable is RFC 4443's code in words.
func unreachable(code int) string {
	switch code {
	case 0:
		return "no route: nobody in the mesh has this address now"
	case 1:
		return "not allowed: it is of another org, and no grant lets an echo through"
	case 3:
		return "nobody answers at this address"
	case 4:
		return "nothing listens there"
	}
	return fmt.Sprintf("unreachable (code %d)", code)
}

// unwrapOp drops the addresses that package net puts in front of a reason.
func unwrapOp(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
