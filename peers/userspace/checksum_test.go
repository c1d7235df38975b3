package userspace

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// toZero returns the payload of a UDP datagram with which its checksum from one end to
// the other is 0: all that is summed makes 0xffff.
func toZero(from, to netip.AddrPort) []byte {
	const size = udpHeader + 2
	s := slowSum(append(from.Addr().AsSlice(), to.Addr().AsSlice()...))
	s += size + protoUDP + uint64(from.Port()) + uint64(to.Port()) + size
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return binary.BigEndian.AppendUint16(nil, uint16(0xffff-s))
}

// slowSum adds words of 16 bits one by one.
func slowSum(b []byte) (s uint64) {
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

func slowFold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// The sum of any bytes, in one piece or two, is that of their words one by one.
func FuzzSum(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint16(0))
	f.Add(slices.Repeat([]byte{0xff}, 65535), uint16(2000))
	f.Fuzz(func(t *testing.T, b []byte, at uint16) {
		want := slowFold(slowSum(b))
		if got := fold(sum(b, 0)); got != want {
			t.Fatalf("fold(sum) = %#x, want %#x", got, want)
		}
		cut := min(len(b), int(at)) &^ 1
		if got := fold(sum(b[cut:], sum(b[:cut], 0))); got != want {
			t.Fatalf("in two pieces, cut at %d: %#x, want %#x", cut, got, want)
		}
	})
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
