package userspace

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// datagram makes an IPv6 packet with a UDP datagram, whose checksum field is 0.
func datagram(from, to netip.AddrPort, payload []byte, extensions ...byte) []byte {
	p := make([]byte, ip6Header)
	p[0], p[6], p[7] = 6<<4, protoUDP, 64
	binary.BigEndian.PutUint16(p[4:], uint16(len(extensions)+udpHeader+len(payload)))
	copy(p[8:], from.Addr().AsSlice())
	copy(p[24:], to.Addr().AsSlice())
	if len(extensions) > 0 {
		p[6] = protoDestOpts
	}
	p = append(p, extensions...)
	p = binary.BigEndian.AppendUint16(p, from.Port())
	p = binary.BigEndian.AppendUint16(p, to.Port())
	p = binary.BigEndian.AppendUint16(p, uint16(udpHeader+len(payload)))
	return append(append(p, 0, 0), payload...)
}

// toZero returns the payload with which the checksum from one end to the other is 0:
// all that is summed makes 0xffff.
func toZero(from, to netip.AddrPort) []byte {
	sum := uint64(udpHeader+2) + protoUDP + uint64(from.Port()) + uint64(to.Port()) + udpHeader + 2
	sum = add(add(sum, from.Addr().AsSlice()), to.Addr().AsSlice())
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return binary.BigEndian.AppendUint16(nil, uint16(0xffff-sum))
}

func TestMangleChecksum(t *testing.T) {
	t.Parallel()
	from, to := netip.MustParseAddrPort("[fd12::1]:4000"), netip.MustParseAddrPort("[fd12::2]:53")
	zero := toZero(from, to)
	other := []byte{zero[0], zero[1] ^ 1}
	set := datagram(from, to, zero)
	set[ip6Header+checksumAt] = 0x12
	fragment := datagram(from, to, zero)
	fragment[6] = 44
	tcp := datagram(from, to, zero)
	tcp[6] = 6
	v4 := datagram(from, to, zero)
	v4[0] = 4 << 4
	options := []byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}
	for _, test := range []struct {
		name    string
		packet  []byte
		changed bool
	}{
		{"it comes to 0", datagram(from, to, zero), true},
		{"behind destination options", datagram(from, to, zero, options...), true},
		{"there is none: it would be another", datagram(from, to, other), false},
		{"there is one", set, false},
		{"a fragment", fragment, false},
		{"TCP", tcp, false},
		{"IPv4", v4, false},
		{"cut short", datagram(from, to, zero)[:ip6Header+udpHeader], false},
		{"options cut short", datagram(from, to, zero, options...)[:ip6Header+4], false},
		{"nothing", nil, false},
	} {
		was := slices.Clone(test.packet)
		mangleChecksum(test.packet)
		if changed := !slices.Equal(was, test.packet); changed != test.changed {
			t.Errorf("%s: changed: %t", test.name, changed)
		}
		if udp := udpOf(test.packet); test.changed && (udp[6] != 0xff || udp[7] != 0xff) {
			t.Errorf("%s: the checksum is %x", test.name, udp[6:8])
		}
	}
}

// A datagram whose checksum comes to 0 arrives like any other. The kernel leaves the
// checksum to whoever reads the link.
func TestChecksumOfZeroArrives(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	var in, out *net.UDPConn
	listen := func(n *node) (c *net.UDPConn) {
		must(t, n.plane.Do(func() (err error) {
			c, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.addr, 0)))
			return err
		}))
		t.Cleanup(func() { c.Close() })
		return c
	}
	in, out = listen(b), listen(a)
	to := in.LocalAddr().(*net.UDPAddr).AddrPort()
	zero := toZero(out.LocalAddr().(*net.UDPAddr).AddrPort(), to)
	for _, payload := range [][]byte{{zero[0], zero[1] ^ 1}, zero} {
		must(t, in.SetReadDeadline(time.Now().Add(20*time.Second)))
		_, err := out.WriteToUDPAddrPort(payload, to)
		must(t, err)
		buf := make([]byte, 16)
		n, err := in.Read(buf)
		if err != nil || !slices.Equal(buf[:n], payload) {
			t.Fatalf("%x: came %x, %v", payload, buf[:n], err)
		}
	}
}
