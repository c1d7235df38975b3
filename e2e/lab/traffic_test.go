package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var summary = regexp.MustCompile(`= ([\d.]+)/([\d.]+)/([\d.]+)/`)

// ping returns the shortest and the mean of ten round-trip times.
func ping(t testing.TB, from *Host, to netip.Addr) (shortest, mean time.Duration) {
	t.Helper()
	out := sh(t, from, "ping -q -c 10 -i 0.03 -W 3 "+to.String())
	m := summary.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("ping says %q", out)
	}
	parse := func(s string) time.Duration {
		ms, err := strconv.ParseFloat(s, 64)
		must(t, err)
		return time.Duration(ms * float64(time.Millisecond))
	}
	return parse(m[1]), parse(m[2])
}

// Round trips take as long as they were set to, and a millisecond more at most.
// The shortest is what counts: the others may have waited for a busy machine.
func TestRTT(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ping")
	fra, ams, nrt := newHost(t, l, "fra", HostConfig{IPv6: true}), newHost(t, l, "ams", HostConfig{IPv6: true}), newHost(t, l, "nrt", HostConfig{})
	for _, tt := range []struct {
		from, to *Host
		addr     netip.Addr
		rtt      time.Duration
	}{
		{fra, ams, ams.Addr(), 8 * time.Millisecond},
		{ams, nrt, nrt.Addr(), 90 * time.Millisecond},
		{fra, nrt, nrt.Addr(), 240 * time.Millisecond},
		{ams, fra, fra.Addr6(), 3 * time.Millisecond}, // changed while it runs
		{fra, ams, ams.Addr(), 0},
	} {
		must(t, l.Switch().SetRTT(tt.from.Name(), tt.to.Name(), tt.rtt))
		shortest, mean := ping(t, tt.from, tt.addr)
		t.Logf("%s to %s: set %s, shortest %s, mean %s", tt.from.Name(), tt.to.Name(), tt.rtt, shortest, mean)
		if shortest < tt.rtt || shortest > tt.rtt+time.Millisecond {
			t.Errorf("%s to %s: round trip of %s, want %s to 1 ms more", tt.from.Name(), tt.to.Name(), shortest, tt.rtt)
		}
	}
}

// One direction of a path can be longer, and can be cut.
func TestOneWay(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ping")
	a, b := newHost(t, l, "a", HostConfig{}), newHost(t, l, "b", HostConfig{})
	must(t, l.Switch().SetPath("a", "b", Path{Delay: 12 * time.Millisecond}))
	if d, _ := ping(t, a, b.Addr()); d < 12*time.Millisecond || d > 13*time.Millisecond {
		t.Errorf("12 ms there and none back: %s", d)
	}
	must(t, l.Switch().CutOneWay("b", "a"))
	if out, err := a.Run(t.Context(), "ping", "-c", "1", "-W", "0.3", b.Addr().String()); err == nil {
		t.Errorf("no way back, but: %s", out)
	}
	there, errThere := l.Switch().Counters("a", "b")
	back, errBack := l.Switch().Counters("b", "a")
	if errors.Join(errThere, errBack) != nil || there.Cut != 0 || there.Packets < 6 || back.Cut == 0 {
		t.Errorf("there %+v, back %+v", there, back)
	}
	must(t, l.Switch().Restore("a", "b"))
	ping(t, b, a.Addr())
}

