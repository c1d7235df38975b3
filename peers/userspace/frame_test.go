package userspace

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// large is what one large send of a sender looks like on the link.
type large struct {
	v6, tcp bool
	options int // bytes of TCP options
	size    int // of a segment
	data    []byte
	flags   byte
	seq     uint32
	id      uint16
}

func (l large) start() int {
	if l.v6 {
		return ip6Header
	}
	return ip4Header
}

func (l large) proto() byte {
	if l.tcp {
		return protoTCP
	}
	return protoUDP
}

func (l large) headers() int {
	if l.tcp {
		return l.start() + tcpHeader + l.options
	}
	return l.start() + udpHeader
}

// frame prints it as the kernel does, with a length of headers that is wrong.
func (l large) frame() frame {
	f := make(frame, frameHeader, frameHeader+l.headers()+len(l.data))
	sumAt := udpChecksumAt
	f[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	switch {
	case !l.tcp:
		f[1] = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	case l.v6:
		f[1], sumAt = unix.VIRTIO_NET_HDR_GSO_TCPV6, tcpChecksumAt
	default:
		f[1], sumAt = unix.VIRTIO_NET_HDR_GSO_TCPV4, tcpChecksumAt
	}
	binary.NativeEndian.PutUint16(f[2:], 9999)
	binary.NativeEndian.PutUint16(f[4:], uint16(l.size))
	binary.NativeEndian.PutUint16(f[6:], uint16(l.start()))
	binary.NativeEndian.PutUint16(f[8:], uint16(sumAt))
	p := make([]byte, l.headers())
	if l.v6 {
		p[0], p[6], p[7] = 6<<4, l.proto(), 64
		copy(p[8:], netip.MustParseAddr("fd12::1").AsSlice())
		copy(p[24:], netip.MustParseAddr("fd12::2").AsSlice())
	} else {
		p[0], p[8], p[9] = 4<<4|5, 64, l.proto()
		binary.BigEndian.PutUint16(p[4:], l.id)
		copy(p[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	}
	t := p[l.start():]
	binary.BigEndian.PutUint16(t, 4000)
	binary.BigEndian.PutUint16(t[2:], 5000)
	t[sumAt], t[sumAt+1] = 0xab, 0xcd // something
	if l.tcp {
		binary.BigEndian.PutUint32(t[4:], l.seq)
		t[12], t[13] = byte(len(t)/4<<4), l.flags
	}
	return append(append(f, p...), l.data...)
}

func drawLarge(t *rapid.T) large {
	l := large{
		v6: rapid.Bool().Draw(t, "v6"), tcp: rapid.Bool().Draw(t, "tcp"), options: 4 * rapid.IntRange(0, 10).Draw(t, "options"),
		size: rapid.IntRange(1, 2000).Draw(t, "size"), flags: rapid.Byte().Draw(t, "flags"), seq: rapid.Uint32().Draw(t, "seq"), id: rapid.Uint16().Draw(t, "id"),
	}
	n := rapid.IntRange(1, min(65000, 130*l.size)).Draw(t, "bytes")
	l.data = bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 1, 100).Draw(t, "data"), n)[:n]
	return l
}

// Cut in one go or as buffers are free, a large send becomes packets that are right in
// every field, whose contents are the sender's.
func TestSplit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := drawLarge(t)
		f := l.frame()
		if !f.valid() {
			t.Fatal("it is taken for invalid")
		}
		want := (len(l.data) + l.size - 1) / l.size
		if f.segments() != want {
			t.Fatalf("%d segments, want %d", f.segments(), want)
		}
		const offset = 16
		var got []byte
		for i := 0; i < want; {
			bufs := make([][]byte, rapid.IntRange(1, 64).Draw(t, "room"))
			for j := range bufs {
				bufs[j] = make([]byte, 4000)
			}
			sizes := make([]int, len(bufs))
			n := f.split(i, bufs, sizes, offset)
			if n != min(len(bufs), want-i) {
				t.Fatalf("%d packets, from %d of %d on, into %d buffers", n, i, want, len(bufs))
			}
			for j := range n {
				got = append(got, l.check(t, i+j, i+j == want-1, bufs[j][offset:offset+sizes[j]])...)
			}
			i += n
		}
		if !bytes.Equal(got, l.data) {
			t.Fatalf("%d bytes of content, not the %d that were sent", len(got), len(l.data))
		}
	})
}

