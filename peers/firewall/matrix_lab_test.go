package firewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

// matrixPolicy is testPolicy with network 5, whose machine g has grants, and grants
// from and to network 6, of which this host carries nothing.
func matrixPolicy() peers.Policy {
	p := testPolicy()
	p.Networks = append(p.Networks, peers.Network{Prefix: prefix("5::/64"), Host: addr("5:100:5:0:1"), Resolver: addr("5::3")})
	p.Attachments = append(p.Attachments, peers.Attachment{Link: "m-g", Endpoint: endpoint("5:100:5:7:2")})
	p.FlowsPerEndpoint = 8
	p.Grants = []peers.Grant{
		grant("5:100:5:7:0/112", "2:100:5:3:0/112", tcp, 80, 81),
		grant("5:100:5:7:0/112", "6::/64", icmp6, 0, 0),
		grant("6::/64", "5:100:5:7:0/112", udp6, 5000, 5009),
		grant("6::/64", "1::/64", icmp6, 0, 0),
		grant("1::/64", "6:200:6:1:0/112", tcp, 443, 443),
	}
	return p
}

// matrixLab is a lab in which whole batches of packets are sent and looked for. A
// batch has gone its way when marks that were sent behind it have arrived: first into
// the plane, past the firewall, then out of it.
type matrixLab struct {
	*lab
	taps map[string]*port // of the links inside the plane, by the name of the port behind
	host []int            // raw sockets: what the host itself gets
	raw  int              // what the host itself says
	seq  byte             // of marks
}

func newMatrixLab(t testing.TB) *matrixLab {
	t.Helper()
	p := matrixPolicy()
	m := &matrixLab{lab: newLabOf(t, p, false), taps: map[string]*port{}, raw: -1}
	nl := must(m.plane.Netlink())
	defer nl.Close()
	m.addOutsider(t, nl)
	for name := range m.ports {
		link := map[string]string{"tunnel": p.Link, "out": "veth-x"}[name]
		if link == "" {
			link = "m-" + name
		}
		tap := &port{name: "tap " + name}
		if name != "tunnel" {
			h := m.ports[name].header
			tap.header = slices.Concat(h[6:12], h[:6], h[12:])
		}
		check(t, m.plane.Do(func() (err error) {
			tap.file, err = packetSocket(link)
			return err
		}))
		m.add(t, tap)
		delete(m.ports, tap.name)
		m.taps[name] = tap
	}
	m.listen(t)
	return m
}

// addOutsider puts a link into the plane that the policy does not know.
func (m *matrixLab) addOutsider(t testing.TB, nl *netlink.Handle) {
	t.Helper()
	m.addMachine(t, nl, peers.Attachment{Link: "veth-x", Endpoint: endpoint("1:100:5:9:2")}, false)
	p := m.ports["veth-x"]
	delete(m.ports, "veth-x")
	p.name = "out"
	m.ports["out"] = p
}

// listen opens the raw sockets, and answers queries and probes as the host does.
func (m *matrixLab) listen(t testing.TB) {
	t.Helper()
	check(t, m.plane.Do(func() (err error) {
		for _, proto := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6, unix.IPPROTO_GRE, unix.IPPROTO_ESP, unix.IPPROTO_SCTP, unix.IPPROTO_IPV6, unix.IPPROTO_IPIP, 253} {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
			if err != nil {
				return err
			}
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
				return err
			}
			m.host = append(m.host, fd)
		}
		m.raw, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}))
	t.Cleanup(func() {
		for _, fd := range append(m.host, m.raw) {
			unix.Close(fd)
		}
	})
	for _, at := range []netip.AddrPort{netip.AddrPortFrom(addr(":3"), 53), netip.AddrPortFrom(addr("0:100:5:0:1"), 7447)} {
		var conn *net.UDPConn
		check(t, m.plane.Do(func() (err error) {
			conn, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(at))
			return err
		}))
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 512)
			for {
				_, from, err := conn.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				conn.WriteToUDPAddrPort([]byte("answer"), from)
			}
		}()
		t.Cleanup(func() { conn.Close(); <-done })
	}
}

// cell is one packet, or one in pieces, and where it should arrive.
type cell struct {
	src, dst, proto string
	from, to        string // ports; "" is the host
	source, target  netip.Addr
	tag             tag
	packets         [][]byte
}

func (c *cell) name() string { return fmt.Sprintf("%s to %s, %s", c.src, c.dst, c.proto) }

// What becomes of a cell, as the table writes it.
const (
	arrived   = 'P'
	told      = 'r' // administratively prohibited
	silence   = '.'
	unclamped = 'M' // arrived, with an MSS that the path does not carry
	strange   = '?' // something else
	no        = '-' // not a case
)

