package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

// twoHosts are two data planes with a tunnel between them:
//
//	a (network 1) --- host 5 === tunnel, 1300 === host 6 --- d (network 1)
//	                                                    '--- x (network 2)
//
// Host 6 has an address in network 1, whose errors pass at host 5, whether it carries
// network 1 or only a grant from it.
func twoHosts(t *testing.T, grants ...peers.Grant) (five, six *lab) {
	t.Helper()
	p := testPolicy()
	p.Networks, p.Attachments, p.Grants = p.Networks[:1], p.Attachments[:1], grants
	five = newLabOf(t, p, true)
	q := p
	q.Self = addr("0:200:6:0:1")
	q.Networks = []peers.Network{
		{Prefix: prefix("1::/64"), Host: addr("1:200:6:0:1"), Resolver: addr("1::3")},
		{Prefix: prefix("2::/64"), Host: addr("2:200:6:0:1"), Resolver: addr("2::3")},
	}
	q.Attachments = []peers.Attachment{{Link: "m-d", Endpoint: endpoint("1:200:6:1:2")}, {Link: "m-x", Endpoint: endpoint("2:200:6:1:2")}}
	six = newLabOf(t, q, true)
	five.speak(t, "a")
	six.speak(t, "d", "x")
	join(t, five.ports["tunnel"], six.ports["tunnel"])
	return five, six
}

// join makes two TUNs the ends of one tunnel.
func join(t *testing.T, a, b *port) {
	stop := make(chan struct{})
	var done []chan struct{}
	carry := func(from, to *port) {
		end := make(chan struct{})
		done = append(done, end)
		go func() {
			defer close(end)
			for {
				select {
				case p := <-from.seen:
					to.file.Write(p)
				case <-stop:
					return
				}
			}
		}()
	}
	carry(a, b)
	carry(b, a)
	t.Cleanup(func() {
		close(stop)
		for _, d := range done {
			<-d
		}
	})
}

// probe sends a datagram with a hop limit and returns who complained about it, and
// what the complaint was.
type complaint struct {
	From       netip.Addr
	Type, Code uint8
	MTU        uint32
}

func probePath(t *testing.T, ns *netns.Handle, to netip.AddrPort, hops, size int) (got complaint) {
	t.Helper()
	var fd int
	check(t, ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	}))
	defer unix.Close(fd)
	check(t, errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
		unix.Connect(fd, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})))
	_, err := unix.Write(fd, make([]byte, size))
	check(t, err)
	data, control := make([]byte, 2000), make([]byte, 512)
	eventually(t, fmt.Sprintf("somebody complains about hop limit %d", hops), func() bool {
		_, n, _, _, err := unix.Recvmsg(fd, data, control, unix.MSG_ERRQUEUE)
		if err != nil {
			return false
		}
		for _, m := range must(unix.ParseSocketControlMessage(control[:n])) {
			// struct sock_extended_err, then the offender's struct sockaddr_in6.
			if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR && len(m.Data) >= 16+24 {
				from, _ := netip.AddrFromSlice(m.Data[16+8 : 16+24])
				got = complaint{from, m.Data[5], m.Data[6], binary.NativeEndian.Uint32(m.Data[8:])}
			}
		}
		return true
	})
	return got
}

// A machine sees the way to another one: its own host, the other's host, the machine,
// each by an address of the machine's own network, or of the one that it was granted.
func TestTraceroute(t *testing.T) {
	t.Parallel()
	five, _ := twoHosts(t, grant("1:100:5:1:0/112", "2:200:6:1:0/112", udp6, 33434, 33500))
	const unreachable, timeExceeded = 1, 3
	for _, target := range []string{"1:200:6:1:2", "2:200:6:1:2"} {
		var got []complaint
		for hops := 1; hops <= 3; hops++ {
			got = append(got, probePath(t, five.ports["a"].ns, netip.AddrPortFrom(addr(target), uint16(33434+hops)), hops, 100))
		}
		want := []complaint{
			{From: addr("1:100:5:0:1"), Type: timeExceeded},
			{From: addr("1:200:6:0:1"), Type: timeExceeded},
			{From: addr(target), Type: unreachable, Code: 4}, // no such port
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("to %s (-want +got):\n%s", target, diff)
		}
	}
	// Not past the grant: the first host refuses.
	got := probePath(t, five.ports["a"].ns, netip.AddrPortFrom(addr("2:200:6:1:2"), 33333), 3, 100)
	if want := (complaint{From: addr("1:100:5:0:1"), Type: unreachable, Code: 1}); got != want {
		t.Errorf("another port: %v, want %v", got, want)
	}
}

