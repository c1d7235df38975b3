package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/firewall"
	"github.com/weftmesh/weft/peers/link"
	"github.com/weftmesh/weft/peers/netns"
)

// flooded is a host with its firewall and four machines:
//
//	1  floods, with whatever sources it likes
//	2  works
//	3  has a link of 1280 bytes, so that 2 is to be told about larger packets
//	4  is of another network
type flooded struct {
	plane    *netns.Handle
	machines [5]*netns.Handle
	gateway  net.HardwareAddr // of the link of machine 1
}

// otherNetwork is the endpoint of machine 4.
func otherNetwork() netip.Prefix { return netip.MustParsePrefix("fd12:3456:789a:2:100:5:4:0/112") }

func meshResolver() netip.Addr { return netip.MustParseAddr("fd12:3456:789a::3") }

func newFlooded(t *testing.T) *flooded {
	t.Helper()
	needRoot(t)
	f := &flooded{plane: newNamespace(t)}
	p := peers.Policy{
		Link: "weft0", Mesh: netip.MustParsePrefix("fd12:3456:789a::/48"), Resolver: meshResolver(),
		Self: netip.MustParseAddr("fd12:3456:789a:0:100:5:0:1"), ProbePort: 51821,
		Networks: []peers.Network{{Prefix: netip.MustParsePrefix("fd12:3456:789a:1::/64"), Host: hostAddr(), Resolver: netip.MustParseAddr("fd12:3456:789a:1::3")}},
	}
	for n := range 5 {
		p.Attachments = append(p.Attachments, peers.Attachment{Link: machine(n).Link, Endpoint: endpoint(n)})
	}
	slices.SortFunc(p.Attachments, func(a, b peers.Attachment) int { return strings.Compare(a.Link, b.Link) })
	wall, err := firewall.New(f.plane, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Skipf("no nftables here: %v", err)
	}
	t.Cleanup(func() { wall.Close() })
	_, err = wall.Set(t.Context(), p)
	check(t, err)
	check(t, link.Prepare(f.plane))
	_, err = link.Set(f.plane, link.Config{
		AddressesOn: "lo", Unreachable: p.Mesh,
		Addresses: []link.Address{
			{Prefix: netip.PrefixFrom(p.Self, 128)}, {Prefix: netip.PrefixFrom(hostAddr(), 128)},
			{Prefix: netip.PrefixFrom(meshResolver(), 128), Deprecated: true},
		},
	})
	check(t, err)
	for n := 1; n < 5; n++ {
		f.machines[n] = newNamespace(t)
		m := machine(n)
		switch n {
		case 3:
			m.MTU = 1280
		case 4:
			m.Endpoint = otherNetwork()
		}
		check(t, Attach(f.plane, f.machines[n], m))
	}
	outer, err := handle(t, f.plane).LinkByName(machine(1).Link)
	check(t, err)
	f.gateway = outer.Attrs().HardwareAddr
	f.answerQueries(t)
	return f
}

// answerQueries is a resolver that sends back what it gets.
func (f *flooded) answerQueries(t *testing.T) {
	t.Helper()
	var conn *net.UDPConn
	check(t, f.plane.Do(func() (err error) {
		conn, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(meshResolver(), 53)))
		return err
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			conn.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
}

// told sends a datagram from machine 2 and waits until the kernel there has an error
// about it: its ICMPv6 type, code and MTU.
func (f *flooded) told(t *testing.T, to netip.Addr, size int) (got [3]uint32, err error) {
	t.Helper()
	fd := -1
	check(t, f.machines[2].Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	}))
	defer unix.Close(fd)
	check(t, errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
		unix.Connect(fd, &unix.SockaddrInet6{Addr: to.As16(), Port: 9999})))
	if _, err := unix.Write(fd, make([]byte, size)); err != nil {
		return got, err
	}
	data, control := make([]byte, 2000), make([]byte, 512)
	for deadline := time.Now().Add(floodPatience); time.Now().Before(deadline); {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 100); err != nil && err != unix.EINTR {
			return got, err
		}
		_, n, _, _, err := unix.Recvmsg(fd, data, control, unix.MSG_ERRQUEUE)
		if err != nil {
			continue
		}
		messages, err := unix.ParseSocketControlMessage(control[:n])
		if err != nil {
			return got, err
		}
		for _, m := range messages {
			if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR && len(m.Data) >= 12 {
				// struct sock_extended_err
				return [3]uint32{uint32(m.Data[5]), uint32(m.Data[6]), binary.NativeEndian.Uint32(m.Data[8:])}, nil
			}
		}
	}
	return got, fmt.Errorf("nobody complains in %s about %d bytes to %s", floodPatience, size, to)
}