// run sends the cells and says what became of each, in their order.
func (m *matrixLab) run(t testing.TB, cells []*cell) []byte {
	t.Helper()
	pin(t, func() {
		for _, c := range cells {
			for _, p := range c.packets {
				if c.from != "" {
					m.ports[c.from].send(t, p)
				} else if err := unix.Sendto(m.raw, p, 0, &unix.SockaddrInet6{Addr: c.target.As16()}); err != nil && err != unix.EPERM { // refused on the way out
					t.Fatalf("%s: %v", c.name(), err)
				}
			}
		}
		m.mark(t)
	})
	at := map[tag]int{}
	out := bytes.Repeat([]byte{silence}, len(cells))
	for i, c := range cells {
		at[c.tag] = i
	}
	for name, p := range m.ports {
		for _, packet := range m.until(t, p) {
			note(packet, name, cells, at, out)
		}
	}
	buf := make([]byte, 65536)
	for _, fd := range m.host {
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				break
			}
			for _, i := range tagsIn(buf[:n], at) {
				if cells[i].to == "" {
					out[i] = arrived
				}
			}
		}
	}
	return out
}

// note writes down what a packet that a port saw says about cells.
func note(packet []byte, at string, cells []*cell, tags map[tag]int, out []byte) {
	for _, i := range tagsIn(packet, tags) {
		c := cells[i]
		kind, code, isICMP := icmpOf(packet)
		switch {
		case sourceOf(packet) == c.source && destOf(packet) == c.target:
			out[i] = arrived
			if at != c.to {
				out[i] = strange
			} else if c.from != "" && at == "tunnel" && packet[6] == unix.IPPROTO_TCP && packet[53]&2 != 0 && binary.BigEndian.Uint16(packet[62:]) > 1240 {
				out[i] = unclamped
			}
		case isICMP && kind == 1 && code == 1 && at == c.from && destOf(packet) == c.source:
			out[i] = told
		}
	}
}

// tagsIn finds the cells of which something stands in a packet.
func tagsIn(packet []byte, at map[tag]int) (out []int) {
	for i := 0; i+4 <= len(packet); i++ {
		if i < 40 && len(packet) > 40 && packet[0]>>4 == 6 && i >= 8 {
			continue // addresses
		}
		if n, ok := at[tag(binary.BigEndian.Uint32(packet[i:]))]; ok && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// pin keeps fn on one processor: the kernel then works on packets in the order in
// which they were sent.
func pin(t testing.TB, fn func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	check(t, unix.SchedGetaffinity(0, &before))
	for i := range 1024 {
		if before.IsSet(i) {
			one.Set(i)
			break
		}
	}
	check(t, unix.SchedSetaffinity(0, &one))
	defer unix.SchedSetaffinity(0, &before)
	fn()
}

func markOf(seq byte) []byte { return append([]byte("a mark of the matrix "), seq) }

// mark sends marks in, waits for them, and sends marks out. They are of no protocol,
// and not for anybody: no rule but prerouting's policy sees them.
func (m *matrixLab) mark(t testing.TB) {
	t.Helper()
	m.seq++
	packet := packet(netip.MustParseAddr("fe80::1234"), netip.MustParseAddr("ff02::1"), 1, 59, markOf(m.seq))
	for name, p := range m.ports {
		p.send(t, packet)
		m.until(t, m.taps[name])
	}
	for _, tap := range m.taps {
		if tap.header == nil { // AF_PACKET on a TUN: no link layer
			if _, err := tap.file.Write(packet); err != nil {
				t.Fatal(err)
			}
			continue
		}
		tap.send(t, packet)
	}
}

// until returns what a port has seen before the mark.
func (m *matrixLab) until(t testing.TB, p *port) (out [][]byte) {
	t.Helper()
	mark := markOf(m.seq)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case packet := <-p.seen:
			if bytes.HasSuffix(packet, mark) {
				return out
			}
			out = append(out, packet)
		case <-timer.C:
			t.Fatalf("%s does not see the mark", p.name)
		}
	}
}

// tracked lists what connection tracking holds, and forgets it.
func tracked(t testing.TB, plane *netns.Handle) (out []string) {
	t.Helper()
	nl := must(plane.Netlink(unix.NETLINK_NETFILTER))
	defer nl.Close()
	flows := must(nl.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET6))
	for _, c := range flows {
		f, ok := begun(c)
		if !ok {
			continue
		}
		x := fmt.Sprintf("%s -> %s %s %d", f.from, f.to, protocolName(f.protocol), f.port)
		out = append(out, strings.ReplaceAll(x, "fd12:3456:789a:", ""))
	}
	check(t, nl.ConntrackTableFlush(netlink.ConntrackTable))
	slices.Sort(out)
	return slices.Compact(out)
}