// transfer sends bytes by TCP from one host to an address of another, as fast as it
// goes, and returns how long it took. It checks that they arrived as they were.
func transfer(t testing.TB, from, to *Host, addr netip.Addr, size int) time.Duration {
	t.Helper()
	ln, err := to.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	must(t, err)
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", ln.Addr().String())
	must(t, err)
	defer conn.Close()
	peer, err := ln.Accept()
	must(t, err)
	defer peer.Close()
	deadline, _ := ctx.Deadline()
	must(t, conn.SetDeadline(deadline), peer.SetDeadline(deadline))

	chunk := make([]byte, 1<<18)
	rand.NewChaCha8([32]byte{2}).Read(chunk)
	began := time.Now()
	wrote := make(chan error, 1)
	go func() {
		for n := 0; n < size; n += len(chunk) {
			if _, err := conn.Write(chunk); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- conn.(*net.TCPConn).CloseWrite()
	}()
	got, buf := 0, make([]byte, 1<<18)
	for err == nil {
		var n int
		n, err = peer.Read(buf)
		// The bytes come in a circle of chunks.
		for part := buf[:n]; len(part) > 0; {
			want := chunk[got%len(chunk):]
			want = want[:min(len(want), len(part))]
			if !bytes.Equal(part[:len(want)], want) {
				t.Fatalf("%s to %s: the bytes after %d are not those that were sent", from.Name(), to.Name(), got)
			}
			got, part = got+len(want), part[len(want):]
		}
	}
	took := time.Since(began)
	if err != io.EOF {
		t.Fatalf("%s to %s: %v", from.Name(), to.Name(), err)
	}
	must(t, <-wrote)
	if whole := (size + len(chunk) - 1) / len(chunk) * len(chunk); got != whole {
		t.Errorf("%s to %s: %d bytes arrived, want %d", from.Name(), to.Name(), got, whole)
	}
	return took
}

func rate(size int, took time.Duration) float64 { return float64(size) * 8 / took.Seconds() / 1e9 }

// TCP works over every kind of path: as it is, delayed, and taken apart because
// single packets get lost, overtake each other, or wait.
func TestTCP(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		path Path
	}{
		{"wire", Path{}},
		{"delayed", Path{Delay: 2 * time.Millisecond}},
		{"lossy", Path{Delay: time.Millisecond, Loss: 0.01}},
		{"jittery", Path{Delay: time.Millisecond, Jitter: 200 * time.Microsecond}},
		{"capped", Path{Rate: 200_000_000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			a, b := newHost(t, l, "a", HostConfig{IPv6: true}), newHost(t, l, "b", HostConfig{IPv6: true})
			must(t, l.Switch().SetPath("a", "b", tt.path), l.Switch().SetPath("b", "a", tt.path))
			const size = 2 << 20
			for _, addr := range []netip.Addr{b.Addr(), b.Addr6()} {
				took := transfer(t, a, b, addr, size)
				c, err := l.Switch().Counters("a", "b")
				t.Logf("to %s: %.3f Gbit/s, %+v, %v", addr, rate(size, took), c, err)
				// Small windows after a loss make small frames.
				if tt.path.Loss == 0 && c.Frames*4 > c.Packets {
					t.Errorf("%d frames for %d packets: the kernel segments before the switch", c.Frames, c.Packets)
				}
				if tt.path.Loss > 0 && c.Lost == 0 {
					t.Error("nothing was lost")
				}
			}
		})
	}
}

// A cap is kept, and used.
func TestRate(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := newHost(t, l, "a", HostConfig{}), newHost(t, l, "b", HostConfig{})
	const bits, size = 40_000_000, 2_500_000
	must(t, l.Switch().SetRate("a", "b", bits))
	took := transfer(t, a, b, b.Addr(), size)
	if atLeast := time.Duration(size * 8 * time.Second / bits); took < atLeast || took > 3*atLeast {
		t.Errorf("%d bytes at %d bit/s took %s, want at least %s and not thrice that", size, bits, took, atLeast)
	}
}

