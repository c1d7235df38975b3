package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/weftmesh/weft/dns"
)

// serveUntil is one of our own servers, until ctx ends.
func serveUntil(ctx context.Context, which string) error {
	switch which {
	case "weft":
		zone := dns.NewZone(data())
		return serve(ctx, func() *dns.Zone { return zone })
	case "changing":
		var zone atomic.Pointer[dns.Zone]
		zone.Store(dns.NewZone(data()))
		go keepChanging(ctx, &zone)
		return serve(ctx, zone.Load)
	case "bare":
		conn, err := listen()
		if err != nil {
			return err
		}
		return bare(ctx, conn)
	}
	return fmt.Errorf("there is no server %q", which)
}

func listen() (*net.UDPConn, error) {
	return net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(serverAddr), port)))
}

// serve answers from a zone until ctx ends.
func serve(ctx context.Context, zone func() *dns.Zone) error {
	ended, err := serveZone(ctx, zone)
	if err != nil {
		return err
	}
	return <-ended
}

// serveZone begins to serve: when it returns, the socket takes queries.
func serveZone(ctx context.Context, zone func() *dns.Zone) (ended <-chan error, err error) {
	conn, err := listen()
	if err != nil {
		return nil, err
	}
	facts := dns.Facts{}
	rtts := map[string]time.Duration{"fra": time.Millisecond, "ams": 9 * time.Millisecond, "nrt": 240 * time.Millisecond}
	for _, h := range data().Hosts {
		facts[h.Name] = dns.Fact{RTT: rtts[h.Region]}
	}
	s := dns.NewServer(dns.Config{Zone: zone, Facts: func() dns.Facts { return facts }, QueriesPerSec: 1 << 30})
	done := make(chan error, 1)
	go func() { done <- s.ServePacket(ctx, conn, dns.Role{}) }()
	return done, nil
}

// changeRate is how many changes a second are many.
const changeRate = 1000

// keepChanging changes machines of all apps, one after the other, as they come and go:
// what is asked for is among them.
func keepChanging(ctx context.Context, zone *atomic.Pointer[dns.Zone]) {
	tick := time.NewTicker(time.Second / changeRate)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		i := rand.IntN(names)
		m := plainMachine(i)
		m.Group = strconv.Itoa(n)
		zone.Store(zone.Load().With(dns.Delta{Orgs: []dns.OrgDelta{{Name: "acme", Machines: []dns.Machine{m}}}}))
	}
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