// floodPatience is shorter than the three seconds for which the kernel keeps what
// waits for a neighbour.
const floodPatience = time.Second

// works is what machine 2 needs of the host, each tried once.
func (f *flooded) works(t *testing.T) map[string]error {
	t.Helper()
	want := func(to netip.Addr, size int, want [3]uint32) error {
		got, err := f.told(t, to, size)
		if err == nil && got != want {
			err = fmt.Errorf("type, code and MTU are %d, want %d", got, want)
		}
		return err
	}
	out := map[string]error{
		"path MTU":     want(mainAddr(3), 1340, [3]uint32{2, 0, 1280}),
		"refusal":      want(ipam.MainAddr(otherNetwork()), 10, [3]uint32{1, 1, 0}),
		"unreachable":  want(netip.MustParseAddr("fd12:3456:789a:1:100:6:1:2"), 10, [3]uint32{1, 0, 0}),
		"a query":      f.query(t),
		"a neighbour":  f.resolves(t),
		"host's echo":  nil,
		"other's echo": nil,
	}
	_, out["host's echo"] = ping(f.machines[2], hostAddr(), 0, floodPatience)
	_, out["other's echo"] = ping(f.machines[2], mainAddr(3), 0, floodPatience)
	return out
}

func (f *flooded) query(t *testing.T) error {
	var conn *net.UDPConn
	check(t, f.machines[2].Do(func() (err error) {
		conn, err = net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(meshResolver(), 53)))
		return err
	}))
	defer conn.Close()
	if _, err := conn.Write([]byte("question")); err != nil {
		return err
	}
	conn.SetReadDeadline(time.Now().Add(floodPatience))
	_, err := conn.Read(make([]byte, 100))
	return err
}

// resolves makes machine 2 forget the gateway and ask for it again.
func (f *flooded) resolves(t *testing.T) error {
	nl, err := f.machines[2].Netlink()
	check(t, err)
	defer nl.Close()
	l, err := nl.LinkByName(machineLink)
	check(t, err)
	if err := nl.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: Gateway().AsSlice()}); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	_, err = ping(f.machines[2], hostAddr(), 0, 2*floodPatience) // it may ask twice
	return err
}

// flood sends what next makes from machine 1, so many a second, until the function
// that it returns is called, which says how many it sent.
func (f *flooded) flood(t *testing.T, perSecond int, next func(*rand.Rand) []byte) (end func() int) {
	t.Helper()
	var fd int
	check(t, f.machines[1].Do(func() error {
		ifi, err := net.InterfaceByName(machineLink)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifi.Index})
	}))
	var sent atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		random := rand.New(rand.NewPCG(1, 2))
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		began := time.Now()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			due := int64(time.Since(began).Seconds() * float64(perSecond))
			// What could not be sent in time is not made up for.
			for n := min(due-sent.Load(), int64(perSecond/50)); n > 0; n-- {
				unix.Write(fd, next(random))
				sent.Add(1)
			}
			if sent.Load() < due {
				began = time.Now().Add(-time.Duration(float64(sent.Load()) / float64(perSecond) * float64(time.Second)))
			}
		}
	}()
	return func() int {
		close(stop)
		<-done
		unix.Close(fd)
		return int(sent.Load())
	}
}

