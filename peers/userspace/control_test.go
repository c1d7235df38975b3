package userspace

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestControl(t *testing.T) {
	t.Parallel()
	segment := func(c *control, size int32) {
		binary.NativeEndian.PutUint32(c.add(unix.IPPROTO_UDP, unix.UDP_GRO, 4), uint32(size))
	}
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		name string
		make func(c *control)
		to   netip.Addr
		size int
	}{
		{"nothing", func(c *control) {}, netip.Addr{}, 0},
		{"an IPv4 address", func(c *control) { c.setSource(v4) }, v4, 0},
		{"an IPv6 address", func(c *control) { c.setSource(v6) }, v6, 0},
		{"segments", func(c *control) { segment(c, 1452) }, netip.Addr{}, 1452},
		{"both", func(c *control) { c.setSource(v6); segment(c, 1280) }, v6, 1280},
		{"the other way round", func(c *control) { segment(c, 1280); c.setSource(v4) }, v4, 1280},
		{"what we do not know before", func(c *control) { c.add(unix.SOL_SOCKET, unix.SCM_RIGHTS, 16); segment(c, 9) }, netip.Addr{}, 9},
		{"used again", func(c *control) { c.setSource(v4); segment(c, 7); c.reset(); c.setSource(v6) }, v6, 0},
		{"cut short", func(c *control) { c.setSource(v4); segment(c, 7); c.length--; c.length -= 8 }, v4, 0},
		{"a length that leads nowhere", func(c *control) { c.setSource(v4); clear(c.data[:8]); segment(c, 7) }, netip.Addr{}, 0},
		{"a length beyond the end", func(c *control) { segment(c, 7); binary.NativeEndian.PutUint64(c.data[:], 1<<40) }, netip.Addr{}, 0},
	} {
		var c control
		tt.make(&c)
		if to, size, _ := c.parse(); to != tt.to || size != tt.size {
			t.Errorf("%s: to %s, segments of %d; want %s, %d", tt.name, to, size, tt.to, tt.size)
		}
	}
}

// Any bytes: no harm.
func FuzzControl(f *testing.F) {
	var c control
	c.setSource(netip.MustParseAddr("2001:db8::1"))
	c.setSegment(1452)
	f.Add(c.data[:c.length])
	f.Fuzz(func(t *testing.T, b []byte) {
		var c control
		c.length = copy(c.data[:], b)
		c.parse()
	})
}
