package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// asker asks one question at a time over a socket of its own, without the scheduler
// of Go between the kernel and the clock.
type asker struct {
	socket int
	id     uint16
	buf    [1500]byte
}

func newAsker() (*asker, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	sockaddr := func(a string, port int) *unix.SockaddrInet6 {
		return &unix.SockaddrInet6{Addr: netip.MustParseAddr(a).As16(), Port: port}
	}
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}),
		unix.Bind(fd, sockaddr(clientAddr, 0)), unix.Connect(fd, sockaddr(serverAddr, port)),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket to ask from: %w", err)
	}
	return &asker{socket: fd}, nil
}

func (a *asker) close() { unix.Close(a.socket) }

// answers asks for the AAAA records of name and returns how many there are.
func (a *asker) answers(name string) (int, error) {
	q := new(mdns.Msg).SetQuestion(name, mdns.TypeAAAA)
	packet, err := q.Pack()
	if err != nil {
		return 0, err
	}
	if err := a.ask(packet); err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return int(binary.BigEndian.Uint16(a.buf[6:])), nil
}

// ask sends a query and waits for its answer.
func (a *asker) ask(packet []byte) error {
	a.id++
	binary.BigEndian.PutUint16(packet, a.id)
	if _, err := unix.Write(a.socket, packet); err != nil {
		return err
	}
	for {
		n, err := unix.Read(a.socket, a.buf[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n >= 12 && binary.BigEndian.Uint16(a.buf[:]) == a.id:
			return nil
		}
	}
}

// askRate is how many questions a second make a moderate load.
const askRate = 10_000

// steady asks for plain names at a steady rate and returns, sorted, how long each
// answer took from the moment at which its question was due: one that is late makes
// those after it late, too, and that counts.
func steady(length time.Duration) ([]time.Duration, error) {
	a, err := newAsker()
	if err != nil {
		return nil, err
	}
	defer a.close()
	packets := make([][]byte, names)
	for i := range packets {
		if packets[i], err = new(mdns.Msg).SetQuestion(fmt.Sprintf("app%d.internal.", i), mdns.TypeAAAA).Pack(); err != nil {
			return nil, err
		}
	}
	took := make([]time.Duration, 0, int(length.Seconds()*askRate))
	due := time.Now()
	for end := due.Add(length); due.Before(end); due = due.Add(time.Second / askRate) {
		for time.Now().Before(due) { // the core is ours
		}
		if err := a.ask(packets[rand.IntN(names)]); err != nil {
			return nil, err
		}
		took = append(took, time.Since(due))
	}
	slices.Sort(took)
	return took, nil
}

// askSteadily is this program as the one that asks: it prints the 999th of a thousand,
// and the middle, in nanoseconds.
func askSteadily(length time.Duration) error {
	if _, err := steady(time.Second); err != nil { // warm
		return err
	}
	took, err := steady(length)
	if err != nil {
		return err
	}
	_, err = fmt.Println(took[len(took)*999/1000].Nanoseconds(), took[len(took)/2].Nanoseconds())
	return err
}

// latency compares the time of an answer on a zone that rests with that on one that
// changes a thousand times a second. They take turns.
func (c config) latency(ctx context.Context, self string) error {
	tail, half := map[string][]float64{}, map[string][]float64{}
	for range 2*c.rounds - 1 {
		for _, kind := range []string{"weft", "changing"} {
			err := c.with(ctx, server{name: kind, args: []string{self, "-serve", kind}}, func(ctx context.Context, _ int) error {
				cmd := exec.CommandContext(ctx, "taskset", "-c", "1", self, "-ask", "-length", c.length.String())
				cmd.Stderr = os.Stderr
				cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				out, err := cmd.Output()
				if err != nil {
					return err
				}
				f := strings.Fields(string(out))
				if len(f) != 2 {
					return fmt.Errorf("asking at a steady rate: %q", out)
				}
				t, err1 := strconv.ParseFloat(f[0], 64)
				h, err2 := strconv.ParseFloat(f[1], 64)
				tail[kind], half[kind] = append(tail[kind], t), append(half[kind], h)
				return errors.Join(err1, err2)
			})
			if err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
		}
	}
	for _, x := range []struct{ name, kind string }{{"quiet", "weft"}, {"changing", "changing"}} {
		figure("dns_"+x.name+"_p50", middle(half[x.kind])/1e3, "us", "")
		figure("dns_"+x.name+"_p99.9", middle(tail[x.kind])/1e3, "us", "")
	}
	figure("dns_changing_vs_quiet_p99.9", middle(tail["changing"])/middle(tail["weft"]), "ratio", "<= 1.5")
	return nil
}

func middle(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}