// frame is a packet as machine 1 sends it.
func (f *flooded) frame(src, dst netip.Addr, hops, protocol byte, payload []byte, checksumAt int) []byte {
	b := append(slices.Clone(f.gateway), 2, 0, 0, 0, 0, 1, unix.ETH_P_IPV6>>8, unix.ETH_P_IPV6&0xff)
	b = append(b, 0x60, 0, 0, 0, byte(len(payload)>>8), byte(len(payload)), protocol, hops)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	sum := uint32(len(payload)) + uint32(protocol)
	for _, x := range [][]byte{b[14+8:], payload} {
		for i := 0; i+1 < len(x); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(x[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[14+40+checksumAt:], ^uint16(sum))
	return b
}

func (f *flooded) solicitation(src netip.Addr) []byte {
	body := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, Gateway().AsSlice()...)
	return f.frame(src, Gateway(), 255, unix.IPPROTO_ICMPV6, append(body, 1, 1, 2, 0, 0, 0, 0, 1), 2)
}

func (f *flooded) datagram(src, dst netip.Addr, hops byte, size int) []byte {
	body := append([]byte{1, 2, 3, 4, byte((size + 8) >> 8), byte(size + 8), 0, 0}, make([]byte, size)...)
	return f.frame(src, dst, hops, unix.IPPROTO_UDP, body, 6)
}

// anyOwn is one of machine 1's 65,536 addresses. It has one of them itself.
func anyOwn(r *rand.Rand) netip.Addr {
	a := endpoint(1).Addr().As16()
	binary.BigEndian.PutUint16(a[14:], uint16(r.Uint32()))
	return netip.AddrFrom16(a)
}

func anyLocal(r *rand.Rand) netip.Addr {
	a := netip.MustParseAddr("fe80::").As16()
	binary.BigEndian.PutUint64(a[8:], r.Uint64())
	return netip.AddrFrom16(a)
}

// A machine that floods the host harms nobody else: not the errors that others need,
// nor their queries, nor how they find the gateway.
func TestFloodHarmsNobodyElse(t *testing.T) {
	t.Parallel()
	f := newFlooded(t)
	for what, err := range f.works(t) {
		if err != nil {
			t.Fatalf("before any flood: %s: %v", what, err)
		}
	}
	echo := []byte{128, 0, 0, 0, 1, 2, 3, 4}
	floods := []struct {
		name string
		next func(*rand.Rand) []byte
	}{
		{"echo to the host from everywhere", func(r *rand.Rand) []byte {
			return f.frame(anyOwn(r), hostAddr(), 64, unix.IPPROTO_ICMPV6, slices.Clone(echo), 2)
		}},
		{"solicitations from everywhere", func(r *rand.Rand) []byte {
			if r.IntN(2) == 0 {
				return f.solicitation(anyLocal(r))
			}
			return f.solicitation(anyOwn(r))
		}},
		{"solicitations from its own", func(r *rand.Rand) []byte { return f.solicitation(machineLocal()) }},
		{"what is refused, unreachable or at its end", func(r *rand.Rand) []byte {
			to := []netip.Addr{ipam.MainAddr(otherNetwork()), netip.MustParseAddr("fd12:3456:789a:1:100:6:1:2"), mainAddr(2)}[r.IntN(3)]
			hops := byte(64)
			if to == mainAddr(2) {
				hops = 1
			}
			return f.datagram(anyOwn(r), to, hops, 10)
		}},
		{"what is too big", func(r *rand.Rand) []byte { return f.datagram(anyOwn(r), mainAddr(3), 64, 1300) }},
		{"a walk over all addresses", func(r *rand.Rand) []byte {
			to := anyOwn(r).As16()
			to[13] = 3
			return f.datagram(mainAddr(1), netip.AddrFrom16(to), 64, 10)
		}},
	}
	for _, x := range floods {
		end := f.flood(t, 50000, x.next)
		began, tries := time.Now(), 0
		failed := map[string]error{}
		for time.Since(began) < time.Second && len(failed) == 0 || tries < 3 {
			for what, err := range f.works(t) {
				if err != nil {
					failed[what] = fmt.Errorf("%w (round %d)", err, tries)
				}
			}
			tries++
		}
		took := time.Since(began)
		sent := end()
		for what, err := range failed {
			t.Errorf("%s: %s: %v", x.name, what, err)
		}
		t.Logf("%s: %d packets in %s, %d rounds", x.name, sent, took.Round(time.Millisecond), tries)
		if !t.Failed() && float64(sent)/took.Seconds() < 10000 {
			t.Logf("%s: this machine sends too slowly for a flood", x.name)
		}
	}
}
