package lab

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// superFrame builds what a kernel hands over: one frame with many packets.
func superFrame(v6, udp bool, payload, size int) []byte {
	ip, transport := 20, 20
	if v6 {
		ip = 40
	}
	if udp {
		transport = 8
	}
	f := make([]byte, netOff+ip+transport+payload)
	src := rand.NewChaCha8([32]byte{1})
	src.Read(f[netOff+ip+transport:])
	f[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	f[1] = unix.VIRTIO_NET_HDR_GSO_TCPV4
	csum := 16
	switch {
	case udp:
		f[1], csum = unix.VIRTIO_NET_HDR_GSO_UDP_L4, 6
	case v6:
		f[1] = unix.VIRTIO_NET_HDR_GSO_TCPV6
	}
	binary.NativeEndian.PutUint16(f[2:], uint16(etherLen+ip+transport))
	binary.NativeEndian.PutUint16(f[4:], uint16(size))
	binary.NativeEndian.PutUint16(f[6:], uint16(etherLen+ip))
	binary.NativeEndian.PutUint16(f[8:], uint16(csum))
	proto := byte(unix.IPPROTO_TCP)
	if udp {
		proto = unix.IPPROTO_UDP
	}
	n := f[netOff:]
	if v6 {
		binary.BigEndian.PutUint16(f[vnetLen+12:], unix.ETH_P_IPV6)
		n[0], n[6], n[7] = 0x60, proto, 64
		src.Read(n[8:40])
	} else {
		binary.BigEndian.PutUint16(f[vnetLen+12:], unix.ETH_P_IP)
		n[0], n[8], n[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(n[4:], 0xfffe) // the identification wraps
		src.Read(n[12:20])
	}
	l4 := n[ip:]
	binary.BigEndian.PutUint32(l4, 0x01bb_c000)
	if !udp {
		binary.BigEndian.PutUint32(l4[4:], 0xffff_ff00) // the sequence number wraps
		l4[12], l4[13] = 5<<4, 0x80|0x10|0x08|0x01      // CWR ACK PSH FIN
	}
	return f
}

// Each packet of a frame that was taken apart is right by itself: lengths, both
// checksums, sequence number and flags; together they hold the same bytes.
func TestSegment(t *testing.T) {
	for _, tt := range []struct {
		name          string
		v6, udp       bool
		payload, size int
		want          int
	}{
		{"tcp4", false, false, 5000, 1460, 4},
		{"tcp6", true, false, 5000, 1440, 4},
		{"udp4", false, true, 3000, 1000, 3},
		{"udp6", true, true, 3001, 1000, 4},
		{"one", false, false, 100, 1460, 1},
		{"largest", false, false, 65495, 1448, 46},
	} {
		t.Run(tt.name, func(t *testing.T) {
			frame := superFrame(tt.v6, tt.udp, tt.payload, tt.size)
			before := bytes.Clone(frame)
			if n, size := packets(frame); n != tt.want || size != tt.payload+tt.want*(len(frame)-tt.payload-vnetLen) {
				t.Errorf("packets = %d, %d bytes", n, size)
			}
			s, ok := parseSegmented(frame)
			if !ok {
				t.Fatal("not taken for a segmented frame")
			}
			var whole []byte
			var got int
			s.segment(frame, make([]byte, maxFrame), func(p []byte) {
				checkPacket(t, s, frame, p, got, len(whole))
				whole = append(whole, p[s.headers:]...)
				got++
			})
			if got != tt.want {
				t.Errorf("%d packets, want %d", got, tt.want)
			}
			if !bytes.Equal(whole, frame[s.headers:]) {
				t.Error("the payload has changed")
			}
			if !bytes.Equal(before, frame) {
				t.Error("the frame itself has changed")
			}
		})
	}
}

func checkPacket(t *testing.T, s segmented, frame, p []byte, i, off int) {
	t.Helper()
	last := off+len(p)-s.headers == len(frame)-s.headers
	transport := vnetLen + int(binary.NativeEndian.Uint16(p[6:]))
	ip, l4 := p[netOff:], bytes.Clone(p[transport:])
	if p[1] != 0 || binary.NativeEndian.Uint16(p[4:]) != 0 || p[0] != unix.VIRTIO_NET_HDR_F_NEEDS_CSUM {
		t.Errorf("packet %d: virtio header % x", i, p[:vnetLen])
	}
	if etherType(p) == unix.ETH_P_IP {
		if n := int(binary.BigEndian.Uint16(ip[2:])); n != len(ip) {
			t.Errorf("packet %d: total length %d, want %d", i, n, len(ip))
		}
		if id := binary.BigEndian.Uint16(ip[4:]); id != 0xfffe+uint16(i) {
			t.Errorf("packet %d: identification %x", i, id)
		}
		if c := fold(sum(ip[:20])); c != 0xffff {
			t.Errorf("packet %d: IPv4 checksum is wrong: sum %x", i, c)
		}
	} else if n := int(binary.BigEndian.Uint16(ip[4:])); n != len(ip)-40 {
		t.Errorf("packet %d: payload length %d, want %d", i, n, len(ip)-40)
	}
	if s.udp {
		if n := int(binary.BigEndian.Uint16(l4[4:])); n != len(l4) {
			t.Errorf("packet %d: UDP length %d, want %d", i, n, len(l4))
		}
	} else {
		if seq := binary.BigEndian.Uint32(l4[4:]); seq != 0xffff_ff00+uint32(off) {
			t.Errorf("packet %d: sequence number %x", i, seq)
		}
		flags := byte(0x10)
		if i == 0 {
			flags |= 0x80
		}
		if last {
			flags |= 0x09
		}
		if l4[13] != flags {
			t.Errorf("packet %d: flags %x, want %x", i, l4[13], flags)
		}
	}
	// Complete the checksum as a network card would; then the sum over all is -0.
	at := int(binary.NativeEndian.Uint16(p[8:]))
	binary.BigEndian.PutUint16(l4[at:], ^fold(sum(l4)))
	if c := fold(uint32(pseudoSum(p, transport, s.udp)) + sum(l4)); c != 0xffff {
		t.Errorf("packet %d: checksum is wrong: sum %x", i, c)
	}
}

func TestResolves(t *testing.T) {
	arp := make([]byte, 60)
	binary.BigEndian.PutUint16(arp[vnetLen+12:], unix.ETH_P_ARP)
	neighbour := func(kind byte) []byte {
		f := superFrame(true, true, 24, 24)
		f[netOff+6], f[netOff+40] = unix.IPPROTO_ICMPV6, kind
		return f
	}
	got := map[string]bool{
		"arp": resolves(arp), "solicitation": resolves(neighbour(135)), "advertisement": resolves(neighbour(136)),
		"echo": resolves(neighbour(128)), "tcp": resolves(superFrame(true, false, 9, 9)), "short": resolves(neighbour(135)[:netOff+40]),
	}
	want := map[string]bool{"arp": true, "solicitation": true, "advertisement": true, "echo": false, "tcp": false, "short": false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whatever a host writes to its link, the switch neither panics nor loses or makes
// up payload.
func FuzzSegment(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			f.Add(superFrame(v6, udp, 300, 100))
		}
	}
	f.Add(make([]byte, netOff))
	scratch := make([]byte, maxFrame)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < netOff || len(frame) > maxFrame {
			return
		}
		resolves(frame)
		n, size := packets(frame)
		s, ok := parseSegmented(frame)
		if !ok {
			if n != 1 || size != len(frame)-vnetLen {
				t.Fatalf("one packet counts as %d, %d bytes", n, size)
			}
			return
		}
		var whole []byte
		got, bytesOut := 0, 0
		s.segment(frame, scratch, func(p []byte) {
			if len(p)-s.headers > s.size {
				t.Fatalf("%d bytes of payload in a packet, at most %d", len(p)-s.headers, s.size)
			}
			if q, again := parseSegmented(p); again {
				t.Fatalf("a packet is a segmented frame itself: %+v", q)
			}
			whole = append(whole, p[s.headers:]...)
			got++
			bytesOut += len(p) - vnetLen
		})
		if got != n || bytesOut != size {
			t.Fatalf("%d packets, %d bytes; counted as %d, %d", got, bytesOut, n, size)
		}
		if !bytes.Equal(whole, frame[s.headers:]) {
			t.Fatal("the payload has changed")
		}
	})
}
