package e2e

import (
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// paced sends UDP packets of 1,200 bytes at an even rate, one by one, and returns
// the CPU that both ends' devices used for each, in µs, and how many percent were
// lost.
func (p *tunnelPair) paced(t *testing.T, rate, seconds int) (cpu, lost float64) {
	t.Helper()
	in, err := p.hosts[1].ListenPacket("udp", net.JoinHostPort(p.to, "9000"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := in.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// This reader is not what is measured.
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) }); err != nil || e != nil {
		t.Fatal(err, e)
	}
	out, err := p.hosts[0].DialContext(t.Context(), "udp", in.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	came := make(chan int)
	go func() {
		n := 0
		buf := make([]byte, 2048)
		for {
			if _, _, err := in.ReadFrom(buf); err != nil {
				came <- n
				return
			}
			n++
		}
	}()
	before := p.cpu(t)
	sent := pace(out, rate, time.Duration(seconds)*time.Second)
	time.Sleep(100 * time.Millisecond) // what is on its way
	used := p.cpu(t) - before
	in.Close()
	n := <-came
	if n == 0 {
		t.Error("no packet came")
		return 0, 100
	}
	return used / float64(n) * 1e6, 100 * float64(sent-n) / float64(sent)
}

// pace writes at an even rate. The runtime's timers are too coarse for it.
func pace(to net.Conn, rate int, d time.Duration) (sent int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	packet := make([]byte, 1200)
	began := time.Now()
	total := rate * int(d/time.Millisecond) / 1000
	for sent < total {
		due := time.Duration(sent) * time.Second / time.Duration(rate)
		if wait := due - time.Since(began); wait > 0 {
			ts := unix.NsecToTimespec(int64(wait))
			_ = unix.Nanosleep(&ts, nil)
			continue
		}
		if _, err := to.Write(packet); err == nil {
			sent++
		} else {
			return sent
		}
	}
	return sent
}
