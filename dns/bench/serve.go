package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/weftmesh/weft/dns"
)

// serveUntil is one of our own servers, until ctx ends.
func serveUntil(ctx context.Context, which string) error {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(serverAddr), port)))
	if err != nil {
		return err
	}
	switch which {
	case "weft":
		d := data()
		zone := dns.NewZone(d)
		facts := dns.Facts{}
		rtts := map[string]time.Duration{"fra": time.Millisecond, "ams": 9 * time.Millisecond, "nrt": 240 * time.Millisecond}
		for _, h := range d.Hosts {
			facts[h.Name] = dns.Fact{RTT: rtts[h.Region]}
		}
		s := dns.NewServer(dns.Config{Zone: func() *dns.Zone { return zone }, Facts: func() dns.Facts { return facts }, QueriesPerSec: 1 << 30})
		return s.ServePacket(ctx, conn, dns.Role{})
	case "bare":
		return bare(ctx, conn)
	}
	return fmt.Errorf("there is no server %q", which)
}

// bare is the least that a server on miekg/dns can be: a map, and its own loop.
func bare(ctx context.Context, conn net.PacketConn) error {
	addrs := make(map[string]net.IP, names)
	for i := range names {
		addrs[fmt.Sprintf("app%d.internal.", i)] = address(i).AsSlice()
	}
	srv := &mdns.Server{PacketConn: conn, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg)
		m.SetReply(q)
		name := q.Question[0].Name
		if ip, ok := addrs[name]; ok {
			m.Answer = []mdns.RR{&mdns.AAAA{Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeAAAA, Class: mdns.ClassINET, Ttl: 5}, AAAA: ip}}
		}
		w.WriteMsg(m)
	})}
	stop := context.AfterFunc(ctx, func() { srv.Shutdown() })
	defer stop()
	return srv.ActivateAndServe()
}