// Of UDP packets, as many arrive as were not counted as lost, also if the sender
// handed several to the kernel in one (USO).
func TestUDPLoss(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := newHost(t, l, "a", HostConfig{}), newHost(t, l, "b", HostConfig{})
	must(t, l.Switch().SetLoss("a", "b", 0.2))
	to, err := b.ListenPacket("udp", "192.0.2.2:0")
	must(t, err)
	defer to.Close()
	must(t, to.(*net.UDPConn).SetReadBuffer(8<<20))
	from, err := a.DialContext(t.Context(), "udp", to.LocalAddr().String())
	must(t, err)
	defer from.Close()
	raw, err := from.(syscall.Conn).SyscallConn()
	must(t, err)
	var errOpt error
	must(t, raw.Control(func(fd uintptr) {
		errOpt = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 100)
	}), errOpt)
	const writes, each = 100, 10
	for i := range writes {
		_, err := from.Write(bytes.Repeat([]byte{byte(i)}, 100*each))
		must(t, err)
	}
	await(t, "the packets to pass", func() error {
		if c, err := l.Switch().Counters("a", "b"); err != nil || c.Packets+c.Lost < writes*each {
			return fmt.Errorf("%+v, %w", c, err)
		}
		return nil
	})
	c, err := l.Switch().Counters("a", "b")
	must(t, err)
	// The kernel's own multicasts are among what was counted.
	others := c.Packets + c.Lost - writes*each
	if c.Lost < 130 || c.Lost > 270 || c.Frames > 2*writes || others > 20 {
		t.Errorf("%+v: want 200 of 1000 lost, and 100 frames", c)
	}
	got := uint64(0)
	var arrived [writes]int
	buf := make([]byte, 2000)
	for got < c.Packets-others {
		must(t, to.SetReadDeadline(time.Now().Add(2*time.Second)))
		n, _, err := to.ReadFrom(buf)
		if err != nil {
			t.Fatalf("%d of %d packets arrived: %v", got, c.Packets, err)
		}
		if n != 100 {
			t.Fatalf("a packet of %d bytes, want 100", n)
		}
		got++
		arrived[buf[0]]++
	}
	// 0.8 to the tenth of the frames lose nothing: 11 of 100. As whole frames they
	// would lose all or nothing.
	if parts := slices.DeleteFunc(arrived[:], func(n int) bool { return n == 0 || n == each }); len(parts) < writes/2 {
		t.Errorf("%d of %d frames lost a part of their packets: %v", len(parts), writes, arrived)
	}
	must(t, to.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	for {
		if _, _, err := to.ReadFrom(buf); err != nil {
			break
		}
		got++
	}
	if got > c.Packets {
		t.Errorf("%d packets arrived, more than the %d that were let through", got, c.Packets)
	}
}

// figures measures TCP over the switch, over a router, and over a veth, in one run.
func figures(t testing.TB, size int) map[string]float64 {
	t.Helper()
	l := newLab(t)
	defer func() { must(t, l.Close()) }()
	a, b := newHost(t, l, "a", HostConfig{}), newHost(t, l, "b", HostConfig{})
	_, addr, err := l.Veth(a, b)
	must(t, err)
	r, err := l.NAT("r", NATConfig{})
	must(t, err)
	inside, err := r.Host("inside", HostConfig{})
	must(t, err)
	return map[string]float64{
		"switch": rate(size, transfer(t, a, b, b.Addr(), size)),
		"nat":    rate(size, transfer(t, inside, b, b.Addr(), size)),
		"veth":   rate(size, transfer(t, a, b, addr, size)),
	}
}

// The links are not what slows a measurement down. The machine may be busy with
// something else for a while, so the best of some tries counts.
func TestThroughput(t *testing.T) {
	best := map[string]float64{}
	for range 5 {
		for link, gbit := range figures(t, 64<<20) {
			best[link] = max(best[link], gbit)
		}
		t.Logf("Gbit/s: %v", best)
		if raceDetector() || min(best["switch"], best["nat"], best["veth"]) > 1 {
			return
		}
	}
	t.Error("want more than 1 Gbit/s on each link")
}

// raceDetector reports whether it is on: what is measured under it says nothing.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func BenchmarkTCP(b *testing.B) {
	const size = 512 << 20
	best := map[string]float64{}
	for b.Loop() {
		for link, gbit := range figures(b, size) {
			best[link] = max(best[link], gbit)
		}
	}
	for _, link := range []string{"switch", "nat", "veth"} {
		b.ReportMetric(best[link], link+"-Gbit/s")
		fmt.Printf("figure: lab_tcp_%s %.2f Gbit/s (aim >= 1)\n", link, best[link])
	}
}
