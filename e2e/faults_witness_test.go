package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/e2e/world"
)

// witness asks a host's resolver for the names of all machines, and a machine on
// another host for a page, from a machine's own namespace, all the time.
type witness struct {
	*watcher
	all   []string   // addresses of the machines, sorted
	other netip.Addr // of a machine on another host
	pulse *pulse

	mu       sync.Mutex // guards what follows
	may      may        // what is no failure
	turns    int        // changes of may
	asked    int
	wrong    []string
	forgiven int // failures while this machine stood still
}

// pulse knows when this process did not run although it should have: what timed out
// then says nothing about anybody else.
type pulse struct {
	mu   sync.Mutex
	last time.Time // end of the last standstill
}

const (
	pulseEvery = 20 * time.Millisecond
	standstill = 400 * time.Millisecond
)

func (p *pulse) run(ctx context.Context) {
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for before := time.Now(); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		if now.Sub(before) > standstill {
			p.mu.Lock()
			p.last = now
			p.mu.Unlock()
		}
		before = now
	}
}

// stood reports whether there was a standstill that ended after t.
func (p *pulse) stood(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last.After(t)
}

// may is what a witness tolerates while a fault lasts.
type may struct {
	names   bool     // no answer: the host's agent is what is broken
	packets bool     // no packets to the other machine
	missing []string // addresses that answers may lack
}

func newWitness(t *testing.T, m, other *world.Machine, machines []*world.Machine, p *pulse) *witness {
	x := &witness{watcher: newWatcher(t, m), other: other.Address, pulse: p}
	for _, o := range machines {
		x.all = append(x.all, o.Address.String())
	}
	slices.Sort(x.all)
	return x
}

// patience is how long a question or a page may take. It is short of what a program
// that asks would give up after.
const patience = 2 * time.Second

// hasAsked reports whether it has, since begin.
func (x *witness) hasAsked() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.asked > x.forgiven
}

func (x *witness) run(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		x.mu.Lock()
		turns, may := x.turns, x.may
		x.mu.Unlock()
		began := time.Now()
		err := x.try(ctx, may)
		x.mu.Lock()
		if turns == x.turns && ctx.Err() == nil {
			x.asked++
			switch {
			case err == nil:
			case x.pulse.stood(began):
				x.forgiven++
			default:
				x.wrong = append(x.wrong, fmt.Sprintf("%s to %s: %v", began.Format("15:04:05.000"), time.Now().Format("05.000"), err))
			}
		}
		x.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// look is try with nothing tolerated.
func (x *witness) look(ctx context.Context) error { return x.try(ctx, may{}) }

func (x *witness) try(ctx context.Context, may may) error {
	if !may.names {
		got, err := x.ask(ctx, "global.web.internal.")
		if err != nil {
			return err
		}
		lacks := func(a string) bool { return !slices.Contains(got, a) && !slices.Contains(may.missing, a) }
		if slices.ContainsFunc(x.all, lacks) || slices.ContainsFunc(got, func(a string) bool { return !slices.Contains(x.all, a) }) {
			return fmt.Errorf("global.web.internal is %q, want %q", got, x.all)
		}
	}
	if !may.packets {
		return x.page(ctx)
	}
	return nil
}

// ask returns the addresses of a name, sorted.
func (x *witness) ask(ctx context.Context, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	reply, err := dns.Lookup(ctx, x.dial, x.resolver, name, "AAAA")
	if err != nil {
		return nil, err
	}
	got := strings.Fields(reply.Short())
	slices.Sort(got)
	return got, nil
}

// answers is an error unless name is this one address.
func (x *witness) answers(ctx context.Context, name string, addr netip.Addr) error {
	got, err := x.ask(ctx, name)
	if err == nil && !slices.Equal(got, []string{addr.String()}) {
		err = fmt.Errorf("%s is %q, want %s", name, got, addr)
	}
	return err
}

// page fetches a page of the other machine, through the tunnel.
func (x *witness) page(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := x.dial(ctx, "tcp", netip.AddrPortFrom(x.other, 80))
	if err != nil {
		return fmt.Errorf("a page of %s: %w", x.other, err)
	}
	defer conn.Close()
	return pageOf(ctx, conn)
}

func pageOf(ctx context.Context, conn net.Conn) error {
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		return fmt.Errorf("a page of %s: %w", conn.RemoteAddr(), err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return fmt.Errorf("a page of %s: %w", conn.RemoteAddr(), err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("a page of %s: %s", conn.RemoteAddr(), answer.Status)
	}
	return nil
}

// tolerate says what is no failure from now on.
func (x *witness) tolerate(m may) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.may = m
	x.turns++
}

func (x *witness) begin() {
	x.tolerate(may{})
	x.mu.Lock()
	defer x.mu.Unlock()
	x.asked, x.wrong, x.forgiven = 0, nil, 0
}

// end judges a row: the witness has asked, and nothing was wrong.
func (x *witness) end(r *row, host string) {
	r.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.asked == x.forgiven {
		r.Errorf("%s: nobody asked", host)
	}
	if n := len(x.wrong); n > 0 {
		r.Errorf("%s: %d of %d tries went wrong:\n%s", host, n, x.asked, strings.Join(x.wrong[:min(n, 5)], "\n"))
	}
	r.Logf("%s: names and packets, %d times (%d while this machine stood still)", host, x.asked, x.forgiven)
}
