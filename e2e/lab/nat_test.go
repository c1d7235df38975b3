package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// home is two hosts outside and a laptop behind a router.
type home struct {
	a, b, laptop *Host
	router       *Router
}

func newHome(t *testing.T, cfg NATConfig) home {
	l := newLab(t, "ping", "ip")
	h := home{a: newHost(t, l, "a", HostConfig{}), b: newHost(t, l, "b", HostConfig{})}
	var err error
	h.router, err = l.NAT("r", cfg)
	must(t, err)
	h.laptop, err = h.router.Host("laptop", HostConfig{})
	must(t, err)
	return h
}

func udp(t *testing.T, h *Host, addr string) *net.UDPConn {
	t.Helper()
	c, err := h.ListenPacket("udp4", addr)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// reach sends a packet and returns as whom it arrived; invalid if it did not.
func reach(t *testing.T, from, to *net.UDPConn, addr netip.AddrPort) netip.AddrPort {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort([]byte("hello"), addr); err != nil {
		t.Fatal(err)
	}
	must(t, to.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
	_, as, err := to.ReadFromUDPAddrPort(make([]byte, 9))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(as.Addr().Unmap(), as.Port())
}

func local(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// A laptop reaches the hosts, as its router; answers come back, also later;
// strangers are not let in.
func TestNAT(t *testing.T) {
	t.Parallel()
	h := newHome(t, NATConfig{})
	if h.laptop.Addr() != netip.MustParseAddr("198.51.100.2") || h.router.Addr() != netip.MustParseAddr("192.0.2.3") {
		t.Errorf("laptop %s, router %s", h.laptop.Addr(), h.router.Addr())
	}
	onA, onB, onLaptop := udp(t, h.a, "192.0.2.1:500"), udp(t, h.b, "192.0.2.2:500"), udp(t, h.laptop, "198.51.100.2:4000")
	first := reach(t, onLaptop, onA, local(onA))
	if first != netip.AddrPortFrom(h.router.Addr(), 4000) {
		t.Errorf("the laptop is seen as %s, want the router's port 4000", first)
	}
	for range 2 {
		if from := reach(t, onA, onLaptop, first); from != local(onA) {
			t.Errorf("an answer from a: %s", from)
		}
	}
	if from := reach(t, onB, onLaptop, first); from.IsValid() && from.Addr().IsValid() {
		t.Errorf("b reached the laptop, which never spoke to it: as %s", from)
	}
	if again := reach(t, onLaptop, onB, local(onB)); again != first {
		t.Errorf("seen by b as %s, by a as %s", again, first)
	}
	if from := reach(t, onB, onLaptop, first); from != local(onB) {
		t.Errorf("an answer from b: %s", from)
	}
	must(t, h.laptop.lab.Switch().SetRTT("laptop", "a", 20*time.Millisecond))
	if d, _ := ping(t, h.laptop, h.a.Addr()); d < 20*time.Millisecond || d > 21*time.Millisecond {
		t.Errorf("round trip behind the router: %s, want 20ms", d)
	}
	sh(t, h.a, "ip route add 198.51.100.0/24 via 192.0.2.3")
	if _, err := h.a.Run(t.Context(), "ping", "-c", "1", "-W", "0.2", h.laptop.Addr().String()); err == nil {
		t.Error("a reached the laptop at its own address")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := h.a.DialContext(ctx, "tcp", "192.0.2.3:80"); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a connects to the router: %v, want silence", err)
	}
	transfer(t, h.laptop, h.b, h.b.Addr(), 8<<20)
}

// With random ports each flow has one of its own, and another after the router
// forgot it.
func TestSymmetricNAT(t *testing.T) {
	t.Parallel()
	h := newHome(t, NATConfig{RandomPorts: true, UDPTimeout: 20 * time.Second})
	onA, onB, onLaptop := udp(t, h.a, "192.0.2.1:500"), udp(t, h.b, "192.0.2.2:500"), udp(t, h.laptop, "198.51.100.2:4000")
	asA, asB := reach(t, onLaptop, onA, local(onA)), reach(t, onLaptop, onB, local(onB))
	if asA == asB || asA.Addr() != h.router.Addr() || asB.Addr() != h.router.Addr() {
		t.Errorf("seen as %s by a and %s by b, want two ports of the router", asA, asB)
	}
	if again := reach(t, onLaptop, onA, local(onA)); again != asA {
		t.Errorf("the same flow seen as %s, then %s", asA, again)
	}
	must(t, h.router.Forget())
	if again := reach(t, onLaptop, onA, local(onA)); again == asA || again.Addr() != h.router.Addr() {
		t.Errorf("after the router forgot: %s, before: %s", again, asA)
	}
	got := sh(t, h.router.Self(), "cat /proc/sys/net/netfilter/nf_conntrack_udp_timeout /proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream | xargs")
	if got != "20 20" {
		t.Errorf("timeouts %q", got)
	}
}

// Hosts behind one router reach each other without it; those of two routers are
// apart although their addresses are the same.
func TestTwoHomes(t *testing.T) {
	t.Parallel()
	h := newHome(t, NATConfig{})
	phone, err := h.router.Host("phone", HostConfig{})
	must(t, err)
	other, err := h.laptop.lab.NAT("other", NATConfig{})
	must(t, err)
	neighbour, err := other.Host("neighbour", HostConfig{})
	must(t, err)
	sh(t, phone, "ping -c 1 -W 2 "+h.laptop.Addr().String())
	if neighbour.Addr() != h.laptop.Addr() {
		t.Errorf("the first host of another router has %s, want %s", neighbour.Addr(), h.laptop.Addr())
	}
	sh(t, neighbour, "ping -c 1 -W 2 "+h.a.Addr().String())
	if out, err := neighbour.Run(t.Context(), "ping", "-c", "1", "-W", "0.2", phone.Addr().String()); err == nil || !strings.Contains(out, "100% packet loss") {
		t.Errorf("a neighbour reached the phone: %v, %s", err, out)
	}
}
