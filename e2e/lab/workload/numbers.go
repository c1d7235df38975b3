package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Numbered packets: a sender numbers them, one or more sinks note what comes to them
// and send it back. What was lost between is then known by number. A record has a
// line for each packet, written at once: "sent N", "got N", "back N".

const (
	numberMagic = 0x77656674
	numberSize  = 12 // magic, number
	linger      = time.Second
	// mostAtOnce bounds what a sender that is late sends at once: a burst of more than a
	// TUN takes (500) is lost in front of whoever is to be tested.
	mostAtOnce = 2
)

// record is a file that lines are appended to, whole, by several goroutines.
type record struct {
	mu sync.Mutex
	w  io.Writer
}

func openRecord(path string) (*record, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	return &record{w: f}, err
}

func (r *record) note(what string, n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.w, "%s %d\n", what, n)
}

func number(b []byte) (n uint64, ok bool) {
	if len(b) != numberSize || binary.BigEndian.Uint32(b) != numberMagic {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[4:]), true
}

func appendNumber(b []byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, numberMagic), n)
}

// buffer is how much may wait in a socket: on a busy machine this process may wait
// for its turn for a while, and what is lost then was not lost on its way. Beyond the
// system's limit it takes root.
const buffer = 8 << 20

func widen(c net.PacketConn) {
	udp, ok := c.(*net.UDPConn)
	if !ok {
		return
	}
	_ = udp.SetReadBuffer(buffer) // up to the limit; what is more, below
	if raw, err := udp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) })
	}
}

// sink notes what comes to c and sends it back, until c is closed.
func sink(c net.PacketConn, r *record) {
	widen(c)
	buf := make([]byte, 1<<16)
	for {
		size, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if n, ok := number(buf[:size]); err == nil && ok {
			r.note("got", n)
			_, _ = c.WriteTo(buf[:size], from) // the sender counts what does not come back
		}
	}
}

// send sends rate packets a second to a sink until ctx ends, numbered from first on,
// and listens for what comes back a little longer.
func send(ctx context.Context, to string, first uint64, rate int, r *record, out io.Writer) error {
	if rate <= 0 {
		return fmt.Errorf("rate %d: want at least 1 a second", rate)
	}
	c, err := net.ListenPacket("udp", ":0")
	if err != nil {
		return err
	}
	at, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	widen(c)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		buf := make([]byte, 1<<16)
		for {
			size, _, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if n, ok := number(buf[:size]); err == nil && ok {
				r.note("back", n)
			}
		}
	}()
	fmt.Fprintf(out, "sending to %s\n", at)
	start := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := uint64(0); ctx.Err() == nil; {
		// As many as are due: a ticker leaves out what it is late for.
		due := uint64(time.Since(start).Seconds() * float64(rate))
		for due = min(due, n+max(mostAtOnce, uint64(rate/500))); n < due; n++ {
			r.note("sent", first+n)
			_, _ = c.WriteTo(appendNumber(nil, first+n), at) // refused is lost, too
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	time.AfterFunc(linger, func() { c.Close() })
	<-heard
	return nil
}