// Where the path gets narrower, the sender is told by the host before it, within a
// network and along a grant; a TCP sender adapts in the middle of its stream.
func TestPathMTU(t *testing.T) {
	t.Parallel()
	five, six := twoHosts(t, grant("1::/64", "2::/64", 0, 0, 0))
	const tooBig = 2
	for _, tt := range []struct{ link, target string }{{"m-d", "1:200:6:1:2"}, {"m-x", "2:200:6:1:2"}} {
		to := netip.AddrPortFrom(addr(tt.target), 9)
		// The tunnel itself, 1300.
		if got, want := probePath(t, five.ports["a"].ns, to, 64, 1340), (complaint{addr("1:100:5:0:1"), tooBig, 0, 1300}); got != want {
			t.Errorf("to %s: %v, want %v", tt.target, got, want)
		}
		name := tt.link[2:]
		var listener net.Listener
		check(t, six.ports[name].ns.Do(func() (err error) {
			listener, err = net.Listen("tcp6", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr(tt.target), 80)).String())
			return err
		}))
		defer listener.Close()
		var conn net.Conn
		check(t, five.ports["a"].ns.Do(func() (err error) {
			conn, err = net.DialTimeout("tcp6", listener.Addr().String(), patience)
			return err
		}))
		defer conn.Close()
		far := must(listener.Accept())
		defer far.Close()
		const size = 300 << 10
		carry := func(when string) {
			t.Helper()
			errs := make(chan error, 1)
			go func() {
				_, err := conn.Write(make([]byte, size))
				errs <- err
			}()
			buf := make([]byte, size)
			check(t, far.SetReadDeadline(time.Now().Add(patience)))
			for got := 0; got < size; {
				n, err := far.Read(buf)
				if got += n; err != nil {
					t.Fatalf("to %s, %s: %d of %d bytes: %v", tt.target, when, got, size, err)
				}
			}
			check(t, <-errs)
		}
		carry("at first")
		nl := must(six.plane.Netlink())
		check(t, nl.LinkSetMTU(must(nl.LinkByName(tt.link)), 1280))
		nl.Close()
		carry("narrower")
		if got, want := probePath(t, five.ports["a"].ns, to, 64, 1250), (complaint{addr("1:200:6:0:1"), tooBig, 0, 1280}); got != want {
			t.Errorf("to %s: %v, want %v", tt.target, got, want)
		}
	}
}

// A host is no springboard: whatever a routing header asks for, a packet to the host
// does not go on from there.
func TestRoutingHeadersLeadNowhere(t *testing.T) {
	t.Parallel()
	m := newMatrixLab(t)
	_, a := place("a")
	_, host := place("host1")
	var cells []*cell
	var s tags
	for _, kind := range []byte{0, 2, 3, 4} {
		for _, next := range []string{"c", "b", "remote2"} {
			port, hop := place(next)
			c := &cell{src: "a", dst: next, proto: fmt.Sprintf("routing header %d", kind), from: "a", to: port, tag: s.next()}
			c.source, c.target = a, hop
			route := slices.Concat([]byte{unix.IPPROTO_ICMPV6, 2, kind, 1, 0, 0, 0, 0}, hop.AsSlice())
			c.packets = [][]byte{packet(a, host, 64, unix.IPPROTO_ROUTING, slices.Concat(route, echo(a, hop, c.tag)))}
			cells = append(cells, c)
		}
	}
	for i, got := range m.run(t, cells) {
		if got != silence {
			t.Errorf("%s: %c", cells[i].name(), got)
		}
	}
}