// check judges packet number i and returns its content.
func (l large) check(t *rapid.T, i int, last bool, p []byte) []byte {
	pseudo := slowSum([]byte{0, l.proto()}) + uint64(len(p)-l.start())
	if l.v6 {
		if n := int(binary.BigEndian.Uint16(p[4:])); n != len(p)-ip6Header {
			t.Fatalf("packet %d: payload length %d of %d", i, n, len(p)-ip6Header)
		}
		pseudo += slowSum(p[8:ip6Header])
	} else {
		if n := int(binary.BigEndian.Uint16(p[2:])); n != len(p) {
			t.Fatalf("packet %d: total length %d of %d", i, n, len(p))
		}
		if slowFold(slowSum(p[:ip4Header])) != 0xffff || binary.BigEndian.Uint16(p[4:]) != l.id+uint16(i) {
			t.Fatalf("packet %d: IPv4 header %x", i, p[:ip4Header])
		}
		pseudo += slowSum(p[12:ip4Header])
	}
	transport := p[l.start():]
	if slowFold(pseudo+slowSum(transport)) != 0xffff {
		t.Fatalf("packet %d: the checksum is wrong", i)
	}
	if l.tcp {
		flags := l.flags
		if !last {
			flags &^= finPush
		}
		if binary.BigEndian.Uint32(transport[4:]) != l.seq+uint32(i*l.size) || transport[13] != flags {
			t.Fatalf("packet %d: TCP header %x", i, transport[:tcpHeader])
		}
	} else if int(binary.BigEndian.Uint16(transport[4:])) != len(transport) || binary.BigEndian.Uint16(transport[6:]) == 0 {
		t.Fatalf("packet %d: UDP header %x", i, transport[:udpHeader])
	}
	return p[l.headers():]
}

// Whatever stands in a frame, what is taken for valid can be cut.
func FuzzFrame(f *testing.F) {
	f.Add([]byte(large{v6: true, tcp: true, size: 1380, data: make([]byte, 3000)}.frame()))
	f.Add([]byte(large{size: 1200, data: make([]byte, 3000)}.frame()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > largeFrame {
			return
		}
		f := frame(b)
		if !f.valid() {
			return
		}
		f.flowKey(nil)
		bufs, sizes := [][]byte{make([]byte, 1<<16)}, []int{0}
		for i := range min(f.segments(), 100) {
			if n := f.split(i, bufs, sizes, 0); n != 1 {
				t.Fatalf("packet %d of %d: %d", i, f.segments(), n)
			}
		}
	})
}

// A datagram and its fragments, and one that is not cut, are one flow: they must not
// overtake each other.
func TestFragmentsAreOfTheFlow(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{true, false} {
		whole := large{v6: v6, size: 100, data: make([]byte, 100)}.frame()
		cut := large{v6: v6, size: 100, data: make([]byte, 100)}.frame()
		if p := cut.packet(); v6 {
			p[6], p[ip6Header] = protoFragment, protoUDP
		} else {
			p[6] = 0x20 // more fragments
		}
		if a, b := whole.flowKey(nil), cut.flowKey(nil); !bytes.Equal(a, b) {
			t.Errorf("IPv6 %t: %x and %x", v6, a, b)
		}
		other := large{v6: v6, tcp: true, size: 100, data: make([]byte, 100)}.frame()
		if a, b := whole.flowKey(nil), other.flowKey(nil); bytes.Equal(a, b) {
			t.Errorf("IPv6 %t: TCP is of the same flow as UDP", v6)
		}
	}
}
